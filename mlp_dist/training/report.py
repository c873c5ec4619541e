"""What a training tells as it goes on: lines on stdout, and its run. On the main process alone."""

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mlp_dist.config import WHERE
from mlp_dist.console import progress
from mlp_dist.console.processes import StopSignals
from mlp_dist.core.errors import TrackingError
from mlp_dist.recipes import shown
from mlp_dist.tracking.run_dir import CONFIG, SYSTEM, RunRecord, write_json
from mlp_dist.training import identity, pictured, recorder
from mlp_dist.training.finish import finish
from mlp_dist.training.steps import Record

if TYPE_CHECKING:
    from mlp_dist.training.trainer import Trainer


class Report:
    """Once `open`, the run is; it ends as what happens until this is closed says."""

    def __init__(self, trainer: "Trainer") -> None:
        self.trainer = trainer
        self._closing = ExitStack()
        self._run: recorder.RunTracker | None = None

    def __enter__(self) -> Self:
        self._closing.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.__exit__(kind, error, trace)

    @property
    def run(self) -> recorder.RunTracker:
        assert self._run is not None, "the report is not open"
        return self._run

    def open(self) -> None:
        """A new run, or the trainer's opened again."""
        trainer, data = self.trainer, self.trainer.data
        record, is_new = self._record()
        self._run = self._closing.enter_context(recorder.open_run(trainer.output_dir, record))
        if is_new:
            self.run.draw("samples", *pictured.first(data.train), data.classes)
            self.run.changed()

    def _record(self) -> tuple[RunRecord, bool]:
        """The directory's, where it is the trainer's; else a new one, and whether it is."""
        trainer = self.trainer
        try:
            found = RunRecord.load(trainer.output_dir)
        except TrackingError:
            found = None
        now = describe(trainer)
        write_json(trainer.output_dir / CONFIG, trainer.config.to_json())
        if found is not None and found.key == trainer.run_key:
            found.open()
            # It may go on for more epochs, or elsewhere.
            found.name, found.description, found.tags = now.name, now.description, found.tags | now.tags
            found.params |= now.params
            return found, False
        (trainer.output_dir / SYSTEM).unlink(missing_ok=True)
        return now, True

    def epoch(self) -> None:
        """The trainer's last epoch."""
        record, config = self.trainer.history[-1], self.trainer.config
        self.run.changed()
        told = [f"epoch {record['epoch']}/{config.epochs}"]
        for part in ("train", "val", "test"):
            loss, accuracy = record[f"{part}_loss"], record[f"{part}_accuracy"]
            told.append(f"{part} -" if loss is None else f"{part} loss {loss:.4f} accuracy {accuracy:.2%}")
        told.append(f"lr {record['learning_rate']:g}  {record['samples_per_second']:,.0f} images/s")
        progress.tell("  ".join(told))

    def finish(self, signals: StopSignals) -> Record:
        """Test and keep the best weights; returns what the command's last line shows."""
        trainer = self.trainer
        if len(trainer.history) < trainer.config.epochs:
            patience = trainer.config.patience
            better = f"no better validation accuracy in {patience} epoch{'s' * (patience > 1)}"
            print(f"stopped early: {better}", flush=True)
        signals.at_once()
        with progress.stages("testing, drawing and storing"):
            return finish(trainer, self.run)


def training_bar(trainers: "Sequence[Trainer]") -> progress.Bar:
    """Over the images of all epochs of these trainings; those that were done before count as done."""
    done = [
        len(each.history) * len(each.train_set) + sum(each.epoch_steps.batch_sizes[: each.epoch_steps.done])
        for each in trainers
    ]
    total = sum(each.config.epochs * len(each.train_set) for each in trainers)
    return progress.bar("training", total, " images", initial=sum(done), unit_scale=True)


def describe(trainer: "Trainer") -> RunRecord:
    """All that can be said of a run before it has begun."""
    config, data = trainer.config, trainer.data
    chosen: dict[str, Any] = {
        name: shown(getattr(config, name))
        for name, value in config.to_json().items()
        if name not in WHERE and value is not None
    }
    return RunRecord(
        experiment=config.experiment,
        name=config.run_name or identity.run_name(config, len(data.train)),
        key=trainer.run_key,
        description=identity.description(trainer),
        parent=None if trainer.parent is None else str(trainer.parent.absolute()),
        tags=identity.tags(trainer),
        params={
            **chosen,
            "layer_sizes": str(trainer.spec),
            "num_parameters": trainer.spec.num_parameters,
            "num_processes": trainer.world_size,
            "device": trainer.device.type,
            "mean": str(data.image.mean),
            "std": str(data.image.std),
            "num_train": len(trainer.train_set),
            "num_val": len(trainer.val_set),
            "num_test": len(trainer.test_set),
            "kept": "best validation accuracy" if len(trainer.val_set) else "last epoch, none was chosen",
        },
        dataset={
            "name": data.name,
            "digest": trainer.data_digest,
            # What runs do with them differs, and MLflow keeps what the first has told.
            "num_train": len(data.train),
            "num_test": len(data.test),
        },
        artifacts=[CONFIG],
    )
