"""The load generator of benchmarks/serving.py: connections that are never idle, in a process of its own.

Each connection stays open and sends its next request, which was put together beforehand, as soon as the last
one is answered. Every answer must be a 200 of the length that its head says; one in SAMPLE goes back, to be
looked at. As a module of its own, without torch, it reads a Load as JSON from stdin and prints a Loaded.
"""

import json
import selectors
import socket
import subprocess
import sys
import time
from base64 import b64decode, b64encode
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from mlp_dist.core.errors import ServerError

SAMPLE = 50
PATIENCE = 20.0
"""Seconds for an answer."""


@dataclass(frozen=True)
class Load:
    """`requests` are whole HTTP requests, sent in turn. Of `seconds` the first `warm_up` are not counted."""

    port: int
    requests: list[bytes]
    connections: int
    seconds: float
    warm_up: float = 0.2


@dataclass(frozen=True)
class Loaded:
    """`latencies` in seconds, of the answers within the time that is counted, `seconds`; `answers` are all.

    `busy` is the share of one core that the generator used. `samples`: (which request, the answer's body).
    """

    latencies: list[float]
    seconds: float
    answers: int
    busy: float
    samples: list[tuple[int, str]]


def run(load: Load) -> Loaded:
    """`load` from a process of its own. Raises ServerError where an answer is not a 200, or none comes."""
    given = asdict(load) | {"requests": [b64encode(each).decode() for each in load.requests]}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving_load"],
        cwd=Path(__file__).resolve().parents[1],
        input=json.dumps(given),
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise ServerError(f"under load: {done.stderr.strip()[-1000:]}")
    return Loaded(**json.loads(done.stdout))


class _Connection:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received, self.which, self.sent_at = b"", 0, 0.0

    def send(self, which: int, request: bytes) -> None:
        self.received, self.which, self.sent_at = b"", which, time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> bytes | None:
        """The body, once all of it is there. Raises ServerError for anything but a 200."""
        part = self.socket.recv(65536)
        self.received += part
        head, end, body = self.received.partition(b"\r\n\r\n")
        if not part or (end and not head.startswith(b"HTTP/1.1 200 ")):
            raise ServerError(f"answered with {self.received[:500]!r}")
        if not end:
            return None
        length = int(head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        if len(body) > length:
            raise ServerError(f"answered with {len(body)} bytes where {length} were announced")
        return body if len(body) == length else None


def drive(load: Load) -> Loaded:
    """`load`, in this process."""
    latencies, samples, numbers = [], [], count()
    started, used = time.perf_counter(), time.process_time()
    counted, until = started + load.warm_up, started + load.seconds
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())

        def send(connection: _Connection) -> None:
            which = next(numbers) % len(load.requests)
            connection.send(which, load.requests[which])

        for _ in range(load.connections):
            connection = _Connection(load.port)
            stack.enter_context(connection.socket)
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            send(connection)
        waiting, answers = load.connections, 0
        while waiting:
            ready = selector.select(PATIENCE)
            if not ready:
                raise ServerError(f"no answer within {PATIENCE:g} seconds")
            for key, _ in ready:
                connection = key.data
                body = connection.receive()
                if body is None:
                    continue
                now = time.perf_counter()
                if answers % SAMPLE == 0:
                    samples.append((connection.which, body.decode()))
                answers += 1
                if counted <= now < until:
                    latencies.append(now - connection.sent_at)
                if now < until:
                    send(connection)
                else:
                    waiting -= 1
    busy = (time.process_time() - used) / (time.perf_counter() - started)
    return Loaded(latencies, until - counted, answers, busy, samples)


def main() -> None:
    given: dict[str, Any] = json.load(sys.stdin)
    load = Load(**given | {"requests": [b64decode(each) for each in given["requests"]]})
    try:
        print(json.dumps(asdict(drive(load))))
    except (OSError, ServerError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
