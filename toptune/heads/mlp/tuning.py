"""The MLP's parameters chosen inside every fold, and its folds under many labellings.

A network trained without groups g and h serves twice: as fold h inside outer fold g, and as fold g
inside outer fold h. So g (g - 1) / 2 pairs and g outer folds are trained once per candidate, all
with the candidates side by side, scored, and dropped: memory is that of the scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from toptune.errors import InputError
from toptune.heads.base import StepProgress
from toptune.heads.mlp.classifier import MLPClassifier
from toptune.heads.mlp.folds import (
    Rows,
    Variant,
    fold_scores,
    logits_of,
    one_hot,
    train_folds,
    without,
)
from toptune.heads.mlp.network import Network
from toptune.heads.nested import NestedScores
from toptune.heads.refitting import choose
from toptune.heads.rows import (
    Float64,
    Grouping,
    LabelledRows,
    encode_classes,
    seed_of,
    view_sizes_of,
)

# Rows that the lists of training rows may hold at a time, 8 bytes each.
_LISTED_ROWS = 2**25
# Labellings whose networks are trained side by side; their batches are gathered once.
_LABELLINGS_TOGETHER = 8
# What a candidate may not override: the draws and the device are the run's.
_NOT_TUNED = frozenset({"random_state", "device"})


class _Scores(NamedTuple):
    """Scores of all candidates: (p, n, k) float64, and (p, g, n, k) float32 of the inner folds."""

    outer: Float64
    inner: NDArray[np.float32]


def tune_mlp(
    classifier: MLPClassifier,
    rows: LabelledRows,
    candidates: Sequence[Mapping[str, Any]],
    *,
    progress: StepProgress | None = None,
) -> NestedScores:
    """Choose a candidate inside each fold's training groups, and score the fold by it.

    The network of outer fold g is the one that `MLPClassifier.held_out_scores` trains with the
    chosen candidate's parameters; inner networks draw from the seed and both groups. Where leaving
    out two groups leaves no row of a class, the networks are trained all the same, without a
    positive example of it: rows of that class are then misclassified, whatever the candidate.

    Parameters
    ----------
    classifier : MLPClassifier
        With the parameters that no candidate overrides; not fitted.
    rows : LabelledRows
        Of three groups or more.
    candidates : sequence of mappings
        Parameters of the constructor and their values. Each costs g (g + 1) / 2 networks.
    progress : callable, optional
        Given how many networks are trained, and of how many.

    Returns
    -------
    NestedScores
        Its arrays, and as many inner scores for every candidate meanwhile: p x g x n x k float32.

    Raises
    ------
    InputError
        Fewer than three groups, no candidate, or one that the classifier cannot take.
    """
    X, y, grouping, unit = rows
    n_groups = len(grouping.groups)
    if n_groups < 3:
        raise InputError(f"tuning inside the folds needs three groups, got {n_groups}")
    if not candidates:
        raise InputError("tuning needs at least one candidate, got none")
    classifiers = [_overridden(classifier, candidate) for candidate in candidates]
    for each in classifiers:
        checked, classes, codes = each.check(X, y)
    shape = (len(codes), len(classes))
    scores = _Scores(
        np.empty((len(classifiers), *shape)),
        np.full((len(classifiers), n_groups, *shape), np.nan, dtype=np.float32),
    )
    seed = seed_of(classifier.random_state)
    count = _Count(progress, len(classifiers) * n_groups * (n_groups + 1) // 2)
    for numbers in _by_rows(classifiers, checked.shape[1]):
        shared = classifiers[numbers[0]].shared_rows(checked, codes, len(classes))
        variants = [Variant(classifiers[number].schedule()) for number in numbers]
        for left_out in _blocks(n_groups, len(codes)):
            folds = [without(grouping, groups, seed) for groups in left_out]
            use = _Scorer(shared, grouping, left_out, numbers, scores)
            train_folds(shared, folds, variants, use, progress=count.onwards())
    return choose(scores.outer, scores.inner, codes, unit, grouping)


def held_out_scores_of(
    classifier: MLPClassifier, X: Any, labellings: NDArray[Any], grouping: Grouping
) -> Iterator[Float64]:
    """Held-out scores for each of many labellings, as permutation tests need them.

    Each fold starts from the same weights and sees the same batches whatever the labels, so that
    the scores depend on nothing else; those of one labelling are what
    `MLPClassifier.held_out_scores` gives for it.

    Parameters
    ----------
    classifier : MLPClassifier
        Not fitted.
    X : (n, d) float32 or float64
    labellings : (n, r) labels
        One label vector a column; all of the same classes.
    grouping : Grouping
        Of the n rows.

    Yields
    ------
    (n, k) float64
        One label vector after the other; the classes of all of them in sorted order.

    Raises
    ------
    InputError
        As `MLPClassifier.fit` does; at once.
    """
    labellings = np.asarray(labellings)
    X, _, _ = classifier.check(X, labellings[:, 0])
    classes, codes = encode_classes(classifier, labellings.ravel())
    by_labelling = codes.reshape(labellings.shape).T
    return _scores_by_labelling(classifier, X, by_labelling, len(classes), grouping)


def _scores_by_labelling(
    classifier: MLPClassifier,
    X: NDArray[Any],
    codes: NDArray[np.int64],
    n_classes: int,
    grouping: Grouping,
) -> Iterator[Float64]:
    seed = seed_of(classifier.random_state)
    rows = classifier.shared_rows(X, codes[:1], n_classes)
    for start in range(0, len(codes), _LABELLINGS_TOGETHER):
        some = codes[start : start + _LABELLINGS_TOGETHER]
        rows = Rows(rows.X, one_hot(some, n_classes, rows.X.device))
        variants = [Variant(classifier.schedule(), labels) for labels in range(len(some))]
        yield from fold_scores(rows, grouping, variants, seed)


def _overridden(classifier: MLPClassifier, candidate: Mapping[str, Any]) -> MLPClassifier:
    """Give the classifier with a candidate's parameters."""
    names = sorted(set(classifier.get_params()) - _NOT_TUNED)
    for name in candidate:
        if name not in names:
            raise InputError(
                f"{name!r} of the classifier mlp cannot be tuned; there are {', '.join(names)}"
            )
    overridden: MLPClassifier = clone(classifier).set_params(**candidate)
    return overridden


