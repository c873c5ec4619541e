"""TrainConfig: everything a training depends on, validated when made; each error says what to do."""

import math
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self, get_type_hints

from mlp_dist.core.catalog import ARRAYS_PREFIX, CATALOG, FOLDER_PREFIX
from mlp_dist.core.errors import CheckpointError, UsageError, unknown
from mlp_dist.core.spec import KINDS, LARGEST_SIZE

DEFAULT_EXPERIMENT = "mlp_dist"

SCHEDULES = ("constant", "cosine", "linear", "one-cycle")

PRECISIONS = ("no", "bf16", "fp16")
OPTIMIZERS = ("sgd", "adam", "scratch-sgd")
"""torch's plain SGD, torch's Adam, and optim.py's written-out SGD."""

INITIALIZATIONS = ("linear", "normal_fan_in", "normal_0.01", "normal_0.1")
"""How weights and biases are drawn: core/models.py tells it of each name."""

TO_TENSOR = (0.0, 1.0)
"""The `normalize` that leaves the images as ToTensor gives them."""

MATMUL_PRECISIONS = ("auto", "highest", "high", "medium")
"""torch.set_float32_matmul_precision's names; auto: medium where that costs no precision."""

GRADIENT_DTYPES = ("float32", "float64")

RESUME = ("no", "yes", "auto")
"""Whether to go on with a training; auto: where there is one."""

FREE_ON_RESUME = ("epochs", "data_dir", "output_dir", "log_every", "checkpoint_every_steps")
"""The fields that `--resume` may change: all others would make it another training."""

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
"""The fields that do not change what is trained: locations, names and how often progress is reported."""


_LONGEST_EXPERIMENT = 500
"""Characters of a name that MLflow takes."""

