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


class FoldShares:
    """Shares of the classes among the training rows of every fold, under some labellings.

    Parameters
    ----------
    n_rows : (u,)
        Training rows that each unit counts for.
    group : (u,) int64
        Group of each unit.
    labels : (r, u) int64
        Class of each unit under each labelling.
    n_classes : int
    """

    def __init__(self, n_rows: Ints, group: Ints, labels: Ints, n_classes: int) -> None:
        in_group = np.zeros((len(group), int(group.max()) + 1))
        in_group[np.arange(len(group)), group] = n_rows
        counts = np.stack([(labels == code) @ in_group for code in range(n_classes)])
        # (g, k, r): rows of each class in each group under each labelling
        self._counts = np.ascontiguousarray(counts.transpose(2, 0, 1))
        self._all = self._counts.sum(axis=0)

    def without(self, *groups: int) -> Float64:
        """Inverse shares, (k, r), in the fold that leaves out some groups."""
        return inverse_shares(self._all - self._counts[list(groups)].sum(axis=0), axis=0)

    def without_each(self) -> Float64:
        """Inverse shares, (k, g, r), in the fold that leaves out each group."""
        return self._inverse(self._all - self._counts)

    def without_each_and(self, group: int) -> Float64:
        """Inverse shares, (k, g, r), in the fold without a group and without each other one."""
        # A group is no inner fold of its own; what is given of it is of no use.
        return self._inverse((self._all - self._counts[group] - self._counts).clip(min=0))

    def _inverse(self, counts: Float64) -> Float64:
        return inverse_shares(counts, axis=1).transpose(1, 0, 2)
