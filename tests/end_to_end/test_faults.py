from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.faults import Ending, FaultError, Faults, Outcome, Setting, digest, table

# The seeds choose a launcher, rank 0 and rank 1, killed in and between saving, logging and finishing.
KILLED = {Setting(1, "bf16"): 5, Setting(2, "no"): 1}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trainings_that_are_killed_again_and_again_end_as_those_left_alone(tmp_path: Path) -> None:
    def killed(setting: Setting) -> list[Outcome]:
        directory = tmp_path / str(setting)
        directory.mkdir()
        return Faults(directory, KILLED[setting], [setting]).run(3, jobs=1)

    with ThreadPoolExecutor() as pool:
        for outcomes in pool.map(killed, KILLED):
            assert len(outcomes) == 3
            assert [each.problem for each in outcomes] == [""] * 3


RECORD: dict[str, Any] = {
    "epoch": 1,
    **dict.fromkeys(("train_loss", "val_loss", "test_loss", "train_accuracy", "val_accuracy"), 0.5),
    "steps": [{"step": 30, "loss": 1.0}],
}
WHOLE = Ending({"model": digest({"0.weight": 1.0}), "best": digest({})}, [RECORD])


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        (
            replace(WHOLE, weights={**WHOLE.weights, "model": digest({"0.weight": 1.1})}),
            "without a kill: model",
        ),
        (replace(WHOLE, history=[RECORD, RECORD]), r"epochs \[1, 1\]"),
        (replace(WHOLE, history=[{**RECORD, "val_loss": 0.6}]), "val_loss of epoch 1 is 0.6, not 0.5"),
        (replace(WHOLE, history=[{**RECORD, "steps": []}]), r"of the steps \[\], not \[30\]"),
    ],
)
def test_a_training_that_ends_otherwise_is_noticed(ending: Ending, message: str) -> None:
    WHOLE.check(WHOLE)
    with pytest.raises(FaultError, match=message):
        WHOLE.check(ending)


def test_the_table_counts_what_was_survived_of_each_kind() -> None:
    outcomes = [
        Outcome(1, "no", "launcher SIGKILL", "saving"),
        Outcome(1, "bf16", "launcher SIGKILL", "saving", "it hung"),
        Outcome(2, "no", "rank 1 SIGKILL", "starting"),
    ]
    head, *rows = (line.split() for line in table(outcomes).splitlines())
    assert head[:2] == ["who", "when"]
    assert rows == [
        ["launcher", "SIGKILL", "saving", "1", "/", "2", "-"],
        ["rank", "1", "SIGKILL", "starting", "-", "1", "/", "1"],
    ]
