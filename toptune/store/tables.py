"""Tables of burst parameters from the spikes of a store, and the tables that words ask for.

A store and words of the command line enter; a `FeatureTable` leaves. Burst parameters are not
stored: they are measured anew, from the spikes, and the table's provenance says how.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.features.burst_features import (
    KIND,
    BurstExtractor,
    BurstFeatureParams,
    ChooseWindows,
)
from toptune.features.extractor import FeatureRows
from toptune.features.table import FeatureTable, join_tables, match_windows
from toptune.heads.base import Head
from toptune.heads.catalogue import head_of, heads
from toptune.machine.device import available_memory
from toptune.machine.threads import in_threads, thread_pool
from toptune.params import Windows, content_key
from toptune.store.feature_store import FeatureSet, FeatureStore

# Of the command line: `parameters`, or `parameters 30 s`, or as a table describes itself,
# `parameters, 30 s every 5 s`.
_WORDS = re.compile(rf"{KIND}(?:,?\s+([\d.]+)\s*s(?:\s+every\s+([\d.]+)\s*s)?)?")

# Features are streamed where so many copies, as training in memory makes, take more than this share
# of the memory at hand: read, put together, and normalised. A head that does not stream is refused
# only where two do not fit at all.
_COPIES = 3
_MEMORY_SHARE = 0.5
_LEAST_COPIES = 2

Progress = Callable[[str, int, int], None]


def parameter_table(
    store: FeatureStore,
    params: BurstFeatureParams,
    *,
    beside: FeatureTable | None = None,
    only: Collection[str] | None = None,
    allow_incomplete: bool = False,
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> FeatureTable:
    """Measure all listed recordings of a store, which needs spikes but no features of them.

    Beside a table of at least as wide windows, only windows that `join_tables` would match to its
    are measured. `only` names the recordings that are wanted, where not all are. Recordings without
    spikes are left out if `allow_incomplete`. `n_jobs` threads measure, one a core if not given.
    `progress` is told what is done, how many recordings are, and how many there are.

    Raises
    ------
    InputError
        A recording has no published spikes, or none is as long as a window.
    """
    inputs = _inputs(store, only, allow_incomplete)
    extractor = BurstExtractor(params)
    choose = _matched_to(beside, params.windows)
    done = 0

    def measure(name: str) -> FeatureRows:
        nonlocal done
        rows = extractor.measure(store.read_spikes(name), choose(name))
        done += 1
        if progress is not None:
            progress("burst parameters", done, len(inputs))
        return rows

    with thread_pool(n_jobs) as pool:
        rows = dict(zip(inputs, in_threads(pool, measure, inputs), strict=True))
    plain = params.to_json()
    return store.assemble(params.description, content_key(plain), plain, rows, inputs)


def _matched_to(
    beside: FeatureTable | None, windows: Windows | None
) -> Callable[[str], ChooseWindows | None]:
    """Tell of each recording which windows go with those of a table; None: all do."""
    if beside is None or windows is None:
        return lambda _: None
    other = Windows.from_json(beside.views[0].params["windows"])
    if windows.width_s > other.width_s:
        return lambda _: None
    number = {info.name: row for row, info in enumerate(beside.recordings)}

    def of(name: str) -> ChooseWindows:
        starts = np.sort(beside.start_s[beside.recording == number.get(name, -1)])

        def choose(start_s: NDArray[np.float64]) -> NDArray[np.int64]:
            widths, strides = (other.width_s, windows.width_s), (other.stride_s, windows.stride_s)
            return np.unique(match_windows((starts, start_s), widths, strides)[1])

        return choose

    return of


def _inputs(
    store: FeatureStore, only: Collection[str] | None, allow_incomplete: bool
) -> dict[str, dict[str, str]]:
    """Look up what was read of each recording."""
    listed = [r.name for r in store.recordings if only is None or r.name in only]
    infos = store.spikes_infos(listed)
    missing = [name for name, info in infos.items() if info is None]
    if (missing and not allow_incomplete) or len(missing) == len(infos):
        first = f", first {missing[0]}" if missing else ""
        raise InputError(
            f"{store.path}: {len(missing)} of {len(infos)} recordings have no spikes{first}: run"
            " extract again, it goes on where it stopped, or fit the rest with"
            " `allow_incomplete=True`"
        )
    return {name: info["input"] for name, info in infos.items() if info is not None}


def table_for(
    store: FeatureStore,
    head: str,
    features: Sequence[str] = (),
    *,
    windows_per_recording: int | None = None,
    allow_incomplete: bool = False,
    stream: bool | None = None,
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> FeatureTable:
    """Build the table that a head is to be trained on.

    Parameters
    ----------
    store : FeatureStore
    head : str
        ``parameters`` is trained on whole recordings' parameters, the others on windows.
    features : sequence of str
        Which feature sets of the store, as `FeatureStore.choose` takes them, and ``parameters``
        for burst parameters of the same windows; ``parameters 30 s every 5 s`` for others. None:
        all of the store and ``parameters``, for a head that fuses; the only one, for another.
    windows_per_recording : int, optional
        As of `FitOptions`: the most windows of each recording, evenly spread; 0: all.
    allow_incomplete : bool
        Leave recordings that lack something out, instead of refusing.
    stream : bool, optional
        Whether features stay in the store, and are read whenever they are looked at. By default
        they do where three times their size, which training in memory takes, is more than half of
        the memory at hand, and the head can be trained so.
    n_jobs, progress
        Of `parameter_table`.

    Raises
    ------
    InputError
        Words that name no feature set or several, sets that do not fit together, missing spikes, or
        features that do not fit into memory, where the head needs them there.
    """

    def measure(params: BurstFeatureParams, beside: FeatureTable | None = None) -> FeatureTable:
        return parameter_table(
            store,
            params,
            beside=beside,
            allow_incomplete=allow_incomplete,
            n_jobs=n_jobs,
            progress=progress,
        )

    chosen = head_of(head)
    if chosen.uses == "recordings":
        if features:
            raise InputError(
                f'`features` chooses features of windows; `head="{head}"` is trained on burst'
                " parameters of whole recordings: leave `features` out"
            )
        return measure(BurstFeatureParams())
    named = features or _default_features(store, head) or (None,)
    asked = [_WORDS.fullmatch(words.strip().lower()) if words else None for words in named]
    sets = {place: store.choose(named[place]) for place, match in enumerate(asked) if match is None}
    streams = _must_stream(store, sets.values()) if stream is None else stream
    read = {
        place: store.table(one, allow_incomplete=allow_incomplete, stream=streams)
        for place, one in sets.items()
    }
    tables = _spread(read, chosen.at_most(windows_per_recording))
    lead = max(tables.values(), key=_width_s, default=None)
    for place, match in enumerate(asked):
        if match is not None:
            windows = _windows(store, match, list(read.values()))
            tables[place] = measure(BurstFeatureParams(windows=windows), lead)
    joined = join_tables([tables[place] for place in range(len(named))])
    return _in_memory(joined, chosen) if streams and stream is None else joined


def _must_stream(store: FeatureStore, sets: Iterable[FeatureSet]) -> bool:
    """Whether feature sets are too large to be trained on in memory, all their windows together."""
    return sum(map(store.size_of, sets)) * _COPIES > _MEMORY_SHARE * available_memory()


def _in_memory(table: FeatureTable, head: Head) -> FeatureTable:
    """Read the features that are left of a table, unless they must stay where they are."""
    size, there = table.features.nbytes, available_memory()
    if head.streams and size * _COPIES > _MEMORY_SHARE * there:
        return table
    if size * _LEAST_COPIES > there:
        able = " or ".join(f'`head="{one.name}"`' for one in heads().values() if one.streams)
        raise InputError(
            f"the classifier {head.name} needs its {len(table.features)} windows in memory, which"
            f" are {size / 2**30:.1f} GiB and are copied once, and {there / 2**30:.1f} GiB are at"
            f" hand: take fewer by `windows_per_recording`, or {able}, which reads them as needed"
        )
    return replace(table, features=np.asarray(table.features))


def _spread(read: dict[int, FeatureTable], most: int | None) -> dict[int, FeatureTable]:
    """Take the most windows that are wanted of the table with the widest, which others follow."""
    if not read or not most:
        return dict(read)
    first = max(read, key=lambda place: _width_s(read[place]))
    return {**read, first: read[first].spread(most)}


def _width_s(table: FeatureTable) -> float:
    width_s: float = table.views[0].params["windows"]["width_s"]
    return width_s


def _default_features(store: FeatureStore, head: str) -> Sequence[str]:
    """Name all that a store has to fuse, for a head that can; none leaves the only set."""
    sets = store.feature_sets() if head_of(head).fuses else ()
    if not sets and head_of(head).fuses and not store.feature_sets():
        return [KIND]
    return [*(one.key for one in sets), KIND] if sets else ()


def _windows(store: FeatureStore, match: re.Match[str], beside: list[FeatureTable]) -> Windows:
    """Those named, else those of the widest set beside them, else those of all the store's sets."""
    width_s, stride_s = match.groups()
    if width_s is not None:
        given = {"width_s": _number(width_s)}
        if stride_s is not None:
            given["stride_s"] = _number(stride_s)
        return Windows(**given)
    params = [table.views[0].params for table in beside]
    if beside:
        return max((Windows.from_json(p["windows"]) for p in params), key=lambda w: w.width_s)
    known = {Windows.from_json(s.params["windows"]) for s in store.feature_sets()}
    if len(known) > 1:
        raise InputError(
            f"{store.path} has features of several windows: say which, as in"
            f" `features=['{KIND} 30 s every 5 s']`"
        )
    return known.pop() if known else Windows()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"`features`: {text!r} is not a number of seconds") from None
