"""Rows of features that do not fit into memory: read where they lie, whenever they are asked for.

They stand for a matrix (n, d) of which some rows at a time are looked at. What can be trained on
them asks for blocks of rows; what needs all rows at once refuses them by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing_extensions import TypeIs

# Blocks that were read last are kept up to so many bytes, and one in any case: rows are asked for
# in order, some hundred or thousand at a time.
_KEPT_BYTES = 2**27


class StreamedRows(ABC):
    """Rows (n, d) float32 that are read when indexed, by a slice, by numbers, or by a mask of them.

    ``numpy.asarray`` reads all of them.
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(self, n_rows: int, n_columns: int) -> None:
        self.shape = (n_rows, n_columns)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes that all rows would take in memory."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def __getitem__(self, rows: slice | NDArray[Any]) -> NDArray[np.float32]:
        return self.read(_numbers(rows, len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("rows that are read when asked for are always a copy")
        return np.asarray(self[:], dtype)

    @abstractmethod
    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Read rows by their numbers, (m, d), as a new array."""

    def mapped(self, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> StreamedRows:
        """Change rows whenever they are read, each by itself; the number of columns stays."""
        return _Mapped(self, change)


#: Features in memory, or `StreamedRows`: these are typed as the array that they stand for, since
#: few of those who look at features ever meet them.
Features: TypeAlias = NDArray[np.float32]


def _as_features(rows: StreamedRows) -> Features:
    return cast("Features", rows)


def is_streamed(features: Any) -> TypeIs[StreamedRows]:
    """Whether features are read whenever they are looked at."""
    return isinstance(features, StreamedRows)


def take_rows(features: Features, rows: NDArray[np.int64]) -> Features:
    """Take rows by their numbers; of streamed ones without reading them."""
    return _as_features(_Taken(features, rows)) if is_streamed(features) else features[rows]


def side_by_side(parts: Sequence[Features]) -> Features:
    """Put columns of equally many rows side by side; without reading those that are streamed."""
    if any(map(is_streamed, parts)):
        return _as_features(_SideBySide(parts))
    return np.concatenate(parts, axis=1)


def below_each_other(parts: Sequence[Features]) -> Features:
    """Put rows of equally many columns below each other: all in memory, or all in blocks."""
    several: list[Any] = [part for part in parts if isinstance(part, BlockRows)]
    if not several:
        return np.concatenate(parts)
    blocks = [block for part in several for block in part.blocks]
    return _as_features(BlockRows(blocks, parts[0].shape[1]))


def in_one_block(block: Block, n_columns: int) -> Features:
    """Leave rows where they are until they are looked at."""
    return _as_features(BlockRows([block], n_columns))


class Block(NamedTuple):
    """Rows that lie together."""

    n_rows: int
    read: Callable[[], NDArray[np.float32]]  # gives all of them, (n_rows, d)


class BlockRows(StreamedRows):
    """Rows of blocks, one below the other; a block is read as a whole.

    Parameters
    ----------
    blocks
        Of one row or more each.
    n_columns
    """

    def __init__(self, blocks: Sequence[Block], n_columns: int) -> None:
        self.blocks = tuple(blocks)
        self._bounds = np.cumsum([0, *(block.n_rows for block in blocks)])
        super().__init__(int(self._bounds[-1]), n_columns)
        self._kept: OrderedDict[int, NDArray[np.float32]] = OrderedDict()
        self._lock = Lock()

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `StreamedRows`; each block is read once for all of its rows that are asked for."""
        found = np.empty((len(rows), self.shape[1]), np.float32)
        block = np.searchsorted(self._bounds, rows, side="right") - 1
        order = np.argsort(block, kind="stable")
        edges = np.flatnonzero(np.diff(block[order], prepend=-1, append=len(self.blocks)))
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            places = order[start:stop]
            number = int(block[places[0]])
            found[places] = self._block(number)[rows[places] - self._bounds[number]]
        return found

    def _block(self, number: int) -> NDArray[np.float32]:
        with self._lock:
            if number not in self._kept:
                values = self.blocks[number].read()
                expected = (self.blocks[number].n_rows, self.shape[1])
                if values.shape != expected:
                    raise ValueError(f"a block of rows is {values.shape}, not {expected}")
                room = _KEPT_BYTES - values.nbytes
                while self._kept and sum(kept.nbytes for kept in self._kept.values()) > room:
                    self._kept.popitem(last=False)
                self._kept[number] = values
            self._kept.move_to_end(number)
            return self._kept[number]


class _Taken(StreamedRows):
    """Some rows of others."""

    def __init__(self, source: StreamedRows, rows: NDArray[np.int64]) -> None:
        super().__init__(len(rows), source.shape[1])
        self._source, self._rows = source, _numbers(rows, len(source))

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._source.read(self._rows[rows])


class _Mapped(StreamedRows):
    """Rows that are changed when they are read."""

    def __init__(
        self,
        source: StreamedRows,
        change: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    ) -> None:
        super().__init__(*source.shape)
        self._source, self._change = source, change

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._change(self._source.read(rows))


class _SideBySide(StreamedRows):
    """Columns of several."""

    def __init__(self, parts: Sequence[Features]) -> None:
        (n_rows,) = {len(part) for part in parts}
        super().__init__(n_rows, sum(part.shape[1] for part in parts))
        self._parts = tuple(parts)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.concatenate([part[rows] for part in self._parts], axis=1)


def _numbers(rows: slice | NDArray[Any], n: int) -> NDArray[np.int64]:
    if isinstance(rows, slice):
        return np.arange(*rows.indices(n))
    chosen = np.asarray(rows)
    if chosen.dtype == bool:
        return np.flatnonzero(chosen)
    if ((chosen < -n) | (chosen >= n)).any():
        raise IndexError(f"there are {n} rows, and {chosen.min()} to {chosen.max()} are asked for")
    return np.where(chosen < 0, chosen + n, chosen).astype(np.int64)
