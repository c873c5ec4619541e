"""Shell scripts and cluster manifests: checked as files, and run with stand-ins for the cluster."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kubeflow_trainer_api.models as kubeflow
import pytest
import yaml

from tests.helpers.checkouts import tracked_files
from tests.helpers.comparing import statuses
from tests.helpers.launching import BIN, QUICK, ROOT, environment, free_port, wait_until

BATCH_SCRIPT = "launch/slurm/train.sbatch"
SCRIPTS = (BATCH_SCRIPT, "launch/environment.sh", "docker/serve.sh", ".ci/run")

# Enough epochs to interrupt, few enough to wait for.
FLAGS = (*QUICK, "--epochs", "60")


@pytest.fixture
def project(store_at_hand: None, tmp_path: Path) -> Path:
    """A directory where the commands of the files work, with its own MLflow store."""
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    return tmp_path


def node_environment(project: Path, **more: str) -> dict[str, str]:
    """The environment of one of several nodes on this machine, on the CPU with one thread."""
    store = f"sqlite:///{project}/mlflow.db"
    return environment(MLFLOW_TRACKING_URI=store, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1", **more)


@contextmanager
def started(
    words: list[str], project: Path, name: str, env: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes NAME.out and NAME.err; terminated on exit."""
    with (project / f"{name}.out").open("wb") as out, (project / f"{name}.err").open("wb") as err:
        process = subprocess.Popen(words, cwd=project, env=env, stdout=out, stderr=err)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()


def stdout(project: Path, name: str) -> str:
    return (project / f"{name}.out").read_text()


def stderr(project: Path, name: str) -> str:
    return (project / f"{name}.err").read_text()


# Shell


def shellcheck(*arguments: str, script: str | None = None) -> subprocess.CompletedProcess[str]:
    words = [str(BIN / "shellcheck"), "--shell=bash", *arguments]
    return subprocess.run(words, cwd=ROOT, input=script, capture_output=True, text=True)


def _starts_a_shell(name: str) -> bool:
    with (ROOT / name).open("rb") as opened:
        first = opened.readline(100)
    return first.startswith(b"#!") and first.rstrip().endswith(b"sh")


def test_shell_scripts_pass_shellcheck() -> None:
    assert {name for name in tracked_files() if name.endswith(".sh") or _starts_a_shell(name)} <= set(SCRIPTS)
    done = shellcheck(*SCRIPTS)
    assert done.returncode == 0, done.stdout
    pods = shellcheck("-", script=pod_command()[2])
    assert pods.returncode == 0, pods.stdout
    assert "SC2086" in shellcheck("-", script="rm $1\n").stdout


# SLURM, with stand-ins for its commands: one machine runs all nodes.

SRUN = """
import os, subprocess, sys
from pathlib import Path

command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
nodes = [
    subprocess.Popen(command, env={**os.environ, "SLURM_NODEID": str(node)})
    for node in range(int(os.environ["SLURM_NNODES"]))
]
Path(os.environ["STEP"]).write_text(" ".join(str(node.pid) for node in nodes))
sys.exit(max(node.wait() for node in nodes))
"""

SCANCEL = """
import os, sys
from pathlib import Path

import psutil

assert sys.argv[1:] == ["--signal=TERM", os.environ["SLURM_JOB_ID"]]
tasks = [psutil.Process(int(pid)) for pid in Path(os.environ["STEP"]).read_text().split()]
for process in [each for task in tasks for each in (task, *task.children(recursive=True))]:
    process.terminate()
"""

SCONTROL = """
import os, sys
from pathlib import Path

if sys.argv[1:] == ["show", "hostnames", "node[1-2]"]:
    print("127.0.0.1\\nnode2")
else:
    Path(os.environ["REQUESTS"]).write_text(" ".join(sys.argv[1:]))
"""


