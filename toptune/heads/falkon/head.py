"""The head ``falkon``: what may be set and tried, and what it does in closed form."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product as combinations_of
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from toptune.errors import InputError
from toptune.heads.base import (
    Candidate,
    Head,
    Progress,
    Rule,
    above_0,
    is_number,
    listed,
    one_of,
    optional,
    true_or_false,
    whole_from_1,
)
from toptune.machine.device import available_memory
from toptune.params import option, options_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from toptune.heads.falkon.kernel import Nearness
    from toptune.heads.nested import HeldOut, NestedScores, Shuffled
    from toptune.heads.rows import LabelledRows

Solver = Literal["direct", "iterative", "falkon"]
SolverPrecision = Literal["float64", "float32"]


def _widths(name: str, value: Any) -> None:
    """Accept a number above 0, or one for each view."""
    widths = listed(value)
    if not widths or any(not is_number(width) or width <= 0 for width in widths):
        raise InputError(f"{name} must be above 0, got {value!r}")


def _scales(name: str, value: Any) -> None:
    """Accept one or several numbers above 0, all different."""
    scales = listed(value)
    ranged = all(is_number(scale) and scale > 0 for scale in scales)
    if not scales or not ranged or len(set(scales)) < len(scales):
        raise InputError(f"{name} must be above 0 and all different, got {value!r}")


def _view_weights(name: str, value: Any) -> None:
    """Accept numbers from 0 that add up to 1."""
    weights = listed(value)
    ranged = all(is_number(weight) and weight >= 0 for weight in weights)
    if not ranged or not math.isclose(sum(weights), 1, abs_tol=1e-6):
        raise InputError(f"{name} must be 0 or above and add up to 1, got {value!r}")


RULES: Mapping[str, Rule] = {
    "width": _widths,
    "penalty": above_0,
    "balanced": true_or_false,
    "n_centres": optional(whole_from_1),
    "view_weights": optional(_view_weights),
    "scales": _scales,
    "solver": one_of(*get_args(Solver)),
    "precision": one_of(*get_args(SolverPrecision)),
    "tolerance": optional(above_0),
    "max_iterations": whole_from_1,
}

# Rows have length 1 and lie 0 to 1.41 apart, whatever the backbone, so the widths are numbers and
# not learnt from the data. Width and penalty trade off: twice the width with a tenth of the penalty
# is nearly the same model.
WIDTHS = (0.5, 0.25, 1.0)
PENALTIES = (1e-5, 1e-6, 1e-4, 1e-3)
# Of several views, which are searched for one to leave out.
FUSED_PENALTIES = (1e-5, 1e-3)

# A view's kernel is the mean of these Gaussians, in multiples of its width. On four real sets of
# cultures (benchmarks/RESULTS.md) one Gaussian has the same verdicts but for one.
SCALES = (1.0, 2.0)

# The recommended setting, with equal weights of all views (`nested.HANDICAP`).
WIDTH, PENALTY = WIDTHS[0], PENALTIES[0]

# Which rows serve as centres follows from the memory at hand (on a GPU, the GPU's):
# - All rows, up to `all_rows_limit`: as many as fit two float64 matrices of rows x rows (four on a
#   GPU) into half of it, and never more than 15,000. At 15,000 they take 3.6 GB, and n^3 makes each
#   further doubling of the rows eight times slower.
# - Above it, 4,000 rows are drawn as Nystrom centres.
ALL_ROWS_CAP = 15_000
NYSTROM_CENTRES = 4_000
ALL_ROWS_SHARE = 0.5
# On a GPU nothing is factored in place: the kernel, a copy with the ridge, its factor, its inverse.
GPU_MATRICES = 4.0

_TITLE = "Falkon"


@dataclass(frozen=True, kw_only=True)
class FalkonOptions:
    """What a user may set of the classifier."""

    width: float | None = option(
        None,
        "Standard deviation of the Gaussian kernel; rows have length 1.",
        several=True,
        panel=_TITLE,
    )
    penalty: float | None = option(
        None, "Ridge penalty per training window.", several=True, panel=_TITLE
    )
    balanced: bool = option(
        True, "Let all classes weigh the same, or each as much as it has windows.", panel=_TITLE
    )
    view_weights: tuple[float, ...] | None = option(
        None,
        "Weights of several feature sets, such as 0.5,0.5; they add up to 1.",
        several=True,
        panel=_TITLE,
    )
    scales: tuple[float, ...] | None = option(
        None,
        "The kernel is the mean of Gaussians of so many times the width; default: 1,2.",
        several=True,
        panel=_TITLE,
    )
    n_centres: int | None = option(
        None, "Nystrom centres; default: all windows, where memory allows.", least=1, panel=_TITLE
    )
    solver: Solver = option(
        "direct",
        "direct: closed form; iterative: conjugate gradients; falkon: the library.",
        panel=_TITLE,
    )


def falkon_candidates(
    n_views: int,
    *,
    widths: Sequence[float] | None = None,
    penalties: Sequence[float] | None = None,
    view_weights: Sequence[Sequence[float]] | None = None,
    scales: Sequence[Sequence[float]] | None = None,
) -> tuple[dict[str, Any], ...]:
    """List what is chosen from, the recommended setting first.

    Of what is given, that is every combination, with the recommended value of what is not. Where
    nothing is given, or `scales` alone, of one view it is every combination of `WIDTHS` and
    `PENALTIES`; of several, each of `FUSED_PENALTIES` with equal weights of all views, and the
    recommended setting without each of the views: so one that is useless, or that only says which
    device it is, can be left out. Raises `InputError`: weights of another number of views.
    """
    weights = [tuple(map(float, one)) for one in view_weights or (equal_weights(n_views),)]
    for weight in weights:
        if len(weight) != n_views:
            raise InputError(
                f"view_weights {weight} must have one value for each feature set, of which there"
                f" are {n_views}"
            )
    if widths or penalties or view_weights:
        settings = [*combinations_of(widths or (WIDTH,), weights, penalties or (PENALTY,))]
    elif n_views == 1:
        settings = [*combinations_of(WIDTHS, weights, PENALTIES)]
    else:
        settings = [
            *((WIDTH, weights[0], penalty) for penalty in FUSED_PENALTIES),
            *((WIDTH, weight, PENALTY) for weight in _without_each(n_views)),
        ]
    candidates = [_setting(*one) for one in settings]
    if scales:
        offered = [tuple(map(float, listed(one))) for one in scales]
        candidates = [{**one, "scales": each} for each in offered for one in candidates]
    return tuple(candidates)


def _setting(width: float, weights: tuple[float, ...], penalty: float) -> dict[str, Any]:
    setting: dict[str, Any] = {"width": float(width), "penalty": float(penalty)}
    return setting if len(weights) == 1 else {**setting, "view_weights": weights}


def equal_weights(n_views: int) -> tuple[float, ...]:
    """Weights of views that all have the same say."""
    return (1 / n_views,) * n_views


def _without_each(n_views: int) -> Iterator[tuple[float, ...]]:
    """Give equal weights of all views but one, each of them once."""
    for left_out in range(n_views):
        others = 1 / (n_views - 1)
        yield tuple(0.0 if view == left_out else others for view in range(n_views))


def is_recommended(candidate: Candidate) -> bool:
    """Whether a candidate is the recommended setting, of any scales: all views weigh the same."""
    weights = candidate.get("view_weights")
    equal = weights is None or max(weights) - min(weights) < 1e-6
    return equal and candidate.get("width") == WIDTH and candidate.get("penalty") == PENALTY


class FalkonHead(Head):
    """Kernel ridge regression, with folds, nested folds and permutations in closed form."""

    name = "falkon"
    title = _TITLE
    estimator = "toptune.heads.falkon.classifier:FalkonClassifier"
    options = options_of(FalkonOptions)
    rules = RULES
    devices = ("cpu", "cuda")
    fuses = True
    streams = True
    # Windows overlap by 96 % where 120 s are taken every 5 s, and the time grows with the cube of
    # their number. Of recordings of 20 minutes these lie 17 s apart, about as far as those of the
    # sets by which the recommended setting was found.
    windows_per_recording = 64

    def combinations(
        self, values: Mapping[str, Sequence[Any]], n_views: int
    ) -> tuple[Candidate, ...]:
        return falkon_candidates(
            n_views,
            widths=values.get("width"),
            penalties=values.get("penalty"),
            view_weights=values.get("view_weights"),
            scales=values.get("scales"),
        )

    def make(self, params: Mapping[str, Any]) -> Any:
        # The library has one Gaussian.
        scales = (1.0,) if params.get("solver") == "falkon" else SCALES
        return super().make({"scales": scales, **params})

    def device(self, requested: str, params: Mapping[str, Any]) -> str:
        # The direct solver works in float64, the others need not.
        from toptune.machine.device import float64_device, torch_device

        direct = params.get("solver", "direct") == "direct"
        return float64_device(requested) if direct else torch_device(requested)

    def prepare(
        self, params: Mapping[str, Any], *, n_rows: int, view_sizes: Sequence[int], device: str
    ) -> tuple[dict[str, Any], str | None]:
        # The note says why it takes as many centres.
        filled, _ = super().prepare(params, n_rows=n_rows, view_sizes=view_sizes, device=device)
        if "n_centres" in filled:
            return filled, None
        plan = _plan(n_rows, device)
        if plan.n_centres is None and filled.get("solver", "direct") != "direct":
            filled["n_centres"] = min(NYSTROM_CENTRES, n_rows)
            return filled, (
                f"{filled['n_centres']} of {n_rows} windows are Nystrom centres, as the solver"
                " needs"
            )
        filled["n_centres"] = plan.n_centres
        return filled, plan.reason

    def problems(
        self, estimator: Any, n_groups: int, n_candidates: int, *, permuted: bool
    ) -> list[str]:
        found = super().problems(estimator, n_groups, n_candidates, permuted=permuted)
        if n_candidates > 1 and estimator.solver != "direct":
            found.append(
                f"the solver {estimator.solver} fits one fold at a time, so tuning would take a fit"
                " for every pair of devices and setting: give fixed values with `tune=False`, or"
                ' take `solver="direct"`'
            )
        if permuted and (n_groups < 3 or estimator.solver != "direct"):
            found.append(
                'Falkon\'s permutations need three groups and `solver="direct"`: leave them out'
                " with `permutations=0`"
            )
        return found

    def default_permutations(self, estimator: Any, n_groups: int) -> int:
        # In closed form they cost hardly more than the folds.
        return 1000 if self.nests(estimator, n_groups, 1) else 0

    def held_out(self, estimator: Any, rows: LabelledRows) -> HeldOut:
        # All folds from one factorisation, exactly. The ridge is penalty x rows of the whole data
        # set in every fold, and Nystrom centres are drawn once: a fold does without its group's.
        from toptune.heads.nested import HeldOut

        found = estimator.held_out(rows.X, rows.y, rows.grouping)
        return HeldOut.by(estimator, rows.y, *found)

    def nests(self, estimator: Any, n_groups: int, n_candidates: int) -> bool:
        # Always where there are closed forms.
        del n_candidates
        return bool(estimator.solver == "direct") and n_groups > 2

    def nested(
        self,
        estimator: Any,
        rows: LabelledRows,
        candidates: Sequence[Candidate],
        shuffled: NDArray[np.int64] | None,
        progress: Progress | None,
    ) -> tuple[NestedScores, Shuffled | None]:
        from toptune.heads.falkon.tuning import tune_falkon
        from toptune.heads.nested import handicaps

        handicap = handicaps([is_recommended(one) for one in candidates], int(rows.unit.max()) + 1)
        return tune_falkon(
            estimator, rows, candidates, handicap=handicap, shuffled=shuffled, progress=progress
        )

    def nearness(self, estimator: Any, view_sizes: Sequence[int]) -> Nearness:
        # The classifier's own kernel.
        from toptune.heads.falkon.kernel import Nearness

        return Nearness(estimator.kernel(sum(view_sizes)), estimator.normalise)


class CentrePlan(NamedTuple):
    """How many centres the Falkon classifier takes for a number of rows, and why."""

    n_centres: int | None  # None: all rows
    reason: str  # one line for the log


def plan_centres(
    n_rows: int, available_bytes: int | None = None, *, n_matrices: float = 2.0
) -> CentrePlan:
    """Decide between all rows and Nystrom centres, by the rules above.

    `available_bytes` is what is free now unless given. `n_matrices`: see `all_rows_limit`.
    """
    available = available_memory() if available_bytes is None else available_bytes
    limit = all_rows_limit(available, n_matrices=n_matrices)
    if n_rows <= limit:
        # Without the limit, which follows the memory that is free now: the same fit is to make the
        # same run.
        return CentrePlan(None, f"all {n_rows} windows are centres")
    n_centres = min(NYSTROM_CENTRES, n_rows)
    why = (
        f"more than {ALL_ROWS_CAP} take too long"
        if limit == ALL_ROWS_CAP
        else f"{available / 2**30:.1f} GiB of memory are at hand, enough for {limit} as centres"
    )
    return CentrePlan(n_centres, f"{n_centres} of {n_rows} windows are Nystrom centres: {why}")


def all_rows_limit(available_bytes: int, *, n_matrices: float = 2.0) -> int:
    """Count the rows up to which all of them can be centres.

    `n_matrices`: how many float64 matrices of rows x rows there are at once. One fit or one set of
    folds has one, and with two or three groups half of another. On a GPU there are `GPU_MATRICES`.
    """
    fitting = math.isqrt(int(ALL_ROWS_SHARE * available_bytes / (8 * n_matrices)))
    return min(ALL_ROWS_CAP, fitting)


def _plan(n_rows: int, device: str) -> CentrePlan:
    """Decide by the memory of the device that is to work."""
    if device == "cpu":
        return plan_centres(n_rows)
    import torch

    from toptune.machine.device import free_bytes

    return plan_centres(n_rows, free_bytes(torch.device(device)), n_matrices=GPU_MATRICES)
