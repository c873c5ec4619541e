"""TrainConfig: everything a training depends on, validated when it is made."""

import math
import unicodedata
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self, get_type_hints

from mlp_dist import __version__
from mlp_dist.core.catalog import ARRAYS_PREFIX, CATALOG, FOLDER_PREFIX
from mlp_dist.core.errors import CheckpointError, UsageError, unknown
from mlp_dist.core.kinds import KINDS
from mlp_dist.core.spec import LARGEST_SIZE

DEFAULT_EXPERIMENT = "mlp_dist"

SCHEDULES = ("constant", "cosine", "linear", "one-cycle")

PRECISIONS = ("no", "bf16", "fp16")
OPTIMIZERS = ("sgd", "adam", "scratch-sgd")
"""torch's SGD without momentum, torch's Adam, and the SGD written out in training/optim.py."""

INITIALIZATIONS = ("linear", "normal_fan_in", "normal_0.01", "normal_0.1")
"""How weights and biases are drawn; core/model.py describes each."""

TO_TENSOR = (0.0, 1.0)
"""The `normalize` that leaves images as ToTensor gives them."""

MATMUL_PRECISIONS = ("auto", "highest", "high", "medium")
"""Names of torch.set_float32_matmul_precision; auto is medium if that costs no precision."""

GRADIENT_DTYPES = ("float32", "float64")

RESUME = ("no", "yes", "auto")
"""Whether to resume a run; auto resumes if there is one."""

FREE_ON_RESUME = ("epochs", "data_dir", "output_dir", "log_every", "checkpoint_every_steps")
"""The fields that `--resume` may change."""

SWEPT = (
    *("seed", "lr", "hidden_sizes", "model", "initialization", "optimizer", "schedule", "warmup_epochs"),
    *("batch_size", "accumulation_steps", "clip_norm", "weight_decay", "label_smoothing", "dropout"),
    *("augment_shift", "deform", "adversarial", "ema_decay", "epochs", "patience"),
)
"""The fields that a sweep may vary."""

WHERE = (
    *("data_dir", "output_dir", "experiment", "run_name", "log_every", "checkpoint_every_steps"),
    "fallback_dataset",
)
"""The fields that do not change what is trained: locations, names, and how often progress is reported."""

_MAX_EXPERIMENT = 500
"""MLflow's limit for a name, in characters."""

