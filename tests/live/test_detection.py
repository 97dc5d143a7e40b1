"""Live detection finds the spikes of the whole recording, and learns thresholds on a span."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_recording import ArrayRecording
from hypothesis import given, settings
from hypothesis import strategies as st
from live_cases import cut, voltage
from small_data import write_mcs

from toptune.errors import InputError
from toptune.live.detection import Calibration, CertainSpikes, LiveDetector
from toptune.params import HighPass, Ptsd, SpikeSettings
from toptune.recordings.trains import Segment, Spikes, join_spikes
from toptune.spikes.streaming import Detected, detect_recording

RATE_HZ = 10_000.0


def calibration_of(detected: Detected) -> Calibration:
    noise = detected.noise
    return Calibration(
        channel_labels=detected.trains.channel_labels,
        threshold_uv=noise.threshold_uv,
        mean_uv=detected.mean_uv,
        dead=noise.dead,
        noisy=noise.noisy,
        span_s=detected.trains.duration_s,
    )


def feed(
    detector: LiveDetector, x: Any, segments: tuple[Segment, ...], lengths: list[int]
) -> tuple[Spikes, list[int]]:
    """Push a recording; give its spikes, by sample of the recording, and the stretches' lengths."""
    found: list[CertainSpikes] = []
    turn = 0
    for segment in segments:
        found += detector.start_stretch()
        at, end = segment.first_sample, segment.first_sample + segment.n_samples
        while at < end:
            n = min(lengths[turn % len(lengths)], end - at)
            found += detector.push(x[:, at : at + n])
            at, turn = at + n, turn + 1
    found += detector.end()
    spikes = [
        one.spikes._replace(sample=one.spikes.sample + segments[one.stretch].first_sample)
        for one in found
    ]
    return join_spikes(spikes), [one.known_to for one in found if one.ended]


lengths_of_blocks = st.lists(
    st.sampled_from([1, 40, 128, 900, 5000, 30_000]), min_size=1, max_size=4
).filter(lambda lengths: sum(lengths) / len(lengths) > 100)


@settings(max_examples=25)
@given(
    st.integers(0, 2**31),
    st.lists(st.floats(0, 1), max_size=3),
    lengths_of_blocks,
    st.sampled_from([0.0, 300.0]),
)
def test_given_thresholds_find_the_spikes_of_the_whole_recording(
    seed: int, parts: list[float], lengths: list[int], cutoff_hz: float
) -> None:
    x = voltage(seed, 20_000)
    segments = cut(20_000, parts, [0.5])
    given = SpikeSettings(highpass=HighPass(cutoff_hz=cutoff_hz), ptsd=Ptsd(threshold_sd=6))
    whole = detect_recording(ArrayRecording(x, RATE_HZ, segments), given.highpass, given.ptsd)
    labels = whole.trains.channel_labels
    detector = LiveDetector(labels, RATE_HZ, given, calibration=calibration_of(whole))
    spikes, ended = feed(detector, x, segments, lengths)
    assert ended == [segment.n_samples for segment in segments]
    for got, wanted in zip(spikes, whole.trains.spikes, strict=True):
        np.testing.assert_array_equal(got, wanted)


