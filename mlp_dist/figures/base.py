"""What the pictures are made of, from matplotlib."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Figure", "MaxNLocator", "short"]

_LONGEST_NAME = 18


@contextmanager
def _without_backend() -> Iterator[None]:
    """Jupyter names a backend of its own to all that it starts; where that one is not installed, matplotlib
    would not even be imported. Files need none.
    """
    named = os.environ.pop("MPLBACKEND", None)
    yield
    if named is not None:
        os.environ["MPLBACKEND"] = named


with _without_backend():
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator


def short(name: str) -> str:
    """A class's name, cut where it would run into its neighbours."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
