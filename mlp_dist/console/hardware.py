"""The hardware that this process uses: device, cores and threads. Imports torch late."""

import os

from mlp_dist.console.process import is_cpu_forced, is_launched, parent_process
from mlp_dist.core.errors import UsageError


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


def limit_spinning() -> None:
    """Let waiting OpenMP threads sleep soon, unless the user set an OMP_* or GOMP_* variable.

    libgomp reads GOMP_SPINCOUNT when it is loaded, so call this before torch is imported. By default its
    threads spin while they wait, which slows training down to an eighth beside other busy processes.
    """
    if not any(name.startswith(("OMP_", "GOMP_")) for name in user_variables()):
        os.environ["GOMP_SPINCOUNT"] = "1000"
