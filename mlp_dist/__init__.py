"""Train multi-layer perceptrons on images with Accelerate, track them in MLflow, serve them with TorchServe.

    from mlp_dist import load_model, train
    train("mnist-quick", lr=0.05)
    load_model("best").predict_proba(["seven.png"])

Every model archive contains this module and every command imports it, so each name below is imported
when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlp_dist.config import TrainConfig
    from mlp_dist.core.bundle import Bundle, count_parameters, load_state_dict, save_state_dict
    from mlp_dist.recipes import get_recipe as recipe
    from mlp_dist.tracking.load import load_model, save_model
    from mlp_dist.training.run import Result, train

__version__ = "0.2.0"

# The commands are in cli/ and are run as `python -m mlp_dist.train`.
__path__.append(f"{__path__[0]}/cli")

_HOMES = {
    "train": "mlp_dist.training.run.train",
    "Result": "mlp_dist.training.run.Result",
    "TrainConfig": "mlp_dist.config.TrainConfig",
    "recipe": "mlp_dist.recipes.get_recipe",
    "load_model": "mlp_dist.tracking.load.load_model",
    "save_model": "mlp_dist.tracking.load.save_model",
    "Bundle": "mlp_dist.core.bundle.Bundle",
    "count_parameters": "mlp_dist.core.bundle.count_parameters",
    "load_state_dict": "mlp_dist.core.bundle.load_state_dict",
    "save_state_dict": "mlp_dist.core.bundle.save_state_dict",
}

__all__ = [
    "Bundle",
    "Result",
    "TrainConfig",
    "count_parameters",
    "load_model",
    "load_state_dict",
    "recipe",
    "save_model",
    "save_state_dict",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        module, _, attribute = _HOMES[name].rpartition(".")
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r} (there are: {', '.join(_HOMES)})")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
