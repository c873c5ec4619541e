"""Writing plots to files, and names that fit into them."""

import warnings
from pathlib import Path

from matplotlib.figure import Figure

from mlp_dist.core.io import replacing_file

_LONGEST_NAME = 18


def shorten(name: str) -> str:
    """A class name, cut so that it does not overlap its neighbors."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def save(figure: Figure, path: Path) -> None:
    """Write `figure` to `path` as PNG, atomically."""
    with replacing_file(path) as temporary, warnings.catch_warnings():
        # Class names may use any script; missing glyphs are drawn as boxes.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        # Low compression saves a fifth of the time.
        figure.savefig(temporary, format="png", pil_kwargs={"compress_level": 1})
