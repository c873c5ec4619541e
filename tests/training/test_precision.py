import pytest
import torch

from mlp_dist.config import MATMUL_PRECISIONS
from mlp_dist.training.precision import matmul_error, matmul_precision, settle

CPU = torch.device("cpu")


def test_left_to_the_machine_it_is_medium_only_where_that_is_float32() -> None:
    lossless = matmul_error("medium", CPU) < 1e-5
    assert settle("auto", CPU) == ("medium" if lossless else "highest")


@pytest.mark.parametrize("error", [3e-3, 5e-4])
def test_what_really_computes_in_fewer_bits_is_left_out(
    error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlp_dist.training.precision.matmul_error", lambda precision, device: error)
    settle.cache_clear()
    assert settle("auto", CPU) == "highest"
    assert settle("medium", CPU) == "medium"
    settle.cache_clear()


@pytest.mark.parametrize("precision", MATMUL_PRECISIONS[1:])
def test_what_was_asked_for_is_taken(precision: str) -> None:
    assert settle(precision, CPU) == precision


def test_the_error_is_that_of_the_product() -> None:
    assert 0 < matmul_error("highest", CPU) < 1e-6


def test_bfloat16_would_be_seen() -> None:
    left, right = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0))
    exact = left.double() @ right.double()
    rounded = (left.bfloat16() @ right.bfloat16()).double()
    assert ((rounded - exact).abs().max() / exact.abs().max()).item() > 1e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_products_stay_float32() -> None:
    assert settle("auto", torch.device("cuda", 0)) == "highest"


def test_the_setting_is_put_back() -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(RuntimeError), matmul_precision("medium"):
        torch.ones(2, 2) @ torch.ones(3, 3)
    assert torch.get_float32_matmul_precision() == before
    with matmul_precision("medium"):
        assert torch.get_float32_matmul_precision() == "medium"
