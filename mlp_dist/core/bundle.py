"""Reads and writes trained models: a directory of weights.pt, bundle.json and golden.png, or one file.

Weights are loaded without running pickled code.
"""

import errno
import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mlp_dist.core.errors import BundleError, ImageError
from mlp_dist.core.image import Reading, encode_png, normalize
from mlp_dist.core.inputs import Images, model_input
from mlp_dist.core.io import replacing_directory, replacing_file
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import EXACT, GOLDEN, SPEC, WEIGHTS, BundleSpec, check_probabilities, weights_file

_FILE_FORMAT = "mlp_dist model 1"
_BATCH = 2000

_ROWS = 16
"""Batches are padded to a multiple of this. MKL sums the products of fewer rows in another order (below 16
on Intel, below 4 on AMD), so the seventh digit of an answer would depend on the other images in its batch."""


@dataclass(frozen=True)
class Bundle:
    """A trained model in evaluation mode, with everything needed for predictions."""

    spec: BundleSpec
    model: nn.Module
    golden_image: bytes = field(repr=False)

    def predict(
        self, images: Images, *, preprocess: str | None = None, background: str | None = None
    ) -> list[str]:
        """The name of the most probable class for each image; see `predict_proba`."""
        answers = self.predict_proba(images, preprocess=preprocess, background=background)
        return [max(answer, key=answer.__getitem__) for answer in answers]

    def reading(self, preprocess: str | None = None, background: str | None = None) -> Reading:
        """The Reading for these options, with the model's own as default. Raises ImageError."""
        return Reading(preprocess or self.spec.preprocess, background)

    @torch.inference_mode()
    def predict_proba(
        self, images: Images, *, preprocess: str | None = None, background: str | None = None
    ) -> list[dict[str, float]]:
        """Class name -> probability for each image, in order.

        Args:
            images: A path, a file's bytes, a PIL image, a numpy array or a tensor, or a list of these. Arrays
                and tensors hold one image or a batch: (H, W), (N, H, W), either with channels first or last,
                or flattened (N, C*H*W); uint8 from 0 to 255, uint16 from 0 to 65535, or float from 0 to 1,
                not normalized. (C, H, W) of the model's own size is one image. Other sizes and colors are
                converted.
            preprocess: "exact" only resizes; "auto" finds the digit, dark or light, anywhere on the page, and
                frames it as in MNIST. Default: the model's own.
            background: "black" or "white", shown through transparent pixels.

        Raises:
            ImageError: An image cannot be read, or (3, H, W) may be one color image or three gray ones.
        """
        device = next(self.model.parameters()).device
        batches = torch.split(
            model_input(images, self.spec.image, self.reading(preprocess, background)), _BATCH
        )
        rows = torch.cat([self._probabilities(batch.to(device)) for batch in batches])
        return [dict(zip(self.spec.classes, row, strict=True)) for row in rows.tolist()]

    @torch.inference_mode()
    def probabilities(self, pixels: torch.Tensor) -> torch.Tensor:
        """Class probabilities, float64 (B, classes), of uint8 images (B, C, H, W) on the model's device."""
        return self._probabilities(normalize(pixels, self.spec.image))

    def _probabilities(self, inputs: torch.Tensor) -> torch.Tensor:
        filled = functional.pad(inputs, (0, 0, 0, -len(inputs) % _ROWS))
        return to_probabilities(self.model(filled)[: len(inputs)], self.spec.temperature)

    def answer(self, image: bytes, *, preprocess: str | None = None) -> dict[str, float]:
        """Class name -> probability for the bytes of one image file. Raises ImageError."""
        return self.predict_proba(image, preprocess=preprocess)[0]

    def check_golden(self) -> None:
        """Raise BundleError unless the model gives the trained model's answer to the golden image."""
        golden = dict(zip(self.spec.classes, self.spec.golden_probabilities, strict=True))
        try:
            answer = self.answer(self.golden_image, preprocess=EXACT)
        except ImageError as error:
            raise BundleError(f"{GOLDEN} cannot be read: {error}") from error
        check_probabilities(answer, golden)


