"""Scores of every row by a kernel ridge model fitted without that row's group, in closed form.

What enters: rows of features, their groups, and targets (n, k), any number of columns: labels,
or permuted labels. What leaves: (n, k) float64 held-out scores, in the order of the rows.

The ridge is the same in every fold: penalty x number of rows of the whole data set. With all
rows as centres and ``Q = (K + ridge I)^-1``, the scores of group g by a model fitted without g
are ``Y_g - (Q_gg)^-1 (Q Y)_g``: the leave-one-out identity of ridge regression (Cook & Weisberg
1982, Residuals and Influence in Regression, section 2.2) for a block of rows. With Nystrom centres
it is the normal equation of the other groups' rows and centres; see `NystromFolds`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.heads.falkon.kernel import (
    Cholesky,
    Float64,
    KernelSum,
    add_gram_lower,
    cholesky,
    product,
    transposed_product,
)
from toptune.heads.falkon.memory import kept_bytes
from toptune.heads.falkon.nystrom import NystromKernel
from toptune.heads.rows import Grouping


class HeldOutScores(NamedTuple):
    """What the folds of a closed form give.

    Attributes
    ----------
    scores : (n, k) float64
        Of each row and each column of the targets.
    jitter : (g,) float64
        The largest number that was added to a diagonal in each fold; 0 as a rule.
    """

    scores: Float64
    jitter: Float64


class Folds(Protocol):
    """Folds whose factorisation is done, ready for any number of targets."""

    def held_out_scores(self, Y: Float64) -> HeldOutScores:
        """Score every row by the model fitted to Y without the row's group."""
        ...


@dataclass(frozen=True)
class AllRowsFolds:
    """Folds of kernel ridge regression with every row as a centre.

    One factorisation serves all folds and all targets. Inverting the Cholesky factor and forming
    only the diagonal blocks of Q saves a third of the n^3 operations of a full inverse.

    Attributes
    ----------
    grouping : Grouping
    inverse_lower : (n, n) float64
        ``L^-1`` of ``L L' = K + ridge I``, rows sorted by group; ``Q = L^-T L^-1``.
    blocks : tuple of Cholesky
        Factored ``Q_gg``, one a group.
    jitter : float
    """

    grouping: Grouping
    inverse_lower: Float64
    blocks: tuple[Cholesky, ...]
    jitter: float

    @classmethod
    def factor(
        cls, X: NDArray[np.floating[Any]], grouping: Grouping, *, kernel: KernelSum, ridge: float
    ) -> AllRowsFolds:
        """Factor ``K + ridge I``; n x n float64 of memory, n^3 x 2/3 operations.

        Parameters
        ----------
        X : (n, d) float32 or float64
        grouping : Grouping
            Of the n rows.
        kernel : KernelSum
        ridge : float
        """
        rows = X[grouping.order]

        def regularised() -> Float64:
            K = kernel.gram_lower(rows)
            np.einsum("ii->i", K)[:] += ridge
            return K

        whole = cholesky(regularised, "the kernel matrix")
        inverse_lower = whole.invert_lower()
        blocks = tuple(
            _factor_block(inverse_lower, start, stop)
            for start, stop in zip(grouping.bounds[:-1], grouping.bounds[1:], strict=True)
        )
        return cls(grouping, inverse_lower, blocks, whole.jitter)

    def held_out_scores(self, Y: Float64) -> HeldOutScores:
        """See `Folds`; O(n^2 k)."""
        targets = Y[self.grouping.order]
        QY = transposed_product(self.inverse_lower, product(self.inverse_lower, targets))
        scores = np.empty_like(targets)
        for i, block in enumerate(self.blocks):
            part = slice(self.grouping.bounds[i], self.grouping.bounds[i + 1])
            scores[part] = targets[part] - block.solve(QY[part])
        jitter = np.array([max(self.jitter, block.jitter) for block in self.blocks])
        return HeldOutScores(self.grouping.restore(scores), jitter)


def _factor_block(inverse_lower: Float64, start: int, stop: int) -> Cholesky:
    """Factor one diagonal block of ``L^-T L^-1``; above `start` the columns are zero."""
    columns = np.ascontiguousarray(inverse_lower[start:, start:stop])

    def block() -> Float64:
        gram = np.zeros((stop - start, stop - start))
        add_gram_lower(gram, columns)
        return gram

    return cholesky(block, "a group's block of the inverse kernel matrix")


