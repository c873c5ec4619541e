"""The end of a training: the kept weights tested, the bundle written, and what people compare logged."""

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import mlp_dist
from mlp_dist.core.bundle import load_bundle, save_bundle, to_probabilities
from mlp_dist.core.models import build_model, first_layer
from mlp_dist.core.spec import BundleSpec
from mlp_dist.evaluation import Evaluation, evaluate, predict
from mlp_dist.tracking import BUNDLE, RunTracker

if TYPE_CHECKING:
    from mlp_dist.trainer import Trainer


def finish(trainer: "Trainer", run: RunTracker) -> dict[str, Any]:
    """On the main process, after the last epoch; returns what the command's last line shows."""
    history, kept = trainer.history, trainer.history[trainer.kept]
    model = build_model(trainer.spec).to(trainer.accelerator.device)
    model.load_state_dict(trainer.best)
    logits = predict(model, trainer.test_set, trainer.data.image)
    test = evaluate(logits, trainer.test_set.labels)
    run.log_state_dicts({"best": trainer.best, "last": trainer.module.state_dict()})
    run.log_bundle(_write_bundle(trainer, model.cpu(), test))
    # What makes this a run to choose comes before the pictures, which may fail.
    run.log_summary(
        {
            "best_epoch": kept["epoch"],
            "best_val_accuracy": kept["val_accuracy"],
            "best_val_loss": kept["val_loss"],
            "test_accuracy": test.accuracy,
            "test_loss": test.loss,
        }
    )
    _log_figures(trainer, run, model, logits, test)
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


def _log_figures(
    trainer: "Trainer", run: RunTracker, model: torch.nn.Module, logits: torch.Tensor, test: Evaluation
) -> None:
    from mlp_dist import figures

    data = trainer.data
    answered = (data.test.images, data.test.labels, to_probabilities(logits).cpu(), data.classes)
    run.log_figures(
        {
            "learning_curves": figures.learning_curves(
                trainer.history, trainer.history[trainer.kept]["epoch"]
            ),
            "confusion_matrix": figures.confusion_matrix(test.confusion, data.classes),
            "predictions": figures.predictions_grid(*answered),
            "mistakes": figures.mistakes_grid(*answered),
            "first_layer": figures.first_layer(first_layer(model, trainer.spec), data.image),
        }
    )
