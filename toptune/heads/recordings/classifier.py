"""A ridge classifier on recordings, each of which is the set of its windows.

The model is kernel ridge regression with one row a recording, on the kernel between recordings of
`kernel_means`. It gives one score a class, dimensionless.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from toptune.errors import InputError
from toptune.heads.falkon.classifier import SHARPNESS, kernel_of
from toptune.heads.falkon.targets import balanced_targets
from toptune.heads.recordings.head import RULES
from toptune.heads.recordings.kernel_means import Bags, mean_of_rows, rows_to_learn_from
from toptune.heads.rows import Float64, RowClassifier, l2_normalise_views


class RecordingsClassifier(RowClassifier):
    """Kernel ridge regression with one row a recording, all classes weighing the same.

    The kernel between two recordings is the mean of the Gaussian kernel over all pairs of their
    windows, of several views their weighted sum. Rows of windows are divided by their length first,
    view by view. With G the kernel between the training recordings, it solves
    ``(G + ridge I) alpha = Y``, where Y are the balanced targets of `toptune.heads.falkon.targets`.

    The scores of a window are those of a recording of that window alone. A recording's scores are
    the mean of its windows' scores, since the kernel is a mean over them.

    Parameters
    ----------
    width : float or tuple of float
        Standard deviation of the Gaussian; one for all views, or one a view. Rows have length 1 and
        lie 0 to 1.41 apart if no feature is negative.
    ridge : float
        What is added to the diagonal of G, whose values are at most 1.
    windows_per_recording : int or None
        Of each recording at most so many windows are learnt from, evenly spread; None: all.
    view_sizes : tuple of int or None
        Columns of each of several views (feature sets side by side); None: all columns are one.
    view_weights : tuple of float or None
        Of each view's Gaussian: 0 or above, adding up to 1. None: all equal.

    Attributes
    ----------
    classes_ : (k,) array
    n_features_in_ : int
    windows_ : (m, d) float
        Normalised, one recording after the other.
    sizes_ : (u,) int64
        Windows of each recording.
    dual_coef_ : (u, k) float64
        alpha.
    """

    _head = "recordings"
    _rules = RULES
    _tensors = ("windows", "sizes", "dual_coef")
    _sharpness = SHARPNESS

    def __init__(
        self,
        width: float | tuple[float, ...] = 0.5,
        ridge: float = 0.01,
        windows_per_recording: int | None = None,
        view_sizes: tuple[int, ...] | None = None,
        view_weights: tuple[float, ...] | None = None,
    ) -> None:
        self.width = width
        self.ridge = ridge
        self.windows_per_recording = windows_per_recording
        self.view_sizes = view_sizes
        self.view_weights = view_weights

    def fit(self, X: Any, y: Any, unit: Any = None) -> Self:
        """Train.

        Parameters
        ----------
        X : (n, d) float32 or float64
            A row a window.
        y : (n,) labels
        unit : (n,) numbers or strings, optional
            Which recording each row belongs to; None: every row is a recording of its own.

        Raises
        ------
        InputError
            A parameter out of range, fewer than two classes, or a recording with several labels.
        """
        X, self.classes_, codes = self.check(X, y)
        recording = np.arange(len(X)) if unit is None else np.asarray(unit)
        if recording.shape != codes.shape:
            raise InputError(
                f"RecordingsClassifier.fit needs one unit a row, got {recording.shape} for"
                f" {len(X)} rows"
            )
        names, recording = np.unique(recording, return_inverse=True)
        of_recording = np.empty(len(names), np.int64)
        of_recording[recording] = codes
        several = np.flatnonzero(of_recording[recording] != codes)
        if len(several):
            raise InputError(f"recording {names[recording[several[0]]]} has several labels")
        n_recordings, kernel = len(names), kernel_of(self, X.shape[1])
        rows = rows_to_learn_from(recording, self.windows_per_recording)
        self.windows_ = l2_normalise_views(X[rows], kernel.view_sizes)
        self.sizes_ = np.bincount(recording[rows]).astype(np.int64)
        windows_with = Bags(self.windows_, self.sizes_).of_windows(self.windows_, [kernel])[0]
        gram = mean_of_rows(windows_with, recording[rows], n_recordings)
        targets = balanced_targets(of_recording, len(self.classes_))
        self.dual_coef_ = ridge_inverse(*spectrum(gram), self.ridge) @ targets
        return self

    def _check_together(self, n_features: int) -> None:
        kernel_of(self, n_features)

    def scorer(self) -> Callable[[Any], Float64]:
        """Make what gives `class_scores` of few rows at a time, prepared once."""
        check_is_fitted(self)
        kernel = kernel_of(self, self.n_features_in_)
        with_recordings = Bags(self.windows_, self.sizes_).ready(kernel)

        def scores(X: Any) -> Float64:
            rows = l2_normalise_views(self._validated(X, reset=False), kernel.view_sizes)
            found: Float64 = with_recordings(rows) @ self.dual_coef_
            return found

        return scores

    def _scores(self, X: NDArray[Any]) -> Float64:
        return self.scorer()(X)

    def _learnt(self) -> tuple[NDArray[Any], ...]:
        return self.windows_, self.sizes_, self.dual_coef_

    def _restore(self, *learnt: NDArray[Any]) -> int:
        windows, sizes, dual_coef = learnt
        fits = windows.ndim == 2 and dual_coef.shape == (len(sizes), len(self.classes_))
        if not fits or sizes.ndim != 1 or sizes.min(initial=1) < 1 or sizes.sum() != len(windows):
            raise InputError(
                f"the model does not fit together: windows {windows.shape} of {len(sizes)}"
                f" recordings, coefficients {dual_coef.shape}, {len(self.classes_)} classes"
            )
        self.windows_ = windows
        self.sizes_ = sizes.astype(np.int64)
        self.dual_coef_ = np.ascontiguousarray(dual_coef, dtype=np.float64)
        return int(windows.shape[1])


def spectrum(gram: Float64) -> tuple[Float64, Float64]:
    """Eigenvalues (u,) and eigenvectors (u, u) of a kernel between recordings."""
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    # Rounding may leave less than nothing.
    return values.clip(min=0), vectors


def ridge_inverse(values: Float64, vectors: Float64, ridge: float) -> Float64:
    """Compute ``(G + ridge I)^-1`` from the spectrum of G."""
    inverse: Float64 = (vectors / (values + ridge)) @ vectors.T
    return inverse
