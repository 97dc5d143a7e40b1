"""Rules that the values of a classifier's parameters follow.

A rule takes the parameter's full name and a value, and raises `InputError` where the value is out
of range. Classifiers apply their rules when they are fitted, as scikit-learn asks; grids and
command lines apply the same rules before there is any data.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Collection, Mapping
from typing import Any

from toptune.errors import InputError
from toptune.params import Option

Rule = Callable[[str, Any], None]


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number, of Python or NumPy; a bool is none."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)


def is_count(value: Any) -> bool:
    """Whether a value is a whole number from 1."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and int(value) >= 1


def is_list(value: Any) -> bool:
    """Whether a value is a sequence or an array, and no text."""
    return isinstance(value, Collection) and not isinstance(value, str)


def listed(value: Any) -> list[Any]:
    """Give several values, or a single one, as a list."""
    return list(value) if is_list(value) else [value]


def above_0(name: str, value: Any) -> None:
    """Accept finite numbers above 0."""
    if not is_number(value) or value <= 0:
        raise InputError(f"{name} must be above 0, got {value!r}")


def at_least_0(name: str, value: Any) -> None:
    """Accept finite numbers from 0."""
    if not is_number(value) or value < 0:
        raise InputError(f"{name} must be 0 or above, got {value!r}")


def above_0_up_to_1(name: str, value: Any) -> None:
    """Accept numbers above 0, 1 included."""
    above_0(name, value)
    if value > 1:
        raise InputError(f"{name} must be at most 1, got {value!r}")


def whole_from_1(name: str, value: Any) -> None:
    """Accept whole numbers from 1."""
    if not is_count(value):
        raise InputError(f"{name} must be a whole number from 1, got {value!r}")


def one_of(*choices: str) -> Rule:
    """Make a rule that accepts some words."""
    words = f"{', '.join(choices[:-1])} or {choices[-1]}"

    def rule(name: str, value: Any) -> None:
        if value not in choices:
            raise InputError(f"{name} must be {words}, got {value!r}")

    return rule


def optional(rule: Rule) -> Rule:
    """Make a rule that accepts None as well."""

    def with_none(name: str, value: Any) -> None:
        if value is not None:
            rule(name, value)

    return with_none


def rule_of(option: Option) -> Rule:
    """Make the rule that an option's type and range stand for."""
    if option.choices:
        return one_of(*option.choices)

    def rule(name: str, value: Any) -> None:
        kinds = {bool: bool, int: numbers.Integral, float: numbers.Real}
        kind = kinds.get(option.type, option.type)
        if not isinstance(value, kind) or (isinstance(value, bool) and option.type is not bool):
            raise InputError(f"{name} must be of type {option.type.__name__}, got {value!r}")
        if option.least is not None and value < option.least:
            raise InputError(f"{name} must be {option.least:g} or above, got {value!r}")
        if option.most is not None and value > option.most:
            raise InputError(f"{name} must be at most {option.most:g}, got {value!r}")

    return rule


def check_parameters(estimator: Any, rules: Mapping[str, Rule]) -> None:
    """Apply rules to the parameters of an estimator.

    Parameters
    ----------
    estimator : object
    rules : mapping of str to callable
        By the parameter's name.

    Raises
    ------
    InputError
        The first value that is out of range.
    """
    for name, rule in rules.items():
        rule(f"{type(estimator).__name__}.{name}", getattr(estimator, name))
