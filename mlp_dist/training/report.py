"""What a training reports on the main process: lines on stdout, and its run's record."""

from contextlib import ExitStack
from typing import Any

from mlp_dist.config import OPTIONS
from mlp_dist.console import progress
from mlp_dist.console.process import StopSignals
from mlp_dist.core.errors import TrackingError
from mlp_dist.tracking.run_dir import CONFIG, FIGURES, RunRecord, write_json
from mlp_dist.training import identity, recorder
from mlp_dist.training.directories import release
from mlp_dist.training.outputs import write_outputs
from mlp_dist.training.predictions import write_samples
from mlp_dist.training.state import Record, RunContext, TrainState


class Report(ExitStack):
    """As a context manager, it ends the run, as failed or killed after an exception, and its lock."""

    run: recorder.RunTracker

    def __init__(self, state: TrainState, context: RunContext) -> None:
        super().__init__()
        self.state, self.context = state, context

    def open(self) -> None:
        """Start a run, or reopen the run that is resumed."""
        data, directory = self.context.data, self.context.output_dir
        self.callback(release, directory)
        record, is_new = self._record()
        self.run = self.enter_context(recorder.open_run(directory, record))
        if is_new:
            write_samples(directory, data.train, data.classes)
            record.add(FIGURES)
            self.run.changed()

    def _record(self) -> tuple[RunRecord, bool]:
        """The run's record, and whether it is new."""
        directory = self.context.output_dir
        try:
            found = RunRecord.load(directory)
        except TrackingError:
            found = None
        now = describe(self.state, self.context)
        write_json(directory / CONFIG, self.state.config.to_json())
        if found is not None and found.key == self.state.run_key:
            found.open()
            # More epochs or other hardware change these.
            found.name, found.description, found.tags = now.name, now.description, found.tags | now.tags
            found.params |= now.params
            return found, False
        return now, True

    def epoch(self) -> None:
        """Report the last epoch."""
        record, config = self.state.history[-1], self.state.config
        self.run.changed()
        parts = [f"epoch {record['epoch']}/{config.epochs}"]
        for part in ("train", "val", "test"):
            loss, accuracy = record[f"{part}_loss"], record[f"{part}_accuracy"]
            parts.append(f"{part} -" if loss is None else f"{part} loss {loss:.4f} accuracy {accuracy:.2%}")
        parts.append(f"lr {record['learning_rate']:g}  {record['samples_per_second']:,.0f} images/s")
        progress.tell("  ".join(parts))

    def result(self, signals: StopSignals) -> Record:
        """Test and write the kept weights; returns the command's result."""
        config, num_epochs = self.state.config, len(self.state.history)
        if num_epochs < config.epochs:
            epochs = f"{config.patience} epoch{'s' * (config.patience > 1)}"
            print(f"stopped early: no better validation accuracy in {epochs}", flush=True)
        signals.at_once()
        with progress.stages("testing, drawing and storing"):
            return write_outputs(self.state, self.context, self.run)


def describe(state: TrainState, context: RunContext) -> RunRecord:
    """The run's record before its first epoch."""
    config, data = state.config, context.data
    chosen: dict[str, Any] = {
        name: option.text(value)
        for name, option in OPTIONS.items()
        if option.changes_training and (value := getattr(config, name)) is not None
    }
    return RunRecord(
        experiment=config.experiment,
        name=config.run_name or identity.run_name(config, len(data.train)),
        key=state.run_key,
        description=identity.description(state, context),
        parent=None if context.parent is None else str(context.parent.absolute()),
        tags=identity.tags(config, context),
        params={
            **chosen,
            "layer_sizes": str(context.spec),
            "num_parameters": state.num_parameters,
            "num_processes": context.world_size,
            "device": context.device.type,
            "mean": str(data.image.mean),
            "std": str(data.image.std),
            "num_train": len(context.train_set),
            "num_val": len(context.val_set),
            "num_test": len(context.test_set),
            "kept": "best validation accuracy" if len(context.val_set) else "last epoch, none was chosen",
        },
        # The sizes before the split: MLflow keeps the first run's, and runs split differently.
        dataset={
            "name": data.name,
            "digest": state.data_digest,
            "num_train": len(data.train),
            "num_test": len(data.test),
        },
        artifacts=[CONFIG],
    )
