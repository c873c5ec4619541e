"""Digits drawn with the mouse: wavy strokes of any size, anywhere."""

import math
import random
from collections.abc import Sequence

Point = tuple[float, float]
Stroke = Sequence[Point]


def _points(text: str) -> Stroke:
    pairs = (point.split(",") for point in text.split())
    return [(int(x) / 100, int(y) / 100) for x, y in pairs]


_POINTS = {
    "0": "50,0 20,15 10,50 20,85 50,100 80,85 90,50 80,15 52,1",
    "1": "50,0 50,50 48,100",
    "2": "15,25 30,4 60,0 82,20 70,50 40,78 12,100 | 12,100 50,97 90,99",
    "3": "18,12 45,0 75,12 70,36 42,46 | 42,46 75,55 82,80 50,100 14,88",
    "4": "25,0 20,30 15,58 | 15,58 50,57 90,55 | 70,2 68,50 66,100",
    "5": "25,2 23,25 20,45 21,45 50,38 80,52 82,80 50,100 12,90 | 25,2 50,3 85,0",
    "6": "70,0 40,20 20,60 25,90 50,100 78,85 72,60 48,53 24,70",
    "7": "12,5 50,3 88,2 | 88,2 60,50 42,100",
    "8": "50,48 25,32 30,6 52,0 75,10 72,34 50,48 | 50,48 20,68 25,93 50,100 80,90 80,66 50,48",
    "9": "80,20 50,0 20,18 25,44 52,50 78,30 | 80,15 76,60 68,100",
}
"""Points of each digit's strokes in hundredths: x to the right, y down."""

STROKES = {digit: [_points(stroke) for stroke in text.split("|")] for digit, text in _POINTS.items()}


def drawn(strokes: Sequence[Stroke], chance: random.Random, side: float) -> list[list[Point]]:
    """The strokes on a square of `side`, with random size, place, slant and waves."""
    height = side * chance.uniform(0.4, 0.8)
    width = height * chance.uniform(0.55, 0.8)
    slant = chance.uniform(-0.15, 0.25)
    margin = 0.06 * side
    left = chance.uniform(margin + 0.15 * height, side - margin - width - 0.25 * height)
    top = chance.uniform(margin, side - margin - height)
    placed = []
    for stroke in strokes:
        points = curve([(x + chance.gauss(0, 0.02), y + chance.gauss(0, 0.02)) for x, y in stroke])
        phase, waves, amplitude = chance.uniform(0, 6.3), chance.uniform(1, 3), 0.008 * side
        line = []
        for number, (x, y) in enumerate(points):
            turn = 6.0 * waves * number / len(points)
            shift = slant * height * (0.5 - y) + amplitude * math.sin(phase + turn)
            line.append((left + width * x + shift, top + height * y + amplitude * math.cos(phase + turn)))
        placed.append(line)
    return placed


def curve(points: Stroke, steps: int = 5) -> list[Point]:
    """A Catmull-Rom spline through the points."""
    ends = [points[0], *points, points[-1]]
    found = []
    for a, b, c, d in zip(ends, ends[1:], ends[2:], ends[3:], strict=False):
        for step in range(steps):
            t = step / steps
            found.append(tuple(_interpolate(*axis, t) for axis in zip(a, b, c, d, strict=True)))
    return [*found, points[-1]]


def _interpolate(a: float, b: float, c: float, d: float, t: float) -> float:
    return 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
