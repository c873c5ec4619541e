"""How a worker reads what TorchServe sends it: at one go, where TorchServe's own asks for each field."""

import sys
from collections.abc import Callable
from socket import socket

Read = Callable[[socket, int], bytes]

_PROTOCOL = "ts.protocol.otf_message_handler"
_AT_ONCE = 2**16


def read_ahead() -> None:
    """From now on, the worker of this process reads what has arrived and takes the fields out of that.

    A batch of 16 requests has about 500 fields, and half of a worker's time went into asking for them.
    """
    protocol = sys.modules.get(_PROTOCOL)
    # TorchServe has had its last release, so this is how its workers will stay; outside of one there is none.
    read = getattr(protocol, "_retrieve_buffer", None)
    if read is not None and not hasattr(read, "reads_ahead"):
        protocol._retrieve_buffer = buffered(read)  # type: ignore[union-attr]


def buffered(read: Read) -> Read:
    """`read` gets so many bytes from a connection, and ends the process when that is closed."""
    held, position = b"", 0

    def ahead(connection: socket, length: int) -> bytes:
        nonlocal held, position
        start, position = position, position + length
        if position > len(held):
            parts = [held[start:]]
            missing = length - len(parts[0])
            while missing > 0:
                part = connection.recv(max(missing, _AT_ONCE))
                if not part:
                    return read(connection, length)
                parts.append(part)
                missing -= len(part)
            held, start, position = b"".join(parts), 0, length
        return held[start:position]

    ahead.reads_ahead = True  # type: ignore[attr-defined]
    return ahead
