"""Run name, description, tags and git state."""

import os
import platform
import shlex
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

import mlp_dist
from mlp_dist.config import OPTIONS, TrainConfig
from mlp_dist.console.process import launch_command
from mlp_dist.data.batches import usual_val_size
from mlp_dist.recipes import changes, training_command
from mlp_dist.training.state import RunContext, TrainState

_VERSIONS = ("torch", "accelerate")
_GIT_SECONDS = 5.0


def run_name(config: TrainConfig, num_images: int) -> str:
    """The recipe, what differs from it, and the seed: "mnist lr=0.05 seed=1".

    `num_images` is the number of training images before the validation images are held out.
    """
    named = changes(config)
    if config.val_size == usual_val_size(num_images):
        named.pop("val_size", None)
    if "dataset" in named:
        # folder:pets for folder:/data/pets.
        kind, colon, path = config.dataset.rpartition(":")
        named["dataset"] = f"{kind}{colon}{Path(path).name}"
    named = {**named, "seed": config.seed}
    return " ".join([config.recipe, *(f"{name}={OPTIONS[name].text(named[name])}" for name in named)])


def description(state: TrainState, context: RunContext) -> str:
    """Markdown, shown by MLflow above a run's metrics."""
    config, data = state.config, context.data
    images = f"{len(context.train_set):,} training, {len(context.val_set):,} validation and "
    return (
        f"A perceptron {context.spec} ({state.num_parameters:,} parameters) on {data.title}: {images}"
        f"{len(context.test_set):,} test images, {len(data.classes)} classes. {config.optimizer} at "
        f"{config.lr:g}, batches of {config.batch_size}, {config.epochs} epochs, {context.workers}.\n\n"
        f"    {shlex.join(command(config, context))}\n\nFiles: `{context.output_dir}`"
    )


def command(config: TrainConfig, context: RunContext) -> list[str]:
    """The command line that started this training, or that repeats it, if it is one of a sweep."""
    if context.parent is not None:
        return training_command(config, "experiment")
    return [*launch_command().split(), *sys.argv[1:]]


def tags(config: TrainConfig, context: RunContext) -> dict[str, str]:
    """The run's command, machine, versions and git state."""
    return {
        **started_by(command(config, context)),
        "recipe": config.recipe,
        "device": _device(context.device),
        "num_processes": str(context.world_size),
    }


def started_by(words: list[str]) -> dict[str, str]:
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
    return _processor() or platform.machine()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
