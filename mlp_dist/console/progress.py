"""Progress bars on stderr, only in a terminal and only in the main process.

Bars disappear when they are closed. While one is open, use `tell` to print lines.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, TypeAlias

from tqdm import tqdm

from mlp_dist.console.process import is_main

Bar: TypeAlias = "tqdm[Any]"

_REFRESH_SECONDS = 0.5


def bar(title: str, total: int | None, unit: str, **options: Any) -> Bar:
    """A tqdm bar over `total` units (None if unknown), to be used as a context manager."""
    return tqdm(
        desc=title,
        total=total,
        unit=unit,
        leave=False,
        dynamic_ncols=True,
        file=sys.stderr,
        disable=not _is_visible(),
        **options,
    )


def _is_visible() -> bool:
    return is_main() and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def no_bar() -> Bar:
    return tqdm(disable=True)


@contextmanager
def stages(title: str) -> Iterator[Callable[[str], None]]:
    """A clock, for work without measurable progress.

    Yields a function to call with the name of each stage when it begins.
    """
    ended = threading.Event()
    with bar(title, None, "", bar_format="{desc} {elapsed}{postfix}") as clock:

        def refresh() -> None:
            while not ended.wait(_REFRESH_SECONDS):
                clock.refresh()

        thread = threading.Thread(target=refresh, daemon=True)
        if not clock.disable:
            thread.start()
        try:
            yield clock.set_postfix_str
        finally:
            ended.set()
            if not clock.disable:
                # With a timeout: after an interruption, tqdm's lock may never be released.
                thread.join(_REFRESH_SECONDS)


def tell_beside(line: str) -> None:
    """Print a line on stderr from another process than the one that draws the bar."""
    clear = "\r\x1b[K" if _is_visible() else ""
    print(f"{clear}{line}", file=sys.stderr, flush=True)


def tell(line: str, stream: TextIO | None = None) -> None:
    """Print a line on `stream` (default stdout) without breaking open bars."""
    stream = stream or sys.stdout
    with tqdm.external_write_mode(file=stream):
        print(line, file=stream, flush=True)
