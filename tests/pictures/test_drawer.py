"""Windows and pictures against the definitions, written out pixel by pixel."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.machine import cuda
from toptune.params import Picture, Windows
from toptune.pictures import drawer_cuda
from toptune.pictures.drawer import Drawer, Drawers
from toptune.pictures.drawer_cuda import CudaBinnedSpikes, ResidentSpikes
from toptune.recordings.trains import Segment, SpikeTrains, sort_spikes
from toptune.recordings.windows import window_starts


def make_trains(
    sample: list[int],
    channel: list[int],
    *,
    n_channels: int,
    rate_hz: float,
    lengths: list[int],
    gap_s: float = 1.0,
) -> SpikeTrains:
    segments, first, start_s = [], 0, 0.0
    for n in lengths:
        segments.append(Segment(first, n, start_s))
        first += n
        start_s += n / rate_hz + gap_s
    spikes = sort_spikes(
        np.array(sample, dtype=np.int64),
        np.array(channel, dtype=np.int32),
        np.ones(len(sample), dtype=np.float32),
    )
    return SpikeTrains(
        spikes=spikes,
        channel_labels=tuple(f"{i:02d}" for i in range(n_channels)),
        sampling_rate_hz=rate_hz,
        segments=tuple(segments),
        threshold_uv=np.full(n_channels, np.nan, dtype=np.float32),
    )


def fifteen_minutes(seed: int = 0, n_channels: int = 60) -> SpikeTrains:
    """Bursts of 0.3 s about every 5 s on all channels, over a background of 1 Hz a channel."""
    rng = np.random.default_rng(seed)
    background = rng.integers(0, 9_000_000, n_channels * 900)
    onset = rng.integers(0, 8_990_000, 180)
    bursts = (rng.choice(onset, 200 * 180) + rng.integers(0, 3000, 200 * 180)).tolist()
    sample = [*background.tolist(), *bursts]
    channel = rng.integers(0, n_channels, len(sample)).tolist()
    return make_trains(sample, channel, n_channels=n_channels, rate_hz=10_000, lengths=[9_000_000])


# The definitions, straight from the text: one window, one pixel, one bin at a time.


def naive_bins(trains: SpikeTrains, windows: Windows) -> list[list[list[int]]]:
    """For each segment and whole bin, the channels of its spikes."""
    per_bin = trains.sampling_rate_hz * windows.bin_ms / 1000
    result = []
    for segment in trains.segments:
        bins: list[list[int]] = [[] for _ in range(math.floor(segment.n_samples / per_bin))]
        end = segment.first_sample + segment.n_samples
        for sample, channel in zip(trains.spikes.sample, trains.spikes.channel, strict=True):
            if segment.first_sample <= sample < end:
                b = math.floor((int(sample) - segment.first_sample) / per_bin)
                if b < len(bins):
                    bins[b].append(int(channel))
        result.append(bins)
    return result


def naive_windows(trains: SpikeTrains, windows: Windows) -> list[tuple[int, int, float]]:
    """Segment, first bin and start of every window."""
    result = []
    for s, bins in enumerate(naive_bins(trains, windows)):
        w = 0
        while w * windows.stride_bins + windows.width_bins <= len(bins):
            start_s = trains.segments[s].start_s + w * windows.stride_s
            result.append((s, w * windows.stride_bins, start_s))
            w += 1
    return result


def naive_columns(n_bins: int, size: int) -> list[list[int]]:
    columns: list[list[int]] = [[] for _ in range(size)]
    for b in range(n_bins):
        columns[b * size // n_bins].append(b)
    return [c or [i * n_bins // size] for i, c in enumerate(columns)]


def naive_histogram(bins: list[list[int]], size: int, top: float) -> NDArray[np.float64]:
    picture = np.ones((size, size))
    for column, members in enumerate(naive_columns(len(bins), size)):
        for j in range(size):
            reached = (
                [min(max(len(bins[b]) * size / top - j, 0), 1) for b in members] if top else [0]
            )
            picture[size - 1 - j, column] -= sum(reached) / len(reached)
    return picture


def naive_raster(bins: list[list[int]], size: int, n_channels: int) -> NDArray[np.float64]:
    picture = np.ones((size, size))
    for column, members in enumerate(naive_columns(len(bins), size)):
        for e in range(n_channels):
            share = sum(e in bins[b] for b in members) / len(members)
            for row in range(size):
                low, high = e * size / n_channels, (e + 1) * size / n_channels
                picture[row, column] -= max(min(row + 1, high) - max(row, low), 0) * share
    return picture


def naive_pictures(
    trains: SpikeTrains, windows: Windows, picture: Picture, size: int
) -> NDArray[np.float64]:
    segments = naive_bins(trains, windows)
    highest = max((len(b) for bins in segments for b in bins), default=0)
    result = []
    for s, first, _ in naive_windows(trains, windows):
        bins = segments[s][first : first + windows.width_bins]
        if picture.kind == "raster":
            result.append(naive_raster(bins, size, len(trains.channel_labels)))
            continue
        axis = picture.count_axis
        top = {"window": max(map(len, bins)), "recording": highest}.get(str(axis), axis)
        result.append(naive_histogram(bins, size, float(top)))
    return np.array(result).reshape(-1, size, size)


@st.composite
def recordings(draw: st.DrawFn) -> SpikeTrains:
    n_channels = draw(st.integers(1, 9))
    rate_hz = draw(st.sampled_from([100.0, 250.0, 333.3, 1234.5, 12207.03125]))
    # About 0.1 to 0.8 s, so 10 to 80 bins of 10 ms.
    lengths = draw(
        st.lists(st.integers(int(rate_hz / 10), int(rate_hz * 0.8)), min_size=1, max_size=3)
    )
    total = sum(lengths)
    # Few distinct places, so that bins hold several spikes and counts tie.
    places = draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=12))
    spikes = draw(
        st.lists(st.tuples(st.sampled_from(places), st.integers(0, n_channels - 1)), max_size=60)
    )
    return make_trains(
        [s for s, _ in spikes],
        [c for _, c in spikes],
        n_channels=n_channels,
        rate_hz=rate_hz,
        lengths=lengths,
    )


windows_in_bins = st.builds(
    lambda width, stride, bin_ms: Windows(
        width_s=width * bin_ms / 1000, stride_s=stride * bin_ms / 1000, bin_ms=bin_ms
    ),
    st.integers(1, 25),
    st.integers(1, 30),
    st.sampled_from([10.0, 20.0, 12.5]),
)
pictures = st.one_of(
    st.just(Picture(kind="raster")),
    st.builds(
        lambda axis: Picture(count_axis=axis),
        st.sampled_from(["window", "recording", 0.3, 1, 2.5, 4.0, 100.0]),
    ),
)


@settings(deadline=None, max_examples=150)
@given(recordings(), windows_in_bins, pictures, st.integers(1, 31))
def test_every_pixel_is_the_definitions(
    trains: SpikeTrains, windows: Windows, picture: Picture, size: int
) -> None:
    drawer = Drawer(trains, windows, picture, size)
    drawn = drawer.draw(0, len(drawer))
    expected = naive_pictures(trains, windows, picture, size)
    assert drawn.dtype == torch.float32
    assert drawn.shape == expected.shape
    np.testing.assert_allclose(drawn.numpy(), expected, atol=2e-6)
    assert ((drawn >= 0) & (drawn <= 1)).all()


@settings(deadline=None, max_examples=100)
@given(recordings(), windows_in_bins)
def test_windows_stay_inside_segments_and_carry_their_time(
    trains: SpikeTrains, windows: Windows
) -> None:
    starts = window_starts(trains, windows)
    expected = naive_windows(trains, windows)
    assert list(zip(starts.segment, starts.first_bin, starts.start_s, strict=True)) == expected


@settings(deadline=None, max_examples=30)
@given(recordings(), windows_in_bins, pictures, st.data())
def test_a_slice_equals_that_part_of_the_whole(
    trains: SpikeTrains, windows: Windows, picture: Picture, data: st.DataObject
) -> None:
    drawer = Drawer(trains, windows, picture, 16)
    first = data.draw(st.integers(0, len(drawer)))
    last = data.draw(st.integers(first, len(drawer)))
    part = drawer.draw(first, last)
    # Matrix products of other shapes may round differently in the last place.
    torch.testing.assert_close(part, drawer.draw(0, len(drawer))[first:last], atol=1e-6, rtol=0)


def test_fifteen_minutes_hold_157_windows_of_120_s() -> None:
    drawer = Drawer(fifteen_minutes(), Windows(), Picture(), 224)
    assert len(drawer) == 157
    np.testing.assert_array_equal(drawer.start_s, np.arange(157) * 5.0)
    assert drawer.draw(150, 157).shape == (7, 224, 224)


@pytest.mark.parametrize(("width_s", "n_windows"), [(60.0, 169), (30.0, 175), (10.0, 179)])
def test_the_papers_other_windows(width_s: float, n_windows: int) -> None:
    trains = fifteen_minutes(n_channels=4)
    assert len(window_starts(trains, Windows(width_s=width_s)).start_s) == n_windows


@pytest.mark.parametrize(
    ("kind", "size"), [("histogram", 224), ("histogram", 299), ("raster", 100)]
)
def test_a_full_size_window_is_the_definitions(kind: str, size: int) -> None:
    trains = fifteen_minutes()
    windows = Windows(width_s=10.0, stride_s=5.0)
    picture = Picture.from_json({"kind": kind})
    drawn = Drawer(trains, windows, picture, size).draw(3, 4)[0].numpy()
    bins = naive_bins(trains, windows)[0][1500:2500]
    counts = np.array([len(b) for b in bins])
    assert counts.max() > 5
    expected = (
        naive_histogram(bins, size, float(counts.max()))
        if kind == "histogram"
        else naive_raster(bins, size, 60)
    )
    np.testing.assert_allclose(drawn, expected, atol=5e-6)
    assert 0.005 < 1 - drawn.mean() < 0.9  # something is drawn


def test_the_darkness_of_a_histogram_is_the_area_of_its_bars() -> None:
    trains = fifteen_minutes()
    drawer = Drawer(trains, Windows(), Picture(count_axis="recording"), 150)
    bin_of = trains.spikes.sample // 100
    highest = max(Counter(bin_of.tolist()).values())
    # 12,000 bins fill 150 columns of 80 each, so the mean darkness is mean count / top.
    in_first = int((bin_of < 12_000).sum())
    darkness = 1 - float(drawer.draw(0, 1).to(torch.float64).mean())
    assert darkness == pytest.approx(in_first / 12_000 / highest, rel=1e-4)


def test_more_electrodes_than_rows_share_a_row() -> None:
    trains = make_trains([0, 1], [0, 3], n_channels=1000, rate_hz=100, lengths=[4])
    drawer = Drawer(trains, Windows(width_s=0.04, stride_s=0.01), Picture(kind="raster"), 4)
    expected = np.ones((4, 4))
    expected[0, 0] = expected[0, 1] = 1 - 1 / 250
    np.testing.assert_allclose(drawer.draw(0, 1)[0].numpy(), expected, atol=1e-7)


def test_silent_electrodes_keep_their_band() -> None:
    trains = make_trains([2], [1], n_channels=4, rate_hz=100, lengths=[4])
    drawer = Drawer(trains, Windows(width_s=0.04, stride_s=0.01), Picture(kind="raster"), 8)
    expected = np.ones((8, 8))
    expected[2:4, 4:6] = 0
    np.testing.assert_array_equal(drawer.draw(0, 1)[0].numpy(), expected)


def test_two_spikes_of_one_electrode_in_a_bin_make_one_mark() -> None:
    once = make_trains([10], [0], n_channels=1, rate_hz=1000, lengths=[40])
    twice = make_trains([10, 19], [0, 0], n_channels=1, rate_hz=1000, lengths=[40])
    windows = Windows(width_s=0.04, stride_s=0.01)
    drawn = [Drawer(t, windows, Picture(kind="raster"), 4).draw(0, 1) for t in (once, twice)]
    assert torch.equal(drawn[0], drawn[1])


def test_bars_above_the_axis_are_cut() -> None:
    trains = make_trains([0] * 5 + [1], [0] * 6, n_channels=1, rate_hz=100, lengths=[2])
    drawer = Drawer(trains, Windows(width_s=0.02, stride_s=0.01), Picture(count_axis=2.0), 4)
    expected = np.ones((4, 4))
    expected[:, :2] = 0
    expected[2:, 2:] = 0
    np.testing.assert_array_equal(drawer.draw(0, 1)[0].numpy(), expected)


@pytest.mark.parametrize(
    "picture",
    [Picture(), Picture(count_axis="recording"), Picture(count_axis=3.0), Picture(kind="raster")],
)
@pytest.mark.parametrize("n_channels", [0, 3])
def test_a_recording_without_spikes_is_white(picture: Picture, n_channels: int) -> None:
    trains = make_trains([], [], n_channels=n_channels, rate_hz=1000, lengths=[2000])
    drawn = Drawer(trains, Windows(width_s=1.0, stride_s=0.5), picture, 16).draw(0, 3)
    assert torch.equal(drawn, torch.ones(3, 16, 16))


@pytest.mark.parametrize("axis", ["window", "recording", 3.0])
def test_a_window_without_spikes_is_white_among_others(axis: str | float) -> None:
    trains = make_trains([0, 0, 500], [0, 1, 0], n_channels=2, rate_hz=1000, lengths=[3000])
    drawer = Drawer(trains, Windows(width_s=1.0, stride_s=1.0), Picture(count_axis=axis), 8)
    drawn = drawer.draw(0, 3)
    assert torch.equal(drawn[1:], torch.ones(2, 8, 8))
    assert drawn[0].min() < 1


def test_a_recording_shorter_than_the_window_has_none() -> None:
    trains = make_trains([5], [0], n_channels=1, rate_hz=1000, lengths=[999, 999])
    drawer = Drawer(trains, Windows(width_s=1.0, stride_s=0.5), Picture(), 8)
    assert len(drawer) == 0
    assert drawer.start_s.shape == (0,)
    assert drawer.draw(0, 0).shape == (0, 8, 8)


def test_spikes_after_the_last_whole_bin_do_not_raise_the_recordings_axis() -> None:
    whole = make_trains([0], [0], n_channels=1, rate_hz=1000, lengths=[100])
    tail = make_trains([0, 105, 106, 107], [0] * 4, n_channels=1, rate_hz=1000, lengths=[108])
    windows = Windows(width_s=0.1, stride_s=0.1)
    drawn = [
        Drawer(t, windows, Picture(count_axis="recording"), 10).draw(0, 1) for t in (whole, tail)
    ]
    assert torch.equal(drawn[0], drawn[1])


def test_blocks_inside_a_draw_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    trains = fifteen_minutes()
    for picture in (Picture(), Picture(kind="raster")):
        drawer = Drawer(trains, Windows(), picture, 64)
        whole = drawer.draw(0, len(drawer))
        monkeypatch.setattr("toptune.pictures.drawer._BLOCK_BYTES", 1)
        torch.testing.assert_close(drawer.draw(0, len(drawer)), whole, atol=1e-6, rtol=0)
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("sample", "channel", "says"),
    [
        (100, 0, "sample 100 lies outside the recording's 100 samples"),
        (-1, 0, "sample -1 lies outside"),
        (5, 2, "channel 2, the recording has 2 channels"),
        (5, -1, "channel -1, the recording has 2 channels"),
    ],
)
def test_spikes_that_cannot_be_are_refused(sample: int, channel: int, says: str) -> None:
    trains = make_trains([sample], [channel], n_channels=2, rate_hz=1000, lengths=[100])
    with pytest.raises(InputError, match=says):
        Drawer(trains, Windows(width_s=0.1, stride_s=0.1), Picture(), 8)


def test_windows_that_do_not_exist_are_refused() -> None:
    trains = make_trains([5], [0], n_channels=2, rate_hz=1000, lengths=[100])
    drawer = Drawer(trains, Windows(width_s=0.1, stride_s=0.1), Picture(), 8)
    for first, last in [(0, 2), (-1, 1), (1, 0)]:
        with pytest.raises(IndexError, match="there are 1"):
            drawer.draw(first, last)
    with pytest.raises(ValueError, match="size must be 1 or more, got 0"):
        Drawer(trains, Windows(), Picture(), 0)


@pytest.mark.gpu
@pytest.mark.parametrize("picture", [Picture(), Picture(kind="raster")])
def test_pictures_on_the_gpu_are_those_of_the_cpu(picture: Picture) -> None:
    trains = fifteen_minutes()
    on_cpu = Drawer(trains, Windows(), picture, 224).draw(0, 157)
    on_gpu = Drawer(trains, Windows(), picture, 224, "cuda").draw(0, 157)
    assert on_gpu.device.type == "cuda"
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-6, rtol=0)


# --- which drawer is taken where, and what several of one recording share


WINDOWS = Windows(width_s=0.1, stride_s=0.1)
TRAINS = make_trains([5, 7], [0, 1], n_channels=2, rate_hz=1000, lengths=[300])


def test_the_cpu_draws_by_drawers_that_share_bins() -> None:
    made = Drawers(TRAINS)
    drawers = [
        made.drawer(WINDOWS, Picture.from_json({"kind": kind}), 8, "cpu")
        for kind in ("histogram", "raster")
    ]
    for kind, drawer in zip(("histogram", "raster"), drawers, strict=True):
        alone = Drawer(TRAINS, WINDOWS, Picture.from_json({"kind": kind}), 8)
        assert torch.equal(drawer.draw(0, 3), alone.draw(0, 3))


def launch_nothing(_kernel: str, _threads: int, *_arguments: torch.Tensor | int | float) -> None:
    pass


@pytest.mark.parametrize(("device", "index"), [("cuda", 2), ("cuda:1", 1)])
def test_cuda_draws_by_kernels_on_the_device_that_is_meant_from_spikes_placed_once(
    monkeypatch: pytest.MonkeyPatch, device: str, index: int
) -> None:
    placed: list[tuple[float, torch.device, int]] = []

    class Placing(CudaBinnedSpikes):
        """Places on the CPU, and notes where it should have."""

        def __init__(
            self,
            trains: SpikeTrains,
            bin_ms: float,
            device: torch.device,
            launch: int,
            resident: ResidentSpikes | None,
        ) -> None:
            # Those on another device than the pictures' are not of use there.
            assert resident is None
            placed.append((bin_ms, device, launch))
            super().__init__(trains, bin_ms, torch.device("cpu"), launch_nothing)

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    kernels = {k: SimpleNamespace(launch=k) for k in (1, 2)}
    monkeypatch.setattr(cuda, "torch_kernels", lambda _source, where: kernels[where])
    monkeypatch.setattr(drawer_cuda, "CudaBinnedSpikes", Placing)
    spikes = TRAINS.spikes
    elsewhere = ResidentSpikes(torch.tensor(spikes.sample), torch.tensor(spikes.channel))
    made = Drawers(TRAINS, elsewhere)
    for bin_ms in (10.0, 10.0, 20.0):
        windows = Windows(width_s=0.1, stride_s=0.1, bin_ms=bin_ms)
        assert len(made.drawer(windows, Picture(), 8, device)) == 3
    assert placed == [(b, torch.device("cuda", index), index) for b in (10.0, 20.0)]
