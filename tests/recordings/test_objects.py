"""Recordings that are objects of neo or SpikeInterface, opened as files are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_recording import ArrayRecording
from foreign_objects import (
    LazySignal,
    NeoBlock,
    NeoSegment,
    NeoSignal,
    NeoTrain,
    OldSpikeInterfaceRecording,
    Quantity,
    SpikeInterfaceRecording,
    SpikeInterfaceSorting,
)
from numpy.typing import NDArray
from small_data import write_mcs

from toptune.errors import InputError
from toptune.params import SpikeSettings
from toptune.recordings.objects import NamedRecording
from toptune.recordings.opening import SpikeRecording, open_recording
from toptune.recordings.trains import Segment, SpikeTrains
from toptune.reports.overview import overview
from toptune.runs.predictor import check_named, list_recordings
from toptune.spikes.finding import check_recording, find_spikes
from toptune.spikes.streaming import detect_recording


def noise(n: int, channels: int = 3, seed: int = 0) -> NDArray[np.float32]:
    """Microvolts with spikes, (samples, channels)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 5, (n, channels)).astype(np.float32)
    for channel in range(channels):
        for at in rng.integers(20, n - 20, n // 1500):
            x[at : at + 4, channel] += np.array([-90, -40, 60, 30], np.float32)
    return x


def opened(source: Any, **options: Any) -> Any:
    recording = open_recording(source, **options)
    assert not isinstance(recording, SpikeRecording)
    return recording


def assert_same_spikes(found: SpikeTrains, expected: SpikeTrains) -> None:
    assert len(expected.spikes.sample) > 20
    for a, b in zip(found.spikes, expected.spikes, strict=True):
        np.testing.assert_array_equal(a, b)
    assert found.segments == expected.segments


# --- SpikeInterface


def test_a_spikeinterface_recording_is_read_in_microvolts_segment_by_segment() -> None:
    parts = [noise(40_000), noise(20_000, seed=1)]
    raw = [np.rint(part / 0.5).astype(np.int16) for part in parts]
    source = SpikeInterfaceRecording(raw, gain_uv=0.5, ids=["a", "b", "c"], starts_s=[3.0, 9.0])
    recording = opened(source)
    assert recording.channel_labels == ("a", "b", "c")
    assert recording.segments == (Segment(0, 40_000, 0.0), Segment(40_000, 20_000, 6.0))
    whole = np.concatenate(raw).T * np.float32(0.5)
    np.testing.assert_array_equal(recording.read(0, 60_000), whole)
    np.testing.assert_array_equal(recording.read(39_990, 40_010), whole[:, 39_990:40_010])
    chunks = list(recording.chunks(7_000))
    np.testing.assert_array_equal(np.concatenate(chunks, axis=1), whole)
    with recording:
        found = detect_recording(recording)
    in_memory = ArrayRecording(whole, 10_000, recording.segments)
    assert_same_spikes(found.trains, detect_recording(in_memory).trains)


def test_the_older_name_of_microvolts_is_known() -> None:
    raw = np.arange(12, dtype=np.int16).reshape(4, 3)
    recording = opened(OldSpikeInterfaceRecording([raw], gain_uv=0.25))
    np.testing.assert_array_equal(recording.read(0, 4), raw.T * np.float32(0.25))


def test_memory_is_bounded_whatever_is_asked_for() -> None:
    channels, n = 512, 20_000
    source = SpikeInterfaceRecording([np.zeros((n, channels), np.int16)])
    recording = opened(source)
    recording.read(0, n)
    widest = max(end - begin for begin, end in source.asked)
    assert widest * channels <= 2 * 2**20 < n * channels
    lazy = LazySignal(NeoSignal(np.zeros((n, channels), np.int16)))
    opened(NeoSegment([], [lazy])).read(0, n)
    assert max(end - begin for begin, end in lazy.loaded) * channels <= 2 * 2**20
    assert lazy.loaded[0][0] == 0
    assert lazy.loaded[-1][1] == n


def test_integers_without_gains_are_refused_and_floats_noted() -> None:
    with pytest.raises(InputError, match="give it those of its amplifier by set_channel"):
        open_recording(SpikeInterfaceRecording([np.zeros((10, 2), np.int16)], gain_uv=None))
    x = noise(10, 2)
    recording = opened(SpikeInterfaceRecording([x], gain_uv=None))
    np.testing.assert_array_equal(recording.read(0, 10), x.T)
    assert recording.notes[0].startswith("its values are assumed to be microvolts")


def test_a_recording_that_was_filtered_before_says_so_wherever_it_is_used() -> None:
    source = SpikeInterfaceRecording([noise(20_000)])
    source.filtered = True
    (note,) = opened(source).notes
    assert "`highpass_hz=0`" in note
    named = NamedRecording(source, "x")
    found = find_spikes(named, SpikeSettings(), stage=lambda *_: None)
    assert note in found.notes
    assert overview(source, device="cpu").summary["notes"] == [note]


@pytest.mark.parametrize("key", ["group", "well"])
def test_channels_of_several_groups_are_refused_unless_one_is_chosen(key: str) -> None:
    x = noise(100, 3)
    source = SpikeInterfaceRecording([x])
    source.set_property(key, [0, 1, 0])
    with pytest.raises(InputError, match=f"its channels are of 2 {key}s, 0, 1, .* by `well`"):
        open_recording(source)
    recording = opened(source, well="0")
    assert recording.channel_labels == ("0", "2")
    np.testing.assert_array_equal(recording.read(0, 100), x[:, [0, 2]].T)
    with pytest.raises(InputError, match=f"has no {key} 2"):
        open_recording(source, well="2")
    # What the refusal advises.
    source.set_property(key, [0] * 3)
    assert opened(source).channel_labels == ("0", "1", "2")


def test_wells_in_the_names_of_channels_are_chosen_as_in_files() -> None:
    x = noise(100, 3)
    source = SpikeInterfaceRecording([x], ids=["B2_12", "A1_11", "B2_11"])
    with pytest.raises(InputError, match="holds 2 wells, A1, B2"):
        open_recording(source)
    np.testing.assert_array_equal(opened(source, well="B2").read(0, 100), x[:, [0, 2]].T)


def test_names_that_repeat_are_refused() -> None:
    source = SpikeInterfaceRecording([noise(100, 2)], ids=["a", "a"])
    with pytest.raises(InputError, match="channels called a are there 2 times"):
        open_recording(source)


def test_gaps_in_the_times_of_a_segment_split_it() -> None:
    source = SpikeInterfaceRecording([noise(2000), noise(1000)], starts_s=[None, 90.0])
    times = np.arange(2000) / 10_000 + 50
    times[1500:] += 4
    source.times_s[0] = times
    recording = opened(source)
    assert [s.first_sample for s in recording.segments] == [0, 1500, 2000]
    np.testing.assert_allclose([s.start_s for s in recording.segments], [0, 4.15, 40])
    x = np.concatenate([source.get_traces(k, 0, 2000) for k in range(2)])
    np.testing.assert_array_equal(recording.read(0, 3000), x.T)


def test_what_an_object_raises_names_it() -> None:
    source = SpikeInterfaceRecording([noise(100)])
    recording = opened(source)
    source._traces = []
    with pytest.raises(InputError, match=r"SpikeInterfaceRecording: samples 0 to 5 .*IndexError"):
        recording.read(0, 5)
    with pytest.raises(InputError, match="cannot be read"):
        open_recording(SpikeInterfaceRecording([noise(100)], rate_hz="fast"))  # type: ignore[arg-type]  # as a user might


def test_a_sorting_is_a_recording_of_spikes() -> None:
    sorting = SpikeInterfaceSorting([{"a": [10], "b": [20]}], 1000.0)
    recording = open_recording(sorting, duration_s=4.0)
    assert isinstance(recording, SpikeRecording)
    assert recording.trains().spikes.sample.tolist() == [10, 20]
    assert recording.trains().duration_s == 4
    sorting.set_property("group", ["x", "y"])
    assert open_recording(sorting, duration_s=4.0, well="y").trains().channel_labels == ("b",)  # type: ignore[union-attr]


# --- neo


def signal(x: NDArray[Any], **told: Any) -> NeoSignal:
    """A signal in millivolts of microvolts."""
    return NeoSignal(x.astype(np.float64) / 1000, **told)


def test_segments_of_a_neo_block_are_read_in_microvolts() -> None:
    parts = [noise(30_000), noise(20_000, seed=1)]
    block = NeoBlock(
        [
            NeoSegment([], [signal(parts[0])]),
            NeoSegment([], [signal(parts[1], t_start=Quantity(8000.0, "ms"))]),
        ],
        name="culture 3",
    )
    recording = opened(block)
    assert str(recording.path) == "NeoBlock 'culture 3'"
    assert recording.segments == (Segment(0, 30_000, 0.0), Segment(30_000, 20_000, 8.0))
    whole = np.concatenate(parts).T
    np.testing.assert_allclose(recording.read(0, 50_000), whole, rtol=1e-6)
    in_memory = ArrayRecording(recording.read(0, 50_000), 10_000, recording.segments)
    found = detect_recording(recording).trains
    assert_same_spikes(found, detect_recording(in_memory).trains)


def test_a_lazy_signal_is_loaded_range_by_range() -> None:
    x = noise(5_000)
    late = signal(x, t_start=Quantity(12_345.6, "ms"))
    lazy = LazySignal(late)
    recording = opened(NeoSegment([], [lazy]))
    np.testing.assert_array_equal(recording.read(0, 5_000), opened(late).read(0, 5_000))
    lazy.loaded.clear()
    recording.read(1_234, 1_240)
    assert lazy.loaded == [(1_234, 1_240)]


def test_one_analog_signal_is_a_recording_with_its_channels_names() -> None:
    x = noise(100, 2)
    names = {"channel_names": np.array(["E2", "E1"])}
    recording = opened(signal(x, array_annotations=names, name="raw"))
    assert recording.channel_labels == ("E2", "E1")
    assert recording.stream_label == "raw"
    assert opened(signal(x)).channel_labels == ("0", "1")
    twice = {"channel_names": np.array(["E1", "E1"])}
    with pytest.raises(InputError, match="channels called E1 are there 2 times"):
        open_recording(signal(x, array_annotations=twice))
    told_apart = {**twice, "channel_ids": np.array([7, 8])}
    assert opened(signal(x, array_annotations=told_apart)).channel_labels == ("7", "8")


def test_signals_of_one_channel_each_are_joined() -> None:
    x = noise(100, 3)
    signals = [signal(x[:, [k]], name=f"E{3 - k}") for k in range(3)]
    recording = opened(NeoSegment([], signals))
    assert recording.channel_labels == ("E3", "E2", "E1")
    np.testing.assert_allclose(recording.read(20, 70), x[20:70].T, rtol=1e-6)


def test_one_of_several_signals_is_chosen_by_its_name() -> None:
    x = noise(100, 2)
    segment = NeoSegment(
        [], [signal(x, name="raw"), signal(x / 2, name="lfp"), NeoSignal(x, "dimensionless")]
    )
    with pytest.raises(InputError, match="'raw', 'lfp' by `stream`"):
        open_recording(segment)
    recording = opened(segment, stream="lfp")
    np.testing.assert_allclose(recording.read(0, 100), x.T / 2, rtol=1e-6)
    unnamed = NeoSegment([], [signal(x), signal(x / 2)])
    assert opened(unnamed, stream="signal 1").read(0, 1)[0, 0] == pytest.approx(x[0, 0] / 2)


def test_segments_that_differ_are_refused() -> None:
    other = signal(noise(50, 2), sampling_rate=Quantity(20.0, "kHz"))
    for second in (signal(noise(50, 3)), other):
        block = NeoBlock([NeoSegment([], [signal(noise(50, 2))]), NeoSegment([], [second])])
        with pytest.raises(InputError, match="segment 1 has other channels or another sampling"):
            open_recording(block)
    block = NeoBlock([NeoSegment([], [signal(noise(50, 2))]), NeoSegment()])
    with pytest.raises(InputError, match="segment 1 holds no voltage, others do"):
        open_recording(block)


def test_spike_trains_are_taken_where_there_is_no_voltage_and_said_where_there_is() -> None:
    train = NeoTrain(Quantity(np.array([0.5]), "s"), Quantity(2.0, "s"))
    recording = open_recording(NeoSegment([train]), sampling_rate_hz=500.0)
    assert isinstance(recording, SpikeRecording)
    assert recording.trains().spikes.sample.tolist() == [250]
    both = opened(NeoSegment([train], [signal(noise(100))]))
    assert "SpikeTrains.from_neo" in both.notes[0]


def test_other_units_are_refused_and_none_are_taken_for_microvolts() -> None:
    x = noise(100, 2)
    with pytest.raises(InputError, match="is in dimensionless, not in volts"):
        open_recording(NeoSignal(x, "dimensionless"))
    with pytest.raises(InputError, match=r"holds neither voltage \(only signals in s\) nor spike"):
        open_recording(NeoSegment([], [NeoSignal(x, "s")]))
    with pytest.raises(InputError, match="holds neither voltage nor spike trains"):
        open_recording(NeoSegment())
    with pytest.raises(InputError, match="has no segment"):
        open_recording(NeoBlock([]))


def test_real_neo_signals_are_read_in_memory_and_lazily(tmp_path: Path) -> None:
    neo = pytest.importorskip("neo", reason="neo: not installed")
    pq = pytest.importorskip("quantities", reason="quantities: not installed")
    x = noise(20_000, 4)
    whole = neo.AnalogSignal(x / 1000, units="mV", sampling_rate=10 * pq.kHz, t_start=2 * pq.s)
    block = neo.Block()
    block.segments.append(neo.Segment())
    block.segments[0].analogsignals.append(whole)
    for source in (whole, block, block.segments[0]):
        recording = opened(source)
        np.testing.assert_allclose(recording.read(0, 20_000), x.T, rtol=1e-5)
        assert recording.segments == (Segment(0, 20_000, 0.0),)
    # A file of 16 bits, which neo leaves on the disk, at a rate that is no whole number.
    raw = np.rint(x / 0.25).astype(np.int16)
    raw.tofile(tmp_path / "a.raw")
    io = neo.io.RawBinarySignalIO(
        str(tmp_path / "a.raw"),
        dtype="int16",
        sampling_rate=24_414.0625,
        nb_channel=4,
        signal_gain=0.25,
        signal_offset=0.0,
    )
    (lazy,) = io.read_segment(lazy=True).analogsignals
    if str(lazy.units.dimensionality) == "dimensionless":
        lazy.units = pq.uV
    recording = opened(lazy)
    for start in (0, 4095, 4096, 19_000):
        found = recording.read(start, start + 1000)
        np.testing.assert_array_equal(found, raw[start : start + 1000].T * np.float32(0.25))


# --- whatever it is


def test_spike_trains_are_a_recording() -> None:
    trains = SpikeTrains.from_arrays([5000.0], ["A"], duration_s=6000.0, sampling_rate_hz=1000.0)
    recording = open_recording(trains)
    assert isinstance(recording, SpikeRecording)
    # Its doubts are said once.
    assert recording.trains().notes == trains.notes
    found = find_spikes(NamedRecording(trains, "x"), SpikeSettings(), stage=lambda *_: None)
    assert found.trains.spikes.sample.tolist() == [5_000_000]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((2, 100)), "an array is no recording: .*`SpikeTrains.from_arrays` .*`detect_sp"),
        ([1, 2], "list is no recording: give a path, a neo Block, .* or SpikeTrains"),
        (None, "NoneType is no recording"),
        (7, "int is no recording"),
    ],
)
def test_what_is_no_recording_is_refused(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_recording(source)


def test_an_object_is_seen_over_as_a_file_is() -> None:
    source = SpikeInterfaceRecording([noise(20_000)])
    view = overview(source, device="cpu")
    assert view.summary["recording"] == "SpikeInterfaceRecording"
    assert view.summary["kind"] == "spikeinterface"
    assert view.summary["n_channels"] == 3
    assert view.summary["n_spikes"] == len(view.trains.spikes.sample) > 20
    assert view.traces_uv is not None
    header = check_recording(NamedRecording(source, "x"), SpikeSettings())
    assert header is not None
    assert header.sampling_rate_hz == 10_000


def test_recordings_to_predict_are_named_by_what_they_are(tmp_path: Path) -> None:
    one, two = SpikeInterfaceRecording([noise(10)]), SpikeInterfaceRecording([noise(10)])
    named = list_recordings([one, "a.h5", Path("b.h5"), two, NeoBlock([], name="c")])
    assert [str(name) for name in named] == [
        "SpikeInterfaceRecording", "a.h5", "b.h5", "SpikeInterfaceRecording (2)", "NeoBlock 'c'",
    ]  # fmt: skip
    assert [str(name) for name in list_recordings(one)] == ["SpikeInterfaceRecording"]
    assert list_recordings("a.h5") == [Path("a.h5")]
    assert list_recordings(path for path in ["a.h5"]) == [Path("a.h5")]
    by_name = list_recordings({"x": one, "y": tmp_path / "z.h5"})
    assert [str(name) for name in by_name] == ["x", "y"]
    write_mcs(tmp_path / "z.h5", seed=0, seconds=1)
    assert opened(by_name[1]).kind == "mcs"
    # Voltage in an array is one thing that is no recording, not one per channel.
    assert len(list_recordings(np.zeros((3, 4)))) == 1


def test_an_object_is_named_once() -> None:
    one: Any = SpikeInterfaceRecording([noise(10)])
    with pytest.raises(InputError, match="a recording is named twice"):
        check_named(list_recordings([one, one]), None, SpikeSettings())  # type: ignore[arg-type]  # no model is needed to refuse
