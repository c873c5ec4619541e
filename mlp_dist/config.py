"""TrainConfig: everything a training depends on, validated when made; each error says what to do."""

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from mlp_dist.core.errors import CheckpointError, UsageError
from mlp_dist.data.catalog import CATALOG, FOLDER_PREFIX

DEFAULT_EXPERIMENT = "mlp_dist"

PRECISIONS = ("no", "bf16", "fp16")
OPTIMIZERS = ("sgd", "adam")

FREE_ON_RESUME = ("epochs", "data_dir", "output_dir")
"""The fields that `--resume` may change: all others would make it another training."""


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

    optimizer: str = "sgd"
    lr: float
    """Learning rate."""

    batch_size: int
    """Images a step over all processes together: the global batch."""

    epochs: int
    seed: int = 0

    val_size: int | None = None
    """Training images held out for validation; None: one in twelve, 5,000 of MNIST's 60,000."""

    mixed_precision: str = "no"

    data_dir: Path | None = None
    """torchvision's root; None: $MLP_DIST_DATA, else `data`."""

    output_dir: Path | None = None
    """None: a new directory under `outputs`, named after the run."""

    experiment: str = DEFAULT_EXPERIMENT
    """The MLflow experiment."""

    run_name: str | None = None
    """None: the recipe's name and the time."""

    def __post_init__(self) -> None:
        check_dataset_name(self.dataset)
        check_dataset_name(self.fallback_dataset or self.dataset)
        _check(all(size >= 1 for size in self.hidden_sizes), "hidden sizes", self.hidden_sizes, "1 or more")
        _check(self.optimizer in OPTIMIZERS, "optimizer", self.optimizer, f"one of {', '.join(OPTIMIZERS)}")
        _check(0 < self.lr < 1e38, "lr", self.lr, "a number above 0 that float32 can hold")
        _check(self.batch_size >= 1, "batch-size", self.batch_size, "1 or more")
        _check(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        _check(0 <= self.seed < 2**63, "seed", self.seed, "from 0 to 2^63 - 1")
        _check(self.val_size is None or self.val_size >= 0, "val-size", self.val_size, "0 or more")
        _check(
            self.mixed_precision in PRECISIONS,
            "mixed-precision",
            self.mixed_precision,
            f"one of {', '.join(PRECISIONS)}",
        )
        _check(bool(self.experiment.strip()), "experiment", repr(self.experiment), "a name")

    def to_json(self) -> dict[str, Any]:
        return {
            name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise CheckpointError(
                f"a configuration needs the fields {sorted(names)}, found {sorted(values)}: "
                "it was written by another version"
            )
        paths = {name: Path(values[name]) for name in ("data_dir", "output_dir") if values[name] is not None}
        return cls(**{**values, **paths, "hidden_sizes": tuple(values["hidden_sizes"])})


def _check(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise UsageError(f"{name} is {value}; it must be {wanted}")


def check_dataset_name(name: str) -> None:
    """Raise UsageError, naming what is possible, for a name that is no data set's."""
    if name in CATALOG or (name.startswith(FOLDER_PREFIX) and name != FOLDER_PREFIX):
        return
    raise UsageError(unknown("data set", name, [*CATALOG, f"{FOLDER_PREFIX}DIR"]))


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a misspelt name: the nearest known one, and all of them."""
    known = list(known)
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"unknown {kind} {name!r}{hint} (there are: {', '.join(known)})"
