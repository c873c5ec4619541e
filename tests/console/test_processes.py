import json
import os
import pickle
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mlp_dist.console.processes import (
    STOP_SIGNALS,
    Interrupted,
    StopSignals,
    check_launcher,
    is_main,
    launch_command,
    use_cpu,
    world_size,
)
from mlp_dist.core.errors import UsageError
from tests.helpers.launching import run

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

SCRIPT = """
import json, os, sys
import torch
from mlp_dist import command
from mlp_dist.processes import check_launcher, is_main, set_threads, world_size

def main():
    check_launcher()
    set_threads()
    found = {"world": os.environ.get("WORLD_SIZE"), "rank": os.environ.get("RANK"), "size": world_size(),
             "main": is_main(), "threads": torch.get_num_threads(), "argv": sys.argv[1:]}
    os.write(1, (json.dumps(found) + "\\n").encode())

command.run(main)
"""

MULTI_CPU = """compute_environment: LOCAL_MACHINE
distributed_type: MULTI_CPU
use_cpu: true
num_machines: 1
num_processes: 2
mixed_precision: 'no'
"""


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "launch" / "show.py"
    path.parent.mkdir()
    path.write_text(SCRIPT)
    return path


def launch(script: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    home = script.parent / "home"
    return run(["accelerate", "launch", *words], script.parent, HF_HOME=str(home), **environment)


def shown(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """What each rank printed."""
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return sorted(lines, key=lambda found: found["rank"] or "0")


# Launchers


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["--cpu", "--config_file", "default config"])
def test_several_processes_without_multi_gpu_are_an_error_that_tells_the_command(
    script: Path, asked: str
) -> None:
    config = script.parent / "home" / "accelerate" / "default_config.yaml"
    config.parent.mkdir(parents=True)
    if asked == "--config_file":
        config = script.parent / "two.yaml"
    if asked != "--cpu":
        config.write_text(MULTI_CPU)
    words = {
        "--cpu": ["--cpu", "--num_processes", "2"],
        "--config_file": ["--config_file", str(config)],
        "default config": [],
    }[asked]
    done = launch(script, *words, str(script), "--run-name", "two words")
    assert done.returncode != 0
    assert done.stdout == ""
    assert "accelerate launch was asked for 2 processes but has started 1, as it does without" in done.stderr
    line = next(line for line in done.stderr.splitlines() if "--multi_gpu --num_processes 2" in line)
    command = shlex.split(line)
    assert command[command.index("accelerate") :] == [
        *("accelerate", "launch", "--multi_gpu", "--num_processes", "2"),
        *(str(script), "--run-name", "two words"),
    ]


@pytest.mark.slow
def test_the_command_that_is_told_works(script: Path) -> None:
    told = launch(script, "--cpu", "--num_processes", "2", str(script), "--seed", "1").stderr.splitlines()
    (line,) = (line for line in told if "--multi_gpu" in line and line.startswith("  "))
    done = run(["sh", "-c", line], script.parent, HF_HOME=str(script.parent / "home"))
    assert [(found["size"], found["argv"]) for found in shown(done)] == [(2, ["--seed", "1"])] * 2


@pytest.mark.slow
def test_one_process_takes_all_cores(script: Path) -> None:
    (found,) = shown(launch(script, "--cpu", str(script)))
    assert (found["world"], found["size"], found["main"]) == (None, 1, True)
    assert found["threads"] == CORES


@pytest.mark.slow
def test_two_processes_share_the_cores(script: Path) -> None:
    first, second = shown(
        launch(script, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0", str(script))
    )
    for rank, found in enumerate((first, second)):
        assert (found["world"], found["rank"], found["size"]) == ("2", str(rank), 2)
        assert found["main"] == (rank == 0)
        assert found["threads"] == max(1, CORES // 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "by", ["environment", "--num_cpu_threads_per_process=1", "--num-cpu-threads-per-process=1"]
)
def test_a_number_of_threads_that_was_chosen_stands(script: Path, by: str) -> None:
    chosen = {"OMP_NUM_THREADS": "1"} if by == "environment" else {}
    words = [] if by == "environment" else by.split("=")
    (found,) = shown(launch(script, "--cpu", *words, str(script), **chosen))
    assert found["threads"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "threads"),
    [
        ("OMP_NUM_THREADS=1 {words}; true", 1),
        ("{words}; true", CORES),
        ("export OMP_NUM_THREADS=1; {words}; true", 1),
    ],
)
def test_threads_without_a_launcher(script: Path, command: str, threads: int) -> None:
    words = shlex.join([sys.executable, str(script)])
    (found,) = shown(run(["sh", "-c", command.format(words=words)], script.parent))
    assert (found["size"], found["threads"]) == (1, threads)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_a_process_ends_with_its_launcher(tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text(
        "import time\n"
        "from mlp_dist.console.processes import end_with_launcher\n"
        "end_with_launcher()\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
        "print('survived', flush=True)\n"
    )
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, {str(child)!r}])"
    environment = {**os.environ, "ACCELERATE_DYNAMO_BACKEND": "no"}
    with subprocess.Popen(
        [sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
        assert process.stdout.read() == ""


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"MASTER_ADDR": "127.0.0.1"},
        {"ACCELERATE_DYNAMO_BACKEND": "NO"},
        {"ACCELERATE_DYNAMO_BACKEND": "NO", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"},
        {"ACCELERATE_DYNAMO_BACKEND": "NO", "MASTER_ADDR": "127.0.0.1", "OMPI_COMM_WORLD_SIZE": "2"},
    ],
    ids=lambda variables: "+".join(variables) or "none",
)
def test_what_was_started_as_asked_is_no_error(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check_launcher()


@pytest.mark.parametrize(
    ("variables", "size", "main"),
    [
        ({}, 1, True),
        ({"WORLD_SIZE": "1", "RANK": "0"}, 1, True),
        ({"WORLD_SIZE": "8", "RANK": "0"}, 8, True),
        ({"WORLD_SIZE": "8", "RANK": "7"}, 8, False),
    ],
)
def test_size_and_rank_are_the_launcher_s(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], size: int, main: bool
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (world_size(), is_main()) == (size, main)


# Devices


@pytest.mark.parametrize("value", ["true", "True", "1", "yes", "on"])
def test_the_cpu_is_used_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert not use_cpu()
    monkeypatch.setenv("ACCELERATE_USE_CPU", value)
    assert use_cpu()


def test_the_cpu_is_used_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert use_cpu()


@pytest.mark.parametrize(("gpus", "text"), [(1, "1 GPU;"), (2, "2 GPUs;")])
def test_fewer_gpus_than_processes(monkeypatch: pytest.MonkeyPatch, gpus: int, text: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(gpus))
    assert not use_cpu()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    message = (
        f"4 processes on this machine, but it has {text} start {gpus} with --num_processes {gpus}, "
        "or 4 on the CPU with ACCELERATE_USE_CPU=true before the command"
    )
    with pytest.raises(UsageError, match=message):
        use_cpu()


# Signals


def handlers() -> list[Any]:
    return [signal.getsignal(signum) for signum in STOP_SIGNALS]


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)]
)
def test_a_signal_is_remembered_and_told_where_it_is_safe(signum: signal.Signals, code: int) -> None:
    before = handlers()
    with StopSignals() as signals:
        signals.check()
        assert signals.received is None
        os.kill(os.getpid(), signum)
        assert signals.received == signum
        for _ in range(2):
            with pytest.raises(Interrupted, match=f"^stopped by {signum.name}$") as raised:
                signals.check()
            assert raised.value.exit_code == code
    assert handlers() == before


