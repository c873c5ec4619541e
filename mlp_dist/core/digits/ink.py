"""The ink on a page: where it is, and whether it is any.

A mask (H, W) is True where there is ink.
"""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlp_dist.core.digits.paper import Floats, blurred, spread

Integers = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]
Bounds = tuple[int, int, int, int]
"""A Box between pixels."""

_CELLS = 64
"""Ink in neighbouring cells, so many along the page, hangs together."""

_BLURRED = 48
"""The shorter side of pages, in pixels, whose strokes are not lost when noise is taken out of them."""

_SPECK = 0.04
"""Of the size of the digit's largest part: what is smaller is none of it."""

_SHARE = 0.15
"""Of the digit that its largest part is at least."""

_ALONG_BORDER = 0.4
"""The most of a part's outline that may lie on the picture's border."""

LEAST_CONTRAST, _LEAST_DEVIATIONS = 18.0, 7.0
"""Ink stands out from its paper by so many gray levels, and so many times the paper's own deviation."""

_SHORTEST = 8
"""What has been drawn: its length on the page, in pixels."""

_FLATTEST, _THINNEST = 3, 0.06
"""Wider than so many times its height, and thinner than that part of its length, it is a piece of a fold."""

_LEAST_STROKES, _LONGEST = 0.75, 8
"""The length of its strokes in its own. Scattered specks are shorter, or longer."""

_SOFTEST = 2.2
"""Its area over 0.3 of its contrast to that over 0.7. Light and shadow are softer."""

_THICK, _SOFTEST_THICK = 0.3, 1.4
"""Strokes thicker than this part of their length must be sharper: spots of light and shadow are as thick."""

_THICKEST = 0.4
"""The most that the digit's largest part is as thick as it is long: a speck or a spot is thicker."""

_SLENDER = 0.3
"""Of the picture's shorter side, the most that is filled by a fold, from one border to the other."""

_BOTH_SIDES = 0.4
"""Of the contrast of ink to its paper, the least it has to what is on either side of it."""


def find_ink(contrast: Floats, least_contrast: float = LEAST_CONTRAST) -> Bools:
    """The ink of the digit on a page, of `least_contrast` gray levels or more; none where there is none."""
    contrast = blurred(contrast, 1 if min(contrast.shape) >= _BLURRED else 0)
    contrast -= np.median(contrast)
    level, deviation = level_of(contrast), -np.quantile(contrast, 0.16)
    clear = level >= least_contrast and level >= _LEAST_DEVIATIONS * deviation
    ink = _digit(contrast > level / 2) if clear else np.zeros(contrast.shape, bool)
    return ink if ink.any() and _is_drawn(ink, contrast / level) else np.zeros_like(ink)


def is_edge(ink: Bools, page: Image.Image, paper: Image.Image) -> bool:
    """Whether it is where a shadow ends: lighter than what lies on one side of it, but not on the other."""
    gray = blurred(np.asarray(page, np.float32), 1)
    under = np.asarray(paper.resize(page.size, Image.Resampling.BILINEAR), np.float32)
    reach = math.ceil(stroke_width(ink))
    sides = spread(spread(gray, reach, np.minimum), reach, np.maximum)
    return bool(np.median((gray - sides)[ink]) < _BOTH_SIDES * np.median((gray - under)[ink]))


def _is_drawn(ink: Bools, contrast: Floats) -> bool:
    """Whether ink, of contrast about 1, is as large, as sharp and in as few strokes as what is drawn."""
    left, top, right, bottom = bounds(ink)
    near = contrast[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2]
    longer, area = length(ink), int(np.count_nonzero(ink))
    width = stroke_width(ink)
    is_fold = right - left > _FLATTEST * (bottom - top) and width < _THINNEST * longer
    softest = _SOFTEST if width <= _THICK * longer else _SOFTEST_THICK
    sharp = int(np.count_nonzero(near > 0.3)) <= softest * int(np.count_nonzero(near > 0.7))
    large = longer >= _SHORTEST and not is_fold
    return sharp and large and _LEAST_STROKES * longer * width <= area <= _LONGEST * longer * width


def stroke_width(ink: Bools) -> float:
    """The mean width of the strokes: their area over half their outline."""
    outline = np.count_nonzero(ink[1:] != ink[:-1]) + np.count_nonzero(ink[:, 1:] != ink[:, :-1])
    # A slanted edge of length 1 crosses 4 / pi edges of pixels on average.
    return 2 * np.count_nonzero(ink) / max(outline * np.pi / 4, 1)


def level_of(contrast: Floats) -> float:
    """The mean of what is over half of it, however little that is: where it starts is the most there is."""
    level = float(contrast.max())
    for _ in range(8):
        level = float(contrast[contrast >= level / 2].mean())
    return level


def bounds(mask: Bools) -> Bounds:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def length(mask: Bools) -> int:
    """The longer side of what is around it."""
    left, top, right, bottom = bounds(mask)
    return max(right - left, bottom - top)


def _digit(mask: Bools) -> Bools:
    """The ink that belongs to the digit."""
    labels = _parts(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    sizes[_of_the_border(labels)] = 0
    sizes[_across(labels)] = 0
    largest = labels == sizes.argmax()
    if not sizes.any() or stroke_width(largest) > _THICKEST * length(largest):
        return np.zeros_like(mask)
    kept = sizes > _SPECK * sizes.max()
    # Dots that are scattered over a page are alike.
    digit: Bools = kept[labels] & (sizes.max() > _SHARE * sizes[kept].sum())
    return digit


def _of_the_border(labels: Integers) -> Bools:
    """Which parts' outlines lie along the picture's border: shadows, and what lies around the page."""
    outside = np.pad(labels, 1)
    outline = np.zeros(labels.max() + 1, np.intp)
    for other in (outside[2:, 1:-1], outside[:-2, 1:-1], outside[1:-1, 2:], outside[1:-1, :-2]):
        outline += np.bincount(labels[other != labels], minlength=len(outline))
    sides = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    contact: Bools = np.bincount(sides, minlength=len(outline)) > _ALONG_BORDER * outline
    return contact


def _across(labels: Integers) -> list[int]:
    """Which parts reach from a border to the one across and are slender, as folds are."""
    across = []
    for first, last in ((labels[0], labels[-1]), (labels[:, 0], labels[:, -1])):
        for label in np.intersect1d(first, last):
            left, top, right, bottom = bounds(labels == label)
            if min(right - left, bottom - top) <= _SLENDER * min(labels.shape):
                across.append(int(label))
    return across


def _parts(mask: Bools) -> Integers:
    """A number from 1 on for each part of the mask that hangs together, 0 outside.

    Ink in neighbouring cells hangs together. Each cell takes its neighbours' largest number, and then that
    number's own, so that the rounds are few even along a spiral.
    """
    cell = max(1, max(mask.shape) // _CELLS)
    height, width = (-(-side // cell) for side in mask.shape)
    padded = np.zeros((height * cell, width * cell), bool)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    used = padded.reshape(height, cell, width, cell).any((1, 3))
    labels = np.where(used, np.arange(1, used.size + 1).reshape(used.shape), 0)
    while True:
        wider = spread(labels, 1, np.maximum) * used
        wider = np.append(0, wider.ravel())[wider]
        if (wider == labels).all():
            break
        labels = wider
    return labels.repeat(cell, 0).repeat(cell, 1)[: mask.shape[0], : mask.shape[1]] * mask
