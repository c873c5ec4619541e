"""The members of a population: configurations that differ in their seeds, or as a JSON file says.

Such a file is a list of objects, each with the fields that differ from the command line's:
[{"lr": 0.1, "hidden_sizes": [500]}, {"lr": 0.01, "seed": 1}].
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlp_dist.config import TrainConfig, unknown
from mlp_dist.core.errors import UsageError
from mlp_dist.values import field_value

SWEPT = (
    *("seed", "lr", "hidden_sizes", "model", "initialization", "optimizer", "schedule", "warmup_epochs"),
    *("batch_size", "accumulation_steps", "clip_norm", "weight_decay", "label_smoothing", "dropout"),
    *("augment_shift", "deform", "adversarial", "ema_decay", "epochs", "patience"),
)
"""The fields in which members may differ: what is read, and where it goes, is the same for all."""

Changes = dict[str, Any]


def members(config: TrainConfig, number: int | None, sweep: Path | None) -> list[TrainConfig]:
    """`number` times `config` with the seeds from its own on, or one for each object in the file `sweep`.

    Raises UsageError for a file that is no sweep, and where the two numbers differ.
    """
    if number is not None and number < 1:
        raise UsageError(f"population is {number}; it must be 1 or more")
    if sweep is None:
        return [replace(config, seed=config.seed + index) for index in range(number or 1)]
    found = [_member(config, values, f"{sweep}, member {n}") for n, values in enumerate(_read(sweep))]
    if number not in (None, len(found)):
        raise UsageError(f"population is {number}, but {sweep} has {len(found)} members: leave one out")
    return found


def _read(sweep: Path) -> list[Changes]:
    try:
        found = json.loads(sweep.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"the sweep {sweep} cannot be read: {error}") from error
    if not isinstance(found, list) or not found or not all(isinstance(each, dict) for each in found):
        raise UsageError(f'{sweep} is no sweep, which is a list as [{{"lr": 0.1}}, {{"lr": 0.2}}]')
    return found


def _member(config: TrainConfig, values: Changes, where: str) -> TrainConfig:
    for name in values:
        if name not in SWEPT:
            raise UsageError(f"{where}: {unknown('field', name, SWEPT)}")
    try:
        return replace(config, **{name: field_value(name, value) for name, value in values.items()})
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