def to_probabilities(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """softmax(logits / temperature), (B, classes), in float64: rows sum to 1 within 1e-15."""
    return torch.softmax(logits.double() / temperature, dim=1)


def save_bundle(
    directory: Path, spec: BundleSpec, state_dict: dict[str, Any], golden_pixels: torch.Tensor
) -> BundleSpec:
    """Write a bundle, replacing an older one atomically.

    `golden_pixels` is a uint8 image (C, H, W). Returns the spec with `weights_sha256` set.
    """
    with replacing_directory(directory) as new:
        _save(_on_cpu(state_dict), new / WEIGHTS)
        spec = replace(spec, weights_sha256=_sha256(new / WEIGHTS))
        (new / SPEC).write_text(json.dumps(spec.to_json(), indent=2, allow_nan=False) + "\n")
        (new / GOLDEN).write_bytes(encode_png(golden_pixels))
    return spec


def load_bundle(directory: Path | str, *, device: torch.device | str = "cpu") -> Bundle:
    """Read a bundle, or an MLflow model made of one.

    Raises BundleError if files are missing, damaged, or do not fit together.
    """
    directory = Path(directory)
    weights = weights_file(directory)
    try:
        values = json.loads((directory / SPEC).read_text())
        golden_image = (directory / GOLDEN).read_bytes()
        sha256 = _sha256(weights)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{directory} is not a bundle: {Path(error.filename).name} is missing") from error
    except OSError as error:
        raise BundleError(f"{error.filename} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{directory / SPEC} is not JSON: {error}") from error
    try:
        spec = BundleSpec.from_json(values)
    except TypeError as error:
        raise BundleError(f"{directory / SPEC} is not a bundle's description: {error}") from error
    if sha256 != spec.weights_sha256:
        raise BundleError(
            f"{weights} has sha256 {sha256}, but {SPEC} names {spec.weights_sha256}: "
            "the weights were changed or damaged; export the run again"
        )
    return Bundle(spec, _load_model(spec, _load(weights), weights, device), golden_image)


def save_file(bundle: Bundle, path: Path) -> None:
    """Write the whole model to one file, with golden probabilities of its current weights."""
    _check_place(path)
    golden = tuple(bundle.answer(bundle.golden_image, preprocess=EXACT).values())
    spec = replace(bundle.spec, golden_probabilities=golden)
    content = {
        "format": _FILE_FORMAT,
        "spec": json.dumps(spec.to_json(), allow_nan=False),
        "golden_image": torch.frombuffer(bytearray(bundle.golden_image), dtype=torch.uint8),
        "state_dict": _on_cpu(bundle.model.state_dict()),
    }
    with replacing_file(path) as temporary:
        _save(content, temporary)


def load_file(path: Path, *, device: torch.device | str = "cpu") -> Bundle:
    """Read a file of `save_file` and check its answer to the golden image.

    Raises BundleError for a missing, damaged or other file.
    """
    content = _load(path)
    if not isinstance(content, dict) or content.get("format") != _FILE_FORMAT:
        raise BundleError(f"{path} is not a file of save_model")
    try:
        spec = BundleSpec.from_json(json.loads(content["spec"]))
        golden_image = content["golden_image"].numpy().tobytes()
        state_dict = content["state_dict"]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BundleError(f"{path} is not a file of save_model: {error}") from error
    bundle = Bundle(spec, _load_model(spec, state_dict, path, device), golden_image)
    bundle.check_golden()
    return bundle


def save_state_dict(model: nn.Module | Bundle, path: Path | str) -> None:
    """Write the model's state_dict, replacing an older file atomically."""
    path = Path(path)
    _check_place(path)
    with replacing_file(path) as temporary:
        _save(_on_cpu(_module(model).state_dict()), temporary)


def load_state_dict(path: Path | str) -> dict[str, torch.Tensor]:
    """Read a state_dict to the CPU. Raises BundleError if the file holds anything but tensors."""
    state_dict = _load(Path(path))
    if not isinstance(state_dict, dict) or not all(map(torch.is_tensor, state_dict.values())):
        raise BundleError(f"{path} does not hold a state_dict, a mapping of names to tensors")
    return state_dict


def count_parameters(model: nn.Module | Bundle) -> int:
    """The number of trainable parameters."""
    return sum(parameter.numel() for parameter in _module(model).parameters() if parameter.requires_grad)


def _module(model: nn.Module | Bundle) -> nn.Module:
    return model.model if isinstance(model, Bundle) else model


def _check_place(path: Path) -> None:
    if not path.name or path.is_dir():
        raise BundleError(f"{str(path)!r} is a directory; name a file to write to")


def _load_model(spec: BundleSpec, state_dict: Any, source: Path, device: torch.device | str) -> nn.Module:
    model = build_model(spec.model)
    try:
        model.load_state_dict(state_dict, strict=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise BundleError(f"{source} does not fit the model {spec.model}: {error}") from error
    return model.to(device).eval()


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    # For truncated and foreign files torch.load raises various exceptions, EINVAL from seeking among them.
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
        raise BundleError(
            f"{path} cannot be read: it is damaged, not written by torch.save, or holds more than tensors"
        ) from error


def _save(content: dict[str, Any], path: Path) -> None:
    try:
        torch.save(content, path)
    # torch.save raises this if the disk is full.
    except RuntimeError as error:
        raise BundleError(f"{path.parent} cannot be written to: {error}") from error


def _on_cpu(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