@dataclass(frozen=True)
class NystromFolds:
    """Folds of Nystrom kernel ridge regression: fold g keeps the centres J that are not in g.

    With ``Z = K(X, C)`` and ``B = K(C, C)``::

        ((Z'Z - Zg'Zg)[J,J] + ridge B[J,J]) alpha = (Z'Y - Zg'Yg)[J],   scores of g = Zg[:,J] alpha

    so one kernel and one product ``Z'Z`` serve all folds; each fold factors one matrix of J x J.

    Attributes
    ----------
    grouping : Grouping
    kernel : NystromKernel
        Z, rows sorted by group, and centres too: those of one group lie side by side.
    normal : (m, m) float64
        ``Z'Z + ridge B``, lower triangle.
    centre_bounds : (g + 1,) int64
        Group i holds the centres ``centre_bounds[i]:centre_bounds[i + 1]``.
    keep_bytes : int
        Size up to which Z, or a group's part of it, is kept instead of evaluated again.
    """

    grouping: Grouping
    kernel: NystromKernel
    normal: Float64
    centre_bounds: NDArray[np.int64]
    keep_bytes: int

    @classmethod
    def factor(
        cls,
        X: NDArray[np.floating[Any]],
        grouping: Grouping,
        centre_rows: NDArray[np.int64],
        *,
        kernel: KernelSum,
        ridge: float,
        groups_at_once: int = 1,
        keep_bytes: int | None = None,
    ) -> NystromFolds:
        """Evaluate the kernel and its products; m x m float64 of memory, and n x m where it fits.

        Parameters
        ----------
        X : (n, d) float32 or float64
        grouping : Grouping
            Of the n rows.
        centre_rows : (m,) int64
            Which rows are centres, each at most once.
        kernel : KernelSum
        ridge : float
        groups_at_once : int
            The most groups that a fold will leave out.
        keep_bytes : int, optional
            Size up to which Z is kept in memory. Default: `toptune.heads.falkon.memory.kept_bytes`.

        Raises
        ------
        InputError
            Where a fold would have no centres; see `sort_centres`.
        """
        keep_bytes = kept_bytes() if keep_bytes is None else keep_bytes
        centres, bounds = sort_centres(grouping, centre_rows, groups_at_once)
        Z = NystromKernel.of(X, grouping.order, centres, kernel, keep_bytes=keep_bytes)
        normal = kernel.gram_lower(X[centres])
        normal *= ridge
        Z.add_gram_lower(normal)
        return cls(grouping, Z, normal, bounds, keep_bytes)

    def held_out_scores(self, Y: Float64) -> HeldOutScores:
        """See `Folds`; O(m^3) a group, however many targets."""
        targets = Y[self.grouping.order]
        moments = self.kernel.moments(targets)
        scores = np.empty_like(targets)
        jitter = np.zeros(len(self.grouping.groups))
        for i in range(len(jitter)):
            (scores[self.grouping.part(i)],), jitter[i] = self.scores_without(
                (i,), targets, moments
            )
        return HeldOutScores(self.grouping.restore(scores), jitter)

    def scores_without(
        self, groups: Sequence[int], targets: Float64, moments: Float64
    ) -> tuple[list[Float64], float]:
        """Score the rows of some groups by the model without their rows and centres.

        Parameters
        ----------
        groups : sequence of int
            Codes.
        targets : (n, k) float64
            Rows sorted by group.
        moments : (m, k) float64
            ``Z'Y`` of all rows.

        Returns
        -------
        scores : list of (n_g, k) float64
            One a group, in the order given.
        jitter : float
        """
        parts = [self.grouping.part(group) for group in groups]
        held_out = [self.kernel.part(p.start, p.stop).keep(self.keep_bytes) for p in parts]
        kept = self._stretches(groups)

        def without() -> Float64:
            # Stretches, copied as such: gathering by index took longer than factoring.
            matrix = np.block([[self.normal[x, y] for y in kept] for x in kept])
            for rows in held_out:
                for _, block in rows.blocks():
                    columns = np.concatenate([block[:, y] for y in kept], axis=1)
                    add_gram_lower(matrix, columns, -1.0)
            return matrix

        names = " and ".join(str(self.grouping.groups[group]) for group in groups)
        system = cholesky(without, f"the normal equation without group {names}")
        moment = moments.copy()
        for part, rows in zip(parts, held_out, strict=True):
            moment -= rows.moments(targets[part])
        solved = system.solve(np.concatenate([moment[x] for x in kept]))
        # Centres left out weigh nothing, which saves copying the others' columns.
        alpha = np.zeros_like(moment)
        ends = np.cumsum([0, *(x.stop - x.start for x in kept)])
        for x, (start, stop) in zip(kept, pairwise(ends), strict=True):
            alpha[x] = solved[start:stop]
        scores = [
            np.concatenate([product(block, alpha) for _, block in rows.blocks()])
            for rows in held_out
        ]
        return scores, system.jitter

    def _stretches(self, groups: Sequence[int]) -> list[slice]:
        """Centres before, between and behind those of some groups."""
        starts = [0, *(int(self.centre_bounds[group + 1]) for group in sorted(groups))]
        stops = [*(int(self.centre_bounds[group]) for group in sorted(groups)), len(self.normal)]
        return [slice(start, stop) for start, stop in zip(starts, stops, strict=True)]


def sort_centres(
    grouping: Grouping, centre_rows: NDArray[np.int64], groups_at_once: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sort centres by group like the rows, so that a fold leaves out one stretch of them.

    Parameters
    ----------
    grouping : Grouping
        Of the n rows.
    centre_rows : (m,) int64
        Which rows are centres, each at most once.
    groups_at_once : int
        The most groups that a fold will leave out: 1, or 2 for the pairs of nested folds.

    Returns
    -------
    centre_rows : (m,) int64
        Sorted by group.
    bounds : (g + 1,) int64
        Group i holds the centres ``bounds[i]:bounds[i + 1]``.

    Raises
    ------
    InputError
        Where all centres lie in so few groups that a fold without these would have none.
    """
    place = np.empty(len(grouping.order), dtype=np.int64)
    place[grouping.order] = np.arange(len(place))
    places = np.sort(place[centre_rows])
    bounds = np.searchsorted(places, grouping.bounds).astype(np.int64)
    held = np.diff(bounds)
    richest = np.sort(np.argsort(held)[::-1][:groups_at_once])
    if held[richest].sum() == len(places):
        named = " and ".join(str(grouping.groups[group]) for group in richest)
        noun = "group" if len(richest) == 1 else "groups"
        raise InputError(f"all centres lie in {noun} {named}; raise n_centres")
    return grouping.order[places], bounds
