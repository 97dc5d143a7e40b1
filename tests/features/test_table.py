"""Joining feature sets: windows matched as defined, and what is lost is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_data import make_set

from toptune.errors import InputError, ToptuneError
from toptune.features.table import (
    Dropped,
    FeatureTable,
    RecordingInfo,
    View,
    join_tables,
    match_windows,
)
from toptune.params import SpikeSettings, Windows
from toptune.recordings.trains import Segment, Spikes, SpikeTrains
from toptune.recordings.windows import window_starts
from toptune.store.feature_store import FeatureSet, FeatureStore


def naive_matches(
    starts: list[list[int]], widths: list[int], strides: list[int]
) -> list[tuple[int, ...]]:
    """The definition, in whole numbers: everything is doubled, so that centres are whole too."""
    lead = widths.index(max(widths))
    matches = []
    for row, start in enumerate(starts[lead]):
        centre = 2 * start + widths[lead]
        partners: list[int] = []
        for kind in range(len(starts)):
            if kind == lead:
                partners.append(row)
                continue
            distance = [abs(2 * s + widths[kind] - centre) for s in starts[kind]]
            if not distance or min(distance) > max(strides[kind], strides[lead]):
                break
            partners.append(distance.index(min(distance)))
        else:
            matches.append(tuple(partners))
    return matches


times = st.lists(st.integers(0, 40), unique=True, max_size=15).map(sorted)


@hypothesis_settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(times, st.integers(1, 12), st.integers(1, 6)), min_size=1, max_size=4),
    # Units that are no binary fractions, so that equal distances differ by rounding.
    st.sampled_from([1.0, 0.1, 0.35, 1 / 3]),
)
def test_windows_are_matched_as_the_definition_says(
    kinds: list[tuple[list[int], int, int]], unit_s: float
) -> None:
    starts, widths, strides = (list(part) for part in zip(*kinds, strict=True))
    found = match_windows(
        [np.array(s, dtype=np.float64) * unit_s for s in starts],
        [w * unit_s for w in widths],
        [s * unit_s for s in strides],
    )
    assert len({len(rows) for rows in found}) == 1
    assert all(rows.dtype == np.int64 for rows in found)
    listed = list(zip(*(rows.tolist() for rows in found), strict=True))
    assert listed == naive_matches(starts, widths, strides)


@pytest.mark.parametrize("narrow_s", [60.0, 30.0, 10.0])
def test_the_papers_windows_share_their_centres(narrow_s: float) -> None:
    wide, narrow = (np.arange(0, 900 - w + 1, 5.0) for w in (120.0, narrow_s))
    a, b = match_windows([wide, narrow], [120, narrow_s], [5, 5])
    assert a.tolist() == list(range(157))
    np.testing.assert_array_equal(narrow[b] + narrow_s / 2, wide[a] + 60)


def trains_with_gaps(seed: int) -> SpikeTrains:
    rng = np.random.default_rng(seed)
    segments, time_s, sample = [], 0.0, 0
    for _ in range(4):
        seconds = float(rng.uniform(20, 200))
        segments.append(Segment(sample, round(seconds * 1000), time_s))
        time_s += seconds + float(rng.uniform(0.1, 90))
        sample += round(seconds * 1000)
    return empty_trains(*segments)


def empty_trains(*segments: Segment) -> SpikeTrains:
    return SpikeTrains(
        spikes=Spikes(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.float32)),
        channel_labels=("1",),
        sampling_rate_hz=1000.0,
        segments=segments,
        threshold_uv=np.zeros(1, np.float32),
    )


@pytest.mark.parametrize("seed", range(5))
def test_windows_of_one_width_and_stride_meet_exactly_whatever_the_gaps(seed: int) -> None:
    start_s = window_starts(trains_with_gaps(seed), Windows(width_s=30, stride_s=5)).start_s
    assert len(start_s) > 20
    rng = np.random.default_rng(seed)
    # Windows that one set lacks have no partner: a neighbour is a whole stride away.
    a, b = (np.flatnonzero(rng.random(len(start_s)) < 0.8) for _ in range(2))
    rows_a, rows_b = match_windows([start_s[a], start_s[b]], [30, 30], [5, 5])
    assert a[rows_a].tolist() == b[rows_b].tolist() == sorted({*a.tolist()} & {*b.tolist()})


@pytest.mark.parametrize("seed", range(5))
def test_every_wide_window_between_gaps_has_a_narrow_one_inside_it(seed: int) -> None:
    trains = trains_with_gaps(seed)
    wide = window_starts(trains, Windows(width_s=30, stride_s=5)).start_s
    narrow = window_starts(trains, Windows(width_s=10, stride_s=2)).start_s
    a, b = match_windows([wide, narrow], [30, 10], [5, 2])
    assert a.tolist() == list(range(len(wide)))
    assert np.all(narrow[b] > wide)
    assert np.all(narrow[b] + 10 < wide + 30)


def test_windows_out_of_order_are_refused() -> None:
    with pytest.raises(ToptuneError, match="order of time"):
        match_windows([np.array([0.0]), np.array([5.0, 0.0])], [2, 1], [5, 5])


# --- whole tables


SECONDS = {"a": 12.0, "b": 3.0, "c": 8.0, "d": 20.0}


def make_store(path: Path, sets: list[tuple[FeatureSet, int]]) -> FeatureStore:
    """Recordings of `SECONDS` whose features tell the recording and the window's centre."""
    store = FeatureStore.create(path, SpikeSettings().to_json())
    store.list_recordings(
        tuple(RecordingInfo(name, f"dev-{name}", "AB"[i % 2], {}) for i, name in enumerate(SECONDS))
    )
    for row, (name, seconds) in enumerate(SECONDS.items()):
        origin = {"recording": f"{name}.h5", "sha256": name * 64}
        info: dict[str, Any] = {"key": "0" * 16, "input": origin}
        store.write_spikes(name, empty_trains(Segment(0, 1000, 0.0)), info)
        for feature_set, n_columns in sets:
            windows = feature_set.params["windows"]
            start_s = np.arange(0, seconds - windows["width_s"] + 1e-9, windows["stride_s"])
            x = np.zeros((len(start_s), n_columns), np.float32)
            x[:, 0] = 1000 * row + start_s + windows["width_s"] / 2
            info = {"key": "0" * 16, "n_windows": len(x), "input": origin}
            store.write_features(name, x, start_s, feature_set, info)
    return store


