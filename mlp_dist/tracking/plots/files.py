"""Writing plots to files and opening them in windows."""

import warnings
from pathlib import Path
from typing import Any

from matplotlib.backends.registry import BackendFilter, backend_registry
from matplotlib.figure import Figure

from mlp_dist.core.errors import UsageError
from mlp_dist.core.io import replacing_file

FORMATS = ("jpeg", "jpg", "pdf", "png", "svg", "webp")
"""File name suffixes that `save` accepts."""

_LONGEST_NAME = 18


def shorten(name: str) -> str:
    """A class name, cut so that it does not overlap its neighbors."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def file_format(path: Path) -> str:
    """The format that `save` writes to `path`: its suffix, or png if it has none.

    Raises UsageError if the suffix is not in FORMATS, or `path` is a directory.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a directory; name a file, for example {path / 'picture.png'}")
    suffix = path.suffix.removeprefix(".").lower() or "png"
    if suffix not in FORMATS:
        raise UsageError(
            f"cannot write a picture to {path}: its suffix must be one of .{', .'.join(FORMATS)}"
        )
    return suffix


def save(figure: Figure, path: Path) -> None:
    """Write `figure` to `path` atomically. Raises UsageError like `file_format`."""
    name = file_format(path)
    # Low compression saves a fifth of the time.
    options: dict[str, Any] = {"pil_kwargs": {"compress_level": 1}} if name == "png" else {}
    with replacing_file(path) as temporary, warnings.catch_warnings():
        # Class names may use any script; missing glyphs are drawn as boxes.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        figure.savefig(temporary, format=name, **options)


def check_window() -> None:
    """Raise UsageError if matplotlib cannot open a window."""
    from matplotlib import pyplot

    advice = "write the picture to a file with --output FILE"
    try:
        backend = pyplot.get_backend()
        pyplot.switch_backend(backend)
    except (ImportError, ValueError) as error:
        raise UsageError(f"matplotlib cannot open a window: {error}; {advice}") from error
    windowless = backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE)  # type: ignore[no-untyped-call]
    if backend.lower() in windowless:
        raise UsageError(
            f"matplotlib cannot open a window: its backend is {backend}, the default without a display or a "
            f"toolkit such as tkinter; {advice}"
        )


def show(figure: Figure) -> None:
    """Open a window and wait until it is closed. Raises UsageError like `check_window`."""
    check_window()
    from matplotlib import pyplot

    # pyplot gives a window only to figures that it creates, here through FigureClass.
    pyplot.figure(FigureClass=lambda **_: figure)  # type: ignore[arg-type]
    pyplot.show(block=True)