_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories: control characters, surrogates, line and paragraph separators."""

CHOICES = {
    "model": tuple(KINDS),
    "initialization": INITIALIZATIONS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "mixed_precision": PRECISIONS,
    "gradient_dtype": GRADIENT_DTYPES,
    "matmul_precision": MATMUL_PRECISIONS,
}
"""Field -> its possible values."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A complete training. Recipes return one; the command line replaces single fields."""

    recipe: str
    """Name of the recipe."""

    dataset: str
    """A name of core/catalog.py, `folder:DIR` or `arrays:DIR`."""

    fallback_dataset: str | None = None
    """Used if `dataset` cannot be downloaded; None: that is an error."""

    hidden_sizes: tuple[int, ...]
    """Widths of the hidden layers."""

    model: str = "module"
    """How the perceptron is built, one of KINDS."""

    initialization: str = "linear"
    """How weights are drawn, one of INITIALIZATIONS."""

    image_size: int = 28
    """Height and width that images are resized to, in pixels."""

    normalize: tuple[float, float] | None = None
    """(mean, std) for all channels, as in torchvision's Normalize; None: the training images' own."""

    optimizer: str = "sgd"
    lr: float
    """Learning rate."""

    schedule: str = "constant"
    """Learning rate schedule over all epochs, one of SCHEDULES."""

    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises to `lr`."""

    batch_size: int
    """The global batch: images per step over all processes."""

    accumulation_steps: int = 1
    """Gradient accumulation steps: parts of a process's share of the batch; less memory, same gradient."""

    clip_norm: float | None = None
    """Maximum gradient norm; None: no clipping."""

    weight_decay: float = 0.0
    """On all parameters: L2 for SGD, decoupled (AdamW) for Adam."""

    label_smoothing: float = 0.0
    dropout: float = 0.0
    """Probability of dropping a hidden unit."""

    augment_shift: int = 0
    """Random shift of training images, in pixels."""

    deform: float = 0.0
    """Strength of random affine and elastic deformations of training images; 0: none."""

    adversarial: float = 0.0
    """Epsilon of adversarial (FGSM) training, in pixel values from 0 to 1; 0: none."""

    ema_decay: float = 0.0
    """Decay of the weights' exponential moving average, which is then evaluated and kept; 0: none."""

    epochs: int
    patience: int = 0
    """Early stopping: epochs without a better validation accuracy; 0: never stop early."""

    seed: int = 0

    val_size: int | None = None
    """Training images held out for validation; None: one in twelve, 5,000 of MNIST's 60,000."""

    mixed_precision: str = "no"

    gradient_dtype: str = "float32"
    """Precision of gradients; float64: the same weights on any number of processes."""

    matmul_precision: str = "auto"
    """Precision of float32 matrix products, one of MATMUL_PRECISIONS."""

    compile: bool = False
    """Compile the model with torch.compile."""

    data_dir: Path | None = None
    """torchvision's root; None: $MLP_DIST_DATA, else `data`."""

    output_dir: Path | None = None
    """None: a new directory under `outputs`, named after the run."""

    experiment: str = DEFAULT_EXPERIMENT
    """The MLflow experiment."""

    run_name: str | None = None
    """None: the recipe, the changed fields and the seed."""

    skip_bad_images: bool = False
    """Skip unreadable images of a folder instead of failing."""

    log_every: int = 0
    """Log the mean loss every N steps; 0: only after each epoch."""

    checkpoint_every_steps: int = 0
    """Write a checkpoint every N steps, too; 0: only after each epoch."""

    def __post_init__(self) -> None:
        check_dataset_name(self.dataset)
        check_dataset_name(self.fallback_dataset or self.dataset)
        for name, choices in CHOICES.items():
            self._check(name, getattr(self, name) in choices, f"one of {', '.join(choices)}")
        for name in ("batch_size", "accumulation_steps", "epochs"):
            self._check(name, getattr(self, name) >= 1, "1 or more")
        for name in ("patience", "val_size", "log_every", "checkpoint_every_steps", "weight_decay", "deform"):
            self._check(name, 0 <= (getattr(self, name) or 0) < math.inf, "0 or more")
        for name in ("label_smoothing", "dropout", "adversarial", "ema_decay"):
            self._check(name, 0 <= getattr(self, name) < 1, "from 0 to below 1")
        sizes = self.hidden_sizes
        self._check(
            "hidden_sizes", all(1 <= size <= LARGEST_SIZE for size in sizes), f"from 1 to {LARGEST_SIZE:,}"
        )
        self._check("image_size", 1 <= self.image_size <= 4096, "from 1 to 4096 pixels")
        mean, std = self.normalize or TO_TENSOR
        self._check(
            "normalize",
            abs(mean) <= 1e6 and 1e-6 <= std <= 1e6,
            "a mean of at most 1e6 and a std from 1e-6 to 1e6",
        )
        self._check("lr", 0 < self.lr < 1e38, "a number above 0 that float32 can hold")
        self._check(
            "warmup_epochs",
            0 <= self.warmup_epochs <= self.epochs,
            f"from 0 to the {self.epochs} epochs of the training",
        )
        self._check("clip_norm", self.clip_norm is None or 0 < self.clip_norm < math.inf, "a number above 0")
        self._check(
            "augment_shift",
            0 <= self.augment_shift < self.image_size,
            f"from 0 to below the {self.image_size} pixels of an image",
        )
        self._check(
            "patience",
            not (self.patience and self.val_size == 0),
            "0 if val-size is 0: early stopping needs validation images",
        )
        self._check("seed", 0 <= self.seed < 2**63, "from 0 to 2^63 - 1")
        self._check(
            "gradient_dtype",
            self.gradient_dtype != "float64" or (self.mixed_precision == "no" and not self.compile),
            "float32 with mixed precision or --compile",
        )
        for name in ("experiment", "run_name") if self.run_name else ("experiment",):
            value = getattr(self, name)
            self._check(name, bool(value.strip()), "a name")
            # Control characters would break tables, or control the terminal.
            printable = all(unicodedata.category(letter) not in _UNPRINTABLE for letter in value)
            self._check(name, printable, "a name without line breaks and control characters")
        self._check(
            "experiment", len(self.experiment) <= _MAX_EXPERIMENT, f"at most {_MAX_EXPERIMENT} characters"
        )

    def _check(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            value = getattr(self, name)
            text = repr(value) if name in ("experiment", "run_name") else value
            raise UsageError(f"{name.replace('_', '-')} is {text}; it must be {wanted}")

    def is_over(self, num_epochs: int, kept: int) -> bool:
        """Whether the training ends after `num_epochs`, the best of which has index `kept`."""
        stale = num_epochs - 1 - kept
        return num_epochs >= self.epochs or (0 < self.patience <= stale)

    def to_json(self) -> dict[str, Any]:
        return {
            name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Raises CheckpointError for unknown or missing fields; those with defaults may be missing."""
        unknown_names = set(values) - {field.name for field in fields(cls)}
        missing = {field.name for field in fields(cls) if field.default is MISSING} - set(values)
        for names, problem in ((unknown_names, "does not know"), (missing, "needs, but does not find,")):
            if names:
                listed = ", ".join(sorted(names))
                raise CheckpointError(f"mlp_dist {__version__} {problem} the configuration fields {listed}")
        read: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        paths = {name: Path(values[name]) for name in ("data_dir", "output_dir") if values.get(name)}
        return cls(**{**read, **paths})


def check_dataset_name(name: str) -> None:
    """Raise UsageError, with the known names, for an unknown data set."""
    prefixes = (FOLDER_PREFIX, ARRAYS_PREFIX)
    if name in CATALOG or (name.startswith(prefixes) and name not in prefixes):
        return
    hint = f"; for the images in that folder: {FOLDER_PREFIX}{name}" if name and Path(name).is_dir() else ""
    raise UsageError(unknown("data set", name, [*CATALOG, *(f"{prefix}DIR" for prefix in prefixes)]) + hint)


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


_VALUE_TYPES: tuple[tuple[Any, str, Callable[[Any], bool]], ...] = (
    (bool, "true or false", lambda value: type(value) is bool),
    (int, "a whole number", lambda value: type(value) is int),
    (float, "a number", _is_number),
    (str, "text in quotes", lambda value: isinstance(value, str)),
    (
        tuple[int, ...],
        "a list of whole numbers as [256, 64]",
        lambda value: isinstance(value, tuple) and all(type(each) is int for each in value),
    ),
    (
        tuple[float, float],
        'a mean and a std as [0.5, 0.5], "none" or "data"',
        lambda value: isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value)),
    ),
)
"""For each type of field: its description for messages, and a test of values."""

_FIELDS = get_type_hints(TrainConfig)
_NORMALIZATIONS = {"none": TO_TENSOR, "data": None}


def field_value(name: str, value: object) -> Any:
    """The value of field `name` from JSON or TOML, as TrainConfig holds it.

    Raises UsageError for a value of another type; TrainConfig checks the rest.
    """
    if name == "normalize" and isinstance(value, str) and value in _NORMALIZATIONS:
        return _NORMALIZATIONS[value]
    value = tuple(value) if isinstance(value, list) else value
    for kind, words, fits in _VALUE_TYPES:
        may_be_none = _FIELDS[name] == (kind | None)
        if (_FIELDS[name] == kind or (may_be_none and value is not None)) and not fits(value):
            raise UsageError(f"{name} is {value!r}; it must be {words}")
    return value


def has_type(name: str, kind: type) -> bool:
    """Whether the field `name` is of this type, or None."""
    return _FIELDS[name] in (kind, kind | None)


def is_whole(name: str) -> bool:
    return has_type(name, int)


def is_number(name: str) -> bool:
    return has_type(name, int) or has_type(name, float)


def absolute_dataset(name: str) -> str:
    """`folder:DIR` and `arrays:DIR` with an absolute path; other names unchanged."""
    for prefix in (FOLDER_PREFIX, ARRAYS_PREFIX):
        if name.startswith(prefix) and name != prefix:
            return f"{prefix}{Path(name.removeprefix(prefix)).expanduser().resolve()}"
    return name
