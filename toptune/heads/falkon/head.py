"""The head ``falkon``: rules of its classifier's parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from toptune.errors import InputError
from toptune.heads.rules import (
    Rule,
    above_0,
    is_number,
    listed,
    one_of,
    optional,
    whole_from_1,
)

Solver = Literal["direct", "iterative", "falkon"]
SolverPrecision = Literal["float64", "float32"]


def _widths(name: str, value: Any) -> None:
    """Accept a number above 0, or one for each view."""
    widths = listed(value)
    if not widths or any(not is_number(width) or width <= 0 for width in widths):
        raise InputError(f"{name} must be above 0, got {value!r}")


def _view_weights(name: str, value: Any) -> None:
    """Accept numbers from 0 that add up to 1."""
    weights = listed(value)
    ranged = all(is_number(weight) and weight >= 0 for weight in weights)
    if not ranged or not math.isclose(sum(weights), 1, abs_tol=1e-6):
        raise InputError(f"{name} must be 0 or above and add up to 1, got {value!r}")


RULES: Mapping[str, Rule] = {
    "width": _widths,
    "penalty": above_0,
    "n_centres": optional(whole_from_1),
    "view_weights": optional(_view_weights),
    "solver": one_of(*get_args(Solver)),
    "precision": one_of(*get_args(SolverPrecision)),
    "tolerance": optional(above_0),
    "max_iterations": whole_from_1,
}
