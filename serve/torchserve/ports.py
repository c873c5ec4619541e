"""Ports on loopback."""

import os
import socket
from contextlib import ExitStack, suppress

import psutil

from mlp_dist.core.errors import ServerError, UsageError

HOST = "127.0.0.1"

FIRST = 8080
"""TorchServe uses three in a row: predictions, management, metrics."""


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def three_ports(first: int | None) -> tuple[list[int], str]:
    """`first` and the next two. None: from FIRST, or else the next free ones, with a message about that.

    Raises ServerError if the given ports are taken and UsageError if they are invalid.
    """
    start = FIRST if first is None else first
    if not 1 <= start <= 65533:
        raise UsageError(f"port is {first}; give one from 1 to 65533, the next two are used as well")
    taken = [port for port in range(start, start + 3) if not is_free(port)]
    if not taken:
        return list(range(start, start + 3)), ""
    message = f"port {taken[0]} is taken by {owner_of(taken[0])}"
    if first is not None:
        raise ServerError(f"{message}; give another --port, or omit it to use free ports")
    for start in range(FIRST + 10, FIRST + 1000, 10):
        ports = list(range(start, start + 3))
        if all(map(is_free, ports)):
            return ports, f"{message}; using {ports[0]} to {ports[-1]}"
    raise ServerError(f"{message}, and so are the ports up to {start}; give another --port")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As TorchServe does: recently closed connections do not block a port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def owner_of(port: int) -> str:
    with suppress(psutil.Error, OSError):
        for each in psutil.net_connections(kind="tcp"):
            if each.laddr and each.laddr.port == port and each.status == psutil.CONN_LISTEN and each.pid:
                command = ""
                with suppress(psutil.Error):
                    command = " ".join(psutil.Process(each.pid).cmdline())[:80]
                return f"process {each.pid} ({command or 'unknown'})"
    return f"a process that user {os.getuid()} may not see"
