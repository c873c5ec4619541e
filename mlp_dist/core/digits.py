"""A picture of one digit -> the image that MNIST would have of it, with OpenCV.

MNIST's makers scaled a digit into 20x20 pixels and put its centre of mass into the middle of 28x28 (Y. LeCun,
C. Cortes, C. Burges: The MNIST database of handwritten digits). Photographs first need their sheet of paper
found, ruled lines removed, light evened out, and ink told from dust, folds and shadows. A page is uint8 (H,
W) with dark ink, PAGE pixels long; a mask is bool (H, W).
"""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from mlp_dist.core.errors import EmptyPageError

Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]

SIZE, BOX = 28, 20
"""The side of MNIST's images, and of the box that holds their ink."""

PAGE, CELL, SMALLEST = 256, 4, 40
"""The side of a page and of its cells, and of pictures on which sheets and ruled lines differ from ink."""

SHORTEST, WIDEST, LINE = 16, 52, 3
"""The shortest digit, and half of the widest stroke and of the widest ruled line, in pixels of a page."""

LEAST_CONTRAST, LEAST_DEVIATIONS, EDGE = 20, 7, 0.4
"""Ink's contrast, in gray levels and in deviations of its paper, and its share at a stroke's edge."""

_ONES = np.ones(SIZE, np.float32)
_OFF_CENTRE = np.stack([np.arange(SIZE) - 13.47, 14.51 - np.arange(SIZE)], 1)
"""A profile's products with these are above 0 if its centre of mass lies between the two places."""


def as_mnist(gray: Bytes) -> Bytes:
    """A gray picture of one digit, uint8 (H, W) of any size -> uint8 (28, 28), light ink on black.

    The ink may be darker or lighter than its paper. An image that is framed as MNIST's is returned as it is.
    Raises EmptyPageError if no ink stands out from the page.
    """
    if gray.shape == (SIZE, SIZE):
        framed = are_framed(np.stack([gray, 255 - gray]))
        if any(framed):
            return gray if framed[0] else 255 - gray
    ink = _find(gray)
    if ink is None:
        need = "send a picture of one digit that is clearly darker or lighter than its paper"
        raise EmptyPageError(f"the page is empty: no digit stands out from it; {need}")
    return _framed(_with_usual_strokes(ink))


def are_framed(images: Bytes) -> list[bool]:
    """For each of uint8 (N, 28, 28) images, whether it is framed as MNIST's are: a pixel of 254 or 255, a box
    of ink 19 or 20 pixels long in rows or columns, and its centre of mass within half a pixel of pixel 14.
    """
    gray = images.astype(np.float32)
    # Of columns and of rows. Products are the quickest sums, and so few integers exact in float32.
    profiles = np.concatenate((_ONES @ gray, gray @ _ONES))
    centred = (profiles @ _OFF_CENTRE > 0).all(1).reshape(2, -1).all(0)
    used = profiles > 0
    longest = (SIZE - used.argmax(1) - used[:, ::-1].argmax(1)).reshape(2, -1).max(0)
    bright = (images.reshape(-1, SIZE * SIZE).max(1) >= 254) & (images[:, 0, 0] == 0)
    return list((bright & centred & (longest >= BOX - 1) & (longest <= BOX)).tolist())


