"""Conjugate gradients for several right-hand sides at once.

What enters: a symmetric positive definite operator and its right-hand sides, torch tensors on any
device. What leaves: the solutions, and how far they are from being one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

# A new beginning from the true residual that gains less than this has met the rounding.
_LEAST_GAIN = 0.5


class Iterated(NamedTuple):
    """What the iteration gives.

    Attributes
    ----------
    x : (m, k) tensor
    n_iterations : int
    residual : float
        The true one, relative, of the worst column; above the tolerance where the number of
        iterations or the rounding stood in the way.
    """

    x: torch.Tensor
    n_iterations: int
    residual: float


def conjugate_gradients(
    apply: Callable[[torch.Tensor], torch.Tensor],
    b: torch.Tensor,
    *,
    tolerance: float,
    max_iterations: int,
) -> Iterated:
    """Solve ``apply(x) = b`` for every column of b at once, each with steps of its own.

    The residual that is carried along drifts from the true one by rounding. So when the former
    says that all columns are done, the latter is computed, and the iteration begins anew from
    where it stands if it is not, as long as that gains something.

    Parameters
    ----------
    apply : callable
        A symmetric positive semidefinite operator on (m, k) tensors, column by column.
    b : (m, k) tensor
    tolerance : float
        Relative to the length of each column of b.
    max_iterations : int

    Returns
    -------
    Iterated
    """
    length = torch.linalg.vector_norm(b, dim=0)
    # A column of zeros is done at once.
    length = torch.where(length > 0, length, 1.0)
    x, r = torch.zeros_like(b), b.clone()
    n_iterations, residual = 0, float("inf")
    while True:
        p, square = r.clone(), r.square().sum(dim=0)
        # A column that is done stays as it is.
        active = square.sqrt() > tolerance * length
        while n_iterations < max_iterations and bool(active.any()):
            Ap = apply(p)
            step = torch.where(active, square / (p * Ap).sum(dim=0), 0.0)
            x += step * p
            r -= step * Ap
            before, square = square, r.square().sum(dim=0)
            p = r + torch.where(active, square / before, 0.0) * p
            active &= square.sqrt() > tolerance * length
            n_iterations += 1
        r = b - apply(x)
        before_anew, residual = residual, float((r.square().sum(dim=0).sqrt() / length).max())
        done = residual <= tolerance or n_iterations >= max_iterations
        if done or not residual < _LEAST_GAIN * before_anew:
            return Iterated(x, n_iterations, residual)
