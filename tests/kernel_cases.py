"""Kernel ridge regression as it is defined, fold by fold, and cases for closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st
from numpy.typing import NDArray

from toptune.heads.falkon.arrays import NUMPY, Arrays
from toptune.heads.falkon.kernel import KernelSum
from toptune.heads.falkon.torch_arrays import TorchArrays

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

# On torch's CPU device the code is the one that a GPU runs.
TORCH = TorchArrays("cpu")
LIBRARIES: tuple[Arrays, ...] = (NUMPY, TORCH)
BOTH = pytest.mark.parametrize("arrays", LIBRARIES, ids=("numpy", "torch"))


def naive_kernel(P: Array, Q: Array, kernel: KernelSum) -> Array:
    """Sum over views, written out; a view of weight 0 takes part here."""
    total, start = np.zeros((len(P), len(Q))), 0
    for width, weight, size in zip(kernel.widths, kernel.weights, kernel.view_sizes, strict=True):
        part = slice(start, start + size)
        distance = ((P[:, None, part] - Q[None, :, part]) ** 2).sum(axis=2)
        for scale in kernel.scales:
            total += weight / len(kernel.scales) * np.exp(-distance / (2 * (scale * width) ** 2))
        start += size
    return total


def scores_without(
    X: Array,
    Y: Array,
    groups: Ints,
    left_out: tuple[int, ...],
    centres: Ints | None,
    kernel: KernelSum,
    ridge: float,
) -> Array:
    """Score all rows by a model fitted without some groups.

    With centres it is the least-squares problem ``|Z a - Y|^2 + ridge a' B a``.
    """
    train = ~np.isin(groups, left_out)
    if centres is None:
        K = naive_kernel(X[train], X[train], kernel) + ridge * np.eye(train.sum())
        return np.asarray(naive_kernel(X, X[train], kernel) @ np.linalg.solve(K, Y[train]))
    C = X[centres[train[centres]]]
    values, vectors = np.linalg.eigh(naive_kernel(C, C, kernel))
    root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    system = np.concatenate([naive_kernel(X[train], C, kernel), np.sqrt(ridge) * root])
    right = np.concatenate([Y[train], np.zeros((len(C), Y.shape[1]))])
    return np.asarray(naive_kernel(X, C, kernel) @ np.linalg.lstsq(system, right)[0])


def refit(
    X: Array, Y: Array, groups: Ints, centres: Ints | None, kernel: KernelSum, ridge: float
) -> Array:
    """Score every row by a model fitted without the row's group, one fit after the other."""
    scores = np.empty_like(Y)
    for group in np.unique(groups).tolist():
        here = groups == group
        scores[here] = scores_without(X, Y, groups, (group,), centres, kernel, ridge)[here]
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
        scales = draw(st.sampled_from([(1.0,), (1.0, 2.0), (0.5, 1.0, 3.0)]))
        self.kernel = KernelSum(
            tuple(widths.tolist()), tuple((weights / weights.sum()).tolist()), sizes, scales
        )
        n = len(self.groups)
        self.X: Array = 3 * self.rng.standard_normal((n, sum(sizes)))
        if draw(st.booleans()):
            self.X[self.rng.integers(n)] = self.X[self.rng.integers(n)]
        self.Y: Array = self.rng.choice([-1.0, 1.0], size=(n, draw(st.integers(1, 4))))

    def some_centres(self, n_groups: int) -> Ints:
        """Draw rows that are well apart and in more groups than a fold leaves out.

        Where centres nearly coincide, two ways of solving agree to fewer digits than eight.
        """
        n = len(self.X)
        centres = self.rng.permutation(n)[: self.rng.integers(2, n + 1)].astype(np.int64)
        assume(len(set(self.groups[centres])) > n_groups)
        C = self.X[centres]
        assume(np.linalg.cond(naive_kernel(C, C, self.kernel)) < 1e4)
        return centres


cases = st.composite(Case)()
