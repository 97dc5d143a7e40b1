"""The grid of a sweep: which options take which values, and the combinations that make sense.

What enters: a TOML file, or the name of a grid that ships with toptune, and settings from the
command line that stand above it. Keys are the options' names with underscores; a list is an axis;
a section named after a head holds what is meant for that head. What leaves: combinations, each
once, in the order they are worked on; or everything that is wrong, at once, with line or key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from toptune.errors import InputError, InputErrors
from toptune.heads.catalogue import head_of, heads
from toptune.params import Backbone, FitOptions, HighPass, Picture, Ptsd, SpikeSettings, Windows
from toptune.sweeps.grid_options import DETECTION, IN_SECTIONS, NO_MERGE, OPTIONS, OTHERS
from toptune.sweeps.grid_source import GridSource

_DEFAULTS: dict[str, Any] = {
    "picture": "histogram",
    "window_s": 120.0,
    "stride_s": 5.0,
    "count_axis": "window",
    "backbone": "efficientnet_b0",
    "weights": "imagenet",
    "head": "falkon",
    "merge": NO_MERGE,
    "group_by": "device",
    "strata": None,
    "tune": True,
    "permutations": None,
}


class View(NamedTuple):
    """What is drawn, and what describes it."""

    windows: Windows
    picture: Picture
    backbone: Backbone


@dataclass(frozen=True, kw_only=True)
class Combination:
    """One point of a grid: what is drawn, what describes it, and what is trained on it.

    Parameters
    ----------
    view
        None for the head that is trained on burst parameters of whole recordings.
    fit
        How the head is trained and scored.
    """

    view: View | None
    fit: FitOptions


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A checked grid.

    Parameters
    ----------
    name
        Of the file, without its ending, or as it ships with toptune.
    title
        For people.
    spikes
        How spikes are found, the same for all.
    combinations
        Each once; first those without pictures, then backbone by backbone, picture by picture.
    notes
        Which combinations were one and the same, and why.
    where, text, settings
        What it was read from, as given, to repeat it.
    """

    name: str
    title: str
    where: str
    text: str
    settings: tuple[str, ...]
    spikes: SpikeSettings
    combinations: tuple[Combination, ...]
    notes: tuple[str, ...]

    @property
    def views(self) -> tuple[View, ...]:
        """What is drawn and described, each once, in order."""
        return tuple(dict.fromkeys(c.view for c in self.combinations if c.view is not None))


def read_grid(where: Path | str, settings: Sequence[str] = (), *, seed: int = 0) -> Grid:
    """Read and check a grid.

    Parameters
    ----------
    where
        A TOML file, or the name of a grid that ships with toptune.
    settings
        Each ``KEY=VALUE`` with a value as in TOML (text may go without quotes), instead of what
        the file says.
    seed
        Of random weights.

    Raises
    ------
    InputErrors
        Unknown keys, values of the wrong type or out of range, options that nothing in the grid
        uses: all of them, each with its line or key.
    InputError
        The file cannot be read or is no TOML.
    """
    source = GridSource.read(where, settings)
    problems: list[str] = []
    axes = _Axes(source, problems)
    axes.take(source.values(problems))
    if not problems:
        axes.refuse_useless()
    grid = None if problems else axes.grid(seed)
    if grid is None:
        raise InputErrors(problems)
    return grid


