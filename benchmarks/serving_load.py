"""The load generator of benchmarks.serving: connections that are never idle."""

import selectors
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count

from mlp_dist.core.errors import ServerError

SAMPLE = 50
"""One answer in this many is returned for checking."""
TIMEOUT = 20.0
WARM_UP = 0.2
"""Seconds at the start of a load that are not counted."""


@dataclass(frozen=True)
class Loaded:
    """`latencies` in seconds, of the answers within the counted `seconds`; `answers` counts all of them.

    `busy`: CPU seconds of the generator per second. `samples`: (index of the request, body of the answer).
    """

    latencies: list[float]
    seconds: float
    answers: int
    busy: float
    samples: list[tuple[int, str]]


class _Connection:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, index: int, request: bytes) -> None:
        self.received, self.index, self.sent_at = b"", index, time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> bytes | None:
        """The body once it is complete. Raises ServerError for anything but a 200 of the announced length."""
        part = self.socket.recv(65536)
        self.received += part
        head, end, body = self.received.partition(b"\r\n\r\n")
        if not part or (end and not head.startswith(b"HTTP/1.1 200 ")):
            raise ServerError(f"answered with {self.received[:500]!r}")
        if not end:
            return None
        length = int(head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        if len(body) > length:
            raise ServerError(f"answered with {len(body)} bytes instead of {length}")
        return body if len(body) == length else None


def drive(port: int, requests: list[bytes], connections: int, seconds: float) -> Loaded:
    """Send whole HTTP `requests` in turn, each connection the next one as soon as its last one is answered.

    Raises ServerError unless every answer is a 200.
    """
    latencies, samples, numbers = [], [], count()
    started, cpu_before = time.perf_counter(), time.process_time()
    counted, until = started + WARM_UP, started + seconds
    waiting, answers = connections, 0
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())

        def send_next(connection: _Connection) -> None:
            index = next(numbers) % len(requests)
            connection.send(index, requests[index])

        for _ in range(connections):
            connection = _Connection(port)
            stack.enter_context(connection.socket)
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            send_next(connection)
        while waiting:
            ready = selector.select(TIMEOUT)
            if not ready:
                raise ServerError(f"no answer within {TIMEOUT:g} seconds")
            for key, _ in ready:
                connection = key.data
                body = connection.receive()
                if body is None:
                    continue
                now = time.perf_counter()
                if answers % SAMPLE == 0:
                    samples.append((connection.index, body.decode()))
                answers += 1
                if counted <= now < until:
                    latencies.append(now - connection.sent_at)
                if now < until:
                    send_next(connection)
                else:
                    waiting -= 1
    busy = (time.process_time() - cpu_before) / (time.perf_counter() - started)
    return Loaded(latencies, until - counted, answers, busy, samples)
