"""After the last epoch: test the kept weights, and write the bundle and the run's results."""

import math
import platform
from typing import Any

import torch

import mlp_dist
from mlp_dist.core.bundle import load_bundle, save_bundle, to_probabilities
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import BundleSpec
from mlp_dist.data.evaluate import model_temperature, predict
from mlp_dist.data.scores import Evaluation, evaluate
from mlp_dist.tracking.run_dir import BUNDLE, RunRecord
from mlp_dist.training.predictions import write_predictions
from mlp_dist.training.state import RunContext, TrainState

_MAX_CLASSES = 100
"""With more classes, per-class metrics would bury the others; the table has them."""


def write_outputs(state: TrainState, context: RunContext, record: RunRecord) -> dict[str, Any]:
    """Runs on the main process; returns the command's result but for the run's id."""
    data, history, best = context.data, state.history, state.history[state.kept]
    model = build_model(context.spec).to(context.device).eval()
    model.load_state_dict(state.best)
    temperature = model_temperature(model, context.val_set, data.image)
    logits = predict(model, context.test_set, data.image).cpu()
    test = evaluate(logits.numpy(), data.test.labels.numpy(), temperature=temperature)
    write_predictions(context.output_dir, model, logits, temperature, data)
    _write_bundle(state, context, model.cpu(), test)
    summary = {
        "best_epoch": best["epoch"],
        "best_val_accuracy": best["val_accuracy"],
        "best_val_loss": best["val_loss"],
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "test_ece": test.ece,
    }
    record.summary = {
        name: value for name, value in summary.items() if value is not None and math.isfinite(value)
    }
    train_seconds = sum(record["train_seconds"] for record in history)
    return {
        "recipe": state.config.recipe,
        "dataset": data.name,
        "num_parameters": state.num_parameters,
        "num_processes": context.world_size,
        "epochs": len(history),
        "best_epoch": best["epoch"],
        "train_loss": best["train_loss"],
        "train_accuracy": best["train_accuracy"],
        "val_accuracy": best["val_accuracy"],
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
        "test_ece": test.ece,
        "test_ece_uncalibrated": test.uncalibrated_ece,
        "temperature": test.temperature,
        "train_seconds": round(train_seconds, 3),
        "samples_per_second": round(len(context.train_set) * len(history) / train_seconds, 1),
        "output_dir": str(context.output_dir),
    }


def _write_bundle(state: TrainState, context: RunContext, model: torch.nn.Module, test: Evaluation) -> None:
    """Write the bundle, read it back, and compare its prediction with the trained model's.

    The upload adds the run's id.
    """
    directory, data = context.output_dir / BUNDLE, context.data
    golden = data.test[:1].images[0]
    probabilities = to_probabilities(predict(model, golden[None], data.image), test.temperature)[0].tolist()
    spec = BundleSpec(
        model=context.spec,
        image=data.image,
        classes=data.classes,
        dataset=data.name,
        recipe=state.config.recipe,
        run_id="",
        metrics={
            "val_accuracy": state.history[state.kept]["val_accuracy"],
            "test_accuracy": test.accuracy,
            "test_loss": test.loss,
            "test_ece": test.ece,
        },
        golden_probabilities=tuple(probabilities),
        weights_sha256="",
        versions={
            "mlp_dist": mlp_dist.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
        },
        temperature=test.temperature,
        preprocess=data.preprocess,
    )
    save_bundle(directory, spec, model.state_dict(), golden)
    load_bundle(directory).check_golden()