def _by_rows(classifiers: Sequence[MLPClassifier], n_features: int) -> list[list[int]]:
    """Numbers of the classifiers that train on the same rows, normalised in the same way."""
    groups: dict[tuple[bool, tuple[int, ...]], list[int]] = {}
    for number, classifier in enumerate(classifiers):
        key = bool(classifier.normalise), view_sizes_of(classifier, n_features)
        groups.setdefault(key, []).append(number)
    return list(groups.values())


def _blocks(n_groups: int, n_rows: int) -> Iterator[list[tuple[int, ...]]]:
    """Name the groups that each fold leaves out, one or two, for so many folds at a time."""
    left_out: list[tuple[int, ...]] = [(group,) for group in range(n_groups)]
    left_out += combinations(range(n_groups), 2)
    size = max(1, _LISTED_ROWS // n_rows)
    for start in range(0, len(left_out), size):
        yield left_out[start : start + size]


@dataclass(frozen=True)
class _Scorer:
    """Scores each network on the groups it did not learn from, and lets it go."""

    rows: Rows
    grouping: Grouping
    left_out: list[tuple[int, ...]]
    numbers: list[int]
    scores: _Scores

    def __call__(self, fold: int, variant: int, network: Network) -> None:
        number, groups = self.numbers[variant], self.left_out[fold]
        for group in groups:
            held_out = self.grouping.rows(group)
            logits = logits_of(network, self.rows, held_out)
            if len(groups) == 1:
                self.scores.outer[number, held_out] = logits
            for outer in groups:
                if outer != group:
                    self.scores.inner[number, outer, held_out] = logits


class _Count:
    """Progress over several trainings, in networks."""

    def __init__(self, progress: StepProgress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def onwards(self) -> StepProgress:
        """Give what counts the next training on from here."""
        before = self._done

        def watch(done: int, _: int) -> None:
            self._done = before + done
            if self._progress is not None:
                self._progress(self._done, self._total)

        return watch
