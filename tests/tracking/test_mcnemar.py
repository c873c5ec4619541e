import pytest
import torch
from scipy.stats import binomtest

from mlp_dist.tracking.mcnemar import mcnemar


@pytest.mark.parametrize(
    ("both", "only_first", "only_second", "neither"),
    [
        (5, 0, 0, 1),
        (0, 1, 0, 0),
        (3, 6, 3, 2),
        (90, 3, 12, 5),
        (0, 8, 8, 0),
        (9000, 180, 131, 40),
        (0, 5000, 0, 0),
    ],
)
def test_it_is_the_binomial_test_of_those_that_tell(
    both: int, only_first: int, only_second: int, neither: int
) -> None:
    first = torch.tensor([True] * both + [True] * only_first + [False] * only_second + [False] * neither)
    second = torch.tensor([True] * both + [False] * only_first + [True] * only_second + [False] * neither)
    order = torch.randperm(len(first), generator=torch.Generator().manual_seed(0))
    result = mcnemar(first[order], second[order])
    assert (result.only_first, result.only_second) == (only_first, only_second)
    num = only_first + only_second
    expected = binomtest(only_first, num).pvalue if num else 1.0
    assert result.p_value == pytest.approx(expected, rel=1e-9)
    assert mcnemar(second, first).p_value == result.p_value
