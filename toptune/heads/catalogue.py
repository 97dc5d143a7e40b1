"""Which heads there are: those of toptune, registered ones, and those of installed packages.

A package adds a head by an entry point in the group ``toptune.heads`` that names a `Head` or a
subclass of it. Packages are searched when a name is asked for that is not known, or all heads are.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from toptune.errors import InputError
from toptune.heads.base import Head
from toptune.heads.falkon.head import FalkonHead
from toptune.heads.mlp.head import MLPHead
from toptune.heads.parameters.head import ParametersHead
from toptune.heads.recordings.head import RecordingsHead
from toptune.machine.interruption import heed_interrupt

GROUP = "toptune.heads"

_LOG = logging.getLogger(__name__)
#: toptune's own.
BUILT_IN: tuple[Head, ...] = (MLPHead(), FalkonHead(), RecordingsHead(), ParametersHead())
_known: dict[str, Head] = {head.name: head for head in BUILT_IN}


def heads() -> dict[str, Head]:
    """Give all heads by name: toptune's own, registered ones, then those of installed packages."""
    return {**_known, **_installed()}


def head_of(name: str) -> Head:
    """Look up a head.

    Raises
    ------
    InputError
        There is none of this name.
    """
    head = _known.get(name) or heads().get(name)
    if head is None:
        raise InputError(f"there is no classifier {name!r}; there are {', '.join(heads())}")
    return head


def head_for(estimator: Any) -> Head:
    """Find the head that a classifier belongs to, by its type.

    Any other classifier, subclasses of the heads' own included, is fitted anew for every fold.
    """
    cls = type(estimator)
    place = f"{cls.__module__}:{cls.__qualname__}"
    found = (head for head in heads().values() if head.estimator == place)
    return next(found, Head())


def register(head: Head) -> None:
    """Add a head for as long as the process runs.

    Raises
    ------
    InputError
        There is one of this name.
    """
    if head.name in heads():
        raise InputError(f"there is a classifier {head.name!r} already")
    _known[head.name] = head


@cache
def _installed() -> dict[str, Head]:
    """Load the heads of installed packages; one that does not load is told of and left out."""
    found = {}
    for point in entry_points(group=GROUP):
        try:
            loaded = point.load()
            head = loaded() if isinstance(loaded, type) else loaded
            if not isinstance(head, Head) or head.name in _known:
                raise InputError("it is no toptune.heads.base.Head, or its name is taken")
            found[head.name] = head
        except Exception as error:  # noqa: BLE001  # another package's fault must not end every command
            heed_interrupt(error)
            _LOG.warning(
                "the classifier %r of %s cannot be used: %s", point.name, point.value, error
            )
    return found


def require_spreading(name: str) -> None:
    """Refuse a head whose tuning cannot be given to the workers of a cluster."""
    if not head_of(name).spreads:
        those = ", ".join(sorted(one.name for one in heads().values() if one.spreads))
        raise InputError(
            f"`dask`: the classifier {name} is trained by a single process: leave `dask` out; the"
            f" parameters of {those} can be chosen by several"
        )
