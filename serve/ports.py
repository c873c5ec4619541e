"""Ports on loopback: which are free, and who has the others."""

import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack

import psutil

from mlp_dist.core.errors import ServerError, UsageError

FIRST = 8080
"""Of three in a row, as TorchServe has them: predictions, management, metrics."""

_STEP = 10
_TRIES = 100

HOST = "127.0.0.1"


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def three_ports(first: int | None) -> tuple[list[int], str]:
    """`first` and the two after it; without it FIRST's, or where these are taken others, and a word on that.

    Raises ServerError where those that were asked for are taken, UsageError where there are none such.
    """
    asked = range(first or FIRST, (first or FIRST) + 3)
    if not 1 <= asked[0] <= asked[-1] <= 65535:
        raise UsageError(f"port is {first}; give one from 1 to 65533, the two after it are used as well")
    taken = [port for port in asked if not is_free(port)]
    if not taken:
        return list(asked), ""
    owners: dict[str, list[str]] = {}
    for port in taken:
        owners.setdefault(_owner(port), []).append(str(port))
    message = "; ".join(
        f"port {' and '.join(numbers)} is taken by {owner}" for owner, numbers in owners.items()
    )
    if first is not None:
        raise ServerError(f"{message}; give three others with --port, or none for free ones")
    for start in range(FIRST + _STEP, FIRST + _TRIES * _STEP, _STEP):
        ports = list(range(start, start + 3))
        if all(map(is_free, ports)):
            return ports, f"{message}; using {ports[0]} to {ports[-1]}"
    raise ServerError(f"{message}, and so are those up to {start}; give three others with --port")


def one_port(asked: int | None, first: int) -> int:
    """`asked`; without it the first that is free from `first` on.

    Raises ServerError where it is taken, UsageError where it is none.
    """
    if asked is None:
        return next((port for port in range(first, first + _TRIES) if is_free(port)), 0) or free_ports(1)[0]
    if not 1 <= asked <= 65535:
        raise UsageError(f"port is {asked}; give one from 1 to 65535")
    if not is_free(asked):
        raise ServerError(
            f"port {asked} is taken by {_owner(asked)}; give another with --port, or none for a free one"
        )
    return asked


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As TorchServe does: connections that were closed a moment ago do not hold a port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _owner(port: int) -> str:
    try:
        connections: Sequence[psutil._ntuples.sconn] = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        connections = []
    for each in connections:
        if each.laddr and each.laddr.port == port and each.status == psutil.CONN_LISTEN and each.pid:
            try:
                words = psutil.Process(each.pid).cmdline()
            except psutil.Error:
                words = []
            return f"process {each.pid} ({' '.join(words)[:80] or 'unknown'})"
    return f"a process that user {os.getuid()} may not see"
