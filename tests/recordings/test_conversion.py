"""Spike trains from arrays, neo and SpikeInterface."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from foreign_objects import (
    LazyTrain,
    NeoBlock,
    NeoSegment,
    NeoTrain,
    Quantity,
    SpikeInterfaceSorting,
)
from hypothesis import given
from hypothesis import strategies as st

from toptune.errors import InputError
from toptune.recordings.trains import Segment, SpikeTrains, spike_times_s

# --- arrays


def trains_of(times_s: Any, channels: Any, **options: Any) -> SpikeTrains:
    return SpikeTrains.from_arrays(
        times_s, channels, **{"duration_s": 10.0, "sampling_rate_hz": 1000.0, **options}
    )


def test_times_become_samples_of_channels_in_natural_order() -> None:
    trains = trains_of([0.5, 0.7504, 0.1, 0.5], ["E10", "E10", "E2", "E2"])
    assert trains.channel_labels == ("E2", "E10")
    assert trains.spikes.sample.tolist() == [100, 500, 500, 750]
    assert trains.spikes.channel.tolist() == [0, 0, 1, 1]
    assert np.isnan(trains.spikes.peak_to_peak_uv).all()
    assert trains.segments == (Segment(0, 10_000, 0.0),)
    assert trains.notes == ()


def test_all_channels_may_be_named_so_that_silent_ones_count() -> None:
    trains = trains_of([0.5], [3], channel_labels=[4, 3, 2], peak_to_peak_uv=[71.5])
    assert trains.channel_labels == ("4", "3", "2")
    assert trains.spikes.channel.tolist() == [1]
    assert trains.spikes.peak_to_peak_uv.tolist() == [71.5]
    silent = trains_of([], [], channel_labels=["A"])
    assert len(silent.spikes.sample) == 0
    assert silent.duration_s == 10


def test_quantities_are_taken_in_their_unit() -> None:
    trains = trains_of(Quantity(np.array([500.0]), "ms"), ["A"], duration_s=Quantity(2e6, "us"))
    assert trains.spikes.sample.tolist() == [500]
    assert trains.duration_s == 2


def test_an_assumed_rate_is_said() -> None:
    trains = trains_of([0.5], ["A"], sampling_rate_hz=None)
    assert trains.sampling_rate_hz == 10_000
    assert trains.notes == ("a sampling rate of 10000 Hz is assumed: give `sampling_rate_hz`",)


def test_a_spike_at_the_very_end_is_the_last_sample() -> None:
    assert trains_of([10.0], ["A"]).spikes.sample.tolist() == [9999]


@pytest.mark.parametrize("kind", [np.int16, np.float32, np.float64, "S", "U", object])
def test_channels_may_be_numbers_or_text_of_any_type(kind: Any) -> None:
    trains = trains_of([1.0, 2.0], np.array([12, 7]).astype(kind))
    assert trains.channel_labels == ("7", "12")
    assert trains.spikes.channel.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("times", "channels", "options", "message"),
    [
        ([1.0, 2.0], ["A"], {}, r"times_s has 2 spikes and channels 1"),
        ([1.0], ["A"], {"duration_s": None}, "give its length in seconds as `duration_s`"),
        ([1.0], ["A"], {"duration_s": 0}, "`duration_s` must be above 0"),
        ([1.0], ["A"], {"duration_s": math.nan}, "`duration_s` must be above 0"),
        ([1.0], ["A"], {"duration_s": 1e9}, "`duration_s` must be above 0 and at most 604800"),
        ([1.0], ["A"], {"sampling_rate_hz": -1}, "`sampling_rate_hz` must be above 0"),
        ([1.0], ["A"], {"sampling_rate_hz": "fast"}, "`sampling_rate_hz` must be above 0"),
        ([1.0, math.nan], "AB", {}, "must be a list of names"),
        ([1.0, math.nan], ["A", "B"], {}, r"times_s\[1\], nan s, is no time"),
        ([1.0, math.inf], ["A", "B"], {}, r"times_s\[1\], inf s, is no time"),
        ([-0.5], ["A"], {}, r"times_s\[0\], -0.5 s, is before the recording's start"),
        (
            [1.0, 10.01],
            ["A", "B"],
            {},
            r"times_s\[1\], 10.01 s, is after the recording's end at 10",
        ),
        ([2.0, 1.0], ["A", "A"], {}, r"times_s\[1\], 1 s, comes after times_s\[0\], 2 s, on .* A"),
        ([[1.0]], ["A"], {}, "times_s must be a list of numbers"),
        (["x"], ["A"], {}, "times_s must be numbers"),
        ([True], ["A"], {}, "times_s must be a list of numbers, got bool"),
        ([1.0], [[1]], {}, "channels must be a list"),
        ([1.0, 1.0], [[1], [1, 2]], {}, "channels must be a list"),
        ([1.0], [1.5], {}, "channels must be names or whole numbers, got 1.5"),
        ([1.0], [None], {}, "channels must be names or whole numbers, got None"),
        ([1.0], [""], {}, "channels must be names or whole numbers, got ''"),
        ([1.0], [True], {}, "channels must be names or whole numbers, got True"),
        ([1.0], ["C"], {"channel_labels": ["A", "B"]}, "channel C of channels is not in channel_l"),
        ([1.0], ["A"], {"channel_labels": ["A", "A"]}, "channels called A are there 2 times"),
        ([1.0], ["A\n"], {"channel_labels": ["A", "B\x00"]}, "cannot be printed"),
        ([], [], {}, "name all channels by `channel_labels`"),
        ([1.0], ["A"], {"peak_to_peak_uv": [1.0, 2.0]}, "peak_to_peak_uv has 2 values for 1"),
        ([1.0], ["A"], {"peak_to_peak_uv": [-1.0]}, r"peak_to_peak_uv\[0\] is -1"),
        ([1.0, 1.0], ["A1_11", "B2_11"], {}, "holds 2 wells, A1, B2"),
        (Quantity(np.array([1.0]), "mV"), ["A"], {}, 'units of "mV" and "s"'),
    ],
)
def test_arrays_that_cannot_be_are_refused(
    times: Any, channels: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        trains_of(times, channels, **options)


def test_times_that_restart_are_refused_only_within_a_channel() -> None:
    trains = trains_of([1.0, 2.0, 0.5, 3.0], ["A", "A", "B", "B"])
    assert trains.spikes.sample.tolist() == [500, 1000, 2000, 3000]


def test_a_well_is_chosen_and_one_without_spikes_is_silent() -> None:
    wells = ["A1_11", "B2_12", "B2_11"]
    trains = trains_of([1.0, 1.5, 2.0], wells, well="b02")
    assert trains.channel_labels == ("11", "12")
    assert trains.spikes.sample.tolist() == [1500, 2000]
    silent = trains_of([1.0, 1.5, 2.0], wells, well="C3")
    assert len(silent.spikes.sample) == 0
    assert "one silent electrode" in silent.notes[0]
    with pytest.raises(InputError, match="has no well C3; it has A1, B2"):
        trains_of([1.0, 1.5, 2.0], wells, well="C3", channel_labels=wells)


def test_times_that_cannot_well_be_are_doubted() -> None:
    trains = trains_of([5000.0], ["A"], duration_s=6000.0)
    assert "no spike in the first 5000 s" in trains.notes[0]


@given(
    st.lists(st.tuples(st.integers(0, 999), st.integers(0, 3)), max_size=30),
    st.sampled_from([1000.0, 12_500.0, 30_000.0, 24_414.0625]),
)
def test_times_of_samples_are_those_samples_again(
    spikes: list[tuple[int, int]], rate_hz: float
) -> None:
    spikes = sorted(spikes)
    times = np.array([sample for sample, _ in spikes]) / rate_hz
    trains = SpikeTrains.from_arrays(
        times,
        [channel for _, channel in spikes],
        duration_s=1000 / rate_hz,
        sampling_rate_hz=rate_hz,
        channel_labels=range(4),
    )
    found = zip(trains.spikes.sample.tolist(), trains.spikes.channel.tolist(), strict=True)
    assert list(found) == spikes
    assert trains.n_samples == 1000
    np.testing.assert_array_equal(spike_times_s(trains), times)


# --- neo


def train(times_ms: list[float], name: str | None = None, **told: Any) -> NeoTrain:
    told = {"t_stop": Quantity(2.0, "s"), **told}
    return NeoTrain(Quantity(np.array(times_ms), "ms"), name=name, **told)


def test_segments_of_a_block_become_segments() -> None:
    late = {"t_start": Quantity(10.0, "s"), "t_stop": Quantity(13.0, "s")}
    block = NeoBlock(
        [
            NeoSegment([train([100.0, 300.0], "E2"), train([200.0], "E1")]),
            NeoSegment([LazyTrain(train([10_500.0], "E1", **late)), train([], "E3", **late)]),
        ]
    )
    trains = SpikeTrains.from_neo(block, sampling_rate_hz=1000)
    assert trains.channel_labels == ("E2", "E1", "E3")
    assert trains.segments == (Segment(0, 2000, 0.0), Segment(2000, 3000, 10.0))
    assert trains.spikes.sample.tolist() == [100, 200, 300, 2500]
    assert trains.spikes.channel.tolist() == [0, 1, 0, 1]
    assert spike_times_s(trains).tolist() == [0.1, 0.2, 0.3, 10.5]
    assert trains.notes == ()


def test_a_segment_or_a_list_of_trains_is_one_segment() -> None:
    parts = [train([100.0], "A"), train([200.0], "B")]
    for source in (NeoSegment(parts), parts, tuple(parts)):
        trains = SpikeTrains.from_neo(source, sampling_rate_hz=1000)
        assert trains.spikes.sample.tolist() == [100, 200]
        assert trains.duration_s == 2


def test_segments_that_all_start_at_0_follow_one_another() -> None:
    block = NeoBlock([NeoSegment([train([100.0])]), NeoSegment([train([100.0])])])
    trains = SpikeTrains.from_neo(block, sampling_rate_hz=1000)
    assert [segment.start_s for segment in trains.segments] == [0.0, 2.0]


def test_the_rate_is_given_or_stated_or_assumed() -> None:
    stated = [train([100.0], sampling_rate=Quantity(20.0, "kHz"))]
    assert SpikeTrains.from_neo(stated).spikes.sample.tolist() == [2000]
    assert SpikeTrains.from_neo(stated, sampling_rate_hz=500).spikes.sample.tolist() == [50]
    # neo's own default states nothing, and readers of files may know no rate.
    for rate in (Quantity(1.0, "Hz"), Quantity(math.nan, "Hz"), None):
        assumed = SpikeTrains.from_neo([train([100.0], sampling_rate=rate)])
        assert assumed.sampling_rate_hz == 10_000
        assert "10000 Hz is assumed" in assumed.notes[0]
    two = [*stated, train([1.0], sampling_rate=Quantity(25.0, "kHz"))]
    with pytest.raises(
        InputError, match="rates of 20000, 25000 Hz: give one by `sampling_rate_hz`"
    ):
        SpikeTrains.from_neo(two)


def test_trains_are_named_by_annotations_or_numbers_where_they_have_no_names() -> None:
    noted = [train([1.0], "E1", annotations={"id": 5}), train([1.0], "E1", annotations={"id": 4})]
    assert SpikeTrains.from_neo(noted).channel_labels == ("5", "4")
    noted = [train([1.0], annotations={"channel_name": b"x"}), train([1.0])]
    assert SpikeTrains.from_neo(noted).channel_labels == ("0", "1")
    with pytest.raises(InputError, match="spike trains called E1 are there 2 times"):
        SpikeTrains.from_neo([train([1.0], "E1"), train([2.0], "E1")])
    uneven = NeoBlock([NeoSegment([train([1.0])]), NeoSegment([train([1.0]), train([2.0])])])
    with pytest.raises(InputError, match="1 and 2 spike trains without names"):
        SpikeTrains.from_neo(uneven)


def test_trains_that_end_apart_are_noted() -> None:
    parts = [train([1.0]), train([1.0], t_stop=Quantity(2.5, "s"))]
    trains = SpikeTrains.from_neo(parts, sampling_rate_hz=1000)
    assert trains.duration_s == 2.5
    assert "end at 2 to 2.5 s" in trains.notes[0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([train([100.0, math.nan])], r"times of spike train 0\[1\], nan s, is no time"),
        ([train([-1.0])], "is before the recording's start"),
        ([train([2100.0])], "is after the recording's end at 2 s"),
        ([train([200.0, 100.0])], r"comes after .*0.2 s, on channel 0"),
        ([train([1.0], "A1_1"), train([1.0], "A2_1")], "holds 2 wells, A1, A2"),
        ([], "segment 0 holds no spike trains"),
        (NeoBlock([]), "has no segment"),
        (NeoBlock([NeoSegment()]), "segment 0 holds no spike trains: .* `open_recording`"),
        ([3], "segment 0 holds no spike trains"),
        ("block.nwb", "is no neo Block"),
        (object(), "is no neo Block"),
    ],
)
def test_neo_trains_that_cannot_be_are_refused(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SpikeTrains.from_neo(source, sampling_rate_hz=1000)


def test_neo_wells_are_chosen_by_the_names_of_trains() -> None:
    parts = [train([1.0], "A1_1"), train([2.0], "A2_1"), train([3.0], "A2_2")]
    trains = SpikeTrains.from_neo(parts, sampling_rate_hz=1000, well="A2")
    assert trains.channel_labels == ("1", "2")
    assert trains.spikes.sample.tolist() == [2, 3]
    with pytest.raises(InputError, match="has no well A3; it has A1, A2"):
        SpikeTrains.from_neo(parts, sampling_rate_hz=1000, well="A3")


def test_a_real_neo_block_is_converted() -> None:
    neo = pytest.importorskip("neo", reason="neo: not installed")
    pq = pytest.importorskip("quantities", reason="quantities: not installed")
    rng = np.random.default_rng(3)
    block, expected = neo.Block(name="culture"), []
    for number in range(2):
        segment = neo.Segment()
        start = 100.0 * number
        for unit in range(3):
            times = np.sort(rng.uniform(start, start + 20, 50))
            expected += [(t, unit) for t in times]
            segment.spiketrains.append(
                neo.SpikeTrain(
                    times * 1000 * pq.ms,
                    t_start=start * pq.s,
                    t_stop=(start + 20) * pq.s,
                    name=f"unit {unit}",
                )
            )
        block.segments.append(segment)
    trains = SpikeTrains.from_neo(block, sampling_rate_hz=20_000)
    assert trains.channel_labels == ("unit 0", "unit 1", "unit 2")
    assert trains.segments == (Segment(0, 400_000, 0.0), Segment(400_000, 400_000, 100.0))
    np.testing.assert_allclose(
        spike_times_s(trains), sorted(t for t, _ in expected), atol=0.51 / 20_000
    )
    by_time = [unit for _, unit in sorted(expected)]
    assert trains.spikes.channel.tolist() == by_time
    assert trains.notes == ()


# --- SpikeInterface


def test_units_become_channels_and_segments_segments() -> None:
    sorting = SpikeInterfaceSorting(
        [{"u2": [10, 30], "u1": [20]}, {"u2": [], "u1": [5, 5]}],
        1000.0,
        samples=[2000, 1000],
        starts_s=[None, 9.5],
    )
    trains = SpikeTrains.from_spikeinterface(sorting)
    assert trains.channel_labels == ("u2", "u1")
    assert trains.sampling_rate_hz == 1000
    assert trains.spikes.sample.tolist() == [10, 20, 30, 2005, 2005]
    assert trains.spikes.channel.tolist() == [0, 1, 0, 1, 1]
    assert trains.segments == (Segment(0, 2000, 0.0), Segment(2000, 1000, 9.5))


def test_the_length_is_given_where_no_recording_is_registered() -> None:
    one = SpikeInterfaceSorting([{1: [10], 2: [20]}], 1000.0)
    assert SpikeTrains.from_spikeinterface(one, duration_s=3).n_samples == 3000
    two = SpikeInterfaceSorting([{1: [10]}, {1: [20]}], 1000.0)
    trains = SpikeTrains.from_spikeinterface(two, duration_s=[3, 2.5])
    assert [segment.n_samples for segment in trains.segments] == [3000, 2500]
    with pytest.raises(InputError, match="`duration_s`, or register the recording"):
        SpikeTrains.from_spikeinterface(one)
    with pytest.raises(InputError, match="has 2 segments, but `duration_s` gives 1"):
        SpikeTrains.from_spikeinterface(two, duration_s=3)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ({1: [10, 1000]}, "unit 1: its spike 1 is at sample 1000, outside the recording's 1000"),
        ({1: [-1]}, "unit 1: its spike 0 is at sample -1, outside"),
        ({1: [20, 10]}, "not in the order of time: sample 10 comes after 20"),
        ({}, "has no unit"),
    ],
)
def test_sortings_that_cannot_be_are_refused(units: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SpikeTrains.from_spikeinterface(SpikeInterfaceSorting([units], 1000.0), duration_s=1.0)


def test_what_is_no_sorting_is_refused() -> None:
    with pytest.raises(InputError, match="str: is no SpikeInterface sorting"):
        SpikeTrains.from_spikeinterface("sorting.zarr")


@pytest.mark.parametrize("key", ["group", "well"])
def test_units_of_several_groups_are_refused_unless_one_is_chosen(key: str) -> None:
    sorting = SpikeInterfaceSorting([{7: [1], 8: [2], 9: [3]}], 1000.0)
    sorting.set_property(key, ["x", "y", "y"])
    with pytest.raises(InputError, match=f"units are of 2 {key}s, x, y, .* by `well`"):
        SpikeTrains.from_spikeinterface(sorting, duration_s=1.0)
    trains = SpikeTrains.from_spikeinterface(sorting, duration_s=1.0, well="y")
    assert trains.channel_labels == ("8", "9")
    assert trains.spikes.sample.tolist() == [2, 3]
    with pytest.raises(InputError, match=f"has no {key} z; it has x, y"):
        SpikeTrains.from_spikeinterface(sorting, duration_s=1.0, well="z")
    # What the refusal advises.
    sorting.set_property(key, [0] * 3)
    assert len(SpikeTrains.from_spikeinterface(sorting, duration_s=1.0).channel_labels) == 3
