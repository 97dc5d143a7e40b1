"""Checks the heads share.

What enters: constructor values, checked when fitting, as scikit-learn asks. What leaves: nothing,
or one clear error; and a seed drawn without touching a global state.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError


def require_positive(head: object, *names: str) -> None:
    """Refuse values that are not finite numbers above 0."""
    for name in names:
        value = getattr(head, name)
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value <= 0:
            raise InputError(f"{type(head).__name__}.{name} must be above 0, got {value!r}")


def require_count(head: object, *names: str) -> None:
    """Refuse values that are not whole numbers from 1."""
    for name in names:
        value = getattr(head, name)
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or value < 1:
            raise InputError(
                f"{type(head).__name__}.{name} must be a whole number from 1, got {value!r}"
            )


def check_device(head: Any) -> None:
    """Refuse a `device` that torch does not know, or does not find here."""
    import torch

    name = f"{type(head).__name__}.device"
    try:
        device = torch.device(head.device)
    except (RuntimeError, TypeError):
        raise InputError(f"{name} must be cpu or cuda, got {head.device!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"{name} must be cpu or cuda, got {head.device!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"{name} is {head.device!r}, but torch finds no such device; use cpu")


def encode_classes(head: object, y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Distinct classes, sorted, and the class of each row by its number; at least two."""
    classes, codes = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise InputError(
            f"{type(head).__name__} needs at least two classes to tell apart, got one class: "
            f"{classes[0]!r}"
        )
    return classes, codes.astype(np.int64)


def seed_of(random_state: Any) -> int:
    """Make a seed below 2**32 of what scikit-learn calls a random state.

    An int is the seed itself; None draws a fresh one from the operating system; a generator gives
    its next number. NumPy's and torch's global generators are neither read nor changed.
    """
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**32, dtype=np.uint64))
    if isinstance(random_state, int | np.integer) and random_state < 0:
        raise InputError(f"random_state must be 0 or above, got {random_state!r}")
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(np.random.default_rng(random_state).integers(2**32))
