"""Rows of features by group, view and class, and what the classifiers of such rows share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from toptune.errors import InputError
from toptune.heads.base import Rule, is_count, listed
from toptune.heads.streaming import StreamedRows, is_streamed
from toptune.machine.installation import require_networks
from toptune.machine.threads import one_blas_thread

Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]

# Rows that are judged together: few, since a single one costs as much, and enough for BLAS.
_JUDGED_ROWS = 8


class Grouping(NamedTuple):
    """Rows brought together by group."""

    groups: NDArray[Any]  # (g,): the distinct groups, sorted
    codes: Ints  # (n,): which of them each row belongs to
    order: Ints  # (n,): rows sorted by group, otherwise as they came
    bounds: Ints  # (g + 1,): group i holds ``order[bounds[i]:bounds[i + 1]]``

    def rows(self, group: int) -> Ints:
        """Rows of a group, by its code."""
        return self.order[self.bounds[group] : self.bounds[group + 1]]

    def part(self, group: int) -> slice:
        """Where a group's rows lie once rows are sorted by group."""
        return slice(int(self.bounds[group]), int(self.bounds[group + 1]))

    def restore(self, values: Float64) -> Float64:
        """Bring rows that are sorted by group back into their own order."""
        restored = np.empty_like(values)
        restored[self.order] = values
        return restored


def group_rows(groups: NDArray[Any]) -> Grouping:
    """Sort rows by group."""
    names, codes = np.unique(groups, return_inverse=True)
    codes = codes.astype(np.int64)
    order = np.argsort(codes, kind="stable").astype(np.int64)
    bounds = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(names)))])
    return Grouping(names, codes, order, bounds.astype(np.int64))


class LabelledRows(NamedTuple):
    """Rows of features, and who each belongs to."""

    X: NDArray[np.floating[Any]]  # (n, d) float32 or float64; or streamed
    y: NDArray[Any]  # (n,) labels
    grouping: Grouping  # what is left out together
    # (n,): what carries one label and counts once: a device and label, numbered from 0; each lies
    # in one group
    unit: Ints

    def labellings(self, shuffled: Ints | None = None) -> tuple[NDArray[Any], Ints]:
        """Find the classes, and number the class of each unit: as observed, then as shuffled.

        Returns the classes, (k,) sorted, and labels, (1 + r, u) for shuffled (r, u).
        """
        classes, codes = np.unique(self.y, return_inverse=True)
        observed = np.empty((1, int(self.unit.max()) + 1), np.int64)
        observed[0, self.unit] = codes
        return classes, observed if shuffled is None else np.concatenate([observed, shuffled])


def cut(n: int, together: int) -> Iterator[slice]:
    """Cut n things into as many together, one at least."""
    together = max(1, together)
    for start in range(0, n, together):
        yield slice(start, min(start + together, n))


def view_sizes_of(estimator: Any, n_features: int) -> tuple[int, ...]:
    """Columns of each of the classifier's views; one view of all columns where it names none.

    Raises `InputError`: not whole numbers from 1, or not adding up to the number of features.
    """
    if estimator.view_sizes is None:
        return (n_features,)
    name = f"{type(estimator).__name__}.view_sizes"
    sizes = listed(estimator.view_sizes)
    if not sizes or any(not is_count(size) for size in sizes):
        raise InputError(f"{name} must be whole numbers from 1, got {estimator.view_sizes!r}")
    if sum(sizes) != n_features:
        raise InputError(
            f"{name} adds up to {sum(sizes)}, but the rows have {n_features} features: "
            f"{estimator.view_sizes!r}"
        )
    return tuple(int(size) for size in sizes)


