"""Scores of every row by kernel ridge models fitted without one group or two, in closed form.

Folds leave out each group by itself. Pairs of groups are the inner folds of a nested
leave-one-group-out, each twice over: h scored inside g's training data, and g inside h's. So each
pair is solved once. Targets may have any number of columns, permuted labels among them. The ridge
is the same in every fold: penalty x number of rows of the whole data set.

With all rows as centres, S the rows of the groups left out, and ``Q = (K + ridge I)^-1``::

    scores of S = Y_S - (Q_SS)^-1 (Q Y)_S

the leave-one-out identity of ridge regression (Cook & Weisberg 1982, Residuals and Influence in
Regression, section 2.2) for a block of rows. With Nystrom centres, ``Z = K(X, C)``,
``B = K(C, C)``, and J the centres that are not in the groups left out::

    (Z'Z - Z_S'Z_S + ridge B)[J,J] alpha = (Z'Y - Z_S'Y_S)[J],   scores of S = Z_S[:,J] alpha

so one inverse, or one kernel and one product ``Z'Z``, serves all folds, pairs and targets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np

from toptune.errors import InputError
from toptune.heads.falkon.arrays import Array, Arrays
from toptune.heads.falkon.kernel import NystromKernel
from toptune.heads.rows import Float64, Grouping, Ints

# Groups that are left out together, by their codes, ascending.
Groups = tuple[int, ...]

# What warnings and errors call it.
KERNEL_MATRIX = "the kernel matrix"


class HeldOutScores(NamedTuple):
    """Scores by the folds of a leave-one-group-out."""

    scores: Float64  # (n, k): of each row and each column of the targets
    # (g,): the largest number that was added to a diagonal in each fold; 0 as a rule
    jitter: Float64


class Folds(Protocol):
    """Folds that leave out each group, ready for any number of targets."""

    def held_out_scores(self, Y: Float64) -> HeldOutScores:
        """Score every row by the model fitted to Y, (n, k), without the row's group."""
        ...


class Model(ABC):
    """A factored model of all rows, of which groups are left out."""

    arrays: Arrays  # where it is computed
    grouping: Grouping
    jitter = 0.0  # of the factorisation of all rows

    @abstractmethod
    def multiplied(self, Y: Array) -> Array:
        """Multiply targets (n, c), rows sorted by group, once for all calls of `scores`."""

    @abstractmethod
    def scores(self, sets: Sequence[Groups], Y: Array, multiplied: Array) -> tuple[Array, Float64]:
        """Score the rows of sets of groups by the models without them.

        Gives scores, (r, c), one set after the other, rows sorted by group, and jitters, (s,).
        """

    @abstractmethod
    def batches(self, sizes: Ints, n_columns: int) -> Iterator[slice]:
        """Cut sets of so many rows, in descending order, into batches for so many targets."""

    def targets(self, Y: Float64) -> Targets:
        """Prepare targets (n, c), in the rows' order."""
        with self.arrays.says_when_full():
            return Targets(self, Y)

    def held_out_scores(self, Y: Float64) -> HeldOutScores:
        return self.targets(Y).held_out_scores()


