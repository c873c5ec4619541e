"""The contestants of benchmarks/training.py, each in a process of its own.

A module of one has `prepare(case, **options)`, which returns a Train: what is called for each repeat.
"""

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field

OURS = "mlp_dist"


@dataclass(frozen=True)
class Peer:
    """`module` is the one in this package; `needs` are the packages that it imports.

    `same_start`: its weights are drawn as ours, so that the test accuracies can be compared.
    """

    module: str
    needs: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    same_start: bool = True
    gpu_only: bool = False

    @property
    def missing(self) -> list[str]:
        """The needed packages that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


PEERS = {
    OURS: Peer("trainer", ()),
    "notebook": Peer("notebook", ("torchvision",)),
    "accelerate": Peer("accelerate", ("accelerate",), gpu_only=True),
    "lightning": Peer("lightning", ("lightning",)),
    "scikit-learn": Peer("sklearn", ("sklearn",), same_start=False),
    "keras-jax": Peer("keras", ("keras", "jax")),
    "jax-scan": Peer("jax", ("jax",)),
    "products-highest": Peer("products", ("torch",), {"precision": "highest"}),
    "products-medium": Peer("products", ("torch",), {"precision": "medium"}),
}
"""By their names in the table. The products: the matrix products of the training alone, in torch, at one of
the precisions of torch.set_float32_matmul_precision."""

_DISTRIBUTIONS = ("torch", "accelerate", "mlflow", "lightning", "scikit-learn", "keras", "jax", "jaxlib")


def versions() -> dict[str, str]:
    """Of the packages that are compared, those that are installed."""
    found = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
