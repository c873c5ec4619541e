"""The contestants of benchmarks.training: functions `prepare(case) -> Train`, each run in its own process."""

import importlib.metadata
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass

OURS = "mlp_dist"


@dataclass(frozen=True)
class Peer:
    """`prepare` is "module:function" in this package; `needs` are the packages that it imports."""

    prepare: str
    needs: tuple[str, ...] = ()


PEERS = {
    OURS: Peer("ours:prepare"),
    "accelerate": Peer("loops:prepare_accelerate"),
    "notebook": Peer("loops:prepare_notebook"),
    "lightning": Peer("lightning:prepare", ("lightning",)),
}


def missing(packages: Iterable[str]) -> list[str]:
    """The packages that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def versions(*names: str) -> dict[str, str]:
    """Versions of those distributions that are installed."""
    installed = {each.name.lower() for each in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in names if name in installed}
