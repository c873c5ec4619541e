import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mlp_dist.core.errors import ProcessLostError, UsageError
from mlp_dist.training.distributed import peers
from mlp_dist.training.distributed.peers import Peers
from tests.helpers.launching import environment, objects

SURVIVOR = """
import json, os, signal, sys
from mlp_dist.joining import join
from mlp_dist.peers import Peers

join(use_cpu=True)
peers = Peers()
assert (peers.lost(), peers.largest(peers.rank)) == ([], [2.0])
if peers.rank == int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
try:
    peers.largest(0)
except RuntimeError:
    found = {"rank": peers.rank, "lost": peers.lost(), "speaks": [peers.speaks(), peers.speaks()],
             "local": [os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"]]}
    print(json.dumps(found), flush=True)
# The connections are broken; their destructors would wait.
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "speaker"), [(0, 1), (1, 0)])
def test_the_survivors_of_a_killed_process_name_it_and_one_of_them_speaks(
    tmp_path: Path, victim: int, speaker: int
) -> None:
    script = tmp_path / "survivor.py"
    script.write_text(SURVIVOR)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    variables = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(victim)],
            env=environment(**variables, RANK=str(rank), OMP_NUM_THREADS="1"),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    # The victim is waited for last: until then it is a zombie, which must count as ended.
    survivors = [process for rank, process in enumerate(processes) if rank != victim]
    found = objects("".join(process.communicate(timeout=120)[0] for process in survivors))
    assert processes[victim].communicate()[0] == ""
    assert processes[victim].returncode == -signal.SIGKILL
    ranks = [rank for rank in range(3) if rank != victim]
    assert [values["rank"] for values in found] == ranks
    for values in found:
        name = f"process {victim} (pid {processes[victim].pid})"
        speaks = values["rank"] == speaker
        # One that comes late may miss the speaker, too.
        assert values["lost"] == [name] if speaks else name in values["lost"]
        assert values["speaks"] == [speaks] * 2
        assert values["local"] == [str(values["rank"]), "3"]


def test_a_process_alone_has_lost_none_and_speaks() -> None:
    alone = Peers()
    assert (alone.rank, alone.size) == (0, 1)
    assert alone.largest(1, -2.5, float("inf")) == [1.0, -2.5, float("inf")]
    assert alone.lost() == []
    assert alone.speaks()


def test_a_zombie_has_ended() -> None:
    assert not peers._has_ended(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert not peers._has_ended(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert peers._has_ended(process.pid)
    assert peers._has_ended(process.pid)


def test_alone_the_main_process_s_work_is_one_s_own() -> None:
    def fail() -> None:
        raise UsageError("wrong")

    assert Peers().on_main(lambda: 3) == 3
    with pytest.raises(UsageError, match="wrong"):
        Peers().on_main(fail)


def test_a_failure_without_a_lost_process_is_what_it_was() -> None:
    with pytest.raises(RuntimeError, match=r"^something else$"), Peers().watched():
        raise RuntimeError("something else")


def test_a_lost_process_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Peers()
    monkeypatch.setattr(alone, "lost", lambda: ["process 1 (pid 7)", "process 3 (pid 9)"])
    with (
        pytest.raises(
            ProcessLostError, match=r"^process 1 \(pid 7\) and process 3 \(pid 9\) of this training died"
        ) as raised,
        alone.watched(),
    ):
        raise RuntimeError("connection closed")
    assert raised.value.speaks
    assert raised.value.exit_code == 1


ON_MAIN = """
import json
from mlp_dist.core.errors import UsageError
from mlp_dist.joining import join
from mlp_dist.peers import Peers
from mlp_dist.processes import Interrupted

join(use_cpu=True)
peers = Peers()

def attempt(error=None):
    def work():
        if error is not None:
            raise error
        return peers.rank
    try:
        return peers.on_main(work)
    except BaseException as met:
        return [type(met).__name__, str(met)]

found = {"rank": peers.rank, "result": attempt(), "ours": attempt(UsageError("wrong")),
         "signal": attempt(Interrupted(15)), "other": attempt(ZeroDivisionError("by zero"))}
print(json.dumps(found), flush=True)
"""


@pytest.mark.slow
def test_what_happens_on_the_main_process_is_known_to_all(tmp_path: Path) -> None:
    script = tmp_path / "on_main.py"
    script.write_text(ON_MAIN)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env=environment(**variables, RANK=str(rank), OMP_NUM_THREADS="1"),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    main, other = objects("".join(process.communicate(timeout=120)[0] for process in processes))
    alike = {
        "result": 0,
        "ours": ["UsageError", "wrong"],
        "signal": ["Interrupted", "stopped by SIGTERM"],
    }
    assert main == {"rank": 0, **alike, "other": ["ZeroDivisionError", "by zero"]}
    assert other == {"rank": 1, **alike, "other": ["MlpDistError", "the main process has failed"]}