@settings(max_examples=15)
@given(st.lists(st.floats(0, 1), max_size=3), lengths_of_blocks, st.sampled_from(["mad", "fixed"]))
def test_the_span_is_learnt_on_as_if_it_were_a_whole_recording(
    parts: list[float], lengths: list[int], noise: Any
) -> None:
    x = voltage(5, 20_000)
    segments = cut(20_000, parts, [0.5])
    ptsd = Ptsd(noise=noise, threshold_uv=60.0 if noise == "fixed" else None)
    detector = LiveDetector(
        ("0", "1", "2", "3"), RATE_HZ, SpikeSettings(ptsd=ptsd), calibration_s=1.2
    )
    spikes, _ = feed(detector, x, segments, lengths)
    kept = [
        Segment(s.first_sample, min(s.n_samples, 12_000 - s.first_sample), s.start_s)
        for s in segments
        if s.first_sample < 12_000
    ]
    span = ArrayRecording(x[:, :12_000], RATE_HZ, tuple(kept))
    expected = calibration_of(detect_recording(span, None, ptsd))
    assert detector.calibration is not None
    assert detector.calibration.to_json() == expected.to_json()
    assert detector.calibration.notes == ("dead channel: 3",)
    # What came during the span is searched, too.
    again = LiveDetector(
        expected.channel_labels, RATE_HZ, SpikeSettings(ptsd=ptsd), calibration=expected
    )
    for got, wanted in zip(spikes, feed(again, x, segments, [4000])[0], strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert (spikes.sample < 6_000).any()


def test_a_source_that_ends_within_the_span_is_searched_with_what_it_gave() -> None:
    x = voltage(1, 8_000)
    detector = LiveDetector(("0", "1", "2", "3"), RATE_HZ, SpikeSettings(), calibration_s=30)
    spikes, ended = feed(detector, x, (Segment(0, 8_000, 0.0),), [300])
    whole = detect_recording(ArrayRecording(x, RATE_HZ))
    np.testing.assert_array_equal(spikes.sample, whole.trains.spikes.sample)
    assert ended == [8_000]
    assert detector.calibration is not None
    assert detector.calibration.span_s == pytest.approx(0.8)


def test_thresholds_of_a_file_go_through_a_file_and_back(tmp_path: Path) -> None:
    path = write_mcs(tmp_path / "r.h5", seed=2, seconds=2)
    learnt = Calibration.of_recording(path)
    learnt.write(tmp_path / "t.json")
    back = Calibration.read(tmp_path / "t.json")
    assert back.to_json() == learnt.to_json()
    assert learnt.threshold_uv.dtype == back.threshold_uv.dtype == np.float32
    turned = back.in_order(("E3", "E0"))
    assert turned.threshold_uv.tolist() == learnt.threshold_uv[[3, 0]].tolist()


def test_an_infinite_threshold_goes_through_a_file(tmp_path: Path) -> None:
    x = voltage(1, 8_000)
    learnt = calibration_of(detect_recording(ArrayRecording(x, RATE_HZ)))
    learnt.write(tmp_path / "t.json")
    assert Calibration.read(tmp_path / "t.json").threshold_uv[3] == np.inf


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no thresholds"),
        ("[]", "holds no thresholds"),
        ('{"kind": "toptune thresholds", "format": 2}', "another kind or format"),
        ('{"kind": "toptune thresholds", "format": 1}', "holds no thresholds"),
    ],
)
def test_another_file_holds_no_thresholds(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(InputError, match=message):
        Calibration.read(tmp_path / "t.json")
    with pytest.raises(InputError, match="cannot be read"):
        Calibration.read(tmp_path / "none.json")


def test_what_cannot_be_detected_is_refused_before_any_sample() -> None:
    x = voltage(1, 8_000)
    learnt = calibration_of(detect_recording(ArrayRecording(x, RATE_HZ)))
    with pytest.raises(InputError, match="no channels 7, 8"):
        LiveDetector(("0", "7", "8"), RATE_HZ, SpikeSettings(), calibration=learnt)
    with pytest.raises(InputError, match="calibration_s must be above 0"):
        LiveDetector(("0",), RATE_HZ, SpikeSettings(), calibration_s=0)
    with pytest.raises(InputError, match="cut-off"):
        LiveDetector(("0",), 500.0, SpikeSettings())
    many = tuple(map(str, range(4096)))
    with pytest.raises(InputError, match=r"GiB: let `calibration_s` be 3 or less"):
        LiveDetector(many, 20_000.0, SpikeSettings(), calibration_s=30)
    with pytest.raises(InputError, match="above 0"):
        Calibration(**{**vars(learnt), "threshold_uv": np.zeros(4, np.float32)})
    with pytest.raises(InputError, match="as many values"):
        Calibration(**{**vars(learnt), "mean_uv": np.zeros(3, np.float32)})