def check_device(estimator: Any) -> None:
    """Refuse a `device` that torch does not know, or does not find here."""
    name = f"{type(estimator).__name__}.device"
    if estimator.device == "cpu":
        return
    require_networks(f"{name}={estimator.device!r}")
    import torch

    try:
        device = torch.device(estimator.device)
    except (RuntimeError, TypeError):
        raise InputError(f"{name} must be cpu or cuda, got {estimator.device!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"{name} must be cpu or cuda, got {estimator.device!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"{name} is {estimator.device!r}, but torch finds no such device; use cpu")


def encode_classes(estimator: object, y: NDArray[Any]) -> tuple[NDArray[Any], Ints]:
    """Find the distinct classes, sorted, and the number of each row's class; at least two."""
    classes, codes = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise InputError(
            f"{type(estimator).__name__} needs at least two classes to tell apart, got one class: "
            f"{classes[0]!r}"
        )
    return classes, codes.astype(np.int64)


def seed_of(random_state: Any) -> int:
    """Make a seed below 2**32 of what scikit-learn calls a random state.

    An int is the seed itself; None draws a fresh one from the operating system; a generator gives
    its next number. NumPy's and torch's global generators are neither read nor changed.
    """
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**32, dtype=np.uint64))
    if isinstance(random_state, int | np.integer) and random_state < 0:
        raise InputError(f"random_state must be 0 or above, got {random_state!r}")
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(np.random.default_rng(random_state).integers(2**32))


def l2_normalise(X: NDArray[Any]) -> NDArray[Any]:
    """Divide each row of (n, d) by its Euclidean length, in its own type; zeros stay zero."""
    # By the largest value first, so that no square overflows or vanishes.
    largest = np.abs(X).max(axis=1, keepdims=True, initial=0)
    scaled: NDArray[Any] = X / np.where(largest > 0, largest, 1)
    length = np.sqrt(np.einsum("ij,ij->i", scaled, scaled))[:, None]
    scaled /= np.where(length > 0, length, 1)
    return scaled


def l2_normalise_views(X: NDArray[Any], view_sizes: Sequence[int] | None = None) -> NDArray[Any]:
    """Do the same with each row's part in each view, which has so many columns; None: one view."""
    if view_sizes is None or len(view_sizes) == 1:
        return l2_normalise(X)
    rows = np.empty_like(X)
    for columns in view_columns(view_sizes):
        rows[:, columns] = l2_normalise(X[:, columns])
    return rows


def view_columns(view_sizes: Sequence[int]) -> tuple[slice, ...]:
    """Columns of each view, given how many each has."""
    stops = np.cumsum(view_sizes).tolist()
    return tuple(slice(stop - size, stop) for size, stop in zip(view_sizes, stops, strict=True))


class RowClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """What the scikit-learn classifiers of toptune's heads share.

    Their fitted attributes are ``classes_``, (k,) sorted, ``n_features_in_``, and those that the
    tensors of a model hold.
    """

    _head: str  # name of the head, for messages
    _rules: Mapping[str, Rule]
    _tensors: tuple[str, ...]  # names of what is learnt
    _allow_nan = False
    _streams = False  # whether rows may be `StreamedRows`
    # Probabilities are the softmax of sharpness x scores.
    _sharpness = 1.0

    def fit(self, X: Any, y: Any) -> Self:
        """Train.

        Parameters
        ----------
        X : (n, d) float32 or float64
            NaN where a value is not defined, for classifiers that take it.
        y : (n,) labels

        Raises
        ------
        InputError
            A parameter out of range, or fewer than two classes.
        """
        X, self.classes_, codes = self.check(X, y)
        self._train(X, codes)
        return self

    def _train(self, X: NDArray[Any], codes: Ints) -> None:
        """Learn from rows (n, d) and the numbers of their classes, all checked."""
        raise NotImplementedError

    def check(self, X: Any, y: Any) -> tuple[NDArray[Any], NDArray[Any], Ints]:
        """Check parameters, rows and labels, as `fit` does.

        Returns X, (n, d) float32 or float64; the classes, (k,) sorted; and the number of each row's
        class, (n,).
        """
        X, y = self._validated(X, y)
        for name, rule in self._rules.items():
            rule(f"{type(self).__name__}.{name}", getattr(self, name))
        self._check_together(X.shape[1])
        check_classification_targets(y)
        classes, codes = encode_classes(self, y)
        return X, classes, codes

    def _check_together(self, n_features: int) -> None:
        """Refuse parameters that do not go with each other, the rows or the machine."""

    def _validated(self, X: Any, *y: Any, **options: bool) -> Any:
        if is_streamed(X):
            return self._of_streamed(X, *y, **options)
        nan = "allow-nan" if self._allow_nan else True
        types = [np.float64, np.float32]
        return validate_data(self, X, *y, dtype=types, ensure_all_finite=nan, **options)

    def _of_streamed(self, X: StreamedRows, *y: Any, reset: bool = True) -> Any:
        """Look at rows that are not in memory; whoever made them has looked at their values."""
        name = type(self).__name__
        if not self._streams:
            raise InputError(f"{name} needs all its rows in memory, and these are streamed")
        if reset:
            self.n_features_in_ = X.shape[1]
        elif X.shape[1] != self.n_features_in_:
            raise ValueError(f"{name} learnt of {self.n_features_in_} features, got {X.shape[1]}")
        if not y:
            return X
        labels = column_or_1d(y[0])
        check_consistent_length(X, labels)
        return X, labels

    def class_scores(self, X: Any) -> Float64:
        """One score a class, (n, k) float64, whatever the number of classes."""
        check_is_fitted(self)
        return self._scores(self._validated(X, reset=False))

    def _scores(self, X: NDArray[Any]) -> Float64:
        """Score rows (n, d) that are checked."""
        raise NotImplementedError

    def predict(self, X: Any) -> NDArray[Any]:
        """Name the class with the largest score, (n,)."""
        best = self.class_scores(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def predict_proba(self, X: Any) -> Float64:
        """Scores made to sum to one, (n, k) float64; see `probabilities_of`."""
        return self.probabilities_of(self.class_scores(X))

    @classmethod
    def probabilities_of(cls, scores: Float64) -> Float64:
        """Softmax over classes, (n, k) float64, of the scores times a fixed factor.

        The order of the scores is kept, but the values are not calibrated: rows with 0.9 need not
        be right nine times in ten.
        """
        probabilities: Float64 = softmax(cls._sharpness * scores, axis=1)
        return probabilities

    def __sklearn_tags__(self) -> Any:
        """Tell scikit-learn whether NaN is welcome."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._allow_nan
        return tags

    def to_tensors(self) -> dict[str, NDArray[Any]]:
        """Give what was learnt, for a file without pickle; `from_tensors` is the way back."""
        check_is_fitted(self)
        return dict(zip(self._tensors, self._learnt(), strict=True))

    def _learnt(self) -> Iterable[NDArray[Any]]:
        """Give the arrays that `_tensors` names."""
        raise NotImplementedError

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, NDArray[Any]], params: dict[str, Any], classes: NDArray[Any]
    ) -> Self:
        """Build the fitted classifier that `to_tensors` was called on.

        Parameters
        ----------
        tensors : dict of str to array
        params : dict
            Of the constructor, as they are or as JSON gives them back.
        classes : (k,) array

        Raises
        ------
        InputError
            Where the tensors are not those of this classifier, or do not fit together.
        """
        missing = [name for name in cls._tensors if name not in tensors]
        if missing:
            raise InputError(
                f"this is no model of the classifier {cls._head}: it has no {missing[0]!r}"
            )
        # JSON has lists only.
        made = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in params.items()})
        made.classes_ = classes
        made.n_features_in_ = made._restore(*(tensors[name] for name in cls._tensors))
        return made

    def _restore(self, *learnt: NDArray[Any]) -> int:
        """Take back what `_learnt` gave, and tell the number of features."""
        raise NotImplementedError


def check_shapes(parts: Mapping[str, NDArray[Any]], shapes: Iterable[tuple[int, ...]]) -> None:
    """Refuse a model's arrays that are not of the shapes expected."""
    for (name, part), shape in zip(parts.items(), shapes, strict=True):
        if part.shape != shape:
            raise InputError(f"the model's {name} is {part.shape}, expected {shape}")


def in_equal_blocks(
    judge: Callable[[NDArray[np.float32]], NDArray[np.float64]], rows: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Judge rows, (n, d), a few at a time, always equally many.

    Products of matrices are rounded by their sizes, and by the threads that share them. So a row's
    last digits would depend on how many others there are, and a window that is judged alone would
    differ from the same among others.
    """
    parts = []
    with one_blas_thread():
        for first in range(0, len(rows), _JUDGED_ROWS):
            block = rows[first : first + _JUDGED_ROWS]
            n = len(block)
            filled = np.concatenate([block, np.repeat(block[:1], _JUDGED_ROWS - n, axis=0)])
            parts.append(judge(filled)[:n])
    return np.concatenate(parts) if parts else judge(rows)
