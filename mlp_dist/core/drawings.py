"""Any picture of one digit -> the picture that MNIST's makers would have made of it.

They scaled a digit's ink into 20x20 pixels, kept its aspect, and put its centre of mass into the middle of
28x28 (Y. LeCun, C. Cortes, C. Burges: The MNIST database of handwritten digits). Here that is preceded by
what a photograph needs: whether the ink is darker or lighter than its paper, what the paper looks like under
the ink, and where on it the digit stands.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlp_dist.core.errors import EmptyPageError

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]
Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge, in pixels."""

Bounds = tuple[int, int, int, int]
"""A Box between pixels."""

SIZE, BOX = 28, 20
"""The side of MNIST's images, and of the box that holds their ink, in pixels."""

_PAGE, _PAPER = 256, 64
"""The longest side of the copies on which the ink is looked for, and the paper's look."""

_REACHES = (0.2, 0.11)
"""Half the width, in the page's, of what is ink and not paper: where that finds no digit, the next."""

_SPECK = 0.04
"""Of the size of the digit's largest part: what is smaller is none of it."""

_SHARE = 0.15
"""Of the digit that its largest part is at least."""

_ALONG_BORDER = 0.4
"""The most of a part's outline that may lie on the picture's border."""

_FINE = 5 * BOX
"""The longer side of the digit where its strokes are looked at."""

_LEAST_CONTRAST, _LEAST_DEVIATIONS = 10.0, 6.0
"""Ink stands out from its paper by so many gray levels, and so many times the paper's own deviation."""

_SHORTEST, _LONGEST, _SOFTEST = 8, 8, 2.2
"""What has been drawn: its pixels on the page, the length of its strokes in its own, and the area over 0.3 of
its contrast to that over 0.7. Scattered dots are longer, light and shadow are softer.
"""

_BOTH_SIDES = 0.4
"""Of the contrast of ink to its paper, the least it has to what is on either side of it."""

_STROKES = (2.0, 3.3)
"""The thinnest and thickest strokes that stay as they are, in pixels of the box: most of MNIST's."""

_RAMP = (0.2, 0.8)
"""The shares of the ink's contrast that become no ink, and all of it."""

_EDGE = 0.4
"""The digit's edge lies where there is so much of it."""

_POSITIONS = np.arange(SIZE)


def as_mnist(gray: Bytes) -> Bytes:
    """A gray picture of one digit, uint8 (H, W) of any size -> uint8 (28, 28), light ink on black.

    The ink may be darker or lighter than its paper, and the paper uneven. An image that is framed as MNIST's
    is returned as it is. Raises EmptyPageError where no ink stands out from the page.
    """
    if gray.shape == (SIZE, SIZE):
        if is_framed(gray):
            return gray
        if is_framed(255 - gray):
            return 255 - gray
    image = Image.fromarray(gray)
    page = _fit(image, _PAGE)
    tiny = np.asarray(_fit(page, _PAPER), np.float32)
    light = _lighting(tiny)
    dark = _is_dark(tiny - light)
    if dark:
        image, page = _negative(image), _negative(page)
        tiny, light = 255 - tiny, 255 - light
    for reach in _REACHES:
        paper = Image.fromarray(light + _opened(tiny - light, round(reach * max(tiny.shape))))
        ink = _ink(_contrast(page, paper, (0, 0, *page.size), page.size, dark))
        if ink.any() and not _is_edge(ink, page, paper):
            box = _scaled(_bounds(ink), page.size, image.size)
            return _framed(_evened(_fine(image, paper, box, dark)))
    raise EmptyPageError(
        "the page is empty: no digit stands out from it; send a picture of one digit that is clearly "
        "darker or lighter than its paper"
    )


def is_framed(image: Bytes) -> bool:
    """Whether a uint8 (28, 28) image is framed as MNIST's are.

    Each of those has a pixel of 254 or 255, a box of ink 19 or 20 pixels long in rows or columns, and its
    centre of mass within half a pixel of pixel 14.
    """
    if image[0, 0] or image.max() < 254:
        return False
    profiles = [np.add.reduce(image, axis=axis, dtype=np.uint32) for axis in (0, 1)]
    length = 0
    for profile in profiles:
        if not 13.47 < profile @ _POSITIONS / profile.sum() < 14.51:
            return False
        used = profile.nonzero()[0]
        length = max(length, used[-1] - used[0] + 1)
    return BOX - 1 <= length <= BOX


def _fit(image: Image.Image, longest: int) -> Image.Image:
    scale = longest / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BOX)


def _negative(image: Image.Image) -> Image.Image:
    return image.point([255 - value for value in range(256)])


