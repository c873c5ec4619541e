"""The end of a training: the kept weights tested, the bundle written, and what people compare logged."""

import platform
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import mlp_dist
from mlp_dist import pictured
from mlp_dist.checkpoint import cpu_copy
from mlp_dist.core.bundle import load_bundle, save_bundle, to_probabilities
from mlp_dist.core.models import build_model, first_layer
from mlp_dist.core.spec import BundleSpec
from mlp_dist.evaluation import Evaluation, evaluate, predict
from mlp_dist.recorder import RunTracker
from mlp_dist.tracking.client import BUNDLE

if TYPE_CHECKING:
    from mlp_dist.trainer import Trainer


def finish(trainer: "Trainer", run: RunTracker) -> dict[str, Any]:
    """On the main process, after the last epoch; returns what the command's last line shows."""
    history, kept = trainer.history, trainer.history[trainer.kept]
    model = build_model(trainer.spec).to(trainer.accelerator.device)
    model.load_state_dict(trainer.best)
    data = trainer.data
    # What is drawn first is drawn while the test images are predicted.
    run.log_figure("learning_curves", history, kept["epoch"])
    run.log_figure("first_layer", *pictured.largest_units(first_layer(model, trainer.spec)), data.image)
    logits = predict(model, trainer.test_set, data.image)
    test = evaluate(logits, trainer.test_set.labels)
    probabilities = to_probabilities(logits)
    run.log_figure("confusion_matrix", pictured.array(test.confusion), data.classes)
    run.log_figure("predictions", *pictured.first(data.test, probabilities), data.classes)
    run.log_figure("mistakes", *pictured.mistakes(data.test, probabilities), data.classes)
    with tempfile.TemporaryDirectory() as name:
        run.log_checkpoint(_write_weights(trainer, Path(name)))
        run.log_bundle(_write_bundle(trainer, model.cpu(), test))
        run.log_summary(
            {
                "best_epoch": kept["epoch"],
                "best_val_accuracy": kept["val_accuracy"],
                "best_val_loss": kept["val_loss"],
                "test_accuracy": test.accuracy,
                "test_loss": test.loss,
            }
        )
        run.wait()
    train_seconds = sum(record["train_seconds"] for record in history)
    return {
        "run_id": trainer.run_id,
        "recipe": trainer.config.recipe,
        "dataset": trainer.data.name,
        "num_parameters": trainer.spec.num_parameters,
        "num_processes": trainer.world_size,
        "epochs": len(history),
        "best_epoch": kept["epoch"],
        "train_loss": kept["train_loss"],
        "train_accuracy": kept["train_accuracy"],
        "val_accuracy": kept["val_accuracy"],
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
        "train_seconds": round(train_seconds, 3),
        "samples_per_second": round(len(trainer.train_set) * len(history) / train_seconds, 1),
        "output_dir": str(trainer.output_dir),
    }


def _write_weights(trainer: "Trainer", directory: Path) -> Path:
    """As `mlflow.pytorch.log_state_dict` writes them."""
    for name, state_dict in (("best", trainer.best), ("last", trainer.module.state_dict())):
        (directory / name).mkdir()
        torch.save(cpu_copy(state_dict), directory / name / "state_dict.pth")
    return directory


def _write_bundle(trainer: "Trainer", model: torch.nn.Module, test: Evaluation) -> Path:
    """Write the bundle and read it back: what it answers must be what the trained model answers."""
    directory, data = trainer.output_dir / BUNDLE, trainer.data
    golden = data.test[:1].images[0]
    probabilities = to_probabilities(predict(model, golden[None], data.image))[0].tolist()
    spec = BundleSpec(
        model=trainer.spec,
        image=data.image,
        classes=data.classes,
        dataset=data.name,
        recipe=trainer.config.recipe,
        run_id=trainer.run_id,
        metrics={
            "val_accuracy": trainer.history[trainer.kept]["val_accuracy"],
            "test_accuracy": test.accuracy,
            "test_loss": test.loss,
        },
        golden_probabilities=tuple(probabilities),
        weights_sha256="",
        versions={
            "mlp_dist": mlp_dist.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
        },
    )
    save_bundle(directory, spec, model.state_dict(), golden)
    load_bundle(directory).check_golden()
    return directory
