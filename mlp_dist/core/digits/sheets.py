"""The sheet of paper on which the digit stands, where the picture shows more: the table on which it lies, or
a frame that is drawn around the digit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlp_dist.core.digits.ink import Bools, bounds
from mlp_dist.core.digits.paper import Floats, flat_around, spread

Indices = npt.NDArray[np.intp]

_CELLS = 64
"""A sheet is looked for in the darkest values of so many cells along the picture, and in the lightest."""

_SMALLEST = 40
"""The shorter side of pictures on which a sheet can be told from a digit, in pixels."""

_LEAST = 0.04
"""Of the picture, the least that is a sheet."""

_LEAST_FRAMED = 0.25
"""The same of what is in a frame: a zero is around less."""

_AROUND = 0.5
"""Of the picture's border, the least where one sees on what a sheet lies."""

_RECTANGULAR = 0.92
"""Of the smallest rectangle around it, turned as it may be, the least that a sheet fills: seen from the side
it is a trapezium. An ellipse, such as what is inside a zero, fills 0.785.
"""

_PAPER, _CLOSED = 0.5, 0.95
"""Of a sheet and of its outline, the least that is paper: ink may reach to its edge."""

_BARE = 0.95
"""Of the inside of a bare sheet, the least that is paper."""

_LONGEST = 1.8
"""The most times that a sheet is as long as it is wide. A stroke, such as a one, is longer."""

_AT_BORDER = 0.35
"""Of a sheet's outline, the most that lies on the picture's border: half of a page may lie in shadow."""

_LEAST_CONTRAST = 25.0
"""Gray levels between a sheet and what is around it."""

_ANGLES = np.deg2rad(np.arange(0, 180, 3, dtype=np.float32))
_DIRECTIONS = np.stack([np.sin(_ANGLES), np.cos(_ANGLES)], 1)
"""Of rows and columns."""


@dataclass(frozen=True)
class Sheet:
    """Where a sheet lies: bool (H, W), in cells of the picture."""

    cells: Bools
    is_bare: bool
    """Whether it is nothing but paper, and lies on something that reaches to the picture's border."""

    def cut_out(self, image: Image.Image, longest: int) -> Image.Image:
        """What of a picture in mode L is the sheet, `longest` pixels long or less; around it is the plane
        that it lies near.
        """
        left, top, right, bottom = bounds(self.cells)
        x, y = image.width / self.cells.shape[1], image.height / self.cells.shape[0]
        box = (round(left * x), round(top * y), round(right * x), round(bottom * y))
        part = image.crop(box)
        part.thumbnail((longest, longest), Image.Resampling.BOX)
        inside = Image.fromarray(self.cells[top:bottom, left:right])
        return flat_around(part, np.asarray(inside.resize(part.size)))


def find_sheets(image: Image.Image) -> Iterator[Sheet]:
    """The sheets in a picture in mode L, of 256 pixels or so: at first those that are light."""
    gray = np.asarray(image)
    if min(gray.shape) < _SMALLEST:
        return
    for light in (gray, 255 - gray):
        cells = _darkest(light)
        for threshold in _thresholds(cells):
            if sheet := _largest_sheet(cells > threshold):
                yield sheet


