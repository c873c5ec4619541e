"""Run commands in a terminal of 100 columns."""

import fcntl
import os
import pty
import struct
import subprocess
import termios
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.launching import environment


@dataclass(frozen=True)
class Seen:
    """`written`: everything sent to the terminal. `stdout`: the separate stdout, if it was a pipe."""

    code: int
    written: str
    stdout: str

    @property
    def screen(self) -> list[str]:
        """The lines that are visible at the end."""
        return [_visible(line) for line in self.written.split("\r\n")]


def _visible(line: str) -> str:
    """A line whose beginning was overwritten after each carriage return."""
    visible = ""
    for part in line.split("\r"):
        visible = part + visible[len(part) :]
    return visible.rstrip()


def in_terminal(words: list[str], cwd: Path, *, piped: bool = False, **changes: str) -> Seen:
    """Run a command with stderr in a terminal, and stdout too unless it is `piped`."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    kept = {name: value for name, value in environment().items() if name not in ("RANK", "COLUMNS")}
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
        while chunk := _read(terminal.fileno()):
            written += chunk
        stdout = process.stdout.read().decode() if process.stdout else ""
        return Seen(process.wait(timeout=60), written.decode(), stdout)


def _read(descriptor: int) -> bytes:
    """Empty at the end: Linux raises EIO once no process has the terminal open."""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""
