"""What all commands share: a parser that names what is possible, and errors without tracebacks."""

import argparse
import atexit
import contextlib
import os
import re
import signal
import sys
import textwrap
import traceback
from argparse import SUPPRESS
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

from mlp_dist.console import colors
from mlp_dist.console.processes import Interrupted, is_main, let_main_speak
from mlp_dist.core.errors import MlpDistError, ProcessLostError, did_you_mean

DEBUG = "--debug"

_SMALLER = "a training needs less with a smaller --batch-size or --hidden-sizes"


class Parser(argparse.ArgumentParser):
    """argparse's, without abbreviations; what is misspelt is told with the nearest that there is.

    Each has the flag --debug, which `run` minds. Where `often` names some of its flags, as lr, --help shows
    these and --help-all shows all.
    """

    def __init__(self, *, often: Sequence[str] = (), **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **options)
        if often:
            self.add_argument("--help-all", action=_HelpAll, help="show all flags and exit")
        self.add_argument(DEBUG, action=_Minded, help="show where an error comes from")
        self._often = often and ("help", SUPPRESS, *often)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        parsed, rest = super().parse_known_args(args, namespace)
        if rest:
            flags = [flag for action in self._actions for flag in action.option_strings if flag != "-h"]
            hint = did_you_mean(rest[0].split("=")[0], flags) or f" (there are: {', '.join(flags)})"
            self.error(f"unknown argument {rest[0]!r}{hint}")
        return parsed, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = list(map(str, action.choices))
            told = f"{value!r}{did_you_mean(str(value), known)} (choose from {', '.join(known)})"
            raise argparse.ArgumentError(action, f"invalid choice: {told}")

    def format_help(self) -> str:
        rare = [each for each in self._actions if self._often and each.dest not in self._often]
        with _left_out(rare):
            return self.format_whole_help()

    def format_whole_help(self) -> str:
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        if is_main():
            print(colors.error(f"{message}\n({self.prog} --help tells more)"), file=sys.stderr)
        else:
            let_main_speak()
        raise SystemExit(2)


@contextlib.contextmanager
def _left_out(actions: Sequence[argparse.Action]) -> Iterator[None]:
    """A help page that is written inside does not show them."""
    told = [action.help for action in actions]
    for action in actions:
        action.help = SUPPRESS
    yield
    for action, text in zip(actions, told, strict=True):
        action.help = text


class _Minded(argparse.Action):
    """A flag that is looked for in sys.argv: errors may come before it is read."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        options["default"] = SUPPRESS
        super().__init__(option_strings, SUPPRESS, nargs=0, **options)

    def __call__(self, *_: Any) -> None:
        pass


class _HelpAll(_Minded):
    def __call__(self, parser: Any, *_: Any) -> NoReturn:
        print(parser.format_whole_help(), end="")
        raise SystemExit(0)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Paragraphs are filled to the terminal's width. Examples are indented; where they are too wide for it,
    what is said of each stands below it.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.strip().split("\n\n")
        filled = [
            _narrowed(part, width) if part.startswith(" ") else textwrap.fill(part, width) for part in parts
        ]
        return textwrap.indent("\n\n".join(filled), indent)


def _narrowed(examples: str, width: int) -> str:
    if max(map(len, examples.splitlines())) <= width:
        return examples
    below = re.sub(r"(?<=\S) {3,}(?=\S)", "\n      ", examples)
    return re.sub(r"(?m)^ {7,}", "      ", below)


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(signum)


def run(main: Callable[[], int | None], *, at_once: bool = False) -> NoReturn:
    """Run a command: exit code 0, 2 for wrong use, 1 for a failure, 128 + the signal when interrupted.

    An error is told in words, and with --debug where it came from.
    `at_once` leaves out what Python clears up at its end, which takes seconds once torch is loaded: too many
    where a machine is about to be taken away.
    """
    if is_main():
        # As Ctrl-C does, so that what is half-written is removed.
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = main() or 0
    except KeyboardInterrupt as error:
        code = error.exit_code if isinstance(error, Interrupted) else 130
        if is_main():
            _print("", str(error) or "interrupted", *getattr(error, "__notes__", []))
    except BrokenPipeError:
        # Whoever read it, as `head` does, has seen enough.
        code = 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        code = error.exit_code if isinstance(error, MlpDistError) else 1
        if DEBUG in sys.argv:
            traceback.print_exc()
        if _speaks(error):
            _print(colors.error(_told(error)), *getattr(error, "__notes__", []))
        elif not isinstance(error, ProcessLostError):
            let_main_speak()
    if at_once:
        _leave(code)
    raise SystemExit(code)


def _print(*lines: str) -> None:
    print("\n".join(lines), file=sys.stderr)


def _speaks(error: Exception) -> bool:
    """Whether this process tells it: what all of them meet is told once."""
    if isinstance(error, ProcessLostError):
        return error.speaks
    return is_main() or not isinstance(error, MlpDistError | MemoryError | OSError)


def _told(error: Exception) -> str:
    if isinstance(error, MlpDistError):
        return str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return f"this machine's memory is too small: {error}; {_SMALLER}"
    if type(error).__name__ == "OutOfMemoryError":
        first = str(error).splitlines()[0]
        return f"the GPU's memory is too small: {first}; {_SMALLER}, or another GPU by CUDA_VISIBLE_DEVICES"
    if isinstance(error, OSError):
        # A full disk, a directory that may not be written: the system's own words say it.
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    where = "" if is_main() else f" in the process of rank {os.environ['RANK']}"
    kind = type(error).__name__
    return f"this should not have happened{where}: {kind}: {error}; {DEBUG} shows where it comes from"


def _leave(code: int) -> NoReturn:
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        # Whoever read it may be gone.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
