"""What the processes of a training tell each other, with real ones."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.launching import environment

pytestmark = pytest.mark.slow


def exchange(what: str, size: int, directory: Path) -> list[dict[str, Any] | None]:
    """What each process found; None of one that said nothing."""
    script = str(Path(__file__).with_name("exchanging.py"))
    running = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(size), str(directory / "store"), what],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        told = [process.communicate(timeout=60)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [process.returncode for process in running] == [0] * size
    return [json.loads(text.splitlines()[-1]) if text else None for text in told]


@pytest.mark.parametrize("size", [2, 3])
def test_memory_tells_what_gloo_tells(size: int, tmp_path: Path) -> None:
    for found in exchange("same", size, tmp_path):
        assert found == {"gathered": True, "summed": True, "agree": True, "places": 2}


def test_where_one_cannot_share_memory_all_use_gloo(tmp_path: Path) -> None:
    for found in exchange("without_memory", 2, tmp_path):
        assert found is not None
        assert (found["kind"], found["gathered"]) == ("OverGloo", True)
        assert found["files"] <= 0


def test_a_process_that_ends_is_missed_at_once(tmp_path: Path) -> None:
    *left, last = exchange("lost", 3, tmp_path)
    assert last is None
    for found in left:
        assert found is not None
        assert found["kind"] == "ThroughMemory"
        assert "process " in found["error"]
