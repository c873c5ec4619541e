"""The steps of an epoch: their losses, their division into chunks, and how often processes synchronize."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Record = dict[str, Any]
Sum = Callable[[torch.Tensor], torch.Tensor]
"""Sums a tensor over all processes."""


def chunks(steps: range, size: int, every: Sequence[tuple[int, int]]) -> list[range]:
    """Divide `steps` into ranges of at most `size`.

    `every` holds (interval, steps since the interval's start) at the first of the steps; a range ends with
    each step that completes an interval. Intervals of 0 are ignored.
    """
    ranges, start = [], steps.start
    for step in steps:
        done = step + 1 - steps.start
        is_due = any(interval and (before + done) % interval == 0 for interval, before in every)
        if is_due or step + 1 - start == size or step + 1 == steps.stop:
            ranges.append(range(start, step + 1))
            start = step + 1
    return ranges


class EpochSteps:
    """This process's summed loss and number of correct answers for each step of an epoch.

    The values stay on the device until they are needed, so that no step waits for them. `seconds` is the
    duration of the steps.
    """

    def __init__(self, number: int, batch_sizes: list[int], device: torch.device) -> None:
        self.number, self.batch_sizes = number, batch_sizes
        self.done, self.seconds = 0, 0.0
        self.losses: list[Record] = []
        self._totals = torch.zeros(len(batch_sizes), 2, dtype=torch.float64, device=device)

    def at(self, number: int) -> "EpochSteps":
        """The beginning of epoch `number`, counted from 0."""
        return EpochSteps(number, self.batch_sizes, self._totals.device)

    @property
    def first_step(self) -> int:
        """The number of steps before this epoch."""
        return self.number * len(self.batch_sizes)

    def add(self, totals: torch.Tensor) -> None:
        """Add (summed loss, number correct) of the next K steps, float64 (K, 2)."""
        self._totals[self.done : self.done + len(totals)] = totals
        self.done += len(totals)

    def mean_loss(self, every: int, total: Sum) -> Record:
        """The mean loss of the last `every` steps, which is also added to `losses`."""
        last = slice(self.done - every, self.done)
        mean = total(self._totals[last, 0].sum()).item() / sum(self.batch_sizes[last])
        record = {"step": self.first_step + self.done, "loss": mean, "timestamp_ms": int(time.time() * 1000)}
        self.losses.append(record)
        return record

    def totals(self, total: Sum) -> torch.Tensor:
        """(summed loss, number correct) of each finished step over all processes, float64 (done, 2)."""
        return total(self._totals[: self.done].clone()).cpu()

    def first_not_finite(self) -> float:
        """The first step, from 1, whose loss is not finite on this process; else infinity."""
        wrong = (~self._totals[: self.done, 0].isfinite()).nonzero()
        return self.first_step + wrong[0].item() + 1 if len(wrong) else math.inf

    def state_dict(self, total: Sum) -> Record:
        return {"totals": self.totals(total), "losses": self.losses, "seconds": self.seconds}

    def load_state_dict(self, state: Record, *, is_main: bool) -> None:
        """Restore the epoch; the main process takes the totals of all, so that they count once."""
        self.done, self.seconds, self.losses = len(state["totals"]), state["seconds"], list(state["losses"])
        if is_main:
            self._totals[: self.done] = state["totals"].to(self._totals)


class Pace:
    """When the processes synchronize: after the same steps on all, about every quarter of a second.

    After each step it would cost more than a small model's step, and drain a GPU's queue.
    """

    SECONDS = 0.25

    def __init__(self) -> None:
        self._steps, self._left = 1, 1
        self._since = time.perf_counter()

    def due(self, number: int) -> bool:
        """Call after each `number` of steps."""
        self._left -= number
        return self._left <= 0

    def elapsed(self) -> float:
        """Seconds since the last synchronization."""
        return time.perf_counter() - self._since

    def restart(self, seconds: float) -> None:
        """Start the next interval; `seconds` is the last one's longest duration over all processes."""
        steps = self._steps * self.SECONDS / max(seconds, 1e-6)
        self._steps = self._left = max(1, min(round(steps), 10 * self._steps, 1000))
        self._since = time.perf_counter()