def _lighting(gray: Floats) -> Floats:
    """The plane that most of the picture lies near: least squares, reweighted by Tukey's biweight."""
    height, width = gray.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y], axis=-1).reshape(-1, 3)
    values, weights = gray.ravel().astype(np.float64), np.ones(gray.size)
    for _ in range(6):
        weighted = terms * weights[:, None]
        surface = terms @ np.linalg.lstsq(weighted.T @ terms, weighted.T @ values)[0]
        off = np.abs(values - surface)
        weights = np.maximum(1 - (off / (4 * np.median(off) + 1)) ** 2, 0) ** 2
    found: Floats = surface.reshape(gray.shape).astype(np.float32)
    return found


def _is_dark(gray: Floats) -> bool:
    """Whether the ink is darker than its paper: most pixels, and most at the border, are paper."""
    reach = max(gray.shape) // 4
    high, low = _spread(gray, reach, np.maximum), _spread(gray, reach, np.minimum)
    weight = (high - low) ** 2
    votes = (2 * gray - high - low) * (high - low)
    ring = np.ones(gray.shape, bool)
    ring[2:-2, 2:-2] = False
    total = votes.sum() / max(weight.sum(), 1) + votes[ring].sum() / max(weight[ring].sum(), 1)
    return bool(total > 0)


def _spread(values: npt.NDArray[Any], reach: int, extreme: np.ufunc) -> npt.NDArray[Any]:
    """The largest or the smallest value no further than `reach` away in rows and columns."""
    return _along(_along(values, reach, extreme).T, reach, extreme).T


def _along(values: npt.NDArray[Any], reach: int, extreme: np.ufunc) -> npt.NDArray[Any]:
    """The same in columns only."""
    values = np.pad(values, ((reach, reach), (0, 0)), mode="edge")
    width = 1
    while width < 2 * reach + 1:
        step = min(width, 2 * reach + 1 - width)
        values = extreme(values[:-step], values[step:])
        width += step
    return values


def _opened(gray: Floats, reach: int) -> Floats:
    """The gray without what is lighter than its surroundings and narrower than 2 * reach + 1."""
    without = _spread(_spread(gray, reach, np.minimum), reach, np.maximum)
    return _blurred(without, reach // 2)


def _blurred(values: Floats, reach: int) -> Floats:
    """The mean of what is no further than `reach` away in rows and columns."""
    for _ in range(2):
        values = values.T
        padded = np.pad(values, ((reach + 1, reach), (0, 0)), mode="edge")
        sums = np.cumsum(padded, axis=0, dtype=np.float32)
        values = (sums[2 * reach + 1 :] - sums[: -2 * reach - 1]) / (2 * reach + 1)
    return values


def _contrast(image: Image.Image, paper: Image.Image, box: Box, size: tuple[int, int], dark: bool) -> Floats:
    """How far a part of the picture is from its paper, as gray levels on white or on black paper."""
    part = image.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=3)
    under = paper.resize(
        size, Image.Resampling.BILINEAR, box=_within(_scaled(box, image.size, paper.size), paper.size)
    )
    gray, below = np.asarray(part, np.float32), np.asarray(under, np.float32)
    difference = gray - below
    # Shadow takes from paper and ink alike what each of them reflects.
    return difference * (255 / np.maximum(255 - below, 32)) if dark else difference


def _scaled(box: Box, size: tuple[int, int], other: tuple[int, int]) -> Box:
    x, y = other[0] / size[0], other[1] / size[1]
    return (box[0] * x, box[1] * y, box[2] * x, box[3] * y)


def _within(box: Box, size: tuple[int, int]) -> Box:
    return (max(box[0], 0), max(box[1], 0), min(box[2], size[0]), min(box[3], size[1]))


def _ink(contrast: Floats) -> Bools:
    """The ink of the digit on a page; none where there is none."""
    contrast = _blurred(contrast, 1 if min(contrast.shape) > _PAPER else 0)
    contrast -= np.median(contrast)
    level, deviation = _level(contrast), -np.quantile(contrast, 0.16)
    clear = level >= _LEAST_CONTRAST and level >= _LEAST_DEVIATIONS * deviation
    ink = _digit(contrast > level / 2) if clear else np.zeros(contrast.shape, bool)
    return ink if ink.any() and _is_drawn(ink, contrast / level) else np.zeros_like(ink)


def _is_drawn(ink: Bools, contrast: Floats) -> bool:
    """Whether ink, of contrast about 1, is as large, as sharp and in as few strokes as what is drawn."""
    left, top, right, bottom = _bounds(ink)
    near = contrast[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2]
    length, area = max(right - left, bottom - top), int(np.count_nonzero(ink))
    sharp = int(np.count_nonzero(near > 0.3)) <= _SOFTEST * int(np.count_nonzero(near > 0.7))
    return sharp and length >= _SHORTEST and area <= _LONGEST * length * _stroke(ink)


