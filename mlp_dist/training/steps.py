"""The steps of an epoch: what each cost, and when the processes ask each other whether to go on."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Record = dict[str, Any]
Sum = Callable[[torch.Tensor], torch.Tensor]
"""A tensor -> its sum over all processes, on each of them."""


def chunks(steps: range, size: int, every: Sequence[tuple[int, int]]) -> list[range]:
    """`steps` in portions of at most `size`.

    `every` has intervals and where each stands at the first of the steps: a portion ends with each step that
    completes one. An interval of 0 is none.
    """
    found, start = [], steps.start
    for step in steps:
        done = step + 1 - steps.start
        ends = any(interval and (before + done) % interval == 0 for interval, before in every)
        if ends or step + 1 - start == size or step + 1 == steps.stop:
            found.append(range(start, step + 1))
            start = step + 1
    return found


class EpochSteps:
    """Of each step of an epoch the summed loss and the number of correct answers, over this process's images.

    They stay on the device until someone asks, so that no step waits for it. `seconds` is the time the steps
    took.
    """

    def __init__(self, epoch: int, batch_sizes: list[int], device: torch.device) -> None:
        self.epoch, self.batch_sizes = epoch, batch_sizes
        self.done, self.seconds = 0, 0.0
        self.losses: list[Record] = []
        self._totals = torch.zeros(len(batch_sizes), 2, dtype=torch.float64, device=device)

    @property
    def first_step(self) -> int:
        """The number of steps before this epoch."""
        return self.epoch * len(self.batch_sizes)

    def add(self, totals: torch.Tensor) -> None:
        """(Summed loss, number correct) of the next K steps, float64 (K, 2)."""
        self._totals[self.done : self.done + len(totals)] = totals
        self.done += len(totals)

    def mean_loss(self, every: int, total: Sum) -> Record:
        """The mean loss of the last `every` steps; also kept in `losses`."""
        last = slice(self.done - every, self.done)
        mean = total(self._totals[last, 0].sum()).item() / sum(self.batch_sizes[last])
        record = {"step": self.first_step + self.done, "loss": mean, "timestamp_ms": int(time.time() * 1000)}
        self.losses.append(record)
        return record

    def totals(self, total: Sum) -> torch.Tensor:
        """(summed loss, number correct) of each step done, over all processes: float64 (done, 2)."""
        return total(self._totals[: self.done].clone()).cpu()

    def first_not_finite(self) -> float:
        """The first step, from 1 on, whose loss is not finite on this process; infinity where none is."""
        wrong = (~self._totals[: self.done, 0].isfinite()).nonzero()
        return self.first_step + wrong[0].item() + 1 if len(wrong) else math.inf

    def state_dict(self, total: Sum) -> Record:
        """What `load_state_dict` needs to go on within the epoch."""
        return {"totals": self.totals(total), "losses": self.losses, "seconds": self.seconds}

    def load_state_dict(self, state: Record, *, is_main: bool) -> None:
        """Of what all processes had done, the main one takes everything, so that it counts once."""
        self.done, self.seconds, self.losses = len(state["totals"]), state["seconds"], list(state["losses"])
        if is_main:
            self._totals[: self.done] = state["totals"].to(self._totals)


class Pace:
    """At which steps the processes ask each other: all at the same, and about every quarter of a second.

    Asking at each step would cost several processes more than the step of a small model, and a GPU its queue.
    """

    SECONDS = 0.25

    def __init__(self) -> None:
        self._steps, self._left = 1, 1
        self._since = time.perf_counter()

    def due(self, number: int) -> bool:
        """To be called after each `number` of steps."""
        self._left -= number
        return self._left <= 0

    def elapsed(self) -> float:
        """Seconds since the processes asked each other last."""
        return time.perf_counter() - self._since

    def asked(self, seconds: float) -> None:
        """`seconds` must be the same on all processes: the longest that one of them had needed."""
        steps = self._steps * self.SECONDS / max(seconds, 1e-6)
        self._steps = self._left = max(1, min(round(steps), 10 * self._steps, 1000))
        self._since = time.perf_counter()
