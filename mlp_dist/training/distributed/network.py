"""The network interface that connects the machines of a training."""

import contextlib
import ipaddress
import os
import socket
from pathlib import Path
from typing import Any

from mlp_dist.console.processes import world_size

_FAR_AWAY = ("192.0.2.1", "2001:db8::1")
"""Documentation addresses (RFC 5737, RFC 3849): routed like any remote address, used by nobody."""


def choose_interface() -> None:
    """Set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the interface that leads to the main machine.

    Gloo announces the address of the host name. If that is loopback, as /etc/hosts often has it, other
    machines cannot connect. Does nothing for a training on one machine, for a host name with a reachable
    address, or if no interface is found. Variables that are set stay.
    """
    master = os.environ.get("MASTER_ADDR", "")
    several = world_size() > int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if not several or master in ("", "localhost") or _is_loopback(master) or not _own_name_is_loopback():
        return
    if (interface := _interface_towards(master)) is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        # NCCL matches a bare name as a prefix.
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")


def _is_loopback(address: str) -> bool:
    """False for a name."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _own_name_is_loopback() -> bool:
    """Whether gloo's address is loopback: it takes the first address of the host name that can be bound."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return True
    for family, kind, protocol, _, address in found:
        with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
            return _is_loopback(str(address[0]))
    return True


def _interface_towards(master: str) -> str | None:
    # On the main machine itself, the name may resolve to loopback.
    for target in (master, *_FAR_AWAY):
        for local in _local_addresses(target):
            if not _is_loopback(local[0]) and (interface := _interface_of(local)) is not None:
                return interface
    return None


def _local_addresses(target: str) -> list[tuple[Any, ...]]:
    """The local socket addresses of routes to `target`. Connecting a UDP socket sends nothing."""
    addresses = []
    with contextlib.suppress(OSError, UnicodeError):
        for family, kind, protocol, _, address in socket.getaddrinfo(target, 9, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.connect(address)
                addresses.append(probe.getsockname())
    return addresses


def _interface_of(address: tuple[Any, ...]) -> str | None:
    """The name of the interface with this socket address."""
    if len(address) == 4 and address[3]:
        # A link-local address, which several interfaces may have.
        return socket.if_indextoname(address[3])
    import psutil

    wanted = _without_scope(address[0])
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family in (socket.AF_INET, socket.AF_INET6) and _without_scope(entry.address) == wanted:
                return str(name)
    return None


def _without_scope(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(address.partition("%")[0])


def machine() -> str:
    """The same text for two processes if and only if they share their process IDs."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)
