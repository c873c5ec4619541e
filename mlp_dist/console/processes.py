"""What the launcher started: how many processes, on which device, with how many threads, and signals.

Every command comes here for its exit code, so torch is imported where it is needed.
"""

import ctypes
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Self

from mlp_dist.core.errors import UsageError

_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_PR_SET_PDEATHSIG = 1

_SPEAKING = 5.0
"""Seconds: more than processes that started together are apart."""


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this process is the one that prints; usable before any process group exists."""
    return os.environ.get("RANK", "0") == "0"


def let_main_speak() -> None:
    """Wait where this process is about to end by a mistake that the main one meets as well, and tells.

    A launcher ends all processes of its machine once one has failed: the main one too, before its words,
    where it comes later. It ends this one meanwhile.
    """
    if _launched():
        time.sleep(_SPEAKING)


def check_launcher() -> None:
    """Raise UsageError where the launcher was asked for several processes and has started one.

    Accelerate's launcher for one process gives its child a MASTER_ADDR when it was asked for more, and
    then starts it alone; such a training would be a single one, without a word.
    """
    environment = os.environ
    by_launcher = "ACCELERATE_DYNAMO_BACKEND" in environment
    alone = not any(name in environment for name in ("WORLD_SIZE", *_MPI_SIZES))
    if not (by_launcher and alone and "MASTER_ADDR" in environment):
        return
    import torch

    wanted = _wanted_processes()
    if wanted == 1:
        return
    number = wanted or "N"
    words = ["accelerate", "launch", "--multi_gpu", "--num_processes", str(number), *sys.argv]
    prefix = "ACCELERATE_USE_CPU=true " if _forced_cpu() and torch.cuda.is_available() else ""
    raise UsageError(
        f"accelerate launch was asked for {number} processes but has started 1, as it does without "
        f"--multi_gpu. This command starts {number}, on GPUs where there are some, else on the CPU:\n"
        f"  {prefix}{shlex.join(words)}"
    )


def _wanted_processes() -> int | None:
    """The number on the launcher's command line, else in its configuration file."""
    command = " ".join(_parent("cmdline"))
    texts = [command]
    named = re.search(r"--config[-_]file[ =](\S+)", command)
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    config = Path(named[1]) if named else home / "accelerate" / "default_config.yaml"
    if config.is_file():
        texts.append(config.read_text(errors="replace"))
    for text in texts:
        if found := re.search(r"num[-_]processes[\"=:\s]+(\d+)", text):
            return int(found[1])
    return None


def _parent(what: str) -> list[str]:
    """The parent's `cmdline` or `environ` as it was started; empty where the system does not tell."""
    try:
        return Path(f"/proc/{os.getppid()}/{what}").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def launch_command() -> str:
    """How as many processes are started again on this machine."""
    number = world_size()
    several = f" --multi_gpu --num_processes {number}" if number > 1 else ""
    cpu = "ACCELERATE_USE_CPU=true " if number > 1 and _forced_cpu() else ""
    return f"{cpu}accelerate launch{several} -m mlp_dist.train"


def _launched() -> bool:
    """Whether the parent is a launcher of Accelerate's or torch's."""
    return "ACCELERATE_DYNAMO_BACKEND" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def _forced_cpu() -> bool:
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")


def use_cpu() -> bool:
    """Whether to train on the CPU: where there is no GPU, or the launcher was told so.

    Raises UsageError where there are fewer GPUs than processes on this machine.
    """
    import torch

    if _forced_cpu() or not torch.cuda.is_available():
        return True
    local, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if local > gpus:
        raise UsageError(
            f"{local} processes on this machine, but it has {gpus} GPU{'s' * (gpus > 1)}; start {gpus} with "
            f"--num_processes {gpus}, or {local} on the CPU with ACCELERATE_USE_CPU=true before the command"
        )
    return False


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads() -> None:
    """Share this machine's cores among its processes, unless the user chose a number of threads.

    The launchers set OMP_NUM_THREADS to 1 where nothing was chosen, so the choice is looked for in what
    the launcher itself was given.
    """
    started = " ".join(_parent("cmdline"))
    environment = _parent("environ") if _launched() else [f"{name}=" for name in os.environ]
    chosen = any(entry.startswith("OMP_NUM_THREADS=") for entry in environment)
    if chosen or re.search(r"--num[-_]cpu[-_]threads[-_]per[-_]process", started):
        return
    import torch

    torch.set_num_threads(max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def end_with_launcher() -> None:
    """Ask Linux for a SIGTERM when the launcher dies: it does not pass on all that ends it.

    Raises Interrupted where it has died already.
    """
    if sys.platform == "linux" and _launched():
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        # One that has died already has left this process to init.
        if os.getppid() == 1 and not re.search("accelerate|torch", " ".join(_parent("cmdline"))):
            raise Interrupted(signal.SIGTERM)


def end_with(parent: int) -> None:
    """Ask Linux for a SIGTERM when the process `parent` dies, which started this one.

    Raises Interrupted where it has died already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            raise Interrupted(signal.SIGTERM)


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""What ends a training in order: Ctrl-C, and what SLURM and Kubernetes send before they take a machine."""


class Interrupted(KeyboardInterrupt):
    """One of STOP_SIGNALS arrived; `exit_code` is the shell's convention for it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum, self.exit_code = signum, 128 + signum

    def __reduce__(self) -> tuple[type[Self], tuple[int]]:
        return type(self), (self.signum,)


class StopSignals:
    """While open, STOP_SIGNALS are remembered, and `check` raises Interrupted where it is safe to stop.

    A second SIGINT interrupts at once, and so does the first signal once `at_once` was called.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._at_once = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        for signum in STOP_SIGNALS:
            self._previous[signum] = signal.signal(signum, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        is_first, self._received = self._received is None, self._received or signum
        # A launcher passes on what this process has got already: what ends must not be cut short by that.
        if is_first and self._at_once:
            raise Interrupted(signum)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def at_once(self) -> None:
        """From here on nothing is lost by stopping anywhere."""
        self._at_once = True
        self.check()

    @property
    def received(self) -> int | None:
        return self._received

    def check(self) -> None:
        if self._received is not None:
            raise Interrupted(self._received)
