"""The text of one electrode's SpyCode peak train.

What enters: a file whose first line is ``n_samples 0`` and whose other lines are
``sample_index amplitude_uV``, the index counted from 1 and rising strictly.
What leaves: the number of samples, 0-based sample indices and amplitudes in microvolts.

A compiled parser reads the plain form of a number at hundreds of MB/s. Where it stops, at anything
out of the ordinary, Python's own ``float`` reads the text again, line by line, and either
understands it or names the line: so the fast path needs no error texts, and cannot be lenient.
"""

from __future__ import annotations

import io
import math
import re
from array import array
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError


class PeakTrain(NamedTuple):
    """Spikes of one electrode.

    Attributes
    ----------
    n_samples
        Length of the recording.
    sample : (n,) int64
        0-based, strictly rising.
    peak_to_peak_uv : (n,) float32
        Amplitudes as the file gives them.
    """

    n_samples: int
    sample: NDArray[np.int64]
    peak_to_peak_uv: NDArray[np.float32]


_NUMBER = rb"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?"
_FIRST_LINE = re.compile(rb"[ \t]*" + _NUMBER + rb"[ \t]+[+-]?0+(?:\.0*)?(?:[eE][+-]?\d+)?[ \t]*")
# Long enough for two numbers of any sane width, short enough to read from every file of a folder.
_HEAD_BYTES = 256


def looks_like_peak_text(path: Path) -> bool:
    """Whether a file's first line is ``n_samples 0``: two numbers, the second of them zero."""
    with path.open("rb") as file:
        line = file.read(_HEAD_BYTES).split(b"\n", 1)[0].rstrip(b"\r")
    return _FIRST_LINE.fullmatch(line) is not None


