"""Detection of a whole recording on the device: uploads, filter, noise and walk in one."""

from __future__ import annotations

import itertools
from concurrent.futures import Executor

import numpy as np
import pytest
from array_recording import ArrayRecording
from cuda_on_cpu import HostAccelerator, Launch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from ptsd_cases import RATE_HZ, voltage

from toptune.errors import InputError
from toptune.params import HighPass, Noise, Ptsd
from toptune.recordings.trains import Segment
from toptune.spikes import ptsd_cuda as spikes_cuda
from toptune.spikes import streaming_cuda as detection_cuda
from toptune.spikes.preparing_cuda import DeviceHighPass
from toptune.spikes.streaming import Detected, detect_recording
from toptune.spikes.streaming_cuda import detect_recording_on


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> HostAccelerator:
    return HostAccelerator(tmp_path_factory.mktemp("detection_cuda"))


@pytest.fixture(autouse=True)
def _as_launched(device: HostAccelerator) -> None:
    device.how, device.memory_bytes = Launch(2, 64), 2**30


def cut(n: int, at: list[float]) -> tuple[Segment, ...]:
    edges = sorted({0, n, *(int(a * n) for a in at)})
    return tuple(Segment(a, b - a, 2 * a / RATE_HZ) for a, b in itertools.pairwise(edges))


def filtered_by(
    device: HostAccelerator, x: NDArray[np.float32], highpass: HighPass, gaps: tuple[Segment, ...]
) -> NDArray[np.float32]:
    """Filter as the device does, so that the CPU can detect in the very same samples."""
    out = np.empty_like(x)
    for first, n, _ in gaps:
        DeviceHighPass(device, highpass, RATE_HZ).apply(x[:, first:][:, :n], out[:, first:][:, :n])
    return out


def assert_same(found: Detected, expected: Detected) -> None:
    np.testing.assert_array_equal(found.trains.threshold_uv, expected.trains.threshold_uv)
    for got, wanted in zip(found.trains.spikes, expected.trains.spikes, strict=True):
        np.testing.assert_array_equal(got, wanted, strict=True)
    for a, b in zip(vars(found.noise).values(), vars(expected.noise).values(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert found.trains.segments == expected.trains.segments
    assert found.trains.channel_labels == expected.trains.channel_labels


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 9000),
    channels=st.integers(1, 5),
    cuts=st.lists(st.floats(0, 1), max_size=2),
    chunk=st.integers(1, 6000),
    walked=st.integers(1, 50_000),
    held_rows=st.integers(1, 5),
    cutoff_hz=st.sampled_from([0.0, 1.0, 300.0]),
    order=st.integers(1, 3),
    noise=st.sampled_from(["smallest_sd", "mad", "fixed"]),
    lifetime_ms=st.sampled_from([0.1, 2.0, 40.0]),
    n_jobs=st.sampled_from([1, 2]),
)
def test_spikes_are_those_of_the_cpu_on_the_same_filtered_samples(
    device: HostAccelerator,
    seed: int,
    n: int,
    channels: int,
    cuts: list[float],
    chunk: int,
    walked: int,
    held_rows: int,
    cutoff_hz: float,
    order: int,
    noise: Noise,
    lifetime_ms: float,
    n_jobs: int,
) -> None:
    x, gaps = voltage(seed, channels, n), cut(n, cuts)
    highpass = HighPass(cutoff_hz=cutoff_hz, order=order)
    ptsd = Ptsd(
        threshold_sd=5,
        lifetime_ms=lifetime_ms,
        noise=noise,
        threshold_uv=45.0 if noise == "fixed" else None,
    )
    recording = ArrayRecording(x, RATE_HZ, gaps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detection_cuda, "_CHUNK_VALUES", chunk * channels)
        patch.setattr(spikes_cuda, "chunk_values", lambda _: walked)
        patch.setattr(detection_cuda, "_room", lambda *_: held_rows * 4 * n)
        found = detect_recording_on(device, recording, highpass, ptsd, n_jobs=n_jobs)
    same = ArrayRecording(filtered_by(device, x, highpass, gaps), RATE_HZ, gaps)
    expected = detect_recording(same, HighPass(cutoff_hz=0), ptsd, n_jobs=1)
    assert_same(found.found, expected)
    for on_device, on_host in zip(found.spikes, found.found.trains.spikes, strict=True):
        np.testing.assert_array_equal(on_device, on_host)


