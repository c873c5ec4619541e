"""Search spaces: TOML files with the values that a sweep tries for fields of TrainConfig.

docs/training.md has an example.
"""

import math
import tomllib
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from mlp_dist.config import OPTIONS, TrainConfig, absolute_dataset
from mlp_dist.console.options import Option
from mlp_dist.core.errors import UsageError, unknown
from mlp_dist.recipes import get_recipe

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution

FIXED = [name for name, option in OPTIONS.items() if option.changes_training]
"""The fields allowed in [fixed]; locations and names are set by the command."""

SWEPT = [name for name, option in OPTIONS.items() if option.swept]

_NUMBERS = (int, float)
_RANGE = ("low", "high", "step", "log")


@dataclass(frozen=True)
class Space:
    """`base` is the training that all trials share, `distributions` are those of the fields in which they
    differ. Of a list of values, Optuna sees the texts.
    """

    base: TrainConfig
    distributions: dict[str, Distribution]

    def values(self, params: dict[str, Any]) -> dict[str, Any]:
        """The fields for Optuna's `params`; numbers without a step are rounded to three digits."""
        found = {}
        for name, param in params.items():
            distribution = self.distributions[name]
            if isinstance(distribution, CategoricalDistribution):
                param = OPTIONS[name].read(param)
            elif isinstance(distribution, FloatDistribution):
                rounded = float(f"{param:.{10 if distribution.step else 3}g}")
                param = min(max(rounded, distribution.low), distribution.high)
            found[name] = param
        return found

    def check(self) -> None:
        """Raise UsageError if TrainConfig, whose rules relate at most two fields, refuses a combination."""
        extremes = {
            name: each.choices if isinstance(each, CategoricalDistribution) else (each.low, each.high)
            for name, each in self.distributions.items()
        }
        first = {name: params[0] for name, params in extremes.items()}
        for names in combinations(extremes, min(2, len(extremes))):
            for params in product(*(extremes[name] for name in names)):
                replace(self.base, **self.values(first | dict(zip(names, params, strict=True))))


def in_words(distribution: Distribution) -> str:
    """Such as "0.01 to 1, log" or "sgd or adam"."""
    if isinstance(distribution, CategoricalDistribution):
        return " or ".join(map(str, distribution.choices))
    step = f" by {distribution.step:g}" if distribution.step else ""
    return f"{distribution.low:g} to {distribution.high:g}{', log' if distribution.log else step}"


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
    space = Space(_base(fixed), {name: _distribution(name, given) for name, given in varied.items()})
    space.check()
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


def _distribution(name: str, given: Any) -> Distribution:
    is_fixed = name in FIXED and name not in SWEPT
    _check(not is_fixed, f"{name} cannot differ between trials: put it in [fixed]")
    _check(name in SWEPT, unknown("field", name, SWEPT))
    option = OPTIONS[name]
    if isinstance(given, dict):
        return _range(option, given)
    wanted = "[..., ...], or { low = ..., high = ... }" if option.type in _NUMBERS else "[..., ...]"
    _check(isinstance(given, list), f"{name} is {given!r}; it must list the values to try: {wanted}")
    values = [option.from_json(each) for each in given]
    for value in values:
        option.check(value)
    texts = [option.text(value) for value in values]
    _check(len(texts) > 1, f"{name} has a single value: put it in [fixed], or list two or more")
    for text in texts:
        _check(texts.count(text) == 1, f"{name} lists {text} twice: remove one")
    return CategoricalDistribution(texts)


def _range(option: Option, given: dict[str, Any]) -> Distribution:
    name = option.name
    is_number = option.type in _NUMBERS
    _check(is_number, f"{name} is not a number and has no range: list its values as [..., ...]")
    for key, value in given.items():
        _check(key in _RANGE, f"{name}: {unknown('key', key, _RANGE)}")
        wanted = "true or false" if key == "log" else option.wanted
        holds = isinstance(value, bool) if key == "log" else option.has_type(value)
        _check(holds, f"{name}: {key} is {value!r}; it must be {wanted}")
    missing = " and ".join(key for key in ("low", "high") if key not in given)
    _check(not missing, f"{name}: {missing} is missing")
    low, high, step, log = given["low"], given["high"], given.get("step"), given.get("log")
    _check(low < high, f"{name}: low is {low}; it must be below high, which is {high}")
    _check(not log or low > 0, f"{name}: low is {low}; it must be above 0 if log is true")
    if step is not None:
        _check(not log, f"{name}: step is {step}; leave it out if log is true")
        _check(step > 0, f"{name}: step is {step}; it must be above 0")
        steps = (high - low) / step
        holds = math.isclose(steps, round(steps), abs_tol=1e-9)
        _check(holds, f"{name}: high is {high}; it must be low plus a whole number of steps of {step}")
    return IntDistribution(**given) if option.type is int else FloatDistribution(**given)


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise UsageError(message)
