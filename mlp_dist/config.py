"""TrainConfig: every option of a training, declared once.

Flags, --help, JSON, search spaces, run names and the command that repeats a run are made from its fields.
"""

import unicodedata
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from mlp_dist import __version__
from mlp_dist.console.options import option, options
from mlp_dist.core.catalog import ARRAYS_PREFIX, CATALOG, FOLDER_PREFIX, MEMORY
from mlp_dist.core.errors import CheckpointError, UsageError, unknown
from mlp_dist.core.kinds import KINDS
from mlp_dist.core.spec import LARGEST_SIZE

EXPERIMENTS = "mlp_dist"
"""Without --experiment, a run's experiment is this, a slash, and its data set."""

TO_TENSOR = (0.0, 1.0)
"""The `normalize` that leaves images as ToTensor gives them."""

_NAME = "a name without line breaks and control characters"
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories: control characters, surrogates, line and paragraph separators."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """What to train. Defaults are the recipe's."""

    recipe: str = option("mnist-quick")
    """A complete configuration; --list-recipes lists them."""

    hidden_sizes: tuple[int, ...] = option(
        (500,), names={"none": ()}, swept=True, at_least=1, at_most=LARGEST_SIZE
    )
    """Widths of the hidden layers, or none."""

    model: Literal[tuple(KINDS)] = option("module", swept=True)  # type: ignore[valid-type]
    """Built of nn.Linear (module), raw tensors (tensor), or core/layers.py (layers)."""

    initialization: Literal["linear", "normal_fan_in", "normal_0.01", "normal_0.1"] = option(
        "linear", swept=True
    )
    """How weights and biases are drawn; core/model.py describes each."""


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How to train."""

    optimizer: Literal["sgd", "adam", "scratch-sgd"] = option("sgd", swept=True)
    """torch's SGD, torch's Adam, or the SGD written out in training/optim.py."""

    lr: float = option(0.1, swept=True, above=0, below=1e38)
    """Learning rate, the peak of a schedule."""

    schedule: Literal["constant", "cosine", "linear", "one-cycle"] = option("constant", swept=True)
    """Learning rate schedule over all epochs."""

    warmup_epochs: float = option(0.0, swept=True, at_least=0)
    """Epochs over which the learning rate rises to --lr."""

    batch_size: int = option(100, swept=True, at_least=1)
    """Global batch: images per step over all processes."""

    accumulation_steps: int = option(1, swept=True, at_least=1)
    """Gradient accumulation steps: less memory, same gradient."""

    clip_norm: float | None = option(None, names={"none": None}, swept=True, above=0)
    """Maximum gradient norm."""

    epochs: int = option(5, swept=True, free_on_resume=True, at_least=1)
    """Passes over the training images."""

    patience: int = option(0, swept=True, at_least=0)
    """Stop after N epochs without a better validation accuracy; 0: never."""

    seed: int = option(0, swept=True, at_least=0, at_most=2**63 - 1)
    """Seed of all randomness."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How to compute."""

    mixed_precision: Literal["no", "bf16", "fp16"] = option("no")
    """Also set by the launcher."""

    gradient_dtype: Literal["float32", "float64"] = option("float32")
    """float64: the same weights on any number of processes."""

    matmul_precision: Literal["auto", "highest", "high", "medium"] = option("auto")
    """Of float32 matrix products; auto: medium if that loses nothing."""

    compile: bool = option(False)
    """Use torch.compile."""


