"""What a grid may set: every option by its name on the command line, with underscores.

What enters: a value as TOML gives it. What leaves: nothing, or an `InputError` that says what the
option takes. Ranges are those of the parameter classes and of the heads themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from toptune.errors import InputError
from toptune.evaluation.scores import parse_merges
from toptune.heads.catalogue import head_of, heads
from toptune.params import Backbone, HighPass, Picture, Ptsd, Windows

#: Key of a table of weights for backbones that are not named in it.
OTHERS = "others"
#: What stands for no merge of classes.
NO_MERGE = "none"


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a grid.

    Parameters
    ----------
    check
        Raises `InputError` for a value that is not one.
    head
        Whose option it is; None for what all combinations have.
    single
        Takes one value, since spikes are found once.
    several
        One value may be a list: values to be tried inside the folds, or merges made together.
    """

    check: Callable[[Any], object]
    head: str | None = None
    single: bool = False
    several: bool = False


def _needs(type_: type, word: str) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        # In Python True is a whole number; in TOML it is not.
        if not isinstance(value, type_) or (type_ is int and isinstance(value, bool)):
            raise InputError(f"takes {word}, got {value!r}")

    return check


def _text(value: Any) -> None:
    _needs(str, "text")(value)
    if not value.strip():
        raise InputError("takes text, got nothing")


def _head(value: Any) -> None:
    if value not in heads():
        raise InputError(f"takes {' or '.join(heads())}, got {value!r}")


def _count(value: Any) -> None:
    _needs(int, "a whole number")(value)
    if value < 0:
        raise InputError(f"takes a whole number from 0, got {value!r}")


def _rate(value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < float("inf"):
        raise InputError(f"takes a number above 0, got {value!r}")


def _merge(value: Any) -> None:
    _text(value)
    if value != NO_MERGE:
        parse_merges([value])


def _weights(value: Any) -> None:
    """Accept a source of weights, or a table of sources by backbone."""
    if not isinstance(value, dict):
        _text(value)
        return
    for name, source in value.items():
        if not isinstance(source, str) or not source:
            raise InputError(f"takes a source for {name} as text, got {source!r}")


def _noise(value: Any) -> None:
    Ptsd(noise=value, threshold_uv=50.0 if value == "fixed" else None)


def _of_head(head: str, name: str) -> Option:
    """Give an option of a head, checked by the classifier's own rule."""

    def check(value: Any) -> None:
        head_of(head).check_option(name, value)

    return Option(check=check, head=head, several=name in head_of(head).tuned)


#: Options of extraction, of fitting and of the heads, in this order.
OPTIONS: dict[str, Option] = {
    "picture": Option(check=lambda v: Picture(kind=v)),
    "window_s": Option(check=lambda v: Windows(width_s=v)),
    "stride_s": Option(check=lambda v: Windows(stride_s=v)),
    "count_axis": Option(check=lambda v: Picture(count_axis=v)),
    "backbone": Option(check=lambda v: Backbone(name=v)),
    "weights": Option(check=_weights),
    "head": Option(check=_head),
    "merge": Option(check=_merge, several=True),
    "group_by": Option(check=_text),
    "strata": Option(check=_text),
    "tune": Option(check=_needs(bool, "true or false")),
    "permutations": Option(check=_count),
    **{name: _of_head("falkon", name) for name in ("width", "penalty", "n_centres", "solver")},
    **{
        name: _of_head("mlp", name)
        for name in (
            *("epochs", "learning_rate", "learning_rate_decay", "weight_decay", "batch_size"),
        )
    },
    "C": _of_head("parameters", "C"),
    "highpass_hz": Option(check=lambda v: HighPass(cutoff_hz=v), single=True),
    "threshold_sd": Option(check=lambda v: Ptsd(threshold_sd=v), single=True),
    "lifetime_ms": Option(check=lambda v: Ptsd(lifetime_ms=v), single=True),
    "refractory_ms": Option(check=lambda v: Ptsd(refractory_ms=v), single=True),
    "overshoot_ms": Option(check=lambda v: Ptsd(overshoot_ms=v), single=True),
    "alignment": Option(check=lambda v: Ptsd(alignment=v), single=True),
    "noise": Option(check=_noise, single=True),
    "threshold_uv": Option(check=lambda v: Ptsd(noise="fixed", threshold_uv=v), single=True),
    "stream": Option(check=_text, single=True),
    "sampling_rate_hz": Option(check=_rate, single=True),
}
#: What a section of a head may set beside the head's own options.
IN_SECTIONS = ("tune", "permutations")
DETECTION = tuple(name for name, option in OPTIONS.items() if option.single)
