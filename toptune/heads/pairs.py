"""Scores of a kernel ridge model fitted without two groups, for every pair of groups.

What enters: a kernel, a ridge, and targets (n, c), any number of columns. What leaves: for groups g
and h the scores of their rows by the model fitted without both. That is an inner fold of a nested
leave-one-group-out, twice over: h scored inside g's training data, and g inside h's. So each pair
is solved once.

Leaving out g and h is the closed form of `toptune.heads.closed_form` with S = g + h: with all rows
as centres, and ``Q = (K + ridge I)^-1``::

    scores of S = Y_S - (Q_SS)^-1 (Q Y)_S

With Nystrom centres it is the normal equation without the rows and the centres of both groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from scipy.linalg import blas, lapack

from toptune.heads.closed_form import Grouping, HeldOutScores, NystromFolds
from toptune.heads.kernel import Cholesky, Float64, cholesky


class PairScores(NamedTuple):
    """What the model without two groups says of their rows.

    Attributes
    ----------
    first, second : (n_g, c) and (n_h, c) float64
        In the order of `Grouping.rows`.
    """

    first: Float64
    second: Float64


class Targets(Protocol):
    """Targets multiplied with a factored model, ready for folds and for pairs."""

    def held_out_scores(self) -> HeldOutScores:
        """Score every row by the model without the row's group; (n, c) in the rows' order."""
        ...

    def pair(self, g: int, h: int) -> PairScores:
        """Score the rows of two groups, by their codes, by the model without both."""
        ...


class Pairs(Protocol):
    """A factored model of all rows."""

    def targets(self, Y: Float64) -> Targets:
        """Prepare targets (n, c), in the rows' order."""
        ...


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

    def targets(self, Y: Float64) -> Targets:
        """See `Pairs`; O(n^2 c)."""
        ordered = Y[self.grouping.order]
        # dsymm reads one triangle alone: C-order lower is Fortran-order upper.
        multiplied = blas.dsymm(1.0, self.inverse.T, ordered, lower=0)
        return _AllRowsTargets(self, ordered, np.ascontiguousarray(multiplied))


@dataclass(frozen=True)
class _AllRowsTargets:
    pairs: AllRowsPairs
    Y: Float64
    QY: Float64

    def held_out_scores(self) -> HeldOutScores:
        grouping = self.pairs.grouping
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
        first, second = self.pairs.grouping.part(g), self.pairs.grouping.part(h)
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

    def targets(self, Y: Float64) -> Targets:
        """See `Pairs`; O(n m c)."""
        ordered = Y[self.folds.grouping.order]
        return _NystromTargets(self.folds, Y, ordered, self.folds.kernel.moments(ordered))


@dataclass(frozen=True)
class _NystromTargets:
    folds: NystromFolds
    unordered: Float64
    Y: Float64
    moments: Float64

    def held_out_scores(self) -> HeldOutScores:
        return self.folds.held_out_scores(self.unordered)

    def pair(self, g: int, h: int) -> PairScores:
        scores, _ = self.folds.scores_without((g, h), self.Y, self.moments)
        return PairScores(*scores)
