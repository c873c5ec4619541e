import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mlp_dist.core.bundle import Bundle, load_bundle, save_bundle
from mlp_dist.core.errors import BundleError
from mlp_dist.core.image import encode_png, normalize
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import GOLDEN, SPEC, WEIGHTS, ModelSpec, check_probabilities
from tests.core.conftest import IMAGE, pixels_of


@pytest.fixture
def saved(tmp_path: Path, bundle: Bundle) -> Path:
    save_bundle(tmp_path / "bundle", bundle.spec, bundle.model.state_dict(), pixels_of(1)[0])
    return tmp_path / "bundle"


def edit(directory: Path, **values: Any) -> None:
    content = json.loads((directory / SPEC).read_text())
    (directory / SPEC).write_text(json.dumps({**content, **values}))


def test_round_trip(tmp_path: Path, bundle: Bundle) -> None:
    directory = tmp_path / "a" / "bundle"
    written = save_bundle(directory, bundle.spec, bundle.model.state_dict(), pixels_of(1)[0])
    digest = hashlib.sha256((directory / WEIGHTS).read_bytes()).hexdigest()
    assert written == replace(bundle.spec, weights_sha256=digest)
    assert {path.name for path in directory.iterdir()} == {WEIGHTS, SPEC, GOLDEN}
    loaded = load_bundle(directory)
    assert (loaded.spec, loaded.golden_image) == (written, bundle.golden_image)
    assert not loaded.model.training
    for name, tensor in bundle.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    loaded.check_golden()


def test_answers_do_not_depend_on_the_batch(saved: Path) -> None:
    bundle, images = load_bundle(saved), pixels_of(50, seed=3)
    batch = bundle.probabilities(images)
    assert (batch.shape, batch.dtype) == ((50, 3), torch.float64)
    for number in (1, 3, 16):
        parts = torch.cat([bundle.probabilities(part) for part in images.split(number)])
        torch.testing.assert_close(parts, batch, rtol=0, atol=1e-8)


def test_bundle_of_version_0_1_0(tmp_path: Path, bundle: Bundle) -> None:
    model = bundle.model
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
    loaded = load_bundle(tmp_path)
    loaded.check_golden()
    assert json.loads(json.dumps(loaded.spec.to_json())) == content


# The golden image


def test_changed_golden_files_fail_the_check(saved: Path) -> None:
    golden = json.loads((saved / SPEC).read_text())["golden_probabilities"]
    edit(saved, golden_probabilities=[golden[0], golden[1] + 1e-5, golden[2]])
    with pytest.raises(BundleError, match="the golden image's class 'cat' is answered with"):
        load_bundle(saved).check_golden()
    edit(saved, golden_probabilities=golden)
    (saved / GOLDEN).write_bytes((saved / GOLDEN).read_bytes()[:40])
    with pytest.raises(BundleError, match=r"golden\.png cannot be read"):
        load_bundle(saved).check_golden()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"cat": 0.5 + 1.1e-6, "dog": 0.5}, "class 'cat' is answered with 0.5000011, the trained"),
        ({"cat": 0.5, "dog": float("nan")}, "is answered with"),
        ({"dog": 0.5, "cat": 0.5}, r"the answer has the classes \['dog', 'cat'\], not \['cat', 'dog'\]"),
    ],
)
def test_check_probabilities_has_a_tolerance(answer: dict[str, float], message: str) -> None:
    golden = {"cat": 0.5, "dog": 0.5}
    check_probabilities({"cat": 0.5 + 0.9e-6, "dog": 0.5 - 0.9e-6}, golden)
    with pytest.raises(BundleError, match=message):
        check_probabilities(answer, golden)


# Damage


def test_directories_without_a_bundle(saved: Path) -> None:
    (saved / WEIGHTS).unlink()
    with pytest.raises(BundleError, match=f"{saved} is not a bundle: {WEIGHTS} is missing"):
        load_bundle(saved)
    with pytest.raises(BundleError, match="nowhere is not a bundle"):
        load_bundle(saved / "nowhere")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 100_000], ids=len)
def test_spec_that_is_not_json(saved: Path, content: bytes) -> None:
    (saved / SPEC).write_bytes(content)
    with pytest.raises(BundleError, match=f"{saved / SPEC} is not JSON"):
        load_bundle(saved)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"extra": 1}, "BundleSpec needs the keys .* found .*'extra'"),
        ({"classes": 3}, "is not a bundle's description"),
        (
            {"model": {"layer_sizes": [20, 8.0, 3], "kind": "module"}},
            "layer_sizes .20, 8.0, 3. need .* from 1 to",
        ),
        (
            {"model": {"layer_sizes": [20, 10**9, 3], "kind": "module"}},
            "too many parameters for this machine's memory",
        ),
        ({"golden_probabilities": ["a", "b", "c"]}, "golden probabilities must be numbers"),
        ({"weights_sha256": "0"}, "has sha256 .* names 0: the weights were changed"),
    ],
)
def test_wrong_descriptions_are_rejected(saved: Path, values: dict[str, Any], message: str) -> None:
    edit(saved, **values)
    with pytest.raises(BundleError, match=message):
        load_bundle(saved)


def test_weights_of_another_model(saved: Path) -> None:
    torch.save(build_model(ModelSpec((20, 9, 3))).state_dict(), saved / WEIGHTS)
    edit(saved, weights_sha256=hashlib.sha256((saved / WEIGHTS).read_bytes()).hexdigest())
    with pytest.raises(BundleError, match=r"(?s)does not fit the model 20-8-3: .*size mismatch"):
        load_bundle(saved)
