"""Recordings and sortings of the real SpikeInterface, and of neo, give what they themselves give.

Run by hand where SpikeInterface is installed (it pins zarr below 3, so not where the tests run), as
``python tests/real_spikeinterface.py [MCS_FILE]``; docs/python.md tells what came of it. With a
file, SpikeInterface's own reader and toptune's must find the same spikes in it.
"""

from __future__ import annotations

import sys
from typing import Any

import neo
import numpy as np
import pytest
import quantities as pq
import spikeinterface as si
import spikeinterface.extractors as se
import spikeinterface.preprocessing as spre
import zarr
from array_recording import ArrayRecording

from toptune.errors import InputError
from toptune.recordings.opening import open_recording
from toptune.recordings.trains import SpikeTrains
from toptune.spikes.streaming import detect_recording


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{text}\n")


def opened_voltage(source: object, **options: Any) -> Any:
    """Open a recording of voltage."""
    return open_recording(source, **options)


def refused(source: object, words: str) -> None:
    """See that a recording is refused, with these words."""
    with pytest.raises(InputError, match=words):
        open_recording(source)


def same(one: SpikeTrains, other: SpikeTrains) -> None:
    """See that there are spikes, and that they are the same."""
    assert len(one.spikes.sample) > 100
    for a, b in zip(one.spikes[:2], other.spikes[:2], strict=True):
        np.testing.assert_array_equal(a, b)


def check_generated() -> None:
    """Compare a generated recording of two segments, its sorting, and the same as a neo Block."""
    recording, sorting = si.generate_ground_truth_recording(
        durations=[8.0, 5.0], sampling_frequency=20_000.0, num_channels=8, num_units=6, seed=1
    )
    opened = opened_voltage(recording)
    traces = [recording.get_traces(segment_index=k, return_in_uV=True) for k in range(2)]
    whole = np.concatenate(traces).T
    np.testing.assert_array_equal(opened.read(0, opened.n_samples), whole)
    found = detect_recording(opened).trains
    in_memory = ArrayRecording(np.ascontiguousarray(whole), 20_000.0, opened.segments)
    same(found, detect_recording(in_memory).trains)
    say(f"generated: {found}")

    sorting.register_recording(recording)
    trains = SpikeTrains.from_spikeinterface(sorting)
    firsts = [segment.first_sample for segment in trains.segments]
    vector = sorting.to_spike_vector()
    expected = sorted(
        (int(s["sample_index"]) + firsts[s["segment_index"]], int(s["unit_index"])) for s in vector
    )
    got = zip(trains.spikes.sample.tolist(), trains.spikes.channel.tolist(), strict=True)
    assert list(got) == expected
    say(f"sorting: {trains}")

    block = neo.Block()
    for k, x in enumerate(traces):
        segment = neo.Segment()
        segment.analogsignals.append(
            neo.AnalogSignal(x / 1000, "mV", sampling_rate=20 * pq.kHz, t_start=10 * k * pq.s)
        )
        block.segments.append(segment)
    same(detect_recording(opened_voltage(block)).trains, found)
    say("neo: the same")


def check_integers() -> None:
    """Compare gains, groups, a gap and a chain of preprocessing."""
    raw = np.random.default_rng(0).integers(-500, 500, (40_000, 4)).astype("int16")
    recording = si.NumpyRecording([raw], 20_000.0)
    refused(recording, "set_channel_gains")
    recording.set_channel_gains([0.1, 0.2, 0.3, 0.4])
    recording.set_channel_offsets([0, 1, 2, 3])
    expected = recording.get_traces(return_in_uV=True).T
    np.testing.assert_array_equal(opened_voltage(recording).read(0, 40_000), expected)
    recording.set_property("group", [0, 0, 1, 1])
    refused(recording, "2 groups, 0, 1")
    np.testing.assert_array_equal(opened_voltage(recording, well="1").read(0, 9), expected[2:, :9])
    recording.set_property("group", [0] * 4)
    (note,) = opened_voltage(spre.bandpass_filter(recording)).notes
    times = np.arange(40_000) / 20_000.0
    times[20_000:] += 3.0
    recording.set_times(times, segment_index=0)
    assert [segment.start_s for segment in opened_voltage(recording).segments] == [0.0, 4.0]
    say(f"integers: microvolts, groups and a gap; filtered: {note}")


def check_mcs(path: str) -> None:
    """Compare SpikeInterface's reader of an MCS file with toptune's."""
    mine = detect_recording(opened_voltage(path)).trains
    theirs = detect_recording(opened_voltage(se.read_mcsh5(path, stream_id=1))).trains
    np.testing.assert_array_equal(mine.spikes.sample, theirs.spikes.sample)
    say(f"{path}: {mine}")


if __name__ == "__main__":
    say(f"SpikeInterface {si.__version__}, neo {neo.__version__}, zarr {zarr.__version__}")
    check_generated()
    check_integers()
    for one in sys.argv[1:]:
        check_mcs(one)
