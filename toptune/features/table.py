"""The table that classifiers are trained on: one row per window, and where each row comes from.

Tables of several feature sets of one store become one, their columns side by side, window by
window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError, ToptuneError
from toptune.heads.streaming import Features, is_streamed, side_by_side, take_rows
from toptune.machine.display import count, summary_html, summary_line

# Times nearer than this are equal: far finer than any sampling interval, and coarse enough that
# centres which differ by rounding only are one, so that a tie is a tie.
SAME_S = 1e-6


@dataclass(frozen=True)
class RecordingInfo:
    """One line of the devices file."""

    name: str  # of the recording in the store
    device: str  # the device (culture) it was recorded from
    label: str  # its class
    columns: dict[str, str]  # further columns of the devices file, such as batch or div


@dataclass(frozen=True)
class View:
    """The columns of a table that come from one feature set."""

    name: str  # the set's description, one line for people
    key: str  # the set's key in the store
    n_columns: int
    params: dict[str, Any]  # JSON-able: windows, picture, backbone, as in the store

    def to_json(self) -> dict[str, Any]:
        """Plain values, which ``View(**values)`` reads back."""
        return dict(vars(self))


class Dropped(NamedTuple):
    """What joining feature sets left out."""

    n_windows: int  # of the set with the widest windows, not in the joined table
    # Those of which nothing is left, because a set has no window of them (too short) or none of
    # its windows lies near.
    recordings: tuple[str, ...]


NOTHING_DROPPED = Dropped(0, ())


@dataclass(frozen=True)
class FeatureTable:
    """All windows of a data set."""

    # (n_windows, d) float32; of several sets side by side, as `views` says. Streamed where they do
    # not fit into memory.
    features: Features
    # (n_windows,), seconds since the recording's start; of several windows in one row the widest.
    start_s: NDArray[np.float64]
    recording: NDArray[np.int64]  # (n_windows,), rows of `recordings`
    recordings: tuple[RecordingInfo, ...]
    # JSON-able: the parameters, the weights' sha256 and the format version that made `features`.
    provenance: dict[str, Any]
    # From left to right; none where nobody says, which stands for one view of all columns.
    views: tuple[View, ...] = ()
    dropped: Dropped = NOTHING_DROPPED

    def __post_init__(self) -> None:
        if sum(self.view_sizes) != self.features.shape[1]:
            raise ToptuneError(
                f"views of {self.view_sizes} columns do not make up the"
                f" {self.features.shape[1]} columns of the features"
            )

    @property
    def view_sizes(self) -> tuple[int, ...]:
        """Columns of each view, from left to right."""
        if not self.views:
            return (self.features.shape[1],)
        return tuple(view.n_columns for view in self.views)

    @property
    def streamed(self) -> bool:
        """Whether features are read from the store whenever they are looked at."""
        return is_streamed(self.features)

    def spread(self, most: int) -> FeatureTable:
        """Take at most so many windows of each recording, evenly spread; the table if all are.

        Of n windows that are too many, the ones numbered ``floor(i n / most)`` are taken.
        """
        counts = np.bincount(self.recording, minlength=len(self.recordings))
        if counts.max(initial=0) <= most:
            return self
        order = np.argsort(self.recording, kind="stable")
        starts = np.cumsum(counts) - counts
        rows = [
            order[start + (np.arange(min(n, most)) * n) // min(n, most)]
            for start, n in zip(starts.tolist(), counts.tolist(), strict=True)
            if n
        ]
        kept = np.sort(np.concatenate(rows))
        return replace(
            self,
            features=take_rows(self.features, kept),
            start_s=self.start_s[kept],
            recording=self.recording[kept],
        )

    def to_pandas(self) -> Any:
        """Give a pandas DataFrame with a row per window.

        Returns
        -------
        pandas.DataFrame
            First ``device``, ``label``, ``recording`` (its name in the store), ``start_s``
            (seconds, float64) and the devices file's further columns, as text; then the features,
            float32: burst parameters by their names, others ``f0``, ``f1`` and so on, and of
            several feature sets ``1:f0``.

        Raises
        ------
        InputError
            pandas is not installed.
        """
        from toptune.features.exports import to_pandas

        return to_pandas(self)

    def to_xarray(self) -> Any:
        """Give an xarray DataArray.

        Returns
        -------
        xarray.DataArray
            (window, feature) float32. What `to_pandas` puts before the features are coordinates of
            ``window``; ``feature`` has the features' names and ``feature_set`` where each is from.
            The attribute ``provenance`` is JSON.

        Raises
        ------
        InputError
            xarray is not installed.
        """
        from toptune.features.exports import to_xarray

        return to_xarray(self)

    def to_anndata(self) -> Any:
        """Give an AnnData object, for scanpy and its like.

        Returns
        -------
        anndata.AnnData
            ``X`` (windows, features) float32, the table's own array and no copy; ``obs`` with what
            `to_pandas` puts before the features; ``var`` with the features' names and
            ``feature_set``; ``uns["provenance"]`` is JSON.

        Raises
        ------
        InputError
            anndata is not installed.
        """
        from toptune.features.exports import to_anndata

        return to_anndata(self)

    def __repr__(self) -> str:
        return summary_line("FeatureTable", self._told())

    def _repr_html_(self) -> str:
        counts = np.bincount(self.recording, minlength=len(self.recordings)).tolist()
        rows = (
            (info.device, info.label, info.name, n)
            for info, n in zip(self.recordings, counts, strict=True)
        )
        header = ("device", "label", "recording", "windows")
        told = [*self._told(), *(f"features: {view.name}" for view in self.views)]
        return summary_html("FeatureTable", told, header, rows, n_rows=len(self.recordings))

    def _told(self) -> list[str]:
        n, columns = self.features.shape
        devices = len({info.device for info in self.recordings})
        labels = len({info.label for info in self.recordings})
        recordings = count(len(self.recordings), "recording")
        return [
            f"{count(n, 'window')} x {count(columns, 'column')}",
            f"{recordings} of {count(devices, 'device')} with {count(labels, 'label')}",
        ]


def match_windows(
    starts: Sequence[NDArray[np.float64]], widths_s: Sequence[float], strides_s: Sequence[float]
) -> tuple[NDArray[np.int64], ...]:
    """Find which windows of several kinds belong together, in one recording.

    The kind with the widest windows, the first of equals, leads. Each of its windows gets from
    every other kind the window whose centre is nearest, of two equally near the earlier. Further
    than half the coarser of both strides is too far, and the window is left out. Where both kinds
    have windows around a time, the nearest is never further than that: what is left out lies at
    the end of a stretch or beside a gap, where the other kind has no window. Windows of one width
    and stride meet exactly.

    `starts` of each kind, in seconds, ascend; none of a kind is allowed. Returns for each kind,
    (m,), which of its windows are in the m matches, in the leading kind's order; a window of
    another kind may be in several.
    """
    lead = leading_kind(widths_s)
    centres = [s + width / 2 for s, width in zip(starts, widths_s, strict=True)]
    kept = np.ones(len(centres[lead]), dtype=bool)
    nearest = []
    for centre_s, stride_s in zip(centres, strides_s, strict=True):
        if not len(centre_s):
            return tuple(np.empty(0, dtype=np.int64) for _ in centres)
        rows = _nearest(centres[lead], centre_s)
        reach_s = max(stride_s, strides_s[lead]) / 2
        kept &= np.abs(centre_s[rows] - centres[lead]) <= reach_s + SAME_S
        nearest.append(rows)
    return tuple(rows[kept] for rows in nearest)


def leading_kind(widths_s: Sequence[float]) -> int:
    """Which kind of windows the others are matched to: the widest, of equals the first."""
    return int(np.argmax(widths_s))


def _nearest(wanted_s: NDArray[np.float64], there_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the nearest of `there_s`, which ascends and is not empty."""
    if np.any(np.diff(there_s) <= SAME_S):
        raise ToptuneError("windows to match must be in the order of time, each at its own")
    following = np.searchsorted(there_s, wanted_s)
    before = (following - 1).clip(min=0)
    after = following.clip(max=len(there_s) - 1)
    gain_s = np.abs(there_s[before] - wanted_s) - np.abs(there_s[after] - wanted_s)
    # Of two equally near windows the earlier one wins.
    nearest: NDArray[np.int64] = np.where(gain_s > SAME_S, after, before).astype(np.int64)
    return nearest


