"""Tuning of the Falkon classifier inside every fold, and its permutation test, in closed form.

In outer fold g a candidate is judged by its inner folds: each other group h is scored by the model
without g and h. These scores are linear in the targets, and windows of a unit (device and label)
share their label. So one column for each unit serves every labelling: scores under shuffled labels
are combinations of the same columns, and a permutation costs a product instead of a fit.

A candidate costs one inversion of n x n (all rows as centres), or one factorisation of centres x
centres for each pair of groups (Nystrom); see `toptune.heads.falkon.folds`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from toptune.errors import InputError
from toptune.heads.base import Candidate, Progress
from toptune.heads.falkon.arrays import Array, Arrays
from toptune.heads.falkon.classifier import SHARPNESS, FalkonClassifier
from toptune.heads.falkon.folds import Model, sort_centres
from toptune.heads.falkon.solvers import Direct, Problem, solver_of
from toptune.heads.falkon.targets import FoldShares, balance
from toptune.heads.nested import (
    NestedScores,
    Shuffled,
    labelling_losses,
    selection_loss,
    spread_rows,
    unit_weights,
)
from toptune.heads.rows import Float64, Grouping, Ints, LabelledRows, cut

# An inner fold leaves out the outer group and one more.
_GROUPS_AT_ONCE = 2
# Inner scores of several outer folds are held at once, up to this: so a pair of groups of them is
# solved once, and one of different blocks twice.
_INNER_BYTES = 2**31
# Of the columns of all units, (n, u): the targets, sorted by group, their scores, and those in the
# rows' order.
_COLUMN_COPIES = 4


def tune_falkon(
    classifier: FalkonClassifier,
    rows: LabelledRows,
    candidates: Sequence[Candidate],
    *,
    handicap: Float64 | None = None,
    shuffled: Ints | None = None,
    progress: Progress | None = None,
) -> tuple[NestedScores, Shuffled]:
    """Leave each group out once, with the candidate chosen among the other groups.

    That is the one whose loss plus `handicap`, (p,) or 0 of all, is the smallest. Takes and gives
    what `Head.nested` does; of a single candidate, inner folds serve calibration alone. Every
    labelling goes through the same steps and the same arithmetic, the choice of candidates
    included, so that the observed one is one of them if labels mean nothing. `progress` is told how
    many candidates are done, and of how many.

    Raises `InputError`: another solver than ``direct``, fewer than three groups, no candidate, a
    value out of range in any of them, Nystrom centres that all lie in two groups, or shuffles for
    which there is not enough memory, before anything is computed.
    """
    grouping = rows.grouping
    if classifier.solver != "direct" or len(grouping.groups) < 3:
        raise InputError(
            "tuning inside the folds needs the direct solver and three groups, got"
            f" {classifier.solver} and {len(grouping.groups)}"
        )
    if not candidates:
        raise InputError("there is no candidate to choose from")
    problems = [_problem(classifier, candidate, rows) for candidate in candidates]
    for problem in problems:
        if problem.centre_rows is not None:
            sort_centres(grouping, problem.centre_rows, _GROUPS_AT_ONCE)
    solver = solver_of(classifier)
    assert isinstance(solver, Direct)  # no other solver has closed forms
    if shuffled is not None:
        _refuse_many_shuffles(len(rows.y), shuffled.shape[1], solver.arrays.free_bytes())
    classes, labels = rows.labellings(shuffled)
    labelling = Labelling(rows.unit, labels, len(classes), SHARPNESS, classifier.balanced)
    factored = solver.models(problems, grouping, _GROUPS_AT_ONCE)
    handicaps = np.zeros(len(problems)) if handicap is None else handicap
    search = _Search(handicaps, grouping, labelling, solver.arrays)
    for number in range(len(problems)):
        search.try_candidate(number, factored(number))
        if progress is not None:
            progress("settings", number + 1, len(problems))
    return search.result()


def _refuse_many_shuffles(n_rows: int, n_units: int, free_bytes: int) -> None:
    """Refuse shuffles whose columns, one for each unit, do not fit into memory."""
    needed = 8 * _COLUMN_COPIES * n_rows * n_units
    if needed > free_bytes:
        raise InputError(
            f"permutations of {n_units} devices and labels with {n_rows} windows take"
            f" {needed / 2**30:.1f} GiB, and {free_bytes / 2**30:.1f} GiB are at hand: leave them"
            " out with `permutations=0`, or take fewer windows by `windows_per_recording`"
        )


def _problem(classifier: FalkonClassifier, candidate: Candidate, rows: LabelledRows) -> Problem:
    tried: FalkonClassifier = clone(classifier).set_params(**candidate)
    return tried.problem(rows.X, rows.y)


@dataclass(frozen=True)
class Labelling:
    """Rows, their units and groups, and one or more ways to label the units."""

    unit: Ints  # (n,): unit of each row, numbered from 0; every unit lies in one group
    labels: Ints  # (r, u): class of each unit; the first line is what was observed
    n_classes: int
    sharpness: float  # probabilities are the softmax of sharpness x scores
    balanced: bool  # see `falkon.targets`

    @property
    def codes(self) -> Ints:
        """Observed class of each row, (n,)."""
        codes: Ints = self.labels[0, self.unit]
        return codes


class Basis(NamedTuple):
    """Targets of some labellings as combinations of few columns."""

    columns: Float64  # (n, c)
    coefficients: Float64  # (c, r, k): targets of labelling r are ``columns @ coefficients[:, r]``

    @classmethod
    def of(cls, labelling: Labelling, labels: Ints) -> Basis:
        """Take one column for each class for one labelling, one for each unit for several."""
        n_classes = labelling.n_classes
        # Targets of each unit under each labelling, (u, r, k); balanced ones once they are scores.
        other = 0.0 if labelling.balanced else -1.0
        targets = np.where(labels.T[:, :, None] == np.arange(n_classes), 1.0, other)
        if len(labels) == 1:
            return cls(targets[labelling.unit, 0], np.eye(n_classes).reshape(-1, 1, n_classes))
        return cls(np.eye(labels.shape[1])[labelling.unit], targets)

    def scores(self, maps: NDArray[np.floating], which: Ints) -> NDArray[np.floating]:
        """Scores (m, len(which), k) of some labellings, from maps (m, c), in the maps' type."""
        coefficients = self.coefficients[:, which].astype(maps.dtype)
        flat = maps @ coefficients.reshape(len(coefficients), -1)
        return flat.reshape(len(maps), len(which), -1)


