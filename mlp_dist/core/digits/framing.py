"""Any picture of one digit -> the picture that MNIST's makers would have made of it.

They scaled a digit's ink into 20x20 pixels, kept its aspect, and put its centre of mass into the middle of
28x28 (Y. LeCun, C. Cortes, C. Burges: The MNIST database of handwritten digits). Here that is preceded by
what a photograph needs: whether the ink is darker or lighter than its paper, what the paper looks like under
the ink, and where on it the digit stands.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlp_dist.core.digits.ink import (
    LEAST_CONTRAST,
    Bools,
    bounds,
    find_ink,
    is_edge,
    length,
    level_of,
    stroke_width,
)
from mlp_dist.core.digits.paper import (
    Box,
    Floats,
    along,
    contrast_of,
    is_dark,
    lighting,
    opened,
    scaled,
    spread,
    with_margin,
    within,
)
from mlp_dist.core.digits.ruled import without_lines
from mlp_dist.core.digits.sheets import find_sheets
from mlp_dist.core.errors import EmptyPageError

Bytes = npt.NDArray[np.uint8]

SIZE, BOX = 28, 20
"""The side of MNIST's images, and of the box that holds their ink, in pixels."""

_PAGE, _PAPER = 256, 64
"""The longest side of the copies on which the ink is looked for, and the paper's look."""

_REACHES = (0.2, 0.11)
"""Half the width, in the page's, of what is ink and not paper: where that finds no digit, the next."""

_LEAST_CUT_OUT = 60.0
"""Gray levels by which a digit that was cut out along its edges stands out from its paper: what is left of a
shadow where it ends at a margin does by less.
"""

_SHORTEST_CUT_OUT = 0.5
"""Its length, in that of its page with a margin, which is 1.5 times the page before."""

_MOST_INK = 0.5
"""The part that the ink of a digit is of a square of its length: of nine in ten of MNIST's 0.36 or less. What
lies around strokes, or between them, is more.
"""

_FINE = 5 * BOX
"""The longer side of the digit where its strokes are looked at."""

_STROKES = (2.0, 3.3)
"""The thinnest and thickest strokes that stay as they are, in pixels of the box: most of MNIST's."""

_RAMP = (0.2, 0.8)
"""The shares of the ink's contrast that become no ink, and all of it."""

_EDGE = 0.4
"""The digit's edge lies where there is so much of it."""

_ONES = np.ones(SIZE, np.float32)
_OFF_CENTRE = np.stack([np.arange(SIZE) - 13.47, 14.51 - np.arange(SIZE)], 1)
"""A profile's products with these are above 0 where its centre of mass lies between the two places."""


def as_mnist(gray: Bytes) -> Bytes:
    """A gray picture of one digit, uint8 (H, W) of any size -> uint8 (28, 28), light ink on black.

    The ink may be darker or lighter than its paper, and the paper uneven. An image that is framed as MNIST's
    is returned as it is. Raises EmptyPageError where no ink stands out from the page.
    """
    if gray.shape == (SIZE, SIZE):
        for each in (gray, 255 - gray):
            if are_framed(each[None])[0]:
                return each
    for digit in _found(Image.fromarray(gray)):
        if digit is not None:
            return _framed(_evened(digit))
    raise EmptyPageError(
        "the page is empty: no digit stands out from it; send a picture of one digit that is clearly "
        "darker or lighter than its paper"
    )


def _found(image: Image.Image) -> Iterator[Floats | None]:
    """The ink, at a fine scale, as the picture is most probably to be understood; then as it may be."""
    page = _Page.of(image)
    for sheet in find_sheets(_negative(page.small) if page.dark else page.small):
        yield _Page.of(sheet.cut_out(page.whole, 2 * _PAGE)).digit()
        if sheet.is_bare:
            return
    yield page.digit()
    # A digit that was cut out along its edges has more ink than paper at the border.
    yield _Page.of(with_margin(_fit(image, 2 * _PAGE))).digit(_LEAST_CUT_OUT, _was_cut_out)
    # What lies around the page, or in its corners, may be darker than the ink.
    yield page.turned().digit(is_digit=_is_of_strokes)