def test_with_the_cpus_own_filter_the_spikes_are_the_same_too(device: HostAccelerator) -> None:
    x = voltage(1, 6, 120_000)
    found = detect_recording_on(device, ArrayRecording(x, RATE_HZ)).found
    expected = detect_recording(ArrayRecording(x, RATE_HZ))
    assert expected.trains.spikes.sample.size > 500
    np.testing.assert_array_equal(found.trains.spikes.sample, expected.trains.spikes.sample)
    np.testing.assert_array_equal(found.trains.spikes.channel, expected.trains.spikes.channel)
    np.testing.assert_allclose(found.trains.threshold_uv, expected.trains.threshold_uv, rtol=1e-6)


def test_channels_that_do_not_fit_together_are_done_in_groups(device: HostAccelerator) -> None:
    x = voltage(2, 5, 60_000)
    once = detect_recording_on(device, ArrayRecording(x, RATE_HZ)).found
    assert once.passes == 1
    # Room for two channels beside the upload buffers.
    device.memory_bytes = int((2.5 * 4 * 60_000 + 2 * 4 * x.size) / 0.6)
    calls: list[int] = []
    grouped = detect_recording_on(
        device, ArrayRecording(x, RATE_HZ), progress=lambda done, _: calls.append(done)
    ).found
    assert grouped.passes == 3
    assert calls.count(60_000) == 3
    assert once.trains.spikes.sample.size > 200
    assert_same(grouped, once)


def test_a_channel_longer_than_the_memory_is_refused(device: HostAccelerator) -> None:
    assert detect_recording_on(device, ArrayRecording(voltage(2, 2, 10), RATE_HZ)).found.passes == 1
    device.memory_bytes = 50_000
    with pytest.raises(
        InputError, match=r"<memory>: a channel of 60000 samples does not fit .* `device='cpu'`"
    ):
        detect_recording_on(device, ArrayRecording(voltage(2, 2, 60_000), RATE_HZ))


def test_chunks_meet_the_files_chunks_where_those_are_not_too_long(
    device: HostAccelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detection_cuda, "_CHUNK_VALUES", 2 * 10_000)
    asked: list[tuple[int, int]] = []

    class Chunked(ArrayRecording):
        length = 1000

        @property
        def chunk_samples(self) -> int:
            return self.length

        def read_into(
            self, out: NDArray[np.float32], start: int, pool: Executor | None = None
        ) -> None:
            asked.append((start, start + out.shape[1]))
            super().read_into(out, start, pool)

    detect_recording_on(device, Chunked(voltage(3, 2, 30_000), RATE_HZ))
    # 8000 is 8 chunks of the file and 62.5 blocks of the filter: 16,000 would be whole ones.
    assert asked[0] == (0, 9984)
    Chunked.length = 500
    asked.clear()
    monkeypatch.setattr(detection_cuda, "_CHUNK_VALUES", 2 * 33_000)
    detect_recording_on(device, Chunked(voltage(3, 2, 70_000), RATE_HZ))
    assert asked == [(0, 32_000), (32_000, 64_000), (64_000, 70_000)]


def test_nan_is_refused_by_channel(device: HostAccelerator) -> None:
    x = voltage(4, 3, 20_000)
    x[2, 12_345] = np.nan
    device.memory_bytes = int((1.5 * 4 * 20_000 + 2 * 4 * x.size) / 0.6)
    with pytest.raises(InputError, match="<memory>: channel 2 holds NaN"):
        detect_recording_on(device, ArrayRecording(x, RATE_HZ))


def test_a_cutoff_above_nyquist_is_refused_before_reading(device: HostAccelerator) -> None:
    with pytest.raises(InputError, match="high-pass cut-off of 300 Hz"):
        detect_recording_on(device, ArrayRecording(voltage(5, 1, 1000), 500.0))


def test_progress_counts_samples_up_to_all(device: HostAccelerator) -> None:
    calls: list[tuple[int, int]] = []
    recording = ArrayRecording(voltage(6, 2, 50_000), RATE_HZ)
    detect_recording_on(device, recording, progress=lambda a, b: calls.append((a, b)))
    assert calls[-1] == (50_000, 50_000)
