"""The grid of a sweep: which options take which values, and the points that these span.

A grid is a TOML file, or one that ships with toptune. Its keys are the options' names with
underscores; a list is an axis; a section named after a head sets options for that head alone.
Settings such as ``stride_s=60`` replace what the file says. Everything that is wrong is told at
once, each with its line or key.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from toptune.backbones.names import require_known
from toptune.errors import InputError, InputErrors
from toptune.heads.catalogue import head_of, heads
from toptune.params import (
    Backbone,
    FitOptions,
    Option,
    Picture,
    SpikeSettings,
    Windows,
    from_options,
    options_of,
    parse_merges,
    parse_setting,
)

#: Key of a table of weights for backbones that are not named in it.
OTHERS = "others"
#: What stands for no merge of classes.
NO_MERGE = "none"
#: What a section of a head may set beside the head's own options.
IN_SECTIONS = ("tune", "permutations")

# In the order in which they vary, the last one fastest; with the class whose options they are.
_DRAWN: dict[str, type] = {
    **dict.fromkeys(("backbone", "weights"), Backbone),
    **dict.fromkeys(("picture", "count_axis"), Picture),
    **dict.fromkeys(("window_s", "stride_s"), Windows),
}
_FITTED = tuple(one.name for one in options_of(FitOptions) if one.name != "seed")
_SPIKES = tuple(one.name for one in options_of(SpikeSettings))
_DEFAULTS: dict[str, Any] = {
    one.name: one.default
    for cls in (Backbone, Picture, Windows, FitOptions)
    for one in options_of(cls)
} | {"head": "falkon", "merge": NO_MERGE}


class PictureView(NamedTuple):
    """What is drawn, and what describes it."""

    windows: Windows
    picture: Picture
    backbone: Backbone


@dataclass(frozen=True, kw_only=True)
class GridPoint:
    """One point of a grid: what is drawn, what describes it, and what is trained on it."""

    view: PictureView | None  # None for a head that is trained on burst parameters
    fit: FitOptions


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A checked grid."""

    name: str  # of the file, without its ending, or as it ships with toptune
    title: str  # for people
    where: str  # this and the next two: what it was read from, to repeat it
    text: str
    settings: tuple[str, ...]
    spikes: SpikeSettings  # the same for all points
    # Each once; first those without pictures, then backbone by backbone, picture by picture.
    points: tuple[GridPoint, ...]
    notes: tuple[str, ...]  # which points were one and the same, and why

    @property
    def views(self) -> tuple[PictureView, ...]:
        """What is drawn and described, each once, in order."""
        return tuple(dict.fromkeys(p.view for p in self.points if p.view is not None))


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
        The file cannot be read or is not TOML.
    """
    source = _Source.read(where, settings)
    problems: list[str] = []
    axes = _Axes(source, problems)
    axes.take(source.values(problems))
    if not problems:
        axes.refuse_useless()
    grid = None if problems else axes.grid(seed)
    if grid is None:
        raise InputErrors(problems)
    return grid


def shipped_grids() -> tuple[str, ...]:
    """Names of the grids that come with toptune."""
    found = (file.name for file in files("toptune.sweeps").joinpath("grids").iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml")))


# --- what a grid says, and where


@dataclass(frozen=True)
class _Source:
    """Where a grid comes from, what it says, and where in it a key stands."""

    name: str  # without folder and ending
    where: str  # as given
    shown: str  # in messages
    folder: Path  # where the files it names are looked for
    text: str
    settings: tuple[str, ...]  # each KEY=VALUE, instead of what the text says

    @classmethod
    def read(cls, where: Path | str, settings: Sequence[str]) -> _Source:
        """Read a file, or a grid that ships with toptune."""
        path, given = Path(where), tuple(settings)
        if str(where) in shipped_grids() and not path.is_file():
            text = files("toptune.sweeps").joinpath("grids", f"{where}.toml").read_text("utf-8")
            return cls(str(where), str(where), f"the grid {where}", Path(), text, given)
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise InputError(
                f"{path}: cannot be read ({why}); give a TOML file, or one of"
                f" {', '.join(shipped_grids())}, which come with toptune"
            ) from None
        return cls(path.stem, str(where), str(path), path.parent, text, given)

    def values(self, problems: list[str]) -> dict[str, Any]:
        """Give what the text and the settings say together; unreadable settings are problems."""
        try:
            values = tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{self.shown}: not TOML: {error}") from None
        for setting in self.settings:
            try:
                changed = parse_setting(setting)
            except InputError as error:
                problems.append(str(error))
                continue
            for key, value in changed.items():
                if isinstance(value, dict) and isinstance(values.get(key), dict) and key in heads():
                    values[key] |= value
                else:
                    values[key] = _from_here(key, value)
        return values

    def place(self, key: str, section: str = "") -> str:
        """Say where a key stands: in a setting, or in the text, with its line if it has one."""
        full = f"{section}.{key}" if section else key
        if self.is_set(full):
            return f"setting {full}"
        at = ""
        for number, line in enumerate(self.text.splitlines(), 1):
            header = re.match(r"\s*\[\s*([\w-]+)\s*\]", line)
            at = header[1] if header else at
            named = header and not section and header[1] == key
            if named or (at == section and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line)):
                return f"{self.shown}, line {number}: {full}"
        return f"{self.shown}: {full}"

    def is_set(self, key: str) -> bool:
        """Whether a setting gives this key."""
        return key in {setting.partition("=")[0].strip() for setting in self.settings}


def _from_here(key: str, value: Any) -> Any:
    """Let files named by settings be looked for from the working folder."""
    if key != "weights":
        return value
    if isinstance(value, list):
        return [_from_here(key, one) for one in value]
    if isinstance(value, dict):
        return {name: _from_here(key, one) for name, one in value.items()}
    named = isinstance(value, str) and value not in ("imagenet", "random")
    return str(Path(value).resolve()) if named else value


# --- what may be set


def _of_heads() -> dict[str, dict[str, Option]]:
    """Options of heads, by name; each by the names of the heads that have it."""
    found: dict[str, dict[str, Option]] = {}
    for name, head in heads().items():
        for one in head.options:
            found.setdefault(one.name, {})[name] = one
    return found


def grid_keys() -> tuple[str, ...]:
    """All options that a grid may set, beside its title."""
    drawn = (one.name for cls in (Picture, Windows, Backbone) for one in options_of(cls))
    keys = (*drawn, "head", *_FITTED, *_of_heads(), *_SPIKES)
    return tuple(dict.fromkeys(key for key in keys if key != "seed"))


def _check_head(value: Any) -> None:
    if value not in heads():
        raise InputError(f"takes {' or '.join(heads())}, got {value!r}")


def _check_merge(value: Any) -> None:
    if not isinstance(value, str):
        raise InputError(f"takes text, got {value!r}")
    if value != NO_MERGE:
        parse_merges([value])


def _check_weights(value: Any) -> None:
    """Accept a source of weights, or a table of sources by backbone."""
    for name, source in value.items() if isinstance(value, dict) else [("", value)]:
        if name and (not isinstance(source, str) or not source):
            raise InputError(f"takes a source for {name} as text, got {source!r}")
        Backbone(weights=source)


def _check_spikes(key: str, value: Any) -> None:
    # Each of the two needs the other.
    fixed: dict[str, Any] = {"noise": "fixed", "threshold_uv": 50.0}
    needs_other = key == "threshold_uv" or value == "fixed"
    from_options(SpikeSettings, {**(fixed if needs_other else {}), key: value})


_CHECKS = {"head": _check_head, "merge": _check_merge, "weights": _check_weights}


def _check(key: str, value: Any) -> None:
    """Refuse a value that an option does not take."""
    if key in _CHECKS:
        _CHECKS[key](value)
    elif key in _DRAWN:
        from_options(_DRAWN[key], {key: value})
    elif key in _SPIKES:
        _check_spikes(key, value)
    elif key in _FITTED:
        FitOptions(head="falkon", **{key: value})
    else:
        for head in _of_heads()[key]:
            head_of(head).check_option(key, value)


# --- from values to points


class _Axes:
    """The values of every option, for all heads and for single ones."""

    def __init__(self, source: _Source, problems: list[str]) -> None:
        self.source = source
        self.problems = problems
        self.title = source.name
        self.owners = _of_heads()
        self.common: dict[str, list[Any]] = {}
        self.of_head: dict[str, dict[str, list[Any]]] = {}

    def take(self, values: Mapping[str, Any]) -> None:
        """Take all keys; what is wrong becomes a problem."""
        known = grid_keys()
        for key, value in values.items():
            if key == "title":
                self._take_title(value)
            elif key in heads() and isinstance(value, dict):
                self.of_head[key] = self._section(key, value)
            elif key in known:
                self.common[key] = self._axis(key, value, "")
            else:
                self._unknown(self.source.place(key), key, ("title", *known, *heads()))

    def _take_title(self, value: Any) -> None:
        if not isinstance(value, str):
            self.problems.append(f"{self.source.place('title')}: takes text, got {value!r}")
        self.title = str(value)

    def _section(self, head: str, values: Mapping[str, Any]) -> dict[str, list[Any]]:
        known = (*(one.name for one in head_of(head).options), *IN_SECTIONS)
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
        place = self.source.place(key, section)
        axis = value if isinstance(value, list) else [value]
        if not axis:
            self.problems.append(f"{place}: an empty list; give at least one value")
        if key in _SPIKES and isinstance(value, list):
            self.problems.append(f"{place}: takes one value, since spikes are found once")
        for number, one in enumerate(axis):
            self._check(key, one, place)
            if one in axis[:number]:
                self.problems.append(f"{place}: {one!r} is listed twice")
        return axis

    def _check(self, key: str, value: Any, place: str) -> None:
        several = key == "merge" or any(o.several for o in self.owners.get(key, {}).values())
        try:
            for one in value if isinstance(value, list) and several else [value]:
                _check(key, one)
                if key == "backbone":
                    require_known(one)
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
        """Refuse what no point would use: a misunderstanding, or a slip."""
        chosen = self.values("head")
        # Of a grid that ships with toptune one head may be all that is wanted.
        for head in () if self.source.is_set("head") else self.of_head:
            if head not in chosen:
                self._useless(head, f"no combination has the head {head}")
        for key in self.common:
            owners = self.owners.get(key, {})
            if owners and not set(owners) & set(chosen):
                names = " or ".join(owners)
                self._useless(key, f"it belongs to the head {names}, which no combination has")
        if not any(_uses_pictures(head) for head in chosen):
            self._useless("head", f"{chosen[0]} alone needs no sweep: `fit` does it")
        if "count_axis" in self.common and "histogram" not in self.values("picture"):
            self._useless("count_axis", "only a histogram has a count axis")
        named = {n for w in self.values("weights") if isinstance(w, dict) for n in w}
        for name in sorted(named - {*self.values("backbone"), OTHERS}):
            self._useless("weights", f"no combination has the backbone {name}")

    def _useless(self, key: str, why: str) -> None:
        self.problems.append(f"{self.source.place(key)}: of no use here: {why}")

    def grid(self, seed: int) -> Grid | None:
        """Put the points together; None where that shows new problems."""
        try:
            spikes = from_options(
                SpikeSettings, {k: self.common[k][0] for k in _SPIKES if k in self.common}
            )
        except InputError as error:
            self.problems.append(f"{self.source.shown}: {error}")
            return None
        drawn = [
            dict(zip(_DRAWN, values, strict=True))
            for values in product(*(self.values(name) for name in _DRAWN))
        ]
        views = dict.fromkeys(self._view(values, seed) for values in drawn)
        fits = dict.fromkeys(fit for head in self.values("head") for fit in self._fits(head))
        for fit in fits:
            if fit.tried and not fit.tune:
                self.problems.append(
                    f"{self.source.shown}: {', '.join(fit.tried)} of {fit.head} has values to be"
                    " tried inside the folds, but tune is false"
                )
        if self.problems:
            return None
        with_pictures = [fit for fit in fits if _uses_pictures(fit.head)]
        without = [fit for fit in fits if not _uses_pictures(fit.head)]
        return Grid(
            name=self.source.name,
            title=self.title,
            where=self.source.where,
            text=self.source.text,
            settings=self.source.settings,
            spikes=spikes,
            points=(
                *(GridPoint(view=None, fit=fit) for fit in without),
                *(GridPoint(view=view, fit=fit) for view in views for fit in with_pictures),
            ),
            notes=tuple(self._notes(len(drawn), len(views))),
        )

    def _view(self, values: dict[str, Any], seed: int) -> PictureView:
        weights = values["weights"]
        if isinstance(weights, dict):
            weights = weights.get(values["backbone"], weights.get(OTHERS, _DEFAULTS["weights"]))
        if weights not in ("imagenet", "random"):
            weights = str(self.source.folder / weights)
        # Other pictures have no count axis, so all axes give the same one.
        axis = values if values["picture"] == "histogram" else _DEFAULTS
        lengths = {name: float(values[name]) for name in ("window_s", "stride_s")}
        exact = {**values, **lengths, "count_axis": axis["count_axis"]}
        return PictureView(
            from_options(Windows, exact),
            from_options(Picture, exact),
            Backbone(name=values["backbone"], weights=weights, seed=seed),
        )

    def _fits(self, head: str) -> Iterator[FitOptions]:
        own = {one.name: one for one in head_of(head).options}
        axes = {name: self.values(name) for name in _FITTED}
        axes |= {key: values for key, values in self.common.items() if key in own}
        axes |= self.of_head.get(head, {})
        for values in product(*axes.values()):
            chosen = dict(zip(axes, values, strict=True))
            merge = chosen["merge"] if isinstance(chosen["merge"], list) else [chosen["merge"]]
            given = {own[key].field: value for key, value in chosen.items() if key in own}
            yield FitOptions(
                head=head,
                fixed={k: v for k, v in given.items() if not isinstance(v, list)},
                tried={k: tuple(v) for k, v in given.items() if isinstance(v, list)},
                **{name: chosen[name] for name in _FITTED if name != "merge"},
                merge=tuple(m for m in merge if m != NO_MERGE),
            )

    def _notes(self, n_drawn: int, n_views: int) -> Iterator[str]:
        if n_drawn > n_views:
            yield (
                f"{n_drawn} combinations of picture, windows and backbone are {n_views}: only a"
                " histogram has a count axis, and a backbone takes its own weights from a table"
            )
        chosen = self.values("head")
        for head in chosen:
            if not _uses_pictures(head):
                yield f"the head {head} uses no pictures: it is fitted once for all of them"
        for key, values in self.common.items():
            owners = self.owners.get(key, {})
            if owners and len(values) > 1 and not set(chosen) <= set(owners):
                names = " or ".join(owners)
                yield f"{key} belongs to the head {names}: the others do not vary with it"


def _uses_pictures(head: str) -> bool:
    return head_of(head).uses == "pictures"
