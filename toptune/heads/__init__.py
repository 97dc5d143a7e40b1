"""Trainable classifiers on rows of features: kernel ridge regressions, an MLP, and others.

Rows of features enter, from a frozen backbone or from burst parameters, each with its label and
the group it is left out with. A fitted scikit-learn classifier leaves, and what leaving groups out
says of it: held-out scores, what was chosen inside the folds, calibrated probabilities.

A head (`base.Head`) says of its classifier what a user may set and how it is tuned, tested and
kept; `catalogue` finds heads by name. Everything above this package asks the head and knows no
classifier by its type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toptune.machine.lazy import lazy_names

if TYPE_CHECKING:
    from toptune.heads.base import Head
    from toptune.heads.catalogue import head_for, head_of, heads, register
else:
    names = ("head_for", "head_of", "heads", "register")
    __getattr__ = lazy_names(__name__, {"base": ("Head",), "catalogue": names})

__all__ = ["Head", "head_for", "head_of", "heads", "register"]