class Targets:
    """Targets multiplied with a factored model, ready for folds and for pairs."""

    def __init__(self, model: Model, Y: Float64) -> None:
        self._model, self._arrays, self._grouping = model, model.arrays, model.grouping
        self._Y = self._arrays.asarray(Y[self._grouping.order])
        self._multiplied = model.multiplied(self._Y)

    def held_out_scores(self) -> HeldOutScores:
        """Score every row by the model without the row's group; (n, c) in the rows' order."""
        arrays, grouping = self._arrays, self._grouping
        scores = arrays.empty(*self._Y.shape)
        jitter = np.empty(len(grouping.groups))
        with arrays.says_when_full():
            for sets, of_batch, added in self._solved([(g,) for g in range(len(jitter))]):
                scores[arrays.as_is(_rows_of(grouping, sets))] = of_batch
                jitter[[g for (g,) in sets]] = np.maximum(added, self._model.jitter)
            return HeldOutScores(grouping.restore(arrays.to_host(scores)), jitter)

    def inner(self, block: range) -> Array:
        """Score all rows without each group of a block, and without the rows' own groups.

        Each pair of groups of the block is solved once. Returns (len(block), n, c) float32, where
        it was computed, in the rows' order; NaN in each group's own rows.
        """
        arrays, xp, grouping = self._arrays, self._arrays.xp, self._grouping
        n, n_columns = self._Y.shape
        with arrays.says_when_full():
            shape = (len(block) * n, n_columns)
            maps = xp.full(shape, float("nan"), dtype=xp.float32, device=arrays.device)
            for sets, of_batch, _ in self._solved(list(pairs_of(block, len(grouping.groups)))):
                source, target = _scattered(grouping, sets, block)
                taken = of_batch[arrays.as_is(source)]
                maps[arrays.as_is(target)] = xp.asarray(taken, dtype=xp.float32)
            return maps.reshape(len(block), n, n_columns)

    def _solved(self, sets: Sequence[Groups]) -> Iterator[tuple[Sequence[Groups], Array, Float64]]:
        """Solve without each set of groups, the largest first: so batches are padded little."""
        group_sizes = np.diff(self._grouping.bounds)
        sizes = np.array([group_sizes[list(groups)].sum() for groups in sets])
        order = np.argsort(-sizes, kind="stable")
        for part in self._model.batches(sizes[order], self._Y.shape[1]):
            batch = [sets[number] for number in order[part]]
            together = [[groups] for groups in batch] if self._arrays.one_by_one else [batch]
            found = [self._model.scores(some, self._Y, self._multiplied) for some in together]
            scores, jitter = zip(*found, strict=True)
            yield batch, self._arrays.xp.concatenate(scores), np.concatenate(jitter)


def pairs_of(block: Sequence[int], n_groups: int) -> Iterator[Groups]:
    """Pairs of a group of the block with any other, each once."""
    for g in block:
        for h in range(n_groups):
            if h != g and not (h in block and h < g):
                yield min(g, h), max(g, h)


def _rows_of(grouping: Grouping, sets: Sequence[Groups]) -> Ints:
    """Places of the rows of some sets, once rows are sorted by group."""
    bounds = grouping.bounds
    return np.concatenate([np.arange(*bounds[g : g + 2]) for g in chain.from_iterable(sets)])


def _scattered(grouping: Grouping, pairs: Sequence[Groups], block: range) -> tuple[Ints, Ints]:
    """Where scores of pairs go: their rows, and rows of the (len(block) x n) maps.

    Rows of h are what is scored inside the training data of g, and rows of g inside that of h.
    """
    n, groups = len(grouping.order), np.array(pairs)
    # The other group of each row's pair.
    other = np.repeat(groups[:, ::-1], np.diff(grouping.bounds)[groups].ravel())
    source = np.flatnonzero((other >= block.start) & (other < block.stop))
    rows = grouping.order[_rows_of(grouping, pairs)[source]]
    return source, (other[source] - block.start) * n + rows


class AllRows(Model):
    """Kernel ridge regression with every row as a centre, inverted once.

    That takes n x n float64 of memory and 2/3 n^3 operations for folds, n^3 for pairs. `build`
    gives ``K(X, X)``, a new (n, n) matrix, rows sorted by group, again where it has to be jittered;
    `groups_at_once` is the most groups that are left out together.
    """

    def __init__(
        self,
        arrays: Arrays,
        build: Callable[[], Array],
        grouping: Grouping,
        ridge: float,
        groups_at_once: int = 1,
    ) -> None:
        self.arrays, self.grouping = arrays, grouping
        with arrays.says_when_full():
            factor = arrays.cholesky(lambda: regularised(arrays, build(), ridge), KERNEL_MATRIX)
            self.jitter = factor.jitter
            self._inverse = arrays.inverse(factor, groups_at_once)

    def multiplied(self, Y: Array) -> Array:
        """``Q Y``."""
        return self._inverse.times(Y)

    def scores(self, sets: Sequence[Groups], Y: Array, multiplied: Array) -> tuple[Array, Float64]:
        rows = self.arrays.rows([[self.grouping.part(g) for g in groups] for groups in sets])
        names = ["a block of the inverse kernel matrix"] * len(sets)
        system = self.arrays.factor_each(rows, lambda: self._inverse.principal(rows), names)
        scores = rows.take(Y) - system.solve(rows.take(multiplied))
        return rows.flat(scores), np.atleast_1d(system.jitter)

    def batches(self, sizes: Ints, n_columns: int) -> Iterator[slice]:
        # A block, its factor, a mask and a copy; targets, their products, and what is solved.
        largest = int(sizes[0])
        n_bytes = 8 * largest * (4 * largest + 4 * n_columns)
        return self.arrays.batches(len(sizes), largest, n_bytes)


