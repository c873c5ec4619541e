import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mlp_dist.core.bundle import load_bundle, save_bundle, to_probabilities
from mlp_dist.core.errors import BundleError
from mlp_dist.core.image import encode_png, normalize
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import GOLDEN, SPEC, WEIGHTS, BundleSpec, ImageSpec, ModelSpec, check_probabilities

IMAGE = ImageSpec(height=4, width=5, channels=1, mean=(0.3,), std=(0.4,))
MODEL = ModelSpec((20, 8, 3))


def pixels_of(number: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, 1, 4, 5), dtype=torch.uint8, generator=generator)


@pytest.fixture
def model() -> torch.nn.Module:
    return build_model(MODEL, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def spec(model: torch.nn.Module) -> BundleSpec:
    with torch.inference_mode():
        golden = to_probabilities(model(normalize(pixels_of(1), IMAGE)))[0]
    return BundleSpec(
        model=MODEL,
        image=IMAGE,
        classes=("cow", "cat", "dog"),
        dataset="pets",
        recipe="small",
        run_id="0123",
        metrics={"val_accuracy": None, "test_accuracy": 0.75},
        golden_probabilities=tuple(golden.tolist()),
        weights_sha256="",
        versions={"torch": str(torch.__version__)},
    )


@pytest.fixture
def saved(tmp_path: Path, spec: BundleSpec, model: torch.nn.Module) -> Path:
    save_bundle(tmp_path / "bundle", spec, model.state_dict(), pixels_of(1)[0])
    return tmp_path / "bundle"


def edit(directory: Path, **values: Any) -> None:
    content = json.loads((directory / SPEC).read_text())
    (directory / SPEC).write_text(json.dumps({**content, **values}))


def replace_weights(directory: Path, content: object) -> None:
    """Write other weights and their checksum."""
    if isinstance(content, bytes):
        (directory / WEIGHTS).write_bytes(content)
    else:
        torch.save(content, directory / WEIGHTS)
    edit(directory, weights_sha256=hashlib.sha256((directory / WEIGHTS).read_bytes()).hexdigest())


def test_round_trip(tmp_path: Path, spec: BundleSpec, model: torch.nn.Module) -> None:
    directory = tmp_path / "a" / "bundle"
    written = save_bundle(directory, spec, model.state_dict(), pixels_of(1)[0])
    assert written == replace(
        spec, weights_sha256=hashlib.sha256((directory / WEIGHTS).read_bytes()).hexdigest()
    )
    assert sorted(path.name for path in directory.iterdir()) == sorted((WEIGHTS, SPEC, GOLDEN))
    bundle = load_bundle(directory)
    assert bundle.spec == written
    assert bundle.golden_image == encode_png(pixels_of(1)[0])
    assert not bundle.model.training
    assert list(bundle.model.state_dict()) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(bundle.model.state_dict()[name], tensor)
    bundle.check_golden()


def test_answers_do_not_depend_on_the_batch(saved: Path) -> None:
    bundle, images = load_bundle(saved), pixels_of(50, seed=3)
    batch = bundle.probabilities(images)
    assert batch.shape == (50, 3)
    assert batch.dtype == torch.float64
    assert not batch.requires_grad
    for number in (1, 2, 3, 5, 16, 17):
        parts = torch.cat([bundle.probabilities(part) for part in images.split(number)])
        torch.testing.assert_close(parts, batch, rtol=0, atol=1e-8)


def test_probabilities_of_large_logits() -> None:
    probabilities = to_probabilities(
        torch.tensor([[1e4, -1e4, 0.0], [100.0, 100.0, 100.0], [88.0, 0.0, -88.0]])
    )
    assert probabilities.dtype == torch.float64
    assert probabilities[:2].tolist() == [[1, 0, 0], pytest.approx([1 / 3] * 3)]
    assert (probabilities.sum(dim=1) - 1).abs().max() <= 1e-15


def test_bundle_of_version_0_1_0(tmp_path: Path, model: torch.nn.Module) -> None:
    torch.save(dict(model.state_dict()), tmp_path / WEIGHTS)
    (tmp_path / GOLDEN).write_bytes(encode_png(pixels_of(1)[0]))
    answer = torch.softmax(model(normalize(pixels_of(1), IMAGE)).detach().double() / 1.5, dim=1)[0]
    content = {
        "model": {"layer_sizes": [20, 8, 3], "kind": "module"},
        "image": {"height": 4, "width": 5, "channels": 1, "mean": [0.3], "std": [0.4]},
        "classes": ["cow", "cat", "dog"],
        "dataset": "pets",
        "recipe": "small",
        "run_id": "0123456789abcdef0123456789abcdef",
        "metrics": {"val_accuracy": None, "test_accuracy": 0.75},
        "golden_probabilities": answer.tolist(),
        "weights_sha256": hashlib.sha256((tmp_path / WEIGHTS).read_bytes()).hexdigest(),
        "versions": {"mlp_dist": "0.1.0", "torch": "2.15.0"},
        "format_version": 1,
        "temperature": 1.5,
        "preprocess": "auto",
    }
    (tmp_path / SPEC).write_text(json.dumps(content, indent=2) + "\n")
    bundle = load_bundle(tmp_path)
    bundle.check_golden()
    assert (bundle.spec.temperature, bundle.spec.preprocess) == (1.5, "auto")
    assert json.loads(json.dumps(bundle.spec.to_json())) == content


# The golden image


def test_changed_golden_files_fail_the_check(saved: Path) -> None:
    golden = json.loads((saved / SPEC).read_text())["golden_probabilities"]
    edit(saved, golden_probabilities=[golden[0], golden[1] + 1e-5, golden[2]])
    message = r"the golden image's class 'cat' is answered with 0\.\d+, the trained"
    with pytest.raises(BundleError, match=message):
        load_bundle(saved).check_golden()
    edit(saved, golden_probabilities=golden)
    load_bundle(saved).check_golden()
    (saved / GOLDEN).write_bytes(encode_png(255 - pixels_of(1)[0]))
    with pytest.raises(BundleError, match=r"the golden image's class '.*' is answered with"):
        load_bundle(saved).check_golden()
    (saved / GOLDEN).write_bytes((saved / GOLDEN).read_bytes()[:40])
    with pytest.raises(BundleError, match=r"golden\.png cannot be read"):
        load_bundle(saved).check_golden()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            {"cat": 0.5 + 1.1e-6, "dog": 0.5},
            "class 'cat' is answered with 0.5000011, the trained",
        ),
        ({"cat": 0.5, "dog": float("nan")}, "is answered with"),
        ({"cat": 1.0}, r"the answer has the classes \['cat'\], not \['cat', 'dog'\]"),
        ({"dog": 0.5, "cat": 0.5}, r"the answer has the classes \['dog', 'cat'\], not \['cat', 'dog'\]"),
    ],
)
def test_check_probabilities_has_a_tolerance(answer: dict[str, float], message: str) -> None:
    golden = {"cat": 0.5, "dog": 0.5}
    check_probabilities({"cat": 0.5 + 0.9e-6, "dog": 0.5 - 0.9e-6}, golden)
    with pytest.raises(BundleError, match=message):
        check_probabilities(answer, golden)


