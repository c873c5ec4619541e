"""The description of a trained model as frozen, validated dataclasses with JSON conversion."""

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from mlp_dist.core.errors import BundleError
from mlp_dist.core.kinds import KINDS

FORMAT_VERSION = 1

SPEC, WEIGHTS, GOLDEN = "bundle.json", "weights.pt", "golden.png"
"""The files of a bundle: a BundleSpec, the state_dict, and an image to check the loaded model with."""

STATE_DICT = "state_dict.pth"
"""The weights' name in an MLflow model, where `mlflow.pytorch.load_state_dict` looks for it."""

PROBABILITY_TOLERANCE = 1e-6
"""Largest difference of a probability between machines and batch sizes, for the same weights."""

EXACT, AUTO = PREPROCESS = ("exact", "auto")
"""How images become pixels: only resized, or the digit found and framed first."""

LARGEST_SIZE = 10**9
"""Limit on a layer's width or an image's side; larger values are mistakes."""


class _Json:
    """`to_json` and `from_json`, which raises BundleError for unknown and missing keys."""

    def to_json(self) -> dict[str, Any]:
        values: dict[str, Any] = asdict(self, dict_factory=_without_empty_program)  # type: ignore[call-overload]
        return values

    @classmethod
    def from_json(cls, values: Any) -> Self:
        known = {each.name for each in fields(cls)}  # type: ignore[arg-type]
        if not isinstance(values, dict) or set(values) != known:
            found = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise BundleError(f"{cls.__name__} needs the keys {sorted(known)}, found {found}")
        return cls(**{name: _tuples(value) for name, value in values.items()})


def _without_empty_program(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in pairs if (name, value) != ("program", "")}


def weights_file(directory: Path) -> Path:
    """The weights of a bundle, which an MLflow model stores as `STATE_DICT`."""
    renamed = directory / STATE_DICT
    return renamed if renamed.is_file() else directory / WEIGHTS


def _are_counts(values: tuple[Any, ...]) -> bool:
    return all(type(value) is int and 1 <= value <= LARGEST_SIZE for value in values)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class ImageSpec(_Json):
    """A model's input images: size in pixels, 1 (gray) or 3 (RGB) channels, normalization.

    `mean` and `std` have one value per channel, for pixels from 0 to 1.
    """

    height: int
    width: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        sizes = (self.height, self.width, self.channels)
        if not _are_counts(sizes) or self.channels not in (1, 3):
            raise BundleError(
                f"an image of {self.height}x{self.width} pixels and {self.channels} channels is impossible: "
                "sizes start at 1, and channels are 1 (gray) or 3 (RGB)"
            )
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise BundleError(
                f"mean {self.mean} and std {self.std} need one value for each of {self.channels} channels"
            )
        if not all(map(math.isfinite, self.mean + self.std)) or min(self.std) <= 0:
            raise BundleError(f"mean {self.mean} and std {self.std} must be finite, and std above 0")

    @property
    def num_features(self) -> int:
        """Size of the flattened image."""
        return self.channels * self.height * self.width


@dataclass(frozen=True)
class ModelSpec(_Json):
    """A multi-layer perceptron: `layer_sizes` from input to classes, and `kind`, a name in KINDS.

    Or any module: `kind` is its class's name, and `program` its graph, as core/model.py writes it.
    """

    layer_sizes: tuple[int, ...]
    kind: str = "module"
    program: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS and not self.program:
            raise BundleError(f"model kind {self.kind!r} is not known (there are: {', '.join(KINDS)})")
        if len(self.layer_sizes) < 2 or not _are_counts(self.layer_sizes):
            raise BundleError(
                f"layer_sizes {self.layer_sizes} need at least an input and an output, "
                f"each a number from 1 to {LARGEST_SIZE:,}"
            )

    def __str__(self) -> str:
        sizes = "-".join(map(str, self.layer_sizes))
        return f"{self.kind} {sizes}" if self.program else sizes

    @classmethod
    def from_json(cls, values: Any) -> Self:
        return super().from_json({"program": "", **values} if isinstance(values, dict) else values)


@dataclass(frozen=True)
class BundleSpec(_Json):
    """A trained model without its weights.

    `golden_probabilities` are the trained model's answer to the golden image, to check loaded weights with.
    Logits are divided by `temperature` before the softmax. `preprocess`, one of PREPROCESS, is the default
    for requests.
    """

    model: ModelSpec
    image: ImageSpec
    classes: tuple[str, ...]
    dataset: str
    recipe: str
    run_id: str
    metrics: dict[str, float | None]
    golden_probabilities: tuple[float, ...]
    weights_sha256: str
    versions: dict[str, str]
    format_version: int = FORMAT_VERSION
    temperature: float = 1.0
    preprocess: str = EXACT

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise BundleError(
                f"bundle format {self.format_version} is not {FORMAT_VERSION}, the one this version reads"
            )
        if self.model.layer_sizes[0] != self.image.num_features:
            raise BundleError(
                f"the model takes {self.model.layer_sizes[0]} inputs, "
                f"but its images flatten to {self.image.num_features}"
            )
        if not self.model.layer_sizes[-1] == len(self.classes) == len(self.golden_probabilities):
            raise BundleError(
                f"{self.model.layer_sizes[-1]} outputs, {len(self.classes)} classes and "
                f"{len(self.golden_probabilities)} golden probabilities must be the same number"
            )
        if not all(isinstance(name, str) for name in self.classes) or len(set(self.classes)) < len(
            self.classes
        ):
            raise BundleError(f"class names must be different strings: {self.classes}")
        if not all(isinstance(value, float | int) for value in self.golden_probabilities):
            raise BundleError(f"golden probabilities must be numbers: {self.golden_probabilities}")
        known = isinstance(self.temperature, float | int) and math.isfinite(self.temperature)
        if not known or self.temperature <= 0:
            raise BundleError(f"temperature {self.temperature!r} must be a number above 0")
        if self.preprocess not in PREPROCESS:
            raise BundleError(f"preprocess {self.preprocess!r} is none of {', '.join(PREPROCESS)}")

    @classmethod
    def from_json(cls, values: Any) -> Self:
        if isinstance(values, dict) and {"model", "image"} <= set(values):
            model = ModelSpec.from_json(values["model"])
            image = ImageSpec.from_json(values["image"])
            values = {**values, "model": model, "image": image}
        return super().from_json(values)


def check_probabilities(answer: dict[str, float], golden: dict[str, float]) -> None:
    """Raise BundleError unless both have the same classes and differ by at most PROBABILITY_TOLERANCE."""
    if list(answer) != list(golden):
        raise BundleError(f"the answer has the classes {list(answer)}, not {list(golden)}")
    worst = max(golden, key=lambda name: abs(answer[name] - golden[name]))
    # Negated, so that NaN fails too.
    if not all(abs(answer[name] - golden[name]) <= PROBABILITY_TOLERANCE for name in golden):
        raise BundleError(
            f"the golden image's class {worst!r} is answered with {answer[worst]}, "
            f"the trained model gave {golden[worst]}"
        )
