"""Where electrodes lie on their array, as far as their labels say."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# MCS labels the electrodes of its 8 x 8 arrays (without corners) by column, then row: 12 is in the
# first column and second row. Some programs put a word before it.
_TWO_DIGITS = re.compile(r"(?:^|\D)([1-8])([1-8])\Z")
_LETTER = re.compile(r"^([A-Z])(\d{1,2})\Z")


class ElectrodePositions(NamedTuple):
    """Positions of electrodes on their array."""

    # (n,): counted from the left and from the top, from 0; no two electrodes share a position.
    column: NDArray[np.int64]
    row: NDArray[np.int64]
    how: str  # how the positions were found, for the title
    # Whether these are positions on the array; otherwise they only show the file's order.
    known: bool


def place_electrodes(labels: Sequence[str]) -> ElectrodePositions:
    """Find the positions of electrodes from their labels; else arrange them in the file's order."""
    found = _match_all(_TWO_DIGITS, labels)
    if found is not None:
        column, row = (np.array([int(m[k]) - 1 for m in found], np.int64) for k in (1, 2))
        if _distinct(column, row):
            return ElectrodePositions(
                column, row, "column and row from the two digits of the labels", True
            )
    found = _match_all(_LETTER, labels)
    if found is not None and len({m[1] for m in found}) > 1:
        letters = sorted({m[1] for m in found})
        column = np.array([letters.index(m[1]) for m in found], np.int64)
        row = np.array([int(m[2]) for m in found], np.int64)
        row -= row.min()
        if _distinct(column, row):
            return ElectrodePositions(
                column, row, "column and row from the letter and number of the labels", True
            )
    width = math.ceil(math.sqrt(len(labels)))
    order = np.arange(len(labels))
    return ElectrodePositions(
        order % width, order // width, "in the file's order: the labels give no positions", False
    )


def _match_all(pattern: re.Pattern[str], labels: Sequence[str]) -> list[re.Match[str]] | None:
    matches = [m for m in map(pattern.search, labels) if m is not None]
    return matches if len(matches) == len(labels) else None


def _distinct(column: NDArray[np.int64], row: NDArray[np.int64]) -> bool:
    return len(set(zip(column.tolist(), row.tolist(), strict=True))) == len(column)
