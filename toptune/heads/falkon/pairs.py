"""Scores of a kernel ridge model fitted without two groups, for every pair of groups.

`Pairs` and `Targets` are what `toptune.heads.nested` asks for; here they are answered in NumPy, and
in `falkon.torch_folds` on a torch device. What inner folds say stays where it was computed.

What enters: a kernel, a ridge, and targets (n, c), any number of columns. What leaves: for groups g
and h the scores of their rows by the model fitted without both. That is an inner fold of a nested
leave-one-group-out, twice over: h scored inside g's training data, and g inside h's. So each pair
is solved once.

Leaving out g and h is the closed form of `falkon.closed_form` with S = g + h: with all rows
as centres, and ``Q = (K + ridge I)^-1``::

    scores of S = Y_S - (Q_SS)^-1 (Q Y)_S

With Nystrom centres it is the normal equation without the rows and the centres of both groups.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas, lapack

from toptune.heads.falkon.closed_form import HeldOutScores, NystromFolds
from toptune.heads.falkon.kernel import Cholesky, Float64, cholesky
from toptune.heads.rows import Grouping

# What holds the scores of inner folds: an array, or a tensor on a device.
Maps_co = TypeVar("Maps_co", covariant=True)


class PairScores(NamedTuple):
    """What the model without two groups says of their rows.

    Attributes
    ----------
    first, second : (n_g, c) and (n_h, c) float64
        In the order of `Grouping.rows`.
    """

    first: Float64
    second: Float64


class Targets(Protocol[Maps_co]):
    """Targets multiplied with a factored model, ready for folds and for pairs."""

    def held_out_scores(self) -> HeldOutScores:
        """Score every row by the model without the row's group; (n, c) in the rows' order."""
        ...

    def inner(self, block: range) -> Maps_co:
        """Score all rows without each group of the block, and without the rows' own groups.

        (len(block), n, c) float32, in the rows' order; NaN in each group's own rows. Each pair of
        groups of the block is solved once.
        """
        ...


class Pairs(Protocol[Maps_co]):
    """A factored model of all rows."""

    def targets(self, Y: Float64) -> Targets[Maps_co]:
        """Prepare targets (n, c), in the rows' order."""
        ...


def pairs_of(block: Sequence[int], n_groups: int) -> Iterator[tuple[int, int]]:
    """Pairs of a group of the block with any other, each once."""
    for g in block:
        for h in range(n_groups):
            if h != g and not (h in block and h < g):
                yield g, h


class PairwiseTargets(ABC):
    """Targets of which one pair of groups after the other is solved, in NumPy.

    Attributes
    ----------
    grouping : Grouping
    n_columns : int
        c.
    """

    def __init__(self, grouping: Grouping, n_columns: int) -> None:
        self.grouping = grouping
        self.n_columns = n_columns

    @abstractmethod
    def pair(self, g: int, h: int) -> PairScores:
        """Score the rows of two groups, by their codes, by the model without both."""

    def inner(self, block: range) -> NDArray[np.float32]:
        """See `Targets`."""
        n_groups, n = len(self.grouping.groups), len(self.grouping.codes)
        maps = np.full((len(block), n, self.n_columns), np.nan, np.float32)
        for g, h in pairs_of(block, n_groups):
            scores = self.pair(g, h)
            maps[g - block.start, self.grouping.rows(h)] = scores.second
            if h in block:
                maps[h - block.start, self.grouping.rows(g)] = scores.first
        return maps


