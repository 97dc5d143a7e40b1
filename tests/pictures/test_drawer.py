"""Windows and pictures against the definitions, written out pixel by pixel."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_data import FIVE_PICTURES

from toptune.errors import InputError
from toptune.machine import cuda
from toptune.params import Picture, Windows
from toptune.pictures import drawer_cuda
from toptune.pictures.drawer import Drawer
from toptune.pictures.drawer_cuda import CudaBinnedSpikes, ResidentSpikes
from toptune.pictures.drawers import Drawers
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


def naive_histogram(bins: list[list[int]], size: int, top: float | str) -> NDArray[np.float64]:
    def height(spikes: int) -> float:
        if top == "log":
            return size * math.log2(1 + spikes) / 8
        return spikes * size / float(top) if top else 0

    picture = np.ones((size, size))
    for column, members in enumerate(naive_columns(len(bins), size)):
        for j in range(size):
            reached = [min(max(height(len(bins[b])) - j, 0), 1) for b in members]
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


def by_activity(bins: list[list[int]], n_channels: int) -> list[int]:
    spikes = Counter(channel for channels in bins for channel in channels)
    return sorted(range(n_channels), key=lambda e: (-spikes[e], e))


def naive_sorted_raster(bins: list[list[int]], size: int, n_channels: int) -> NDArray[np.float64]:
    place = {e: k for k, e in enumerate(by_activity(bins, n_channels))}
    return naive_raster([[place[e] for e in channels] for channels in bins], size, n_channels)


def naive_intervals(
    trains: SpikeTrains, segment: int, first: int, windows: Windows, size: int
) -> NDArray[np.float64]:
    per_bin = trains.sampling_rate_hz * windows.bin_ms / 1000
    begin = trains.segments[segment].first_sample
    end = begin + trains.segments[segment].n_samples
    counts: Counter[tuple[int, int]] = Counter()
    inside: list[list[tuple[int, int]]] = [[] for _ in trains.channel_labels]
    for sample, e in zip(trains.spikes.sample.tolist(), trains.spikes.channel, strict=True):
        b = math.floor((sample - begin) / per_bin) - first
        if begin <= sample < end and 0 <= b < windows.width_bins:
            inside[e].append((sample, b))
    for of_electrode in inside:
        for (one, _), (other, b) in pairwise(sorted(of_electrode)):
            if other > one:
                milliseconds = (other - one) / trains.sampling_rate_hz * 1000
                step = math.floor(48 * math.log10(milliseconds) / 5)
                counts[min(max(step, 0), 47), b * 112 // windows.width_bins] += 1
    picture = np.ones((size, size))
    for j in range(size):
        for column in range(size):
            n = counts[j * 48 // size, column * 112 // size]
            picture[size - 1 - j, column] -= min(1, math.log(1 + n) / math.log(51))
    return picture


def naive_correlation(
    bins: list[list[int]], size: int, n_channels: int, bin_ms: float
) -> NDArray[np.float64]:
    count_ms = max(100.0, bin_ms)
    n_counts = math.floor(len(bins) * bin_ms / count_ms + 1e-9)
    shown = by_activity(bins, n_channels)[:size]
    roots: dict[int, list[float]] = {}
    for e in shown:
        counts = [0] * n_counts
        for b, channels in enumerate(bins):
            if (at := math.floor(b * bin_ms / count_ms + 1e-9)) < n_counts:
                counts[at] += channels.count(e)
        if len(set(counts)) > 1:
            roots[e] = [math.sqrt(n) for n in counts]
    matrix = np.array([[pearson(x, y) for y in roots.values()] for x in roots.values()])
    spikes = [sum(channels.count(e) for channels in bins) for e in roots]
    order = naive_order(matrix, np.array(spikes, dtype=float))
    picture = np.ones((size, size))
    for row in range(size):
        for column in range(size):
            i, j = row * len(shown) // size, column * len(shown) // size
            if max(i, j) < len(order):
                picture[row, column] -= max(0, matrix[order[i], order[j]])
    return picture


def pearson(x: list[float], y: list[float]) -> float:
    mx, my = sum(x) / len(x), sum(y) / len(y)
    both = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return both / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


def naive_order(matrix: NDArray[np.float64], spikes: NDArray[np.float64]) -> list[int]:
    """By the vector nearest to the spikes of all that belong to the second eigenvalue."""
    n = len(spikes)
    if n < 3:
        return list(range(n))
    values, vectors = np.linalg.eigh(matrix)
    projector = np.zeros((n, n))
    for k in range(n):
        if abs(values[k] - values[-2]) < 1e-9 * n:
            projector += np.outer(vectors[:, k], vectors[:, k])
    candidates = [spikes / np.linalg.norm(spikes), *np.eye(n)]
    nearest = next(p for c in candidates if np.linalg.norm(p := projector @ c) > 1e-6)
    component = np.round(nearest / np.abs(nearest).max(), 9)
    return sorted(range(n), key=lambda e: (-component[e], e))


def naive_pictures(
    trains: SpikeTrains, windows: Windows, picture: Picture, size: int
) -> NDArray[np.float64]:
    segments = naive_bins(trains, windows)
    highest = max((len(b) for bins in segments for b in bins), default=0)
    result = []
    for s, first, _ in naive_windows(trains, windows):
        bins = segments[s][first : first + windows.width_bins]
        n = len(trains.channel_labels)
        if picture.kind == "raster":
            result.append(naive_raster(bins, size, n))
        elif picture.kind == "sorted_raster":
            result.append(naive_sorted_raster(bins, size, n))
        elif picture.kind == "intervals":
            result.append(naive_intervals(trains, s, first, windows, size))
        elif picture.kind == "correlation":
            result.append(naive_correlation(bins, size, n, windows.bin_ms))
        else:
            axis = picture.count_axis
            top = {"window": max(map(len, bins)), "recording": highest}.get(str(axis), axis)
            result.append(naive_histogram(bins, size, top))
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
# Those that kernels draw on CUDA, and those that are made of cells.
levels = st.one_of(
    st.sampled_from([Picture(kind="raster"), Picture(kind="sorted_raster")]),
    st.builds(
        lambda axis: Picture(count_axis=axis),
        st.sampled_from(["window", "recording", "log", 0.3, 1, 2.5, 4.0, 100.0]),
    ),
)
of_cells = st.sampled_from([Picture(kind="intervals"), Picture(kind="correlation")])
pictures = st.one_of(levels, of_cells)
EVERY = (*FIVE_PICTURES, Picture(kind="sorted_raster"))


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
    [*EVERY, Picture(count_axis="recording"), Picture(count_axis=3.0)],
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
    for picture in EVERY:
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
@pytest.mark.parametrize("picture", EVERY)
def test_pictures_on_the_gpu_are_those_of_the_cpu(picture: Picture) -> None:
    trains = fifteen_minutes()
    on_cpu = Drawer(trains, Windows(), picture, 224).draw(0, 157)
    on_gpu = Drawer(trains, Windows(), picture, 224, "cuda").draw(0, 157)
    assert on_gpu.device.type == "cuda"
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-6, rtol=0)


# --- what each kind shows, in cases that can be told beforehand


def whole(trains: SpikeTrains, picture: Picture, size: int) -> NDArray[np.float32]:
    """Draw a recording as one window."""
    width_s = trains.segments[0].n_samples / trains.sampling_rate_hz
    drawer = Drawer(trains, Windows(width_s=width_s, stride_s=width_s), picture, size)
    assert len(drawer) == 1
    return drawer.draw(0, 1)[0].numpy()


@pytest.mark.parametrize(("n_spikes", "rows"), [(0, 0), (1, 8), (3, 16), (255, 64), (1000, 64)])
def test_on_the_logarithmic_axis_255_spikes_in_a_bin_fill_the_picture(
    n_spikes: int, rows: int
) -> None:
    trains = make_trains([0] * n_spikes, [0] * n_spikes, n_channels=1, rate_hz=100, lengths=[1])
    drawn = whole(trains, Picture(count_axis="log"), 64)
    np.testing.assert_allclose(drawn[64 - rows :], 0, atol=1e-6)
    np.testing.assert_allclose(drawn[: 64 - rows], 1, atol=1e-6)


def test_the_most_active_electrode_is_on_top_and_equal_ones_keep_their_order() -> None:
    # Two spikes in a bin of electrode 3 make one mark, but count as two.
    trains = make_trains(
        [1, 5, 25, 31, 32], [0, 2, 2, 3, 3], n_channels=4, rate_hz=1000, lengths=[40]
    )
    drawn = whole(trains, Picture(kind="sorted_raster"), 4)
    expected = np.ones((4, 4))
    for row, marks in enumerate([(0, 2), (3,), (0,), ()]):  # electrodes 2, 3, 0, 1
        expected[row, list(marks)] = 0
    np.testing.assert_array_equal(drawn, expected)


def test_each_window_of_a_sorted_raster_has_its_own_order() -> None:
    trains = make_trains([1, 11, 12], [0, 1, 1], n_channels=2, rate_hz=1000, lengths=[20])
    windows = Windows(width_s=0.01, stride_s=0.01)
    drawn = Drawer(trains, windows, Picture(kind="sorted_raster"), 2).draw(0, 2)
    assert drawn[:, 0].tolist() == [[0, 0], [0, 0]]
    assert drawn[:, 1].tolist() == [[1, 1], [1, 1]]


def one_interval(samples: int, *, rate_hz: float, seconds: float) -> NDArray[np.float32]:
    """A picture of 48 x 112 cells, each of 7 x 3 pixels, of two spikes on one of two electrodes."""
    trains = make_trains(
        [0, samples, 0],
        [0, 0, 1],
        n_channels=2,
        rate_hz=rate_hz,
        lengths=[round(seconds * rate_hz)],
    )
    drawn = whole(trains, Picture(kind="intervals"), 336)
    cells = drawn.reshape(48, 7, 112, 3)
    np.testing.assert_array_equal(cells, np.broadcast_to(cells[:, :1, :, :1], cells.shape))
    return cells[:, 0, :, 0]


@pytest.mark.parametrize(
    ("interval_s", "step"),
    # The longest on top. 10 ms, 100 ms and 1 s are the ends of steps 9.6, 19.2 and 28.8.
    [(0.0001, 0), (0.001, 0), (0.0012, 0), (0.0014, 1), (0.01, 9), (0.1, 19), (1, 28), (99, 47),
     (101, 47)],
)  # fmt: skip
def test_an_interval_is_in_the_row_of_its_length_at_the_time_of_its_second_spike(
    interval_s: float, step: int
) -> None:
    cells = one_interval(round(interval_s * 10_000), rate_hz=10_000, seconds=112.0)
    expected = np.ones((48, 112))
    expected[47 - step, int(interval_s)] -= math.log(2) / math.log(51)
    np.testing.assert_allclose(cells, expected, atol=1e-6)


def test_neither_a_gap_nor_the_windows_edge_nor_the_same_sample_makes_an_interval() -> None:
    # Electrode 0 fires at the end of one segment and in the next; twice at one sample.
    trains = make_trains([95, 105, 105], [0, 0, 0], n_channels=1, rate_hz=1000, lengths=[100, 100])
    windows = Windows(width_s=0.1, stride_s=0.1)
    assert (Drawer(trains, windows, Picture(kind="intervals"), 112).draw(0, 2) == 1).all()
    across = make_trains([95, 105], [0, 0], n_channels=1, rate_hz=1000, lengths=[200])
    drawer = Drawer(across, Windows(width_s=0.1, stride_s=0.05), Picture(kind="intervals"), 112)
    assert [(picture < 1).any().item() for picture in drawer.draw(0, 3)] == [False, True, False]


def test_50_intervals_make_a_cell_black() -> None:
    for n, darkness in ((49, math.log(50) / math.log(51)), (50, 1.0), (80, 1.0)):
        # Every 2 ms, all of them in one of the bins, which is one column.
        trains = make_trains(
            list(range(0, 2 * n + 1, 2)),
            [0] * (n + 1),
            n_channels=1,
            rate_hz=1000,
            lengths=[112_000],
        )
        drawn = whole(trains, Picture(kind="intervals"), 112)
        assert 1 - drawn.min() == pytest.approx(darkness, abs=1e-6)


def two_groups(seed: int, file_order: list[int] | None = None) -> SpikeTrains:
    """Two groups of four electrodes with bursts in common and of their own.

    The second group has more spikes.

    Two more electrodes are silent, and one fires in every bin alike.
    """
    rng = np.random.default_rng(seed)
    place = file_order or list(range(11))
    sample, channel = [], []
    common = rng.random(600) < 0.1
    for group, more in enumerate((3, 5)):
        for t in np.flatnonzero(common | (rng.random(600) < 0.1)):
            for e in range(4):
                n = rng.poisson(more + e)
                sample += (t * 100 + rng.integers(0, 100, n)).tolist()
                channel += [place[4 * group + e]] * n
    sample += list(range(50, 60_000, 100))
    channel += [place[10]] * 600
    return make_trains(sample, channel, n_channels=11, rate_hz=1000, lengths=[60_000])


def test_the_matrix_of_correlations_shows_groups_of_electrodes_the_more_active_first() -> None:
    dark = 1 - whole(two_groups(0), Picture(kind="correlation"), 22)[::2, ::2]
    np.testing.assert_allclose(dark, dark.T, atol=1e-6)
    np.testing.assert_allclose(np.diag(dark), [1] * 8 + [0] * 3, atol=1e-6)
    assert dark[:4, :4].min() > 0.5
    assert dark[4:8, 4:8].min() > 0.5
    assert 0.1 < dark[:4, 4:8].max() < 0.5
    assert (dark[8:] == 0).all()
    # The numbers themselves: of both groups, by NumPy.
    trains = two_groups(0)
    counts = np.zeros((11, 600))
    np.add.at(counts, (trains.spikes.channel, trains.spikes.sample // 100), 1)
    expected = np.corrcoef(np.sqrt(counts[4:8]))
    np.testing.assert_allclose(
        np.sort(dark[:4, :4], axis=None), np.sort(expected, axis=None), atol=1e-6
    )


@settings(deadline=None, max_examples=20)
@given(st.permutations(list(range(11))), st.integers(0, 3))
def test_the_matrix_of_correlations_does_not_depend_on_the_order_in_the_file(
    file_order: list[int], seed: int
) -> None:
    picture = Picture(kind="correlation")
    expected = whole(two_groups(seed), picture, 11)
    np.testing.assert_allclose(
        whole(two_groups(seed, file_order), picture, 11), expected, atol=1e-6
    )


@pytest.mark.parametrize(("n_active", "black"), [(0, 0), (1, 1), (2, 4)])
def test_few_active_electrodes_are_the_first_of_the_matrix(n_active: int, black: int) -> None:
    # Two spikes each, in the same bin of 100 ms, on the last electrodes.
    sample = [150, 160] * n_active
    channel = [4 - e // 2 for e in range(2 * n_active)]
    trains = make_trains(sample, channel, n_channels=5, rate_hz=1000, lengths=[1000])
    expected = np.ones((5, 5))
    expected[:n_active, :n_active] = 0
    drawn = whole(trains, Picture(kind="correlation"), 5)
    np.testing.assert_allclose(drawn, expected, atol=1e-6)
    assert round((1 - drawn).sum()) == black


def test_of_more_electrodes_than_pixels_the_most_active_are_correlated() -> None:
    # Electrode e fires e times in the first of ten bins: all are correlated fully.
    sample = [50] * sum(range(40))
    channel = [e for e in range(40) for _ in range(e)]
    trains = make_trains(sample, channel, n_channels=40, rate_hz=1000, lengths=[1000])
    np.testing.assert_allclose(whole(trains, Picture(kind="correlation"), 39), 0, atol=1e-6)
    np.testing.assert_allclose(whole(trains, Picture(kind="correlation"), 8), 0, atol=1e-6)
    drawn = whole(trains, Picture(kind="correlation"), 40)
    assert (drawn[39] == 1).all()  # electrode 0 is silent
    np.testing.assert_allclose(drawn[:39, :39], 0, atol=1e-6)


def test_a_window_shorter_than_a_count_has_no_correlations() -> None:
    trains = make_trains([5, 15, 25], [0, 1, 0], n_channels=2, rate_hz=1000, lengths=[90])
    assert (whole(trains, Picture(kind="correlation"), 4) == 1).all()


@pytest.mark.parametrize("kind", ["intervals", "correlation", "sorted_raster"])
@pytest.mark.parametrize("size", [224, 299])
def test_a_window_of_a_busy_recording_is_the_definitions(kind: str, size: int) -> None:
    trains, windows = fifteen_minutes(), Windows(width_s=10.0)
    picture = Picture.from_json({"kind": kind})
    drawn = Drawer(trains, windows, picture, size).draw(3, 4)[0].numpy()
    inside = (trains.spikes.sample >= 150_000) & (trains.spikes.sample < 250_000)
    part = make_trains(
        (trains.spikes.sample[inside] - 150_000).tolist(),
        trains.spikes.channel[inside].tolist(),
        n_channels=60, rate_hz=10_000, lengths=[100_000],
    )  # fmt: skip
    (expected,) = naive_pictures(part, windows, picture, size)
    np.testing.assert_allclose(drawn, expected, atol=5e-6)
    assert 0.005 < 1 - drawn.mean() < 0.9


def test_cells_are_enlarged_on_the_device_of_the_engine() -> None:
    for kind in ("intervals", "correlation"):
        drawer = Drawers(TRAINS).drawer(WINDOWS, Picture.from_json({"kind": kind}), 8, "meta")
        assert isinstance(drawer, Drawer)
        assert drawer.draw(0, 3).device.type == "meta"


# --- which drawer is taken where, and what several of one recording share


WINDOWS = Windows(width_s=0.1, stride_s=0.1)
TRAINS = make_trains([5, 7], [0, 1], n_channels=2, rate_hz=1000, lengths=[300])


def test_the_cpu_draws_by_drawers_that_share_bins() -> None:
    made = Drawers(TRAINS)
    drawers = [made.drawer(WINDOWS, picture, 8, "cpu") for picture in EVERY]
    for picture, drawer in zip(EVERY, drawers, strict=True):
        alone = Drawer(TRAINS, WINDOWS, picture, 8)
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
