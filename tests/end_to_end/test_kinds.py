"""Models of raw tensors and of written-out layers are trained and packaged like those of nn.Module."""

import sys
from pathlib import Path

import pytest

from mlp_dist.core.bundle import load_bundle
from serve.archive import read_archive
from tests.helpers.launching import Trained, result, run, train

pytestmark = pytest.mark.nightly


@pytest.mark.parametrize(("kind", "recipe"), [("tensor", "mnist-tensor"), ("layers", "mnist-scratch-256-64")])
def test_packages_every_kind_of_model(kind: str, recipe: str, tmp_path: Path) -> None:
    flags = f"--recipe {recipe} --dataset digits --lr 0.001 --epochs 1 --output-dir output"
    trained = Trained(tmp_path, result(train(*flags.split(), cwd=tmp_path)))
    bundle = load_bundle(trained.bundle)
    assert bundle.spec.model.kind == kind
    # The command asks the archive in a process of its own, and compares the answer with the bundle's.
    packaged = result(run([sys.executable, "-m", "serve.package", "--model-name", kind], tmp_path))
    assert packaged["run_id"] == trained.result["run_id"]
    assert read_archive(tmp_path / str(packaged["mar"])).golden
