"""Columns brought to mean 0 and standard deviation 1, by what training rows say of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.heads.rows import Float64


class Standardiser(NamedTuple):
    """Fills in what is not defined, and brings columns to mean 0 and SD 1."""

    fill: Float64  # (d,): medians of the training rows; 0 of a column that none of them has
    # (d,): of the filled training rows; scale is their SD, or `even` where they do not differ
    mean: Float64
    scale: Float64

    @classmethod
    def of(cls, X: NDArray[np.floating[Any]], even: float = 1.0) -> Standardiser:
        """Learn from training rows, (n, d).

        `even` is the scale of columns whose values do not differ; infinity makes them 0 for any
        row.
        """
        known = ~np.isnan(X).all(axis=0)
        fill = np.zeros(X.shape[1])
        fill[known] = np.nanmedian(X[:, known].astype(np.float64), axis=0)
        filled = np.where(np.isnan(X), fill, X.astype(np.float64))
        scale = filled.std(axis=0)
        # Equal values have an SD that differs from 0 by rounding.
        are_even = scale <= 1e-12 * np.abs(filled).max(axis=0, initial=0)
        return cls(fill, filled.mean(axis=0), np.where(are_even, even, scale))

    def apply(self, X: NDArray[np.floating[Any]]) -> Float64:
        """Give rows, (n, d), filled and standardised."""
        filled = np.where(np.isnan(X), self.fill, X.astype(np.float64))
        return (filled - self.mean) / self.scale
