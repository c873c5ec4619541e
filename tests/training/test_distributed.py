import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.distributed import TCPStore

from mlp_dist.core.errors import UsageError
from mlp_dist.training import distributed
from mlp_dist.training.distributed import connect
from tests.helpers.launching import environment, free_port, objects, run

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@pytest.fixture(autouse=True)
def bare_environment() -> Iterator[None]:
    with mock.patch.dict(os.environ):
        for name in list(os.environ):
            if name in (*LAUNCHED, *INTERFACES) or name.startswith(("ACCELERATE_", "TORCHELASTIC_")):
                del os.environ[name]
        yield
    distributed._store.cache_clear()


# The launch


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ("WORLD_SIZE=2", r"^WORLD_SIZE=2, but no RANK and MASTER_ADDR: start 2 processes with `accelerate"),
        ("PMI_SIZE=2", "^PMI_SIZE=2, but no RANK and MASTER_ADDR: .* under mpiexec, set MASTER_ADDR to"),
        ("PMI_RANK=0 PMI_SIZE=2", "^PMI_RANK=0 PMI_SIZE=2, but no MASTER_ADDR: .* under mpiexec"),
        ("OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=3", "but no MASTER_ADDR"),
        (
            "RANK=2 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1",
            "^RANK=2 WORLD_SIZE=2: the rank must be",
        ),
        ("RANK=-1 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1", "the rank must be"),
        ("RANK=first WORLD_SIZE=2 MASTER_ADDR=127.0.0.1", "^RANK=first WORLD_SIZE=2: the rank must be"),
        ("RANK=1", "^RANK=1: the rank must be"),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=x MASTER_PORT=65536", "^MASTER_PORT=65536: the port must be"),
        ("GLOO_SOCKET_IFNAME=none0", r"^GLOO_SOCKET_IFNAME: unknown .* 'none0'.* \(there are: "),
        ("NCCL_SOCKET_IFNAME==lo,none0", "^NCCL_SOCKET_IFNAME: unknown network interface 'none0'"),
        (
            "ACCELERATE_DYNAMO_BACKEND=NO MASTER_ADDR=x",
            "asked for N processes but started 1, ",
        ),
    ],
)
def test_a_wrong_launch_is_a_usage_error(variables: str, message: str) -> None:
    os.environ.update(entry.split("=", 1) for entry in variables.split())
    with pytest.raises(UsageError, match=message):
        connect(use_cpu=True)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"},
        {"NCCL_SOCKET_IFNAME": "^docker,lo", "ACCELERATE_DYNAMO_BACKEND": "NO"},
    ],
    ids=["no launcher", "one process", "Accelerate's launcher"],
)
def test_a_single_process_is_alone(variables: dict[str, str]) -> None:
    os.environ.update(variables)
    before = dict(os.environ)

    def fail() -> None:
        raise UsageError("wrong")

    alone = connect(use_cpu=True)
    assert not torch.distributed.is_initialized()
    assert os.environ == before
    assert (alone.rank, alone.size, alone.local_size, alone.is_local_main) == (0, 1, 1, True)
    assert alone.largest(1, -2.5, float("inf")) == [1.0, -2.5, float("inf")]
    assert (alone.gather("x"), alone.on_main(lambda: 3)) == (["x"], 3)
    with pytest.raises(UsageError, match="wrong"):
        alone.on_main(fail)
    with pytest.raises(RuntimeError, match=r"^something else$"), alone.watched():
        raise RuntimeError("something else")


RESTARTED = """
import json, os
from pathlib import Path
from accelerate import Accelerator
from mlp_dist.training.distributed import connect, remember_output_dir, remembered_output_dir

attempt, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])
peers = connect(use_cpu=True)
accelerator = Accelerator(cpu=True)
before = str(remembered_output_dir() or "")
if attempt == 0:
    if rank == 0:
        remember_output_dir(Path("out\\u00e9"))
    peers.largest(0)
    if rank == 1:
        os._exit(7)
found = {"attempt": attempt, "rank": rank, "before": before, "largest": peers.largest(rank, -rank),
         "processes": accelerator.num_processes, "type": accelerator.distributed_type.value,
         "device": accelerator.device.type, "local": accelerator.local_process_index}
os.write(1, (json.dumps(found) + "\\n").encode())
accelerator.end_training()
"""


