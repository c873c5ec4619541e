"""What describes a run: experiment, name, description, params and tags."""

import json
import os
import platform
import shlex
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import mlp_dist
from mlp_dist.config import EXPERIMENTS, OPTIONS, TrainConfig
from mlp_dist.core.errors import UsageError
from mlp_dist.data.batches import usual_val_size
from mlp_dist.recipes import changes
from mlp_dist.tracking.run_dir import RunRecord
from mlp_dist.training.state import RunContext, TrainState

_VERSIONS = ("torch", "accelerate")
_SHOWN_PARAMS = (
    *("recipe", "dataset", "hidden_sizes"),
    *("optimizer", "lr", "schedule", "batch_size", "seed", "dropout", "weight_decay"),
)
_GIT_SECONDS = 5.0


def describe(state: TrainState, context: RunContext) -> RunRecord:
    """The run's record before its first epoch. MLflow's environment variables act as they do elsewhere."""
    config, data, environ = state.config, context.data, os.environ
    given = environ.get("MLFLOW_EXPERIMENT_NAME") or ""
    is_named = config.experiment is not None
    own = f"model={context.spec.kind} " if state.module else ""
    return RunRecord(
        experiment=config.experiment or given or default_experiment(data.name),
        experiment_id="" if is_named or given else environ.get("MLFLOW_EXPERIMENT_ID") or "",
        run_id="" if context.parent is not None else environ.get("MLFLOW_RUN_ID") or "",
        name=config.run_name or f"{own}{run_name(config, len(data.train))}",
        key=state.run_key,
        description=description(state, context),
        parent=None if context.parent is None else str(context.parent.absolute()),
        tags=tags(config, context),
        params=params(state, context),
        # The sizes before the split: MLflow keeps the first run's, and runs split differently.
        dataset={
            "name": data.name,
            "digest": state.data_digest,
            "num_train": len(data.train),
            "num_test": len(data.test),
        },
    )


def params(state: TrainState, context: RunContext) -> dict[str, Any]:
    """What a resumed training cannot change: MLflow keeps the first value of a param.

    Of the options that few trainings set, those at their default are left out.
    """
    shown: dict[str, Any] = {"num_parameters": state.num_parameters}
    for name, option in OPTIONS.items():
        value = getattr(state.config, name)
        is_shown = name in _SHOWN_PARAMS or value != option.default
        if is_shown and option.changes_training and not option.free_on_resume:
            shown[name] = option.text(value)
    if state.module:
        shown = {name: shown[name] for name in shown if name not in ("hidden_sizes", "initialization")}
        shown["model"] = context.spec.kind
    return shown


def default_experiment(dataset: str) -> str:
    """mlp_dist/mnist; mlp_dist/pets for folder:/data/pets. MLflow ranks the runs of one experiment."""
    return f"{EXPERIMENTS}/{Path(dataset.rpartition(':')[2]).name}"


def run_name(config: TrainConfig, num_images: int) -> str:
    """What differs from the recipe, the seed, and the recipe: "lr=0.05 seed=1 · mnist".

    `num_images` is the number of training images before the validation images are held out.
    """
    named = changes(config)
    if config.val_size == usual_val_size(num_images):
        named.pop("val_size", None)
    # folder:pets for folder:/data/pets.
    kind, colon, path = named.pop("dataset", "").rpartition(":")
    dataset = f" on {kind}{colon}{Path(path).name}" if path else ""
    named = {**{name: named[name] for name in named if name != "seed"}, "seed": config.seed}
    changed = " ".join(f"{name}={OPTIONS[name].text(value)}" for name, value in named.items())
    return f"{changed} · {config.recipe}{dataset}"


def description(state: TrainState, context: RunContext) -> str:
    """Markdown, shown by MLflow above a run's metrics."""
    config, data = state.config, context.data
    images = f"{len(context.train_set):,} training, {len(context.val_set):,} validation and "
    return (
        f"A perceptron {context.spec} ({state.num_parameters:,} parameters) on {data.title}: {images}"
        f"{len(context.test_set):,} test images, {len(data.classes)} classes. {config.optimizer} at "
        f"{config.lr:g}, batches of {config.batch_size}, {config.epochs} epochs, {context.workers}.\n\n"
        f"    {shlex.join(context.command)}\n\nFiles: `{context.output_dir}`"
    )


def tags(config: TrainConfig, context: RunContext) -> dict[str, str]:
    """The run's command, machine, versions and git state."""
    return {
        **started_by(context.command),
        **_environment_tags(),
        "epochs": str(config.epochs),
        "device": _device(context.device),
        "num_processes": str(context.world_size),
    }


def _environment_tags() -> dict[str, str]:
    """Those in MLFLOW_TAGS. Raises UsageError if they are not a JSON object."""
    text = os.environ.get("MLFLOW_TAGS") or "{}"
    try:
        return {str(name): str(value) for name, value in dict(json.loads(text)).items()}
    except (ValueError, TypeError) as error:
        raise UsageError(f"MLFLOW_TAGS is {text!r}; it must be a JSON object of tags") from error


def started_by(words: Sequence[str]) -> dict[str, str]:
    """Tags of a run started by the command line `words`; MLflow's page shows those named mlflow.*."""
    commit, dirty = git_state(Path(mlp_dist.__file__).parent)
    found = {
        "mlflow.source.name": shlex.join(words),
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "mlp_dist": mlp_dist.__version__,
        **{name: version(name) for name in _VERSIONS},
    }
    if commit:
        found |= {"mlflow.source.git.commit": commit, "git.dirty": str(dirty).lower()}
    return found


def git_state(directory: Path) -> tuple[str, bool]:
    """The commit of the directory's repository, and whether tracked files differ from it.

    ("", False) outside a repository, or without git.
    """
    try:
        commit = _git(directory, "rev-parse", "HEAD")
        return commit, bool(_git(directory, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return "", False


def _git(directory: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(directory), *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=_GIT_SECONDS,
        # Do not lock or write the index of a repository in use.
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
    )
    return done.stdout.strip()


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    # In a container, the user may have an ID without a name.
    except (KeyError, OSError):
        return str(os.getuid())


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
