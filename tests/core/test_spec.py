from dataclasses import replace
from typing import Any

import pytest

from mlp_dist.core.errors import BundleError
from mlp_dist.core.spec import FORMAT_VERSION, BundleSpec, ImageSpec, ModelSpec

GRAY = ImageSpec(height=2, width=3, channels=1, mean=(0.25,), std=(0.5,))
MODEL = ModelSpec((6, 4, 2))
BUNDLE = BundleSpec(
    model=MODEL,
    image=GRAY,
    classes=("cat", "dog"),
    dataset="pets",
    recipe="small",
    run_id="0123",
    metrics={"val_accuracy": None, "test_accuracy": 0.75},
    golden_probabilities=(0.25, 0.75),
    weights_sha256="ab" * 32,
    versions={"torch": "2"},
)


@pytest.mark.parametrize("spec", [GRAY, MODEL, BUNDLE], ids=["image", "model", "bundle"])
def test_json_with_missing_keys_is_rejected(spec: Any) -> None:
    values = spec.to_json()
    for key in values:
        lacking = {name: value for name, value in values.items() if name != key}
        with pytest.raises(BundleError, match=f"{type(spec).__name__} needs the keys .*{key}.*, found "):
            type(spec).from_json(lacking)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 0}, "an image of 0x3 pixels and 1 channels is impossible: sizes start at 1"),
        ({"channels": 2}, r"channels are 1 \(gray\) or 3 \(RGB\)"),
        ({"mean": (0.1, 0.2, 0.3)}, "need one value for each of 1 channels"),
        ({"mean": (float("nan"),)}, "must be finite, and std above 0"),
    ],
)
def test_impossible_images_are_rejected(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        replace(GRAY, **change)


def test_model_is_checked() -> None:
    with pytest.raises(BundleError, match=r"model kind 'cnn' is not known \(there are: module, "):
        ModelSpec((6, 4, 2), "cnn")
    with pytest.raises(BundleError, match=r"layer_sizes \(.*\) need at least an input and an output, each a"):
        ModelSpec((784, 0, 10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": FORMAT_VERSION + 1}, f"bundle format .* is not {FORMAT_VERSION}"),
        ({"model": ModelSpec((7, 2))}, "the model takes 7 inputs, but its images flatten to 6"),
        ({"classes": ("cat",)}, "2 outputs, 1 classes and 2 golden probabilities must be the same number"),
        ({"classes": ("cat", "cat")}, "class names must be different strings"),
    ],
)
def test_bundle_with_inconsistent_parts_is_rejected(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        replace(BUNDLE, **change)
