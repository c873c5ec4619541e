"""Access to a server that a test has started."""

from serve.client import Client
from serve.torchserve.state import State


def state_of(client: Client) -> State:
    assert client.key_file is not None
    state = State.load(client.key_file.parent)
    assert state is not None
    return state
