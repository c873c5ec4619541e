"""Reading ahead, compared with TorchServe's own reader."""

import importlib.util
import random
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from types import ModuleType

import pytest

from serve.inference import socket_reader

NAME = "ts.protocol.otf_message_handler"


@pytest.fixture
def protocol(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A fresh copy of TorchServe's module: a handler of another test has changed the loaded one."""
    spec = importlib.util.find_spec(NAME)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, NAME, module)
    return module


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


def field(content: bytes) -> bytes:
    return struct.pack("!i", len(content)) + content


def message(bodies: list[bytes]) -> bytes:
    end, parts = struct.pack("!i", -1), [b"I"]
    for number, body in enumerate(bodies):
        headers = field(b"Content-Type") + field(b"image/png") + end
        parts += [field(b"id%d" % number), headers, field(b"body"), field(b"image/png"), field(body), end]
    return b"".join([*parts, end])


def test_messages_are_the_same_however_they_arrive(
    pair: tuple[socket.socket, socket.socket], protocol: ModuleType
) -> None:
    draw = random.Random(0)
    sent = [
        message([draw.randbytes(draw.choice((0, 1, 300, 70_000, 300_000))) for _ in range(number)])
        for number in (1, 16, 0, 3, 40)
    ]

    def send() -> None:
        for each in sent * 2:
            start = 0
            while start < len(each):
                end = start + draw.choice((1, 3, 1000, 100_000))
                pair[0].sendall(each[start:end])
                start = end

    thread = threading.Thread(target=send)
    thread.start()
    expected = [protocol.retrieve_msg(pair[1]) for _ in sent]
    own = protocol._retrieve_buffer
    socket_reader.install()
    assert protocol._retrieve_buffer is not own
    assert [protocol.retrieve_msg(pair[1]) for _ in sent] == expected
    thread.join()
