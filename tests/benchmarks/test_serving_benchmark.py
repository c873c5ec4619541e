import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import serving, serving_archives
from benchmarks.serving_load import Load, drive
from benchmarks.serving_results import (
    CEILING,
    FASTAPI,
    LITSERVE,
    OURS,
    STOCK,
    UNBATCHED,
    Cell,
    Window,
    goals,
    rows,
)
from mlp_dist.core.errors import ServerError, UsageError
from tests.helpers.launching import Trained


def cell(rate: float, p50: float = 1.0, p99: float = 2.0) -> Cell:
    """Rounds of which one was disturbed."""
    return Cell([Window(each, p50, p99, cpu=0.5, busy=0.1) for each in (rate, rate, rate / 10)])


@pytest.mark.parametrize(
    ("other", "connections", "cells", "met"),
    [
        (CEILING, 32, (cell(951), cell(1000)), [True, True]),
        (CEILING, 32, (cell(940), cell(1000)), [False, True]),
        (CEILING, 32, (cell(1000, p99=2.5), cell(1000)), [True, False]),
        (CEILING, 8, (cell(100), cell(1000)), []),
        (STOCK, 32, (cell(1501), cell(1000)), [True]),
        (STOCK, 32, (cell(1499), cell(1000)), [False]),
        (LITSERVE, 1, (cell(1000), cell(1000)), [False]),
        (FASTAPI, 8, (cell(1), cell(1000)), []),
        (FASTAPI, 16, (cell(1001), cell(1000)), [True]),
        (UNBATCHED, 1, (cell(1, p50=1.1), cell(1)), [True]),
        (UNBATCHED, 1, (cell(1, p50=1.2), cell(1)), [False]),
    ],
)
def test_the_goals(other: str, connections: int, cells: tuple[Cell, Cell], met: list[bool]) -> None:
    found = goals({(OURS, connections): cells[0], (other, connections): cells[1]})
    assert [goal.met for goal in found] == met
    assert all(str(goal).endswith(" met" if goal.met else " missed") for goal in found)


def test_a_row_is_medians_and_the_share_of_the_ceiling() -> None:
    row, _ = rows({(OURS, 8): cell(900), (CEILING, 8): cell(1000)})
    assert row.split() == [OURS, "8", "900", "0.900", "1.00", "2.00", "0.500", "10%"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rounds", "0"], "rounds is 0; it must be 1 or more"),
        (["--seconds", "nan"], "seconds is nan; it must be 0.5 or more"),
        (["--connections", "8", "0"], "connections is 0; it must be 1 or more"),
        (["--only", "fastapy"], "unknown contestant 'fastapy'; did you mean fastapi?"),
    ],
)
def test_wrong_use(flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["serving", *flags])
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        serving.parse()


@pytest.mark.parametrize(
    ("path", "manner", "message"),
    [("other", "good", "404"), ("file", "half", "answered with b'HTTP/1.0 200")],
)
def test_a_load_ends_at_an_answer_that_is_none(
    path: str, manner: str, message: str, serve_files: Callable[..., Any]
) -> None:
    mirror = serve_files({"file": b"0123456789"}, manner)
    request = f"GET /{path} HTTP/1.0\r\n\r\n".encode()
    port = int(mirror.url.rstrip("/").rpartition(":")[2])
    with pytest.raises(ServerError, match=message):
        drive(Load(port, [request], connections=1, seconds=0.5))


@pytest.mark.slow
def test_the_handler_is_measured_beside_the_ceiling(
    packaged: Path,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    archive = serving_archives.unpack(packaged, tmp_path, trained.result["dataset"])
    monkeypatch.setattr(serving_archives, "train", lambda directory: archive)
    monkeypatch.setitem(serving.servers.NEEDS, STOCK, ("no_such_package",))
    flags = ["--only", STOCK, "--rounds", "2", "--seconds", "0.5", "--warm-up", "0.5", "--starts", "1"]
    monkeypatch.setattr(sys, "argv", ["serving", *flags, "--connections", "1", "4"])
    serving.main()
    out = capsys.readouterr().out
    assert f"left out: {STOCK}, as no_such_package is not installed" in out
    told = json.loads(out.splitlines()[-1])
    assert [(each["name"], each["connections"]) for each in told["cells"]] == [
        (OURS, 1),
        (CEILING, 1),
        (OURS, 4),
        (CEILING, 4),
    ]
    for each in told["cells"]:
        assert len(each["rates"]) == 2
        assert 0 < each["p50"] <= each["p99"]
        assert each["cpu"] > 0
    for tree, worker in (each.values() for each in told["memory"].values()):
        assert tree > 100
        assert worker > 100
    assert told["start"]["ready_seconds"] > 0
    assert told["start"]["import_seconds"] > 0
    assert [goal["name"].split()[0] for goal in told["goals"]] == ["start", "memory"]
