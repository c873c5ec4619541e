import json
import sys
from dataclasses import replace

import pytest

from benchmarks import training
from benchmarks.peers import OURS, PEERS, Peer
from benchmarks.peers.cases import CASES, Timing
from benchmarks.peers.process import contestant
from benchmarks.training import PeerResult


def result(name: str, seconds: list[float], accuracies: list[float]) -> PeerResult:
    """Repeats of three epochs, the first of which took two seconds longer."""
    pairs = zip(seconds, accuracies, strict=True)
    return PeerResult(name, [Timing([each + 2, each, each], accuracy) for each, accuracy in pairs])


def test_result_has_medians_and_ratios_within_a_repeat() -> None:
    ours = result(OURS, [1.0, 4.0, 2.0], [0.92] * 3)
    peer = result("notebook", [2.0, 4.0, 8.0], [0.92] * 3)
    values = peer.to_json(ours)
    assert (values["median"], values["times_ours"]) == (4.0, 2.0)
    assert peer.row(ours).split()[:5] == ["notebook", "4.000", "2.00", "[1.00,", "4.00]"]


@pytest.mark.parametrize(
    ("accuracies", "same"),
    [([0.920, 0.922, 0.924], True), ([0.930, 0.932, 0.934], False), ([0.920], None)],
)
def test_accuracies_are_compared_within_noise(accuracies: list[float], same: bool | None) -> None:
    ours = result(OURS, [1.0] * 3, [0.921, 0.923, 0.925])
    assert result("notebook", [1.0] * len(accuracies), accuracies).same_accuracy(ours) is same


@pytest.mark.slow
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
    assert (values["benchmark"], values["dataset"], values["repeats"]) == ("training", "digits", 1)
    assert values["skipped"] == {"nowhere": ["no_such_package"]}
    (case,) = values["cases"]
    assert (case["case"], case["images"]) == ("sgd-100", 1437)
    assert set(case["contestants"]) == {OURS, "notebook", "accelerate"}
    for name, each in case["contestants"].items():
        assert f"\n{name} " in out
        assert each["median"] > 0
        assert each["accuracies"][0] > 0.4


@pytest.mark.slow
def test_failing_contestant_raises_its_error() -> None:
    with (
        pytest.raises(KeyError, match="nowhere"),
        contestant("accelerate", replace(CASES["sgd-100"], dataset="nowhere")),
    ):
        pass