@pytest.mark.slow
def test_a_restarted_training_joins_again_and_recalls(tmp_path: Path) -> None:
    script = tmp_path / "restarted.py"
    script.write_text(RESTARTED)
    words = ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--max_restarts", "3"]
    words += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", str(script)]
    done = run(words, tmp_path, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    expected = {
        "attempt": 1,
        "before": "out\u00e9",
        "largest": [1.0, 0.0],
        "processes": 2,
        "type": "MULTI_CPU",
        "device": "cpu",
    }
    assert objects(done.stdout) == [{"rank": rank, "local": rank, **expected} for rank in (0, 1)]


# Several processes without a launcher


@contextmanager
def started(script: str, path: Path, rank: int, port: int, **more: str) -> Iterator[subprocess.Popen[str]]:
    path.write_text(script)
    variables = {"RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **more}
    # Tests that a shell started in the background, and their children, ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, str(path)],
            env=environment(OMP_NUM_THREADS="1", **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


WAITING = """
import time
from mlp_dist.console import command
from mlp_dist.training.distributed import connect

command.run(lambda: connect(use_cpu=True).on_main(lambda: time.sleep(120)), at_once=True)
"""


@pytest.mark.slow
def test_a_process_that_waits_says_so_and_ends_by_a_signal(tmp_path: Path) -> None:
    port = free_port()
    with (
        started(WAITING, tmp_path / "lost.py", 1, free_port(), WORLD_SIZE="2") as lost,
        started(WAITING, tmp_path / "first.py", 0, port, WORLD_SIZE="3") as first,
        started(WAITING, tmp_path / "second.py", 1, port, WORLD_SIZE="3") as second,
    ):
        assert "waiting for 1 of 2 processes (rank 0) at 127.0.0.1:" in lost.stderr.readline()
        assert first.stderr.readline() == f"waiting for 1 of 3 processes (rank 2) at 127.0.0.1:{port}\n"
        assert "waiting for up to 2 of 3 processes at" in second.stderr.readline()
        with started(WAITING, tmp_path / "third.py", 2, port, WORLD_SIZE="3") as third:
            # While the main process works.
            assert "waiting for 1 of 3 processes (rank 0) at" in third.stderr.readline()
            began = time.monotonic()
            for process in (lost, third):
                process.send_signal(signal.SIGINT)
            first.send_signal(signal.SIGTERM)
            codes = [process.wait(60) for process in (lost, third, first)]
            # Two seconds on a quiet machine.
            assert time.monotonic() - began < 10
    assert codes == [130, 130, 143]


SURVIVOR = """
import json, os, signal, sys
from mlp_dist.core.errors import ProcessLostError, UsageError
from mlp_dist.training.distributed import connect

def attempt(error=None):
    def work():
        if error is not None:
            raise error
        return peers.rank
    try:
        return peers.on_main(work)
    except Exception as met:
        return f"{type(met).__name__}: {met}"

peers = connect(use_cpu=True)
on_main = [attempt(), attempt(UsageError("wrong")), attempt(ZeroDivisionError("by zero"))]
assert peers.gather(peers.rank) == [0, 1, 2]
if peers.rank == int(os.environ["VICTIM"]):
    os.kill(os.getpid(), signal.SIGKILL)
try:
    with peers.watched():
        peers.largest(0)
except ProcessLostError as error:
    found = {"rank": peers.rank, "error": str(error), "reports": error.is_reporter, "on_main": on_main,
             "local": [peers.local_size, peers.is_local_main]}
    print(json.dumps(found), flush=True)
# The connections are broken; their destructors would wait.
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_one_survivor_reports_a_killed_process(tmp_path: Path, victim: int) -> None:
    # A launcher's, which stays when the main process has died.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = {"WORLD_SIZE": "3", "VICTIM": str(victim), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    with ExitStack() as stack:
        processes = [
            stack.enter_context(started(SURVIVOR, tmp_path / "survivor.py", rank, store.port, **variables))
            for rank in range(3)
        ]
        # The victim is waited for last: until then it is a zombie, which must count as ended.
        survivors = [process for rank, process in enumerate(processes) if rank != victim]
        found = objects("".join(process.communicate(timeout=120)[0] for process in survivors))
        assert processes[victim].wait() == -signal.SIGKILL
    assert [values["rank"] for values in found] == [rank for rank in range(3) if rank != victim]
    assert sorted(values["reports"] for values in found) == [False, True]
    for values in found:
        name = f"process {victim} (pid {processes[victim].pid})"
        # The other survivor may find the reporter ended, too.
        assert name in values["error"]
        assert not values["reports"] or values["error"].startswith(f"{name} of this training died")
        assert values["local"] == [3, values["rank"] == 0]
        failed = (
            "MlpDistError: the main process has failed" if values["rank"] else "ZeroDivisionError: by zero"
        )
        assert values["on_main"] == [0, "UsageError: wrong", failed]
