"""Where a picture goes: into a file, or a window, for which alone pyplot is imported."""

import os
import warnings
from pathlib import Path
from typing import Any

from mlp_dist.core.errors import UsageError
from mlp_dist.core.io import replacing_file
from mlp_dist.tracking.plots.base import Figure

FORMATS = ("jpeg", "jpg", "pdf", "png", "svg", "webp")
"""The suffixes of the files that `save` writes."""

_WINDOWLESS = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template")


def picture_format(path: Path) -> str:
    """What `save` writes to `path`: its suffix, or png where it has none.

    Raises UsageError where that is none of FORMATS, or `path` is a directory.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a directory; name the picture's file, as {path / 'picture.png'}")
    suffix = path.suffix.removeprefix(".").lower() or "png"
    if suffix not in FORMATS:
        raise UsageError(
            f"a picture cannot be written to {path}: its suffix must be one of .{', .'.join(FORMATS)}"
        )
    return suffix


def save(figure: Figure, path: Path) -> None:
    """Write `figure` to `path`, whole or not at all. Raises UsageError as `picture_format` does."""
    picture = picture_format(path)
    with replacing_file(path) as temporary, warnings.catch_warnings():
        # Class names may be of any script: what its font lacks matplotlib shows as a box, and tells.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        # Compressing well takes a fifth of the time that all drawing does.
        fast: dict[str, Any] = {"pil_kwargs": {"compress_level": 1}} if picture == "png" else {}
        figure.savefig(temporary, format=picture, **fast)


def check_window() -> None:
    """Raise UsageError where matplotlib cannot open a window."""
    from matplotlib import pyplot

    advice = "write the picture to a file: --output FILE"
    backend = os.environ.get("MPLBACKEND") or pyplot.get_backend()
    try:
        pyplot.switch_backend(backend)
    except (ImportError, ValueError) as error:
        raise UsageError(f"matplotlib cannot open a window: {error}; {advice}") from error
    if backend.lower() in _WINDOWLESS:
        raise UsageError(
            f"matplotlib cannot open a window: its backend is {backend}, which it takes where there is no "
            f"display or no toolkit such as tkinter; {advice}"
        )


def show(figure: Figure) -> None:
    """Open a window and wait until it is closed. Raises UsageError as `check_window` does."""
    check_window()
    from matplotlib import pyplot

    # A Figure made without pyplot has no window; pyplot makes one for what FigureClass returns.
    pyplot.figure(FigureClass=lambda **_: figure)  # type: ignore[arg-type]
    pyplot.show(block=True)
