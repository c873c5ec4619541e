"""What a cluster is given: the shell scripts and manifests as files, and the trainings that they start."""

import copy
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kubeflow_trainer_api.models as kubeflow
import pytest
import yaml

from tests.helpers.launching import BIN, DATASET, ROOT, environment

BATCH_SCRIPT = "launch/slurm/train.sbatch"
SCRIPTS = (BATCH_SCRIPT, "launch/environment.sh", "docker/serve.sh", ".ci/run")

# Enough epochs to be interrupted, few enough to wait for.
FLAGS = (*DATASET, "--epochs", "60")


@pytest.fixture
def project(store_at_hand: None, tmp_path: Path) -> Path:
    """A directory where the commands work as they stand, with an MLflow store of its own."""
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    return tmp_path


def variables(project: Path, **more: str) -> dict[str, str]:
    """The environment of a node: a share of this machine, whose one GPU would not do for two."""
    store = f"sqlite:///{project}/mlflow.db"
    return environment(MLFLOW_TRACKING_URI=store, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1", **more)


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@contextmanager
def started(
    words: list[str], project: Path, name: str, env: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes NAME.out and NAME.err; ended, if it has not yet, on the way out."""
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


def said(project: Path, name: str) -> str:
    return (project / f"{name}.out").read_text()


def wait_until_said(words: str, process: subprocess.Popen[bytes], project: Path, name: str) -> None:
    deadline = time.monotonic() + 200
    while words not in said(project, name):
        assert process.poll() is None, (project / f"{name}.err").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def statuses(project: Path) -> list[str]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    return [run.info.status for run in runs]


# Shell


def shellcheck(*arguments: str, script: str | None = None) -> subprocess.CompletedProcess[str]:
    words = [str(BIN / "shellcheck"), "--shell=bash", *arguments]
    return subprocess.run(words, cwd=ROOT, input=script, capture_output=True, text=True)


def _starts_a_shell(file: Path) -> bool:
    with file.open("rb") as opened:
        first = opened.readline(100)
    return first.startswith(b"#!") and first.rstrip().endswith(b"sh")


def test_all_shell_scripts_are_checked() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    names = [name for name in tracked.stdout.splitlines() if (ROOT / name).is_file()]
    shell = {name for name in names if name.endswith(".sh") or _starts_a_shell(ROOT / name)}
    assert shell <= set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_shell_scripts_have_no_known_mistakes(script: str) -> None:
    parsed = subprocess.run(["bash", "-n", script], cwd=ROOT, capture_output=True, text=True)
    assert parsed.returncode == 0, parsed.stderr
    done = shellcheck(script)
    assert done.returncode == 0, done.stdout


def test_shellcheck_finds_a_mistake() -> None:
    assert "SC2086" in shellcheck("-", script="rm $1\n").stdout


# SLURM, by stand-ins for its commands: one machine plays all the nodes.

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
    """The environment of a batch script, with SLURM's commands first on PATH."""
    commands = project / "bin"
    commands.mkdir()
    for name, code in (("srun", SRUN), ("scancel", SCANCEL), ("scontrol", SCONTROL)):
        file = commands / name
        file.write_text(f"#!{sys.executable}\n{code}")
        file.chmod(0o755)
    return variables(
        project,
        PATH=f"{commands}{os.pathsep}{os.environ['PATH']}",
        VENV=str(BIN.parent),
        STEP=str(project / "step"),
        REQUESTS=str(project / "requests"),
        PORT=free_port(),
        SLURM_JOB_ID="4711",
        SLURM_JOB_NODELIST="node[1-2]",
        SLURM_NNODES="2",
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_batch_job_whose_time_runs_out_is_queued_again_and_goes_on(
    project: Path, slurm: dict[str, str]
) -> None:
    words = ["bash", BATCH_SCRIPT, *FLAGS]
    output_dir, requests = project / "outputs/slurm-4711", project / "requests"
    with started(words, project, "first", slurm) as job:
        wait_until_said("epoch 2/60", job, project, "first")
        job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=40) == 1
    assert requests.read_text() == "requeue 4711"
    assert (output_dir / "last.pt").exists()
    assert "epoch 60/60" not in said(project, "first")
    assert statuses(project) == ["KILLED"]

    requests.unlink()
    with started(words, project, "second", slurm) as job:
        assert job.wait(timeout=200) == 0, (project / "second.err").read_text()
    assert "resumed after" in said(project, "second")
    assert '"num_processes": 2' in said(project, "second").splitlines()[-1]
    assert statuses(project) == ["FINISHED"]

    one_node = slurm | {"SLURM_NNODES": "1", "PROCESSES_PER_NODE": "2"}
    with started(words, project, "third", one_node) as job:
        assert job.wait(timeout=200) == 0, (project / "third.err").read_text()
    assert "resumed after epoch 60 of 60" in said(project, "third")
    assert '"num_processes": 2' in said(project, "third").splitlines()[-1]
    assert not requests.exists()


def test_a_batch_job_names_the_mlflow_server_that_it_lacks(project: Path, slurm: dict[str, str]) -> None:
    del slurm["MLFLOW_TRACKING_URI"]
    with started(["bash", BATCH_SCRIPT], project, "job", slurm) as job:
        assert job.wait(timeout=30) != 0
    assert "MLFLOW_TRACKING_URI: name an MLflow server" in (project / "job.err").read_text()


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


def as_understood(manifest: Manifest) -> Manifest:
    """What the published schemas find in it: a value of a wrong type raises, an unknown field is left out."""
    model = MODELS[manifest["apiVersion"], manifest["kind"]]
    understood: Manifest = model.from_dict(manifest).to_dict()
    return understood


@pytest.mark.parametrize("kind", ["ConfigMap", "PersistentVolumeClaim", "TrainingRuntime", "TrainJob"])
def test_manifests_are_what_the_schemas_describe(kind: str) -> None:
    assert as_understood(MANIFESTS[kind]) == MANIFESTS[kind]


def pod_spec(runtime: Manifest) -> Manifest:
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    spec: Manifest = job["template"]["spec"]["template"]["spec"]
    return spec


def test_a_misspelt_field_is_not_what_the_schemas_describe() -> None:
    runtime = copy.deepcopy(MANIFESTS["TrainingRuntime"])
    spec = pod_spec(runtime)
    spec["terminationGracePeriod"] = spec.pop("terminationGracePeriodSeconds")
    assert as_understood(runtime) != runtime
    job = copy.deepcopy(MANIFESTS["TrainJob"])
    job["spec"]["trainer"]["numNode"] = job["spec"]["trainer"].pop("numNodes")
    assert as_understood(job) != job


def test_a_value_of_a_wrong_type_is_refused() -> None:
    runtime = copy.deepcopy(MANIFESTS["TrainingRuntime"])
    pod_spec(runtime)["terminationGracePeriodSeconds"] = "60"
    with pytest.raises(ValueError, match="terminationGracePeriodSeconds"):
        as_understood(runtime)
    job = copy.deepcopy(MANIFESTS["TrainJob"])
    job["spec"]["trainer"]["args"] = ["--epochs", 20]
    with pytest.raises(ValueError, match="args"):
        as_understood(job)
    job = copy.deepcopy(MANIFESTS["TrainJob"])
    del job["spec"]["runtimeRef"]
    with pytest.raises(ValueError, match="runtimeRef"):
        as_understood(job)


def test_the_manifests_fit_each_other() -> None:
    runtime, spec = MANIFESTS["TrainingRuntime"], pod_spec(MANIFESTS["TrainingRuntime"])
    (container,), (volume,) = spec["containers"], spec["volumes"]
    assert MANIFESTS["TrainJob"]["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert container["envFrom"][0]["configMapRef"]["name"] == MANIFESTS["ConfigMap"]["metadata"]["name"]
    claim = MANIFESTS["PersistentVolumeClaim"]["metadata"]["name"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim
    assert container["volumeMounts"][0]["name"] == volume["name"]
    assert spec["terminationGracePeriodSeconds"] >= 30
    # What Kubeflow Trainer looks for.
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert job["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert job["name"] == container["name"] == "node"


def pod_command() -> list[str]:
    (container,) = pod_spec(MANIFESTS["TrainingRuntime"])["containers"]
    command: list[str] = container["command"]
    return command


def test_the_script_of_the_pods_has_no_known_mistakes() -> None:
    done = shellcheck("-", script=pod_command()[2])
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pods_go_on_after_one_was_killed(project: Path) -> None:
    def pod(number: int, name: str, port: str) -> Any:
        # As the controller sets them.
        given = {
            "PET_NNODES": "2",
            "PET_NPROC_PER_NODE": "1",
            "PET_NODE_RANK": str(number),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": port,
        }
        env = variables(project, OUTPUT_DIR=str(project / "output"), **given)
        return started([*pod_command(), *FLAGS], project, name, env)

    port = free_port()
    with pod(0, "first", port) as first, pod(1, "other", port) as other:
        wait_until_said("epoch 2/60", first, project, "first")
        other.send_signal(signal.SIGTERM)
        assert other.wait(timeout=40) != 0
        assert first.wait(timeout=40) != 0
    assert (project / "output/last.pt").exists()
    assert "epoch 60/60" not in said(project, "first")

    port = free_port()
    with pod(0, "again", port) as first, pod(1, "other", port) as other:
        assert first.wait(timeout=200) == 0, (project / "again.err").read_text()
        assert other.wait(timeout=40) == 0
    assert "resumed after" in said(project, "again")
    assert '"num_processes": 2' in said(project, "again").splitlines()[-1]
    assert said(project, "other") == ""


@pytest.mark.slow
def test_one_pod_with_one_process_stops_at_sigterm(project: Path) -> None:
    given = {
        "PET_NNODES": "1",
        "PET_NPROC_PER_NODE": "1",
        "PET_NODE_RANK": "0",
        "PET_MASTER_ADDR": "127.0.0.1",
    }
    env = variables(project, OUTPUT_DIR=str(project / "output"), PET_MASTER_PORT=free_port(), **given)
    with started([*pod_command(), *FLAGS], project, "pod", env) as pod:
        wait_until_said("epoch 2/60", pod, project, "pod")
        pod.send_signal(signal.SIGTERM)
        assert pod.wait(timeout=40) == 1
    assert statuses(project) == ["KILLED"]
