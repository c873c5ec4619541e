from pathlib import Path

import pytest

from tests.helpers.faults import PRECISIONS, Faults, Setting


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_a_hundred_kills_are_survived(tmp_path: Path) -> None:
    settings = [Setting(number, precision) for precision in PRECISIONS for number in (1, 2)]
    outcomes = Faults(tmp_path, 0, settings).run(100, jobs=2)
    assert [each for each in outcomes if each.problem] == []
    assert len(outcomes) == 100
