"""Folds of the ridge regression on recordings, in closed form from one inverse.

With S the recordings of the groups left out, C the kernel of windows with recordings, and
``Q = (G + ridge I)^-1``, the coefficients of the model without S are, for one-hot columns Y of the
recordings::

    alpha = Q Y - Q_:S (Q_SS)^-1 (Q Y)_S        (0 in S)

the inverse of a principal block by the inverse of the whole matrix (Boyd & Vandenberghe 2004,
Convex Optimization, appendix A.5.5); windows of S score ``C alpha``. Which windows of a recording
are learnt from does not depend on the others, so that G without S is a block of G.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.base import clone

from toptune.heads.base import Candidate, Progress
from toptune.heads.falkon.classifier import SHARPNESS, kernel_of
from toptune.heads.nested import HeldOut, NestedScores, Shuffled, check_tuning, handicaps
from toptune.heads.recordings.classifier import RecordingsClassifier, ridge_inverse, spectrum
from toptune.heads.recordings.head import RECOMMENDED
from toptune.heads.recordings.kernel_means import Bags, mean_of_rows, rows_to_learn_from
from toptune.heads.rows import Float64, Ints, LabelledRows, l2_normalise_views
from toptune.heads.unit_maps import Groups, Units, held_out_scores, tune_units


class RecordingsModel:
    """A ridge regression on recordings, as `unit_maps.UnitModel`."""

    def __init__(self, units: Units, kernel: Float64, means: Float64, inverse: Float64) -> None:
        # Of windows with recordings, (n, u), and of all of a recording's windows, (u, u)
        self._units, self._kernel = units, kernel
        self._inverse = inverse  # Q
        self._maps = means @ inverse

    def unit_maps(self, left_out: Groups) -> Float64:
        """See `UnitModel`."""
        S = self._units.of_groups(left_out)
        Q = self._inverse[S]
        maps: Float64 = self._maps[S] - self._maps[np.ix_(S, S)] @ np.linalg.solve(Q[:, S], Q)
        # Exactly.
        maps[:, S] = 0
        return maps

    def row_scores(self, left_out: Groups, columns: Float64) -> Float64:
        """See `UnitModel`."""
        S = self._units.of_groups(left_out)
        alpha = self._inverse @ columns
        alpha -= self._inverse[:, S] @ np.linalg.solve(self._inverse[np.ix_(S, S)], alpha[S])
        alpha[S] = 0
        scores: Float64 = self._kernel[self._units.rows_of(left_out)] @ alpha
        return scores


def models_of(
    classifier: RecordingsClassifier, rows: LabelledRows, candidates: Sequence[Candidate]
) -> tuple[Units, list[RecordingsModel]]:
    """Make the model of each candidate ready for leaving out groups.

    Candidates with the same kernel share it. Raises `InputError`: a value out of range in any of
    them, before anything is computed.
    """
    tried = [clone(classifier).set_params(**candidate) for candidate in candidates]
    for one in tried:
        X, _, _ = one.check(rows.X, rows.y)
    kernels = list(dict.fromkeys(kernel_of(one, X.shape[1]) for one in tried))
    X = l2_normalise_views(X, kernels[0].view_sizes)
    n_recordings = int(rows.unit.max()) + 1
    units = Units.of(rows, np.ones(n_recordings, np.int64))
    learnt = rows_to_learn_from(rows.unit, classifier.windows_per_recording)
    bags = Bags(X[learnt], np.bincount(rows.unit[learnt]).astype(np.int64))
    with_recordings = bags.of_windows(X, kernels)
    spectra = [
        spectrum(mean_of_rows(values[learnt], rows.unit[learnt], n_recordings))
        for values in with_recordings
    ]
    means = [mean_of_rows(values, rows.unit, n_recordings) for values in with_recordings]
    models = []
    for one in tried:
        number = kernels.index(kernel_of(one, X.shape[1]))
        inverse = ridge_inverse(*spectra[number], one.ridge)
        models.append(RecordingsModel(units, with_recordings[number], means[number], inverse))
    return units, models


def tune_recordings(
    classifier: RecordingsClassifier,
    rows: LabelledRows,
    candidates: Sequence[Candidate],
    *,
    shuffled: Ints | None = None,
    progress: Progress | None = None,
) -> tuple[NestedScores, Shuffled]:
    """Leave each group out once, with the candidate chosen among the other groups.

    Another than the recommended one is chosen only where its loss is smaller by its handicap. Takes
    and gives what `Head.nested` does. Raises `InputError`: fewer than three groups, no candidate,
    or one that the classifier cannot take.
    """
    check_tuning(len(rows.grouping.groups), candidates)
    units, models = models_of(classifier, rows, candidates)
    classes, labels = rows.labellings(shuffled)
    handicap = handicaps([one == RECOMMENDED for one in candidates], len(units.group))
    return tune_units(models, units, labels, len(classes), SHARPNESS, handicap, progress)


def held_out_recordings(classifier: RecordingsClassifier, rows: LabelledRows) -> HeldOut:
    """Score every row by the model without the row's group.

    Rows of a unit that have several labels are several recordings.
    """
    classes, codes = np.unique(rows.y, return_inverse=True)
    pairs, unit = np.unique(rows.unit * len(classes) + codes, return_inverse=True)
    rows = rows._replace(unit=unit.astype(np.int64))
    units, (model,) = models_of(classifier, rows, [{}])
    scores = held_out_scores(model, units, pairs % len(classes), len(classes))
    return HeldOut.by(classifier, rows.y, scores, np.zeros(units.n_groups))
