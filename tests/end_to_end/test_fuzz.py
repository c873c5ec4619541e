from pathlib import Path

import pytest

from tests.helpers.fuzz import fuzz
from tests.helpers.fuzz_inputs import WRONG


@pytest.mark.slow
@pytest.mark.parametrize("number", [400, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_fuzzed_requests(number: int, tmp_path: Path) -> None:
    """No worker dies, and bad requests do not affect good ones."""
    fuzzer = fuzz(number, 1, tmp_path)
    assert fuzzer.problems == []
    assert sum(fuzzer.statuses.values()) > 0.85 * number
    assert set(WRONG) <= {kind for kind, _ in fuzzer.statuses}
    assert {status for _, status in fuzzer.statuses} >= {200, 400, 413}
