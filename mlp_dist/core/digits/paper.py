"""What a page looks like without its ink, and how far a picture is from that.

Gray levels are float32 from 0 to 255, in arrays (H, W).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Floats = npt.NDArray[np.floating]
Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge, in pixels."""


def lighting(gray: Floats) -> Floats:
    """The plane that most of the picture lies near."""
    terms = _plane_terms(*gray.shape)
    found: Floats = (terms @ _plane(terms.reshape(-1, 3), gray.ravel())).astype(np.float32)
    return found


def with_margin(image: Image.Image) -> Image.Image:
    """A picture in mode L in the middle of a square one whose side is 1.5 times its longer one: around it is
    the plane that most of its border lies near.
    """
    gray, side = np.asarray(image), max(image.size) * 3 // 2
    top, left = ((side - length) // 2 for length in gray.shape)
    inside = np.s_[top : top + gray.shape[0], left : left + gray.shape[1]]
    terms, ring = _plane_terms(side, side), np.ones(gray.shape, bool)
    ring[1:-1, 1:-1] = False
    page = (terms @ _plane(terms[inside][ring], gray[ring])).clip(0, 255).astype(np.uint8)
    page[inside] = gray
    return Image.fromarray(page)


def flat_around(image: Image.Image, mask: npt.NDArray[np.bool_]) -> Image.Image:
    """A picture in mode L with the plane that most of the mask (H, W) lies near, outside of it."""
    gray = np.asarray(image)
    terms = _plane_terms(*gray.shape)
    plane = terms @ _plane(terms[mask], gray[mask])
    return Image.fromarray(np.where(mask, gray, plane.clip(0, 255)).astype(np.uint8))


def _plane_terms(height: int, width: int) -> Floats:
    """What a plane is a sum of, (H, W, 3)."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return np.stack([np.ones_like(x), x, y], axis=-1)


def _plane(terms: Floats, values: npt.NDArray[Any]) -> Floats:
    """How much of each of the terms (N, 3) makes most of the values (N,): by least squares, reweighted by
    Tukey's biweight.
    """
    values, weights = values.astype(np.float64), np.ones(len(values))
    for _ in range(6):
        weighted = terms * weights[:, None]
        shares: Floats = np.linalg.lstsq(weighted.T @ terms, weighted.T @ values)[0]
        off = np.abs(values - terms @ shares)
        weights = np.maximum(1 - (off / (4 * np.median(off) + 1)) ** 2, 0) ** 2
    return shares


def is_dark(gray: Floats) -> bool:
    """Whether the ink is darker than its paper: most pixels, and most at the border, are paper."""
    reach = max(gray.shape) // 4
    high, low = spread(gray, reach, np.maximum), spread(gray, reach, np.minimum)
    weight = (high - low) ** 2
    votes = (2 * gray - high - low) * (high - low)
    ring = np.ones(gray.shape, bool)
    ring[2:-2, 2:-2] = False
    total = votes.sum() / max(weight.sum(), 1) + votes[ring].sum() / max(weight[ring].sum(), 1)
    return bool(total > 0)


def opened(gray: Floats, reach: int) -> Floats:
    """The gray without what is lighter than its surroundings and narrower than 2 * reach + 1."""
    without = spread(spread(gray, reach, np.minimum), reach, np.maximum)
    return blurred(without, reach // 2)


def contrast_of(
    image: Image.Image, paper: Image.Image, box: Box, size: tuple[int, int], dark: bool
) -> Floats:
    """How far a part of the picture is from its paper, as gray levels on white or on black paper."""
    part = image.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=3)
    under = paper.resize(
        size, Image.Resampling.BILINEAR, box=within(scaled(box, image.size, paper.size), paper.size)
    )
    gray, below = np.asarray(part, np.float32), np.asarray(under, np.float32)
    difference = gray - below
    # Shadow takes from paper and ink alike what each of them reflects.
    return difference * (255 / np.maximum(255 - below, 32)) if dark else difference


def scaled(box: Box, size: tuple[int, int], other: tuple[int, int]) -> Box:
    x, y = other[0] / size[0], other[1] / size[1]
    return (box[0] * x, box[1] * y, box[2] * x, box[3] * y)


def within(box: Box, size: tuple[int, int]) -> Box:
    return (max(box[0], 0), max(box[1], 0), min(box[2], size[0]), min(box[3], size[1]))


def spread(values: npt.NDArray[Any], reach: int, extreme: np.ufunc) -> npt.NDArray[Any]:
    """The largest or the smallest value no further than `reach` away in rows and columns."""
    return along(along(values, reach, extreme).T, reach, extreme).T


def along(values: npt.NDArray[Any], reach: int, extreme: np.ufunc) -> npt.NDArray[Any]:
    """The same in columns only."""
    values = _edged(values, reach)
    width = 1
    while width < 2 * reach + 1:
        step = min(width, 2 * reach + 1 - width)
        values = extreme(values[:-step], values[step:])
        width += step
    return values


def blurred(values: Floats, reach: int) -> Floats:
    """The mean of what is no further than `reach` away in rows and columns."""
    for _ in range(2):
        values = values.T
        padded = _edged(values, reach)
        total = padded[: len(values)].copy()
        for offset in range(1, 2 * reach + 1):
            total += padded[offset : offset + len(values)]
        values = total / (2 * reach + 1)
    return values


def _edged(values: npt.NDArray[Any], reach: int) -> npt.NDArray[Any]:
    """With the first and the last row again, `reach` times; numpy.pad takes five times as long."""
    return np.concatenate((values[:1].repeat(reach, 0), values, values[-1:].repeat(reach, 0)))