# --- several feature sets of one store


def join_tables(tables: Sequence[FeatureTable]) -> FeatureTable:
    """Put the features of several sets side by side, window by window.

    Windows of each recording are matched by `match_windows`. Recordings of which nothing is left
    and the number of windows without a partner are named in `dropped`.

    Parameters
    ----------
    tables : sequence of FeatureTable
        As `FeatureStore.table` gives them, from one store; a single one is given back as it is.

    Returns
    -------
    FeatureTable
        Columns in the order of `tables`, windows in the order of the table with the widest. Its
        `provenance` has ``views``, a list of `View.to_json`, in place of the single set's
        ``features`` and ``features_key``, and ``dropped``.

    Raises
    ------
    InputError
        No table, the same feature set twice, tables of different stores, a recording listed twice,
        or no window that all sets have.
    """
    if not tables:
        raise InputError("there is no feature set to fit: name at least one")
    if len(tables) == 1:
        return tables[0]
    _refuse_equal_sets(tables)
    for table in tables[1:]:
        _refuse_other_store(tables[0], table)
    matches = _match_recordings(tables)
    lead = leading_kind([_windows(table)["width_s"] for table in tables])
    used = np.unique(tables[lead].recording[matches[lead]])
    if not len(used):
        names = " and ".join(f"'{_view(table).name}'" for table in tables)
        raise InputError(f"the feature sets {names} have no window in common in any recording")
    lost = {info.name for table in tables for info in table.recordings}
    lost |= {name for table in tables for name in table.provenance["too_short"]}
    lost -= {tables[lead].recordings[row].name for row in used}
    listed = tables[0].provenance["inputs"]
    dropped = Dropped(
        len(tables[lead].features) - len(matches[lead]), tuple(n for n in listed if n in lost)
    )
    views = tuple(_view(table) for table in tables)
    return FeatureTable(
        features=side_by_side(
            [take_rows(table.features, r) for table, r in zip(tables, matches, strict=True)]
        ),
        start_s=tables[lead].start_s[matches[lead]],
        recording=np.searchsorted(used, tables[lead].recording[matches[lead]]).astype(np.int64),
        recordings=tuple(tables[lead].recordings[row] for row in used),
        provenance=_joined_provenance(tables, views, dropped),
        views=views,
        dropped=dropped,
    )


