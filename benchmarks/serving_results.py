"""What benchmarks/serving.py found: a table for people, goals, an object for JSON."""

import statistics
from dataclasses import dataclass
from typing import Any

OURS, UNBATCHED = "mlp_dist", "mlp_dist, batch size 1"
CEILING, STOCK, FASTAPI, LITSERVE = "ceiling", "image_classifier", "fastapi", "litserve"

COLUMNS = "{:<24} {:>5} {:>10} {:>12} {:>9} {:>9} {:>11} {:>10}"
HEADER = COLUMNS.format(
    "", "conns", "requests/s", "of ceiling", "p50 ms", "p99 ms", "CPU s/1000", "load busy"
)

CEILING_GOAL, CEILING_P99_GOAL, STOCK_GOAL, AHEAD_GOAL = 0.95, 1.2, 1.5, 1.0
LONE_GOAL, READY_GOAL, MEMORY_GOAL = 1.1, 1.5, 1.15
AT, FASTAPI_FROM = 32, 16
"""The connections at which the ceiling and the stock handler count, and from which on FastAPI does."""


@dataclass(frozen=True)
class Window:
    """One contestant under one load for some seconds; latencies in ms, CPU in seconds for 1000 requests."""

    rate: float
    p50: float
    p99: float
    cpu: float
    busy: float


@dataclass(frozen=True)
class Cell:
    """A contestant at a number of connections, over the rounds; figures are medians."""

    windows: list[Window]

    def median(self, name: str) -> float:
        values: list[float] = [getattr(window, name) for window in self.windows]
        return statistics.median(values)

    def to_json(self) -> dict[str, Any]:
        figures = {name: self.median(name) for name in ("rate", "p50", "p99", "cpu", "busy")}
        return figures | {"rates": [window.rate for window in self.windows]}


Cells = dict[tuple[str, int], Cell]
"""By contestant and connections."""


def rows(cells: Cells) -> list[str]:
    found = []
    for (name, connections), cell in sorted(cells.items(), key=lambda item: item[0][1]):
        ceiling = cells.get((CEILING, connections))
        share = f"{cell.median('rate') / ceiling.median('rate'):.3f}" if ceiling else ""
        found.append(
            COLUMNS.format(
                name,
                connections,
                f"{cell.median('rate'):.0f}",
                share,
                f"{cell.median('p50'):.2f}",
                f"{cell.median('p99'):.2f}",
                f"{cell.median('cpu'):.3f}",
                f"{cell.median('busy'):.0%}",
            )
        )
    return found


@dataclass(frozen=True)
class Goal:
    name: str
    value: float
    sign: str
    wanted: float

    @property
    def met(self) -> bool:
        signs = {
            ">=": self.value >= self.wanted,
            "<=": self.value <= self.wanted,
            ">": self.value > self.wanted,
        }
        return signs[self.sign]

    def __str__(self) -> str:
        met = "met" if self.met else "missed"
        return f"  {self.name:<58} {self.value:>6.3f}  wanted {self.sign} {self.wanted:<5g} {met}"

    def to_json(self) -> dict[str, Any]:
        wanted = f"{self.sign} {self.wanted:g}"
        return {"name": self.name, "value": self.value, "wanted": wanted, "met": self.met}


def goals(cells: Cells) -> list[Goal]:
    """Those of speed whose contestants were there: ratios of medians."""
    found = []

    def add(
        figure: str, ours: str, other: str, connections: int, sign: str, wanted: float, *, told: str = ""
    ) -> None:
        mine, its = cells.get((ours, connections)), cells.get((other, connections))
        if mine and its:
            name = f"{told or figure} of {ours} / {other} at {connections}"
            found.append(Goal(name, mine.median(figure) / its.median(figure), sign, wanted))

    add("rate", OURS, CEILING, AT, ">=", CEILING_GOAL, told="requests/s")
    add("p99", OURS, CEILING, AT, "<=", CEILING_P99_GOAL)
    add("rate", OURS, STOCK, AT, ">=", STOCK_GOAL, told="requests/s")
    for connections in sorted({connections for _, connections in cells}):
        add("rate", OURS, LITSERVE, connections, ">", AHEAD_GOAL, told="requests/s")
        if connections >= FASTAPI_FROM:
            add("rate", OURS, FASTAPI, connections, ">", AHEAD_GOAL, told="requests/s")
    add("p50", OURS, UNBATCHED, 1, "<=", LONE_GOAL)
    return found
