import pytest
import torch

from mlp_dist.console.processes import num_cores
from mlp_dist.sweep.crew import environment


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def gpus(number: int) -> list[dict[str, str]]:
    return [environment(index, number) for index in range(number)]


@pytest.mark.usefixtures("four_gpus")
def test_each_worker_has_a_gpu_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpus(6) == [{"CUDA_VISIBLE_DEVICES": name} for name in "012301"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-8f")
    assert gpus(3) == [{"CUDA_VISIBLE_DEVICES": name} for name in ("2", "GPU-8f", "2")]


@pytest.mark.usefixtures("four_gpus")
def test_workers_that_are_told_to_use_the_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert gpus(2) == [{"OMP_NUM_THREADS": str(max(1, num_cores() // 2))}] * 2
    assert environment(0, 1000) == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert gpus(2) == [{"OMP_NUM_THREADS": "3"}] * 2
