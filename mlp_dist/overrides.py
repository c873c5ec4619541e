"""What a training changes of its recipe, and the flags of launch/train.py that change it again."""

from dataclasses import fields
from typing import Any

from mlp_dist.config import TrainConfig
from mlp_dist.recipes import RECIPES, get_recipe
from mlp_dist.typed import as_typed

WHERE = (
    *("data_dir", "output_dir", "experiment", "run_name", "log_every", "checkpoint_every_steps"),
    "fallback_dataset",
)
"""The fields that say where things are and go, and what is told meanwhile: the training is the same."""


def overrides(config: TrainConfig) -> dict[str, Any]:
    """The fields, in TrainConfig's order, in which `config` differs from its recipe; none of WHERE.

    `config` is what was asked for: a Trainer's own has the data set and val_size filled in. One that names
    no known recipe overrides nothing.
    """
    if config.recipe not in RECIPES:
        return {}
    recipe = get_recipe(config.recipe)
    names = [field.name for field in fields(config) if field.name not in WHERE]
    return {name: getattr(config, name) for name in names if getattr(config, name) != getattr(recipe, name)}


def flags(changes: dict[str, Any]) -> list[str]:
    """The words on the command line of launch/train.py that give fields these values.

    Raises ValueError for a value that no flag gives, as None for val_size.
    """
    return [word for name, value in changes.items() for word in _flag(name, value)]


def command(config: TrainConfig) -> list[str]:
    """The words that train `config` again, but for WHERE."""
    words = as_typed("accelerate launch launch/train.py --recipe").split()
    return [*words, config.recipe, *flags(overrides(config))]


def shown(value: object) -> str:
    """A field's value as the command line takes it: widths as 256,64 or none."""
    return ",".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def _flag(name: str, value: object) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if value is True:
        return [flag]
    if name == "normalize" and value is None:
        return [flag, "data"]
    if value is None or value is False:
        raise ValueError(f"no flag of launch/train.py makes {name} {value!r}")
    # A mean below 0 would be taken for a flag.
    return [f"{flag}={shown(value)}"] if shown(value).startswith("-") else [flag, shown(value)]
