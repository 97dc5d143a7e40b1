"""Folds inside folds: what they give, the loss by which all classifiers are tuned, and refitting.

Every row is scored by a model that neither learnt nor tuned anything on the row's group. Any
classifier can be fitted anew for each fold, as here; heads that know better do it faster.

The loss is the share of windows that another class outscores, plus half the surprise: the negative
logarithm of the probability given to a window's own class; each unit (device and label) counts
once; smaller is better. Errors are what is reported, but with a handful of devices two settings
often make equally many; surprise changes smoothly, but prefers models whose probabilities are all
nearly equal. On 30 real cultures neither alone chose better throughout.

Probabilities are the softmax of the scores, times the factor that suits the candidate best
(`SHARPENINGS`). Without it, candidates with too small scores would be preferred to those with too
large ones, which calibration corrects. Windows of a unit overlap, by 96 % where 120 s are taken
every 5 s, so some of them, evenly spread, stand for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.base import clone

from toptune.errors import InputError
from toptune.heads.base import Candidate, Progress, StepProgress
from toptune.heads.rows import Float64, Grouping, Ints, LabelledRows

# Windows of a unit that are looked at, at most. With 20 minutes a device they lie 80 s apart.
WINDOWS_A_UNIT = 16
# Weight of the surprise, in nats, beside the share of errors.
SURPRISE = 0.5
# With a handful of devices, choosing inside the folds costs more than it gains. So where a head
# recommends a setting, another is chosen only if its loss is smaller by more than this over the
# root of the number of units, a few standard errors of the difference; where units are many, that
# is little. Over four real sets, that was better than choosing freely (benchmarks/RESULTS.md).
HANDICAP = 1.0
# Factors tried on the scores, each twice the one before: its exponentials are the other's squares.
SHARPENINGS = tuple(2.0**power for power in range(-3, 3))


def spread_rows(unit: Ints, most: int = WINDOWS_A_UNIT) -> Ints:
    """Choose the rows that stand for their units: at most so many each, evenly spread.

    `unit`, (n,): numbered from 0. Returns (m,): rows, ascending.
    """
    order = np.argsort(unit, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(unit))])
    chosen = [
        order[start + (np.arange(count) * (stop - start)) // count]
        for start, stop in pairwise(bounds)
        if (count := min(most, stop - start))
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def unit_weights(unit: Ints) -> Float64:
    """Weight of each row so that every unit counts once and all weights add up to 1."""
    sizes = np.bincount(unit)
    weights: Float64 = 1 / (sizes[unit] * np.count_nonzero(sizes))
    return weights


def selection_loss(
    scores: NDArray[np.floating[Any]], codes: Ints, unit: Ints, sharpness: float = 1.0
) -> float:
    """Share of errors plus `SURPRISE` x mean negative log-likelihood, every unit counting once.

    Rows of `scores`, (n, k), that hold NaN are left out; NaN is given where none is left. `codes`
    and `unit`, (n,), number each row's class, and its device and label. Probabilities are the
    softmax of factor x sharpness x scores, with the factor of `SHARPENINGS` that fits best.
    """
    seen = np.flatnonzero(~np.isnan(scores[:, 0]))
    if not seen.size:
        return float("nan")
    rows = seen[spread_rows(unit[seen])]
    logits = sharpness * scores[rows].astype(np.float64).T
    losses = labelling_losses(logits[:, :, None], codes[rows][:, None], unit_weights(unit[rows]))
    return float(losses[0])


def labelling_losses(logits: Any, codes: Any, weights: Any, xp: Any = np) -> Any:
    """Compute the same loss of many labellings at once, in NumPy or in torch.

    `logits`, (k, m, r), of m rows under r labellings, are overwritten; they have classes first,
    since sums over classes then run along memory. `codes`, (m, r), are the rows' classes,
    `weights`, (m,), those of `unit_weights`; all are arrays of `xp`, ``numpy`` or ``torch``.
    """

    def mean(values: Any) -> Any:
        return weights @ xp.asarray(values, dtype=xp.float64)

    logits *= SHARPENINGS[0]
    # Below 0, no power of two overflows; and a window is right where its own class has the 0.
    logits -= xp.amax(logits, 0)
    take = np.take_along_axis if xp is np else xp.take_along_dim
    own = take(logits, codes[None], 0)[0]
    errors = mean(own < 0)
    powers = xp.exp(logits, out=logits)
    surprise = xp.full_like(errors, float("inf"))
    for _ in SHARPENINGS:
        surprise = xp.minimum(surprise, mean(xp.log(powers.sum(0)) - own))
        powers *= powers
        own *= 2
    return errors + SURPRISE * surprise


@dataclass(frozen=True)
class NestedScores:
    """Leave-one-group-out with the candidate of every fold chosen inside its training groups."""

    # (p, g): mean loss of each candidate over the inner folds of each outer fold, whose own group
    # takes no part; smaller is better
    loss: Float64
    # (p,): loss of each candidate over all groups' leave-one-group-out, which chooses the model of
    # all devices
    final_loss: Float64
    # (g,): candidate chosen in each outer fold, by its loss and what handicap it has; of equals the
    # first
    choice: Ints
    final_choice: int
    # (n, k): held-out scores of every row, by the candidate its fold chose
    scores: Float64
    # (g, n, k): of fold g's candidate: scores of row i by the model without g and without i's own
    # group; NaN in rows of g
    inner_scores: NDArray[np.float32]
    # (n, k): leave-one-group-out scores of the final candidate, for calibrating the model of all
    # devices
    final_scores: Float64
    # (g,): what had to be added to a diagonal in each outer fold; 0 as a rule
    jitter: Float64


class Shuffled(NamedTuple):
    """Results of the whole procedure, tuning included, under other labellings."""

    # (r, n): class of each row by the model without its group, for each labelling
    predicted: NDArray[np.int16]
    mean_scores: NDArray[np.float32]  # (r, u, k): mean scores of each unit's rows


Tune = Callable[[Any, LabelledRows, Sequence[Candidate], StepProgress | None], NestedScores]


class HeldOut(NamedTuple):
    """What classifiers say of rows whose groups they have not seen."""

    # (n, k): classes in their sorted order
    scores: Float64
    probabilities: Float64
    predictions: NDArray[Any]  # (n,) labels
    # (g,): what a closed form had to add to the diagonal of its matrix in each fold; 0 as a rule
    jitter: Float64

    @classmethod
    def by(cls, estimator: Any, y: NDArray[Any], scores: Float64, jitter: Float64) -> HeldOut:
        """Follow from scores what a classifier with `probabilities_of` says."""
        labels = np.unique(y)[scores.argmax(axis=1)]
        return cls(scores, estimator.probabilities_of(scores), labels, jitter)


class FoldScores(NamedTuple):
    """Scores of p candidates by the folds, and by the folds inside them."""

    outer: Float64  # (p, n, k): of every row by the model without its group
    inner: NDArray[np.float32]  # (p, g, n, k): the same without group g as well; NaN in rows of g

    @classmethod
    def empty(cls, p: int, g: int, n: int, k: int) -> FoldScores:
        """Make room for the scores."""
        return cls(np.empty((p, n, k)), np.full((p, g, n, k), np.nan, np.float32))

    def put(
        self, candidate: int, left_out: tuple[int, ...], group: int, rows: Ints, scores: Float64
    ) -> None:
        """Write down scores of a group's rows by a model without it, or without it and another."""
        if len(left_out) == 1:
            self.outer[candidate, rows] = scores
        for other in set(left_out) - {group}:
            self.inner[candidate, other, rows] = scores


