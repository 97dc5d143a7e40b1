"""The head ``parameters``: logistic regression on burst parameters of whole recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from toptune.heads.base import Candidate, Head, Progress, Rule, Table, above_0
from toptune.params import option, options_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from toptune.heads.falkon.kernel import Nearness
    from toptune.heads.nested import NestedScores, Shuffled
    from toptune.heads.rows import LabelledRows

RULES: Mapping[str, Rule] = {"C": above_0}

# A decade apart, from a model that says little more than how common a class is to one that follows
# its training rows closely; columns have SD 1, so the numbers mean the same for any data.
LOGISTIC_CANDIDATES: tuple[Candidate, ...] = tuple({"C": C} for C in (0.01, 0.1, 1.0, 10.0))


_TITLE = "Logistic regression on burst parameters"


@dataclass(frozen=True, kw_only=True)
class LogisticOptions:
    """What a user may set of the classifier."""

    C: float | None = option(
        None, "Inverse penalty of the logistic regression.", panel=_TITLE, several=True
    )


class LogisticHead(Head):
    """Logistic regression on few and meaningful numbers, one row a recording."""

    name = "parameters"
    title = _TITLE
    estimator = "toptune.heads.logistic.classifier:LogisticClassifier"
    options = options_of(LogisticOptions)
    rules = RULES
    defaults = LOGISTIC_CANDIDATES
    uses = "recordings"

    def problems(
        self, estimator: Any, n_groups: int, n_candidates: int, *, permuted: bool
    ) -> list[str]:
        found = super().problems(estimator, n_groups, n_candidates, permuted=permuted)
        if permuted and n_groups < 3:
            found.append(
                f"permutations of the classifier {self.name} need three groups: leave them out with"
                " `permutations=0`"
            )
        return found

    def default_permutations(self, estimator: Any, n_groups: int) -> int:
        # Each trains all folds anew, half a second for 200.
        return 200 if self.nests(estimator, n_groups, 1) else 0

    def nests(self, estimator: Any, n_groups: int, n_candidates: int) -> bool:
        # Always, the fits are small.
        del estimator, n_candidates
        return n_groups > 2

    def nested(
        self,
        estimator: Any,
        rows: LabelledRows,
        candidates: Sequence[Candidate],
        shuffled: NDArray[np.int64] | None,
        progress: Progress | None,
    ) -> tuple[NestedScores, Shuffled | None]:
        from toptune.heads.logistic.tuning import tune_logistic

        return tune_logistic(estimator, rows, candidates, shuffled=shuffled, progress=progress)

    def nearness(self, estimator: Any, view_sizes: Sequence[int]) -> Nearness:
        # Rows keep their length, which says how active a culture is.
        return replace(super().nearness(estimator, view_sizes), normalise=False)

    def tables(self, estimator: Any, columns: Sequence[str]) -> dict[str, Table]:
        """See `Head`.

        coefficients.csv has a row a parameter: by how much a class's log-odds against the others
        rise with one standard deviation of it.
        """
        header = ["parameter", *(str(name) for name in estimator.classes_)]
        lines = zip(columns, estimator.coef_.T.tolist(), strict=True)
        return {"coefficients.csv": Table(header, [[name, *values] for name, values in lines])}
