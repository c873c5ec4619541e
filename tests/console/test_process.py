import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from mlp_dist.console.process import (
    STOP_SIGNALS,
    Interrupted,
    StopSignals,
    launch_command,
    num_cores,
    use_cpu,
)
from mlp_dist.core.errors import UsageError
from tests.helpers.launching import run

CORES = num_cores()

SCRIPT = """
import json, os, sys
from mlp_dist.console import command
from mlp_dist.console.process import is_main
from mlp_dist.training.distributed import connect

def main():
    peers = connect(use_cpu=True)
    import torch
    found = {"rank": os.environ.get("RANK"), "size": peers.size, "main": is_main(),
             "threads": torch.get_num_threads(), "argv": sys.argv[1:],
             "spin_count": os.environ.get("GOMP_SPINCOUNT")}
    os.write(1, (json.dumps(found) + "\\n").encode())

command.run(main)
"""


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    for name in os.environ:
        if name in names or name.startswith(("ACCELERATE_", "OMP_", "GOMP_")):
            monkeypatch.delenv(name)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "show.py"
    path.write_text(SCRIPT)
    return path


def launch(script: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(
        ["accelerate", "launch", *words], script.parent, HF_HOME=str(script.parent / "home"), **environment
    )


def found(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """What each process printed, by rank."""
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return sorted(lines, key=lambda values: values["rank"] or "0")


# Launchers


@pytest.mark.slow
def test_several_processes_need_multi_gpu(script: Path) -> None:
    words = ("--num_processes", "2", "--main_process_port", "0", str(script), "--name", "two words")
    done = launch(script, "--cpu", *words)
    assert done.returncode != 0
    assert done.stdout == ""
    command = "accelerate launch --multi_gpu --num_processes 2 -m mlp_dist.train --name 'two words'"
    assert "accelerate launch was asked for 2 processes but started 1" in done.stderr
    assert f"\n  ACCELERATE_USE_CPU=true {command}\n" in done.stderr
    both = found(launch(script, "--multi_gpu", *words, ACCELERATE_USE_CPU="true"))
    assert [(each["size"], each["argv"]) for each in both] == [(2, ["--name", "two words"])] * 2
    assert [each["main"] for each in both] == [True, False]
    assert [each["threads"] for each in both] == [max(1, CORES // 2)] * 2


@pytest.mark.slow
def test_one_process_takes_all_cores_unless_the_user_chose(script: Path) -> None:
    (only,) = found(launch(script, "--cpu", str(script)))
    assert (only["size"], only["main"], only["threads"]) == (1, True, CORES)
    assert only["spin_count"] == "1000"
    (only,) = found(launch(script, "--cpu", str(script), OMP_NUM_THREADS="1"))
    assert (only["threads"], only["spin_count"]) == (1, None)


def test_launch_command_starts_the_same_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch_command() == "accelerate launch -m mlp_dist.train"
    monkeypatch.setenv("WORLD_SIZE", "3")
    command = "accelerate launch --multi_gpu --num_processes 3 -m mlp_dist.train"
    assert launch_command() == command
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert launch_command() == f"ACCELERATE_USE_CPU=true {command}"


def test_cpu_is_used_if_chosen_or_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert not use_cpu()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UsageError, match="4 processes on this machine, but it has 1 GPU; start 1 with"):
        use_cpu()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert use_cpu()
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert use_cpu()


# Signals


def handlers() -> list[Any]:
    return [signal.getsignal(signum) for signum in STOP_SIGNALS]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_interrupts_at_the_next_check(signum: signal.Signals, code: int) -> None:
    before = handlers()
    with StopSignals() as signals:
        signals.check()
        os.kill(os.getpid(), signum)
        with pytest.raises(Interrupted, match=f"^stopped by {signum.name}$") as raised:
            signals.check()
        assert raised.value.exit_code == code
    assert handlers() == before


def test_second_sigint_interrupts_at_once() -> None:
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGTERM
