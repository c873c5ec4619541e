"""One of the trainings that benchmarks/tracking.py measures.

accelerate launch --module benchmarks.tracking_worker with|without FILE [launch/train.py's flags]
"""

import functools
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from mlp_dist.cli import train
from mlp_dist.console import command
from mlp_dist.training import recorder


class Nothing(str):
    """In place of what records: an empty text, which takes each call and has each attribute."""

    def __getattr__(self, name: str) -> Self:
        return self

    def __call__(self, *arguments: Any, **named: Any) -> Self:
        return self


@contextmanager
def open_nothing(*arguments: Any, **named: Any) -> Iterator[Nothing]:
    yield Nothing()


@dataclass
class Held:
    """Seconds for which the training waited for what tells of it: within each of its steps, and after each
    epoch's.
    """

    steps: list[float] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)
    _now: float = 0.0
    _depth: int = 0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, whose seconds count unless it is called by another of these."""

        @functools.wraps(call)
        def counted(*arguments: Any, **named: Any) -> Any:
            self._depth += 1
            started = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                self._depth -= 1
                if not self._depth:
                    self._now += time.perf_counter() - started

        return counted

    def take(self) -> float:
        held, self._now = self._now, 0.0
        return held


def watch(held: Held) -> None:
    """Have timed what the Trainer calls to tell of its steps and epochs."""
    from mlp_dist.training.report import Report
    from mlp_dist.training.steps import EpochSteps
    from mlp_dist.training.trainer import Trainer

    for kind in (Report, recorder.RunTracker):
        for name, call in vars(kind).items():
            if callable(call) and not name.startswith("_"):
                setattr(kind, name, held.timed(call))
    # Keeps a step's loss to be told.
    EpochSteps.mean_loss = held.timed(EpochSteps.mean_loss)  # type: ignore[method-assign]
    after_steps, train_epoch, finish = Trainer.after_steps, Trainer.train_epoch, Report.finish

    def noted_steps(trainer: Trainer, number: int, *arguments: Any) -> None:
        after_steps(trainer, number, *arguments)
        # Of several steps in a call one is held.
        held.steps += [held.take(), *[0.0] * (number - 1)]

    def noted_epoch(trainer: Trainer, *arguments: Any) -> Any:
        before = held.take()
        # What is told before the first epoch holds no training.
        held.epochs += [before] if trainer.history else []
        return train_epoch(trainer, *arguments)

    def noted_finish(report: Report, *arguments: Any) -> Any:
        held.epochs.append(held.take())
        return finish(report, *arguments)

    trainer_class: Any = Trainer
    report_class: Any = Report
    trainer_class.after_steps, trainer_class.train_epoch = noted_steps, noted_epoch
    report_class.finish = noted_finish


def main() -> None:
    which, output, held = sys.argv[1], Path(sys.argv[2]), Held()
    del sys.argv[1:3]
    if which == "without":
        recorder.start, recorder.open_run = Nothing, open_nothing  # type: ignore[assignment]
    # In the order in which train.py does it.
    recorder.start()
    gc.disable()
    watch(held)
    train.main()
    output.write_text(json.dumps({"steps": held.steps, "epochs": held.epochs}))


if __name__ == "__main__":
    command.run(main, at_once=True)