def _darkest(gray: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The least of each cell."""
    cell = -(-max(gray.shape) // _CELLS)
    height, width = (-(-side // cell) for side in gray.shape)
    padded = np.pad(
        gray, ((0, height * cell - gray.shape[0]), (0, width * cell - gray.shape[1])), mode="edge"
    )
    least: npt.NDArray[np.uint8] = padded.reshape(height, cell, width, cell).min((1, 3))
    return least


def _thresholds(gray: npt.NDArray[np.uint8]) -> list[int]:
    """Between dark and light; then between the two kinds of what is light, and of what is dark."""
    counts = np.bincount(gray.ravel(), minlength=256).astype(float)
    middle = _otsu(counts)
    if middle is None:
        return []
    is_light = np.arange(256) > middle
    parts = [counts * is_light, counts * ~is_light]
    return [middle, *(threshold for part in parts if (threshold := _otsu(part)) is not None)]


def _otsu(counts: Floats) -> int | None:
    """The level up to which values are dark, by N. Otsu's "A threshold selection method from gray-level
    histograms" (1979); None where dark and light are nearly alike.
    """
    levels = np.arange(256)
    number, total = counts.cumsum(), (counts * levels).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = (total[-1] - total) / (number[-1] - number) - total / number
        between = np.nan_to_num(number * (number[-1] - number) * apart**2)
    best = int(between.argmax())
    return best if apart[best] >= _LEAST_CONTRAST else None


def _largest_sheet(mask: Bools) -> Sheet | None:
    labels = _grown(np.arange(1, mask.size + 1, dtype=np.int16).reshape(mask.shape) * mask, mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    for label in np.argsort(sizes)[:-4:-1]:
        if sizes[label] < _LEAST * mask.size:
            break
        part = labels == label
        sheet = _sheet_of(part)
        if sheet is None:
            continue
        if _lies(part, mask):
            return Sheet(sheet, is_bare=bool(np.mean(part[sheet]) >= _BARE))
        if sizes[label] >= _LEAST_FRAMED * mask.size:
            return Sheet(sheet, is_bare=False)
    return None


def _lies(part: Bools, mask: Bools) -> bool:
    """Whether what is around the part reaches to the picture's border, and is most of that."""
    around = _from_border(~mask)
    at_border = np.mean(around[_border(mask.shape)])
    return bool(at_border >= _AROUND and (around & spread(part, 1, np.maximum)).any())


def _sheet_of(part: Bools) -> Bools | None:
    """What is inside of the part's outline, where that is a sheet's; else None."""
    edge = part & ~_shrunk(part)
    low, high = _extents(edge)
    # Two directions at right angles have the sides of a turned rectangle around it.
    sides = np.stack(np.split(high - low, 2)) + 0.5
    shorter, longer = np.sort(sides[:, sides.prod(0).argmin()])
    least, length = _RECTANGULAR * shorter * longer, 2 * (shorter + longer)
    at_border = np.count_nonzero(part & _border(part.shape))
    if (
        longer > _LONGEST * shorter
        or at_border > _AT_BORDER * length
        or np.count_nonzero(part) < _PAPER * least
    ):
        return None
    hull = _between(part.shape, low, high)
    inside = _shrunk(hull)
    outline = hull & ~inside
    closed = np.count_nonzero(spread(part, 1, np.maximum) & outline) >= _CLOSED * np.count_nonzero(outline)
    return inside if closed and np.count_nonzero(hull) >= least else None


def _extents(mask: Bools) -> tuple[Floats, Floats]:
    """How far it reaches along each of the directions."""
    along = _DIRECTIONS @ np.stack(np.nonzero(mask)).astype(np.float32)
    return along.min(1), along.max(1)


def _between(shape: tuple[int, ...], low: Floats, high: Floats) -> Bools:
    """What lies along each of the directions from `low` to `high`: a convex hull."""
    along = _DIRECTIONS @ np.indices(shape, np.float32).reshape(2, -1)
    hull: Bools = ((along > low[:, None] - 1e-3) & (along < high[:, None] + 1e-3)).all(0).reshape(shape)
    return hull


def _border(shape: tuple[int, ...]) -> Bools:
    border = np.ones(shape, bool)
    border[1:-1, 1:-1] = False
    return border


def _shrunk(mask: Bools) -> Bools:
    """Without its outline, which lies also along the picture's border."""
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1] = mask[1:-1, 1:-1] & mask[2:, 1:-1] & mask[:-2, 1:-1] & mask[1:-1, 2:] & mask[1:-1, :-2]
    return inner


def _from_border(mask: Bools) -> Bools:
    """What of a mask hangs together with the picture's border."""
    return _grown(mask & _border(mask.shape), mask)


def _grown(values: npt.NDArray[Any], mask: Bools) -> npt.NDArray[Any]:
    """Values, 0 outside of the mask: each part of it that hangs together takes the largest of its own."""
    rows, columns = _runs(mask), _runs(mask.T)
    while True:
        wider = _along(_along(values, *rows).T, *columns).T
        if (wider == values).all():
            return values
        values = wider


def _runs(mask: Bools) -> tuple[Indices, Indices]:
    """Where the runs of alike values begin, row by row, and for each value of which run it is."""
    begins = np.ones(mask.shape, bool)
    begins[:, 1:] = mask[:, 1:] != mask[:, :-1]
    return np.flatnonzero(begins), begins.cumsum().reshape(mask.shape) - 1


def _along(values: npt.NDArray[Any], begins: Indices, runs: Indices) -> npt.NDArray[Any]:
    """Each run takes the largest of its values."""
    largest: npt.NDArray[Any] = np.maximum.reduceat(values.ravel(), begins)[runs]
    return largest
