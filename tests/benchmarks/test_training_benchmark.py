import json
import sys
from dataclasses import replace

import pytest

from benchmarks import training
from benchmarks.peers import OURS, PEERS, Peer
from benchmarks.peers.cases import CASES, Trained
from benchmarks.peers.worker import Worker
from benchmarks.results import Result, goals
from mlp_dist.core.errors import TrainingError, UsageError


def result(name: str, seconds: list[float], accuracies: list[float] | None = None) -> Result:
    """Repeats of three epochs whose first took two seconds longer."""
    reached = accuracies or [None] * len(seconds)
    return Result(
        name,
        [
            Trained([each + 2, each, each], accuracy, precision="medium")
            for each, accuracy in zip(seconds, reached, strict=True)
        ],
    )


def test_a_result_is_medians_and_the_warm_up_is_what_the_first_epoch_took_longer() -> None:
    ours, peer = result(OURS, [1.0, 4.0, 2.0]), result("jax-scan", [2.0, 4.0, 8.0])
    assert (ours.median, ours.first, ours.warm_up, ours.three_epochs) == (2.0, 3.0, 1.0, 7.0)
    told = peer.to_json(ours)
    assert (told["median"], told["times_ours"]) == (4.0, 2.0)
    assert peer.row(ours).split()[:4] == ["jax-scan", "4.000", "2.00", "[1.00-4.00]"]


@pytest.mark.parametrize(
    ("peer", "seconds", "met"),
    [
        ("jax-scan", 1.01, True),
        ("jax-scan", 1.0, False),
        ("products-medium", 0.75, True),
        ("products-medium", 0.74, False),
        ("notebook", 7.0, True),
        ("notebook", 6.9, False),
    ],
)
def test_the_goals(peer: str, seconds: float, met: bool) -> None:
    results = {OURS: result(OURS, [1.0] * 3), peer: result(peer, [seconds] * 3)}
    (goal,) = goals(results)
    assert goal.met is met
    assert str(goal).endswith("met" if met else "missed")


def test_products_at_another_precision_are_no_goal() -> None:
    results = {OURS: result(OURS, [1.0]), "products-highest": result("products-highest", [1.0])}
    assert goals(results) == []


@pytest.mark.parametrize(
    ("peer", "accuracies", "same"),
    [
        ("notebook", [0.920, 0.922, 0.924], True),
        ("notebook", [0.930, 0.932, 0.934], False),
        ("scikit-learn", [0.920, 0.922, 0.924], None),
        ("products-medium", None, None),
    ],
)
def test_accuracies_are_the_same_within_noise(
    peer: str, accuracies: list[float] | None, same: bool | None
) -> None:
    ours = result(OURS, [1.0] * 3, [0.921, 0.923, 0.925])
    assert result(peer, [1.0] * 3, accuracies).same_accuracy(ours) is same


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--repeats", "0"], "repeats is 0; it must be 1 or more"),
        (["--epochs", "1"], "epochs is 1; it must be 2 or more"),
        (["--cases", "sgd-10"], "unknown case 'sgd-10'; did you mean sgd-100?"),
        (["--peers", "jax"], "unknown peer 'jax'"),
    ],
)
def test_wrong_use(flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["training", *flags])
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        training.parse()


@pytest.mark.slow
def test_contestants_run_in_turn_and_one_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PEERS, "nowhere", Peer("nowhere", ("no_such_package",)))
    peers = ["products-medium", "notebook", "nowhere"]
    flags = ["--dataset", "digits", "--cases", "sgd-100", "--repeats", "2", "--peers", *peers]
    monkeypatch.setattr(sys, "argv", ["training", *flags])
    training.main()
    out = capsys.readouterr().out
    assert "left out: nowhere, as no_such_package is not installed" in out
    told = json.loads(out.splitlines()[-1])
    assert (told["benchmark"], told["dataset"], told["repeats"]) == ("training", "digits", 2)
    assert told["left_out"] == {"nowhere": ["no_such_package"]}
    (case,) = told["cases"]
    assert (case["case"], case["images"]) == ("sgd-100", 1437)
    assert set(case["contestants"]) == {OURS, "products-medium", "notebook"}
    for name, contestant in case["contestants"].items():
        assert f"\n{name} " in out
        assert len(contestant["seconds"]) == len(contestant["first_epochs"]) == 2
        assert contestant["median"] > 0
        assert len(contestant["accuracies"]) == (0 if name.startswith("products") else 2)
        assert all(accuracy > 0.4 for accuracy in contestant["accuracies"])
    assert "notebook / mlp_dist" in case["goals"]


@pytest.mark.slow
def test_a_contestant_that_fails_is_told_with_its_last_words() -> None:
    case = replace(CASES["sgd-100"], dataset="nowhere")
    with (
        pytest.raises(
            TrainingError, match=r"(?s)products-medium ended with exit code 1:.*KeyError: 'nowhere'"
        ),
        Worker("products-medium", case) as worker,
    ):
        worker.ready()
