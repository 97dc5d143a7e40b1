"""How well a classifier does on devices it has not seen.

Rows of features enter, with devices, labels and groups, and a head (`toptune.heads`) with what it
may choose from. Held-out scores and probabilities of every row leave, with what each fold chose, a
permutation test, and the scores that a run publishes.

`task` says who each row belongs to, `folds` leaves one group out, `evaluate` adds tuning,
calibration and permutations inside the folds and puts metrics.json together, `scores` judges
predictions, and `counting` says how many verdicts and devices were scored. Beside that, `effects`
says by which parameters classes differ, whatever a classifier makes of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toptune.machine.lazy import lazy_names

if TYPE_CHECKING:
    from toptune.evaluation.evaluate import Evaluation
    from toptune.evaluation.folds import FoldResults, leave_one_group_out
    from toptune.evaluation.scores import Scores, score
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "evaluate": ("Evaluation",),
            "folds": ("FoldResults", "leave_one_group_out"),
            "scores": ("Scores", "score"),
        },
    )

__all__ = ["Evaluation", "FoldResults", "Scores", "leave_one_group_out", "score"]