class _Judge:
    """Computes losses of a basis's labellings by inner folds of outer folds, where these are."""

    def __init__(
        self,
        labelling: Labelling,
        basis: Basis,
        grouping: Grouping,
        shares: FoldShares | None,
        arrays: Arrays,
    ) -> None:
        self._arrays, self._sharpness = arrays, labelling.sharpness
        self._shares, self._group = shares, grouping.codes
        self._group_there = arrays.as_is(grouping.codes)
        # Classes first: in scores (k, m, r) sums over classes run along memory.
        by_class = np.ascontiguousarray(np.moveaxis(basis.coefficients, 2, 0), np.float32)
        self._coefficients = arrays.as_is(by_class)
        self._observed = arrays.as_is(basis.coefficients[:, 0].astype(np.float32))
        self._labels = arrays.as_is(labelling.labels[: by_class.shape[2]])
        judged = spread_rows(labelling.unit)
        # Rows that are judged in each outer fold, their units, and their weights.
        self._folds: list[tuple[Array, Array, Array]] = []
        for group in range(len(grouping.groups)):
            rows = judged[grouping.codes[judged] != group]
            unit = labelling.unit[rows]
            of_fold = (arrays.as_is(each) for each in (rows, unit, unit_weights(unit)))
            self._folds.append(tuple(of_fold))

    def losses(self, block: range, maps: Array) -> Float64:
        """Loss of every judged labelling, (len(block), r), from maps (len(block), n, c)."""
        arrays = self._arrays
        with arrays.says_when_full():
            found = arrays.each(self._of_fold, zip(block, maps, strict=True))
            return arrays.to_host(arrays.xp.stack(found))

    def observed(self, maps: Array, fold: int, group: int) -> Float64:
        """Scores (n, k) of the first labelling in one of the folds of the maps, that of a group."""
        scores = self._arrays.to_host(maps[fold] @ self._observed)
        if self._shares is None:
            return scores
        inverse = self._shares.without_each_and(group)[:, :, 0].T.astype(np.float32)
        balanced: Float64 = balance(scores, inverse[self._group])
        return balanced

    def _of_fold(self, fold: tuple[int, Array]) -> Array:
        group, maps = fold
        rows, unit, weights = self._folds[group]
        logits = maps[rows] @ self._coefficients
        if self._shares is not None:
            every = self._shares.without_each_and(group)[:, :, : logits.shape[2]]
            inverse = self._arrays.as_is(every.astype(np.float32))
            # Of each row's own group, which is what the inner fold leaves out.
            logits = balance(logits, inverse[:, self._group_there[rows]], 0)
        logits *= self._sharpness
        return labelling_losses(logits, self._labels[:, unit].T, weights, self._arrays.xp)