@pytest.fixture
def slurm(project: Path) -> dict[str, str]:
    """The environment of a batch script, with the stand-ins first on PATH."""
    commands = project / "bin"
    commands.mkdir()
    for name, code in (("srun", SRUN), ("scancel", SCANCEL), ("scontrol", SCONTROL)):
        file = commands / name
        file.write_text(f"#!{sys.executable}\n{code}")
        file.chmod(0o755)
    return node_environment(
        project,
        PATH=f"{commands}{os.pathsep}{os.environ['PATH']}",
        VENV=str(BIN.parent),
        STEP=str(project / "step"),
        REQUESTS=str(project / "requests"),
        PORT=str(free_port()),
        SLURM_JOB_ID="4711",
        SLURM_JOB_NODELIST="node[1-2]",
        SLURM_NNODES="2",
    )


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_batch_job_is_requeued_and_continues(project: Path, slurm: dict[str, str]) -> None:
    words = ["bash", BATCH_SCRIPT, *FLAGS]
    requests = project / "requests"
    with started(words, project, "first", slurm) as job:
        wait_until(lambda: "epoch 2/60" in stdout(project, "first"))
        job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=40) == 1
    assert requests.read_text() == "requeue 4711"
    assert (project / "outputs/slurm-4711/last.pt").exists()
    assert "epoch 60/60" not in stdout(project, "first")
    assert statuses(project) == ["KILLED"]

    requests.unlink()
    with started(words, project, "second", slurm) as job:
        assert job.wait(timeout=200) == 0, stderr(project, "second")
    assert "resumed after" in stdout(project, "second")
    assert '"num_processes": 2' in stdout(project, "second").splitlines()[-1]
    assert statuses(project) == ["FINISHED"]


# Kubernetes

MODELS = {
    ("v1", "ConfigMap"): kubeflow.IoK8sApiCoreV1ConfigMap,
    ("v1", "PersistentVolumeClaim"): kubeflow.IoK8sApiCoreV1PersistentVolumeClaim,
    ("trainer.kubeflow.org/v1alpha1", "TrainingRuntime"): kubeflow.TrainerV1alpha1TrainingRuntime,
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): kubeflow.TrainerV1alpha1TrainJob,
}

Manifest = dict[str, Any]

MANIFESTS: dict[str, Manifest] = {
    manifest["kind"]: manifest
    for file in sorted((ROOT / "launch/kubernetes").iterdir())
    for manifest in yaml.safe_load_all(file.read_text())
}


def parse_manifest(manifest: Manifest) -> Manifest:
    """The manifest without fields that its published schema lacks. Raises ValueError for a wrong type."""
    parsed: Manifest = MODELS[manifest["apiVersion"], manifest["kind"]].from_dict(manifest).to_dict()
    return parsed


def pod_spec(runtime: Manifest) -> Manifest:
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    spec: Manifest = job["template"]["spec"]["template"]["spec"]
    return spec


def pod_command() -> list[str]:
    (container,) = pod_spec(MANIFESTS["TrainingRuntime"])["containers"]
    command: list[str] = container["command"]
    return command


@pytest.mark.parametrize("kind", ["ConfigMap", "PersistentVolumeClaim", "TrainingRuntime", "TrainJob"])
def test_manifests_match_the_schemas(kind: str) -> None:
    assert parse_manifest(MANIFESTS[kind]) == MANIFESTS[kind]


def test_manifests_refer_to_each_other() -> None:
    runtime, spec = MANIFESTS["TrainingRuntime"], pod_spec(MANIFESTS["TrainingRuntime"])
    (container,), (volume,) = spec["containers"], spec["volumes"]
    assert MANIFESTS["TrainJob"]["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert container["envFrom"][0]["configMapRef"]["name"] == MANIFESTS["ConfigMap"]["metadata"]["name"]
    claim = MANIFESTS["PersistentVolumeClaim"]["metadata"]["name"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim
    assert container["volumeMounts"][0]["name"] == volume["name"]
    # Kubeflow Trainer looks for this label and these names.
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert job["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert job["name"] == container["name"] == "node"


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_pods_continue_after_one_was_terminated(project: Path) -> None:
    def pod(rank: int, name: str, port: str) -> Any:
        # The variables that the controller sets.
        given = {
            "PET_NNODES": "2",
            "PET_NPROC_PER_NODE": "1",
            "PET_NODE_RANK": str(rank),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": port,
        }
        env = node_environment(project, OUTPUT_DIR=str(project / "output"), **given)
        return started([*pod_command(), *FLAGS], project, name, env)

    port = str(free_port())
    with pod(0, "first", port) as first, pod(1, "other", port) as other:
        wait_until(lambda: "epoch 2/60" in stdout(project, "first"))
        other.send_signal(signal.SIGTERM)
        assert other.wait(timeout=40) != 0
        assert first.wait(timeout=40) != 0
    assert (project / "output/last.pt").exists()
    assert "epoch 60/60" not in stdout(project, "first")

    port = str(free_port())
    with pod(0, "again", port) as first, pod(1, "other", port) as other:
        assert first.wait(timeout=200) == 0, stderr(project, "again")
        assert other.wait(timeout=40) == 0
    assert "resumed after" in stdout(project, "again")
    assert '"num_processes": 2' in stdout(project, "again").splitlines()[-1]
    assert stdout(project, "other") == ""
