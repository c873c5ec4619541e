"""What benchmarks/training.py found of one case: a table for people, an object for JSON."""

import math
import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.peers import OURS, PEERS
from benchmarks.peers.cases import Trained

COLUMNS = "{:<19} {:>10}  {:>17}  {:>7}  {:>9}  {:>10}  {:>15}  {:<4}"
HEADER = COLUMNS.format(
    "", "s an epoch", "times mlp_dist's", "first s", "warm-up s", "3 epochs s", "test accuracy", "same"
)

JAX_GOAL, PRODUCTS_GOAL, NOTEBOOK_GOAL = 1.0, 1.35, 7.0
STANDARD_ERRORS = 3
"""Test accuracies are the same within noise where their means differ by no more than so many."""


@dataclass(frozen=True)
class Result:
    """A contestant's repeats of one case; the epochs after the first give a repeat's `seconds`."""

    name: str
    repeats: list[Trained]

    @property
    def seconds(self) -> list[float]:
        return [statistics.median(repeat.seconds[1:]) for repeat in self.repeats]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def first(self) -> float:
        """The very first epoch in its process, compilation and all."""
        return self.repeats[0].seconds[0]

    @property
    def warm_up(self) -> float:
        return self.first - self.median

    @property
    def three_epochs(self) -> float:
        """From the start, so with the warm-up counted."""
        return self.first + 2 * self.median

    @property
    def accuracies(self) -> list[float]:
        return [repeat.accuracy for repeat in self.repeats if repeat.accuracy is not None]

    def ratios(self, other: "Result") -> list[float]:
        """Its seconds over the other's, of each repeat."""
        return [mine / its for mine, its in zip(self.seconds, other.seconds, strict=True)]

    def same_accuracy(self, other: "Result") -> bool | None:
        """None where that cannot be told: nothing trained, not drawn alike, fewer than three repeats."""
        alike = PEERS[self.name].same_start and PEERS[other.name].same_start
        pair = (self.accuracies, other.accuracies)
        if not alike or min(map(len, pair)) < 3:
            return None
        error = math.sqrt(sum(statistics.variance(values) / len(values) for values in pair))
        difference = abs(statistics.mean(pair[0]) - statistics.mean(pair[1]))
        return difference <= STANDARD_ERRORS * error

    def row(self, ours: "Result") -> str:
        accuracy = "-"
        if self.accuracies:
            std = statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0
            accuracy = f"{statistics.mean(self.accuracies):.4f} ± {std:.4f}"
        device = self.repeats[0].device
        same = "" if self is ours else {True: "yes", False: "no", None: "-"}[self.same_accuracy(ours)]
        return COLUMNS.format(
            self.name if device == ours.repeats[0].device else f"{self.name} ({device})",
            f"{self.median:.3f}",
            "" if self is ours else spread(self.ratios(ours)),
            f"{self.first:.2f}",
            f"{self.warm_up:.2f}",
            f"{self.three_epochs:.2f}",
            accuracy,
            same,
        ).rstrip()

    def to_json(self, ours: "Result") -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "median": self.median,
            "first": self.first,
            "first_epochs": [repeat.seconds[0] for repeat in self.repeats],
            "warm_up": self.warm_up,
            "three_epochs": self.three_epochs,
            "times_ours": statistics.median(self.ratios(ours)),
            "accuracies": self.accuracies,
            "same_accuracy": self.same_accuracy(ours),
            "device": self.repeats[0].device,
            "precision": self.repeats[0].precision,
        }


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"


@dataclass(frozen=True)
class Goal:
    """`values` has one of each repeat; their median is what counts."""

    name: str
    wanted: str
    values: list[float]
    met: bool

    def __str__(self) -> str:
        met = "met" if self.met else "missed"
        return f"  {self.name:<32} {spread(self.values):<20} wanted {self.wanted:<8} {met}"

    def to_json(self) -> dict[str, Any]:
        return {"ratio": statistics.median(self.values), "wanted": self.wanted, "met": self.met}


def goals(results: dict[str, Result]) -> list[Goal]:
    """Those whose contestants were there; the products count at the precision that ours had."""
    ours, found = results[OURS], []
    products = f"products-{ours.repeats[0].precision}"
    for name, largest, wanted in (
        ("jax-scan", JAX_GOAL, f"< {JAX_GOAL:g}"),
        (products, PRODUCTS_GOAL, f"<= {PRODUCTS_GOAL:g}"),
    ):
        if name in results:
            ratios = ours.ratios(results[name])
            ratio = statistics.median(ratios)
            met = ratio < largest if wanted.startswith("< ") else ratio <= largest
            found.append(Goal(f"{OURS} / {name}", wanted, ratios, met))
    if "notebook" in results:
        ratios = results["notebook"].ratios(ours)
        met = statistics.median(ratios) >= NOTEBOOK_GOAL
        found.append(Goal(f"notebook / {OURS}", f">= {NOTEBOOK_GOAL:g}", ratios, met))
    return found
