"""What all commands share: a parser that names what is possible, and errors without tracebacks."""

import argparse
import atexit
import contextlib
import difflib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

from mlp_dist import colours
from mlp_dist.core.errors import MlpDistError, ProcessLostError
from mlp_dist.processes import Interrupted, is_main
from mlp_dist.typed import as_typed


class Parser(argparse.ArgumentParser):
    """argparse's, without abbreviations; an unknown flag is told with the nearest one, and all there are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_formatter, **options)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            flags = [flag for action in self._actions for flag in action.option_strings if flag != "-h"]
            nearest = difflib.get_close_matches(rest[0].split("=")[0], flags, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            self.error(f"unknown argument {rest[0]!r}{hint} (there are: {', '.join(flags)})")
        return parsed

    def format_help(self) -> str:
        return as_typed(super().format_help())

    def error(self, message: str) -> NoReturn:
        if is_main():
            print(colours.error(as_typed(f"{message}\n({self.prog} --help tells more)")), file=sys.stderr)
        raise SystemExit(2)


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=30)


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(signum)


def run(main: Callable[[], int | None], *, at_once: bool = False) -> NoReturn:
    """Run a command: exit code 0, 2 for wrong use, 1 for a failure, 128 + the signal when interrupted.

    `at_once` leaves out what Python clears up at its end, which takes seconds once torch is loaded: too many
    where a machine is about to be taken away.
    """
    if is_main():
        # As Ctrl-C does, so that what is half-written is removed.
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = main() or 0
    except MlpDistError as error:
        code = error.exit_code
        if error.speaks if isinstance(error, ProcessLostError) else is_main():
            lines = [colours.error(str(error)), *getattr(error, "__notes__", [])]
            print(as_typed("\n".join(lines)), file=sys.stderr)
    except MemoryError as error:
        code = 1
        if is_main():
            print(colours.error(f"this machine's memory is too small: {error}"), file=sys.stderr)
    except OSError as error:
        # A full disk, a directory that may not be written: the system's own words say it.
        code = 1
        if is_main():
            print(colours.error(str(error)), file=sys.stderr)
    except KeyboardInterrupt as error:
        code = error.exit_code if isinstance(error, Interrupted) else 130
        if is_main():
            lines = ["", str(error) or "interrupted", *getattr(error, "__notes__", [])]
            print(as_typed("\n".join(lines)), file=sys.stderr)
    if at_once:
        _leave(code)
    raise SystemExit(code)


def _leave(code: int) -> NoReturn:
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        # Whoever read it may be gone.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
