"""What tuning minimises: how wrong a candidate is on devices that its model has not seen.

What enters: held-out scores of windows, their classes, and the unit (device and label) each belongs
to. What leaves: one number, smaller is better. All heads are tuned by this one function.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def selection_loss(
    scores: NDArray[np.floating[Any]], codes: NDArray[np.int64], unit: NDArray[np.int64]
) -> float:
    """Share of windows whose largest score is another class's, every unit counting once.

    Parameters
    ----------
    scores : (n, k) float
        Rows that hold NaN are left out.
    codes : (n,) int64
        Class of each row.
    unit : (n,) int64
        Device and label of each row, numbered.

    Returns
    -------
    float
        0 to 1; NaN where no row is left.
    """
    seen = ~np.isnan(scores[:, 0])
    wrong = scores[seen].argmax(axis=1) != codes[seen]
    sizes = np.bincount(unit[seen])
    if not sizes.any():
        return float("nan")
    errors = np.bincount(unit[seen], weights=wrong)
    return float(np.mean(errors[sizes > 0] / sizes[sizes > 0]))
