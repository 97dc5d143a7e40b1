"""Folds, tuning and permutations of ridge regressions that learn from few units.

A unit is a device and label. The scores of a ridge regression are linear in its targets, and all
rows of a unit share their label. So a model says of a unit, whatever the labels, the sum of the
columns (1 for the units of a class, else 0) of its training units, each times a number. These
numbers, one for every unit, are the unit's map. The maps of all folds and pairs of folds give the
scores of any labelling by a product, so that a permutation costs no fit.

Scores are balanced (`toptune.heads.falkon.targets`): how large a share of a fold's training rows a
class holds follows from the labelling and the units left out.

Candidates are judged by the mean scores of units, and so are shuffles: a unit gets one verdict, the
class of its largest mean score.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from itertools import combinations
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from toptune.heads.base import Progress
from toptune.heads.falkon.targets import FoldShares, balance, one_hot
from toptune.heads.nested import NestedScores, Shuffled, labelling_losses
from toptune.heads.rows import Float64, Grouping, Ints, LabelledRows
from toptune.machine.threads import in_threads, thread_pool

#: Groups that are left out together, by their codes, ascending.
Groups = tuple[int, ...]
Float32 = NDArray[np.float32]


class UnitModel(Protocol):
    """A regression from which groups are left out; its scores are not balanced yet."""

    def unit_maps(self, left_out: Groups) -> Float64:
        """Give maps (s, u) of the units of one group after the other, by the model without them.

        They stand for the mean scores of a unit's rows. Units ascend within a group.
        """
        ...

    def row_scores(self, left_out: Groups, columns: Float64) -> Float64:
        """Score the rows of one group after the other, (m, c), given the columns, (u, c).

        Rows stand as `Grouping.rows` has them.
        """
        ...


class Units(NamedTuple):
    """Who the units are, and how much each has to learn from."""

    grouping: Grouping  # of the rows
    unit: Ints  # (n,): unit of each row
    group: Ints  # (u,): group of each unit
    n_rows: Ints  # (u,): by which a unit counts in the shares of the classes

    @classmethod
    def of(cls, rows: LabelledRows, n_rows: Ints) -> Units:
        """Take them from rows, every unit of which lies in one group."""
        group = np.empty(len(n_rows), np.int64)
        group[rows.unit] = rows.grouping.codes
        return cls(rows.grouping, rows.unit, group, n_rows)

    @property
    def n_groups(self) -> int:
        """How many groups there are."""
        return len(self.grouping.groups)

    def of_groups(self, groups: Groups) -> Ints:
        """Units of one group after the other."""
        return np.concatenate([np.flatnonzero(self.group == g) for g in groups])

    def rows_of(self, groups: Groups) -> Ints:
        """Rows of one group after the other."""
        return np.concatenate([self.grouping.rows(g) for g in groups])


def held_out_scores(model: UnitModel, units: Units, codes: Ints, n_classes: int) -> Float64:
    """Score every row by the model without its group, (n, k); `codes`, (u,): class of each unit."""
    shares = FoldShares(units.n_rows, units.group, codes[None], n_classes)
    scores = np.empty((len(units.unit), n_classes))
    for group in range(units.n_groups):
        of_group = model.row_scores((group,), one_hot(codes, n_classes))
        scores[units.grouping.rows(group)] = balance(of_group, shares.without(group)[:, 0])
    return scores


def tune_units(
    models: Sequence[UnitModel],
    units: Units,
    labels: Ints,
    n_classes: int,
    sharpness: float,
    handicap: Float64,
    progress: Progress | None = None,
) -> tuple[NestedScores, Shuffled]:
    """Leave each group out once, with the model chosen among the other groups.

    That is the one whose loss plus handicap is the smallest, of equals the first. There are three
    groups or more, and one model or more (`nested.check_tuning`).

    Parameters
    ----------
    models
        One a candidate.
    units
    labels : (r, u) int64
        Class of each unit under each labelling; the first line is what was observed. Every one goes
        through the same steps and the same arithmetic, the choice of candidates included.
    n_classes
    sharpness
        Probabilities are the softmax of sharpness x scores.
    handicap : (p,) float64
        By how much smaller each model's loss must be to be chosen.
    progress
        Told how many candidates are done, and of how many.

    Returns
    -------
    NestedScores
        Of the observed labels: scores of rows, and losses of units.
    Shuffled
        A row's class is its unit's verdict.
    """
    search = _Search(handicap, units, labels, n_classes, sharpness)
    for number, model in enumerate(models):
        search.try_candidate(number, model)
        if progress is not None:
            progress("settings", number + 1, len(models))
    return search.nested(models), search.shuffled()


class _Search:
    """The best candidate so far of every outer fold and labelling, and the units' scores by it."""

    def __init__(
        self, handicap: Float64, units: Units, labels: Ints, n_classes: int, sharpness: float
    ) -> None:
        self._units, self._labels, self._sharpness = units, labels, sharpness
        self._handicap, n_candidates = handicap, len(handicap)
        (r, u), g = labels.shape, units.n_groups
        # With a single candidate only the observed labels' losses are told.
        self._n_judged = r if n_candidates > 1 else 1
        # Columns, (k, u, r): in scores (k, m, r) sums over classes run along memory.
        own = np.arange(n_classes)[:, None, None] == labels.T
        self._columns = np.ascontiguousarray(own, np.float32)
        self._observed = one_hot(labels[0], n_classes)
        self._shares = FoldShares(units.n_rows, units.group, labels, n_classes)
        self._outer_inverse = self._shares.without_each().astype(np.float32)[:, units.group]
        self._loss = np.empty((n_candidates, g))
        self._final_loss = np.empty(n_candidates)
        self._best = np.full((g, r), np.inf)
        self._choice = np.zeros(g, np.int64)
        self._scores = np.empty((n_classes, u, r), np.float32)

    def try_candidate(self, candidate: int, model: UnitModel) -> None:
        with thread_pool() as pool:
            outer, inner = self._maps(model, pool)
            scores = balance(outer @ self._columns, self._outer_inverse, 0)
            self._final_loss[candidate] = self._losses(scores[:, :, :1], slice(None))[0]
            groups = range(self._units.n_groups)
            losses = np.stack(in_threads(pool, lambda g: self._inner_losses(g, inner[g]), groups))
        self._loss[candidate] = losses[:, 0]
        losses += self._handicap[candidate]
        better = losses < self._best if losses.shape == self._best.shape else self._best == np.inf
        self._choice[better[:, 0]] = candidate
        self._best[better] = np.broadcast_to(losses, better.shape)[better]
        mine = better[self._units.group]
        self._scores[:, mine] = scores[:, mine]

    def _maps(self, model: UnitModel, pool: Executor | None) -> tuple[Float32, Float32]:
        """Give maps of each unit without its group, (u, u), and without another too, (g, u, u)."""
        units = self._units
        n_units, groups = len(units.group), range(units.n_groups)
        outer = np.empty((n_units, n_units), np.float32)
        inner = np.zeros((len(groups), n_units, n_units), np.float32)

        def leave_out(left_out: Groups) -> None:
            maps = model.unit_maps(left_out)
            if len(left_out) == 1:
                outer[units.of_groups(left_out)] = maps
                return
            g, h = left_out
            of_g = units.of_groups((g,))
            inner[h, of_g] = maps[: len(of_g)]
            inner[g, units.of_groups((h,))] = maps[len(of_g) :]

        in_threads(pool, leave_out, [*((g,) for g in groups), *combinations(groups, 2)])
        return outer, inner

    def _inner_losses(self, group: int, maps: Float32) -> Float64:
        """Loss of every judged labelling over the inner folds of an outer one, (r,)."""
        seen = np.flatnonzero(self._units.group != group)
        every = self._shares.without_each_and(group)
        inverse = every[:, self._units.group[seen], : self._n_judged]
        scores = maps[seen] @ self._columns[:, :, : self._n_judged]
        return self._losses(balance(scores, inverse.astype(np.float32), 0), seen)

    def _losses(self, scores: Float32, units: Ints | slice) -> Float64:
        """Losses (r,) of the first labellings' scores, (k, m, r), of some units."""
        m, r = scores.shape[1:]
        weights = np.full(m, 1 / m)
        logits = scores * np.float32(self._sharpness)
        losses: Float64 = labelling_losses(logits, self._labels[:r, units].T, weights)
        return losses

    def nested(self, models: Sequence[UnitModel]) -> NestedScores:
        """Score rows under the observed labels by the models chosen."""
        units, choice = self._units, self._choice
        n, k, n_groups = len(units.unit), len(self._columns), units.n_groups
        final = int((self._final_loss + self._handicap).argmin())
        scores, final_scores = np.empty((n, k)), np.empty((n, k))
        inner = np.full((n_groups, n, k), np.nan, np.float32)
        for g in range(n_groups):
            rows = units.grouping.rows(g)
            scores[rows] = self._row_scores(models[choice[g]], (g,))
            final_scores[rows] = self._row_scores(models[final], (g,))
        for pair in combinations(range(n_groups), 2):
            rows = units.rows_of(pair)
            for candidate in {*choice[list(pair)].tolist()}:
                found = self._row_scores(models[candidate], pair)
                for g, h in (pair, pair[::-1]):
                    if choice[g] == candidate:
                        of_h = units.grouping.codes[rows] == h
                        inner[g, rows[of_h]] = found[of_h]
        return NestedScores(
            self._loss, self._final_loss, choice, final, scores, inner, final_scores,
            np.zeros(n_groups),
        )  # fmt: skip

    def _row_scores(self, model: UnitModel, left_out: Groups) -> Float64:
        """Balanced scores, (m, k), of the rows left out, under the observed labels."""
        scores = model.row_scores(left_out, self._observed)
        balanced: Float64 = balance(scores, self._shares.without(*left_out)[:, 0])
        return balanced

    def shuffled(self) -> Shuffled:
        """Give the units' verdicts and scores under every labelling, the observed one first."""
        means = np.ascontiguousarray(self._scores.transpose(2, 1, 0))
        verdicts = means.argmax(axis=2).astype(np.int16)
        return Shuffled(verdicts[:, self._units.unit], means)