@dataclass(frozen=True)
class _Page:
    """A picture with light ink: `image`, two smaller copies of it, and the plane that the smallest lies near.

    `dark`: the ink is darker than the paper in truth.
    """

    image: Image.Image
    small: Image.Image
    tiny: Floats
    light: Floats
    dark: bool = False

    @classmethod
    def of(cls, image: Image.Image) -> Self:
        """With dark or light ink, and without the lines that its paper is ruled with."""
        page = cls._of(image)
        unruled = without_lines(_fit(page.image, 2 * _PAGE))
        if unruled is None:
            return page
        return cls._of(_negative(unruled) if page.dark else unruled)

    @classmethod
    def _of(cls, image: Image.Image) -> Self:
        small = _fit(image, _PAGE)
        tiny = np.asarray(_fit(small, _PAPER), np.float32)
        page = cls(image, small, tiny, lighting(tiny))
        return page.turned() if is_dark(tiny - page.light) else page

    @property
    def whole(self) -> Image.Image:
        """The picture as it was, but for lines."""
        return _negative(self.image) if self.dark else self.image

    def turned(self) -> Self:
        """As if its ink were its paper."""
        negatives = _negative(self.image), _negative(self.small)
        return type(self)(*negatives, 255 - self.tiny, 255 - self.light, not self.dark)

    def digit(
        self, least_contrast: float = LEAST_CONTRAST, is_digit: Callable[[Bools], bool] = lambda ink: True
    ) -> Floats | None:
        """The ink of a digit and a margin around it, from 0 to 1, at a fine scale; None where there is none.

        It stands out from its paper by `least_contrast` gray levels. `is_digit` is asked about what has been
        found on the small copy.
        """
        for reach in _REACHES:
            reached = round(reach * max(self.tiny.shape))
            paper = Image.fromarray(self.light + opened(self.tiny - self.light, reached))
            size = self.small.size
            contrast = contrast_of(self.small, paper, (0, 0, *size), size, self.dark)
            ink = find_ink(contrast, least_contrast)
            if ink.any() and is_digit(ink) and not is_edge(ink, self.small, paper):
                return _fine(self.image, paper, scaled(bounds(ink), size, self.image.size), self.dark)
        return None


def _was_cut_out(ink: Bools) -> bool:
    """Whether ink on a page with a margin reached to the edges that were there before, and is no page."""
    return length(ink) >= _SHORTEST_CUT_OUT * max(ink.shape) and _is_of_strokes(ink)


def _is_of_strokes(ink: Bools) -> bool:
    return bool(np.count_nonzero(ink) <= _MOST_INK * length(ink) ** 2)


def are_framed(images: Bytes) -> list[bool]:
    """For each of uint8 (N, 28, 28) images, whether it is framed as MNIST's are.

    Each of those has a pixel of 254 or 255, a box of ink 19 or 20 pixels long in rows or columns, and its
    centre of mass within half a pixel of pixel 14.
    """
    gray = images.astype(np.float32)
    # Of columns and of rows. Products are the quickest sums, and so few integers exact in float32.
    profiles = np.concatenate((_ONES @ gray, gray @ _ONES))
    centred = (profiles @ _OFF_CENTRE > 0).all(1).reshape(2, -1).all(0)
    used = profiles > 0
    lengths = SIZE - used.argmax(1) - used[:, ::-1].argmax(1)
    longest = lengths.reshape(2, -1).max(0)
    bright = (images.reshape(-1, SIZE * SIZE).max(1) >= 254) & (images[:, 0, 0] == 0)
    framed: list[bool] = (bright & centred & (longest >= BOX - 1) & (longest <= BOX)).tolist()
    return framed


def _fit(image: Image.Image, longest: int) -> Image.Image:
    scale = longest / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BOX)


def _negative(image: Image.Image) -> Image.Image:
    return image.point([255 - value for value in range(256)])


def _fine(image: Image.Image, paper: Image.Image, box: Box, dark: bool) -> Floats:
    """The ink in the box and a margin around it, from 0 to 1, at a fine scale."""
    margin = 0.1 * max(box[2] - box[0], box[3] - box[1]) + max(image.size) / _PAGE
    box = within((box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin), image.size)
    width, height = box[2] - box[0], box[3] - box[1]
    scale = 1.2 * _FINE / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    contrast = contrast_of(image, paper, box, size, dark)
    contrast -= np.quantile(contrast, 0.25)
    low, high = _RAMP
    return ((contrast / level_of(contrast) - low) / (high - low)).clip(0, 1)


def _evened(ink: Floats) -> Floats:
    """The ink with strokes as thick, in proportion to the digit, as most of MNIST's are."""
    edge = ink > _EDGE
    longer, stroke = length(edge), stroke_width(edge)
    wanted = min(max(stroke * BOX / longer, _STROKES[0]), _STROKES[1])
    # What is added on either side lengthens the digit as well.
    more = (wanted * longer - stroke * BOX) / (2 * (BOX - wanted))
    extreme = np.maximum if more > 0 else np.minimum
    ink = np.pad(ink, max(0, round(more)))
    for step in range(round(abs(more))):
        # Squares and crosses in turn make an octagon.
        across = extreme(along(ink, 1, extreme), along(ink.T, 1, extreme).T)
        ink = spread(ink, 1, extreme) if step % 2 else across
    return ink


def _framed(ink: Floats) -> Bytes:
    """Ink from 0 to 1 -> MNIST's frame."""
    box = bounds(ink > _EDGE)
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
