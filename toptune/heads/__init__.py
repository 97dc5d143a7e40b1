"""The trainable tops: scikit-learn classifiers on a frozen backbone's features or on parameters.

What enters: a head's name and its parameters. What leaves: a head, not fitted, or its type.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from toptune.errors import InputError

HEADS = ("mlp", "falkon", "parameters")


def head_type(name: str) -> Any:
    """Look up a head's class; imported only now, since importing torch takes a second."""
    if name == "mlp":
        from toptune.heads.mlp.classifier import MLPClassifier

        return MLPClassifier
    if name == "falkon":
        from toptune.heads.falkon.classifier import FalkonClassifier

        return FalkonClassifier
    if name == "parameters":
        from toptune.heads.logistic.classifier import LogisticClassifier

        return LogisticClassifier
    raise InputError(f"there is no head {name!r}; there are {', '.join(HEADS)}")


def make_head(name: str, params: Mapping[str, Any]) -> Any:
    """Build a head that is not fitted.

    Parameters
    ----------
    name : str
        ``mlp``, ``falkon`` or ``parameters``.
    params : mapping of str to value
        Of the head's constructor.

    Raises
    ------
    InputError
        An unknown head, or a parameter it does not have.
    """
    cls = head_type(name)
    known = list(inspect.signature(cls).parameters)
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise InputError(
            f"the {name} head has no parameter {unknown[0]!r}; it has {', '.join(known)}"
        )
    return cls(**params)
