"""Progress bars, on stderr. Only a terminal has them, and of several processes the first one.

Each is gone when what it shows is done. While one is open, lines are printed by `tell`.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, TypeAlias

from tqdm import tqdm

from mlp_dist.console.processes import is_main

Bar: TypeAlias = "tqdm[Any]"
"""What `bar` returns: a context manager, with `update` for the units that are done."""

_TICK_SECONDS = 0.5
"""How often the clock of a stage is drawn, in which nothing else moves."""


def bar(title: str, total: int | None, unit: str, **options: Any) -> Bar:
    """A bar over `total` units, to be closed; None: how many they are is not known.

    `options` are tqdm's.
    """
    return tqdm(
        desc=title,
        total=total,
        unit=unit,
        leave=False,
        dynamic_ncols=True,
        file=sys.stderr,
        disable=not _is_shown(),
        **options,
    )


def _is_shown() -> bool:
    return is_main() and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def no_bar() -> Bar:
    """One that shows nothing."""
    return tqdm(disable=True)


@contextmanager
def stages(title: str, number: int = 0) -> Iterator[Callable[[str], None]]:
    """A bar over the `number` of stages of a work that cannot tell how far it is; 0: only its clock.

    What is yielded is to be called with the name of each stage that begins.
    """
    form = "{desc}: {n_fmt}/{total_fmt} |{bar}| {elapsed}{postfix}" if number else "{desc} {elapsed}{postfix}"
    ended, begun = threading.Event(), 0

    def begin(name: str) -> None:
        nonlocal begun
        shown.update(begun - shown.n)
        begun += 1
        shown.set_postfix_str(name)

    def tick() -> None:
        while not ended.wait(_TICK_SECONDS):
            shown.refresh()

    with bar(title, number or None, "", bar_format=form) as shown:
        clock = threading.Thread(target=tick, daemon=True)
        if not shown.disable:
            clock.start()
        try:
            yield begin
        finally:
            ended.set()
            if not shown.disable:
                # Not for ever: an interruption may have left tqdm's lock behind, which it waits for.
                clock.join(_TICK_SECONDS)


def tell_beside(line: str) -> None:
    """Print a line on stderr, in a process beside the one whose bar may be there: it is drawn again below."""
    clear = "\r\x1b[K" if _is_shown() else ""
    print(f"{clear}{line}", file=sys.stderr, flush=True)


def tell(line: str, stream: TextIO | None = None) -> None:
    """Print a line on `stream`, by default stdout; bars make room for it."""
    stream = stream or sys.stdout
    with tqdm.external_write_mode(file=stream):
        print(line, file=stream, flush=True)
