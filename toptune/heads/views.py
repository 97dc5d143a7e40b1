"""Views of a head's rows, read from its constructor's values and checked.

What enters: a head with `view_sizes`, and for a kernel `view_weights` and `width`. What leaves: the
columns of each view, or the kernel; or one clear error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from toptune.errors import InputError
from toptune.heads.checks import require_positive
from toptune.heads.falkon.kernel import KernelSum


def view_sizes_of(head: Any, n_features: int) -> tuple[int, ...]:
    """Columns of each of the head's views; all of them where it names none.

    Parameters
    ----------
    head : object
        With `view_sizes`: None or a sequence of int.
    n_features : int

    Raises
    ------
    InputError
        Not whole numbers from 1, or not adding up to the number of features.
    """
    if head.view_sizes is None:
        return (n_features,)
    name = f"{type(head).__name__}.view_sizes"
    sizes = _listed(head.view_sizes)
    if not sizes or any(not _is_count(size) for size in sizes):
        raise InputError(f"{name} must be whole numbers from 1, got {head.view_sizes!r}")
    if sum(sizes) != n_features:
        raise InputError(
            f"{name} adds up to {sum(sizes)}, but the rows have {n_features} features: "
            f"{head.view_sizes!r}"
        )
    return tuple(int(size) for size in sizes)


def kernel_of(head: Any, n_features: int) -> KernelSum:
    """Kernel of a head's rows.

    Parameters
    ----------
    head : object
        With `view_sizes`, `view_weights` (None: all equal) and `width` (one for all, or one a
        view).
    n_features : int

    Raises
    ------
    InputError
        A value out of range, or not one a view.
    """
    sizes = view_sizes_of(head, n_features)
    return KernelSum(_widths(head, len(sizes)), _weights(head, len(sizes)), sizes)


def _widths(head: Any, n_views: int) -> tuple[float, ...]:
    if not _is_list(head.width):
        require_positive(head, "width")
        return (float(head.width),) * n_views
    widths = _listed(head.width)
    if any(not _is_number(width) or width <= 0 for width in widths):
        raise InputError(f"{type(head).__name__}.width must be above 0, got {head.width!r}")
    return _one_a_view(head, "width", widths, n_views)


def _weights(head: Any, n_views: int) -> tuple[float, ...]:
    if head.view_weights is None:
        return (1 / n_views,) * n_views
    weights = _listed(head.view_weights)
    ranged = all(_is_number(weight) and weight >= 0 for weight in weights)
    if not ranged or not math.isclose(sum(weights), 1, abs_tol=1e-6):
        raise InputError(
            f"{type(head).__name__}.view_weights must be 0 or above and add up to 1, "
            f"got {head.view_weights!r}"
        )
    return _one_a_view(head, "view_weights", weights, n_views)


def _one_a_view(head: Any, name: str, values: Sequence[Any], n_views: int) -> tuple[float, ...]:
    if len(values) != n_views:
        raise InputError(
            f"{type(head).__name__}.{name} must have one value a view ({n_views} of view_sizes), "
            f"got {getattr(head, name)!r}"
        )
    return tuple(float(value) for value in values)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)


def _listed(value: Any) -> list[Any]:
    return list(value) if _is_list(value) else [value]


def _is_count(value: Any) -> bool:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and int(value) >= 1


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return number and math.isfinite(float(value))
