"""Search spaces: TOML files with the values that a sweep tries for fields of TrainConfig.

docs/training.md has an example.
"""

import math
import tomllib
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mlp_dist.config import OPTIONS, TrainConfig, absolute_dataset
from mlp_dist.core.errors import UsageError, unknown
from mlp_dist.recipes import get_recipe

if TYPE_CHECKING:
    from optuna.trial import Trial

FIXED = [name for name, option in OPTIONS.items() if option.changes_training]
"""The fields allowed in [fixed]; locations and names are set by the command."""

SWEPT = [name for name, option in OPTIONS.items() if option.swept]

_NUMBERS = (int, float)
_RANGE_KEYS = ("low", "high", "step", "log")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high` inclusive; with `log`, drawn uniformly on a logarithmic scale."""

    name: str
    low: float
    high: float
    step: float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        name, low, high, step = self.name, self.low, self.high, self.step
        _check(low < high, f"{name}: low is {low}; it must be below high, which is {high}")
        _check(not self.log or low > 0, f"{name}: low is {low}; it must be above 0 if log is true")
        if step is None:
            return
        _check(not self.log, f"{name}: step is {step}; leave it out if log is true")
        _check(step > 0, f"{name}: step is {step}; it must be above 0")
        steps = (high - low) / step
        is_multiple = math.isclose(steps, round(steps), abs_tol=1e-9)
        _check(is_multiple, f"{name}: high is {high}; it must be low plus a whole number of steps of {step}")

    @property
    def extremes(self) -> tuple[Any, ...]:
        return self.low, self.high

    def suggest(self, trial: "Trial") -> float:
        if OPTIONS[self.name].type is int:
            low, high, step = int(self.low), int(self.high), int(self.step or 1)
            return trial.suggest_int(self.name, low, high, step=step, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def value(self, suggested: float) -> float:
        """The value to train with; without a step, rounded to three digits."""
        if OPTIONS[self.name].type is int:
            return int(suggested)
        rounded = float(f"{suggested:.10g}" if self.step else f"{suggested:.3g}")
        return float(min(max(rounded, self.low), self.high))

    def __str__(self) -> str:
        suffix = ", log" if self.log else f" by {self.step:g}" if self.step else ""
        return f"{self.low:g} to {self.high:g}{suffix}"


@dataclass(frozen=True)
class Choices:
    """A list of values, which Optuna sees as text."""

    name: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        texts = self._texts
        _check(len(texts) > 1, f"{self.name} has a single value: put it in [fixed], or list two or more")
        repeated = next((text for text in texts if texts.count(text) > 1), None)
        _check(repeated is None, f"{self.name} lists {repeated} twice: remove one")

    @property
    def _texts(self) -> list[str]:
        return [OPTIONS[self.name].text(value) for value in self.values]

    @property
    def extremes(self) -> tuple[Any, ...]:
        return self.values

    def suggest(self, trial: "Trial") -> str:
        return trial.suggest_categorical(self.name, self._texts)

    def value(self, suggested: str) -> Any:
        return self.values[self._texts.index(suggested)]

    def __str__(self) -> str:
        return " or ".join(self._texts)


Parameter = Range | Choices


@dataclass(frozen=True)
class Space:
    """`base` is the training that all trials share, `parameters` are the fields in which they differ."""

    base: TrainConfig
    parameters: tuple[Parameter, ...]

    def values(self, suggested: dict[str, Any]) -> dict[str, Any]:
        """The fields' values for Optuna's parameters; incomplete if a trial was killed while drawing them."""
        known = [parameter for parameter in self.parameters if parameter.name in suggested]
        return {parameter.name: parameter.value(suggested[parameter.name]) for parameter in known}


def read_space(path: Path) -> Space:
    """Raises UsageError, with the file, the field and the value, if the file is not a search space."""
    try:
        tables = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the search space {path}: {error}") from error
    try:
        return _space(tables)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _space(tables: dict[str, Any]) -> Space:
    for name, table in tables.items():
        _check(name in ("fixed", "space"), unknown("table", name, ("fixed", "space")))
        _check(isinstance(table, dict), f"{name} is {table!r}; it must be a table: [{name}]")
    fixed, varied = tables.get("fixed", {}), tables.get("space", {})
    _check(bool(varied), "[space] is missing; add it with, for example, lr = { low = 0.01, high = 1.0 }")
    both = sorted(set(fixed) & set(varied))
    _check(not both, f"{', '.join(both)} is in [fixed] and in [space]: remove one")
    space = Space(_base(fixed), tuple(_parameter(name, value) for name, value in varied.items()))
    _check_combinations(space)
    return space


def _base(fixed: dict[str, Any]) -> TrainConfig:
    for name in fixed:
        _check(name in FIXED, unknown("field", name, FIXED))
    values = {name: OPTIONS[name].from_json(value) for name, value in fixed.items()}
    if values.get("dataset") == "auto":
        del values["dataset"]
    if "dataset" in values:
        values |= {"dataset": absolute_dataset(values["dataset"]), "fallback_dataset": None}
    base = replace(get_recipe(values.get("recipe", "mnist")), **values)
    _check(base.val_size != 0, "val_size is 0; it must be above 0: trials are ranked by validation accuracy")
    return base


def _parameter(name: str, value: object) -> Parameter:
    is_fixed = name in FIXED and name not in SWEPT
    _check(not is_fixed, f"{name} cannot differ between trials: put it in [fixed]")
    _check(name in SWEPT, unknown("field", name, SWEPT))
    option = OPTIONS[name]
    if isinstance(value, dict):
        return _range(name, value)
    wanted = "[..., ...], or { low = ..., high = ... }" if option.type in _NUMBERS else "[..., ...]"
    _check(isinstance(value, list), f"{name} is {value!r}; it must list the values to try: {wanted}")
    values = tuple(map(option.from_json, cast(list[object], value)))
    for each in values:
        option.check(each)
    return Choices(name, values)


def _range(name: str, value: dict[str, Any]) -> Range:
    _check(
        OPTIONS[name].type in _NUMBERS,
        f"{name} is not a number and has no range: list its values as [..., ...]",
    )
    for key in value:
        _check(key in _RANGE_KEYS, f"{name}: {unknown('key', key, _RANGE_KEYS)}")
    missing = [key for key in ("low", "high") if key not in value]
    _check(not missing, f"{name}: {' and '.join(missing)} is missing")
    for key, each in value.items():
        is_right = type(each) is bool if key == "log" else OPTIONS[name].has_type(each)
        wanted = "true or false" if key == "log" else OPTIONS[name].wanted
        _check(is_right, f"{name}: {key} is {each!r}; it must be {wanted}")
    return Range(name, **value)


def _check_combinations(space: Space) -> None:
    """Raise UsageError if any combination is invalid; TrainConfig's rules relate at most two fields."""
    first = {each.name: each.extremes[0] for each in space.parameters}
    for group in combinations(space.parameters, min(2, len(space.parameters))):
        for values in product(*(each.extremes for each in group)):
            replace(space.base, **first | dict(zip((each.name for each in group), values, strict=True)))


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise UsageError(message)
