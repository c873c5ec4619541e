import pytest
import torch

from mlp_dist.training.precision import matmul_error, resolve_matmul_precision

CPU = torch.device("cpu")


def test_auto_is_medium_only_if_that_is_float32() -> None:
    lossless = matmul_error("medium", CPU) < 1e-5
    assert resolve_matmul_precision("auto", CPU) == ("medium" if lossless else "highest")
    assert resolve_matmul_precision("medium", CPU) == "medium"
    assert 0 < matmul_error("highest", CPU) < 1e-6


@pytest.mark.gpu
def test_auto_is_highest_on_a_gpu() -> None:
    assert resolve_matmul_precision("auto", torch.device("cuda", 0)) == "highest"
