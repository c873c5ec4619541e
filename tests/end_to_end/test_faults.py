from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.faults import Ending, FaultError, Faults, Setting


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_a_hundred_kills_are_survived(tmp_path: Path) -> None:
    settings = [Setting(number, precision) for precision in ("no", "bf16") for number in (1, 2)]
    outcomes = Faults(tmp_path, 0, settings).run(100, jobs=2)
    assert [each for each in outcomes if each.problem] == []
    assert len(outcomes) == 100


RECORD: dict[str, Any] = {
    "epoch": 1,
    **dict.fromkeys(("train_loss", "val_loss", "test_loss", "train_accuracy", "val_accuracy"), 0.5),
    "steps": [{"step": 30, "loss": 1.0}],
}
REFERENCE = Ending({"model": {"0.weight": [1.0]}, "best": {}}, [RECORD])


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        (replace(REFERENCE, weights={"model": {"0.weight": [1.1]}, "best": {}}), "training: model"),
        (replace(REFERENCE, history=[RECORD, RECORD]), r"epochs \[1, 1\]"),
        (replace(REFERENCE, history=[{**RECORD, "val_loss": 0.6}]), "val_loss of epoch 1 is 0.6, not 0.5"),
        (replace(REFERENCE, history=[{**RECORD, "steps": []}]), r"logged steps \[\], not \[30\]"),
    ],
)
def test_another_end_is_noticed(ending: Ending, message: str) -> None:
    REFERENCE.check(REFERENCE)
    with pytest.raises(FaultError, match=message):
        REFERENCE.check(ending)
