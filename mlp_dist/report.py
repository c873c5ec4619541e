"""What a training tells as it goes on: lines on stdout and its run in MLflow. On the main process alone."""

from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mlp_dist import pictured, recorder
from mlp_dist.finish import finish
from mlp_dist.processes import StopSignals
from mlp_dist.steps import Record

if TYPE_CHECKING:
    from mlp_dist.trainer import Trainer


class Report:
    """Once `open`, the MLflow run is; it ends as what happens until this is closed says."""

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
        trainer, config = self.trainer, self.trainer.config
        opening = recorder.open_run(config.experiment, config.run_name, trainer.run_id or None)
        self._run = self._closing.enter_context(opening)
        trainer.run_id = self.run.run_id

    def describe(self) -> None:
        """What a kill may have kept from MLflow, and for a new run that is everything."""
        trainer, data = self.trainer, self.trainer.data
        if not self.run.is_described:
            self.run.log_figure("samples", *pictured.first(data.train), data.classes)
            self.run.log_dataset(data.name, trainer.data_digest)
            self.run.log_config(
                trainer.config.to_json(),
                layer_sizes=str(trainer.spec),
                num_parameters=trainer.spec.num_parameters,
                num_processes=trainer.world_size,
                device=trainer.device.type,
                mean=str(data.image.mean),
                std=str(data.image.std),
                kept="best validation accuracy" if len(trainer.val_set) else "last epoch, none was chosen",
            )
        self.run.log_epochs(trainer.history)

    def epoch(self) -> None:
        """The trainer's last epoch."""
        record, config = self.trainer.history[-1], self.trainer.config
        self.run.log_epochs([record])
        told = [f"epoch {record['epoch']}/{config.epochs}"]
        for part in ("train", "val", "test"):
            loss, accuracy = record[f"{part}_loss"], record[f"{part}_accuracy"]
            told.append(f"{part} -" if loss is None else f"{part} loss {loss:.4f} accuracy {accuracy:.2%}")
        told.append(f"lr {record['learning_rate']:g}  {record['samples_per_second']:,.0f} images/s")
        print("  ".join(told), flush=True)

    def finish(self, signals: StopSignals) -> Record:
        """Test and keep the best weights; returns what the command's last line shows."""
        trainer = self.trainer
        if len(trainer.history) < trainer.config.epochs:
            patience = trainer.config.patience
            better = f"no better validation accuracy in {patience} epoch{'s' * (patience > 1)}"
            print(f"stopped early: {better}", flush=True)
        signals.at_once()
        return finish(trainer, self.run)
