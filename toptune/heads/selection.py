"""The loss by which all classifiers are tuned; smaller is better.

It is the share of windows that another class outscores, plus half the surprise: the negative
logarithm of the probability given to a window's own class; each unit (device and label) counts
once. Errors are what is reported, but with a handful of devices two settings often make equally
many; surprise changes smoothly, but prefers models whose probabilities are all nearly equal. On 30
real cultures neither alone chose better throughout.

Probabilities are the softmax of the scores, times the factor that suits the candidate best
(`SHARPENINGS`). Without it, candidates with too small scores would be preferred to those with too
large ones, which calibration corrects. Windows of a unit overlap, by 96 % where 120 s are taken
every 5 s, so some of them, evenly spread, stand for all.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Windows of a unit that are looked at, at most. With 20 minutes a device they lie 80 s apart.
WINDOWS_A_UNIT = 16
# Weight of the surprise, in nats, beside the share of errors.
SURPRISE = 0.5
# Factors tried on the scores, each twice the one before: its exponentials are the other's squares.
SHARPENINGS = tuple(2.0**power for power in range(-3, 3))


def spread_rows(unit: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose the rows that stand for their units: at most `WINDOWS_A_UNIT` each, evenly spread.

    Parameters
    ----------
    unit : (n,) int64
        Numbered from 0.

    Returns
    -------
    (m,) int64
        Rows, ascending.
    """
    order = np.argsort(unit, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(unit))])
    chosen = [
        order[start + (np.arange(count) * (stop - start)) // count]
        for start, stop in pairwise(bounds)
        if (count := min(WINDOWS_A_UNIT, stop - start))
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def unit_weights(unit: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weight of each row so that every unit counts once and all weights add up to 1."""
    sizes = np.bincount(unit)
    weights: NDArray[np.float64] = 1 / (sizes[unit] * np.count_nonzero(sizes))
    return weights


def selection_loss(
    scores: NDArray[np.floating[Any]],
    codes: NDArray[np.int64],
    unit: NDArray[np.int64],
    sharpness: float = 1.0,
) -> float:
    """Share of errors plus `SURPRISE` x mean negative log-likelihood, every unit counting once.

    Parameters
    ----------
    scores : (n, k) float
        Rows that hold NaN are left out.
    codes : (n,) int64
        Class of each row.
    unit : (n,) int64
        Device and label of each row, numbered from 0.
    sharpness : float
        Probabilities are the softmax of factor x sharpness x scores, with the factor of
        `SHARPENINGS` that fits best; sharpness is 1 for logits.

    Returns
    -------
    float
        NaN where no row is left.
    """
    seen = np.flatnonzero(~np.isnan(scores[:, 0]))
    if not seen.size:
        return float("nan")
    rows = seen[spread_rows(unit[seen])]
    logits = sharpness * scores[rows].astype(np.float64).T
    losses = labelling_losses(logits[:, :, None], codes[rows][:, None], unit_weights(unit[rows]))
    return float(losses[0])


def labelling_losses(logits: Any, codes: Any, weights: Any, xp: Any = np) -> Any:
    """Compute the same loss of many labellings at once, in NumPy or in torch.

    Parameters
    ----------
    logits : (k, m, r) float
        Scores of m rows under r labellings, classes first: sums over classes then run along
        memory. Overwritten.
    codes : (m, r) int64
        Class of each row in each labelling.
    weights : (m,) float64
        From `unit_weights`.
    xp : module
        ``numpy`` or ``torch``, which all arrays are of.

    Returns
    -------
    (r,) float64
    """

    def mean(values: Any) -> Any:
        return weights @ xp.asarray(values, dtype=xp.float64)

    logits *= SHARPENINGS[0]
    # Below 0, no power of two overflows; and a window is right where its own class has the 0.
    logits -= xp.amax(logits, 0)
    take = np.take_along_axis if xp is np else xp.take_along_dim
    own = take(logits, codes[None], 0)[0]
    errors = mean(own < 0)
    powers = xp.exp(logits, out=logits)
    surprise = xp.full_like(errors, float("inf"))
    for _ in SHARPENINGS:
        surprise = xp.minimum(surprise, mean(xp.log(powers.sum(0)) - own))
        powers *= powers
        own *= 2
    return errors + SURPRISE * surprise
