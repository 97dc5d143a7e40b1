"""What readers of voltage through other libraries share: pieces, stretches, streams, scales."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.recordings import voltage
from toptune.recordings.voltage import (
    Stretch,
    VoltageReader,
    between_gaps,
    check_scale,
    choose_stream,
    different,
    segments_of,
)

PATH = Path("a.rec")


class Counting(VoltageReader):
    """Voltage that says where it comes from; it notes how many samples are asked for at once."""

    def __init__(self, stretches: list[Stretch], width: int = 2) -> None:
        self.path, self.kind, self.stream_label = PATH, "counting", "all"
        self.channel_labels, self.width = ("A", "B"), width
        self.sampling_rate_hz = 100.0
        self.asked: list[int] = []
        self._stretches = stretches
        self._set_segments(stretches, 50)

    def _fill(self, out: NDArray[np.float32], segment: int, start: int) -> None:
        self.asked.append(out.shape[1])
        first = self._stretches[segment].first + start
        out[...] = np.arange(first, first + out.shape[1]) + np.array([[0], [0.5]])

    def close(self) -> None:
        pass


STRETCHES = [Stretch(0, 70, 5.0), Stretch(100, 30, 9.0), Stretch(130, 45, 9.5)]


@pytest.mark.parametrize("most", [2, 14, 1000])
def test_ranges_are_read_in_pieces_that_never_span_a_gap(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voltage, "_MOST_VALUES", most)
    reader = Counting(STRETCHES)
    stored = np.r_[0:70, 100:175]
    assert [tuple(s) for s in reader.segments] == [(0, 70, 0), (70, 30, 4), (100, 45, 4.5)]
    for start, stop in [(0, 145), (69, 71), (0, 1), (144, 145), (30, 120), (5, 5)]:
        got = reader.read(start, stop)
        np.testing.assert_array_equal(got[0], stored[start:stop])
        np.testing.assert_array_equal(got[1], stored[start:stop] + np.float32(0.5))
    assert max(reader.asked) <= max(1, most // 2)
    assert reader.chunk_samples == min(50, most // 2)
    assert [c.shape[1] for c in reader.chunks(40)] == [40, 30, 30, 40, 5]


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (140, 146)])
def test_samples_beyond_the_recording_are_refused(start: int, stop: int) -> None:
    with pytest.raises(InputError, match="are not in the recording"):
        Counting(STRETCHES).read(start, stop)


def test_gaps_are_found_wherever_pieces_end(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.r_[7:30, 40:50, 45:60, 100].astype(np.int32)
    expected = [(0, 23, 0.07), (23, 10, 0.4), (33, 15, 0.45), (48, 1, 1.0)]
    for piece in (1, 2, 10, 23, 1000):
        monkeypatch.setattr(voltage, "_STAMPS", piece)
        found = between_gaps(lambda low, high: numbers[low:high], len(numbers), 100.0)
        assert [tuple(s) for s in found] == expected
    assert between_gaps(lambda low, high: numbers[low:high], 0, 100.0) == []


def test_a_clock_that_starts_anew_goes_on_at_the_end_of_what_was_before() -> None:
    found = segments_of(PATH, [Stretch(0, 100, 50.0), Stretch(0, 100, 0.0), Stretch(0, 9, 2)], 100)
    assert [s.start_s for s in found] == [0.0, 1.0, 3.0]


@pytest.mark.parametrize(
    ("stretches", "rate", "says"),
    [
        ([], 100.0, "holds no sample"),
        ([Stretch(0, 5, 0.0)], 0.0, "holds no sample at 0 Hz"),
        ([Stretch(0, 5, np.nan)], 100.0, "starts at nan s"),
        ([Stretch(0, 1, k) for k in range(100_001)], 100.0, "more than 100000 gaps"),
    ],
)
def test_stretches_that_cannot_be_are_refused(
    stretches: list[Stretch], rate: float, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        segments_of(PATH, stretches, rate)


def test_a_file_of_gaps_only_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voltage, "_STAMPS", 1000)
    monkeypatch.setattr(voltage, "_MOST_SEGMENTS", 100)
    seen: list[int] = []

    def stamps(low: int, high: int) -> NDArray[Any]:
        seen.append(high)
        return np.arange(low, high) * 2

    found = between_gaps(stamps, 10**6, 100.0)
    assert max(seen) == 1000
    with pytest.raises(InputError, match="more than 100 gaps"):
        segments_of(PATH, found, 100.0)


@pytest.mark.parametrize(
    ("names", "raw", "wanted", "chosen"),
    [
        (["a", "b"], ["a"], None, "a"),
        (["a"], [], None, "a"),
        (["a", "spikes"], ["a"], "SPIKES", "spikes"),
        (["rec", "rec spikes"], ["rec"], "rec", "rec"),
    ],
)
def test_a_stream_is_chosen(
    names: list[str], raw: list[str], wanted: str | None, chosen: str
) -> None:
    assert choose_stream(PATH, names, raw, wanted) == chosen


@pytest.mark.parametrize(
    ("names", "raw", "wanted", "says"),
    [
        ([], [], None, "holds neither voltage"),
        (["a", "b"], ["a", "b"], None, "2 streams could hold the raw data: choose one of 'a', 'b'"),
        (["a", "spikes"], [], None, "it is not known which stream holds the raw data"),
        (["ab", "ac"], [], "a", "2 streams are named like 'a'"),
        (["ab", "ac"], [], "x", "no stream is named like 'x'; there are 'ab', 'ac'"),
    ],
)
def test_what_cannot_be_chosen_is_refused_with_what_there_is(
    names: list[str], raw: list[str], wanted: str | None, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        choose_stream(PATH, names, raw, wanted)


def test_names_that_differ_are_taken_first() -> None:
    assert different(PATH, ["a", "a"], ["1", "2"]) == ("1", "2")
    with pytest.raises(InputError, match="2 electrodes are called 'a'"):
        different(PATH, ["a", "a"], ["1", "1"])


@pytest.mark.parametrize(
    ("gain", "offset"), [(0, 0), (np.nan, 0), (np.inf, 0), (1e13, 0), (1, np.nan), (1, 1e16)]
)
def test_a_scale_that_gives_no_voltage_names_its_electrode(gain: float, offset: float) -> None:
    check_scale(PATH, ["A", "B"], np.array([-1.0, 0.195]), np.array([0.0, -6389.76]))
    with pytest.raises(InputError, match="electrode B has a step"):
        check_scale(PATH, ["A", "B"], np.array([1.0, gain]), np.array([0.0, offset]))
