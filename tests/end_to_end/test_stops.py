"""Signals to, and kills of, the processes of a training that `accelerate launch` started."""

import json
import shlex
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest
import torch

from tests.helpers.calling import Call
from tests.helpers.comparing import read_history, runs_of, saved_state, statuses
from tests.helpers.launching import NOTHING_ELSE, QUICK, ROOT, environment, printing, processes, result, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("store_at_hand")]

SECONDS = 100
"""Limit for all processes to end; on a quiet machine it takes one or two."""

LONG = (*QUICK, "--epochs", "4000", "--output-dir", "output")
VARIABLES = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def launcher(number: int, *flags: str, restarts: int = 0) -> list[str]:
    options = [*processes(number), "--max_restarts", str(restarts), "--num_machines", "1", *NOTHING_ELSE]
    return ["accelerate", "launch", *options, str(ROOT / "launch/train.py"), *flags]


def training(
    number: int, *flags: str, cwd: Path, restarts: int = 0
) -> AbstractContextManager["subprocess.Popen[str]"]:
    """A training by `number` processes in its second epoch."""
    return printing(launcher(number, *flags, restarts=restarts), cwd, "epoch 2/", **VARIABLES)


def ranks(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """The processes of a launcher of several."""
    return {int(each.environ()["RANK"]): each for each in psutil.Process(process.pid).children()}


def rest(process: subprocess.Popen[str]) -> str:
    """The remaining output of all processes, until the last one has ended."""
    return process.communicate(timeout=SECONDS)[0]


def resume_command(text: str) -> list[str]:
    """The command that the training suggests, once."""
    (line,) = (line for line in text.splitlines() if line.startswith("resume with: "))
    return shlex.split(line.removeprefix("resume with: "))


RESUME_TWO = [
    *("ACCELERATE_USE_CPU=true", "accelerate", "launch", "--multi_gpu", "--num_processes", "2"),
    *("-m", "mlp_dist.train", "--resume", "--output-dir"),
]


@pytest.mark.parametrize(
    ("victim", "signum"),
    [("launcher", signal.SIGTERM), ("rank 1", signal.SIGUSR1)],
    ids=lambda value: str(value),
)
def test_a_signal_stops_both_processes_with_a_checkpoint(
    victim: str, signum: signal.Signals, tmp_path: Path
) -> None:
    with training(2, *LONG, cwd=tmp_path) as process:
        if victim == "launcher":
            process.send_signal(signum)
        else:
            ranks(process)[1].send_signal(signum)
        text = rest(process)
    assert process.returncode == 1
    assert text.count(f"stopped by {signum.name}") == 1
    assert resume_command(text) == [*RESUME_TWO, str(tmp_path / "output")]
    if victim == "rank 1":
        assert "exitcode  : 138" in text
    state = saved_state(tmp_path / "output")
    assert len(state["history"]) >= 2
    assert read_history(tmp_path / "output") == state["history"]
    assert statuses(tmp_path) == ["KILLED"]


@pytest.mark.nightly
def test_the_survivor_of_a_killed_process_suggests_a_command(tmp_path: Path) -> None:
    with training(2, *LONG, cwd=tmp_path) as process:
        killed = ranks(process)[1]
        killed.kill()
        text = rest(process)
    assert process.returncode == 1
    assert text.count("error: ") == 1
    assert f"error: process 1 (pid {killed.pid}) of this training died, so it cannot go on\n" in text
    assert statuses(tmp_path) == ["FAILED"]
    command = resume_command(text)
    assert command == [*RESUME_TWO, str(tmp_path / "output")]

    epochs = len(saved_state(tmp_path / "output")["history"]) + 2
    done = run(["env", *command, "--epochs", str(epochs)], tmp_path, **VARIABLES)
    assert result(done)["epochs"] == epochs
    assert statuses(tmp_path) == ["FINISHED"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of a parent")
@pytest.mark.parametrize("number", [pytest.param(1, marks=pytest.mark.nightly), 2])
def test_a_killed_launcher_stops_its_training(number: int, tmp_path: Path) -> None:
    with training(number, *LONG, cwd=tmp_path) as process:
        process.kill()
        text = rest(process)
    assert process.returncode == -signal.SIGKILL
    assert text.count("stopped by SIGTERM") == 1
    assert "epoch 4000/" not in text
    assert saved_state(tmp_path / "output")["history"]
    assert statuses(tmp_path) == ["KILLED"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of a parent")
@pytest.mark.parametrize(
    ("number", "until"),
    [(1, ""), pytest.param(2, "training on ", marks=pytest.mark.nightly)],
    ids=["imports", "opening"],
)
def test_an_early_killed_launcher_leaves_no_process(number: int, until: str, tmp_path: Path) -> None:
    words = launcher(number, *LONG)
    with subprocess.Popen(
        words, cwd=tmp_path, env=environment(**VARIABLES), stdout=subprocess.PIPE
    ) as process:
        while not psutil.Process(process.pid).children():
            time.sleep(0.05)
        started = psutil.Process(process.pid).children()
        # The interpreter has started, but accelerate is not yet imported.
        time.sleep(0.5)
        assert process.stdout is not None
        while until and not process.stdout.readline().startswith(until.encode()):
            pass
        process.kill()
        _, alive = psutil.wait_procs(started, timeout=SECONDS)
        for each in alive:
            each.kill()
    assert not alive


# In float64, one process gets the same weights as two.
SHORT = (
    "--recipe mnist-quick --dataset digits --epochs 5 --batch-size 20 --dropout 0.2 --ema-decay 0.9 "
    "--gradient-dtype float64"
)


@pytest.mark.parametrize(("victim", "named"), [(0, False), pytest.param(1, True, marks=pytest.mark.nightly)])
def test_a_restart_reaches_the_weights_of_one_process(
    victim: int, named: bool, train_here: Call, tmp_path: Path
) -> None:
    flags = [*SHORT.split(), "--output-dir", "output"] if named else SHORT.split()
    with training(2, *flags, cwd=tmp_path, restarts=3) as process:
        ranks(process)[victim].kill()
        text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    values = json.loads([line for line in text.splitlines() if line.startswith("{")][-1])
    assert text.count("resumed after ") == 1
    [directory] = [tmp_path / "output"] if named else (tmp_path / "outputs").iterdir()
    assert Path(values["output_dir"]) == directory
    state = saved_state(directory)
    assert [record["epoch"] for record in state["history"]] == list(range(1, 6))
    assert [(each.info.run_id, each.info.status) for each in runs_of(tmp_path)] == [
        (values["run_id"], "FINISHED")
    ]
    uninterrupted = saved_state(result(train_here(f"{SHORT} --output-dir alone"))["output_dir"])
    for which in ("model", "best"):
        for name, tensor in uninterrupted[which].items():
            assert torch.equal(state[which][name], tensor)
