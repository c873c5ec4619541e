"""Colours in a terminal, where they are wanted: by the variables that Python itself goes by, in its order.

PYTHON_COLORS (0 or 1), NO_COLOR, FORCE_COLOR, TERM=dumb; where none of them says, a terminal has colors.
"""

import os
import sys
from typing import TextIO

BOLD, RED = "1", "1;31"


def wanted(stream: TextIO) -> bool:
    """Whether what is written to `stream` may be coloured."""
    environment = os.environ
    if (chosen := environment.get("PYTHON_COLORS")) in ("0", "1"):
        return chosen == "1"
    if environment.get("NO_COLOR"):
        return False
    if environment.get("FORCE_COLOR"):
        return True
    return environment.get("TERM") != "dumb" and stream.isatty()


def bold(text: str, stream: TextIO | None = None) -> str:
    """`text` as it is to be written to `stream`, by default stdout."""
    return _coloured(text, BOLD, stream or sys.stdout)


def error(text: str, stream: TextIO | None = None) -> str:
    """ "error: `text`", as it is to be written to `stream`, by default stderr."""
    return f"{_coloured('error:', RED, stream or sys.stderr)} {text}"


def _coloured(text: str, code: str, stream: TextIO) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if wanted(stream) else text