def _joined_provenance(
    tables: Sequence[FeatureTable], views: tuple[View, ...], dropped: Dropped
) -> dict[str, Any]:
    shared = {name: tables[0].provenance[name] for name in ("format_version", "settings")}
    too_short = {name for table in tables for name in table.provenance["too_short"]}
    missing = _missing(*tables)
    inputs = {n: i for n, i in tables[0].provenance["inputs"].items() if n not in missing}
    made_with = [table.provenance.get("made_with", {}) for table in tables]
    return {
        **shared,
        "inputs": inputs,
        "made_with": {key: made for one in made_with for key, made in one.items()},
        "missing": missing,
        "too_short": [name for name in inputs if name in too_short],
        "views": [view.to_json() for view in views],
        "dropped": {"n_windows": dropped.n_windows, "recordings": list(dropped.recordings)},
    }


def _missing(*tables: FeatureTable) -> list[str]:
    """Name the recordings that some of the sets lack, and that were left out knowingly."""
    return list(dict.fromkeys(n for t in tables for n in t.provenance.get("missing", [])))


def _view(table: FeatureTable) -> View:
    if len(table.views) != 1:
        raise ToptuneError(f"only tables of one feature set each can be joined, got {table.views}")
    return table.views[0]


def _windows(table: FeatureTable) -> dict[str, float]:
    windows: dict[str, float] = _view(table).params["windows"]
    return windows


def _refuse_equal_sets(tables: Sequence[FeatureTable]) -> None:
    for a, b in combinations(map(_view, tables), 2):
        if a.key == b.key:
            raise InputError(f"the feature set '{a.name}' ({a.key[:8]}) is named twice")


def _refuse_other_store(first: FeatureTable, other: FeatureTable) -> None:
    """Refuse sets that differ in settings, in recordings, or in what was read of them."""
    both = f"the feature sets '{_view(first).name}' and '{_view(other).name}'"
    where = "join feature sets of one store"
    here, there = first.provenance["inputs"], other.provenance["inputs"]
    for name in sorted({*here, *there} - {*_missing(first, other)}):
        if here.get(name) != there.get(name):
            raise InputError(f"{both} were not made from the same recording {name}: {where}")
    if first.provenance["settings"] != other.provenance["settings"]:
        raise InputError(f"{both} were made from spikes found with different settings: {where}")
    known = {info.name: info for info in first.recordings}
    for info in other.recordings:
        if known.get(info.name, info) != info:
            raise InputError(f"{both} disagree on recording {info.name}'s device or label: {where}")


def _match_recordings(tables: Sequence[FeatureTable]) -> list[NDArray[np.int64]]:
    """Rows of each table that belong together, recording by recording in the leader's order."""
    widths = [_windows(table)["width_s"] for table in tables]
    strides = [_windows(table)["stride_s"] for table in tables]
    rows_of = [_rows_by_recording(table) for table in tables]
    none = np.empty(0, dtype=np.int64)
    found: list[list[NDArray[np.int64]]] = [[none] for _ in tables]
    for name in rows_of[leading_kind(widths)]:
        rows = [by_name.get(name, none) for by_name in rows_of]
        starts = [table.start_s[r] for table, r in zip(tables, rows, strict=True)]
        matches = match_windows(starts, widths, strides)
        for parts, r, match in zip(found, rows, matches, strict=True):
            parts.append(r[match])
    return [np.concatenate(parts) for parts in found]


def _rows_by_recording(table: FeatureTable) -> dict[str, NDArray[np.int64]]:
    counts = Counter(info.name for info in table.recordings)
    name, count = counts.most_common(1)[0]
    if count > 1:
        raise InputError(f"recording {name} is in the table {count} times")
    order = np.argsort(table.recording, kind="stable")
    bounds = np.cumsum(np.bincount(table.recording, minlength=len(table.recordings)))[:-1]
    parts = np.split(order, bounds)
    return {info.name: part for info, part in zip(table.recordings, parts, strict=True)}
