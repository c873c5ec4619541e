"""Boards as lines for a terminal, and as CSV."""

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from mlp_dist.core.io import replacing_file
from mlp_dist.tracking.leaderboard.boards import Board, Row

_SHORTEST = 16
"""Letters that a run's name keeps, in a terminal however narrow."""

_LEAST = 9
"""Letters that a heading may have in any case, and so its column."""

_GAP = "  "

_FIRST_OUT, _LAST_OUT = ("best_epoch", "best_val_loss"), ("status", "id")
"""What a narrow terminal does without first, and last: a run is named to other commands by its id."""

Table = dict[str, list[str]]
"""Headings and the cells below them."""


def lines(
    board: Board, width: int | None = None, emphasize: Callable[[str], str] = lambda line: line
) -> list[str]:
    """The board under a heading, in `width` letters; None: as wide as it is. The lines of the best run and of
    the champion are given to `emphasize`.

    Too wide, first the runs' names are shortened, then columns are left out, which is told.
    """
    table = _table(board)
    left_out = [] if width is None else _fit(table, board, width)
    runs = f"{len(board.rows)} run{'s' * (len(board.rows) != 1)}"
    more = f" of {len(board.rows) + board.left_out}" if board.left_out else ""
    found = [f"{board.dataset}: {runs}{more}, the best by {board.metric} first", ""]
    found += [_line(cells, table) for cells in _stacked(table)]
    for row, cells in zip(board.rows, zip(*table.values(), strict=True), strict=True):
        line = _line(cells, table)
        found.append(emphasize(line) if row.place == 1 or row.is_champion else line)
    notes = []
    if any(row.is_champion for row in board.rows):
        notes.append("* the champion")
    if any(row.place is None and row.value is not None for row in board.rows):
        notes.append("(0.9) what a run has reached that did not end well, or has not yet")
    if left_out:
        notes.append(f"no room for {', '.join(left_out)}")
    return found + [""] * bool(notes) + notes


def _table(board: Board) -> Table:
    rows = board.rows
    mark = "* " if any(row.is_champion for row in rows) else ("", "")
    table = {
        "#": [f"{row.place or '-'}{mark[not row.is_champion]}" for row in rows],
        "run": [row.run.name for row in rows],
        "id": [row.run.run_id[:8] for row in rows],
        "status": [row.status for row in rows],
        board.metric: [value_cell(row, board.metric) for row in rows],
    }
    if not any(table["status"]):
        del table["status"]
    table |= {name: [number(row.figure(name), name) for row in rows] for name in board.figures}
    return table | {name: [row.chosen[name] for row in rows] for name in board.columns}


def _fit(table: Table, board: Board, width: int) -> list[str]:
    """Make the table so narrow, where that can be; returns the columns that it has no more."""
    left_out = []
    for name in [*_FIRST_OUT, *board.columns[::-1], *board.figures[::-1], *_LAST_OUT]:
        if _width(table) - _cell_width("run", table["run"]) + _SHORTEST <= width:
            break
        if name in table:
            left_out.append(name)
            del table[name]
    names = table["run"]
    room = max(_SHORTEST, _cell_width("run", names) - max(0, _width(table) - width))
    table["run"] = [name if len(name) <= room else f"{name[: room - 1]}…" for name in names]
    return left_out


def value_cell(row: Row, metric: str) -> str:
    told = number(row.value, metric)
    return told if row.place or row.value is None else f"({told})"


def number(value: float | None, name: str) -> str:
    """A metric's value in four digits behind the point, but small ones in two that count."""
    if value is None:
        return "-"
    if name.endswith("epoch"):
        return f"{value:.0f}"
    return f"{value:.4f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def _stacked(table: Table) -> list[tuple[str, ...]]:
    """The headings in lines of cells, broken behind underscores where the cells below are shorter; their last
    lines stand beside each other.
    """
    broken = [_broken(heading, max(map(len, cells), default=0)) for heading, cells in table.items()]
    height = max(map(len, broken))
    return list(zip(*([""] * (height - len(parts)) + parts for parts in broken), strict=True))


def _broken(heading: str, width: int) -> list[str]:
    found = [""]
    for part in re.findall(r"[^_]+_?|_", heading):
        if found[-1] and len(found[-1] + part) > max(width, _LEAST):
            found.append("")
        found[-1] += part
    return found


def _cell_width(heading: str, cells: Sequence[str]) -> int:
    widest = max(map(len, cells), default=0)
    return max(widest, *map(len, _broken(heading, widest)))


def _width(table: Table) -> int:
    return sum(_cell_width(*column) for column in table.items()) + len(_GAP) * (len(table) - 1)


def _line(cells: Sequence[str], table: Table) -> str:
    words = []
    for cell, (heading, column) in zip(cells, table.items(), strict=True):
        is_numeric = heading != "id" and all(re.fullmatch(r"[\d.e+()* -]*", each) for each in column)
        width = _cell_width(heading, column)
        words.append(cell.rjust(width) if is_numeric else cell.ljust(width))
    return _GAP.join(words).rstrip()


def write_csv(boards: Sequence[Board], path: Path) -> None:
    """All boards in one file: what MLflow knows of each run but its figures by epoch, and what was chosen.

    Empty cells are what a run does not have.
    """
    rows = [(board, row) for board in boards for row in board.rows]
    figures = sorted({name for _, row in rows for name in row.run.metrics if _is_summary(name)})
    chosen = list(dict.fromkeys(name for board in boards for name in board.columns))
    with replacing_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "dataset",
                "place",
                "run_id",
                "name",
                "status",
                "champion",
                *figures,
                *map("param.{}".format, chosen),
            ]
        )
        for board, row in rows:
            run = row.run
            facts = [
                board.dataset,
                row.place,
                run.run_id,
                run.name,
                row.status or run.status,
                int(row.is_champion),
            ]
            writer.writerow(
                [
                    *facts,
                    *(run.metrics.get(name) for name in figures),
                    *(_param(row, name) for name in chosen),
                ]
            )


def _is_summary(name: str) -> bool:
    return "/" not in name or name.startswith("test_class_accuracy/")


def _param(row: Row, name: str) -> str:
    return row.chosen.get(name, row.run.params.get(name, ""))
