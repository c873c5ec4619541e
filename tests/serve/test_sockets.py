"""The quicker ways to read and write TorchServe's messages, against its own."""

import importlib.util
import random
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from types import ModuleType

import pytest

from serve.answering import sockets

NAME = "ts.protocol.otf_message_handler"


@pytest.fixture
def protocol(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """TorchServe's own, new: a handler of another test has changed the one that is loaded."""
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


def test_the_messages_are_the_same_however_they_arrive(
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
    sockets.quicken()
    assert [protocol.retrieve_msg(pair[1]) for _ in sent] == expected
    thread.join()


def test_a_batch_is_read_in_a_few_calls(
    pair: tuple[socket.socket, socket.socket], protocol: ModuleType
) -> None:
    calls = []

    class Counting:
        def recv(self, size: int) -> bytes:
            calls.append(size)
            return pair[1].recv(size)

    content = message([bytes(300)] * 16)
    pair[0].sendall(content)
    read = sockets.buffered(protocol._retrieve_buffer)
    assert b"".join(read(Counting(), 1) for _ in content) == content  # type: ignore[arg-type]
    assert len(calls) < 5


def test_it_ends_as_torchserves_does_when_the_server_has_gone(
    pair: tuple[socket.socket, socket.socket], protocol: ModuleType
) -> None:
    pair[0].sendall(b"I")
    pair[0].close()
    read = sockets.buffered(protocol._retrieve_buffer)
    assert read(pair[1], 1) == b"I"
    with pytest.raises(SystemExit) as ended:
        read(pair[1], 1)
    assert ended.value.code == 0


def test_it_is_put_in_place_once_and_only_in_a_worker(
    protocol: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = protocol._retrieve_buffer
    sockets.quicken()
    once = protocol._retrieve_buffer
    assert once is not own
    sockets.quicken()
    assert protocol._retrieve_buffer is once
    monkeypatch.delitem(sys.modules, NAME)
    sockets.quicken()
    assert NAME not in sys.modules


def test_headers_are_encoded_as_torchserve_does(protocol: ModuleType) -> None:
    given = [{}, {"content-type": "application/json", "X-Run-Id": "é1"}, {"X-Run-Id": "é2"}]
    expected = [protocol.encode_response_headers(each) for each in given]
    sockets.quicken()
    for _ in range(2):
        assert [protocol.encode_response_headers(each) for each in given] == expected
