"""Curves by epoch as inline SVG; colours and sizes of letters are the page's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mlp_dist.tracking.curves import Curve

WIDTH, HEIGHT = 600, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 588, 12, 262
"""The edges of the plot, in units of the picture."""

_SHARE_BELOW = 0.1
"""Of all points, so many lie below an axis that is not logarithmic where they would take half of it: where
runs begin would press together where they end, which is what is compared."""


_TICKS = 7
"""On an axis that is not logarithmic, at most."""

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Line:
    """A run's curve; `colour` is a class of the page's, "" for one of many in gray."""

    run_id: str
    name: str
    colour: str
    curve: Curve


@dataclass(frozen=True)
class Axis:
    """From values to a picture's units, between two of them."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (math.log(x) if self.is_log else x for x in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Round values between its ends; on a logarithmic one 1, 2 and 5 of each ten, or 1 alone."""
        if not self.is_log or self.high < 5 * self.low:
            step = _round_step((self.high - self.low) / _TICKS)
            first, last = math.ceil(self.low / step - _ROUNDING), math.floor(self.high / step + _ROUNDING)
            return [step * number for number in range(first, last + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        parts = (1, 2, 5) if self.high < 100 * self.low else (1,)
        found = [part * 10.0**decade for decade in decades for part in parts]
        return [value for value in found if self.low <= value <= self.high]


def _round_step(least: float) -> float:
    size = 10.0 ** math.floor(math.log10(least))
    return next(part * size for part in (1, 2, 5, 10) if part * size >= least * 0.999)


def draw(lines: Sequence[Line], title: str, *, is_log: bool = False) -> str:
    """The lines, the last on top, with axes: epochs to the right. A logarithmic one leaves out what is not
    above 0.
    """
    lines = [
        Line(
            line.run_id, line.name, line.colour, [point for point in line.curve if point[1] > 0 or not is_log]
        )
        for line in lines
    ]
    points = [point for line in lines for point in line.curve]
    if not points:
        return f'<p class="none">no run has {escape(title)}</p>'
    across = _epochs([epoch for epoch, _ in points])
    up = _values([value for _, value in points], is_log)
    drawn = "".join(_line(line, across, up) for line in lines if line.curve)
    # The page has a chart of this title for each board.
    clip = f"clip-{title.replace('/', '-')}-{lines[0].run_id}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} by epoch">'
        f'<clipPath id="{clip}"><rect x="{LEFT - 4}" y="{TOP - 4}" width="{RIGHT - LEFT + 8}" '
        f'height="{BOTTOM - TOP + 8}"/></clipPath>'
        f'{_grid(across, up)}<g clip-path="url(#{clip})">{drawn}</g></svg>'
    )


def _epochs(epochs: Sequence[int]) -> Axis:
    low, high = min(epochs), max(epochs)
    return Axis(low, max(high, low + 1), LEFT, RIGHT)


def _values(values: Sequence[float], is_log: bool) -> Axis:
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    if is_log:
        return Axis(low * 0.95, high * 1.05, BOTTOM, TOP, is_log=True)
    most = ordered[int(_SHARE_BELOW * len(ordered))]
    low = most if most - low > 0.5 * (high - low) else low
    room = (high - low) * 0.05 or abs(high) * 0.01 or 1.0
    return Axis(low - room, high + room, BOTTOM, TOP)


def _grid(across: Axis, up: Axis) -> str:
    found = []
    for value in up.ticks():
        y = up.at(value)
        found.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        found.append(f'<text class="up" x="{LEFT - 8}" y="{y + 4:.1f}">{value:.4g}</text>')
    for value in across.ticks():
        if value == round(value):
            found.append(
                f'<text class="across" x="{across.at(value):.1f}" y="{BOTTOM + 18}">{value:.0f}</text>'
            )
    middle = (LEFT + RIGHT) / 2
    found.append(f'<text class="across" x="{middle}" y="{HEIGHT - 4}">epoch</text>')
    return "".join(found)


def _line(line: Line, across: Axis, up: Axis) -> str:
    places = [(across.at(epoch), up.at(value)) for epoch, value in line.curve]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    x, y = places[-1]
    return (
        f'<g class="curve {line.colour or "other"}" data-run="{line.run_id}"><title>{escape(line.name)}: '
        f'{line.curve[-1][1]:.4g}</title><path d="{path}"/><path class="near" d="{path}"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/></g>'
    )
