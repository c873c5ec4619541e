"""A trained model in Python: predictions, saving and loading, also with only mlp_dist/core."""

import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import mlp_dist
from mlp_dist.core.bundle import (
    Bundle,
    count_parameters,
    load_file,
    load_state_dict,
    save_file,
    save_state_dict,
)
from mlp_dist.core.errors import BundleError, UsageError
from mlp_dist.core.image import encode_png, normalize
from mlp_dist.core.kinds import KINDS
from mlp_dist.core.model import build_model
from tests.core.conftest import CLASSES, IMAGE, pixels_of
from tests.helpers.launching import ROOT

ALL_KINDS = pytest.mark.parametrize("bundle", KINDS, indirect=True)


@ALL_KINDS
def test_predictions_are_the_models(bundle: Bundle) -> None:
    pixels = pixels_of(30, seed=2)
    expected = torch.softmax(bundle.model(normalize(pixels, IMAGE)).detach().double(), dim=1)
    answers = bundle.predict_proba(pixels)
    assert [tuple(answer) for answer in answers] == [CLASSES] * 30
    for answer, row in zip(answers, expected.tolist(), strict=True):
        assert list(answer.values()) == pytest.approx(row, abs=1e-6)
        assert sum(answer.values()) == pytest.approx(1, abs=1e-12)
    assert bundle.predict(pixels) == [CLASSES[index] for index in expected.argmax(dim=1).tolist()]


def test_file_image_and_array_get_the_same_answer(bundle: Bundle, tmp_path: Path) -> None:
    pixels = pixels_of(1, seed=3)[0]
    path = tmp_path / "image.png"
    path.write_bytes(encode_png(pixels))
    from PIL import Image

    with Image.open(path) as image:
        answers = bundle.predict_proba([path, str(path), image, pixels, pixels.numpy(), pixels / 255])
    for answer in answers:
        assert answer == pytest.approx(bundle.answer(path.read_bytes()), abs=1e-6)
    assert bundle.predict(path) == bundle.predict(pixels[0].numpy()) == [max(answers[0], key=answers[0].get)]


def test_parameters_are_counted(bundle: Bundle) -> None:
    assert count_parameters(bundle) == count_parameters(bundle.model) == 20 * 8 + 8 + 8 * 3 + 3


# One file


@ALL_KINDS
def test_save_file_and_load_file_are_inverse(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "models" / "pets.pt"
    with torch.no_grad():
        next(bundle.model.parameters()).add_(0.01)
    save_file(bundle, path)
    loaded = load_file(path)
    golden = loaded.spec.golden_probabilities
    assert loaded.spec == replace(bundle.spec, golden_probabilities=golden)
    assert loaded.golden_image == bundle.golden_image
    assert type(loaded.model) is type(bundle.model)
    assert not loaded.model.training
    assert loaded.predict_proba(pixels_of(9)) == bundle.predict_proba(pixels_of(9))
    assert [each.name for each in path.parent.iterdir()] == ["pets.pt"]


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["layers"], indirect=True)
def test_core_loads_models_without_the_rest(bundle: Bundle, tmp_path: Path) -> None:
    save_file(bundle, tmp_path / "pets.pt")
    shutil.copytree(ROOT / "mlp_dist/core", tmp_path / "mlp_dist/core")
    shutil.copy(ROOT / "mlp_dist/__init__.py", tmp_path / "mlp_dist")
    code = """
import json, sys
sys.path = [sys.argv[1], *(path for path in sys.path if path != sys.argv[2])]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
from pathlib import Path
import mlp_dist
from mlp_dist.core.bundle import load_file
assert mlp_dist.__file__.startswith(sys.argv[1]), mlp_dist.__file__
answer = load_file(Path(sys.argv[1], "pets.pt")).predict_proba(Path(sys.argv[1], "image.png"))
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & {"mlflow", "accelerate", "torchvision", "sklearn", "matplotlib"}, loaded
print(json.dumps(answer))
"""
    (tmp_path / "image.png").write_bytes(encode_png(pixels_of(1, seed=5)[0]))
    words = [sys.executable, "-c", code, str(tmp_path), str(ROOT)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [pytest.approx(bundle.predict_proba(pixels_of(1, seed=5))[0], abs=1e-6)]


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("read", [load_file, load_state_dict])
@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_pickled_code_is_not_run(read: object, write: object, tmp_path: Path) -> None:
    path, sprung = tmp_path / "model.pt", tmp_path / "sprung"
    write({"format": "mlp_dist model 1", "state_dict": Trap(sprung)}, path)  # type: ignore[operator]
    with pytest.raises(BundleError, match=r"model\.pt cannot be read: .* or holds more than tensors"):
        read(path)  # type: ignore[operator]
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is not a file of save_model"),
        ({"spec": "{}"}, "BundleSpec needs the keys"),
        ({"golden_image": torch.zeros(3, dtype=torch.uint8)}, "golden.png cannot be read"),
        ({"state_dict": {}}, "does not fit the model 20-8-3: .*Missing key"),
    ],
)
def test_changed_files_are_rejected(
    bundle: Bundle, change: dict[str, object], message: str, tmp_path: Path
) -> None:
    save_file(bundle, tmp_path / "pets.pt")
    content = torch.load(tmp_path / "pets.pt", weights_only=True)
    torch.save({**content, **change}, tmp_path / "pets.pt")
    with pytest.raises(BundleError, match=f"(?s){message}"):
        load_file(tmp_path / "pets.pt")


def test_damaged_files_are_rejected(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "pets.pt"
    with pytest.raises(BundleError, match=r"pets\.pt cannot be read: No such file"):
        load_file(path)
    save_file(bundle, path)
    content = torch.load(path, weights_only=True)
    whole = path.read_bytes()
    for length in (100, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:length])
        with pytest.raises(BundleError, match=r"pets\.pt cannot be read: it is damaged"):
            load_file(path)
    next(iter(content["state_dict"].values())).add_(0.1)
    torch.save(content, path)
    with pytest.raises(BundleError, match=r"the golden image.s class .* is answered with"):
        load_file(path)


# state_dicts


def test_state_dict_round_trip(bundle: Bundle, tmp_path: Path) -> None:
    mlp_dist.save_state_dict(bundle, tmp_path / "weights.pt")
    other = build_model(bundle.spec.model)
    other.load_state_dict(mlp_dist.load_state_dict(str(tmp_path / "weights.pt")), strict=True)
    for name, tensor in bundle.model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


def test_other_content_is_no_state_dict(tmp_path: Path) -> None:
    for content in ([torch.zeros(3)], {"weights": "none"}, torch.zeros(2)):
        torch.save(content, tmp_path / "weights.pt")
        with pytest.raises(BundleError, match="does not hold a state_dict, a mapping of names to tensors"):
            load_state_dict(tmp_path / "weights.pt")


def test_writing_to_a_directory_is_an_error(bundle: Bundle, tmp_path: Path) -> None:
    for write in (mlp_dist.save_model, save_state_dict):
        with pytest.raises(BundleError, match="is a directory; name a file to write to"):
            write(bundle, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_save_model_rejects_modules(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes a model from load_model, not Linear"):
        mlp_dist.save_model(nn.Linear(3, 2), tmp_path / "model.pt")  # type: ignore[arg-type]


def test_public_names_exist_and_are_documented() -> None:
    for name in mlp_dist.__all__:
        assert callable(getattr(mlp_dist, name))
        assert getattr(mlp_dist, name).__doc__
        assert name in dir(mlp_dist)
    with pytest.raises(AttributeError, match=r"no attribute 'load_modle' \(there are: train, .*load_model"):
        _ = mlp_dist.load_modle
