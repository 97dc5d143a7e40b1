"""What Falkon's kernel ridge regression is fitted to, and how its classes are made to weigh alike.

Plain targets are 1 for a row's own class and -1 for the others. Balanced targets are, for a class
that holds the share p of the training rows, ``2 / K x (1 / p - 1)`` for its own rows and ``-2 / K``
for the others, with K classes. Each column of them sums to 0 over the training rows: a class that
is rare has no lower scores for that. Where all classes hold equal shares, both kinds have the same
distance between a row's own class and the others.

Leaving a device out makes its class rarer among the rest than it is. Plain targets then pull the
verdict on the device away from the truth, the more so the fewer devices and the larger the penalty.

Balanced scores follow from scores f of the columns (1 for the rows of class k, else 0)::

    score_k = 2 / K x (f_k / p_k - sum over classes j of f_j)

since the regression is linear in its targets. So folds and permutations, whose shares all differ,
need no other columns. A class without training rows has targets -2 / K everywhere, which is the
same with ``f_k / p_k = 0``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from toptune.heads.rows import Float64, Ints


def one_vs_rest(codes: Ints, n_classes: int) -> Float64:
    """Plain targets (n, k) float64: 1 for a row's own class, -1 for the others."""
    targets: Float64 = np.where(codes[:, None] == np.arange(n_classes), 1.0, -1.0)
    return targets


def one_hot(codes: Ints, n_classes: int) -> Float64:
    """Columns (n, k) float64: 1 for the rows of a class, 0 for the others."""
    columns: Float64 = (codes[:, None] == np.arange(n_classes)).astype(np.float64)
    return columns


def balanced_targets(codes: Ints, n_classes: int) -> Float64:
    """Balanced targets (n, k) float64 of training rows."""
    columns = one_hot(codes, n_classes)
    targets: Float64 = balance(columns, inverse_shares(columns.sum(axis=0)))
    return targets


def inverse_shares(counts: NDArray[np.floating[Any]], axis: int = -1) -> Float64:
    """Give 1 / p of classes with so many training rows, classes along `axis`; 0 for none."""
    n = counts.sum(axis=axis, keepdims=True)
    found = np.zeros(counts.shape)
    np.divide(n, counts, out=found, where=counts > 0)
    return found


def balance(scores: Any, inverse: Any, axis: int = -1) -> Any:
    """Turn scores of one-hot columns into balanced ones, classes along `axis`; a new array.

    `inverse` is that of `inverse_shares`, of the same shape or one that broadcasts to it; both are
    arrays of NumPy or torch.
    """
    total = scores.sum(axis)
    total = total[..., None] if axis == -1 else total[None]
    return (scores * inverse - total) * (2 / scores.shape[axis])
