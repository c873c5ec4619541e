"""What a server does not do unless it is asked to, of one that runs."""

import stat
import urllib.error
import urllib.request
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from serve.archive import read_archive
from serve.client import Client
from serve.torchserve.management import ManagementError, ask
from serve.server import running
from serve.torchserve.state import State

pytestmark = pytest.mark.slow


def state_of(client: Client) -> State:
    assert client.key_file is not None
    state = State.load(client.key_file.parent)
    assert state is not None
    return state


def test_all_ports_are_on_loopback(served: Client) -> None:
    found = [
        each.laddr
        for process in state_of(served).processes()
        for each in process.net_connections(kind="inet")
        if each.status == "LISTEN"
    ]
    assert len(found) >= 3
    for address in found:
        ip = ip_address(address.ip)
        assert (getattr(ip, "ipv4_mapped", None) or ip).is_loopback, address


def test_the_keys_are_the_starting_users_alone(served: Client) -> None:
    assert served.key_file is not None
    assert stat.S_IMODE(served.key_file.stat().st_mode) == 0o600
    state = state_of(served)
    for url in (f"{state.url}/ping", f"{state.url}/models", f"{state.management_url}/models"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url, timeout=10)
        with refused.value as error:
            assert error.code >= 400
            assert b"Healthy" not in error.read()


@pytest.mark.parametrize(("method", "path"), [("POST", "/models?url=other.mar"), ("DELETE", "/models/mlp")])
def test_models_are_not_changed_over_http(served: Client, method: str, path: str) -> None:
    """Not even with the management key."""
    with pytest.raises(ManagementError) as refused:
        ask(state_of(served), path, method=method)
    assert refused.value.status == 405


def test_no_model_comes_from_elsewhere(
    packaged: Path, serve_files: Callable[..., Any], tmp_path: Path
) -> None:
    """Not even where model control is on."""
    mirror = serve_files({"other.mar": packaged.read_bytes()})
    (tmp_path / "other.mar").write_bytes(packaged.read_bytes())
    places = (f"{mirror.url}other.mar", f"file://{tmp_path}/other.mar", f"{tmp_path}/other.mar", "../mlp.mar")
    with running(packaged, read_archive(packaged).golden, enable_model_api="true") as client:
        for place in places:
            path = f"/models?url={quote(place, safe='')}&model_name=other&initial_workers=1&synchronous=true"
            with pytest.raises(ManagementError) as refused:
                ask(state_of(client), path, method="POST")
            assert refused.value.status in (400, 403, 404), place
        assert mirror.requests == []
        assert [model["modelName"] for model in ask(state_of(client), "/models")["models"]] == ["mlp"]


def test_what_the_page_says_of_the_settings_is_so() -> None:
    lines = (Path(__file__).parents[1] / "serve/config.properties").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if line and line[0] != "#")
    assert settings["allowed_urls"] == ""
    for name in ("enable_model_api", "enable_envvars_config", "install_py_dep_per_model"):
        assert settings[name] == "false", name
    assert settings["disable_token_authorization"] == "false"
    assert settings["token_expiration_min"] == "1440"
    assert settings["max_request_size"] == str(10 * 2**20)
