import json
import sys

import pytest

from benchmarks import training
from benchmarks.peers import OURS, PEERS, Peer


@pytest.mark.nightly
def test_contestants_are_timed_and_missing_ones_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PEERS, "nowhere", Peer("nowhere:prepare", ("no_such_package",)))
    flags = ["--dataset", "digits", "--cases", "sgd-100", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["training", *flags, "--peers", "notebook", "accelerate", "nowhere"])
    training.main()
    out = capsys.readouterr().out
    assert "skipped: nowhere (no_such_package is not installed" in out
    values = json.loads(out.splitlines()[-1])
    assert values["skipped"] == {"nowhere": ["no_such_package"]}
    (case,) = values["cases"]
    assert set(case["contestants"]) == {OURS, "notebook", "accelerate"}
    for each in case["contestants"].values():
        assert each["median"] > 0
        assert each["accuracies"][0] > 0.4