def _find(gray: Bytes) -> Array | None:
    """The ink of the digit, as `_digit` returns it, in the most probable view of the picture that has one."""
    page = _with_dark_ink(_fit(gray))
    if min(*gray.shape, *page.shape) >= SMALLEST:
        for inside, is_bare in _sheets(page):
            ink = _digit(_without_lines(_with_dark_ink(_cut_out(gray, inside))))
            if ink is not None or is_bare:
                return ink
        page = _without_lines(page)
    ink = _digit(page)
    if ink is None:
        # A digit that fills the picture has more ink than paper at its border.
        level, side = float(np.median(page[_border(page)])), max(page.shape)
        y, x = ((side * 3 // 2 - length) // 2 for length in page.shape)
        whole = cv2.copyMakeBorder(page, y, y, x, x, cv2.BORDER_CONSTANT, value=level)
        ink = _digit(_with_dark_ink(_fit(whole)), [0.85 / 1.5 * length for length in page.shape])
    # Corners, or what surrounds the page, may be darker than the ink.
    return ink if ink is not None else _digit(255 - page)


def _fit(gray: Array, longest: int = PAGE) -> Array:
    step = max(1, max(gray.shape) // (8 * longest))
    gray = gray[::step, ::step]
    scale = longest / max(gray.shape)
    size = [max(1, round(length * scale)) for length in gray.shape[::-1]]
    return cv2.resize(gray, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _box(reach: float) -> Array:
    return np.ones((2 * round(reach) + 1,) * 2, np.uint8)


def _border(gray: Array, width: int = 1) -> Array:
    border = np.ones(gray.shape, bool)
    border[width:-width, width:-width] = False
    return border


def _around(ink: Array, margin: int = 0) -> tuple[slice, ...]:
    """The bounding box of a mask, with a margin inside of the page."""
    left, top, width, height = cv2.boundingRect(ink.astype(np.uint8))
    sides = ((top, height), (left, width))
    return tuple(slice(max(start - margin, 0), start + length + margin) for start, length in sides)


def _with_dark_ink(page: Array) -> Array:
    """The page, or its negative if its ink is light: most pixels, and most at the border, are paper."""
    gray, around = _fit(page, PAGE // CELL).astype(np.float32), _box(PAGE / CELL / 4)
    high, low = cv2.dilate(gray, around), cv2.erode(gray, around)
    weight, vote = (high - low) ** 2, (2 * gray - high - low) * (high - low)
    dark = sum(vote[where].sum() / max(weight[where].sum(), 1) for where in (np.s_[:], _border(gray, 2))) > 0
    return page if dark else 255 - page


def _sheets(page: Array) -> Iterator[tuple[Array, bool]]:
    """The insides of sheets and frames, light ones first, as masks of cells; whether each is bare paper."""
    for light in (page, 255 - page):
        cells = cv2.erode(light, _box(CELL // 2))[CELL // 2 :: CELL, CELL // 2 :: CELL]
        _, mask = cv2.threshold(cells, 0, 1, cv2.THRESH_OTSU)
        if not 0 < mask.mean() < 1 or cells[mask > 0].mean() - cells[mask == 0].mean() < 25:
            continue
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        _, others = cv2.connectedComponents(1 - mask, connectivity=4)
        at_border = others[_border(mask)]
        for label in np.argsort(-stats[1:, cv2.CC_STAT_AREA])[:3] + 1:
            part, share = (labels == label).astype(np.uint8), stats[label, cv2.CC_STAT_AREA] / mask.size
            if share < 0.04 or (inside := _inside_sheet(part)) is None:
                continue
            beside = others[cv2.dilate(part, _box(1)) > part]
            # It lies on what reaches to the border, or is in a frame. What is in a zero is smaller.
            lies = (at_border > 0).mean() >= 0.5 and np.isin(beside, at_border[at_border > 0]).any()
            if lies or share >= 0.25:
                yield inside, bool(lies and not part[_border(part)].any() and part[inside].mean() >= 0.95)
                break


def _inside_sheet(part: Array) -> Array | None:
    """The inside of a part's outline if that is a sheet's: a rectangle, as seen from about above."""
    (outline, *_), _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    shorter, longer = sorted(side + 1 for side in cv2.minAreaRect(outline)[1])
    hull: Array = cv2.fillConvexPoly(np.zeros_like(part), cv2.convexHull(outline), 1)
    # An ellipse, such as the inside of a zero, fills 0.785, a stroke is longer, and half a page may be dark.
    is_sheet = hull.sum() >= 0.92 * shorter * longer and part.sum() >= 0.46 * shorter * longer
    is_sheet &= longer <= 1.8 * shorter and part[_border(part)].sum() <= 0.7 * (shorter + longer)
    return cv2.erode(hull, _box(1), borderValue=0) > 0 if is_sheet else None


def _cut_out(gray: Bytes, inside: Array) -> Array:
    """The part of a picture that is the sheet, and around it the sheet's usual gray."""
    scale = max(gray.shape) / PAGE * CELL
    part = tuple(slice(round(each.start * scale), round(each.stop * scale)) for each in _around(inside))
    page, mask = _fit(gray[part]), inside[_around(inside)].astype(np.uint8)
    paper = cv2.resize(mask, page.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
    return np.where(paper, page, np.uint8(np.median(page[paper])))


def _without_lines(page: Array) -> Array:
    """The page without its ruled lines: straight, thin, from border to border, and at least two alike."""
    rows, number = _without_rows(page)
    columns, other = _without_rows(np.ascontiguousarray(rows.T))
    return np.ascontiguousarray(columns.T) if max(number, other) >= 2 else page


def _without_rows(page: Array) -> tuple[Array, int]:
    """The page without its horizontal lines, and their number."""
    height, width = page.shape
    closed = cv2.morphologyEx(page, cv2.MORPH_CLOSE, np.ones((2 * LINE + 1, 1), np.uint8))
    thin = cv2.blur(cv2.dilate(closed - page, np.ones((3, 1), np.uint8)), (9, 1)).astype(np.float32)
    thin -= 1.5 * np.median(thin[::4, ::4])
    seen, level, slant = (thin >= 4).astype(np.uint8), np.pi / 2, 0.06
    found = cv2.HoughLines(seen, 1, np.pi / 360, width // 4, None, 0, 0, level - slant, level + slant)
    if found is None:
        return page, 0
    rho, theta = found[:400, 0, :, None].transpose(1, 0, 2)
    x = np.arange(0, width, 4)
    y = ((rho - x * np.cos(theta)) / np.sin(theta)).round().astype(int)
    on, y = (y >= 0) & (y < height), y.clip(0, height - 1)
    # Ink hides a part of a line.
    strokes = cv2.morphologyEx(closed, cv2.MORPH_BLACKHAT, np.ones((1, 2 * WIDEST + 1), np.uint8))
    number, hidden = on.sum(1), cv2.dilate(strokes, _box(2))[y, x]
    strength = (thin[y, x] * on).sum(1) / np.maximum(number, 1)
    covered = (np.maximum(thin[y, x], hidden) >= strength[:, None] / 2) & on
    mask, lines = np.zeros_like(page), list[Array]()
    for line in y[(strength >= 4) & (covered.sum(1) >= 0.9 * number) & (number >= 0.05 * len(x))]:
        if all(np.abs(line - other).mean() > 2 * LINE for other in lines):
            lines.append(line)
            cv2.line(mask, (0, int(line[0])), (width - 1, int(line[-1])), 1, 4 * LINE + 1)
    return np.where(mask > 0, closed, page), len(lines)


def _digit(page: Array, least_box: list[float] | None = None) -> Array | None:
    """The ink of a digit and a margin around it, from 0 to 1; None if there is none, or not in such a box."""
    reach = WIDEST // CELL
    # The light goes on beyond the border as it does before it.
    wide = np.pad(_fit(page, PAGE // CELL).astype(np.float32), reach, "reflect", reflect_type="odd")
    closed = cv2.morphologyEx(wide, cv2.MORPH_CLOSE, _box(reach))[reach:-reach, reach:-reach]
    paper = cv2.resize(cv2.blur(closed, (reach, reach)).clip(32, 255).astype(np.uint8), page.shape[::-1])
    depth = cv2.subtract(paper, page)
    # Shadow takes from paper and ink alike what each of them reflects.
    contrast = cv2.divide(depth, paper, scale=255)
    smooth = cv2.GaussianBlur(contrast, (3, 3), 0)
    low, middle = np.quantile(smooth[::3, ::3], (0.16, 0.5)).astype(np.uint8)
    smooth = np.maximum(smooth, middle) - middle
    level = _level(smooth)
    is_clear = level >= max(LEAST_CONTRAST, LEAST_DEVIATIONS * int(middle - low))
    ink = _largest_parts(smooth > level / 2) if is_clear else None
    if ink is None or not _is_drawn(ink, smooth, level, page, depth, least_box):
        return None
    part = contrast[_around(ink, 1 + max(ink[_around(ink)].shape) // 10)]
    part = np.maximum(part, base := np.uint8(np.quantile(part, 0.25))) - base
    return np.float32((part / _level(part) - 0.2) / 0.6).clip(0, 1)


def _level(contrast: Array) -> float:
    """The mean of what is over half of it."""
    counts, level = np.bincount(contrast.ravel(), minlength=256), float(contrast.max())
    number, total = (each[::-1].cumsum()[::-1] for each in (counts, counts * np.arange(256)))
    for _ in range(8):
        half = int(np.ceil(level / 2))
        level = float(total[half] / number[half])
    return level


def _largest_parts(mask: Array) -> Array | None:
    """The connected components that belong to a digit; None if there is none."""
    joined = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, _box(CELL // 2))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(joined)
    areas, belongs = stats[:, cv2.CC_STAT_AREA], np.zeros(len(stats), bool)
    for label in np.argsort(-areas[1:])[:40] + 1:
        if areas[label] <= 0.04 * areas[belongs].max(initial=0):
            break
        x, y, width, height = stats[label, :4]
        box = labels[y : y + height, x : x + width] == label
        outlines, _ = cv2.findContours(box.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        at = np.array([x == 0, x + width == mask.shape[1], y == 0, y + height == mask.shape[0]])
        along = at @ [box[:, 0].sum(), box[:, -1].sum(), box[0].sum(), box[-1].sum()]
        # Folds cross the page, and shadows lie along its border.
        is_fold = (at[0] and at[1]) or (at[2] and at[3])
        belongs[label] = not is_fold and along <= 0.25 * sum(map(len, outlines))
    is_digit = areas[belongs].max(initial=0) > 0.4 * areas[belongs].sum()
    return np.logical_and(belongs[labels], mask) if is_digit else None


def _stroke_width(ink: Array) -> tuple[float, float]:
    """The mean width of the strokes, four times the mean of the distance transform; how much it varies."""
    distances = cv2.distanceTransform(np.pad(ink, 1).astype(np.uint8), cv2.DIST_L2, 3)
    ridge = distances[(distances >= cv2.dilate(distances, _box(1))) & (distances > 0)]
    return max(4 * float(distances[distances > 0].mean()) - 2, 1.0), float(ridge.std() / ridge.mean())


def _is_drawn(
    ink: Array, contrast: Array, level: float, page: Array, depth: Array, least_box: list[float] | None
) -> bool:
    """Whether ink is as large, as sharp, and in as few even strokes as what is drawn."""
    height, width = ink[_around(ink)].shape
    longer, near = max(width, height), contrast[_around(ink, 2)]
    stroke, variation = _stroke_width(ink[_around(ink)])
    share, is_large = stroke / longer, longer >= SHORTEST and height < len(ink) and width < ink.shape[1]
    if least_box:
        fills = height >= least_box[0], width >= least_box[1]
        is_large &= all(fills) or (any(fills) and share >= 0.04 and level >= 150)
    # What is pale and thick, or at the border, may be a shadow.
    at_border = least_box or ink[_border(ink)].any()
    is_dark = share <= (0.4 if level >= 160 else 0.3) and level >= 400 * share + (40 if at_border else -40)
    is_sharp = (near > 0.3 * level).sum() <= 1.9 * (near > 0.7 * level).sum()
    # Where a shadow ends or paper is bent, it is not as dark beside paper as it is on it.
    beside = cv2.morphologyEx(cv2.blur(page, (3, 3)), cv2.MORPH_BLACKHAT, _box(np.ceil(0.7 * stroke)))
    beside_share = np.median(beside[ink]) / np.median(cv2.blur(depth, (3, 3))[ink])
    is_stroke = ink.sum() >= longer * stroke and variation <= 0.7 and 0.5 <= beside_share <= 1.05
    return bool(is_large and is_dark and is_sharp and is_stroke)


def _with_usual_strokes(ink: Array) -> Array:
    """The ink with strokes as thick, in proportion to the digit, as most of MNIST's are."""
    ink = _fit(ink, round(max(ink.shape) * 5 * BOX / max(ink[_around(ink > EDGE)].shape)))
    longer, (stroke, _) = max(ink[_around(ink > EDGE)].shape), _stroke_width(ink > EDGE)
    wanted = min(max(stroke * BOX / longer, 2.0), 3.3)
    # What is added on either side lengthens the digit as well.
    more = round((wanted * longer - stroke * BOX) / (2 * (BOX - wanted)))
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * abs(more) + 1,) * 2)
    return cv2.dilate(np.pad(ink, more), disk) if more > 0 else cv2.erode(ink, disk)


def _framed(ink: Array) -> Bytes:
    """Ink from 0 to 1 -> MNIST's frame, with its centre of mass nearest to pixel 14."""
    pixels = _fit(ink[_around(ink > EDGE)], BOX)
    (height, width), sums = pixels.shape, (pixels.sum(1), pixels.sum(0))
    y, x = (SIZE // 2 - int(each @ np.arange(len(each)) / each.sum() + 0.5) for each in sums)
    top, left = min(max(y, 0), SIZE - height), min(max(x, 0), SIZE - width)
    frame = np.zeros((SIZE, SIZE), np.uint8)
    frame[top : top + height, left : left + width] = (pixels * (255 / pixels.max())).round()
    return frame
