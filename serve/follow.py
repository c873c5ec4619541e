"""A log as it grows, also where it is rolled over to a new file."""

import sys
import time
from pathlib import Path

_PAUSE = 0.2


def print_log(log: Path, *, follow: bool) -> None:
    """Print what is in `log`, and with `follow` what comes, until it is interrupted."""
    with_end = log.open(errors="replace")
    try:
        while True:
            sys.stdout.write(with_end.read())
            sys.stdout.flush()
            if not follow:
                return
            time.sleep(_PAUSE)
            if log.exists() and log.stat().st_ino != Path(f"/dev/fd/{with_end.fileno()}").stat().st_ino:
                sys.stdout.write(with_end.read())
                with_end.close()
                with_end = log.open(errors="replace")
    finally:
        with_end.close()