def folds_and_pairs(n_groups: int) -> list[tuple[int, ...]]:
    """Name the groups that models are trained without: each by itself, then each pair once.

    A model without groups g and h serves twice: as fold h inside outer fold g, and as fold g inside
    outer fold h.
    """
    return [*((g,) for g in range(n_groups)), *combinations(range(n_groups), 2)]


def handicaps(is_recommended: Sequence[bool], n_units: int) -> Float64:
    """Say by how much smaller each candidate's loss must be; 0 of those that are recommended.

    All are 0 where none is.
    """
    if not any(is_recommended):
        return np.zeros(len(is_recommended))
    return np.where(is_recommended, 0.0, HANDICAP / np.sqrt(n_units))


def check_tuning(n_groups: int, candidates: Sequence[Candidate]) -> None:
    """Refuse fewer than three groups, and to choose from nothing."""
    if n_groups < 3:
        raise InputError(f"tuning inside the folds needs three groups, got {n_groups}")
    if not candidates:
        raise InputError("tuning needs at least one candidate, got none")


def refit_folds(estimator: Any, rows: LabelledRows) -> HeldOut:
    """Fit a clone without each group, one after the other."""
    X, y, grouping, _ = rows
    classes = np.unique(y)
    scores = np.empty((len(y), len(classes)))
    probabilities = np.empty_like(scores)
    predictions = np.empty_like(y)
    jitter = np.zeros(len(grouping.groups))
    for fold in range(len(grouping.groups)):
        train, test = grouping.codes != fold, grouping.rows(fold)
        fitted = clone(estimator).fit(X[train], y[train])
        scores[test], probabilities[test] = _scores_of(fitted, X[test], classes)
        predictions[test] = fitted.predict(X[test])
        jitter[fold] = getattr(fitted, "jitter_", 0.0)
    return HeldOut(scores, probabilities, predictions, jitter)


