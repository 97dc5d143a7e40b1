"""Leave-one-group-out whose parameters are chosen inside each fold's training groups.

What enters: candidates, rows of features, targets and groups. What leaves: held-out scores of every
row, by a model that neither learnt nor tuned anything on the row's group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class NestedScores:
    """Leave-one-group-out with the candidate of every fold chosen inside its training groups.

    Attributes
    ----------
    loss : (p, g) float64
        Mean loss of each candidate over the inner folds of each outer fold, whose own group takes
        no part; smaller is better.
    final_loss : (p,) float64
        Loss of each candidate over all groups' leave-one-group-out, which chooses the model of all
        devices.
    choice : (g,) int64
        Candidate chosen in each outer fold; of equals the first.
    final_choice : int
    scores : (n, k) float64
        Held-out scores of every row, by the candidate its fold chose.
    inner_scores : (g, n, k) float32
        Of fold g's candidate: scores of row i by the model without g and without i's own group;
        NaN in rows of g.
    final_scores : (n, k) float64
        Leave-one-group-out scores of the final candidate, for calibrating the model of all devices.
    jitter : (g,) float64
        What had to be added to a diagonal in each outer fold; 0 as a rule.
    """

    loss: NDArray[np.float64]
    final_loss: NDArray[np.float64]
    choice: NDArray[np.int64]
    final_choice: int
    scores: NDArray[np.float64]
    inner_scores: NDArray[np.float32]
    final_scores: NDArray[np.float64]
    jitter: NDArray[np.float64]
