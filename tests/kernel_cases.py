"""Kernel ridge regression as it is defined, fold by fold, and cases for closed forms."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from toptune.heads.falkon.kernel import KernelSum

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


def naive_kernel(P: Array, Q: Array, kernel: KernelSum) -> Array:
    """Sum over views, written out; a view of weight 0 takes part here."""
    total, start = np.zeros((len(P), len(Q))), 0
    for width, weight, size in zip(kernel.widths, kernel.weights, kernel.view_sizes, strict=True):
        part = slice(start, start + size)
        distance = ((P[:, None, part] - Q[None, :, part]) ** 2).sum(axis=2)
        total += weight * np.exp(-distance / (2 * width**2))
        start += size
    return total


def refit(
    X: Array, Y: Array, groups: Ints, centres: Ints | None, kernel: KernelSum, ridge: float
) -> Array:
    """Each fold by itself, as the least-squares problem |Z a - Y|^2 + ridge a' B a."""
    scores = np.empty_like(Y)
    for group in np.unique(groups):
        train, test = np.flatnonzero(groups != group), np.flatnonzero(groups == group)
        if centres is None:
            K = naive_kernel(X[train], X[train], kernel) + ridge * np.eye(len(train))
            alpha = np.linalg.solve(K, Y[train])
            scores[test] = naive_kernel(X[test], X[train], kernel) @ alpha
            continue
        C = X[centres[groups[centres] != group]]
        root = np.linalg.cholesky(naive_kernel(C, C, kernel)).T
        system = np.concatenate([naive_kernel(X[train], C, kernel), np.sqrt(ridge) * root])
        right = np.concatenate([Y[train], np.zeros((len(C), Y.shape[1]))])
        scores[test] = naive_kernel(X[test], C, kernel) @ np.linalg.lstsq(system, right)[0]
    return scores


class Case:
    """Unequal groups in mixed order, one to three views of which one may weigh nothing."""

    def __init__(self, draw: st.DrawFn) -> None:
        group_sizes = draw(st.lists(st.integers(1, 9), min_size=2, max_size=6))
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        self.groups = self.rng.permutation(np.repeat(np.arange(len(group_sizes)), group_sizes))
        sizes = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
        weights = self.rng.random(len(sizes)) + 0.1
        if len(sizes) > 1 and draw(st.booleans()):
            weights[self.rng.integers(len(sizes))] = 0
        widths = self.rng.choice([0.5, 1.0, 2.0], len(sizes))
        self.kernel = KernelSum(
            tuple(widths.tolist()), tuple((weights / weights.sum()).tolist()), sizes
        )
        n = len(self.groups)
        self.X: Array = 3 * self.rng.standard_normal((n, sum(sizes)))
        self.Y: Array = self.rng.choice([-1.0, 1.0], size=(n, draw(st.integers(1, 4))))


cases = st.composite(Case)()