NARROW = make_set(width_s=2.0)
WIDE = make_set(width_s=4.0, stride_s=2.0, kind="raster")
OTHER = make_set(width_s=4.0, stride_s=2.0, kind="raster", backbone="net2")


@pytest.fixture
def tables(tmp_path: Path) -> list[FeatureTable]:
    sets = [(NARROW, 3), (WIDE, 5), (OTHER, 2)]
    store = make_store(tmp_path / "s.zarr", sets)
    return [store.table(feature_set) for feature_set, _ in sets]


def test_a_table_of_one_set_has_one_view_and_joins_to_itself(tables: list[FeatureTable]) -> None:
    assert tables[0].views == (View(NARROW.description, NARROW.key, 3, NARROW.params),)
    assert tables[0].provenance["views"] == [tables[0].views[0].to_json()]
    assert tables[0].view_sizes == (3,)
    assert View(**tables[0].views[0].to_json()) == tables[0].views[0]
    assert join_tables(tables[:1]) is tables[0]
    assert replace(tables[0], views=()).view_sizes == (3,)


def test_joined_rows_are_of_one_recording_and_one_time(tables: list[FeatureTable]) -> None:
    joined = join_tables(tables)
    assert joined.features.dtype == np.float32
    assert joined.features.shape == (5 + 3 + 9, 3 + 5 + 2)
    assert joined.view_sizes == (3, 5, 2)
    assert [view.key for view in joined.views] == [NARROW.key, WIDE.key, OTHER.key]
    # Each view's first column tells recording and centre; all three agree, and with start_s.
    for column in (0, 3, 8):
        row_of = {name: row for row, name in enumerate(SECONDS)}
        names = [joined.recordings[row].name for row in joined.recording]
        centre = 1000 * np.array([row_of[name] for name in names]) + joined.start_s + 2
        np.testing.assert_array_equal(joined.features[:, column], centre)
    assert [info.name for info in joined.recordings] == ["a", "c", "d"]
    assert joined.recording.tolist() == [0] * 5 + [1] * 3 + [2] * 9
    assert joined.recording.dtype == np.int64


