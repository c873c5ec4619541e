"""Digits drawn with a round pen, and the distance of framed digits."""

import numpy as np
from PIL import Image, ImageDraw

SEVEN = ((0.35, 0.22), (0.65, 0.22), (0.55, 0.5), (0.48, 0.8))
FIVE = (
    (0.62, 0.2),
    (0.4, 0.2),
    (0.38, 0.45),
    (0.52, 0.42),
    (0.63, 0.5),
    (0.64, 0.66),
    (0.55, 0.78),
    (0.36, 0.76),
)


def drawn(
    points: tuple[tuple[float, float], ...] = FIVE,
    *,
    side: int = 280,
    pen: int = 18,
    paper: int = 255,
    ink: int = 0,
    scale: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
) -> np.ndarray:
    """A digit on a square page of `side` pixels; points and `shift` are in units of its side."""
    image = Image.new("L", (side, side), paper)
    draw = ImageDraw.Draw(image)
    places = [tuple((scale * p + s) * side for p, s in zip(point, shift, strict=True)) for point in points]
    draw.line(places, fill=ink, width=pen, joint="curve")
    for x, y in places if pen > 4 else ():
        draw.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=ink)
    return np.asarray(image)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The mean absolute difference, with shifts by a pixel from rounding the center of mass undone."""
    shifted = (np.roll(other, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1))
    return min(float(np.abs(one.astype(int) - each).mean()) for each in shifted)