@dataclass(frozen=True)
class AllRowsPairs:
    """Kernel ridge regression with every row as a centre, inverted once for folds and pairs.

    Attributes
    ----------
    grouping : Grouping
    inverse : (n, n) float64
        Lower triangle of Q, rows sorted by group; what lies above the diagonal is not to be read.
    jitter : float
    """

    grouping: Grouping
    inverse: Float64
    jitter: float

    @classmethod
    def factor(cls, build: Callable[[], Float64], grouping: Grouping) -> AllRowsPairs:
        """Invert ``K + ridge I``: n^3 operations, in the memory of the matrix.

        Parameters
        ----------
        build : callable
            Returns the lower triangle of ``K + ridge I``, rows sorted by group, (n, n) float64 in C
            order; called again where it has to be jittered.
        grouping : Grouping
            Of the n rows.
        """
        whole = cholesky(build, "the kernel matrix")
        # Q = L^-T L^-1. LAPACK reads columns first: C-order L^-1 is its upper factor U, Q = U U'.
        inverse, _ = lapack.dlauum(whole.invert_lower().T, lower=0, overwrite_c=1)
        return cls(grouping, np.asarray(inverse).T, whole.jitter)

    def targets(self, Y: Float64) -> _AllRowsTargets:
        """See `Pairs`; O(n^2 c)."""
        ordered = Y[self.grouping.order]
        # dsymm reads one triangle alone: C-order lower is Fortran-order upper.
        multiplied = blas.dsymm(1.0, self.inverse.T, ordered, lower=0)
        return _AllRowsTargets(self, ordered, np.ascontiguousarray(multiplied))


class _AllRowsTargets(PairwiseTargets):
    def __init__(self, pairs: AllRowsPairs, Y: Float64, QY: Float64) -> None:
        super().__init__(pairs.grouping, Y.shape[1])
        self.pairs, self.Y, self.QY = pairs, Y, QY

    def held_out_scores(self) -> HeldOutScores:
        grouping = self.grouping
        scores = np.empty_like(self.Y)
        jitter = np.empty(len(grouping.groups))
        for g in range(len(jitter)):
            part = grouping.part(g)
            system = self._system(part)
            scores[part] = self.Y[part] - system.solve(self.QY[part])
            jitter[g] = max(self.pairs.jitter, system.jitter)
        return HeldOutScores(grouping.restore(scores), jitter)

    def pair(self, g: int, h: int) -> PairScores:
        if g > h:
            swapped = self.pair(h, g)
            return PairScores(swapped.second, swapped.first)
        first, second = self.grouping.part(g), self.grouping.part(h)
        system = self._system(first, second)
        wrong = system.solve(np.concatenate([self.QY[first], self.QY[second]]))
        n_first = first.stop - first.start
        return PairScores(self.Y[first] - wrong[:n_first], self.Y[second] - wrong[n_first:])

    def _system(self, *parts: slice) -> Cholesky:
        """Factor the block of Q that belongs to one or two stretches of rows, in their order."""

        def block() -> Float64:
            # The blocks above the diagonal hold no numbers of Q, and are not read.
            return np.block([[self.pairs.inverse[a, b] for b in parts] for a in parts])

        return cholesky(block, "a block of the inverse kernel matrix")


@dataclass(frozen=True)
class NystromPairs:
    """The same with Nystrom centres; each pair factors one matrix of centres x centres.

    Attributes
    ----------
    folds : NystromFolds
    """

    folds: NystromFolds

    def targets(self, Y: Float64) -> _NystromTargets:
        """See `Pairs`; O(n m c)."""
        ordered = Y[self.folds.grouping.order]
        return _NystromTargets(self.folds, Y, ordered, self.folds.kernel.moments(ordered))


class _NystromTargets(PairwiseTargets):
    def __init__(
        self, folds: NystromFolds, unordered: Float64, Y: Float64, moments: Float64
    ) -> None:
        super().__init__(folds.grouping, Y.shape[1])
        self.folds, self.unordered, self.Y, self.moments = folds, unordered, Y, moments

    def held_out_scores(self) -> HeldOutScores:
        return self.folds.held_out_scores(self.unordered)

    def pair(self, g: int, h: int) -> PairScores:
        scores, _ = self.folds.scores_without((g, h), self.Y, self.moments)
        return PairScores(*scores)
