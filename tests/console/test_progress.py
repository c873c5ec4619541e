import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlp_dist.console import colors as colours
from tests.helpers.launching import DATASET, ROOT, environment, result, run
from tests.helpers.terminals import VARIABLES, in_terminal

WORK = [
    sys.executable,
    "-c",
    """
import sys, time
from mlp_dist import command, progress
from mlp_dist.core.errors import UsageError

def main():
    with progress.bar("decoding", 4, " images") as bar:
        for number in range(4):
            bar.update()
            progress.tell(f"image {number}")
    with progress.stages("packaging", 2) as begin:
        begin("the archive")
        time.sleep(0.6 if "slowly" in sys.argv else 0)
        begin("its answer")
    with progress.stages("starting"):
        pass
    progress.tell('{"images": 4}')
    raise UsageError("enough")

command.run(main)
""",
]
LINES = [*(f"image {number}" for number in range(4)), '{"images": 4}']


def test_a_terminal_has_bars_which_are_gone_at_the_end() -> None:
    seen = in_terminal([*WORK, "slowly"], ROOT)
    assert seen.code == 2
    drawn = ("decoding:  25%|", "decoding: 100%|", "/2 |", ", the archive", ", its answer", "starting 00:00")
    assert [each for each in drawn if each not in seen.written] == []
    assert seen.written.count(", the archive") > 1, "the clock stands still"
    assert seen.screen == [*LINES, "\x1b[1;31merror:\x1b[0m enough", ""]


def test_stdout_that_is_a_pipe_has_the_lines_alone_and_the_terminal_the_bars() -> None:
    seen = in_terminal(WORK, ROOT, piped=True)
    assert seen.stdout.splitlines() == LINES
    assert "decoding: 100%|" in seen.written
    assert seen.screen[-2:] == ["\x1b[1;31merror:\x1b[0m enough", ""]


@pytest.mark.parametrize(
    ("variables", "has_bars", "is_coloured"),
    [
        ({"NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, False, False),
        ({"RANK": "1"}, False, None),
    ],
)
def test_what_a_terminal_may_be_told(
    variables: dict[str, str], has_bars: bool, is_coloured: bool | None
) -> None:
    seen = in_terminal(WORK, ROOT, **variables)
    assert ("decoding: 100%|" in seen.written) == has_bars
    assert ("\x1b[1;31m" in seen.written) == bool(is_coloured)
    # Other processes are silent about errors too.
    assert seen.screen == [*LINES, *["error: enough"] * (is_coloured is not None), ""]


def test_a_pipe_has_neither() -> None:
    done = subprocess.run(WORK, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == LINES
    assert done.stderr == "error: enough\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variables", "in_a_terminal", "in_a_pipe"),
    [
        ({}, True, False),
        ({"TERM": "dumb"}, False, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, True, False),
        ({"FORCE_COLOR": "1"}, True, True),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, True, True),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False, False),
        ({"PYTHON_COLORS": "1", "NO_COLOR": "1"}, True, True),
        ({"PYTHON_COLORS": "0", "FORCE_COLOR": "1"}, False, False),
    ],
)
def test_colours_where_they_are_wanted(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], in_a_terminal: bool, in_a_pipe: bool
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert colours.wanted(Terminal()) == in_a_terminal
    assert colours.wanted(io.StringIO()) == in_a_pipe
    told = colours.error("no such file", Terminal())
    assert told == ("\x1b[1;31merror:\x1b[0m no such file" if in_a_terminal else "error: no such file")


TRAIN = [sys.executable, str(ROOT / "launch/train.py"), *DATASET, "--epochs", "2", "--log-every", "10"]


@pytest.mark.slow
@pytest.mark.parametrize("members", [[], ["--population", "2"]], ids=["one", "population"])
@pytest.mark.usefixtures("store_at_hand")
def test_a_training_in_a_terminal(tmp_path: Path, members: list[str]) -> None:
    seen = in_terminal([*TRAIN, *members], tmp_path)
    assert seen.code == 0
    drawn = (
        "starting 00:0",
        "\repoch 1/2: ",
        "\repoch 2/2: 100%|",
        "\rtesting",
        "\rMLflow gets the run 00:0",
    )
    assert [each for each in drawn if each not in seen.written] == []
    assert not [line for line in seen.screen if "%|" in line or "00:0" in line]
    assert sum(line.startswith("epoch ") for line in seen.screen) == 2
    assert json.loads(seen.screen[-2])["epochs"] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("store_at_hand")
def test_a_training_in_a_pipe_tells_line_by_line(tmp_path: Path) -> None:
    done = run(TRAIN, tmp_path)
    assert result(done)["epochs"] == 2
    assert "\r" not in done.stdout + done.stderr
    assert "%|" not in done.stdout + done.stderr
    assert done.stdout.count("\nepoch ") == 2
