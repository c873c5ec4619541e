"""Paper without the lines that it is ruled with: straight, thin, and from border to border."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlp_dist.core.digits.paper import Floats, along

Integers = npt.NDArray[np.intp]

_SMALLEST = 40
"""The shorter side of pictures whose lines can be told from strokes, in pixels."""

_THICK = 0.008
"""Half of what a line is thick at most, in the picture's longer side."""

_STROKE = 0.2
"""Half of what a stroke that hides a part of a line is wide at most, in the same."""

_END = 0.03
"""Of a line, what is looked at to find where it meets the border."""

_STEEPEST = 0.06
"""How far a line rises or falls over its length, in that."""

_SHORTEST = 0.05
"""The least of a line that is within the picture."""

_SEEN = 0.9
"""The least of a line that is seen, or is under ink."""

_LEAST, _LEAST_DEVIATIONS = 4.0, 3.0
"""By so many gray levels, and so many times what its surroundings deviate, a line stands out."""

_FEWEST = 2
"""So many lines are alike: one may be the digit's, and another across it, as of a four."""


def without_lines(image: Image.Image) -> Image.Image | None:
    """A picture in mode L, of light ink, without its lines; None where it has none."""
    rows = _Ruled.of(np.asarray(image, np.float32))
    columns = _Ruled.of(rows.plain().T)
    if max(len(rows.lines), len(columns.lines)) < _FEWEST:
        return None
    return Image.fromarray(columns.plain().T.astype(np.uint8))


@dataclass(frozen=True)
class _Ruled:
    """A picture (H, W), and what of it is left without what is thin from top to bottom."""

    gray: Floats
    down: Floats
    lines: list[Integers]
    """The rows (W,) of each; where it has left the picture, they are none of its."""

    @classmethod
    def of(cls, gray: Floats) -> Self:
        reach = _reach(gray)
        end = max(1, round(_END * gray.shape[1]))
        left, right = (_bumps(gray[:, part].mean(1), reach) for part in (np.s_[:end], np.s_[-end:]))
        # From the middle of one end to that of the other.
        length = gray.shape[1] - end
        slopes = [(first, (last - first) / max(length, 1)) for first in left for last in right]
        slopes = [(first, slope) for first, slope in slopes if abs(slope) <= _STEEPEST]
        if min(gray.shape) < _SMALLEST or not slopes:
            return cls(gray, gray, [])
        down = _without(gray, reach)
        is_line = partial(_is_line, _thin(gray, down), _thick(down))
        x = np.arange(gray.shape[1]) - (end - 1) / 2
        lines = list(filter(is_line, (_rows(first, slope, x) for first, slope in slopes)))
        if lines:
            # Others, as steep, begin or end at the border above or below.
            slope = float(np.median([rows[-1] - rows[0] for rows in lines])) / (len(x) - 1)
            begins = [*left, *(last - slope * length for last in right)]
            lines += filter(is_line, (_rows(first, slope, x) for first in begins))
        return cls(gray, down, _apart(lines, reach))

    def plain(self) -> Floats:
        """The picture without the lines."""
        reach = _reach(self.gray)
        found = np.zeros(self.gray.shape, bool)
        for rows in self.lines:
            inside = np.flatnonzero((rows >= 0) & (rows < len(found)))
            for offset in range(-2 * reach, 2 * reach + 1):
                found[(rows[inside] + offset).clip(0, len(found) - 1), inside] = True
        return np.where(found, self.down, self.gray)


def _reach(gray: Floats) -> int:
    return math.ceil(_THICK * float(max(gray.shape)))


def _rows(first: float, slope: float, x: Floats) -> Integers:
    return (first + slope * x).round().astype(int)


def _apart(lines: list[Integers], reach: int) -> list[Integers]:
    """Without those that are another by and large."""
    kept: list[Integers] = []
    for rows in lines:
        if all(np.abs(rows - other).mean() > reach for other in kept):
            kept.append(rows)
    return kept


def _thin(gray: Floats, down: Floats) -> Floats:
    """How much lighter than what is above and below it everything is, beyond noise."""
    thin = along(gray - down, 1, np.maximum)
    return thin - _LEAST_DEVIATIONS / 2 * np.float32(np.median(thin))


def _thick(down: Floats) -> Floats:
    """The strokes in what is left without what is thin, and what is next to them."""
    strokes = down - _without(down.T, round(_STROKE * max(down.shape))).T
    return along(strokes, 2, np.maximum)


def _without(gray: Floats, reach: int) -> Floats:
    """Without what is lighter than what is above and below it, and less than 2 * reach + 1 high."""
    without: Floats = along(along(gray, reach, np.minimum), reach, np.maximum)
    return without


def _bumps(profile: Floats, reach: int) -> list[int]:
    """Where a profile has narrow peaks."""
    height = profile - _without(profile[:, None], reach)[:, 0]
    least = max(_LEAST, _LEAST_DEVIATIONS * float(np.median(height)))
    peaks = (height >= least) & (height == along(height[:, None], reach, np.maximum)[:, 0])
    return [int(place) for place in np.flatnonzero(peaks)]


def _is_line(thin: Floats, thick: Floats, rows: Integers) -> bool:
    """Whether there is a line in those rows, or ink that hides it."""
    columns = np.flatnonzero((rows >= 0) & (rows < len(thin)))
    if len(columns) < _SHORTEST * len(rows):
        return False
    smooth = np.convolve(np.pad(thin[rows[columns], columns], 4, mode="edge"), np.ones(9) / 9, "valid")
    level = float(np.median(smooth))
    hidden = thick[rows[columns], columns] >= level / 2
    return level >= _LEAST and bool(((smooth >= level / 2) | hidden).mean() >= _SEEN)