def test_handlers_are_restored_after_an_error() -> None:
    before = handlers()
    with pytest.raises(ZeroDivisionError), StopSignals():
        _ = 1 / 0
    assert handlers() == before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_sigint_interrupts_at_once(first: signal.Signals) -> None:
    before = handlers()
    with StopSignals() as signals:
        os.kill(os.getpid(), first)
        with pytest.raises(KeyboardInterrupt) as raised:
            os.kill(os.getpid(), signal.SIGINT)
        assert not isinstance(raised.value, Interrupted)
        assert signals.received == first
    assert handlers() == before


def test_the_first_of_two_signals_counts() -> None:
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGINT


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_where_nothing_is_lost_a_signal_stops_at_once_and_only_once(signum: signal.Signals) -> None:
    with StopSignals() as signals:
        signals.at_once()
        with pytest.raises(Interrupted, match=signum.name):
            os.kill(os.getpid(), signum)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signum


def test_a_signal_that_came_before_stops_there() -> None:
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(Interrupted, match="SIGUSR1"):
            signals.at_once()


def test_an_interruption_can_be_sent_to_other_processes() -> None:
    sent = pickle.loads(pickle.dumps(Interrupted(signal.SIGUSR1)))
    assert (type(sent), str(sent), sent.exit_code) == (Interrupted, "stopped by SIGUSR1", 138)


@pytest.mark.parametrize(
    ("variables", "command"),
    [
        ({}, "accelerate launch launch/train.py"),
        ({"ACCELERATE_USE_CPU": "true"}, "accelerate launch launch/train.py"),
        ({"WORLD_SIZE": "3"}, "accelerate launch --multi_gpu --num_processes 3 launch/train.py"),
        (
            {"WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"},
            "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 launch/train.py",
        ),
    ],
)
def test_the_command_that_starts_as_many_again(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], command: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch_command() == command
