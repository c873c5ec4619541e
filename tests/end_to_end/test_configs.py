"""Each Accelerate configuration, launched by the command in its first line."""

import json
import socket
import subprocess
from pathlib import Path

import pytest
import torch

from tests.helpers.launching import QUICK, ROOT, environment, result, run

pytestmark = pytest.mark.slow

CONFIGS = ROOT / "launch/configs"
FLAGS = " ".join([*QUICK, "--epochs", "1", "--output-dir", "output"])
NAMES = {"cpu", "multi_cpu", "single_gpu", "multi_gpu", "multi_node", "bf16"}

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


def command(name: str) -> str:
    """The command in the file's first line."""
    first = (CONFIGS / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ")
    return first.removeprefix("# ")


@pytest.fixture
def project(store_at_hand: None, tmp_path: Path) -> Path:
    """A directory in which the commands work, with its own MLflow store."""
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    return tmp_path


def launch_file(name: str, project: Path) -> subprocess.CompletedProcess[str]:
    done = run(["bash", "-c", f"{command(name)} {FLAGS}"], project)
    assert "had defaults used instead" not in done.stderr
    return done


def test_every_file_is_short_and_starts_with_its_own_command() -> None:
    files = sorted(CONFIGS.iterdir())
    assert {file.name for file in files} == {f"{name}.yaml" for name in NAMES}
    for file in files:
        assert f" --config_file launch/configs/{file.name} " in command(file.stem)
        assert len(file.read_text().splitlines()) < 20


def test_the_launcher_s_settings_are_those_of_the_training(project: Path) -> None:
    more = "deepspeed_config:\n  gradient_accumulation_steps: 2\n  gradient_clipping: 0.5\n"
    (project / "my.yaml").write_text((CONFIGS / "bf16.yaml").read_text() + more)
    line = f"{command('bf16')} {FLAGS}".replace("launch/configs/bf16.yaml", "my.yaml")
    assert result(run(["bash", "-c", line], project))["num_processes"] == 1
    config = json.loads((project / "output/config.json").read_text())
    settings = [config[name] for name in ("mixed_precision", "accumulation_steps", "clip_norm")]
    assert settings == ["bf16", 2, 0.5]


@pytest.mark.nightly
@pytest.mark.parametrize(
    "name",
    [
        "cpu",
        "multi_cpu",
        *(pytest.param(name, marks=without_gpu) for name in ("bf16", "single_gpu", "multi_gpu")),
    ],
)
def test_a_file_starts_its_processes(name: str, project: Path) -> None:
    """Without a GPU on the CPU; `make test` launches cpu.yaml and multi_cpu.yaml in other tests."""
    done = launch_file(name, project)
    number = 2 if name.startswith("multi") else 1
    assert result(done)["num_processes"] == number
    assert f"training on {number} CPU process" in done.stdout
    assert ("(there is no GPU)" in done.stdout) == (number > 1 and not torch.cuda.is_available())
    precision = json.loads((project / "output/config.json").read_text())["mixed_precision"]
    assert precision == ("bf16" if name == "bf16" else "no")


@pytest.mark.gpu
def test_single_gpu_is_one_process_on_a_gpu(project: Path) -> None:
    done = launch_file("single_gpu", project)
    assert result(done)["num_processes"] == 1
    assert f"training on 1 {torch.cuda.get_device_name(0)} process" in done.stdout


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_multi_gpu_is_one_process_a_gpu(project: Path) -> None:
    done = launch_file("multi_gpu", project)
    assert result(done)["num_processes"] == 2
    assert f"training on 2 {torch.cuda.get_device_name(0)} processes" in done.stdout


@pytest.mark.nightly
def test_multi_node_is_one_training_on_two_machines(project: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    written = command("multi_node")
    assert "--machine_rank 0 --main_process_ip 192.0.2.10 " in written
    here = written.replace("192.0.2.10", f"127.0.0.1 --main_process_port {port}")
    machines = [
        subprocess.Popen(
            ["bash", "-c", f"exec {here.replace('--machine_rank 0', f'--machine_rank {rank}')} {FLAGS}"],
            cwd=project,
            # Both share this machine, which may have a single GPU.
            env=environment(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        outputs = [machine.communicate(timeout=240) for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    (first, errors), (second, other_errors) = outputs
    assert json.loads(first.splitlines()[-1])["num_processes"] == 2
    assert second == ""
    assert "had defaults used instead" not in errors + other_errors
