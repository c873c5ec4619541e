"""A trained model as a directory of weights.pt, bundle.json and golden.png: its only reader and writer."""

import hashlib
import json
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mlp_dist.core.errors import BundleError, ImageError
from mlp_dist.core.files import replacing_directory
from mlp_dist.core.images import decode_image, encode_png, normalize
from mlp_dist.core.models import build_model
from mlp_dist.core.spec import BundleSpec

WEIGHTS = "weights.pt"
SPEC = "bundle.json"
GOLDEN = "golden.png"

PROBABILITY_TOLERANCE = 1e-6
"""Two computations of one probability agree to this: same weights, another machine or batch size."""


@dataclass(frozen=True)
class Bundle:
    """A model in evaluation mode with all that is needed to ask it."""

    spec: BundleSpec
    model: nn.Module
    golden_image: bytes

    @torch.inference_mode()
    def probabilities(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 images (B, C, H, W) on the model's device -> class probabilities, float64 (B, classes)."""
        return to_probabilities(self.model(normalize(pixels, self.spec.image)))

    def answer(self, image: bytes) -> dict[str, float]:
        """Class name -> probability for one image file. Raises ImageError."""
        pixels = decode_image(image, self.spec.image)[None].to(next(self.model.parameters()).device)
        return dict(zip(self.spec.classes, self.probabilities(pixels)[0].tolist(), strict=True))

    def check_golden(self) -> None:
        """Raise BundleError unless the golden image is answered as the trained model answered it."""
        golden = dict(zip(self.spec.classes, self.spec.golden_probabilities, strict=True))
        try:
            answer = self.answer(self.golden_image)
        except ImageError as error:
            raise BundleError(f"{GOLDEN} cannot be read: {error}") from error
        check_probabilities(answer, golden)


def to_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Softmax of logits (B, classes) in float64, so that each row sums to 1 within 1e-15."""
    return torch.softmax(logits.double(), dim=1)


def check_probabilities(answer: dict[str, float], golden: dict[str, float]) -> None:
    """Raise BundleError unless both have the same classes and differ by at most PROBABILITY_TOLERANCE."""
    if list(answer) != list(golden):
        raise BundleError(f"the answer has the classes {list(answer)}, not {list(golden)}")
    worst = max(golden, key=lambda name: abs(answer[name] - golden[name]))
    # Written so that NaN fails as well.
    if not all(abs(answer[name] - golden[name]) <= PROBABILITY_TOLERANCE for name in golden):
        raise BundleError(
            f"the golden image's class {worst!r} is answered with {answer[worst]}, "
            f"the trained model gave {golden[worst]}"
        )


def save_bundle(
    directory: Path, spec: BundleSpec, state_dict: dict[str, Any], golden_pixels: torch.Tensor
) -> BundleSpec:
    """Write the bundle, replacing an older one only when all of it is on disk; returns the spec as written.

    `golden_pixels` is a uint8 image (C, H, W); the spec's `weights_sha256` is filled in here.
    """
    with replacing_directory(directory) as new:
        cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
        torch.save(cpu, new / WEIGHTS)
        spec = replace(spec, weights_sha256=_sha256(new / WEIGHTS))
        (new / SPEC).write_text(json.dumps(spec.to_json(), indent=2, allow_nan=False) + "\n")
        (new / GOLDEN).write_bytes(encode_png(golden_pixels))
    return spec


def load_bundle(directory: Path, *, device: torch.device | str = "cpu") -> Bundle:
    """Read a bundle and check it against itself.

    Raises BundleError where a file is missing, the JSON is not a bundle's, or the weights are not the
    ones the JSON names.
    """
    try:
        values = json.loads((directory / SPEC).read_text())
        golden_image = (directory / GOLDEN).read_bytes()
        sha256 = _sha256(directory / WEIGHTS)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{directory} is no bundle: {Path(error.filename).name} is missing") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{directory / SPEC} is not JSON: {error}") from error
    try:
        spec = BundleSpec.from_json(values)
    except TypeError as error:
        raise BundleError(f"{directory / SPEC} is not a bundle's: {error}") from error
    if sha256 != spec.weights_sha256:
        raise BundleError(
            f"{directory / WEIGHTS} has sha256 {sha256}, but {SPEC} names {spec.weights_sha256}: "
            "the weights were changed or damaged; export the run again"
        )
    model = build_model(spec.model).to(device)
    try:
        state_dict = torch.load(directory / WEIGHTS, map_location=device, weights_only=True)
        model.load_state_dict(state_dict, strict=True)
    except (RuntimeError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise BundleError(f"{directory / WEIGHTS} does not fit the model {spec.model}: {error}") from error
    return Bundle(spec, model.eval(), golden_image)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
