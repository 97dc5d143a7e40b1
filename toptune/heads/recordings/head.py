"""The head ``recordings``: what may be set and tried, and what it does in closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from toptune.errors import InputError
from toptune.heads.base import (
    Candidate,
    NestingHead,
    Progress,
    Rule,
    above_0,
    optional,
    whole_from_1,
)
from toptune.heads.falkon.head import RULES as FALKON_RULES
from toptune.heads.falkon.head import FalkonHead
from toptune.params import option, options_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from toptune.heads.falkon.kernel import Nearness
    from toptune.heads.nested import HeldOut, NestedScores, Shuffled
    from toptune.heads.rows import LabelledRows

RULES: Mapping[str, Rule] = {
    "width": FALKON_RULES["width"],
    "ridge": above_0,
    "windows_per_recording": optional(whole_from_1),
    "view_weights": FALKON_RULES["view_weights"],
}

# The first of each are the classifier's own. With them and equal weights of all views, balanced
# accuracies on four real sets of cultures were 0.712 in the mean, and 0.686 where the candidate of
# the smallest loss was chosen in every fold. So, as for Falkon, another is chosen only where it is
# better by more than chance.
WIDTHS = (0.5, 0.25)
RIDGES = (0.01, 0.001, 0.1)
RECOMMENDED: Candidate = {"width": WIDTHS[0], "ridge": RIDGES[0]}

_TITLE = "Kernel means of recordings"


@dataclass(frozen=True, kw_only=True)
class RecordingsOptions:
    """What a user may set of the classifier."""

    ridge: float | None = option(
        None, "Ridge on the kernel between recordings, which is at most 1.", several=True,
        panel=_TITLE,
    )  # fmt: skip
    width: float | None = option(
        None,
        "Standard deviation of the Gaussian kernel; rows have length 1.",
        several=True,
        panel=_TITLE,
    )
    view_weights: tuple[float, ...] | None = option(
        None,
        "Weights of several feature sets, such as 0.5,0.5; they add up to 1.",
        several=True,
        panel=_TITLE,
    )


class RecordingsHead(NestingHead):
    """Kernel ridge regression with one row a recording, which is the set of its windows."""

    name = "recordings"
    title = _TITLE
    estimator = "toptune.heads.recordings.classifier:RecordingsClassifier"
    options = options_of(RecordingsOptions)
    rules = RULES
    fuses = True
    windows_per_recording = FalkonHead.windows_per_recording

    def combinations(
        self, values: Mapping[str, Sequence[Any]], n_views: int
    ) -> tuple[Candidate, ...]:
        widths, ridges = values.get("width") or WIDTHS, values.get("ridge") or RIDGES
        weights = values.get("view_weights") or [None]
        found = []
        for width, weight, ridge in product(widths, weights, ridges):
            candidate: dict[str, Any] = {"width": width, "ridge": ridge}
            if weight is not None:
                if len(weight) != n_views:
                    raise InputError(
                        f"view_weights {tuple(weight)} must have one value for each feature set,"
                        f" of which there are {n_views}"
                    )
                candidate["view_weights"] = tuple(weight)
            found.append(candidate)
        return tuple(found)

    def default_permutations(self, estimator: Any, n_groups: int) -> int:
        # Each costs a product.
        return 1000 if self.nests(estimator, n_groups, 1) else 0

    def fit(self, estimator: Any, rows: LabelledRows) -> Any:
        return estimator.fit(rows.X, rows.y, unit=rows.unit)

    def held_out(self, estimator: Any, rows: LabelledRows) -> HeldOut:
        from toptune.heads.recordings.folds import held_out_recordings

        return held_out_recordings(estimator, rows)

    def nested(
        self,
        estimator: Any,
        rows: LabelledRows,
        candidates: Sequence[Candidate],
        shuffled: NDArray[np.int64] | None,
        progress: Progress | None,
    ) -> tuple[NestedScores, Shuffled | None]:
        from toptune.heads.recordings.folds import tune_recordings

        return tune_recordings(estimator, rows, candidates, shuffled=shuffled, progress=progress)

    def nearness(self, estimator: Any, view_sizes: Sequence[int]) -> Nearness:
        # The Gaussians of which the kernel is a mean.
        from toptune.heads.falkon.classifier import kernel_of
        from toptune.heads.falkon.kernel import Nearness

        return Nearness(kernel_of(estimator, sum(view_sizes)))
