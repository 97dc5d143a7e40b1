"""Falkon: a Gaussian-kernel ridge classifier on all rows or on Nystrom centres.

It gives one score a class, +1 towards the class and -1 away from it, dimensionless.

The model is that of Rudi, Carratino & Rosasco (2017), FALKON: An Optimal Large Scale Kernel
Method (NeurIPS 30, equations 5 and 6). The paper approaches its solution by preconditioned
conjugate gradients, for millions of rows; so does the solver ``iterative``. For the thousands of
windows a data set has as a rule, the solver ``direct`` computes the solution itself, by Cholesky
factorisation in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from toptune.errors import InputError
from toptune.heads.base import is_list, listed
from toptune.heads.falkon.arrays import NUMPY
from toptune.heads.falkon.folds import Folds, HeldOutScores
from toptune.heads.falkon.head import RULES
from toptune.heads.falkon.kernel import Centres, KernelSum
from toptune.heads.falkon.solvers import Problem, solver_of
from toptune.heads.falkon.targets import (
    balance,
    balanced_targets,
    inverse_shares,
    one_hot,
    one_vs_rest,
)
from toptune.heads.rows import (
    Float64,
    Grouping,
    Ints,
    RowClassifier,
    cut,
    l2_normalise_views,
    seed_of,
    view_sizes_of,
)
from toptune.heads.streaming import StreamedRows, is_streamed

# Rows scored at a time, which bounds the memory of their kernel with the centres.
_SCORED_ROWS = 1024

# A row that hits its targets, 1 for its class and -1 for the others, gets 0.98 of two classes and
# 0.93 of five.
SHARPNESS = 2.0


class FalkonClassifier(RowClassifier):
    """Gaussian-kernel ridge regression on one-vs-rest targets, balanced or in {-1, 1}.

    With centres C (rows of the training data), ``Z = K(X, C)`` and ``B = K(C, C)``, it solves
    ``(Z'Z + ridge B) alpha = Z'Y``, where ridge is `penalty` x number of training rows; with all
    rows as centres that is ``(K + ridge I) alpha = Y``. The matrix is factored in float64. Where
    it is not positive definite in float64, a jitter is added to its diagonal: `jitter_` says how
    much, and `scipy.linalg.LinAlgWarning` is given.

    Parameters
    ----------
    width : float or tuple of float
        Standard deviation of the Gaussian, ``k(x, z) = exp(-|x - z|^2 / (2 width^2))``, in the
        units of the rows; one for all views, or one a view. The default is a fixed number, since a
        width learnt from the data would be learnt from the held-out devices too. Rows of unit
        length lie 0 to 1.41 apart if no feature is negative, as pooled ReLU outputs; 0.5 is the
        root of the median squared distance (0.28) of 1666 windows of 30 real cultures under
        MobileNetV2, and their accuracy changes by less than 0.02 from half to twice that width.
    penalty : float
        Ridge per training row.
    n_centres : int or None
        How many rows, drawn without replacement, serve as Nystrom centres; None: all of them, which
        needs rows^2 x 8 bytes (0.2 GB for 5,000 rows, 1.8 GB for 15,000). With fewer rows than
        `n_centres`, all of them.
    normalise : bool
        Divide each row's part in each view by its own length first; zeros stay zero.
    view_sizes : tuple of int or None
        Columns of each of several views (feature sets side by side), which have a kernel each;
        the kernel is their weighted sum. None: all columns are one view.
    view_weights : tuple of float or None
        Of each view's kernel: 0 or above, adding up to 1. A view of weight 0 has no say. None:
        all equal.
    scales : tuple of float
        A view's kernel is the mean of the Gaussians of so many times its width. One, 1, is a plain
        Gaussian; `toptune fit` takes 1 and 2 (`falkon.head.SCALES`).
    solver : str
        ``direct``; ``iterative``, conjugate gradients for very many rows (`falkon.iterative`); or
        ``falkon``, the library of that name, where it is installed (docs/falkon.md). The latter two
        need `n_centres`.
    device : str
        ``cpu``, or ``cuda``, where the kernel, the factorisations and the folds are then computed.
        A fitted classifier scores new rows on the CPU.
    precision : str
        ``float64``, or ``float32`` where the solver is not ``direct``.
    tolerance : float or None
        At which relative residual iterating ends; None: 1e-8 in float64, 1e-4 in float32.
    max_iterations : int
        If these do not suffice, that is an error. (The falkon library goes no further and does not
        say so.)
    random_state : int, numpy Generator, RandomState or None
        Draws the centres; without meaning where all rows are centres.
    balanced : bool
        Whether all classes weigh the same, however many rows they have (`falkon.targets`); else
        targets are 1 and -1, as in the paper.

    Attributes
    ----------
    classes_ : (k,) array
    n_features_in_ : int
    centres_ : (m, d) float
        Normalised, in the type of the training rows.
    dual_coef_ : (m, k) float64
        alpha.
    jitter_ : float
        0 unless rounding made the matrix indefinite.
    n_iter_ : int
        0 of a direct solve.
    """

    _head = "falkon"
    _rules = RULES
    _tensors = ("centres", "dual_coef")
    _sharpness = SHARPNESS
    _streams = True

    def __init__(
        self,
        width: float | tuple[float, ...] = 0.5,
        penalty: float = 1e-5,
        n_centres: int | None = None,
        normalise: bool = True,
        view_sizes: tuple[int, ...] | None = None,
        view_weights: tuple[float, ...] | None = None,
        solver: str = "direct",
        device: str = "cpu",
        precision: str = "float64",
        tolerance: float | None = None,
        max_iterations: int = 500,
        random_state: Any = 0,
        balanced: bool = True,
        scales: tuple[float, ...] = (1.0,),
    ) -> None:
        self.width = width
        self.penalty = penalty
        self.n_centres = n_centres
        self.normalise = normalise
        self.view_sizes = view_sizes
        self.view_weights = view_weights
        self.solver = solver
        self.device = device
        self.precision = precision
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.random_state = random_state
        self.balanced = balanced
        self.scales = scales

    def _train(self, X: NDArray[Any], codes: Ints) -> None:
        problem = self._problem(X)
        solution = solver_of(self).solve(problem, self._targets(codes))
        chosen = slice(None) if problem.centre_rows is None else problem.centre_rows
        self.centres_ = problem.X[chosen]
        self.dual_coef_ = solution.dual_coef
        self.jitter_ = solution.jitter
        self.n_iter_ = solution.n_iterations

    def _targets(self, codes: Ints) -> Float64:
        make = balanced_targets if self.balanced else one_vs_rest
        return make(codes, len(self.classes_))

    def problem(self, X: Any, y: Any) -> Problem:
        """Check everything as `fit` does, and say what there is to solve but for the targets."""
        return self._problem(self.check(X, y)[0])

    def _problem(self, X: Any) -> Problem:
        kernel = self.kernel(X.shape[1])
        centres = self._draw_centres(len(X))
        if is_streamed(X):
            X = self._held(X, centres)
        rows = self._rows(X, kernel)
        return Problem(rows, centres, kernel, self.penalty * len(X))

    def kernel(self, n_features: int) -> KernelSum:
        """Give the kernel of rows of so many columns; see `kernel_of`."""
        scales = tuple(map(float, listed(self.scales)))
        return replace(kernel_of(self, n_features), scales=scales)

    def _check_together(self, n_features: int) -> None:
        self.kernel(n_features)
        solver_of(self)

    def _held(self, X: StreamedRows, centres: Ints | None) -> Any:
        """Leave rows where they are, as far as the solver looks at blocks of them only."""
        if self.solver == "falkon":
            raise InputError(
                f"{type(self).__name__}: the solver 'falkon' needs all rows in memory, and these"
                ' are streamed; take `solver="direct"` or `solver="iterative"`'
            )
        # The kernel of all rows takes more than the rows do.
        return X[:] if centres is None else X

    def _rows(self, X: Any, kernel: KernelSum) -> Any:
        if not self.normalise:
            return X
        normalise = partial(l2_normalise_views, view_sizes=kernel.view_sizes)
        return X.mapped(normalise) if is_streamed(X) else normalise(X)

    def _draw_centres(self, n_rows: int) -> Ints | None:
        if self.n_centres is None or self.n_centres >= n_rows:
            return None
        rng = np.random.default_rng(seed_of(self.random_state))
        return np.sort(rng.choice(n_rows, self.n_centres, replace=False)).astype(np.int64)

    def fold_factors(self, X: Any, y: Any, grouping: Grouping) -> Folds:
        """Factor the folds that leave out each group, ready for any number of targets.

        In closed form by the solver ``direct``; the others fit each fold when it is asked for its
        scores. The ridge is `penalty` x rows of X in every fold. The centres are drawn from all
        of X; a fold does without those of its group.
        """
        X, _, _ = self.check(X, y)
        return solver_of(self).folds(self._problem(X), grouping)

    def held_out(self, X: Any, y: Any, grouping: Grouping) -> HeldOutScores:
        """Score every row by the model without the row's group: (n, k), classes sorted."""
        folds = self.fold_factors(X, y, grouping)
        classes, codes = np.unique(y, return_inverse=True)
        if not self.balanced:
            return folds.held_out_scores(one_vs_rest(codes, len(classes)))
        columns = one_hot(codes, len(classes))
        found = folds.held_out_scores(columns)
        of_groups = np.zeros((len(grouping.groups), len(classes)))
        np.add.at(of_groups, grouping.codes, columns)
        inverse = inverse_shares(columns.sum(axis=0) - of_groups)
        return found._replace(scores=balance(found.scores, inverse[grouping.codes]))

    def scorer(self) -> Callable[[Any], Float64]:
        """Make what gives `class_scores` of few rows at a time, prepared once."""
        check_is_fitted(self)
        centres = self._ready_centres()
        return lambda X: self._scores_with(centres, self._validated(X, reset=False))

    def _ready_centres(self) -> Centres:
        return Centres(self.kernel(self.n_features_in_), self.centres_)

    def _scores(self, X: NDArray[Any]) -> Float64:
        return self._scores_with(self._ready_centres(), X)

    def _scores_with(self, centres: Centres, X: NDArray[Any]) -> Float64:
        kernel = self.kernel(X.shape[1])
        scores = np.empty((len(X), len(self.classes_)))
        for part in cut(len(X), _SCORED_ROWS):
            rows = self._rows(X[part], kernel)
            scores[part] = NUMPY.product(centres.kernel_of(rows), self.dual_coef_)
        return scores

    def decision_function(self, X: Any) -> Float64:
        """Scores as scikit-learn shapes them: (n, k), or (n,) of the second of two classes."""
        scores = self.class_scores(X)
        return scores[:, 1] if len(self.classes_) == 2 else scores

    def _learnt(self) -> tuple[NDArray[Any], ...]:
        return self.centres_, self.dual_coef_

    def _restore(self, *learnt: NDArray[Any]) -> int:
        centres, dual_coef = learnt
        if centres.ndim != 2 or dual_coef.shape != (len(centres), len(self.classes_)):
            raise InputError(
                f"the model does not fit together: centres {centres.shape}, coefficients "
                f"{dual_coef.shape}, {len(self.classes_)} classes"
            )
        self.centres_ = centres
        self.dual_coef_ = np.ascontiguousarray(dual_coef, dtype=np.float64)
        self.jitter_ = 0.0
        self.n_iter_ = 0
        return int(centres.shape[1])


def kernel_of(classifier: Any, n_features: int) -> KernelSum:
    """Kernel of a classifier's rows, by its `width`, `view_sizes` and `view_weights`.

    Raises `InputError`: widths or weights that are not one for each view.
    """
    sizes = view_sizes_of(classifier, n_features)
    n_views = len(sizes)
    width, given = classifier.width, classifier.view_weights
    widths = listed(width) if is_list(width) else [width] * n_views
    weights = [1 / n_views] * n_views if given is None else listed(given)
    for name, values in (("width", widths), ("view_weights", weights)):
        if len(values) != n_views:
            raise InputError(
                f"{type(classifier).__name__}.{name} must have one value a view ({n_views} of"
                f" view_sizes), got {getattr(classifier, name)!r}"
            )
    return KernelSum(tuple(map(float, widths)), tuple(map(float, weights)), sizes)
