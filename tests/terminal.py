"""A real pseudo-terminal: what a program shows in it, and how it leaves it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).parents[0]
_CONTROL = re.compile(rb"\x1b\[([0-9;?]*)([A-Za-z])")


class Seen(NamedTuple):
    """What a program wrote to its terminal, and its exit code."""

    code: int
    written: bytes
    printed: bytes = b""  # on stdout, where that is no terminal

    def screen(self) -> Screen:
        """Draw it as a terminal does."""
        screen = Screen()
        screen.write(self.written)
        return screen


class Screen:
    """As much of a terminal as progress bars use; a character outside is an error."""

    def __init__(self) -> None:
        self.lines = [""]
        self.row = self.column = 0
        self.cursor_shown = True

    def write(self, written: bytes) -> None:
        while written:
            control = _CONTROL.match(written)
            if control:
                self._obey(control[1].decode(), control[2].decode())
                written = written[control.end() :]
                continue
            end = min((k for k in (written.find(c) for c in b"\x1b\r\n") if k > 0), default=None)
            first = written[:1]
            if first in (b"\r", b"\n"):
                self._move(first)
                written = written[1:]
                continue
            assert first != b"\x1b", written[:20]
            self._put(written[:end].decode())
            written = written[len(written[:end]) :]

    def _move(self, to: bytes) -> None:
        if to == b"\r":
            self.column = 0
            return
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")

    def _put(self, text: str) -> None:
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + text + line[self.column + len(text) :]
        self.column += len(text)

    def _obey(self, parameter: str, command: str) -> None:
        if command == "m":
            return
        if (command, parameter) == ("K", "2"):
            self.lines[self.row] = ""
        elif command == "A":
            self.row = max(0, self.row - int(parameter or 1))
        elif parameter == "?25":
            self.cursor_shown = command == "h"
        else:
            raise AssertionError(f"a terminal was told {parameter}{command}")


def watch(
    program: str,
    folder: Path,
    *,
    columns: int = 80,
    press_at: Callable[[str], bool] | None = None,
    presses: int = 1,
    stdout_apart: bool = False,
) -> Seen:
    """Run a Python program in a terminal of its own, and press Ctrl-C when its text is so far.

    It knows what lies in the folder of the tests.
    """
    pty = pytest.importorskip("pty", reason="pty: not on this system")
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    environment |= {"TERM": "xterm", "PYTHONPATH": f"{TESTS}:{TESTS.parent}"}
    # Keys are signals only in the terminal that controls a session.
    begin = (
        "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); import sys;"
        " exec(compile(sys.argv.pop(), 'program', 'exec'))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", begin, program],
        env=environment, cwd=folder, stdin=theirs, stderr=theirs,
        stdout=subprocess.PIPE if stdout_apart else theirs,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    written = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the terminal is closed at the other end
            break
        if not piece:
            break
        written += piece
        if press_at is not None and presses and press_at(written.decode(errors="ignore")):
            presses -= 1
            os.write(ours, b"\x03")
    os.close(ours)
    printed, _ = child.communicate(timeout=120)
    return Seen(child.returncode, written, printed or b"")
