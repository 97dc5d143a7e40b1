"""The head ``mlp``: what may be set and tried, and what it does for all folds at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toptune.heads.base import (
    Candidate,
    Head,
    Rule,
    StepProgress,
    above_0,
    above_0_up_to_1,
    at_least_0,
    whole_from_1,
)
from toptune.params import option, options_of

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from toptune.cluster import Cluster
    from toptune.heads.mlp.workers import Workers
    from toptune.heads.nested import HeldOut, NestedScores
    from toptune.heads.rows import LabelledRows

RULES: Mapping[str, Rule] = {
    "n_hidden": whole_from_1,
    "batch_size": whole_from_1,
    "epochs": whole_from_1,
    "learning_rate": above_0,
    "learning_rate_decay": above_0_up_to_1,
    "weight_decay": at_least_0,
}

# Few, since 30 devices mean 465 networks each; the head's own first. Loss of 30 real cultures
# (six classes, so 1.79 by guessing; MobileNetV2, histograms of 120 s; one seed), by learning-rate
# decay 0.95 and 0.8: 2.52 and 1.88 without weight decay, 1.79 and 1.61 with 0.03, 1.54 and 1.48
# with 0.1. 0.3 gave 1.46 (0.8 only), but 9 devices right instead of 12 to 14. With a sixth of the
# windows, weight decays up to 0.01 changed the share of wrong windows by a hundredth at most.
MLP_CANDIDATES: tuple[Candidate, ...] = (
    {"learning_rate_decay": 0.95, "weight_decay": 0.0},
    {"learning_rate_decay": 0.8, "weight_decay": 0.0},
    {"learning_rate_decay": 0.95, "weight_decay": 0.1},
    {"learning_rate_decay": 0.8, "weight_decay": 0.1},
)

_TITLE = "MLP"


@dataclass(frozen=True, kw_only=True)
class MLPOptions:
    """What a user may set of the classifier."""

    epochs: int = option(25, "Passes over the training windows.", least=1, panel=_TITLE)
    learning_rate: float = option(0.0005, "Learning rate of the first epoch.", panel=_TITLE)
    learning_rate_decay: float | None = option(
        None, "Factor of the learning rate from one epoch to the next.", several=True, panel=_TITLE
    )
    weight_decay: float | None = option(
        None, "L2 penalty on weights and biases.", several=True, panel=_TITLE
    )
    batch_size: int = option(75, "Windows per training batch.", least=1, panel=_TITLE)


class MLPHead(Head):
    """The paper's network, with the networks of all folds trained together."""

    name = "mlp"
    title = _TITLE
    estimator = "toptune.heads.mlp.classifier:MLPClassifier"
    options = options_of(MLPOptions)
    rules = RULES
    defaults = MLP_CANDIDATES
    needs_torch = True
    devices = ("cpu", "cuda")
    spreads = True
    _workers: Workers | None = None  # who train the networks of its tuning; None: this process

    def on(self, cluster: Cluster, folder: Path) -> Head:
        from toptune.heads.mlp.workers import Workers

        head = MLPHead()
        head._workers = Workers(cluster, folder)
        return head

    def held_out(self, estimator: Any, rows: LabelledRows) -> HeldOut:
        # All folds trained together.
        import numpy as np

        from toptune.heads.nested import HeldOut

        scores = estimator.held_out_scores(rows.X, rows.y, rows.grouping)
        return HeldOut.by(estimator, rows.y, scores, np.zeros(len(rows.grouping.groups)))

    def held_out_of_labellings(
        self, estimator: Any, rows: LabelledRows, labellings: NDArray[Any]
    ) -> Iterator[NDArray[np.float64]]:
        # Networks of several labellings are trained side by side.
        from toptune.heads.mlp.classifier import held_out_scores_of

        return held_out_scores_of(estimator, rows.X, labellings.T, rows.grouping)

    def tune(
        self,
        estimator: Any,
        rows: LabelledRows,
        candidates: Sequence[Candidate],
        progress: StepProgress | None,
    ) -> NestedScores:
        from toptune.heads.mlp.classifier import tune_mlp

        return tune_mlp(estimator, rows, candidates, progress=progress, workers=self._workers)
