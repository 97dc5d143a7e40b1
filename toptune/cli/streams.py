"""Standard output and error that take every text: closed, a pipe nobody reads, an old encoding."""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import TextIO, cast

_ERRORS = "toptune.printable"
# What toptune itself prints, as ASCII writes it.
_IN_ASCII = {"\u00b1": "+-", "\u2013": "-", "\u2026": "...", "\u202f": " "}


def make_printable() -> None:
    """Let nothing that is printed from now on be an error, or end up in another file.

    A character that the encoding lacks is written as ASCII, or escaped. Whoever reads from a pipe
    may stop, as ``head`` does: the work goes on, and what it prints is lost. A stream that was
    closed before the process began is opened on nothing, since the next file would get its number.
    """
    codecs.register_error(_ERRORS, _as_ascii)
    for number in (0, 1, 2):
        _open_on_nothing(number)
    sys.stdout = _patient(sys.stdout, 1)
    sys.stderr = _patient(sys.stderr, 2)


def let_go() -> None:
    """Drop what is still to be printed where that cannot be written, such as on a full disk."""
    try:
        sys.stdout.flush()
    except OSError:
        _redirect_to_nothing(1)


def _as_ascii(error: UnicodeError) -> tuple[str, int]:
    """Handle errors as `codecs.register_error` asks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_IN_ASCII.get(c) or ascii(c)[1:-1] for c in lacking), error.end


def _open_on_nothing(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        # The system gives the lowest number that is free: this one.
        os.open(os.devnull, os.O_RDWR)


def _patient(stream: TextIO | None, number: int) -> TextIO:
    if stream is None:
        return open(number, "w", encoding="utf-8", errors=_ERRORS, closefd=False)
    if not isinstance(stream, io.TextIOWrapper):  # something else listens, such as a notebook
        return stream
    if stream not in (sys.__stdout__, sys.__stderr__) or stream.isatty():
        stream.reconfigure(errors=_ERRORS)
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(cast("io.RawIOBase", _Patient(stream.fileno(), "w", closefd=False))),
        encoding=stream.encoding,
        errors=_ERRORS,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _redirect_to_nothing(number: int) -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, number)
    os.close(nothing)


class _Patient(io.FileIO):
    """A file that goes on taking what nobody reads any more."""

    def write(self, content: bytes) -> int:  # type: ignore[override]  # any buffer, says typeshed
        try:
            return super().write(content)
        except BrokenPipeError:
            _redirect_to_nothing(self.fileno())
            return memoryview(content).nbytes
