"""Boards as one HTML page that needs nothing else: curves, and a table that can be sorted."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import NamedTuple

from mlp_dist.core.io import replacing_file
from mlp_dist.tracking.curves import Curve
from mlp_dist.tracking.leaderboard.boards import Board, Row
from mlp_dist.tracking.leaderboard.chart import Line, draw
from mlp_dist.tracking.leaderboard.text import number, value_cell

CURVES = ("val/accuracy", "train/loss")
"""The metrics by epoch that are drawn."""

COLOURS = 8
"""Of more runs the first so many have a colour each, and the others are gray until they are pointed at."""


class Column(NamedTuple):
    """`cells` are what is shown, as HTML, and what it is sorted by; `kind` is a class of the page's."""

    name: str
    cells: list[tuple[str, object]]
    kind: str = ""


def write_page(
    path: Path, experiment: str, boards: Sequence[Board], curves: dict[str, dict[str, Curve]]
) -> None:
    """`curves`: run id -> metric of CURVES -> its curve. Replaces an older page when the new one is whole."""
    template = Template((files(__package__) / "page.html").read_text())
    now = datetime.now(UTC)
    page = template.substitute(
        title=escape(experiment),
        summary=escape(_summary(boards)),
        time=f'<time datetime="{now:%Y-%m-%dT%H:%MZ}">{now.day} {now:%B %Y, %H:%M} UTC</time>',
        boards="\n".join(_section(board, curves) for board in boards),
    )
    with replacing_file(path) as temporary:
        temporary.write_text(page)


def _summary(boards: Sequence[Board]) -> str:
    num_runs = sum(len(board.rows) for board in boards)
    runs = f"{num_runs} run{'s' * (num_runs != 1)}"
    where = f" on {len(boards)} data sets, each ranked by itself" if len(boards) > 1 else ""
    return f"{runs}{where}, the best by {boards[0].metric} first" if boards else "no run"


def _section(board: Board, curves: dict[str, dict[str, Curve]]) -> str:
    colours = [f"c{at}" if at < COLOURS else "" for at in range(len(board.rows))]
    charts = "".join(
        f"<figure><figcaption>{escape(name)}</figcaption>{_chart(board, colours, curves, name)}</figure>"
        for name in CURVES
    )
    columns = _columns(board)
    heads = "".join(map(_head, columns))
    rows = "\n".join(
        _row(row, colours[at], [_cell(*column.cells[at], column.kind) for column in columns])
        for at, row in enumerate(board.rows)
    )
    return (
        f"<section><h2>{escape(board.dataset)}</h2><p>{_best(board)}</p>"
        f'<div class="charts">{charts}</div>'
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>\n{rows}\n</tbody></table></div>"
        "</section>"
    )


def _best(board: Board) -> str:
    first = board.rows[0]
    if first.place is None:
        return "No run has ended well with this figure."
    champion = next((row for row in board.rows if row.is_champion), None)
    which = "Best, and the champion" if champion is first else "Best"
    told = f"{which}: <b>{escape(first.run.name)}</b>, {board.metric} {value_cell(first, board.metric)}."
    if champion in (None, first):
        return told
    return f"{told} The champion: <b>{escape(champion.run.name)}</b>, {value_cell(champion, board.metric)}."


def _chart(board: Board, colours: Sequence[str], curves: dict[str, dict[str, Curve]], name: str) -> str:
    lines = [
        Line(row.run.run_id, row.run.name, colour, curves[row.run.run_id][name])
        for row, colour in zip(board.rows, colours, strict=True)
    ]
    # The best is drawn last, on top of the others.
    return draw(lines[::-1], name, is_log=name.endswith("loss"))


def _columns(board: Board) -> list[Column]:
    rows = board.rows
    found = [
        Column("place", [(f"<i></i>{row.place or '-'}", row.place) for row in rows], "place"),
        Column("run", [(_name(row), row.run.name) for row in rows]),
        Column(
            board.metric,
            [(value_cell(row, board.metric), row.value if row.place else None) for row in rows],
            "figure",
        ),
    ]
    for name in board.figures:
        values = [row.figure(name) for row in rows]
        found.append(Column(name, [(number(value, name), value) for value in values], "figure"))
    for name in board.columns:
        chosen = [row.chosen[name] for row in rows]
        kind = "number" if all(map(_is_number, chosen)) else ""
        found.append(Column(name, [(escape(value), value) for value in chosen], kind))
    return found


def _name(row: Row) -> str:
    run = row.run
    marks = '<span class="mark">champion</span>' if row.is_champion else ""
    marks += f'<span class="mark status">{escape(row.status)}</span>' if row.status else ""
    return f'<span class="run">{escape(run.name)}</span>{marks}<small>{run.run_id[:8]}</small>'


def _is_number(text: str) -> bool:
    try:
        float(text or 0)
    except ValueError:
        return False
    return True


def _head(column: Column) -> str:
    name = escape(column.name).replace("_", "_<wbr>")
    return f'<th class="{column.kind}" tabindex="0">{name}</th>'


def _row(row: Row, colour: str, cells: Iterable[str]) -> str:
    flags = {"best": row.place == 1, "champion": row.is_champion, "unranked": row.place is None}
    kinds = " ".join([colour or "other", *(name for name, is_set in flags.items() if is_set)])
    return f'<tr data-run="{row.run.run_id}" class="{kinds}">{"".join(cells)}</tr>'


def _cell(shown: str, value: object, kind: str) -> str:
    """`value` is what the column is sorted by."""
    key = "" if value is None else escape(str(value))
    return f'<td class="{kind}" data-value="{key}">{shown}</td>'
