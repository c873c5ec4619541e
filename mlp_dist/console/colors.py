"""ANSI colors, if the stream is a terminal. NO_COLOR, FORCE_COLOR and TERM=dumb override that."""

import os
import sys
from typing import TextIO

_BOLD, _BOLD_RED = "1", "1;31"


def are_wanted(stream: TextIO) -> bool:
    """True if text written to `stream` may contain color codes."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (os.environ.get("TERM") != "dumb" and stream.isatty())


def bold(text: str) -> str:
    """`text` in bold, for stdout."""
    return _styled(text, _BOLD, sys.stdout)


def error(text: str) -> str:
    """ "error: `text`", for stderr."""
    return f"{_styled('error:', _BOLD_RED, sys.stderr)} {text}"


def _styled(text: str, code: str, stream: TextIO) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if are_wanted(stream) else text