def _scores_of(fitted: Any, X: NDArray[Any], classes: NDArray[Any]) -> tuple[Float64, Float64]:
    """Scores and probabilities (n, k) of any classifier.

    One without scores is scored by its probabilities, one without probabilities gets the softmax
    of its scores.
    """
    if hasattr(fitted, "class_scores"):
        scores = fitted.class_scores(X)
    elif hasattr(fitted, "decision_function"):
        scores = fitted.decision_function(X)
    else:
        scores = fitted.predict_proba(X)
    if scores.ndim == 1:
        scores = np.stack([-scores, scores], axis=1)
    known = np.searchsorted(classes, fitted.classes_)
    scores = _of_all_classes(scores, known, len(classes))
    if not hasattr(fitted, "predict_proba"):
        return scores, softmax(scores, axis=1)
    probabilities = np.zeros_like(scores)
    probabilities[:, known] = fitted.predict_proba(X)
    return scores, probabilities


def _of_all_classes(scores: Float64, known: Ints, n_classes: int) -> Float64:
    """Score classes that no training row had below all others, by as much as those differ."""
    if len(known) == n_classes:
        return scores
    lowest = scores.min(axis=1) - np.ptp(scores, axis=1)
    every = np.repeat(lowest[:, None], n_classes, axis=1)
    every[:, known] = scores
    return every


def tune_by_refitting(
    estimator: Any,
    rows: LabelledRows,
    candidates: Sequence[Candidate],
    progress: StepProgress | None = None,
) -> NestedScores:
    """Choose a candidate inside each fold's training groups, and score the fold by it.

    See `Head.tune`. Every training set must hold two classes; a candidate costs g (g + 1) / 2 fits.
    """
    X, y, grouping, unit = rows
    n_groups = len(grouping.groups)
    check_tuning(n_groups, candidates)
    classes, codes = np.unique(y, return_inverse=True)
    found = FoldScores.empty(len(candidates), n_groups, len(y), len(classes))
    left_out = folds_and_pairs(n_groups)
    n_done = 0
    for number, candidate in enumerate(candidates):
        tried = clone(estimator).set_params(**candidate)
        for groups in left_out:
            train = ~np.isin(grouping.codes, groups)
            fitted = clone(tried).fit(X[train], y[train])
            for group in groups:
                own = grouping.rows(group)
                scores = _scores_of(fitted, X[own], classes)[0]
                found.put(number, groups, group, own, scores)
            n_done += 1
            if progress is not None:
                progress(n_done, len(candidates) * len(left_out))
    return choose(found, codes.astype(np.int64), unit, grouping)


def choose(
    found: FoldScores, codes: Ints, unit: Ints, grouping: Grouping, loss: Float64 | None = None
) -> NestedScores:
    """Choose the candidate of every fold by the scores of its inner folds.

    `codes` and `unit`, (n,): class and unit of each row. `loss`, (p, g), where it is known already.
    """
    outer, inner = found
    if loss is None:
        loss = np.array(
            [[selection_loss(fold, codes, unit) for fold in candidate] for candidate in inner]
        )
    final_loss = np.array([selection_loss(scores, codes, unit) for scores in outer])
    choice, final_choice = loss.argmin(axis=0), int(final_loss.argmin())
    n_groups = len(choice)
    return NestedScores(
        loss=loss,
        final_loss=final_loss,
        choice=choice,
        final_choice=final_choice,
        scores=outer[choice[grouping.codes], np.arange(len(codes))],
        inner_scores=inner[choice, np.arange(n_groups)],
        final_scores=outer[final_choice],
        jitter=np.zeros(n_groups),
    )


def tune_each_labelling(
    tune: Tune,
    estimator: Any,
    rows: LabelledRows,
    candidates: Sequence[Candidate],
    shuffled: Ints | None,
    progress: Progress | None,
) -> tuple[NestedScores, Shuffled | None]:
    """Tune for the observed labels, then anew for each shuffle; see `Head.nested`."""

    def watched(what: str) -> StepProgress | None:
        return None if progress is None else lambda done, total: progress(what, done, total)

    nested = tune(estimator, rows, candidates, watched("models"))
    if shuffled is None:
        return nested, None
    classes = np.unique(rows.y)
    scores = [nested.scores]
    for number, labels in enumerate(shuffled):
        what = watched(f"models of shuffle {number + 1} of {len(shuffled)}")
        relabelled = rows._replace(y=classes[labels[rows.unit]])
        scores.append(tune(estimator, relabelled, candidates, what).scores)
    return nested, verdicts_of(scores, rows.unit)


def verdicts_of(scores: Sequence[Float64], unit: Ints) -> Shuffled:
    """Classes of rows and mean scores of units, of each labelling's held-out scores, (n, k)."""
    sizes = np.bincount(unit)[:, None]
    predicted = np.stack([of_rows.argmax(axis=1) for of_rows in scores])
    sums = np.zeros((len(scores), len(sizes), scores[0].shape[1]))
    for line, of_rows in zip(sums, scores, strict=True):
        np.add.at(line, unit, of_rows)
    return Shuffled(predicted.astype(np.int16), (sums / sizes).astype(np.float32))
