"""A trained model on disk, as a directory of weights.pt, bundle.json and golden.png, or as one file.

The only reader and writer of both. Weights are tensors and nothing else: no pickle is ever run.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mlp_dist.core.errors import BundleError, ImageError
from mlp_dist.core.golden import GOLDEN as GOLDEN
from mlp_dist.core.golden import PROBABILITY_TOLERANCE as PROBABILITY_TOLERANCE
from mlp_dist.core.golden import check_probabilities as check_probabilities
from mlp_dist.core.image import Reading, decode_image, encode_png, normalize
from mlp_dist.core.inputs import Images, model_input
from mlp_dist.core.io import replacing_directory, replacing_file
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import EXACT, SPEC, WEIGHTS, BundleSpec

_FILE_FORMAT = "mlp_dist model 1"
_BATCH = 2000

_ROWS = 16
"""A batch is filled up to a multiple of so many. MKL adds up the products of fewer rows in another order:
below 16 on Intel's processors, below 4 on AMD's. What an image is answered would hang, in its seventh digit,
on what else was asked at the moment."""


@dataclass(frozen=True)
class Bundle:
    """A trained model in evaluation mode with all that is needed to ask it."""

    spec: BundleSpec
    model: nn.Module
    golden_image: bytes = field(repr=False)

    def predict(
        self, images: Images, *, preprocess: str | None = None, background: str | None = None
    ) -> list[str]:
        """The most probable class's name for each image. Takes what `predict_proba` takes."""
        answers = self.predict_proba(images, preprocess=preprocess, background=background)
        return [max(answer, key=answer.__getitem__) for answer in answers]

    def reading(self, preprocess: str | None = None, background: str | None = None) -> Reading:
        """How pictures are read; what is None, as the model has it. Raises ImageError."""
        return Reading(preprocess or self.spec.preprocess, background)

    @torch.inference_mode()
    def predict_proba(
        self, images: Images, *, preprocess: str | None = None, background: str | None = None
    ) -> list[dict[str, float]]:
        """Class name -> probability for each image, in order; one image gives a list of one.

        `images`: a path, a PIL image, a numpy array or a tensor, or a list of these. Arrays and tensors
        hold one image or a batch: (H, W), (N, H, W), with channels first or last, or flattened (N, C*H*W);
        uint8 from 0 to 255, uint16 from 0 to 65535 or float from 0 to 1, not normalized: that is done here.
        (C, H, W) of the model's own size is one image; where (3, H, W) may be three gray images as well as
        one in colour, it is refused. Images of another size or colour are converted as the server does.

        `preprocess`: "exact" resizes files, PIL images, and arrays of another size; "auto" finds the digit
        that is drawn on them, dark or light, anywhere on the page, and frames it as MNIST's are. None: the
        model's own. `background`: "black" or "white", over which is shown what is transparent.

        Raises ImageError for what is none of these.
        """
        device = next(self.model.parameters()).device
        batches = torch.split(
            model_input(images, self.spec.image, self.reading(preprocess, background)), _BATCH
        )
        rows = torch.cat([self._probabilities(batch.to(device)) for batch in batches])
        return [dict(zip(self.spec.classes, row, strict=True)) for row in rows.tolist()]

    @torch.inference_mode()
    def probabilities(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 images (B, C, H, W) on the model's device -> class probabilities, float64 (B, classes)."""
        return self._probabilities(normalize(pixels, self.spec.image))

    def _probabilities(self, inputs: torch.Tensor) -> torch.Tensor:
        filled = functional.pad(inputs, (0, 0, 0, -len(inputs) % _ROWS))
        return to_probabilities(self.model(filled)[: len(inputs)], self.spec.temperature)

    def answer(self, image: bytes, *, preprocess: str | None = None) -> dict[str, float]:
        """Class name -> probability for one image file, as `predict_proba` gives it. Raises ImageError."""
        device = next(self.model.parameters()).device
        pixels = decode_image(image, self.spec.image, self.reading(preprocess))[None].to(device)
        return dict(zip(self.spec.classes, self.probabilities(pixels)[0].tolist(), strict=True))

    def check_golden(self) -> None:
        """Raise BundleError unless the golden image is answered as the trained model answered it."""
        golden = dict(zip(self.spec.classes, self.spec.golden_probabilities, strict=True))
        try:
            answer = self.answer(self.golden_image, preprocess=EXACT)
        except ImageError as error:
            raise BundleError(f"{GOLDEN} cannot be read: {error}") from error
        check_probabilities(answer, golden)


def to_probabilities(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """softmax(logits / temperature), (B, classes), in float64, so that each row sums to 1 within 1e-15."""
    return torch.softmax(logits.double() / temperature, dim=1)


def save_bundle(
    directory: Path, spec: BundleSpec, state_dict: dict[str, Any], golden_pixels: torch.Tensor
) -> BundleSpec:
    """Write the bundle, replacing an older one only when all of it is on disk; returns the spec as written.

    `golden_pixels` is a uint8 image (C, H, W); the spec's `weights_sha256` is filled in here.
    """
    with replacing_directory(directory) as new:
        _save(_on_cpu(state_dict), new / WEIGHTS)
        spec = replace(spec, weights_sha256=_sha256(new / WEIGHTS))
        (new / SPEC).write_text(_spec_text(spec))
        (new / GOLDEN).write_bytes(encode_png(golden_pixels))
    return spec


def recalibrate(directory: Path, bundle: Bundle, temperature: float) -> Bundle:
    """The same model at another temperature; in its `directory` bundle.json alone is written anew."""
    changed = replace(bundle, spec=replace(bundle.spec, temperature=temperature))
    golden = tuple(changed.answer(changed.golden_image, preprocess=EXACT).values())
    changed = replace(changed, spec=replace(changed.spec, golden_probabilities=golden))
    with replacing_file(directory / SPEC) as temporary:
        temporary.write_text(_spec_text(changed.spec))
    return changed


def load_bundle(directory: Path | str, *, device: torch.device | str = "cpu") -> Bundle:
    """Read a bundle and check it against itself.

    Raises BundleError where a file is missing, the JSON is not a bundle's, or the weights are not the
    ones the JSON names.
    """
    directory = Path(directory)
    try:
        values = json.loads((directory / SPEC).read_text())
        golden_image = (directory / GOLDEN).read_bytes()
        sha256 = _sha256(directory / WEIGHTS)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{directory} is no bundle: {Path(error.filename).name} is missing") from error
    except OSError as error:
        raise BundleError(f"{error.filename} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
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
    return Bundle(
        spec, _load_model(spec, _load(directory / WEIGHTS), directory / WEIGHTS, device), golden_image
    )


def save_file(bundle: Bundle, path: Path) -> None:
    """Write the whole model to one file, replacing an older one only when all of it is on disk.

    Its golden probabilities are those of the weights as they are now.
    """
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
    """Read what `save_file` wrote, and see that it answers its golden image as the trained model did.

    Raises BundleError for a file that is missing, damaged or another's.
    """
    content = _load(path)
    if not isinstance(content, dict) or content.get("format") != _FILE_FORMAT:
        raise BundleError(f"{path} is not a model that this package saved whole")
    try:
        spec = BundleSpec.from_json(json.loads(content["spec"]))
        golden_image = content["golden_image"].numpy().tobytes()
        state_dict = content["state_dict"]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BundleError(f"{path} is not a model that this package saved whole: {error}") from error
    bundle = Bundle(spec, _load_model(spec, state_dict, path, device), golden_image)
    bundle.check_golden()
    return bundle


def save_state_dict(model: nn.Module | Bundle, path: Path | str) -> None:
    """Write the model's state_dict, replacing an older file only when all of it is on disk."""
    path = Path(path)
    _check_place(path)
    with replacing_file(path) as temporary:
        _save(_on_cpu(_module(model).state_dict()), temporary)


def load_state_dict(path: Path | str) -> dict[str, torch.Tensor]:
    """The state_dict in a file, on the CPU. Raises BundleError where there is none, or more than tensors."""
    state_dict = _load(Path(path))
    if not isinstance(state_dict, dict) or not all(map(torch.is_tensor, state_dict.values())):
        raise BundleError(f"{path} holds no state_dict, a mapping of names to tensors")
    return state_dict


def count_parameters(model: nn.Module | Bundle) -> int:
    """The number of parameters that training changes."""
    return sum(parameter.numel() for parameter in _module(model).parameters() if parameter.requires_grad)


def _spec_text(spec: BundleSpec) -> str:
    return json.dumps(spec.to_json(), indent=2, allow_nan=False) + "\n"


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
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
    # torch.load raises what it happens to meet in a file that is cut off or foreign.
    except Exception as error:
        raise BundleError(
            f"{path} cannot be read: it is damaged, not written by torch.save, or holds more than tensors"
        ) from error


def _save(content: dict[str, Any], path: Path) -> None:
    try:
        torch.save(content, path)
    # What torch.save makes of a full disk.
    except RuntimeError as error:
        raise BundleError(f"{path.parent} cannot be written to: {error}") from error


def _on_cpu(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
