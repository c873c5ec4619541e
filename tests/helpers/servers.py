"""Access to a server that a test has started."""

from serve.client import Client
from serve.torchserve.server_state import ServerState


def state_of(client: Client) -> ServerState:
    assert client.key_file is not None
    state = ServerState.load(client.key_file.parent)
    assert state is not None
    return state