_NOT_SHOWN = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories: control characters, halves of pairs, what separates lines and paragraphs."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training, whole. A recipe returns one; the command line replaces single fields."""

    recipe: str
    """Name of the recipe this started from."""

    dataset: str
    """A name of data/catalog.py, or `folder:DIR`."""

    fallback_dataset: str | None = None
    """Used where `dataset` cannot be downloaded; None: that is an error."""

    hidden_sizes: tuple[int, ...]
    """Widths of the hidden layers; the data give the input's and the output's."""

    model: str = "module"
    """How the perceptron is built, one of KINDS."""

    initialization: str = "linear"
    """How its weights are drawn, one of INITIALIZATIONS."""

    image_size: int = 28
    """Height and width that images are resized to, in pixels."""

    normalize: tuple[float, float] | None = None
    """(mean, std) for all channels, as torchvision's Normalize; None: those of the training images."""

    optimizer: str = "sgd"
    lr: float
    """Learning rate."""

    schedule: str = "constant"
    """The learning rate's course over all epochs, one of SCHEDULES."""

    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises to `lr`."""

    batch_size: int
    """Images a step over all processes together: the global batch."""

    accumulation_steps: int = 1
    """Parts in which each process works through its share of a batch, one after the other: less memory,
    the same gradient."""

    clip_norm: float | None = None
    """The gradient's largest norm; a longer one is scaled down to it."""

    weight_decay: float = 0.0
    """Of all parameters: L2 for SGD, decoupled (AdamW) for Adam."""

    label_smoothing: float = 0.0
    dropout: float = 0.0
    """Share of the hidden units that each step leaves out."""

    augment_shift: int = 0
    """Training images are moved by up to so many pixels, each time anew."""

    deform: float = 0.0
    """Strength of the random affine and elastic deformations of training images; 0: none."""

    adversarial: float = 0.0
    """How far each training image's pixels, from 0 to 1, are moved against the model; 0: not at all."""

    ema_decay: float = 0.0
    """Of the exponential moving average of the weights, which is then what is evaluated and kept; 0: none."""

    epochs: int
    patience: int = 0
    """Stop after so many epochs without a better validation accuracy; 0: never."""

    seed: int = 0

    val_size: int | None = None
    """Training images held out for validation; None: one in twelve, 5,000 of MNIST's 60,000."""

    mixed_precision: str = "no"

    gradient_dtype: str = "float32"
    """What gradients are computed in; float64: any number of processes trains the same weights."""

    matmul_precision: str = "auto"
    """How exactly float32 matrices are multiplied, one of MATMUL_PRECISIONS."""

    compile: bool = False
    """Compile the model with torch.compile."""

    data_dir: Path | None = None
    """torchvision's root; None: $MLP_DIST_DATA, else `data`."""

    output_dir: Path | None = None
    """None: a new directory under `outputs`, named after the run."""

    experiment: str = DEFAULT_EXPERIMENT
    """The MLflow experiment."""

    run_name: str | None = None
    """None: the recipe's name, what was chosen otherwise, and the seed."""

    skip_bad_images: bool = False
    """Leave images that cannot be read out of a folder, instead of stopping."""

    log_every: int = 0
    """Tell the mean loss of every so many steps; 0: of epochs only."""

    checkpoint_every_steps: int = 0
    """Write a checkpoint within an epoch too, every so many steps; 0: after each epoch."""

    def __post_init__(self) -> None:
        check_dataset_name(self.dataset)
        check_dataset_name(self.fallback_dataset or self.dataset)
        _check(all(size >= 1 for size in self.hidden_sizes), "hidden sizes", self.hidden_sizes, "1 or more")
        _check_among(KINDS, "model", self.model)
        _check_among(INITIALIZATIONS, "initialization", self.initialization)
        _check(
            all(size <= LARGEST_SIZE for size in self.hidden_sizes),
            "hidden sizes",
            self.hidden_sizes,
            f"at most {LARGEST_SIZE:,}",
        )
        _check(1 <= self.image_size <= 4096, "image-size", self.image_size, "from 1 to 4096 pixels")
        mean, std = self.normalize or TO_TENSOR
        _check(
            abs(mean) <= 1e6 and 1e-6 <= std <= 1e6,
            "normalize",
            f"{mean:g},{std:g}",
            "a mean of at most 1e6 and a std from 1e-6 to 1e6",
        )
        _check_among(OPTIMIZERS, "optimizer", self.optimizer)
        _check(0 < self.lr < 1e38, "lr", self.lr, "a number above 0 that float32 can hold")
        _check_among(SCHEDULES, "schedule", self.schedule)
        _check(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        _check(
            0 <= self.warmup_epochs <= self.epochs,
            "warmup-epochs",
            self.warmup_epochs,
            f"from 0 to the {self.epochs} epochs of the training",
        )
        _check(self.batch_size >= 1, "batch-size", self.batch_size, "1 or more")
        _check(self.accumulation_steps >= 1, "accumulation-steps", self.accumulation_steps, "1 or more")
        _check(
            self.clip_norm is None or 0 < self.clip_norm < math.inf,
            "clip-norm",
            self.clip_norm,
            "a number above 0",
        )
        for name, below in (
            ("weight_decay", math.inf),
            ("label_smoothing", 1),
            ("dropout", 1),
            ("deform", math.inf),
            ("adversarial", 1),
            ("ema_decay", 1),
        ):
            value = getattr(self, name)
            wanted = "0 or more" if below == math.inf else f"from 0 to below {below}"
            _check(0 <= value < below, name.replace("_", "-"), value, wanted)
        _check(
            0 <= self.augment_shift < self.image_size,
            "augment-shift",
            self.augment_shift,
            f"from 0 to below the {self.image_size} pixels of an image",
        )
        _check(self.patience >= 0, "patience", self.patience, "0 or more")
        _check(
            not (self.patience and self.val_size == 0),
            "patience",
            self.patience,
            "0 where val-size is 0: without validation images nothing tells when to stop",
        )
        _check(0 <= self.seed < 2**63, "seed", self.seed, "from 0 to 2^63 - 1")
        _check(self.val_size is None or self.val_size >= 0, "val-size", self.val_size, "0 or more")
        _check_among(PRECISIONS, "mixed-precision", self.mixed_precision)
        _check_among(GRADIENT_DTYPES, "gradient-dtype", self.gradient_dtype)
        _check(
            self.gradient_dtype != "float64" or (self.mixed_precision == "no" and not self.compile),
            "gradient-dtype",
            self.gradient_dtype,
            "float32 with mixed precision or --compile",
        )
        _check_among(MATMUL_PRECISIONS, "matmul-precision", self.matmul_precision)
        _check(self.log_every >= 0, "log-every", self.log_every, "0 or more")
        _check(
            self.checkpoint_every_steps >= 0,
            "checkpoint-every-steps",
            self.checkpoint_every_steps,
            "0 or more",
        )
        _check_name("experiment", self.experiment)
        longest = len(self.experiment) <= _LONGEST_EXPERIMENT
        _check(longest, "experiment", repr(self.experiment), f"at most {_LONGEST_EXPERIMENT} characters")
        if self.run_name:
            _check_name("run-name", self.run_name)

    def is_over(self, num_epochs: int, kept: int) -> bool:
        """Whether a training has ended that has done `num_epochs`, the best of them at index `kept`."""
        stale = num_epochs - 1 - kept
        return num_epochs >= self.epochs or (0 < self.patience <= stale)

    def to_json(self) -> dict[str, Any]:
        return {
            name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        known = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if not needed <= set(values) <= known:
            raise CheckpointError(
                f"a configuration needs the fields {sorted(needed)}, found {sorted(values)}: "
                "it was written by another version"
            )
        read: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        paths = {name: Path(values[name]) for name in ("data_dir", "output_dir") if values.get(name)}
        return cls(**{**read, **paths})


def _check(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise UsageError(f"{name} is {value}; it must be {wanted}")


def _check_name(name: str, value: str) -> None:
    """Control characters would break the tables that it stands in, or command the terminal."""
    _check(bool(value.strip()), name, repr(value), "a name")
    plain = all(unicodedata.category(letter) not in _NOT_SHOWN for letter in value)
    _check(plain, name, repr(value), "a name without line breaks and control characters")


def _check_among(known: Iterable[str], name: str, value: str) -> None:
    _check(value in known, name, value, f"one of {', '.join(known)}")


def check_dataset_name(name: str) -> None:
    """Raise UsageError, naming what is possible, for a name that is no data set's."""
    prefixes = (FOLDER_PREFIX, ARRAYS_PREFIX)
    if name in CATALOG or (name.startswith(prefixes) and name not in prefixes):
        return
    hint = f"; for the images in that folder: {FOLDER_PREFIX}{name}" if name and Path(name).is_dir() else ""
    raise UsageError(unknown("data set", name, [*CATALOG, *(f"{prefix}DIR" for prefix in prefixes)]) + hint)


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


_KINDS: tuple[tuple[Any, str, Callable[[Any], bool]], ...] = (
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
"""The kinds of fields: how a person writes their values, and which these are."""

_FIELDS = get_type_hints(TrainConfig)
_NORMALIZATIONS = {"none": TO_TENSOR, "data": None}


def field_value(name: str, value: object) -> Any:
    """What JSON or TOML has for the field `name`, as TrainConfig holds it.

    Raises UsageError for a value of another kind; TrainConfig itself checks what it is.
    """
    if name == "normalize" and isinstance(value, str) and value in _NORMALIZATIONS:
        return _NORMALIZATIONS[value]
    value = tuple(value) if isinstance(value, list) else value
    for kind, words, fits in _KINDS:
        may_be_none = _FIELDS[name] == (kind | None)
        if (_FIELDS[name] == kind or (may_be_none and value is not None)) and not fits(value):
            raise UsageError(f"{name} is {value!r}; it must be {words}")
    return value


def is_whole(name: str) -> bool:
    """Whether the field `name` holds whole numbers."""
    return _FIELDS[name] in (int, int | None)


def is_number(name: str) -> bool:
    return is_whole(name) or _FIELDS[name] in (float, float | None)


def absolute_dataset(name: str) -> str:
    """`folder:DIR` and `arrays:DIR` with the whole path; other names as they are."""
    for prefix in (FOLDER_PREFIX, ARRAYS_PREFIX):
        if name.startswith(prefix) and name != prefix:
            return f"{prefix}{Path(name.removeprefix(prefix)).expanduser().resolve()}"
    return name