class _Axes:
    """The values of every option, for all heads and for single ones."""

    def __init__(self, source: GridSource, problems: list[str]) -> None:
        self.source = source
        self.problems = problems
        self.title = source.name
        self.common: dict[str, list[Any]] = {}
        self.of_head: dict[str, dict[str, list[Any]]] = {}

    def take(self, values: Mapping[str, Any]) -> None:
        """Take all keys; what is wrong becomes a problem."""
        for key, value in values.items():
            if key == "title":
                self._take_title(value)
            elif key in heads() and isinstance(value, dict):
                self.of_head[key] = self._section(key, value)
            elif key in OPTIONS:
                self.common[key] = self._axis(key, value, "")
            else:
                self._unknown(self.source.place(key), key, ("title", *OPTIONS, *heads()))

    def _take_title(self, value: Any) -> None:
        if not isinstance(value, str):
            self.problems.append(f"{self.source.place('title')}: takes text, got {value!r}")
        self.title = str(value)

    def _section(self, head: str, values: Mapping[str, Any]) -> dict[str, list[Any]]:
        known = (*(n for n, option in OPTIONS.items() if option.head == head), *IN_SECTIONS)
        axes = {}
        for key, value in values.items():
            if key in known:
                axes[key] = self._axis(key, value, head)
            else:
                self._unknown(self.source.place(key, head), key, known)
        return axes

    def _unknown(self, place: str, key: str, known: Sequence[str]) -> None:
        self.problems.append(f"{place}: there is no option {key}; there are {', '.join(known)}")

    def _axis(self, key: str, value: Any, section: str) -> list[Any]:
        option, place = OPTIONS[key], self.source.place(key, section)
        axis = value if isinstance(value, list) else [value]
        if not axis:
            self.problems.append(f"{place}: an empty list; give at least one value")
        if option.single and isinstance(value, list):
            self.problems.append(f"{place}: takes one value, since spikes are found once")
        for number, one in enumerate(axis):
            self._check(key, one, place)
            if one in axis[:number]:
                self.problems.append(f"{place}: {one!r} is listed twice")
        return axis

    def _check(self, key: str, value: Any, place: str) -> None:
        option = OPTIONS[key]
        inner = value if isinstance(value, list) and option.several else [value]
        try:
            for one in inner:
                option.check(one)
        except InputError as error:
            self.problems.append(f"{place}: {error}")
        else:
            if key == "weights":
                self._check_files(value, place)

    def _check_files(self, value: Any, place: str) -> None:
        sources = value.values() if isinstance(value, dict) else [value]
        self.problems += [
            f"{place}: no such file: {source} (imagenet, random, or a file)"
            for source in sources
            if source not in ("imagenet", "random") and not (self.source.folder / source).is_file()
        ]

    def values(self, key: str) -> list[Any]:
        """Give the values of what all heads share."""
        return self.common.get(key, [_DEFAULTS[key]])

    def refuse_useless(self) -> None:
        """Refuse what no combination would use: a misunderstanding, or a slip."""
        heads = self.values("head")
        # Of a grid that ships with toptune one head may be all that is wanted.
        for head in () if self.source.is_set("head") else self.of_head:
            if head not in heads:
                self._useless(head, f"no combination has the head {head}")
        for key in self.common:
            owner = OPTIONS[key].head
            if owner is not None and owner not in heads:
                self._useless(key, f"it belongs to the head {owner}, which no combination has")
        if not any(_uses_pictures(head) for head in heads):
            self._useless("head", f"{heads[0]} alone needs no sweep: toptune fit does it")
        if "count_axis" in self.common and "histogram" not in self.values("picture"):
            self._useless("count_axis", "a raster has no count axis")
        named = {n for w in self.values("weights") if isinstance(w, dict) for n in w}
        for name in sorted(named - {*self.values("backbone"), OTHERS}):
            self._useless("weights", f"no combination has the backbone {name}")

    def _useless(self, key: str, why: str) -> None:
        self.problems.append(f"{self.source.place(key)}: of no use here: {why}")

    def grid(self, seed: int) -> Grid | None:
        """Put the combinations together; None where that shows new problems."""
        try:
            spikes = _spike_settings({k: self.common[k][0] for k in DETECTION if k in self.common})
        except InputError as error:
            self.problems.append(f"{self.source.shown}: {error}")
            return None
        names = ("backbone", "weights", "picture", "count_axis", "window_s", "stride_s")
        drawn = list(product(*(self.values(name) for name in names)))
        views = dict.fromkeys(self._view(*values, seed=seed) for values in drawn)
        fits = dict.fromkeys(fit for head in self.values("head") for fit in self._fits(head))
        for fit in fits:
            if fit.tried and not fit.tune:
                tried = ", ".join(fit.tried)
                self.problems.append(
                    f"{self.source.shown}: {tried} of {fit.head} has values to be tried inside the"
                    " folds, but tune is false"
                )
        if self.problems:
            return None
        return Grid(
            name=self.source.name,
            title=self.title,
            where=self.source.where,
            text=self.source.text,
            settings=self.source.settings,
            spikes=spikes,
            combinations=(
                *(Combination(view=None, fit=fit) for fit in fits if not _uses_pictures(fit.head)),
                *(
                    Combination(view=view, fit=fit)
                    for view in views
                    for fit in fits
                    if _uses_pictures(fit.head)
                ),
            ),
            notes=tuple(self._notes(len(drawn), len(views))),
        )

    def _view(
        self,
        name: str,
        weights: Any,
        kind: Any,
        axis: Any,
        width_s: Any,
        stride_s: Any,
        *,
        seed: int,
    ) -> View:
        if isinstance(weights, dict):
            weights = weights.get(name, weights.get(OTHERS, _DEFAULTS["weights"]))
        if weights not in ("imagenet", "random"):
            weights = str(self.source.folder / weights)
        return View(
            Windows(width_s=float(width_s), stride_s=float(stride_s)),
            # A raster has no count axis, so all axes give the same raster.
            Picture(kind=kind, count_axis=_DEFAULTS["count_axis"] if kind == "raster" else axis),
            Backbone(name=name, weights=weights, seed=seed),
        )

    def _fits(self, head: str) -> Iterator[FitOptions]:
        shared = ("merge", "group_by", "strata", "tune", "permutations")
        axes = {name: self.values(name) for name in shared}
        axes |= {k: v for k, v in self.common.items() if OPTIONS[k].head == head}
        axes |= self.of_head.get(head, {})
        for values in product(*axes.values()):
            chosen = dict(zip(axes, values, strict=True))
            merge = chosen.pop("merge")
            merges = merge if isinstance(merge, list) else [merge]
            common = {name: chosen.pop(name) for name in shared[1:]}
            yield FitOptions(
                head=head,
                fixed={k: v for k, v in chosen.items() if not isinstance(v, list)},
                tried={k: tuple(v) for k, v in chosen.items() if isinstance(v, list)},
                merge=tuple(m for m in merges if m != NO_MERGE),
                **common,
            )

    def _notes(self, n_drawn: int, n_views: int) -> Iterator[str]:
        if n_drawn > n_views:
            yield (
                f"{n_drawn} combinations of picture, windows and backbone are {n_views}: a raster"
                " has no count axis, and a backbone takes its own weights from a table"
            )
        heads = self.values("head")
        for head in heads:
            if not _uses_pictures(head):
                yield f"the head {head} uses no pictures: it is fitted once for all of them"
        for key, values in self.common.items():
            owner = OPTIONS[key].head
            if owner is not None and len(values) > 1 and len(heads) > 1:
                yield f"{key} belongs to the head {owner}: the others do not vary with it"


def _uses_pictures(head: str) -> bool:
    return head_of(head).uses == "pictures"


def _spike_settings(values: Mapping[str, Any]) -> SpikeSettings:
    ptsd = {k: v for k, v in values.items() if k in Ptsd.__dataclass_fields__}
    highpass = HighPass(cutoff_hz=values["highpass_hz"]) if "highpass_hz" in values else HighPass()
    return SpikeSettings(
        highpass=highpass,
        ptsd=Ptsd(**ptsd),
        stream=values.get("stream"),
        sampling_rate_hz=values.get("sampling_rate_hz"),
    )
