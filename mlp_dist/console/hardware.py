"""The hardware that this process uses: device, cores and threads, network interface. Imports torch late."""

import ipaddress
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mlp_dist.console.process import SIZES, is_cpu_forced, is_launched, parent_process, variable
from mlp_dist.core.errors import UsageError, unknown

_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")

_FAR_AWAY = ("192.0.2.1", "2001:db8::1")
"""Documentation addresses (RFC 5737, RFC 3849): routed like any remote address, used by nobody."""


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


def choose_interface() -> None:
    """Name the network interface that leads to the main machine to gloo and NCCL, unless the user named one.

    Gloo announces the address of the host name. If that is loopback, as /etc/hosts often has it, other
    machines cannot connect. Called once by a command, since it sets environment variables.
    """
    is_one_machine = variable(SIZES, "1") == os.environ.get("LOCAL_WORLD_SIZE", "1")
    if is_one_machine or _own_address(socket.gethostname(), socket.socket.bind) is not None:
        return
    import psutil

    addresses = {
        entry.address.partition("%")[0]: name
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
    }
    # On the main machine, its own name may lead to loopback.
    targets = (os.environ.get("MASTER_ADDR", ""), *_FAR_AWAY)
    own = (_own_address(target, socket.socket.connect) for target in targets)
    if name := next((addresses[address] for address in own if address in addresses), None):
        # NCCL matches a bare name as a prefix.
        for setting, value in zip(_INTERFACES, (name, f"={name}"), strict=True):
            os.environ.setdefault(setting, value)


def check_interfaces() -> None:
    """Raise UsageError if gloo or NCCL was given an interface that does not exist."""
    known = [name for _, name in socket.if_nameindex()]
    for setting in _INTERFACES:
        # NCCL takes prefixes, = before exact names, and ^ before names to avoid.
        for name in os.environ.get(setting, "").removeprefix("=").split(","):
            if not name.startswith("^") and not any(each.startswith(name) for each in known):
                raise UsageError(f"{setting}: {unknown('network interface', name, known)}")


def _own_address(name: str, attach: Callable[[socket.socket, Any], None]) -> str | None:
    """This machine's address once a UDP socket is bound or connected to `name`; None if that is loopback."""
    with suppress(OSError, UnicodeError):
        family, kind, protocol, _, address = socket.getaddrinfo(name, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            attach(probe, address)
            found = str(probe.getsockname()[0])
            return None if ipaddress.ip_address(found).is_loopback else found
    return None
