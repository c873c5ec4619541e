"""What the launcher decided (number of processes, device, threads), and the signals that end a process.

Every command imports this module, so torch is imported only where it is needed.
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

_REPORT_SECONDS = 5.0
"""Upper bound on how much later the main process meets the same error."""


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """True in the process of rank 0, also before the process group exists."""
    return os.environ.get("RANK", "0") == "0"


def let_main_report_first() -> None:
    """Delay an exit so that rank 0, which meets the same error, can print it.

    A launcher kills all its processes as soon as one has failed.
    """
    if _is_launched():
        time.sleep(_REPORT_SECONDS)


def check_launcher() -> None:
    """Raise UsageError if Accelerate's launcher was asked for several processes but started one.

    Without --multi_gpu it sets MASTER_ADDR for several processes, and then starts a single one silently.
    """
    is_single = not any(name in os.environ for name in ("WORLD_SIZE", *_MPI_SIZES))
    is_accelerate = "ACCELERATE_DYNAMO_BACKEND" in os.environ
    is_set_by_user = any(entry.startswith("MASTER_ADDR=") for entry in _parent("environ"))
    if not (is_accelerate and is_single and "MASTER_ADDR" in os.environ) or is_set_by_user:
        return
    found = re.search(r"--num[-_]processes[ =](\d+)", " ".join(_parent("cmdline")))
    number = found[1] if found else "N"
    command = f"{launch_command(number)} {shlex.join(sys.argv[1:])}"
    raise UsageError(
        f"accelerate launch was asked for {number} processes but started 1, because --multi_gpu is missing. "
        f"This command starts {number}, on GPUs if there are any, else on the CPU:\n  {command}"
    )


def launch_command(number: str = "") -> str:
    """The command that starts `number` processes of a training on this machine, by default as many as now."""
    number = number or str(world_size())
    if number == "1":
        return "accelerate launch -m mlp_dist.train"
    cpu = "ACCELERATE_USE_CPU=true " if _is_cpu_forced() else ""
    return f"{cpu}accelerate launch --multi_gpu --num_processes {number} -m mlp_dist.train"


def _parent(what: str) -> list[str]:
    """The initial `cmdline` or `environ` of the parent process; empty if the system does not provide it."""
    try:
        return Path(f"/proc/{os.getppid()}/{what}").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _is_launched() -> bool:
    """True if the parent is Accelerate's or torch's launcher."""
    return "ACCELERATE_DYNAMO_BACKEND" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def _is_cpu_forced() -> bool:
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")


def use_cpu() -> bool:
    """True to train on the CPU: there is no GPU, or the launcher chose the CPU.

    Raises UsageError if this machine has fewer GPUs than processes.
    """
    import torch

    if _is_cpu_forced() or not torch.cuda.is_available():
        return True
    local, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if local > gpus:
        raise UsageError(
            f"{local} processes on this machine, but it has {gpus} GPU{'s' * (gpus > 1)}; start {gpus} with "
            f"--num_processes {gpus}, or {local} on the CPU with ACCELERATE_USE_CPU=true before the command"
        )
    return False


def num_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_spinning() -> None:
    """Let waiting OpenMP threads sleep soon, unless the user set an OMP_* or GOMP_* variable.

    libgomp reads GOMP_SPINCOUNT when it is loaded, so call this before torch is imported. By default its
    threads spin while they wait, which slows training down to an eighth beside other busy processes.
    """
    if not any(name.startswith(("OMP_", "GOMP_")) for name in _user_variables()):
        os.environ["GOMP_SPINCOUNT"] = "1000"


def _user_variables() -> list[str]:
    """Names of the environment variables that the user set.

    The launchers add some to their children's environment, such as OMP_NUM_THREADS=1.
    """
    if _is_launched():
        return [entry.partition("=")[0] for entry in _parent("environ")]
    return list(os.environ)


def set_threads() -> None:
    """Share this machine's cores among its processes, unless the user chose a number of threads."""
    started = " ".join(_parent("cmdline"))
    if "OMP_NUM_THREADS" in _user_variables() or re.search(
        r"--num[-_]cpu[-_]threads[-_]per[-_]process", started
    ):
        return
    import torch

    torch.set_num_threads(max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def end_with_launcher() -> None:
    """Have Linux send SIGTERM when the launcher dies, which does not pass on every signal.

    Raises Interrupted if the launcher is dead already.
    """
    # Init adopts orphans, but in a container the launcher itself may be process 1.
    is_orphan = os.getppid() == 1 and not re.search("accelerate|torch", " ".join(_parent("cmdline")))
    if _is_launched():
        end_with(0 if is_orphan else os.getppid())


def end_with(parent: int) -> None:
    """Have Linux send SIGTERM when the parent process dies, whose ID is `parent`.

    Raises Interrupted if the parent is dead already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            raise Interrupted(signal.SIGTERM)


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that stop a training with a checkpoint: Ctrl-C, and what SLURM and Kubernetes send."""


class Interrupted(KeyboardInterrupt):
    """One of STOP_SIGNALS arrived; `exit_code` is 128 + the signal, as in shells."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum, self.exit_code = signum, 128 + signum

    def __reduce__(self) -> tuple[type[Self], tuple[int]]:
        return type(self), (self.signum,)


class StopSignals:
    """A context manager that records STOP_SIGNALS; `check` raises Interrupted where it is safe to stop.

    A second SIGINT raises KeyboardInterrupt at once. After `at_once`, so does the first signal.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._at_once = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        for signum in STOP_SIGNALS:
            self._previous[signum] = signal.signal(signum, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def _record(self, signum: int, frame: FrameType | None) -> None:
        is_first, self.received = self.received is None, self.received or signum
        # Launchers repeat a signal that their processes got already, which must not interrupt the cleanup.
        if is_first and self._at_once:
            raise Interrupted(signum)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def at_once(self) -> None:
        """Let the next signal interrupt immediately, because nothing can be lost any more."""
        self._at_once = True
        self.check()

    def check(self) -> None:
        if self.received is not None:
            raise Interrupted(self.received)
