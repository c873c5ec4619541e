"""Two machines without a shared disk, as network namespaces that are connected by a virtual cable."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.calling import Call
from tests.helpers.comparing import saved_state
from tests.helpers.launching import NOTHING_ELSE, ROOT, environment, result

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
FLAGS = "--recipe mnist-quick --dataset digits --lr 0.01"
MAIN_ADDRESS = "10.77.0.1"


@dataclass(frozen=True)
class Machine:
    """A network namespace and its working directory."""

    number: int
    namespace: str
    directory: Path

    def start(self, *flags: str) -> subprocess.Popen[str]:
        words = ["ip", "netns", "exec", self.namespace, "accelerate", "launch", "--multi_gpu"]
        words += ["--num_machines", "2", "--num_processes", "2", "--machine_rank", str(self.number)]
        words += ["--main_process_ip", MAIN_ADDRESS, "--main_process_port", "29500", *NOTHING_ELSE]
        variables = environment(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            variables.pop(name, None)
        return subprocess.Popen(
            [*words, str(ROOT / "launch/train.py"), *flags],
            cwd=self.directory,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, Machine]]:
    if shutil.which("ip") is None:
        pytest.skip("two machines need network namespaces: install iproute2")
    if os.geteuid() != 0:
        pytest.skip("only root can create network namespaces")
    names = [f"mlp{os.getpid()}-{number}" for number in (0, 1)]
    with ExitStack() as stack:
        for name in names:
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"two machines need network namespaces: {error.stderr.strip()}")
            stack.callback(ip, "netns", "delete", name)
        # Deleting the namespaces deletes the interfaces.
        ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", names[1], "netns", names[1])
        for number, name in enumerate(names):
            ip("-n", name, "address", "add", f"10.77.0.{number + 1}/24", "dev", name)
            for interface in ("lo", name):
                ip("-n", name, "link", "set", interface, "up")
        first, second = (
            Machine(number, name, tmp_path_factory.mktemp(f"machine-{number}"))
            for number, name in enumerate(names)
        )
        yield first, second


def train_on(machines: tuple[Machine, Machine], *flags: str) -> list[subprocess.CompletedProcess[str]]:
    """launch/train.py with one process on each machine; stdout holds stdout and stderr."""
    with ExitStack() as stack:
        processes = []
        for machine in machines:
            processes.append(stack.enter_context(machine.start(*flags)))
            stack.callback(processes[-1].terminate)
        outputs = [process.communicate(timeout=200)[0] for process in processes]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, output, "")
        for process, output in zip(processes, outputs, strict=True)
    ]


def main_result(done: list[subprocess.CompletedProcess[str]]) -> dict[str, Any]:
    """The JSON object that the main machine printed, and no other one."""
    outputs = [each.stdout for each in done]
    assert [each.returncode for each in done] == [0, 0], "\n".join(outputs)
    first, second = ([line for line in output.splitlines() if line.startswith("{")] for output in outputs)
    assert (len(first), second) == (1, [])
    values: dict[str, Any] = json.loads(first[0])
    return values


def assert_same_weights(one: dict[str, Any], many: dict[str, Any]) -> None:
    expected, found = (saved_state(each["output_dir"])["model"] for each in (one, many))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=TOLERANCE)


def test_two_machines_continue_the_training_of_one_process(
    machines: tuple[Machine, Machine], train_here: Call, tmp_path: Path
) -> None:
    main, other = (machine.directory for machine in machines)
    result(train_here(f"{FLAGS} --epochs 1 --output-dir output", main))
    done = train_on(machines, "--resume", "--output-dir", "output", "--epochs", "2")
    many = main_result(done)
    assert many["num_processes"] == 2
    assert Path(many["output_dir"]) == main / "output"
    assert done[0].stdout.count("resumed after epoch 1 of 2") == 1
    assert {path.name for path in main.iterdir()} >= {"output", "mlflow.db"}
    assert list(other.iterdir()) == []
    assert_same_weights(result(train_here(f"{FLAGS} --epochs 2")), many)


@pytest.mark.nightly
def test_two_machines_train_the_weights_of_one_process(
    machines: tuple[Machine, Machine], train_here: Call
) -> None:
    many = main_result(train_on(machines, *FLAGS.split(), "--epochs", "1", "--output-dir", "output"))
    assert list(machines[1].directory.iterdir()) == []
    assert_same_weights(result(train_here(f"{FLAGS} --epochs 1")), many)
