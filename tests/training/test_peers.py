import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlp_dist.core.errors import ProcessLostError, UsageError
from mlp_dist.training.distributed import peers
from mlp_dist.training.distributed.peers import Peers
from tests.helpers.launching import environment, free_port, objects


@contextmanager
def several(number: int, script: Path, *words: str) -> Iterator[list[subprocess.Popen[str]]]:
    """`number` processes of one training, without a launcher."""
    variables = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *words],
            env=environment(**variables, RANK=str(rank), OMP_NUM_THREADS="1"),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(number)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


SURVIVOR = """
import json, os, signal, sys
from mlp_dist.core.errors import UsageError
from mlp_dist.training.distributed.peers import Peers
from mlp_dist.training.distributed.rendezvous import join

def attempt(error=None):
    def work():
        if error is not None:
            raise error
        return peers.rank
    try:
        return peers.on_main(work)
    except Exception as met:
        return f"{type(met).__name__}: {met}"

join(use_cpu=True)
peers = Peers()
on_main = [attempt(), attempt(UsageError("wrong")), attempt(ZeroDivisionError("by zero"))]
assert (peers.lost(), peers.largest(peers.rank)) == ([], [2.0])
if peers.rank == int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
try:
    peers.largest(0)
except RuntimeError:
    found = {"rank": peers.rank, "lost": peers.lost(), "reports": [peers.is_reporter(), peers.is_reporter()],
             "local": [os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"]], "on_main": on_main}
    print(json.dumps(found), flush=True)
# The connections are broken; their destructors would wait.
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "reporter"), [(0, 1), (1, 0)])
def test_one_survivor_reports_a_killed_process(tmp_path: Path, victim: int, reporter: int) -> None:
    script = tmp_path / "survivor.py"
    script.write_text(SURVIVOR)
    with several(3, script, str(victim)) as processes:
        # The victim is waited for last: until then it is a zombie, which must count as ended.
        survivors = [process for rank, process in enumerate(processes) if rank != victim]
        found = objects("".join(process.communicate(timeout=120)[0] for process in survivors))
        assert processes[victim].communicate()[0] == ""
        assert processes[victim].returncode == -signal.SIGKILL
    assert [values["rank"] for values in found] == [rank for rank in range(3) if rank != victim]
    for values in found:
        name = f"process {victim} (pid {processes[victim].pid})"
        reports = values["rank"] == reporter
        # The other survivor may find the reporter ended, too.
        assert values["lost"] == [name] if reports else name in values["lost"]
        assert values["reports"] == [reports] * 2
        assert values["local"] == [str(values["rank"]), "3"]
        other = (
            "ZeroDivisionError: by zero"
            if values["rank"] == 0
            else "MlpDistError: the main process has failed"
        )
        assert values["on_main"] == [0, "UsageError: wrong", other]


def test_a_single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise UsageError("wrong")

    alone = Peers()
    assert (alone.rank, alone.size) == (0, 1)
    assert alone.largest(1, -2.5, float("inf")) == [1.0, -2.5, float("inf")]
    assert alone.lost() == []
    assert alone.is_reporter()
    assert alone.on_main(lambda: 3) == 3
    with pytest.raises(UsageError, match="wrong"):
        alone.on_main(fail)
    with pytest.raises(RuntimeError, match=r"^something else$"), alone.watched():
        raise RuntimeError("something else")
    monkeypatch.setattr(alone, "lost", lambda: ["process 1 (pid 7)", "process 3 (pid 9)"])
    message = r"^process 1 \(pid 7\) and process 3 \(pid 9\) of this training died"
    with pytest.raises(ProcessLostError, match=message) as raised, alone.watched():
        raise RuntimeError("connection closed")
    assert (raised.value.is_reporter, raised.value.exit_code) == (True, 1)


def test_a_zombie_has_ended() -> None:
    assert not peers._has_ended(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert not peers._has_ended(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert peers._has_ended(process.pid)
    assert peers._has_ended(process.pid)
