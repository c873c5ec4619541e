import pytest
import torch

from mlp_dist.training.precision import matmul_error, matmul_precision, resolve_matmul_precision

CPU = torch.device("cpu")


def test_auto_is_medium_only_if_that_is_float32() -> None:
    lossless = matmul_error("medium", CPU) < 1e-5
    assert resolve_matmul_precision("auto", CPU) == ("medium" if lossless else "highest")
    assert resolve_matmul_precision("medium", CPU) == "medium"
    assert 0 < matmul_error("highest", CPU) < 1e-6


@pytest.mark.parametrize("error", [3e-3, 5e-4])
def test_auto_excludes_lossy_settings(error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlp_dist.training.precision.matmul_error", lambda precision, device: error)
    resolve_matmul_precision.cache_clear()
    assert resolve_matmul_precision("auto", CPU) == "highest"
    resolve_matmul_precision.cache_clear()


@pytest.mark.gpu
def test_auto_is_highest_on_a_gpu() -> None:
    assert resolve_matmul_precision("auto", torch.device("cuda", 0)) == "highest"


def test_setting_is_restored() -> None:
    before = torch.get_float32_matmul_precision()
    with matmul_precision("medium"):
        assert torch.get_float32_matmul_precision() == "medium"
    with pytest.raises(RuntimeError), matmul_precision("medium"):
        torch.ones(2, 2) @ torch.ones(3, 3)
    assert torch.get_float32_matmul_precision() == before
