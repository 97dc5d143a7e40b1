"""The penalty of the logistic regression chosen inside every fold, and its permutation test.

Missing values are filled in, columns standardised and models fitted by the training rows of a fold
only; inside an outer fold, by its training rows without one more group. Leaving out groups g and h
serves both as fold h inside fold g and the other way round. Standardising does not depend on
labels, so shuffles share it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from toptune.errors import InputError
from toptune.heads.base import Candidate, StepProgress
from toptune.heads.logistic.classifier import LogisticClassifier, Standardiser
from toptune.heads.logistic.folds import log_odds
from toptune.heads.nested import NestedScores, Shuffled
from toptune.heads.rows import Float64, Grouping, LabelledRows
from toptune.heads.selection import labelling_losses, selection_loss, spread_rows, unit_weights
from toptune.machine.threads import in_threads, thread_pool

# What the inner scores of the labellings that are done together may take.
_INNER_BYTES = 2**27
# Few enough that progress is seen to move.
_MOST_TOGETHER = 16


class _FoldScores(NamedTuple):
    """Scores of some labellings: (r, p, n, k), and (r, p, g, n, k) of the inner folds."""

    outer: Float64
    inner: NDArray[np.float32]


def tune_logistic(
    classifier: LogisticClassifier,
    rows: LabelledRows,
    candidates: Sequence[Candidate],
    *,
    shuffled: NDArray[np.int64] | None = None,
    progress: StepProgress | None = None,
) -> tuple[NestedScores, Shuffled]:
    """Leave each group out once, with the penalty chosen among the other groups.

    Where leaving out two groups leaves no row of a class, its log-odds are those of half a row
    against all others, whatever the row and the penalty.

    Parameters
    ----------
    classifier : LogisticClassifier
        Not fitted, and not changed.
    rows : LabelledRows
        Of three groups or more; NaN where a value is not defined.
    candidates : sequence of mapping
        Values of C; of equally good ones the smallest is chosen. One, which may name none: nothing
        is tuned, inner folds serve calibration.
    shuffled : (r, u) int64, optional
        Further labellings: the class of each unit, numbered in the sorted order of the classes.
    progress : callable, optional
        Told how many labellings are done, and how many there are.

    Returns
    -------
    NestedScores
        Of the observed labels; candidates in their order.
    Shuffled
        Its first line is of the observed labels, the others of `shuffled`.

    Raises
    ------
    InputError
        Fewer than three groups, no candidate, or one that the classifier cannot take.
    """
    X, y, grouping, unit = rows
    if len(grouping.groups) < 3:
        raise InputError(f"tuning inside the folds needs three groups, got {len(grouping.groups)}")
    if not candidates:
        raise InputError("tuning needs at least one candidate, got none")
    classifiers = [clone(classifier).set_params(**candidate) for candidate in candidates]
    for each in classifiers:
        checked, classes, codes = each.check(X, y)
    _, labels = rows.labellings(shuffled)
    search = _Search(
        checked, len(classes), grouping, unit, np.array([float(each.C) for each in classifiers])
    )
    parts, nested = [], None
    for block in _blocks(len(labels), search.inner_bytes):
        found = search.scores(labels[block], inner=len(classifiers) > 1 or block.start == 0)
        loss = search.losses(found, labels[block])
        if nested is None:
            nested = search.nested(found, loss[0], codes)
        parts.append(search.verdicts(found, loss))
        if progress is not None:
            progress(block.stop, len(labels))
    assert nested is not None  # the observed labels come first
    return nested, Shuffled(*(np.concatenate(lines) for lines in zip(*parts, strict=True)))


def _blocks(n: int, inner_bytes: int) -> Iterator[slice]:
    """Give the observed labelling alone, then some shuffles at a time."""
    yield slice(0, 1)
    size = min(_MOST_TOGETHER, max(1, _INNER_BYTES // inner_bytes))
    for start in range(1, n, size):
        yield slice(start, min(start + size, n))


class _Search:
    """Fits, losses and choices of any labellings of the same rows."""

    def __init__(
        self,
        X: NDArray[Any],
        n_classes: int,
        grouping: Grouping,
        unit: NDArray[np.int64],
        C: NDArray[np.float64],
    ) -> None:
        self._X, self._k, self._grouping, self._unit = X, n_classes, grouping, unit
        # Weaker penalties start where stronger ones ended, and are chosen after them.
        self._by_C = np.argsort(C, kind="stable")
        self._C = C[self._by_C]
        self._judged = spread_rows(unit)

    @property
    def inner_bytes(self) -> int:
        """Memory of one labelling's inner scores."""
        return 4 * len(self._C) * len(self._grouping.groups) * len(self._X) * self._k

    def scores(self, labels: NDArray[np.int64], *, inner: bool) -> _FoldScores:
        """Train all folds under some labellings, (r, u); the inner ones only where asked for."""
        grouping = self._grouping
        n_groups, (n, r) = len(grouping.groups), (len(self._X), len(labels))
        codes = labels[:, self._unit]
        outer = np.empty((r, len(self._C), n, self._k))
        within = np.full((r, len(self._C), n_groups if inner else 0, n, self._k), np.nan, "f4")
        left_out: list[tuple[int, ...]] = [(g,) for g in range(n_groups)]
        if inner:
            left_out += combinations(range(n_groups), 2)

        def fold(groups: tuple[int, ...]) -> None:
            held_out = np.isin(grouping.codes, groups)
            standard = Standardiser.of(self._X[~held_out])
            rows = np.flatnonzero(held_out)
            found = log_odds(
                standard.apply(self._X[~held_out]),
                codes[:, ~held_out],
                self._k,
                self._C,
                standard.apply(self._X[rows]),
            )
            if len(groups) == 1:
                outer[:, :, rows] = found
                return
            for g, h in (groups, groups[::-1]):
                of_h = grouping.codes[rows] == h
                within[:, :, g, rows[of_h]] = found[:, :, of_h]

        with thread_pool() as pool:
            in_threads(pool, fold, left_out)
        return _FoldScores(outer, within)

    def losses(self, found: _FoldScores, labels: NDArray[np.int64]) -> Float64:
        """Loss of every candidate over the inner folds of each outer fold, (r, p, g)."""
        n_groups = len(self._grouping.groups)
        losses = np.zeros((len(labels), len(self._C), n_groups))
        if not found.inner.shape[2]:
            return losses
        for group in range(n_groups):
            rows = self._judged[self._grouping.codes[self._judged] != group]
            unit = self._unit[rows]
            for p in range(len(self._C)):
                logits = np.moveaxis(found.inner[:, p, group, rows].astype(np.float64), 2, 0)
                logits = np.ascontiguousarray(logits.transpose(0, 2, 1))
                losses[:, p, group] = labelling_losses(
                    logits, labels[:, unit].T, unit_weights(unit)
                )
        return losses

    def nested(self, found: _FoldScores, loss: Float64, codes: NDArray[np.int64]) -> NestedScores:
        """Put together what is said of the observed labels; candidates as they were given."""
        outer, inner = found.outer[0], found.inner[0]
        final_loss = np.array([selection_loss(scores, codes, self._unit) for scores in outer])
        choice, final_choice = loss.argmin(axis=0), int(final_loss.argmin())
        n_groups = len(choice)
        given = np.argsort(self._by_C)
        return NestedScores(
            loss=loss[given],
            final_loss=final_loss[given],
            choice=self._by_C[choice],
            final_choice=int(self._by_C[final_choice]),
            scores=outer[choice[self._grouping.codes], np.arange(len(codes))],
            inner_scores=inner[choice, np.arange(n_groups)],
            final_scores=outer[final_choice],
            jitter=np.zeros(n_groups),
        )

    def verdicts(self, found: _FoldScores, loss: Float64) -> Shuffled:
        """Tell what the chosen models say of held-out rows and units, labelling by labelling."""
        r, n = len(loss), len(self._X)
        choice = loss.argmin(axis=1)
        chosen = choice[:, self._grouping.codes]
        scores = found.outer[np.arange(r)[:, None], chosen, np.arange(n)]
        sizes = np.bincount(self._unit)
        averaging = np.eye(len(sizes))[:, self._unit] / sizes[:, None]
        return Shuffled(
            scores.argmax(axis=2).astype(np.int16), (averaging @ scores).astype(np.float32)
        )