# Damage


@pytest.mark.parametrize("name", [WEIGHTS, SPEC, GOLDEN])
def test_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(BundleError, match=f"{saved} is not a bundle: {name} is missing"):
        load_bundle(saved)


def test_paths_that_are_no_bundle(saved: Path) -> None:
    for path in (saved / "nowhere", saved / SPEC):
        with pytest.raises(BundleError, match=f"{path} is not a bundle"):
            load_bundle(path)
    (saved / WEIGHTS).unlink()
    (saved / WEIGHTS).mkdir()
    with pytest.raises(BundleError, match=f"{saved / WEIGHTS} cannot be read: Is a directory"):
        load_bundle(str(saved))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"[" * 100_000], ids=len)
def test_spec_that_is_not_json(saved: Path, content: bytes) -> None:
    (saved / SPEC).write_bytes(content)
    with pytest.raises(BundleError, match=f"{saved / SPEC} is not JSON"):
        load_bundle(saved)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"extra": 1}, "BundleSpec needs the keys .* found .*'extra'"),
        ({"format_version": 2}, "bundle format 2 is not 1"),
        ({"classes": ["cow", "cat"]}, "3 outputs, 2 classes and 3 golden probabilities"),
        ({"classes": 3}, "is not a bundle's description"),
        ({"model": {"layer_sizes": [20, 8.0, 3]}}, "layer_sizes .20, 8.0, 3. need .* from 1 to"),
        ({"model": {"layer_sizes": [20, 10**30, 3]}}, "each a number from 1 to 1,000,000,000"),
        (
            {"model": {"layer_sizes": [20, 10**9, 3]}},
            "24,000,000,003 parameters, too many",
        ),
        ({"classes": [1, 2, 3]}, "class names must be different strings"),
        ({"golden_probabilities": ["a", "b", "c"]}, "golden probabilities must be numbers"),
        (
            {"weights_sha256": "0"},
            "has sha256 [0-9a-f]{64}, but .* names 0: the weights were changed",
        ),
    ],
)
def test_wrong_descriptions_are_rejected(saved: Path, values: dict[str, Any], message: str) -> None:
    edit(saved, **values)
    with pytest.raises(BundleError, match=message):
        load_bundle(saved)


def test_weights_of_another_model(saved: Path) -> None:
    replace_weights(saved, build_model(ModelSpec((20, 9, 3))).state_dict())
    with pytest.raises(
        BundleError, match=f"(?s){saved / WEIGHTS} does not fit the model 20-8-3: .*size mismatch"
    ):
        load_bundle(saved)
