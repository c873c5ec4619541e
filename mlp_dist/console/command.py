"""The argument parser and the error handling of all commands."""

import argparse
import atexit
import contextlib
import os
import signal
import sys
import textwrap
import time
import traceback
from argparse import SUPPRESS
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

from mlp_dist.console.process import RANKS, Interrupted, is_launched, is_main, limit_spinning, variable
from mlp_dist.core.errors import MlpDistError, ProcessLostError, did_you_mean

DEBUG = "--debug"

_REPORT_SECONDS = 5.0
"""Upper bound on how much later the main process meets the same error."""

_SMALLER = "a training needs less with a smaller --batch-size or --hidden-sizes"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that suggests corrections, does not abbreviate flags, and has the flag --debug.

    `advice` has answers for flags of other programs.
    """

    def __init__(self, *, advice: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **options)
        self._advice = advice or {}
        self.add_argument(DEBUG, action="store_true", default=SUPPRESS, help="show the traceback of an error")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        parsed, rest = super().parse_known_args(args, namespace)
        # `run` looks for it in sys.argv, because errors may occur before the arguments are parsed.
        vars(parsed).pop("debug", None)
        if rest:
            flags = [flag for action in self._actions for flag in action.option_strings]
            flag = rest[0].partition("=")[0]
            hint = f"; {self._advice[flag]}" if flag in self._advice else did_you_mean(flag, flags)
            self.error(f"unknown argument {rest[0]!r}{hint}")
        return parsed, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = list(map(str, action.choices))
            problem = f"{value!r}{did_you_mean(str(value), known)} (choose from {', '.join(known)})"
            raise argparse.ArgumentError(action, f"invalid choice: {problem}")

    def print_help(self, file: Any = None) -> None:
        if is_main():
            super().print_help(file)

    def error(self, message: str) -> NoReturn:
        if is_main():
            print(f"error: {message}\n({self.prog} --help lists all flags)", file=sys.stderr)
        else:
            _let_main_report_first()
        raise SystemExit(2)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Wraps the description's paragraphs, but not indented ones, which are examples."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.strip().split("\n\n")
        return "\n\n".join(part if part.startswith(" ") else textwrap.fill(part, width) for part in parts)


def run(main: Callable[[], int | None], *, at_once: bool = False) -> NoReturn:
    """Run a command and exit: 0 for success, 2 for wrong use, 1 for a failure, 128 + signal if interrupted.

    Errors are printed in one line; --debug adds the traceback. `at_once` skips the interpreter's cleanup,
    which takes seconds after torch was imported: too long if a machine is about to be taken away.
    """
    limit_spinning()
    if is_main():
        # Raises like Ctrl-C, so that temporary files are removed.
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = main() or 0
    except KeyboardInterrupt as error:
        code = error.exit_code if isinstance(error, Interrupted) else 130
        if is_main():
            _print("", str(error) or "interrupted", *getattr(error, "__notes__", []))
    except BrokenPipeError:
        # The reader of stdout, such as `head`, is gone. Python must not fail when it flushes stdout.
        code = 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        code = error.exit_code if isinstance(error, MlpDistError) else 1
        if DEBUG in sys.argv:
            traceback.print_exc()
        if _is_reported_here(error):
            _print(f"error: {_message(error)}", *getattr(error, "__notes__", []))
        elif not isinstance(error, ProcessLostError):
            _let_main_report_first()
    if at_once:
        _exit_at_once(code)
    raise SystemExit(code)


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(signum)


def _let_main_report_first() -> None:
    """Delay an exit so that rank 0, which meets the same error, can print it.

    A launcher kills all its processes as soon as one has failed.
    """
    if is_launched():
        time.sleep(_REPORT_SECONDS)


def _print(*lines: str) -> None:
    print("\n".join(lines), file=sys.stderr)


def _is_reported_here(error: Exception) -> bool:
    """True if this process prints the error; the main one prints those that occur in all processes."""
    if isinstance(error, ProcessLostError):
        return error.is_reporter
    return is_main() or not isinstance(error, MlpDistError | MemoryError | OSError)


def _message(error: Exception) -> str:
    if isinstance(error, MlpDistError):
        return str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return f"this machine's memory is too small: {error}; {_SMALLER}"
    if type(error).__name__ == "OutOfMemoryError":
        first = str(error).splitlines()[0]
        return f"the GPU's memory is too small: {first}; {_SMALLER}, or another GPU by CUDA_VISIBLE_DEVICES"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    rank = "" if is_main() else f" in the process of rank {variable(RANKS, '')}"
    return f"unexpected {type(error).__name__}{rank}: {error}; {DEBUG} shows the traceback"


def _exit_at_once(code: int) -> NoReturn:
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        # The reader may be gone.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
