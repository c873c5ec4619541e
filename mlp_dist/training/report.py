"""What a training reports on the main process: lines on stdout, and its run's files."""

from contextlib import ExitStack

from mlp_dist.console import progress
from mlp_dist.console.process import StopSignals
from mlp_dist.core.errors import TrackingError
from mlp_dist.tracking.follow import Follower, followed
from mlp_dist.tracking.run_dir import CONFIG, RunRecord, Uploaded, write_json
from mlp_dist.training.directories import release
from mlp_dist.training.identity import describe
from mlp_dist.training.outputs import write_outputs
from mlp_dist.training.predictions import write_samples
from mlp_dist.training.state import Record, RunContext, TrainState


class Report(ExitStack):
    """As a context manager, it ends the run, as failed or killed after an exception, and its lock.

    `follower` brings MLflow up to date; without one, a new one is started, or, for a nested run, none.
    """

    record: RunRecord

    def __init__(self, state: TrainState, context: RunContext, follower: Follower | None = None) -> None:
        super().__init__()
        self.state, self.context, self.follower = state, context, follower

    def open(self) -> None:
        """Start a run, or reopen the run that is resumed."""
        directory = self.context.output_dir
        self.callback(release, directory)
        self.record, is_new = self._record()
        write_json(directory / CONFIG, self.state.config.to_json())
        if is_new:
            data = self.context.data
            write_samples(directory, data.train, data.classes)
        # After a restart, the run may be in another directory.
        if self.follower is not None and self.follower.directory != directory:
            self.follower.stop()
            self.follower = None
        # The sweep's own follows nested runs.
        if self.follower is None and self.context.parent is None:
            self.follower = Follower(directory)
        self.enter_context(followed(directory, self.record, self.follower))

    def _record(self) -> tuple[RunRecord, bool]:
        """The run's record, and whether it is new."""
        now = describe(self.state, self.context)
        try:
            found = RunRecord.load(self.context.output_dir)
        except TrackingError:
            return now, True
        if found.key != now.key:
            return now, True
        found.open()
        # More epochs or other hardware change these.
        found.name, found.description, found.tags = now.name, now.description, found.tags | now.tags
        return found, False

    def epoch(self) -> None:
        """Report the last epoch."""
        record, config = self.state.history[-1], self.state.config
        parts = [f"epoch {record['epoch']}/{config.epochs}"]
        for part in ("train", "val", "test"):
            loss, accuracy = record[f"{part}_loss"], record[f"{part}_accuracy"]
            parts.append(f"{part} -" if loss is None else f"{part} loss {loss:.4f} accuracy {accuracy:.2%}")
        parts.append(f"lr {record['learning_rate']:g}  {record['samples_per_second']:,.0f} images/s")
        progress.tell("  ".join(parts))

    def result(self, signals: StopSignals) -> Record:
        """Test and write the kept weights; returns the command's result but for the run's id."""
        config, num_epochs = self.state.config, len(self.state.history)
        if num_epochs < config.epochs:
            epochs = f"{config.patience} epoch{'s' * (config.patience > 1)}"
            print(f"stopped early: no better validation accuracy in {epochs}", flush=True)
        signals.at_once()
        with progress.stages("testing and storing"):
            return write_outputs(self.state, self.context, self.record)

    def run_id(self) -> str | None:
        """The run's id in MLflow, once the run has ended; None if MLflow could not be reached."""
        found = Uploaded.load(self.context.output_dir)
        return found.run_id if found.key == self.record.key else None
