"""MNIST's images as photographs and drawings of digits, and empty pages, as PNG and JPEG files.

Ink is float (side, side) in [0, 1], 0 for paper. Gray levels are in [0, 255], stroke widths in MNIST's
pixels.
"""

import io
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

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
    _picture(gray.round()).save(file, kind, **options)
    return file.getvalue()


def _picture(gray: Floats | Bytes) -> Image.Image:
    return Image.fromarray(gray.clip(0, 255).astype(np.uint8))


# Ink


def enlarged(image: Bytes, side: int, wider: float = 0.0) -> Floats:
    """MNIST's image as ink, with strokes widened by `wider` of its 28 pixels, or thinned if negative."""
    picture = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    reach = round(abs(wider) * side / 28 / 2)
    if reach:
        extreme = ImageFilter.MaxFilter if wider > 0 else ImageFilter.MinFilter
        picture = picture.filter(extreme(2 * reach + 1))
    return np.asarray(picture, np.float32) / 255


def cut_out(ink: Floats) -> Floats:
    """The digit's bounding box."""
    rows, columns = (np.flatnonzero((ink > 0.2).any(axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else ink[:1, :1]


def moved(ink: Floats, side: int, source: Source, *, margin: int = 0) -> Floats:
    """The digit at a random place on a page of `side` pixels, at least `margin` pixels from its border."""
    room = side - 2 * margin
    digit = cut_out(ink)[:room, :room]
    top, left = (margin + int(source.integers(0, room - length + 1)) for length in digit.shape)
    page = np.zeros((side, side), np.float32)
    page[top : top + digit.shape[0], left : left + digit.shape[1]] = digit
    return page


def one_pixel_wide(ink: Floats) -> Floats:
    """The skeleton of the ink: T. Zhang, C. Suen: A fast parallel algorithm for thinning digital patterns."""
    thin = np.pad(ink > 0.4, 1)
    clockwise = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
    for step in range(len(thin)):
        around = np.stack([np.roll(thin, (-y, -x), (0, 1)) for y, x in clockwise])
        north, east, south, west = around[::2]
        corner = east & south & (north | west) if step % 2 == 0 else north & west & (east | south)
        number = around.sum(0)
        connects = (~around & np.roll(around, -1, 0)).sum(0) != 1
        thin = thin & (connects | corner | (number < 2) | (number > 6))
    return thin[1:-1, 1:-1].astype(np.float32)


def on_paper(ink: Floats, paper: float, pen: float) -> Floats:
    return paper + (pen - paper) * ink


# Light


def uneven(side: int, source: Source) -> Floats:
    """Illumination in [0, 1] from one side, with soft patches."""
    slope, depth = _slope(side, source), source.uniform(0.3, 0.6)
    patches = Image.fromarray(source.normal(0, 0.04, (4, 4)).astype(np.float32))
    soft = np.asarray(patches.resize((side, side), Image.Resampling.BICUBIC), np.float32)
    light: Floats = (1 - depth * (0.5 + slope / 1.5) + soft).clip(0, 1)
    return light


def shaded(side: int, source: Source) -> Floats:
    """A shadow with an edge over about half of the page."""
    slope, depth = _slope(side, source), source.uniform(0.15, 0.4)
    edge = slope + source.uniform(-0.1, 0.1)
    light: Floats = 1 - depth / (1 + np.exp(-edge / source.uniform(0.02, 0.1)))
    return light


def _slope(side: int, source: Source) -> Floats:
    across, angle = np.linspace(-0.5, 0.5, side), source.uniform(0, 2 * np.pi)
    slope: Floats = np.cos(angle) * across[None, :] + np.sin(angle) * across[:, None]
    return slope


def dark_corners(side: int) -> Floats:
    """Vignetting: a tenth of the light in the corners."""
    x, y = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    return 1 - 0.45 * (x**2 + y**2)


def grain(side: int, source: Source, deviation: float) -> Floats:
    return source.normal(0, deviation, (side, side))


# Surroundings


def ruling(side: int, source: Source, *, squared: bool) -> Floats:
    """Slightly slanted lines in [0, 1]: squared paper, or ruled paper with a margin."""
    finer = 2
    image = Image.new("L", (finer * side, finer * side))
    draw = ImageDraw.Draw(image)
    step, width, end = source.uniform(0.05, 0.14), source.uniform(0.003, 0.009), finer * side
    slant = source.uniform(-0.02, 0.02)
    places = np.arange(source.uniform(-step, 0), 1 + step, step)
    upright = places if squared else np.array([source.uniform(0.08, 0.2)])
    lines = [(0.0, place - slant, 1.0, place + slant) for place in places]
    lines += [(place + slant, 0.0, place - slant, 1.0) for place in upright]
    for line in lines:
        draw.line([float(each * end) for each in line], fill=255, width=max(1, round(width * end)))
    return np.asarray(image.resize((side, side), Image.Resampling.BOX), np.float32) / 255


def ruled_page(side: int, source: Source, *, squared: bool) -> Floats:
    return source.uniform(210, 250) - source.uniform(30, 110) * ruling(side, source, squared=squared)


def on_desk(sheet: Floats, side: int, source: Source) -> Floats:
    """A sheet of paper, rotated by up to 15 degrees, at a random place on a darker desk."""
    angle = source.uniform(-15, 15)
    turned, cover = (
        _picture(each).rotate(angle, Image.Resampling.BICUBIC, expand=True)
        for each in (sheet, np.full_like(sheet, 255))
    )
    desk = Image.new("L", (side, side), round(source.uniform(20, 150)))
    left, top = (int(source.integers(0, max(1, side - length + 1))) for length in turned.size)
    desk.paste(turned, (left, top), cover)
    return np.asarray(desk, np.float32)


def photographed(gray: Floats, source: Source) -> bytes:
    """JPEG in weak uneven light, with grain."""
    side = len(gray)
    return jpeg(gray * uneven(side, source) ** 0.5 + grain(side, source, 3), source.uniform(60, 95))


# Rows


def _at_the_border(image: Bytes, source: Source) -> bytes:
    digit = cut_out(enlarged(image, 250))[:196, :196]
    page = np.pad(digit, [(0, 200 - length) for length in digit.shape])
    return png(on_paper(page, 245, 15))


def _cut_out(image: Bytes, source: Source) -> bytes:
    margin = int(source.integers(0, 9))
    return png(on_paper(np.pad(cut_out(enlarged(image, 280)), margin), 250, 20))


def _on_uneven(image: Bytes, source: Source, *, paper: float, pen: float) -> bytes:
    gray = on_paper(moved(enlarged(image, 200), 240, source), paper, pen) * uneven(240, source)
    return png(gray + grain(240, source, 3))


def _in_shadow(image: Bytes, source: Source) -> bytes:
    gray = on_paper(enlarged(image, 240), 225, 40) * shaded(240, source)
    return png(gray + grain(240, source, 3))


def _on_ruled(image: Bytes, source: Source, *, squared: bool) -> bytes:
    side = int(source.integers(200, 601))
    ink = enlarged(image, round(side * source.uniform(0.4, 0.9)), source.uniform(-0.3, 0.6))
    ink = moved(ink, side, source)
    page = ruled_page(side, source, squared=squared)
    return photographed(page + (source.uniform(20, 90) - page) * ink, source)


def _on_a_sheet(image: Bytes, source: Source) -> bytes:
    side = int(source.integers(240, 601))
    length = round(side * source.uniform(0.35, 0.75))
    ink = enlarged(image, round(length * source.uniform(0.6, 0.9)), source.uniform(-0.3, 0.6))
    page = moved(ink, length, source, margin=length // 20)
    sheet = on_paper(page, source.uniform(200, 245), source.uniform(20, 90))
    return photographed(on_desk(sheet, side, source), source)


def _in_a_frame(image: Bytes, source: Source) -> bytes:
    ink = moved(enlarged(image, int(source.integers(120, 240))), 300, source, margin=30)
    picture = _picture(on_paper(ink, 250, 20))
    gap, pen = int(source.integers(2, 20)), int(source.integers(0, 120))
    box = (gap, gap, 299 - gap, 299 - gap)
    ImageDraw.Draw(picture).rectangle(box, outline=pen, width=int(source.integers(1, 6)))
    return png(np.asarray(picture))


def _photograph(image: Bytes, source: Source) -> bytes:
    side = int(source.integers(200, 601))
    ink = enlarged(image, round(side * source.uniform(0.4, 0.9)), source.uniform(-0.6, 0.8))
    gray = on_paper(moved(ink, side, source), source.uniform(190, 240), source.uniform(30, 90))
    gray = gray * uneven(side, source) * (shaded(side, source) if source.random() < 0.3 else 1)
    gray = gray + grain(side, source, source.uniform(2, 8))
    blurred = _picture(gray).filter(ImageFilter.GaussianBlur(source.uniform(0, side / 300)))
    return jpeg(np.asarray(blurred), source.uniform(40, 90))


def _drawn(side: int, paper: float = 255, pen: float = 0, wider: float = 0.0) -> Picture:
    return lambda image, source: png(on_paper(enlarged(image, side, wider), paper, pen))


def _one_pixel(image: Bytes, source: Source, *, side: int, colors: str) -> bytes:
    """A drawing with a pen one pixel wide."""
    digit = enlarged(image, round(side * source.uniform(0.9, 1.3)))
    ink = moved(one_pixel_wide(digit), side, source, margin=1)
    if colors != "black on transparent":
        return png(on_paper(ink, *((255, 0) if colors == "black on white" else (0, 255))))
    alpha = _picture(255 * ink)
    file = io.BytesIO()
    Image.merge("LA", (Image.new("L", alpha.size), alpha)).save(file, "PNG")
    return file.getvalue()


PICTURES: dict[str, Picture] = {
    "as they are": lambda image, source: png(image),
    "inverted": lambda image, source: png(255 - image),
    **{f"dark on white, {side} pixels": _drawn(side) for side in (60, 120, 280, 600)},
    "off-centre": lambda image, source: png(
        on_paper(moved(enlarged(image, int(source.integers(60, 260))), 300, source), 255, 20)
    ),
    "at the border": _at_the_border,
    "cut out along its edges": _cut_out,
    "small on a large page": lambda image, source: png(
        on_paper(moved(enlarged(image, 80), 600, source), 240, 30) + grain(600, source, 3)
    ),
    "on gray paper": lambda image, source: png(
        on_paper(enlarged(image, 200), source.uniform(130, 200), source.uniform(20, 80))
    ),
    "on uneven paper": partial(_on_uneven, paper=225, pen=40),
    "chalk on an uneven board": partial(_on_uneven, paper=60, pen=230),
    "half in shadow": _in_shadow,
    "JPEG of quality 30": lambda image, source: jpeg(on_paper(enlarged(image, 140), 240, 20), 30),
    "JPEG of quality 15, 60 pixels": lambda image, source: jpeg(on_paper(enlarged(image, 60), 240, 20), 15),
    "noise": lambda image, source: jpeg(on_paper(enlarged(image, 200), 200, 60) + grain(200, source, 20), 60),
    "strokes thinned by 1 pixel of 28": _drawn(280, wider=-1),
    "strokes thickened by 1 pixel of 28": _drawn(280, wider=1),
    "faint pencil": lambda image, source: jpeg(
        on_paper(enlarged(image, 300, -0.6), 225, 180) + grain(300, source, 4), 80
    ),
    "photograph": _photograph,
    "photograph of a sheet on a desk": _on_a_sheet,
    "in a drawn frame": _in_a_frame,
    "on lined paper": partial(_on_ruled, squared=False),
    "on squared paper": partial(_on_ruled, squared=True),
    **{
        f"one-pixel pen, {colors}, {side} pixels": partial(_one_pixel, side=side, colors=colors)
        for colors in ("black on white", "white on black", "black on transparent")
        for side in (28, 32, 40)
    },
}
"""The first row is the clean one."""


def _page(source: Source, side: int, light: Callable[[int, Source], Floats]) -> bytes:
    gray = source.uniform(60, 250) * light(side, source) + grain(side, source, source.uniform(0, 8))
    return jpeg(gray, source.uniform(40, 95))


def _gradient(source: Source, side: int) -> bytes:
    ends = source.uniform(0, 100), source.uniform(150, 255)
    return png(np.broadcast_to(np.linspace(*ends, side), (side, side)))


def _sheet(source: Source, side: int) -> bytes:
    length = round(side * source.uniform(0.3, 0.8))
    gray = on_desk(np.full((length, length), source.uniform(200, 245)), side, source)
    return jpeg(gray + grain(side, source, 3), source.uniform(60, 95))


def _lit(page: Floats, source: Source) -> bytes:
    """A photograph of a page, gray levels as on white paper, in any light."""
    side = len(page)
    light = uneven(side, source) ** source.uniform(0, 1)
    gray = page * source.uniform(0.6, 1) * light + grain(side, source, source.uniform(0, 5))
    return jpeg(gray, source.uniform(40, 95))


def _dusty(source: Source, side: int) -> bytes:
    """Specks and short fibres."""
    page = Image.new("L", (side, side), 250)
    draw = ImageDraw.Draw(page)
    for _ in range(int(source.integers(1, 40))):
        (x, y), (wide, high) = source.uniform(0, side, 2), side * source.uniform(0.002, 0.01, 2)
        draw.ellipse((x - wide, y - high, x + wide, y + high), fill=round(source.uniform(20, 220)))
    for _ in range(int(source.integers(0, 6))):
        walk = source.uniform(0, side, 2) + side * source.normal(0, 0.008, (5, 2)).cumsum(0)
        draw.line([tuple(point) for point in walk.tolist()], fill=round(source.uniform(60, 220)), width=1)
    return _lit(np.asarray(page, np.float32), source)


def _folded(source: Source, side: int) -> bytes:
    """Paper unfolded: sharp straight creases across the page, each side of one as lit by its own slant."""
    page = np.full((side, side), 250.0)
    for turn in source.permutation(2)[: int(source.integers(1, 3))]:
        for _ in range(int(source.integers(1, 3))):
            angle = np.pi / 2 * turn + source.normal(0, 0.06)
            x, y = np.meshgrid(np.linspace(-0.5, 0.5, side), np.linspace(-0.5, 0.5, side))
            off = np.cos(angle) * x + np.sin(angle) * y - source.uniform(-0.35, 0.35)
            fade, width = source.uniform(0.03, 0.3), source.uniform(0.002, 0.012)
            page *= 1 + source.uniform(-0.15, 0.15) * np.sign(off) * np.exp(-np.abs(off) / fade)
            page *= 1 - source.uniform(-0.1, 0.4) * np.exp(-((off / width) ** 2))
    return _lit(page, source)


_EMPTY: dict[str, Callable[[Source, int], bytes]] = {
    "black": lambda source, side: png(np.zeros((side, side))),
    "white": lambda source, side: png(np.full((side, side), 255)),
    "gray": partial(_page, light=lambda side, source: np.ones((side, side))),
    "uneven": partial(_page, light=uneven),
    "half in shadow": partial(_page, light=shaded),
    "gradient": _gradient,
    "noise": lambda source, side: png(source.uniform(0, 255, (side, side))),
}

_MARKED: dict[str, Callable[[Source, int], bytes]] = {
    "lined": lambda source, side: photographed(ruled_page(side, source, squared=False), source),
    "squared": lambda source, side: photographed(ruled_page(side, source, squared=True), source),
    "bare sheet on a desk": _sheet,
    "dusty": _dusty,
    "folded": _folded,
}

EMPTY: dict[str, Page] = {
    f"{name}, {side} pixels": partial(lambda source, page, side: page(source, side), page=page, side=side)
    for pages, sides in ((_EMPTY, (28, 100, 280, 600)), (_MARKED, (280, 600)))
    for side in sides
    for name, page in pages.items()
}