def read_peak_text(path: Path) -> PeakTrain:
    """Read one electrode's file.

    Raises
    ------
    InputError
        The file is empty or not text, a line is not two finite numbers, the first line is not
        ``n_samples 0``, an index is not whole, below 1, beyond the recording or not above the one
        before, or an amplitude is not above 0; with file and line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    values, complete = _parse_fast(data)
    if not complete:
        values = _parse_slow(data, path)
    del data  # as large as what is made of it
    return _checked(values, path)


def _parse_fast(data: bytes) -> tuple[NDArray[np.float64], bool]:
    buffer = np.frombuffer(data, np.uint8)
    values = np.empty((data.count(b"\n") + 1, 2))
    n_lines = int(_parse_compiled(buffer, values, _POWERS))
    return values[: max(n_lines, 0)], n_lines >= 0


# Powers of ten up to 22 are exact in float64, as are whole numbers up to 2**53; the product or
# quotient of two exact numbers is correctly rounded, hence equal to what float() returns (Clinger
# 1990, "How to read floating point numbers accurately"). Anything beyond goes the slow way.
_POWERS = 10.0 ** np.arange(23)


def _parse_bytes(data: Any, values: Any, powers: Any) -> int:  # noqa: C901  # a state machine over bytes; cut up it compiles to slower code
    """Fill `values` (lines, 2) and return the number of lines, or -1 at anything unusual."""
    n = data.size
    # Only the end of a file may be blank.
    while n > 0 and (data[n - 1] == 10 or data[n - 1] == 13 or data[n - 1] == 32):
        n -= 1
    if n == 0:
        return -1
    at = 0
    row = 0
    while at < n:
        for column in range(2):
            while at < n and (data[at] == 32 or data[at] == 9):
                at += 1
            mantissa = np.int64(0)
            n_digits = 0
            scale = 0
            point = False
            while at < n and (48 <= data[at] <= 57 or (data[at] == 46 and not point)):
                if data[at] == 46:
                    point = True
                else:
                    mantissa = mantissa * 10 + (data[at] - 48)
                    n_digits += 1
                    scale -= point
                at += 1
            # 15 digits stay below 2**53.
            if n_digits == 0 or n_digits > 15:
                return -1
            if at < n and (data[at] == 101 or data[at] == 69):
                at += 1
                negative = False
                if at < n and (data[at] == 43 or data[at] == 45):
                    negative = data[at] == 45
                    at += 1
                exponent = 0
                start = at
                while at < n and 48 <= data[at] <= 57:
                    exponent = exponent * 10 + (data[at] - 48)
                    at += 1
                if at == start or at - start > 3:
                    return -1
                scale += -exponent if negative else exponent
            if scale > 22 or scale < -22:
                return -1
            if scale >= 0:
                values[row, column] = mantissa * powers[scale]
            else:
                values[row, column] = mantissa / powers[-scale]
            if column == 0 and (at >= n or (data[at] != 32 and data[at] != 9)):
                return -1
        # Lines that rise are as long as their numbers, so the table stays as small as the file.
        if row > 1 and values[row, 0] <= values[row - 1, 0]:
            return -1
        while at < n and (data[at] == 32 or data[at] == 9 or data[at] == 13):
            at += 1
        if at < n and data[at] != 10:
            return -1
        at += 1
        row += 1
    return row


# nogil: the electrodes of a folder are read in threads.
_parse_compiled = numba.njit(nogil=True, cache=True)(_parse_bytes)


def _parse_slow(data: bytes, path: Path) -> NDArray[np.float64]:
    if not data.strip():
        raise InputError(f"{path}: the file is empty; the first line must be 'n_samples 0'")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:_HEAD_BYTES]:
        raise InputError(f"{path}: not plain text (UTF-16?): save it as ASCII or UTF-8")
    values = array("d")
    for number, line in enumerate(io.BytesIO(data.rstrip()), 1):
        # Unpacked, since a line must have two.
        try:
            first, second = (_number(cell) for cell in line.split())
        except ValueError:
            shown = line[:60].decode("utf-8", "replace").strip()
            raise InputError(
                f"{path}, line {number}: expected two numbers, got {shown!r}"
            ) from None
        values.extend((first, second))
        # Checked here for what comes before, so that a faulty file is not read to its end.
        if number > 2 and not first > values[-4]:
            _checked(np.frombuffer(values).reshape(-1, 2), path)
    return np.frombuffer(values).reshape(-1, 2)


def _number(cell: bytes) -> float:
    # float() also takes 1_000, which no program writes on purpose.
    if b"_" in cell:
        raise ValueError(cell)
    return float(cell)


def _checked(values: NDArray[np.float64], path: Path) -> PeakTrain:
    n, zero = values[0]
    # Up to 2**53 every whole number is a float64.
    if not (math.isfinite(n) and 1 <= n < 2**53 and n == int(n) and zero == 0):
        raise InputError(
            f"{path}, line 1: the first line must be 'n_samples 0', got '{n:g} {zero:g}'"
        )
    index, amplitude = values[1:, 0], values[1:, 1]
    ok = (index >= 1) & (index <= n) & (index == np.floor(index))
    ok &= np.isfinite(amplitude) & (amplitude > 0)
    ok[1:] &= index[1:] > index[:-1]
    if not ok.all():
        i = int(np.argmin(ok))
        before = index[i - 1] if i else 0.0
        raise InputError(
            f"{path}, line {i + 2}: {_what_is_wrong(index[i], amplitude[i], before, int(n))}"
        )
    return PeakTrain(int(n), index.astype(np.int64) - 1, amplitude.astype(np.float32))


def _what_is_wrong(index: float, amplitude: float, before: float, n: int) -> str:
    if not math.isfinite(index) or index != int(index):
        return f"a sample index must be a whole number, got {index:g}"
    if not 1 <= index <= n:
        return f"sample index {index:.0f} is outside 1..{n}"
    if not math.isfinite(amplitude) or amplitude <= 0:
        return f"an amplitude must be a finite number above 0, got {amplitude:g}"
    kind = "repeats" if index == before else "comes after"
    return f"sample index {index:.0f} {kind} {before:.0f}; indices must rise"
