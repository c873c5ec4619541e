"""After the last epoch: test the kept weights, write the bundle, and record the run's results."""

import math
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import mlp_dist
from mlp_dist.core.bundle import load_bundle, save_bundle, to_probabilities
from mlp_dist.core.io import replacing_file
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import BundleSpec
from mlp_dist.data.evaluate import model_temperature, predict
from mlp_dist.data.scores import Evaluation, evaluate
from mlp_dist.tracking.run_dir import BUNDLE, CHECKPOINTS, FIGURES, TABLES
from mlp_dist.training.checkpoint import StateDict, cpu_copy
from mlp_dist.training.predictions import write_predictions
from mlp_dist.training.recorder import RunTracker
from mlp_dist.training.state import Record, RunContext, TrainState

_MAX_CLASSES = 100
"""With more classes, per-class metrics would bury the others; the table has them."""


def write_outputs(state: TrainState, context: RunContext, run: RunTracker) -> dict[str, Any]:
    """Runs on the main process; returns the command's result."""
    data, history, best = context.data, state.history, state.history[state.kept]
    model = build_model(context.spec).to(context.device).eval()
    model.load_state_dict(state.best)
    temperature = model_temperature(model, context.val_set, data.image)
    logits = predict(model, context.test_set, data.image).cpu()
    test = evaluate(logits.numpy(), data.test.labels.numpy(), temperature=temperature)
    write_predictions(context.output_dir, model, logits, temperature, data)
    run.record.add(FIGURES, *TABLES)
    run.changed()
    for name, state_dict in (("best", state.best), ("last", state.model.state_dict())):
        run.record.add(_write_weights(context.output_dir, name, state_dict))
    run_id = run.run_id()
    _write_bundle(state, context, model.cpu(), test, run_id)
    run.record.add(BUNDLE)
    run.record.models = [{"name": "best", "epoch": best["epoch"], "files": BUNDLE}]
    if best["epoch"] < len(history):
        run.record.models += [{"name": "last", "epoch": len(history), "files": f"{CHECKPOINTS}/last"}]
    run.record.summary = _summary(best, data.classes, test)
    train_seconds = sum(record["train_seconds"] for record in history)
    return {
        "run_id": run_id,
        "recipe": state.config.recipe,
        "dataset": data.name,
        "num_parameters": state.num_parameters,
        "num_processes": context.world_size,
        "epochs": len(history),
        "best_epoch": best["epoch"],
        "train_loss": best["train_loss"],
        "train_accuracy": best["train_accuracy"],
        "val_accuracy": best["val_accuracy"],
        **_test_metrics(test),
        "train_seconds": round(train_seconds, 3),
        "samples_per_second": round(len(context.train_set) * len(history) / train_seconds, 1),
        "output_dir": str(context.output_dir),
    }


def _test_metrics(test: Evaluation) -> dict[str, Any]:
    return {
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
        "test_ece": test.ece,
        "test_ece_uncalibrated": test.uncalibrated_ece,
        "temperature": test.temperature,
    }


def _summary(best: Record, classes: Sequence[str], test: Evaluation) -> dict[str, float]:
    """The metrics that runs are compared by."""
    summary = {
        "best_epoch": best["epoch"],
        "best_val_accuracy": best["val_accuracy"],
        "best_val_loss": best["val_loss"],
        **_test_metrics(test),
    }
    if len(classes) <= _MAX_CLASSES:
        names = (f"test_class_accuracy/{name}" for name in metric_names(classes))
        summary |= zip(names, test.class_accuracy, strict=True)
    return {name: value for name, value in summary.items() if value is not None and math.isfinite(value)}


def metric_names(classes: Sequence[str]) -> list[str]:
    """The class names, with characters replaced that MLflow refuses in metric names.

    Names that become equal, or "." or "..", are made unique and valid.
    """
    names = [re.sub(r"[^\w\-. :]", "_", name) for name in classes]
    names = [name if name.strip(".") else "_" for name in names]
    return [name if names.count(name) == 1 else f"{name} {number}" for number, name in enumerate(names)]


def _write_weights(directory: Path, name: str, state_dict: StateDict) -> str:
    """Write them as `mlflow.pytorch.log_state_dict` does; returns the directory's name."""
    with replacing_file(directory / CHECKPOINTS / name / "state_dict.pth") as path:
        torch.save(cpu_copy(state_dict), path)
    return f"{CHECKPOINTS}/{name}"


def _write_bundle(
    state: TrainState, context: RunContext, model: torch.nn.Module, test: Evaluation, run_id: str | None
) -> None:
    """Write the bundle, read it back, and compare its prediction with the trained model's."""
    directory, data = context.output_dir / BUNDLE, context.data
    golden = data.test[:1].images[0]
    probabilities = to_probabilities(predict(model, golden[None], data.image), test.temperature)[0].tolist()
    spec = BundleSpec(
        model=context.spec,
        image=data.image,
        classes=data.classes,
        dataset=data.name,
        recipe=state.config.recipe,
        run_id=run_id or "",
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
