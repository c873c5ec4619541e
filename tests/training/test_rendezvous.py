import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.distributed import HashStore, TCPStore

from mlp_dist.training.distributed import rendezvous
from mlp_dist.training.distributed.rendezvous import join, recall, remember
from tests.helpers.launching import objects, run


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in (*launcher, "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)
    rendezvous._launcher_store.cache_clear()
    yield
    rendezvous._launcher_store.cache_clear()


@pytest.mark.parametrize(
    "variables",
    [{}, {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, {"WORLD_SIZE": "2"}],
    ids=["no launcher", "one process", "no address"],
)
def test_a_single_process_makes_no_group(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    from torch import distributed

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    join(use_cpu=True)
    assert not distributed.is_initialized()


def agreed(store: HashStore, size: int) -> list[str]:
    """The names that `size` processes get, which join one after the other, rank 0 last."""
    names = [""] * size

    def agree(rank: int) -> None:
        names[rank] = rendezvous._agree(store, rank, size)

    threads = [threading.Thread(target=agree, args=(rank,)) for rank in reversed(range(size))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    return names


def test_each_attempt_gets_a_new_name() -> None:
    store, found = HashStore(), set()
    for _ in range(3):
        # Left by a process that ended before it was answered.
        store.set("question/2", "without a reader")
        names = agreed(store, 3)
        assert len(set(names)) == 1
        found.add(names[0])
    assert len(found) == 3


RESTARTED = """
import json, os
from accelerate import Accelerator
from mlp_dist.training.distributed.peers import Peers
from mlp_dist.training.distributed.rendezvous import join, recall, remember

attempt, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])
join(use_cpu=True)
accelerator = Accelerator(cpu=True)
peers = Peers()
before = recall("directory")
if attempt == 0:
    if rank == 0:
        remember("directory", "out\\u00e9/\\udcff")
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
def test_a_restarted_training_joins_again_and_recalls(
    tmp_path: Path,
) -> None:
    script = tmp_path / "restarted.py"
    script.write_text(RESTARTED)
    words = ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--max_restarts", "3"]
    words += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", str(script)]
    done = run(words, tmp_path, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    expected = {
        "attempt": 1,
        "before": "out\u00e9/\udcff",
        "largest": [1.0, 0.0],
        "processes": 2,
        "type": "MULTI_CPU",
        "device": "cpu",
    }
    assert objects(done.stdout) == [{"rank": rank, "local": rank, **expected} for rank in (0, 1)]


def test_without_a_launcher_nothing_is_remembered() -> None:
    remember("directory", "out")
    assert recall("directory") is None


def test_the_last_value_is_recalled(monkeypatch: pytest.MonkeyPatch) -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.port), "RANK": "0", "WORLD_SIZE": "2"}
    for name, value in {**variables, "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    assert recall("directory") is None
    remember("directory", "first")
    remember("directory", "second")
    assert recall("directory") == "second"
    # Another process, which connects for itself.
    rendezvous._launcher_store.cache_clear()
    assert recall("directory") == "second"
