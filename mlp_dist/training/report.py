"""What a training reports on the main process: lines on stdout, and its run's record."""

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from mlp_dist.config import WHERE
from mlp_dist.console import progress
from mlp_dist.console.processes import StopSignals
from mlp_dist.core.errors import TrackingError
from mlp_dist.recipes import format_value
from mlp_dist.tracking.run_dir import CONFIG, RunRecord, write_json
from mlp_dist.training import artifacts, identity, recorder
from mlp_dist.training.directories import release
from mlp_dist.training.outputs import write_outputs
from mlp_dist.training.steps import Record

if TYPE_CHECKING:
    from mlp_dist.training.trainer import Trainer


class Report(ExitStack):
    """As a context manager, it ends the run, as failed or killed after an exception, and its lock."""

    run: recorder.RunTracker

    def __init__(self, trainer: "Trainer") -> None:
        super().__init__()
        self.trainer = trainer

    def open(self) -> None:
        """Start a run, or reopen the run that the trainer resumes."""
        trainer, data = self.trainer, self.trainer.data
        self.callback(release, trainer.output_dir)
        record, is_new = self._record()
        self.run = self.enter_context(recorder.open_run(trainer.output_dir, record))
        if is_new:
            self.run.draw("samples", *artifacts.first_images(data.train), data.classes)
            self.run.changed()

    def _record(self) -> tuple[RunRecord, bool]:
        """The run's record, and whether it is new."""
        trainer = self.trainer
        try:
            found = RunRecord.load(trainer.output_dir)
        except TrackingError:
            found = None
        now = describe(trainer)
        write_json(trainer.output_dir / CONFIG, trainer.config.to_json())
        if found is not None and found.key == trainer.run_key:
            found.open()
            # More epochs or other hardware change these.
            found.name, found.description, found.tags = now.name, now.description, found.tags | now.tags
            found.params |= now.params
            return found, False
        return now, True

    def epoch(self) -> None:
        """Report the trainer's last epoch."""
        record, config = self.trainer.history[-1], self.trainer.config
        self.run.changed()
        parts = [f"epoch {record['epoch']}/{config.epochs}"]
        for part in ("train", "val", "test"):
            loss, accuracy = record[f"{part}_loss"], record[f"{part}_accuracy"]
            parts.append(f"{part} -" if loss is None else f"{part} loss {loss:.4f} accuracy {accuracy:.2%}")
        parts.append(f"lr {record['learning_rate']:g}  {record['samples_per_second']:,.0f} images/s")
        progress.tell("  ".join(parts))

    def result(self, signals: StopSignals) -> Record:
        """Test and write the kept weights; returns the command's result."""
        config, num_epochs = self.trainer.config, len(self.trainer.history)
        if num_epochs < config.epochs:
            epochs = f"{config.patience} epoch{'s' * (config.patience > 1)}"
            print(f"stopped early: no better validation accuracy in {epochs}", flush=True)
        signals.at_once()
        with progress.stages("testing, drawing and storing"):
            return write_outputs(self.trainer, self.run)


def describe(trainer: "Trainer") -> RunRecord:
    """The run's record before its first epoch."""
    config, data = trainer.config, trainer.data
    chosen: dict[str, Any] = {
        name: format_value(getattr(config, name))
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
        # The sizes before the split: MLflow keeps the first run's, and runs split differently.
        dataset={
            "name": data.name,
            "digest": trainer.data_digest,
            "num_train": len(data.train),
            "num_test": len(data.test),
        },
        artifacts=[CONFIG],
    )
