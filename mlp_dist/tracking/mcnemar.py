"""Whether one of two models is better on the same images by more than chance."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class McNemar:
    """How many images only the first model answered rightly, and how many only the second; `p_value` is how
    probable so uneven a split is, either way, where both are equally good.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: torch.Tensor, second: torch.Tensor) -> McNemar:
    """McNemar's exact test of two models' answers to the same N images, bool (N,): True where right.

    Images that both answer rightly, or both wrongly, tell nothing; of n others each would fall to either side
    like a coin, so p is that of a binomial test, two-sided (McNemar 1947, "Note on the sampling error of the
    difference between correlated proportions or percentages"; for classifiers Dietterich 1998, "Approximate
    Statistical Tests for Comparing Supervised Classification Learning Algorithms").
    """
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    return McNemar(only_first, only_second, _two_sided(only_first, only_second))


def _two_sided(heads: int, tails: int) -> float:
    """Probability that a fair coin falls at least as unevenly, in whole numbers up to the last division."""
    num = heads + tails
    ways = total = 1
    for k in range(min(heads, tails)):
        ways = ways * (num - k) // (k + 1)
        total += ways
    return min(1.0, 2 * total / (1 << num))
