"""Commands as they are typed: a checkout has them in launch/, an installation as modules."""

import functools
import re
from pathlib import Path


@functools.cache
def _in_checkout() -> bool:
    return (Path(__file__).resolve().parents[1] / "launch" / "train.py").is_file()


def as_typed_here(text: str) -> str:
    """`as_typed`, and modules also where the current directory is not the checkout's."""
    return text if Path("launch/train.py").is_file() else _as_modules(text)


def as_typed(text: str) -> str:
    """`text`, which names commands as a checkout has them: without one, `python launch/sync.py` becomes
    `python -m mlp_dist.sync`.
    """
    return text if _in_checkout() else _as_modules(text)


def _as_modules(text: str) -> str:
    return re.sub(r"\blaunch/(\w+)\.py\b", r"-m mlp_dist.\1", text)
