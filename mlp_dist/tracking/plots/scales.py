"""Where values stand on an axis from 0 to 1, and its ticks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlp_dist.tracking.plots.base import MaxNLocator

_MOST_CHOICES, _MOST_TICKS = 8, 12

Places = NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """`places` are float64 (N,), one a value, NaN where there is none; of choices many are the same."""

    places: Places
    ticks: dict[float, str]
    is_choice: bool = False


def scale_of(values: Sequence[Any]) -> Scale:
    """Of numbers a linear or logarithmic scale; of a few that return, and of anything else, choices."""
    numbers = all(is_number(value) for value in values)
    if numbers and not len(values) > len(set(values)) <= _MOST_CHOICES:
        return number_scale(np.array(values, dtype=np.float64))
    return _choices(values)


def number_scale(values: Places) -> Scale:
    """Logarithmic where values are spread over a factor of ten or more, and more densely at its lower end."""
    low, high = np.nanmin(values), np.nanmax(values)
    if low == high:
        return Scale(np.where(np.isnan(values), math.nan, 0.5), {0.5: text_of(low)})
    if low > 0 and high >= 10 * low and np.nanmedian(values) < (low + high) / 4:
        return _placed(values, _round_numbers(low, high), np.log)
    return _placed(values, MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high), np.positive)


def _round_numbers(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade, or its 1 alone where they would be many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    few = (1,) if math.log10(high / low) > 2 else (1, 2, 5)
    return [digit * 10.0**decade for decade in decades for digit in few]


def _placed(values: Places, ticks: Sequence[float] | Places, bent: Callable[[Any], Any]) -> Scale:
    low, high = np.nanmin(values), np.nanmax(values)

    def place(value: Any) -> Any:
        return (bent(value) - bent(low)) / (bent(high) - bent(low))

    # Round as they are, ticks need more digits only where they lie close to each other.
    return Scale(place(values), {float(place(tick)): f"{tick:.6g}" for tick in ticks if low <= tick <= high})


def _choices(values: Sequence[Any]) -> Scale:
    """At equal distances: numbers by their size, then the others by name."""
    keys = [str(value) for value in values]
    distinct = dict(zip(keys, values, strict=True))
    order = sorted(
        distinct, key=lambda key: (0, distinct[key], "") if is_number(distinct[key]) else (1, 0, key)
    )
    place = {key: (number + 0.5) / len(order) for number, key in enumerate(order)}
    every = math.ceil(len(order) / _MOST_TICKS)
    ticks = {place[key]: text_of(distinct[key]) for key in order[::every]}
    return Scale(np.array([place[key] for key in keys]), ticks, is_choice=True)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def text_of(value: Any) -> str:
    """As a flag of the command takes it."""
    if isinstance(value, list | tuple):
        return ",".join(map(text_of, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def objective_scale(values: Places, minimize: bool) -> Scale:
    """As `number_scale`, of values of which some may be NaN; outliers on the worse side stand at its end.

    An outlier is farther from the quartiles than three times their distance (Tukey 1977, "Exploratory Data
    Analysis").
    """
    ended = values[np.isfinite(values)]
    if not len(ended):
        return Scale(values, {})
    first, third = np.quantile(ended, (0.25, 0.75))
    far = 3 * (third - first) or np.inf
    near = ended[(first - far <= ended) & (ended <= third + far)]
    low, high = (ended.min(), near.max()) if minimize else (near.min(), ended.max())
    scale = number_scale(values.clip(low, high))
    if low == ended.min() and high == ended.max():
        return scale
    end, worse = (1.0, f"≥ {text_of(high)}") if minimize else (0.0, f"≤ {text_of(low)}")
    ticks = {place: text for place, text in scale.ticks.items() if abs(place - end) > 0.05}
    return replace(scale, ticks={**ticks, end: worse})
