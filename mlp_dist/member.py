"""A training that goes on beside others, in a population."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import torch

from mlp_dist import progress
from mlp_dist.core.errors import TrainingError
from mlp_dist.finish import finish
from mlp_dist.processes import StopSignals
from mlp_dist.report import Report
from mlp_dist.steps import Record
from mlp_dist.trainer import Trainer


class Member:
    """A training, and its report. `problem` is what has ended it before its time."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.report = trainer, Report(trainer)
        self.problem: TrainingError | None = None

    def __enter__(self) -> Self:
        self.report.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.report.__exit__(kind, error, trace)

    def begin(self) -> None:
        if not self.trainer.saved:
            self.trainer.save()
        self.report.open()

    @property
    def goes_on(self) -> bool:
        trainer = self.trainer
        return self.problem is None and not trainer.config.is_over(len(trainer.history), trainer.kept)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """What happens to this member's numbers inside leaves the others as they are."""
        try:
            yield
        except TrainingError as error:
            self.problem = error
            progress.tell(f"{self.trainer.output_dir.name} ends here, the others go on: {error}")
            self.report.__exit__(type(error), error, error.__traceback__)

    def add(self, totals: torch.Tensor, sizes: list[int], seconds: float, signals: StopSignals) -> None:
        """Steps that were taken, of `sizes` images: (summed loss, number correct), float64 (K, 2)."""
        if self.problem is None:
            self.trainer.epoch_steps.add(totals)
            self.trainer.epoch_steps.seconds = seconds
            self.trainer.bar.update(sum(sizes))
            self.trainer.after_steps(len(totals), signals)

    def end_epoch(self, signals: StopSignals) -> None:
        """The steps that are left, none where they were taken for it; then what follows an epoch."""
        if self.problem is None:
            trainer = self.trainer
            trainer.keep(trainer.train_epoch(signals) | trainer.evaluate())
            trainer.save()
            self.report.run.changed()

    def finish(self) -> Record:
        return finish(self.trainer, self.report.run)
