"""The head ``parameters``: classifiers on burst parameters of whole recordings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from toptune.errors import InputError
from toptune.heads.base import Candidate, Head, NestingHead, Progress, Rule, Table, above_0, one_of
from toptune.params import option, options_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from toptune.heads.falkon.kernel import Nearness
    from toptune.heads.nested import NestedScores, Shuffled
    from toptune.heads.rows import LabelledRows

Kernel = Literal["linear", "gaussian"]

LOGISTIC_RULES: Mapping[str, Rule] = {"C": above_0}
GAUSSIAN_RULES: Mapping[str, Rule] = {"ridge": above_0}
RULES: Mapping[str, Rule] = {
    **LOGISTIC_RULES,
    **GAUSSIAN_RULES,
    "kernel": one_of(*get_args(Kernel)),
}

# A decade apart, from a model that says little more than how common a class is to one that follows
# its training rows closely; columns have SD 1, so the numbers mean the same for any data.
LOGISTIC_CANDIDATES: tuple[Candidate, ...] = tuple({"C": C} for C in (0.01, 0.1, 1.0, 10.0))
# The first is the classifier's own, and the best of them in the mean over four real sets.
GAUSSIAN_CANDIDATES: tuple[Candidate, ...] = tuple({"ridge": ridge} for ridge in (1.0, 0.1, 0.01))

_TITLE = "Burst parameters of whole recordings"


@dataclass(frozen=True, kw_only=True)
class ParametersOptions:
    """What a user may set of the classifier."""

    C: float | None = option(
        None, "Inverse penalty of the logistic regression.", panel=_TITLE, several=True
    )
    kernel: Kernel = option(
        "linear",
        "linear: logistic regression; gaussian: ridge regression with a Gaussian kernel.",
        panel=_TITLE,
    )
    ridge: float | None = option(
        None,
        "Ridge on the kernel between recordings, which is at most 1.",
        panel=_TITLE,
        several=True,
    )


class ParametersHead(NestingHead):
    """Few and meaningful numbers, one row a recording; by logistic regression unless told."""

    name = "parameters"
    title = _TITLE
    estimator = "toptune.heads.parameters.logistic:LogisticClassifier"
    options = options_of(ParametersOptions)
    rules = RULES
    defaults = LOGISTIC_CANDIDATES
    uses = "recordings"

    def candidates(
        self,
        fixed: Mapping[str, Any],
        tried: Mapping[str, Sequence[Any]],
        n_views: int,
        *,
        tune: bool,
    ) -> tuple[Candidate, ...]:
        super().candidates(fixed, tried, n_views, tune=tune)
        kernel = fixed.get("kernel", "linear")
        _refuse_others(kernel, tried)
        (name,) = _TUNED[kernel]
        if not tune or name in fixed:
            return ({},)
        if name in tried:
            return tuple({name: value} for value in tried[name])
        return GAUSSIAN_CANDIDATES if kernel == "gaussian" else LOGISTIC_CANDIDATES

    def make(self, params: Mapping[str, Any]) -> Any:
        values = dict(params)
        kernel = values.pop("kernel", "linear")
        _refuse_others(kernel, values)
        return Head.make(_of_kernel(kernel), values)

    def read(
        self, tensors: dict[str, NDArray[Any]], params: dict[str, Any], classes: NDArray[Any]
    ) -> Any:
        return Head.read(_of_kernel(_kernel_of(params)), tensors, params, classes)

    def default_permutations(self, estimator: Any, n_groups: int) -> int:
        if not self.nests(estimator, n_groups, 1):
            return 0
        # A logistic regression is trained anew for each, half a second for 200.
        return 1000 if _kernel_of(estimator.get_params()) == "gaussian" else 200

    def nested(
        self,
        estimator: Any,
        rows: LabelledRows,
        candidates: Sequence[Candidate],
        shuffled: NDArray[np.int64] | None,
        progress: Progress | None,
    ) -> tuple[NestedScores, Shuffled | None]:
        how: dict[str, Any] = {"shuffled": shuffled, "progress": progress}
        if _kernel_of(estimator.get_params()) == "gaussian":
            from toptune.heads.parameters.gaussian import tune_gaussian

            return tune_gaussian(estimator, rows, candidates, **how)
        from toptune.heads.parameters.logistic_tuning import tune_logistic

        return tune_logistic(estimator, rows, candidates, **how)

    def nearness(self, estimator: Any, view_sizes: Sequence[int]) -> Nearness:
        # Rows keep their length, which says how active a culture is.
        return replace(super().nearness(estimator, view_sizes), normalise=False)

    def tables(self, estimator: Any, columns: Sequence[str]) -> dict[str, Table]:
        """See `Head`.

        coefficients.csv of a logistic regression has a row a parameter: by how much a class's
        log-odds against the others rise with one standard deviation of it.
        """
        if _kernel_of(estimator.get_params()) == "gaussian":
            return {}
        header = ["parameter", *(str(name) for name in estimator.classes_)]
        lines = zip(columns, estimator.coef_.T.tolist(), strict=True)
        return {"coefficients.csv": Table(header, [[name, *values] for name, values in lines])}


# What may be tuned of each kernel's classifier.
_TUNED: Mapping[str, tuple[str, ...]] = {"linear": ("C",), "gaussian": ("ridge",)}


class _GaussianHead(ParametersHead):
    estimator = "toptune.heads.parameters.gaussian:GaussianClassifier"


def _of_kernel(kernel: str) -> Head:
    return _GaussianHead() if kernel == "gaussian" else ParametersHead()


def _kernel_of(params: Mapping[str, Any]) -> str:
    """Tell a classifier's kernel by what its constructor takes."""
    return "gaussian" if "ridge" in params else "linear"


def _refuse_others(kernel: str, names: Iterable[str]) -> None:
    """Refuse parameters of the other kernel's classifier."""
    for other, its in _TUNED.items():
        wrong = sorted(set(its) & set(names))
        if wrong and other != kernel:
            raise InputError(f'`{wrong[0]}` belongs to `kernel="{other}"`, not to {kernel}')
