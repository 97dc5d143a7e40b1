"""Text as instruments and spreadsheets write it: encodings, separators and lines before a header.

Tables are separated by commas, semicolons, tabs or blanks, in UTF-8 or UTF-16 with or without a
byte-order mark. A spreadsheet's line ``sep=;`` and lines ``# name=value`` may precede the header.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from toptune.errors import InputError

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SEPARATORS = (",", ";", "\t", None)  # None: blanks
# Lines that may precede a header.
_MOST_BEFORE = 100


def encoding_of(head: bytes) -> str:
    """Tell a text's encoding by its first bytes: UTF-8 unless they show UTF-16."""
    for bom, name in _BOMS:
        if head.startswith(bom):
            return name
    # Every second byte of ASCII text is 0 in UTF-16.
    if len(head) >= 4 and head[0] and not head[1] and head[2] and not head[3]:
        return "utf-16-le"
    if len(head) >= 4 and not head[0] and head[1] and not head[2] and head[3]:
        return "utf-16-be"
    return "utf-8"


def decoded(path: Path, data: bytes) -> str:
    """Decode a text; an error names the line with the first byte that is no text."""
    encoding = encoding_of(data[:4])
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: {not_text(encoding)}") from None


def not_text(encoding: str) -> str:
    """Say that a text is not in the encoding that its first bytes show, and what to do."""
    name = "UTF-16" if "16" in encoding else "UTF-8"
    return f"not {name} text; save the table as 'CSV UTF-8'"


@dataclass(frozen=True)
class TableHead:
    """What precedes the rows of a table."""

    header: tuple[str, ...]  # without the empty cells at its end
    line: int  # of the header
    separator: str | None  # None: blanks
    values: dict[str, str] = field(default_factory=dict)  # of lines ``# name=value``

    def rows(self, stream: TextIO) -> Iterator[tuple[int, list[str]]]:
        """Yield the cells of each row that is not blank, with the line that it starts on.

        `stream` stands after the header. Empty cells beyond the header's are dropped.
        """
        before = self.line
        reader = _reader(stream, self.separator)
        try:
            for read in reader:
                line, before = before + 1, self.line + reader.line_num
                cells = [cell.strip() for cell in read]
                while len(cells) > len(self.header) and not cells[-1]:
                    del cells[-1]
                if any(cells):
                    yield line, cells
        except csv.Error as error:
            raise TableError(before + 1, f"not a CSV table ({error})") from None


class TableError(Exception):
    """What is wrong with a line of a table."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


def read_head(stream: TextIO, known: Callable[[Sequence[str]], bool]) -> TableHead | None:
    """Read up to the header of a table, whose columns `known` knows; None without such a header.

    The separator is the one that a line ``sep=`` names, or the first with which `known` knows the
    columns. `stream` stands after the header then.
    """
    values: dict[str, str] = {}
    separators: Sequence[str | None] = _SEPARATORS
    for number in range(1, _MOST_BEFORE):
        line = stream.readline(2**16)
        if not line:
            return None
        text = line.strip().strip('"')
        if text.lower().startswith("sep=") and number == 1:
            separators = (line.strip().strip('"')[4:5] or "\t",)
        elif text.startswith("#"):
            name, equals, value = text[1:].strip().strip(",;\t ").partition("=")
            values |= {name.strip().lower(): value.strip()} if equals else {}
        elif text.strip(",;\t "):
            for separator in separators:
                header = tuple(_cells(line, separator))
                if known(header):
                    return TableHead(header, number, separator, values)
            return None
    return None


def _cells(line: str, separator: str | None) -> list[str]:
    """Split a header, without the empty cells at its end."""
    try:
        cells = [cell.strip() for cell in next(iter(_reader([line], separator)), [])]
    except csv.Error:
        return []
    while cells and not cells[-1]:
        del cells[-1]
    return cells


class _Blanks:
    """Rows whose cells are separated by blanks, as `csv.reader` gives those of others."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.line_num = 0

    def __iter__(self) -> Iterator[list[str]]:
        for line in self._lines:
            self.line_num += 1
            yield [cell.strip('"') for cell in line.split()]


def _reader(lines: TextIO | list[str], separator: str | None) -> _Blanks:
    if separator is None:
        return _Blanks(iter(lines))
    return csv.reader(lines, delimiter=separator, strict=True)  # type: ignore[return-value]  # its own type is private
