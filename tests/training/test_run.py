"""`mlp_dist.train`: recipes, configurations, data and modules of one's own, on one process and on two."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from mlp_dist import TrainConfig, load_model, recipe, train
from mlp_dist.core.errors import DataError, UsageError
from mlp_dist.training.report import slowed
from tests.helpers.calling import UploadAtEnd, forget_precision
from tests.helpers.launching import ROOT, processes, run

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 8, 8), dtype=np.uint8)
LABELS = np.arange(400) % 10
IMAGES = (PIXELS[LABELS] * np.random.default_rng(1).uniform(0.5, 1, (400, 1, 1))).astype(np.uint8)


OTHER = r"pass mlp_dist\.train the same module"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Linear(32, 10)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.norm(self.first(inputs))))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for module in ("mlp_dist.training.run", "mlp_dist.training.report"):
        monkeypatch.setattr(f"{module}.Follower", UploadAtEnd)
    forget_precision()
    yield tmp_path
    forget_precision()


def test_recipes_and_configurations_are_trained(capsys: pytest.CaptureFixture[str]) -> None:
    first = train(recipe("mnist-quick"), dataset="digits", hidden_sizes=[16], epochs=1)
    assert "16-10" in str(first.model.spec.model)
    assert load_model(str(first.run_id)).spec.run_id == first.run_id
    second = train(TrainConfig(hidden_sizes=(24,), epochs=4), data=(IMAGES, LABELS, IMAGES, LABELS))
    assert second.test_accuracy == 1
    assert second.model.predict(IMAGES[:10]) == list("0123456789")
    assert (second.output_dir / "last.pt").is_file()
    assert json.loads((second.output_dir / "config.json").read_text())["hidden_sizes"] == [24]


def test_own_data_and_module_are_kept_without_their_classes_and_resumed() -> None:
    torch.manual_seed(0)
    module, data = Net(), TensorDataset(torch.tensor(IMAGES[:, None]) / 255, torch.tensor(LABELS))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    names = [f"kind {label}" for label in range(10)]
    whole = train("mnist-quick", data=data, model=module, class_names=names, epochs=3, lr=0.05)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert whole.model.predict(IMAGES[:10]) == names
    part = train(
        "mnist-quick", data=data, model=module, class_names=names, epochs=1, lr=0.05, output_dir="part"
    )
    again = {"resume": True, "output_dir": "part", "data": data, "class_names": names}
    rest = train(epochs=3, model=module, **again)
    assert rest.run_id == part.run_id
    for name, tensor in rest.model.model.state_dict().items():
        assert torch.equal(tensor, whole.model.model.state_dict()[name])
    with pytest.raises(UsageError, match=OTHER):
        train(epochs=4, **again)
    with pytest.raises(UsageError, match=OTHER):
        train(epochs=4, model=nn.Sequential(nn.Linear(64, 10)), **again)
    with pytest.raises(UsageError, match="data was in memory"):
        train(epochs=4, model=module, resume=True, output_dir="part")


def test_wrong_arguments_are_refused_before_the_training() -> None:
    for arguments, error, message in (
        ({"learning_rate": 1}, UsageError, "unknown option 'learning_rate'"),
        ({"resume": "maybe"}, UsageError, "resume is 'maybe'"),
        ({"class_names": ["a", "b"]}, UsageError, "class_names are those of data"),
        ({"data": (IMAGES, LABELS), "model": nn.Linear(64, 9)}, UsageError, r"into \(3, 9\)"),
        ({"data": (IMAGES, LABELS[1:])}, DataError, "400 images and 399 labels"),
        ({"config": "mnits"}, UsageError, "did you mean mnist"),
    ):
        with pytest.raises(error, match=message):
            train(**arguments)  # type: ignore[arg-type]
    assert not Path("outputs").exists()


def test_a_training_that_learned_nothing_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    train("mnist-quick", data=(IMAGES, np.roll(LABELS, 1), IMAGES, LABELS), epochs=1, lr=1e-9)
    assert (
        "no better than always answering the most frequent class: try another --lr" in capsys.readouterr().out
    )


def test_a_machine_that_became_busy_is_named() -> None:
    quiet, busy = ({"samples_per_second": rate} for rate in (40_000.0, 9_000.0))
    assert "9,000 images/s, the first at 40,000" in slowed([quiet, busy, busy, busy])
    assert slowed([quiet, busy, quiet, busy]) == slowed([busy] * 4) == slowed([quiet, busy]) == ""


SCRIPT = """
import sys
from accelerate import notebook_launcher
from mlp_dist import train
from tests.training.test_run import IMAGES, LABELS, Net

def work(name):
    results = [train(name, data=(IMAGES, LABELS), model=model, epochs=2, lr=0.05) for model in (None, Net())]
    assert results[0].metrics["num_processes"] == 2 and results[1].model.spec.model.kind == "Net"
    print("accuracies", *[result.test_accuracy for result in results])

if __name__ == "__main__":
    notebook_launcher(work, ("mnist-quick",), num_processes=2) if sys.argv[1:] else work("mnist-quick")
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate", "notebook"])
def test_two_processes_train_from_python(here: Path, launcher: str) -> None:
    (here / "own.py").write_text(SCRIPT)
    words = ["accelerate", "launch", *processes(2), "own.py"]
    words = words if launcher == "accelerate" else [sys.executable, "own.py", "notebook"]
    done = run(words, here, ACCELERATE_USE_CPU="true", PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("accuracies") == 2
    assert len(list(here.glob("outputs/*/bundle"))) == 2
