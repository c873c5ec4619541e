"""MNIST's images as people send digits, drawn or photographed, and pages with nothing on them: as files.

Ink is an array (side, side) from 0, paper, to 1; gray levels are from 0 to 255, widths in MNIST's pixels.
"""

import io
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating]
Source = np.random.Generator
Picture = Callable[[Bytes, Source], bytes]
Page = Callable[[Source], bytes]


def png(gray: Floats | Bytes) -> bytes:
    return _file(gray, "PNG", compress_level=1)


def jpeg(gray: Floats | Bytes, quality: float) -> bytes:
    return _file(gray, "JPEG", quality=round(quality))


def _file(gray: Floats | Bytes, kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(gray.round().clip(0, 255).astype(np.uint8)).save(file, kind, **options)
    return file.getvalue()


# Ink


def enlarged(image: Bytes, side: int, wider: float = 0.0) -> Floats:
    """An image of MNIST as ink, its strokes by `wider` pixels of the 28 wider, or narrower below 0."""
    picture = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    reach = round(abs(wider) * side / 28 / 2)
    if reach:
        extreme = ImageFilter.MaxFilter if wider > 0 else ImageFilter.MinFilter
        picture = picture.filter(extreme(2 * reach + 1))
    return np.asarray(picture, np.float32) / 255


def cut_out(ink: Floats) -> Floats:
    """The digit without what is around it."""
    rows, columns = (np.flatnonzero((ink > 0.2).any(axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else ink[:1, :1]


def moved(ink: Floats, side: int, source: Source, *, margin: int = 0) -> Floats:
    """The digit alone, anywhere on a page of `side` pixels, `margin` of them or more from its border."""
    room = side - 2 * margin
    digit = cut_out(ink)[:room, :room]
    top, left = (margin + int(source.integers(0, room - length + 1)) for length in digit.shape)
    page = np.zeros((side, side), np.float32)
    page[top : top + digit.shape[0], left : left + digit.shape[1]] = digit
    return page


def on_paper(ink: Floats, paper: float, pen: float) -> Floats:
    return paper + (pen - paper) * ink


# Light


def uneven(side: int, source: Source) -> Floats:
    """Light from one side and in soft patches, from 0 to 1."""
    across = np.linspace(-0.5, 0.5, side)
    angle, depth = source.uniform(0, 2 * np.pi), source.uniform(0.3, 0.6)
    slope = np.cos(angle) * across[None, :] + np.sin(angle) * across[:, None]
    patches = Image.fromarray(source.normal(0, 0.04, (4, 4)).astype(np.float32))
    soft = np.asarray(patches.resize((side, side), Image.Resampling.BICUBIC), np.float32)
    light: Floats = (1 - depth * (0.5 + slope / 1.5) + soft).clip(0, 1)
    return light


def shaded(side: int, source: Source) -> Floats:
    """A shadow over about half of the page, with an edge."""
    across = np.linspace(-0.5, 0.5, side)
    angle, depth = source.uniform(0, 2 * np.pi), source.uniform(0.15, 0.4)
    slope = np.cos(angle) * across[None, :] + np.sin(angle) * across[:, None] + source.uniform(-0.1, 0.1)
    light: Floats = 1 - depth / (1 + np.exp(-slope / source.uniform(0.02, 0.1)))
    return light


def dark_corners(side: int) -> Floats:
    """As a lens that lets a tenth of the light into them."""
    x, y = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    return 1 - 0.45 * (x**2 + y**2)


def grain(side: int, source: Source, deviation: float) -> Floats:
    return source.normal(0, deviation, (side, side))


# Rows


def _drawn(image: Bytes, source: Source, *, side: int) -> bytes:
    return png(on_paper(enlarged(image, side), 255, 0))


def _off_centre(image: Bytes, source: Source) -> bytes:
    return png(on_paper(moved(enlarged(image, int(source.integers(60, 260))), 300, source), 255, 20))


def _at_the_border(image: Bytes, source: Source) -> bytes:
    page = moved(enlarged(image, 250), 200, source, margin=2)
    rows, columns = (np.flatnonzero((page > 0.2).any(axis)) for axis in (1, 0))
    page = np.roll(page, (-rows[0], -columns[0]), (0, 1)) if len(rows) else page
    return png(on_paper(page, 245, 15))


def _cut_out(image: Bytes, source: Source) -> bytes:
    margin = int(source.integers(0, 9))
    return png(on_paper(np.pad(cut_out(enlarged(image, 280)), margin), 250, 20))


def _small(image: Bytes, source: Source) -> bytes:
    return png(on_paper(moved(enlarged(image, 80), 600, source), 240, 30) + grain(600, source, 3))


def _on_gray(image: Bytes, source: Source) -> bytes:
    return png(on_paper(enlarged(image, 200), source.uniform(130, 200), source.uniform(20, 80)))


def _on_uneven(image: Bytes, source: Source, *, paper: float, pen: float) -> bytes:
    side = 240
    gray = on_paper(moved(enlarged(image, 200), side, source), paper, pen) * uneven(side, source)
    return png(gray + grain(side, source, 3))


def _in_shadow(image: Bytes, source: Source) -> bytes:
    gray = on_paper(enlarged(image, 240), 225, 40) * shaded(240, source)
    return png(gray + grain(240, source, 3))


def _compressed(image: Bytes, source: Source, *, side: int, quality: int) -> bytes:
    return jpeg(on_paper(enlarged(image, side), 240, 20), quality)


def _noisy(image: Bytes, source: Source) -> bytes:
    return jpeg(on_paper(enlarged(image, 200), 200, 60) + grain(200, source, 20), 60)


def _stroked(image: Bytes, source: Source, *, wider: float) -> bytes:
    return png(on_paper(enlarged(image, 280, wider), 255, 0))


def _pencil(image: Bytes, source: Source) -> bytes:
    return jpeg(on_paper(enlarged(image, 300, -0.6), 225, 180) + grain(300, source, 4), 80)


def _photograph(image: Bytes, source: Source) -> bytes:
    side = int(source.integers(200, 601))
    ink = enlarged(image, round(side * source.uniform(0.4, 0.9)), source.uniform(-0.6, 0.8))
    gray = on_paper(moved(ink, side, source), source.uniform(190, 240), source.uniform(30, 90))
    gray = gray * uneven(side, source) * (shaded(side, source) if source.random() < 0.3 else 1)
    gray = gray + grain(side, source, source.uniform(2, 8))
    soft = Image.fromarray(gray.clip(0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(source.uniform(0, side / 300))
    )
    return jpeg(np.asarray(soft), source.uniform(40, 90))


PICTURES: dict[str, Picture] = {
    "as they are": lambda image, source: png(image),
    "inverted": lambda image, source: png(255 - image),
    **{f"dark on white, {side} pixels": partial(_drawn, side=side) for side in (60, 120, 280, 600)},
    "off-centre": _off_centre,
    "at the border": _at_the_border,
    "cut out along its edges": _cut_out,
    "small on a large page": _small,
    "on gray paper": _on_gray,
    "on uneven paper": partial(_on_uneven, paper=225, pen=40),
    "chalk on an uneven board": partial(_on_uneven, paper=60, pen=230),
    "half in shadow": _in_shadow,
    "JPEG of quality 30": partial(_compressed, side=140, quality=30),
    "JPEG of quality 15, 60 pixels": partial(_compressed, side=60, quality=15),
    "noise": _noisy,
    "strokes thinned by 1 pixel of 28": partial(_stroked, wider=-1),
    "strokes thickened by 1 pixel of 28": partial(_stroked, wider=1),
    "faint pencil": _pencil,
    "photograph": _photograph,
}
"""The first row is the clean one."""


def _page(source: Source, side: int, light: Callable[[int, Source], Floats]) -> bytes:
    gray = source.uniform(60, 250) * light(side, source) + grain(side, source, source.uniform(0, 8))
    return jpeg(gray, source.uniform(40, 95))


def _gradient(source: Source, side: int) -> bytes:
    ends = source.uniform(0, 100), source.uniform(150, 255)
    return png(np.broadcast_to(np.linspace(*ends, side), (side, side)))


def _sized(source: Source, *, page: Callable[[Source, int], bytes], side: int) -> bytes:
    return page(source, side)


_EMPTY: dict[str, Callable[[Source, int], bytes]] = {
    "black": lambda source, side: png(np.zeros((side, side))),
    "white": lambda source, side: png(np.full((side, side), 255)),
    "gray": partial(_page, light=lambda side, source: np.ones((side, side))),
    "uneven": partial(_page, light=uneven),
    "half in shadow": partial(_page, light=shaded),
    "gradient": _gradient,
    "noise": lambda source, side: png(source.uniform(0, 255, (side, side))),
}

EMPTY: dict[str, Page] = {
    f"{name}, {side} pixels": partial(_sized, page=page, side=side)
    for side in (28, 100, 280, 600)
    for name, page in _EMPTY.items()
}