class _Search:
    """The best candidate so far of every outer fold and labelling, and its scores."""

    def __init__(
        self, handicap: Float64, grouping: Grouping, labelling: Labelling, arrays: Arrays
    ) -> None:
        n_candidates, self._handicap = len(handicap), handicap
        self._grouping = grouping
        self._labelling = labelling
        n_groups, (n_sets, n_units) = len(grouping.groups), labelling.labels.shape
        n, k = len(labelling.unit), labelling.n_classes
        self._outer = Basis.of(labelling, labelling.labels)
        # With a single candidate only calibration asks for inner folds, and not of shuffled labels.
        n_judged = n_sets if n_candidates > 1 else 1
        self._inner = Basis.of(labelling, labelling.labels[:n_judged])
        self._groups_of_units = np.empty(n_units, np.int64)
        self._groups_of_units[labelling.unit] = grouping.codes
        # None: scores are not to be balanced.
        self._shares: FoldShares | None = None
        if labelling.balanced:
            sizes = np.bincount(labelling.unit)
            self._shares = FoldShares(sizes, self._groups_of_units, labelling.labels, k)
        self._judge = _Judge(labelling, self._inner, grouping, self._shares, arrays)

        self._loss = np.empty((n_candidates, n_groups))
        self._final_loss = np.empty(n_candidates)
        self._best = np.full((n_sets, n_groups), np.inf)
        self._choice = np.zeros(n_groups, np.int64)
        self._scores: Float64 = np.empty((n, k))
        self._final_scores: Float64 = np.empty((n, k))
        self._inner_scores = np.full((n_groups, n, k), np.nan, np.float32)
        self._jitter = np.zeros(n_groups)
        self._predicted = np.empty((n_sets, n), np.int16)
        self._mean_scores = np.empty((n_sets, n_units, k), np.float32)

    def try_candidate(self, candidate: int, model: Model) -> None:
        targets = model.targets(self._outer.columns)
        outer = targets.held_out_scores()
        plain: Float64 = self._outer.scores(outer.scores, np.array([0]))[:, 0].astype(np.float64)
        if self._shares is not None:
            inverse = self._shares.without_each()[:, :, 0].T
            plain = balance(plain, inverse[self._grouping.codes])
        labelling = self._labelling
        loss = selection_loss(plain, labelling.codes, labelling.unit, labelling.sharpness)
        self._final_loss[candidate] = loss
        if self._best_of_all(candidate + 1) == candidate:
            self._final_scores = plain

        inner = targets
        if self._inner.columns.shape != self._outer.columns.shape:
            inner = model.targets(self._inner.columns)
        n_groups, n_columns = len(self._grouping.groups), self._inner.columns.shape[1]
        for part in cut(n_groups, _INNER_BYTES // (4 * len(plain) * n_columns)):
            block = range(n_groups)[part]
            maps = inner.inner(block)
            losses = self._judge.losses(block, maps)
            for fold, group in enumerate(block):
                self._loss[candidate, group] = losses[fold, 0]
                better = self._improved(group, losses[fold] + self._handicap[candidate])
                if better.size:
                    self._keep(group, outer.scores, better)
                if better.size and better[0] == 0:
                    rows = self._grouping.rows(group)
                    self._choice[group] = candidate
                    self._scores[rows] = plain[rows]
                    self._inner_scores[group] = self._judge.observed(maps, fold, group)
                    self._jitter[group] = outer.jitter[group]
            # Gone before the next block's are made.
            del maps

    def _best_of_all(self, n_candidates: int) -> int:
        """Which of the first candidates is the best over all groups."""
        return int((self._final_loss + self._handicap)[:n_candidates].argmin())

    def _improved(self, group: int, losses: Float64) -> Ints:
        """Find and note labellings whose loss in an outer fold is the smallest so far."""
        # A single candidate is kept for every labelling, also those that are not judged.
        of_all = np.broadcast_to(losses, len(self._best)) if len(losses) == 1 else losses
        better = np.flatnonzero(of_all < self._best[:, group]).astype(np.int64)
        self._best[better, group] = of_all[better]
        return better

    def _keep(self, group: int, maps: Float64, which: Ints) -> None:
        """Write down the outer fold's predictions under some labellings."""
        rows = self._grouping.rows(group)
        scores = self._outer.scores(maps[rows].astype(np.float32), which)
        if self._shares is not None:
            inverse = self._shares.without(group)[:, which].T
            scores = balance(scores, inverse.astype(np.float32))
        self._predicted[np.ix_(which, rows)] = scores.argmax(axis=2).T
        for unit in np.flatnonzero(self._groups_of_units == group):
            mine = self._labelling.unit[rows] == unit
            self._mean_scores[which, unit] = scores[mine].mean(axis=0)

    def result(self) -> tuple[NestedScores, Shuffled]:
        nested = NestedScores(
            self._loss,
            self._final_loss,
            self._choice,
            self._best_of_all(len(self._handicap)),
            self._scores,
            self._inner_scores,
            self._final_scores,
            self._jitter,
        )
        return nested, Shuffled(self._predicted, self._mean_scores)
