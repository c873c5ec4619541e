"""A search space: a TOML file that says which fields of TrainConfig a sweep tries which values of.

[fixed]
recipe = "mnist"
epochs = 10

[space]
lr = { low = 0.01, high = 1.0, log = true }    # any number between
batch_size = { low = 50, high = 200, step = 50 }
hidden_sizes = [[256], [500], [256, 64]]    # one of these
"""

import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mlp_dist.config import SWEPT, WHERE, TrainConfig, absolute_dataset, field_value, is_number, is_whole
from mlp_dist.core.errors import UsageError, unknown
from mlp_dist.recipes import get_recipe, shown

if TYPE_CHECKING:
    from optuna.trial import Trial

FIXED = tuple(field.name for field in fields(TrainConfig) if field.name not in WHERE)
"""The fields that [fixed] may give: where things go is the command's to say."""

_RANGE = ("low", "high", "step", "log")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both among them, in steps where there is a `step`.

    Drawn alike from each part of it, or where it is `log` from each power of ten.
    """

    name: str
    low: float
    high: float
    step: float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        low, high, step = self.low, self.high, self.step
        self._check(low < high, f"low is {low}; it must be below high, which is {high}")
        self._check(not self.log or low > 0, f"low is {low}; it must be above 0 where log is true")
        if step is not None:
            self._check(not self.log, f"step is {step}; it must be left out where log is true")
            self._check(step > 0, f"step is {step}; it must be above 0")
            number = (high - low) / step
            last = low + max(1, math.floor(number + 1e-9)) * step
            fits = math.isclose(number, round(number), abs_tol=1e-9)
            self._check(fits, f"high is {high}; it must be low and a whole number of steps, as {last:.10g}")

    def _check(self, holds: bool, message: str) -> None:
        _check(holds, f"{self.name}: {message}")

    @property
    def extremes(self) -> tuple[Any, ...]:
        return self.low, self.high

    def suggest(self, trial: "Trial") -> float:
        if is_whole(self.name):
            low, high, step = int(self.low), int(self.high), int(self.step or 1)
            return trial.suggest_int(self.name, low, high, step=step, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def value(self, suggested: float) -> float:
        """What is trained with: three digits of a number, as a person would write it."""
        if is_whole(self.name):
            return int(suggested)
        rounded = float(f"{suggested:.10g}" if self.step else f"{suggested:.3g}")
        return float(min(max(rounded, self.low), self.high))

    def __str__(self) -> str:
        how = ", log" if self.log else f" by {self.step:g}" if self.step else ""
        return f"{self.low:g} to {self.high:g}{how}"


@dataclass(frozen=True)
class Choices:
    """One of several values."""

    name: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        texts = [shown(value) for value in self.values]
        _check(
            len(texts) > 1, f"{self.name}: a choice is of two values or more; a single one stands in [fixed]"
        )
        twice = next((text for text in texts if texts.count(text) > 1), None)
        _check(twice is None, f"{self.name}: {twice} stands there twice: leave one out")

    @property
    def extremes(self) -> tuple[Any, ...]:
        return self.values

    def suggest(self, trial: "Trial") -> str:
        return trial.suggest_categorical(self.name, [shown(value) for value in self.values])

    def value(self, suggested: str) -> Any:
        return next(value for value in self.values if shown(value) == suggested)

    def __str__(self) -> str:
        return " or ".join(map(shown, self.values))


Parameter = Range | Choices


@dataclass(frozen=True)
class Space:
    """`base` is the training that all trials have in common, `parameters` what they differ in."""

    base: TrainConfig
    parameters: tuple[Parameter, ...]

    def values(self, suggested: dict[str, Any]) -> dict[str, Any]:
        """The fields' values, of a trial's parameters as Optuna keeps them. Some may be missing: a trial may
        have been killed while it drew them."""
        return {
            each.name: each.value(suggested[each.name]) for each in self.parameters if each.name in suggested
        }


# Reading one


def read_space(path: Path) -> Space:
    """Raises UsageError, which names the file, the field, the value and what to do, for what is no space."""
    try:
        tables = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"the search space {path} cannot be read: {error}") from error
    try:
        return _space(tables)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _space(tables: dict[str, Any]) -> Space:
    for name, table in tables.items():
        _check(name in ("fixed", "space"), unknown("table", name, ("fixed", "space")))
        _check(isinstance(table, dict), f"{name} is {table!r}; it must be a table: [{name}]")
    fixed, varied = tables.get("fixed", {}), tables.get("space", {})
    _check(bool(varied), "there is no [space] in it, as lr = { low = 0.01, high = 1.0, log = true }")
    both = sorted(set(fixed) & set(varied))
    _check(not both, f"{', '.join(both)} stands in [fixed] and in [space]: leave one out")
    try:
        base = _base(fixed)
    except UsageError as error:
        raise UsageError(f"[fixed] {error}") from error
    try:
        space = Space(base, tuple(_parameter(name, value) for name, value in varied.items()))
        _check_all(space)
    except UsageError as error:
        raise UsageError(f"[space] {error}") from error
    return space


def _base(fixed: dict[str, Any]) -> TrainConfig:
    for name in fixed:
        _check(name in FIXED, unknown("field", name, FIXED))
    values = {name: field_value(name, value) for name, value in fixed.items()}
    if values.get("dataset") == "auto":
        del values["dataset"]
    if "dataset" in values:
        values |= {"dataset": absolute_dataset(values["dataset"]), "fallback_dataset": None}
    base = replace(get_recipe(values.get("recipe", "mnist")), **values)
    _check(
        base.val_size != 0,
        "val_size is 0; it must be above 0, as 5000: trials are compared by their validation accuracy",
    )
    return base


def _parameter(name: str, value: object) -> Parameter:
    fixed = name in FIXED and name not in SWEPT
    _check(not fixed, f"{name} cannot differ between trials: put it in [fixed]")
    _check(name in SWEPT, unknown("field", name, SWEPT))
    if isinstance(value, dict):
        return _range(name, value)
    wanted = "[..., ...], or { low = ..., high = ... }" if is_number(name) else "[..., ...]"
    _check(isinstance(value, list), f"{name} is {value!r}; it must be the values to try, as {wanted}")
    return Choices(name, tuple(field_value(name, each) for each in cast(list[object], value)))


def _range(name: str, value: dict[str, Any]) -> Range:
    _check(is_number(name), f"{name} has no range, as only numbers have: give its values as [..., ...]")
    for key in value:
        _check(key in _RANGE, f"{name}: {unknown('key', key, _RANGE)}")
    missing = [key for key in ("low", "high") if key not in value]
    _check(not missing, f"{name}: {' and '.join(missing)} is missing")
    log, numbers = value.get("log", False), {key: each for key, each in value.items() if key != "log"}
    _check(type(log) is bool, f"{name}: log is {log!r}; it must be true or false")
    return Range(name, log=log, **{key: field_value(name, each) for key, each in numbers.items()})


def _check_all(space: Space) -> None:
    """Whatever the space can give is a training. No rule of TrainConfig joins more than two of its fields."""
    first = {each.name: each.extremes[0] for each in space.parameters}
    pairs: Iterable[tuple[Parameter, ...]] = combinations(space.parameters, min(2, len(space.parameters)))
    for pair in pairs:
        for values in product(*(each.extremes for each in pair)):
            given = dict(zip((each.name for each in pair), values, strict=True))
            replace(space.base, **first | given)


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise UsageError(message)
