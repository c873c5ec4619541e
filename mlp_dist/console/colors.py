"""ANSI colors, if the stream is a terminal. NO_COLOR, FORCE_COLOR and TERM=dumb override that."""

import os
import sys
from typing import TextIO

_BOLD_RED = "1;31"


def are_wanted(stream: TextIO) -> bool:
    """True if text written to `stream` may contain color codes."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (os.environ.get("TERM") != "dumb" and stream.isatty())


def error(text: str) -> str:
    """ "error: `text`", for stderr."""
    label = f"\x1b[{_BOLD_RED}merror:\x1b[0m" if are_wanted(sys.stderr) else "error:"
    return f"{label} {text}"
