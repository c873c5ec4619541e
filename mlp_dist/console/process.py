"""This process: its rank, launcher, hardware, and the signals that end it. Imports torch late."""

import ctypes
import os
import re
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Self

from mlp_dist.core.errors import UsageError

RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where launchers and MPI pass a process's rank and the number of processes; the first one set counts."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that stop a training with a checkpoint: Ctrl-C, and what SLURM and Kubernetes send."""

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""


def variable(names: tuple[str, ...], default: str) -> str:
    """The first of these environment variables that is set."""
    return next((os.environ[name] for name in names if os.environ.get(name)), default)


def is_main() -> bool:
    """True in the process of rank 0, also before the process group exists, and where ranks make no sense."""
    rank, size = variable(RANKS, "0"), variable(SIZES, "1")
    return rank == "0" or not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size))


def rank_and_size(use_cpu: bool) -> tuple[int, int]:
    """From the launcher's variables. Raises UsageError if these are wrong or incomplete."""
    given = " ".join(f"{name}={os.environ[name]}" for name in (*RANKS, *SIZES) if os.environ.get(name))
    rank, size = variable(RANKS, "0"), variable(SIZES, "1")
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise UsageError(f"{given}: the rank must be a whole number below the number of processes")
    needed = (RANKS, ("MASTER_ADDR",), *([] if use_cpu else [("LOCAL_RANK",)]))
    if size != "1" and (missing := " and ".join(names[0] for names in needed if not variable(names, ""))):
        raise UsageError(
            f"{given}, but no {missing}: start {size} processes with `{launch_command(size)}`, "
            "or under mpiexec, set MASTER_ADDR to the address of the first machine"
        )
    if not (port := address().rpartition(":")[2]).isdecimal() or int(port) > 65535:
        raise UsageError(f"MASTER_PORT={port}: the port must be a whole number up to 65535")
    return int(rank), int(size)


def address() -> str:
    """Where the processes meet, as HOST:PORT."""
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT') or 29500}"


def is_launched() -> bool:
    """True if the parent is Accelerate's or torch's launcher."""
    return "ACCELERATE_DYNAMO_BACKEND" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def parent_process(what: str) -> list[str]:
    """The initial `cmdline` or `environ` of the parent process; empty if the system does not provide it."""
    try:
        return Path(f"/proc/{os.getppid()}/{what}").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def is_cpu_forced() -> bool:
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")


def use_cpu() -> bool:
    """True to train on the CPU: there is no GPU, or the launcher chose the CPU.

    Raises UsageError if this machine has fewer GPUs than processes.
    """
    import torch

    if is_cpu_forced() or not torch.cuda.is_available():
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


def user_variables() -> list[str]:
    """Names of the environment variables that the user set; launchers add some, such as OMP_NUM_THREADS=1."""
    return [entry.split("=")[0] for entry in parent_process("environ")] if is_launched() else list(os.environ)


def set_threads(num_local: int = 1) -> None:
    """Share the cores among this machine's processes, unless the user chose a number of threads."""
    words = " ".join(parent_process("cmdline")).replace("-", "_")
    if "OMP_NUM_THREADS" not in user_variables() and "__num_cpu_threads_per_process" not in words:
        import torch

        torch.set_num_threads(max(1, num_cores() // num_local))


def keep_freed_memory() -> None:
    """Let glibc keep up to 256 MiB of freed memory instead of returning it to the system after each tensor.

    Getting it back costs a page fault for every 4 KiB, which can take longer than the computation in it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 2**28)
        mallopt(_M_MMAP_THRESHOLD, 2**25)


def limit_spinning() -> None:
    """Let waiting OpenMP threads sleep soon, unless the user set an OMP_* or GOMP_* variable.

    libgomp reads GOMP_SPINCOUNT when it is loaded, so call this before torch is imported. By default its
    threads spin while they wait, which slows training down to an eighth beside other busy processes.
    """
    if not any(name.startswith(("OMP_", "GOMP_")) for name in user_variables()):
        os.environ["GOMP_SPINCOUNT"] = "1000"


def launch_command(number: str = "") -> str:
    """The command that starts `number` processes of a training on this machine, by default as many as now."""
    number = number or variable(SIZES, "1")
    if number == "1":
        return "accelerate launch -m mlp_dist.train"
    cpu = "ACCELERATE_USE_CPU=true " if is_cpu_forced() else ""
    return f"{cpu}accelerate launch --multi_gpu --num_processes {number} -m mlp_dist.train"


def end_with_launcher() -> None:
    """Like `end_with`, for the launcher, which does not pass on every signal."""
    if is_launched():
        # Init adopts orphans, but in a container the launcher itself may be process 1.
        is_found = os.getppid() != 1 or re.search("accelerate|torch", " ".join(parent_process("cmdline")))
        end_with(os.getppid() if is_found else 0)


def end_with(parent: int) -> None:
    """Have Linux send SIGTERM when the process `parent` dies. Raises Interrupted if it is dead already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            raise Interrupted(signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """One of STOP_SIGNALS arrived; `exit_code` is 128 + the signal, as in shells."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 128 + signum

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.args[0]).name}"


class StopSignals(ExitStack):
    """A context manager that records STOP_SIGNALS; `check` raises Interrupted where it is safe to stop.

    A second SIGINT raises KeyboardInterrupt at once. After `at_once`, so does the first signal.
    """

    received: int | None = None
    _is_at_once = False

    def __enter__(self) -> Self:
        for signum in STOP_SIGNALS:
            self.callback(signal.signal, signum, signal.signal(signum, self._record))
        return self

    def _record(self, signum: int, frame: FrameType | None) -> None:
        is_first, self.received = self.received is None, self.received or signum
        # Launchers repeat a signal that their processes got already, which must not interrupt the cleanup.
        if is_first and self._is_at_once:
            raise Interrupted(signum)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def at_once(self) -> None:
        """Let the next signal interrupt immediately, because nothing can be lost any more."""
        self._is_at_once = True
        self.check()

    def check(self) -> None:
        if self.received is not None:
            raise Interrupted(self.received)