def regularised(arrays: Arrays, K: Array, ridge: float) -> Array:
    """Add a ridge to the diagonal of a matrix, in place."""
    diagonal = arrays.diagonal(K)
    diagonal += ridge
    return K


class Nystrom(Model):
    """Kernel ridge regression on Nystrom centres: each set of groups factors one matrix of J x J.

    Rows of Z are sorted by group, and centres too, with the bounds that `sort_centres` gives.
    """

    def __init__(
        self, Z: NystromKernel, grouping: Grouping, centre_bounds: Ints, ridge: float
    ) -> None:
        self.arrays, self.grouping = Z.arrays, grouping
        self._Z, self._centre_bounds = Z, centre_bounds
        with self.arrays.says_when_full():
            self._normal = Z.centre_gram()
            self._normal *= ridge
            for _, block in Z.blocks():
                self.arrays.add_gram(self._normal, block)

    def multiplied(self, Y: Array) -> Array:
        """``Z'Y``."""
        return self._Z.moments(Y)

    def scores(self, sets: Sequence[Groups], Y: Array, multiplied: Array) -> tuple[Array, Float64]:
        arrays = self.arrays
        rows = arrays.rows([[self.grouping.part(g) for g in groups] for groups in sets])
        bounds = self._centre_bounds
        left_out = [[slice(*bounds[g : g + 2].tolist()) for g in groups] for groups in sets]
        kept = arrays.all_but(self._Z.n_centres, left_out)
        pieces = self._Z.pieces(rows)
        right = multiplied

        def without() -> Array:
            # Both at once, since a piece may have to be evaluated anew.
            nonlocal right
            A, right = kept.principal(self._normal), multiplied
            for piece, Z in pieces():
                arrays.add_gram(A, kept.columns(Z), -1.0)
                right = right - arrays.transposed_product(Z, piece.take(Y))
            return A

        system = arrays.factor_each(kept, without, self._names(sets))
        alpha = kept.restored(system.solve(kept.take(right)))
        scores = [piece.flat(arrays.product(Z, alpha)) for piece, Z in pieces()]
        return arrays.xp.concatenate(scores), np.atleast_1d(system.jitter)

    def batches(self, sizes: Ints, n_columns: int) -> Iterator[slice]:
        # The equation, its factor, a mask and a copy; the rows of the kernel; and all targets.
        m, s = self._Z.n_centres, int(sizes[0])
        n_bytes = 8 * (m * (4 * m + 2 * s + 4 * n_columns) + 2 * s * n_columns)
        return self.arrays.batches(len(sizes), m, n_bytes)

    def _names(self, sets: Sequence[Groups]) -> list[str]:
        named = [" and ".join(str(self.grouping.groups[g]) for g in groups) for groups in sets]
        return [f"the normal equation without group {name}" for name in named]


def sort_centres(
    grouping: Grouping, centre_rows: Ints, groups_at_once: int = 1
) -> tuple[Ints, Ints]:
    """Sort centres by group like the rows, so that a fold leaves out one stretch of them.

    Takes the rows that are centres, (m,), each at most once, and gives them sorted by group, with
    bounds, (g + 1,): group i holds the centres ``bounds[i]:bounds[i + 1]``. It is an InputError if
    all lie in so few groups, left out together, that a fold would have none.
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
        raise InputError(f"all centres lie in {noun} {named}; raise `n_centres`")
    return grouping.order[places], bounds
