"""Commands in a terminal of 100 columns, and what a person sees of them there."""

import fcntl
import os
import pty
import struct
import subprocess
import termios
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.launching import environment

VARIABLES = ("NO_COLOR", "FORCE_COLOR", "RANK")
"""Variables that change the output; each test sets its own."""


@dataclass(frozen=True)
class Seen:
    """`written`: all that came into the terminal. `stdout`: what was written there, where that was a pipe."""

    code: int
    written: str
    stdout: str

    @property
    def screen(self) -> list[str]:
        """The lines that stand there at the end."""
        return [_left(line) for line in self.written.split("\r\n")]


def _left(line: str) -> str:
    """What is left of a line that was written over after each carriage return."""
    left = ""
    for part in line.split("\r"):
        left = part + left[len(part) :]
    return left.rstrip()


def in_terminal(words: list[str], cwd: Path, *, piped: bool = False, **changes: str) -> Seen:
    """Run a command whose stderr is a terminal, and stdout too unless it is `piped`."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    kept = {name: value for name, value in environment().items() if name not in (*VARIABLES, "COLUMNS")}
    process = subprocess.Popen(
        words,
        cwd=cwd,
        env={**kept, "TERM": "xterm", **changes},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if piped else slave,
        stderr=slave,
    )
    os.close(slave)
    with process, os.fdopen(master, "rb", buffering=0) as terminal:
        written = b""
        # A terminal that nobody writes to any more ends with an error on Linux.
        while chunk := _read(terminal.fileno()):
            written += chunk
        stdout = process.stdout.read().decode() if process.stdout else ""
        return Seen(process.wait(timeout=60), written.decode(), stdout)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""