def _is_edge(ink: Bools, page: Image.Image, paper: Image.Image) -> bool:
    """Whether it is where a shadow ends: lighter than what lies on one side of it, but not on the other."""
    gray = _blurred(np.asarray(page, np.float32), 1)
    under = np.asarray(paper.resize(page.size, Image.Resampling.BILINEAR), np.float32)
    reach = math.ceil(_stroke(ink))
    sides = _spread(_spread(gray, reach, np.minimum), reach, np.maximum)
    return bool(np.median((gray - sides)[ink]) < _BOTH_SIDES * np.median((gray - under)[ink]))


def _stroke(ink: Bools) -> float:
    """The mean width of the strokes: their area over half their outline."""
    outline = np.count_nonzero(ink[1:] != ink[:-1]) + np.count_nonzero(ink[:, 1:] != ink[:, :-1])
    # A slanted edge of length 1 crosses 4 / pi edges of pixels on average.
    return 2 * np.count_nonzero(ink) / max(outline * np.pi / 4, 1)


def _level(contrast: Floats) -> float:
    """The mean of what is over half of it, however little that is: where it starts is the most there is."""
    level = float(contrast.max())
    for _ in range(8):
        level = float(contrast[contrast >= level / 2].mean())
    return level


def _digit(mask: Bools) -> Bools:
    """The ink that belongs to the digit."""
    labels = _parts(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    sizes[_of_the_border(labels)] = 0
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


def _parts(mask: Bools) -> Integers:
    """A number from 1 on for each part of the mask that hangs together, 0 outside.

    Ink in neighbouring cells hangs together. Each cell takes its neighbours' largest number, and then that
    number's own, so that the rounds are few even along a spiral.
    """
    cell = max(1, max(mask.shape) // _PAPER)
    height, width = (-(-side // cell) for side in mask.shape)
    padded = np.zeros((height * cell, width * cell), bool)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    used = padded.reshape(height, cell, width, cell).any((1, 3))
    labels = np.where(used, np.arange(1, used.size + 1).reshape(used.shape), 0)
    while True:
        wider = _spread(labels, 1, np.maximum) * used
        wider = np.append(0, wider.ravel())[wider]
        if (wider == labels).all():
            break
        labels = wider
    return labels.repeat(cell, 0).repeat(cell, 1)[: mask.shape[0], : mask.shape[1]] * mask


def _bounds(mask: Bools) -> Bounds:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def _fine(image: Image.Image, paper: Image.Image, box: Box, dark: bool) -> Floats:
    """The ink in the box and a margin around it, from 0 to 1, at a fine scale."""
    margin = 0.1 * max(box[2] - box[0], box[3] - box[1]) + max(image.size) / _PAGE
    box = _within((box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin), image.size)
    width, height = box[2] - box[0], box[3] - box[1]
    scale = 1.2 * _FINE / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    contrast = _contrast(image, paper, box, size, dark)
    contrast -= np.quantile(contrast, 0.25)
    low, high = _RAMP
    return ((contrast / _level(contrast) - low) / (high - low)).clip(0, 1)


def _evened(ink: Floats) -> Floats:
    """The ink with strokes as thick, in proportion to the digit, as most of MNIST's are."""
    edge = ink > _EDGE
    left, top, right, bottom = _bounds(edge)
    length, stroke = max(right - left, bottom - top), _stroke(edge)
    wanted = min(max(stroke * BOX / length, _STROKES[0]), _STROKES[1])
    # What is added on either side lengthens the digit as well.
    more = (wanted * length - stroke * BOX) / (2 * (BOX - wanted))
    extreme = np.maximum if more > 0 else np.minimum
    ink = np.pad(ink, max(0, round(more)))
    for step in range(round(abs(more))):
        # Squares and crosses in turn make an octagon.
        across = extreme(_along(ink, 1, extreme), _along(ink.T, 1, extreme).T)
        ink = _spread(ink, 1, extreme) if step % 2 else across
    return ink


def _framed(ink: Floats) -> Bytes:
    """Ink from 0 to 1 -> MNIST's frame."""
    box = _bounds(ink > _EDGE)
    width, height = box[2] - box[0], box[3] - box[1]
    scale = BOX / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    part = Image.fromarray(ink).resize(size, Image.Resampling.BOX, box=box)
    pixels = np.asarray(part, np.float32)
    frame = np.zeros((SIZE, SIZE), np.uint8)
    left, top = (_place(pixels.sum(axis), length) for axis, length in enumerate(size))
    frame[top : top + size[1], left : left + size[0]] = (pixels * 255).round()
    return frame


def _place(profile: Floats, length: int) -> int:
    """Where along a side the ink begins, so that its centre of mass is nearest to pixel 14."""
    centre = float(profile @ np.arange(length)) / float(profile.sum())
    return min(max(SIZE // 2 - int(centre + 0.5), 0), SIZE - length)