def test_what_is_dropped_is_counted_and_named(tables: list[FeatureTable]) -> None:
    # b lasts 3 s: a narrow window, but no wide one.
    joined = join_tables(tables)
    assert joined.dropped == Dropped(0, ("b",))
    assert joined.provenance["dropped"] == {"n_windows": 0, "recordings": ["b"]}
    assert joined.provenance["too_short"] == ["b"]
    assert json.loads(json.dumps(joined.provenance)) == joined.provenance

    # All narrow windows of c, and the late ones of d, are taken away.
    narrow = tables[0]
    c, d = (
        np.array([narrow.recordings[row].name == name for row in narrow.recording]) for name in "cd"
    )
    thinned = thin(narrow, ~c & ~(d & (narrow.start_s > 11.5)))
    joined = join_tables([tables[1], thinned])
    # d's last narrow centre is 12: wide centres 2, 4 .. 12 are there, 14 .. 18 are too far
    # (a centre 13 would be as near as half the coarser stride, 1 s).
    assert joined.dropped == Dropped(3 + 3, ("b", "c"))
    assert [info.name for info in joined.recordings] == ["a", "d"]
    assert joined.start_s[joined.recording == 1].tolist() == [0, 2, 4, 6, 8, 10]


def thin(table: FeatureTable, keep: NDArray[np.bool_]) -> FeatureTable:
    return replace(
        table,
        features=table.features[keep],
        start_s=table.start_s[keep],
        recording=table.recording[keep],
    )


def test_order_of_windows_in_a_table_is_kept(tables: list[FeatureTable]) -> None:
    narrow, wide, _ = tables
    flip = np.array([2, 1, 0])
    turned = replace(wide, recordings=wide.recordings[::-1], recording=flip[wide.recording])
    joined = join_tables([narrow, turned])
    assert [info.name for info in joined.recordings] == ["d", "c", "a"]
    np.testing.assert_array_equal(joined.features[:, 0], joined.features[:, 3])


def elsewhere(tables: list[FeatureTable], **changes: Any) -> list[FeatureTable]:
    return [tables[0], replace(tables[1], provenance={**tables[1].provenance, **changes})]


def relabelled(tables: list[FeatureTable]) -> list[FeatureTable]:
    infos = [replace(info, label="Z") for info in tables[1].recordings]
    return [tables[0], replace(tables[1], recordings=tuple(infos))]


def listed_twice(tables: list[FeatureTable]) -> list[FeatureTable]:
    infos = tables[1].recordings
    return [tables[0], replace(tables[1], recordings=(infos[0], *infos[:2]))]


def apart(tables: list[FeatureTable]) -> list[FeatureTable]:
    return [replace(tables[0], start_s=tables[0].start_s + 100), tables[1]]


OTHER_INPUTS = {
    name: {"recording": f"{name}.h5", "sha256": "0" * 64 if name == "c" else name * 64}
    for name in SECONDS
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: [], "no feature set"),
        (lambda t: [t[1], t[0], t[1]], r"'raster, 4 s .*' \(\w{8}\) is named twice"),
        (lambda t: elsewhere(t, inputs=OTHER_INPUTS), "same recording c: join .* of one store"),
        (lambda t: elsewhere(t, inputs={}), "not made from the same recording a: join"),
        (lambda t: elsewhere(t, settings={}), "spikes found with different settings"),
        (relabelled, "disagree on recording a's device or label"),
        (listed_twice, "recording a is in the table 2 times"),
        (apart, "'histogram.*' and 'raster.*' have no window in common"),
    ],
)
def test_tables_that_do_not_belong_together_are_refused_in_one_line(
    tables: list[FeatureTable],
    change: Callable[[list[FeatureTable]], list[FeatureTable]],
    message: str,
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        join_tables(change(tables))
    assert "\n" not in str(refused.value)


def test_views_must_make_up_the_columns(tables: list[FeatureTable]) -> None:
    with pytest.raises(ToptuneError, match="3 columns"):
        replace(tables[0], views=tables[1].views)
    joined = join_tables(tables)
    with pytest.raises(ToptuneError, match="one feature set each"):
        join_tables([tables[0], joined])
