import subprocess
import sys

from tests.helpers.launching import ROOT, environment
from tests.helpers.terminals import in_terminal

WORK = [
    sys.executable,
    "-c",
    """
import sys, time
from mlp_dist.console import command, progress
from mlp_dist.core.errors import UsageError

def main():
    with progress.bar("decoding", 4, " images") as bar:
        for number in range(4):
            bar.update()
            progress.tell(f"image {number}")
    with progress.stages("packaging") as begin:
        begin("the archive")
        time.sleep(0.6 if "slowly" in sys.argv else 0)
        begin("its answer")
    progress.tell('{"images": 4}')
    raise UsageError("enough")

command.run(main)
""",
]
LINES = [*(f"image {number}" for number in range(4)), '{"images": 4}']


def test_bars_disappear_from_a_terminal() -> None:
    seen = in_terminal([*WORK, "slowly"], ROOT)
    assert seen.code == 2
    drawn = ("decoding:  25%|", "decoding: 100%|", "packaging 00:00, the archive", ", its answer")
    assert [each for each in drawn if each not in seen.written] == []
    assert seen.written.count(", the archive") > 1, "the clock is not refreshed"
    assert seen.screen == [*LINES, "error: enough", ""]


def test_piped_stdout_has_the_lines_and_only_rank_0_draws_bars() -> None:
    seen = in_terminal(WORK, ROOT, piped=True)
    assert seen.stdout.splitlines() == LINES
    assert "decoding: 100%|" in seen.written
    seen = in_terminal(WORK, ROOT, RANK="1", WORLD_SIZE="2")
    assert "decoding" not in seen.written
    assert seen.screen == [*LINES, ""]


def test_pipe_has_no_bars() -> None:
    done = subprocess.run(WORK, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == LINES
    assert done.stderr == "error: enough\n"
