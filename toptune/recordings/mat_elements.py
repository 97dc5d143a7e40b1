"""The elements of a MATLAB file of version 5 to 7, found without reading what they hold.

What enters: a path and the name of a variable. What leaves: that variable's bytes, inflated within
a bound, with what its header says. A compressed variable may inflate a thousandfold, and a nested
one sends a reader into itself, so only a variable that has been looked at goes to SciPy.

Source: MAT-File Format, The MathWorks, chapter 1, "MAT-File Header Format" to "Array Formats".
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from toptune.errors import InputError

#: A vector that is not sparse, in memory: 33 million samples.
DENSE_BYTES = 256 * 2**20
#: Each part of a sparse one, beyond four times its file.
SPARSE_BYTES = 64 * 2**20

_HEADER_BYTES, _TAG_BYTES = 128, 8
_COMPRESSED, _MATRIX = 15, 14
# Flags, up to 32 dimensions and a name of 63 letters are well within it.
_HEAD_BYTES = 1024
_COMPLEX = 0x08


class Variable(NamedTuple):
    """A variable of a file.

    Attributes
    ----------
    name
        Its name.
    matrix_class
        MATLAB's number of its class: 5 sparse, 6 double, 7 single, 8 to 15 whole numbers.
    is_complex
        Whether it has an imaginary part.
    shape
        As declared.
    file_header, element
        128 bytes, and the whole element, inflated.
    """

    name: str
    matrix_class: int
    is_complex: bool
    shape: tuple[int, ...]
    file_header: bytes
    element: bytes

    def alone(self) -> bytes:
        """Give a file that holds this variable only."""
        return self.file_header + self.element


def find_variable(path: Path, name: str) -> Variable:
    """Find a variable by its name.

    Raises
    ------
    InputError
        It is not there, or the file is damaged, or it inflates to more than it may.
    """
    names = []
    with path.open("rb") as stream:
        header = stream.read(_HEADER_BYTES)
        order = {b"IM": "<", b"MI": ">"}.get(header[126:128])
        if order is None:
            raise InputError(f"{path}: damaged MATLAB file (no byte order): copy it again")
        for kind, data in _elements(path, stream, order):
            found = _parse(path, header, order, kind, data)
            if found is not None and found.name == name:
                return found._replace(element=_inflated(path, order, kind, data))
            names += [found.name] if found is not None and found.name else []
    raise no_variable(path, name, names)


def no_variable(path: Path, name: str, names: list[str]) -> InputError:
    """Say that a variable is not there, and what is."""
    found = ", ".join(names[:8]) or "nothing"
    return InputError(f"{path}: no variable {name} in it, only {found}")


def _elements(path: Path, stream: Any, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield type and bytes (with the tag) of each element; none may reach beyond the file."""
    end = path.stat().st_size
    while len(tag := stream.read(_TAG_BYTES)) == _TAG_BYTES:
        kind, size = struct.unpack(f"{order}II", tag)
        if size > end - stream.tell():
            raise InputError(
                f"{path}: damaged MATLAB file (it ends inside a variable): copy it again"
            )
        yield kind, tag + stream.read(size)
        # Elements begin at multiples of eight bytes, but for compressed ones.
        if kind != _COMPRESSED:
            stream.seek(-size % 8, 1)


def _inflated(path: Path, order: str, kind: int, data: bytes) -> bytes:
    """Inflate an element, but to no more than its own tag says."""
    if kind != _COMPRESSED:
        return data
    inflater = zlib.decompressobj()
    tag = inflater.decompress(data[_TAG_BYTES:], _TAG_BYTES)
    size = struct.unpack(f"{order}II", tag)[1]
    most = 4 * path.stat().st_size + DENSE_BYTES
    if size > most:
        raise InputError(
            f"{path}: a variable would take {size} bytes, more than {most}: save it as a sparse"
            " vector"
        )
    plain = tag + inflater.decompress(inflater.unconsumed_tail, size + 1)
    if len(plain) != size + _TAG_BYTES:
        raise InputError(f"{path}: damaged MATLAB file (a variable is not as long as it says)")
    return plain


def _parse(path: Path, header: bytes, order: str, kind: int, data: bytes) -> Variable | None:
    """Read a variable's header; None for elements of other kinds."""
    if kind == _COMPRESSED:
        head = zlib.decompressobj().decompress(data[_TAG_BYTES:], _HEAD_BYTES)
    else:
        head = data[:_HEAD_BYTES]
    try:
        if struct.unpack_from(f"{order}I", head)[0] != _MATRIX:
            return None
        flags, at = _sub_element(head, order, _TAG_BYTES)
        dimensions, at = _sub_element(head, order, at)
        name, _ = _sub_element(head, order, at)
        word = struct.unpack_from(f"{order}I", flags)[0]
        shape = struct.unpack(f"{order}{len(dimensions) // 4}i", dimensions)
    except struct.error:
        raise InputError(
            f"{path}: damaged MATLAB file (a variable without header): copy it again"
        ) from None
    text = name.decode("utf-8", "replace")
    return Variable(text, word & 0xFF, bool(word >> 8 & _COMPLEX), shape, header, b"")


def _sub_element(head: bytes, order: str, at: int) -> tuple[bytes, int]:
    """Bytes of the element at `at`, and where the next begins; up to four bytes lie in the tag."""
    first, size = struct.unpack_from(f"{order}II", head, at)
    if first >> 16:
        return head[at + 4 : at + 4 + (first >> 16)], at + _TAG_BYTES
    start = at + _TAG_BYTES
    if size > len(head) - start:
        raise struct.error
    return head[start : start + size], start + -(-size // 8) * 8