@dataclass(frozen=True, kw_only=True)
class Regularization:
    """Against overfitting."""

    weight_decay: float = option(0.0, swept=True, at_least=0)
    """L2 on all parameters; decoupled for adam, as in AdamW."""

    dropout: float = option(0.0, swept=True, at_least=0, below=1)
    """Probability of dropping a hidden unit."""

    label_smoothing: float = option(0.0, swept=True, at_least=0, below=1)
    """Share of a label's probability that is spread over all classes."""

    augment_shift: int = option(0, swept=True, at_least=0)
    """Shift images randomly by up to N pixels."""

    deform: float = option(0.0, swept=True, at_least=0)
    """Random affine and elastic deformations of strength X (try 1)."""

    restyle: float = option(0.0, swept=True, at_least=0)
    """Vary slant, proportions and stroke width, as hands do, by strength X (try 1)."""

    adversarial: float = option(0.0, swept=True, at_least=0, below=1)
    """Adversarial (FGSM) training, epsilon X for pixels from 0 to 1."""

    ema_decay: float = option(0.0, swept=True, at_least=0, below=1)
    """Evaluate and keep an exponential moving average of the weights."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """The images."""

    dataset: str = option("mnist")
    """mnist, fashion_mnist, kmnist, qmnist, emnist-letters, emnist-balanced, usps, digits, folder:DIR with
    one folder per class, or arrays:DIR with train_images.npy, train_labels.npy, test_...; auto: the
    recipe's, or digits if it cannot be downloaded."""

    data_dir: Path | None = option(
        None, names={"MLP_DIST_DATA, else data": None}, free_on_resume=True, changes_training=False
    )
    """torchvision's root."""

    image_size: int = option(28, at_least=1, at_most=4096)
    """Resize images to N x N pixels."""

    normalize: tuple[float, float] | None = option(None, names={"none": TO_TENSOR, "data": None})
    """Mean and std as in torchvision's Normalize; none: ToTensor's range; data: the training images' own."""

    skip_bad_images: bool = option(False)
    """Skip unreadable images of a folder."""

    val_size: int | None = option(None, names={"auto": None}, at_least=0)
    """Training images held out for validation; auto: one in twelve."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where results go."""

    output_dir: Path | None = option(
        None, names={"a new one under outputs": None}, free_on_resume=True, changes_training=False
    )
    """Directory of the run."""

    experiment: str | None = option(None, names={"mlp_dist/DATASET": None}, changes_training=False)
    """The MLflow experiment."""

    run_name: str | None = option(None, names={"recipe, changes, seed": None}, changes_training=False)
    """Name of the MLflow run."""

    log_every: int = option(0, free_on_resume=True, changes_training=False, at_least=0)
    """Log the mean loss every N steps; 0: only after each epoch."""

    checkpoint_every_steps: int = option(0, free_on_resume=True, changes_training=False, at_least=0)
    """Write a checkpoint every N steps, too; 0: only after each epoch."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Output, Data, Regularization, Precision, Optimization, Model):
    """A complete training: by default the recipe mnist-quick. The command line replaces single fields."""

    fallback_dataset: str | None = option(None, names={"none": None}, changes_training=False)
    """Used if `dataset` cannot be downloaded; None: that is an error."""

    def __post_init__(self) -> None:
        for name, declared in OPTIONS.items():
            declared.check(getattr(self, name))
        check_dataset_name(self.dataset)
        check_dataset_name(self.fallback_dataset or self.dataset)
        mean, std = self.normalize or TO_TENSOR
        is_sane = abs(mean) <= 1e6 and 1e-6 <= std <= 1e6
        is_exact, size = self.gradient_dtype == "float64", self.image_size
        for name, holds, wanted in (
            ("normalize", is_sane, "at most 1e6, with a std of at least 1e-6"),
            ("warmup_epochs", self.warmup_epochs <= self.epochs, f"at most the {self.epochs} epochs in all"),
            ("augment_shift", self.augment_shift < size, f"below the image size {size}"),
            ("patience", self.patience == 0 or self.val_size != 0, "0 without validation images, val-size 0"),
            ("gradient_dtype", not (is_exact and self.compile), "float32 with --compile"),
            ("gradient_dtype", not is_exact or self.mixed_precision == "no", "float32 with mixed precision"),
            ("experiment", len(self.experiment or "") <= 500, "at most 500 characters, MLflow's limit"),
            ("experiment", _is_name(self.experiment or "-"), _NAME),
            ("run_name", _is_name(self.run_name or "-"), _NAME),
        ):
            if not holds:
                raise UsageError(f"{OPTIONS[name].shown(getattr(self, name))}; it must be {wanted}")

    def is_over(self, num_epochs: int, kept: int) -> bool:
        """Whether the training ends after `num_epochs`, the best of which has index `kept`."""
        stale = num_epochs - 1 - kept
        return num_epochs >= self.epochs or (0 < self.patience <= stale)

    @property
    def keeps_last(self) -> bool:
        """Whether the last epoch is kept, and not the one that validates best.

        A schedule that falls to 0 makes the last epoch the best one; a few validation images would choose
        another by chance.
        """
        return self.schedule != "constant" and not self.patience

    def to_json(self) -> dict[str, Any]:
        return {
            name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Raises CheckpointError for unknown fields; missing ones have their defaults."""
        if others := ", ".join(sorted(set(values) - set(OPTIONS))):
            raise CheckpointError(f"mlp_dist {__version__} does not know the configuration fields {others}")
        return cls(**{name: OPTIONS[name].from_json(value) for name, value in values.items()})


def _is_name(text: str) -> bool:
    """Control characters would break tables, or control the terminal."""
    return bool(text.strip()) and not any(unicodedata.category(each) in _UNPRINTABLE for each in text)


OPTIONS = options(TrainConfig)
"""Every field of TrainConfig."""

GROUPS = TrainConfig.__bases__[::-1]
"""The groups of options, in the order of --help: dataclasses list the fields of their last base first."""


def check_dataset_name(name: str) -> None:
    """Raise UsageError, with the known names, for an unknown data set."""
    prefixes = (FOLDER_PREFIX, ARRAYS_PREFIX)
    if name in (*CATALOG, MEMORY) or (name.startswith(prefixes) and name not in prefixes):
        return
    hint = f"; for the images in that folder: {FOLDER_PREFIX}{name}" if name and Path(name).is_dir() else ""
    raise UsageError(unknown("data set", name, [*CATALOG, *(f"{prefix}DIR" for prefix in prefixes)]) + hint)


def absolute_dataset(name: str) -> str:
    """`folder:DIR` and `arrays:DIR` with an absolute path; other names unchanged."""
    for prefix in (FOLDER_PREFIX, ARRAYS_PREFIX):
        if name.startswith(prefix) and name != prefix:
            return f"{prefix}{Path(name.removeprefix(prefix)).expanduser().resolve()}"
    return name
