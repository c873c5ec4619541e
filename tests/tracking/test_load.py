"""load_model from every kind of source."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mlp_dist import load_model, save_model
from mlp_dist.core.bundle import load_bundle
from mlp_dist.core.errors import BundleError, UsageError
from mlp_dist.core.image import encode_png
from tests.helpers.launching import Trained

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def mlflow(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """mlflow on the store of the shared training."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{trained.directory}/mlflow.db")
    yield mlflow
    mlflow.set_tracking_uri(None)


@pytest.mark.parametrize("kind", ["best", "run id", "bundle", "output directory", "file"])
def test_sources(kind: str, trained: Trained, tmp_path: Path) -> None:
    expected = load_bundle(trained.bundle)
    save_model(expected, tmp_path / "model.pt")
    # A directory of that name does not hide "best".
    (tmp_path / "best").mkdir()
    sources = {
        "best": "best",
        "run id": trained.result["run_id"],
        "bundle": trained.bundle,
        "output directory": str(trained.bundle.parent),
        "file": str(tmp_path / "model.pt"),
    }
    model = load_model(sources[kind])
    golden = model.spec.golden_probabilities
    assert golden == pytest.approx(expected.spec.golden_probabilities, abs=1e-6)
    assert model.spec == replace(expected.spec, golden_probabilities=golden)
    for name, tensor in expected.model.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("source", "message"),
    [("nope", "has no run 'nope'"), (Path("nope"), "there is no model at nope; give a bundle's")],
)
def test_rejects_unknown_source(source: str | Path, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_model(source)


def test_rejects_another_answer(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.bundle, tmp_path / "bundle")
    (tmp_path / "bundle/golden.png").write_bytes(encode_png(torch.zeros(1, 28, 28, dtype=torch.uint8)))
    with pytest.raises(BundleError, match="the golden image's class"):
        load_model(tmp_path / "bundle")
