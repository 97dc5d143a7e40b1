"""Small pictures of whole recordings show what was recorded when, and nothing where nothing was."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from toptune.params import Picture, Windows
from toptune.pictures.drawer import Drawer
from toptune.pictures.thumbnails import HEIGHT, WIDTH, draw_thumbnails, without_gaps
from toptune.recordings.trains import Segment, Spikes, SpikeTrains

RATE_HZ = 1000.0


def make_trains(
    times_s: list[float], channels: list[int], segments: tuple[Segment, ...], n_channels: int = 4
) -> SpikeTrains:
    """Spikes at stored times, in the order given."""
    sample = np.rint(np.array(times_s) * RATE_HZ).astype(np.int64)
    return SpikeTrains(
        spikes=Spikes(sample, np.array(channels, np.int32), np.ones(len(sample), np.float32)),
        channel_labels=tuple(f"E{k}" for k in range(n_channels)),
        sampling_rate_hz=RATE_HZ,
        segments=segments,
        threshold_uv=np.full(n_channels, np.nan, np.float32),
    )


def darkness(png: bytes) -> NDArray[np.float64]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.size == (WIDTH, HEIGHT)
        return 1 - np.asarray(image.convert("L"), dtype=np.float64) / 255


def test_bars_stand_where_the_spikes_are_as_high_as_they_are_many() -> None:
    # 7.2 s, so that a bin of 10 ms is a column; 4, 2 and 1 spikes in three bins.
    times = [1.001, 1.002, 1.003, 1.004, 3.501, 3.502, 7.195]
    drawn = draw_thumbnails(make_trains(times, [0, 1, 2, 3, 0, 0, 0], (Segment(0, 7200, 0.0),)))
    assert (drawn.histogram_bin_s, drawn.largest_count, drawn.duration_s) == (0.01, 4, 7.2)
    heights = darkness(drawn.histogram).sum(axis=0)
    expected = np.zeros(WIDTH)
    expected[[100, 350, 719]] = HEIGHT * np.array([4, 2, 1]) / 4
    np.testing.assert_allclose(heights, expected, atol=1)


def test_raster_has_a_band_an_electrode_and_lone_spikes_can_be_seen() -> None:
    # 72 s: ten bins of 10 ms a column; one of them dark is a share of 0.1, whose root is shown.
    drawn = draw_thumbnails(make_trains([36.0, 36.005], [2, 2], (Segment(0, 72_000, 0.0),)))
    dark = darkness(drawn.raster)
    np.testing.assert_array_equal(np.flatnonzero(dark.any(axis=0)), [360])
    np.testing.assert_array_equal(
        np.flatnonzero(dark.any(axis=1)), np.arange(HEIGHT // 2, 3 * HEIGHT // 4)
    )
    np.testing.assert_allclose(dark[HEIGHT // 2, 360], np.sqrt(0.1), atol=1 / 30)


def test_a_gap_is_blank_and_what_follows_it_keeps_its_time() -> None:
    # One second stored, three seconds lost, one second stored; a spike at the start of each.
    segments = (Segment(0, 1000, 0.0), Segment(1000, 1000, 4.0))
    trains = make_trains([0.0, 1.0], [0, 1], segments)
    whole = without_gaps(trains)
    np.testing.assert_array_equal(whole.spikes.sample, [0, 4000])
    assert whole.segments == (Segment(0, 5000, 0.0),)
    drawn = draw_thumbnails(trains)
    assert drawn.duration_s == 5
    columns = np.flatnonzero(darkness(drawn.histogram).any(axis=0))
    assert columns.min() == 0
    assert {c for c in columns.tolist() if c > 1} <= set(range(574, 580))


def test_recording_without_a_spike_or_shorter_than_a_bin_is_white() -> None:
    for n_samples in (72_000, 5):
        drawn = draw_thumbnails(make_trains([], [], (Segment(0, n_samples, 0.0),)))
        assert not darkness(drawn.histogram).any()
        assert not darkness(drawn.raster).any()
        assert drawn.largest_count == 0


@pytest.mark.parametrize("seconds", [3.3, 6.9, 71.3, 1234.567])
@pytest.mark.parametrize("n_channels", [1, 7, 60, 500])
def test_they_are_what_the_drawer_of_windows_draws(seconds: float, n_channels: int) -> None:
    rng = np.random.default_rng(0)
    n_samples, n = round(seconds * RATE_HZ), 3000
    sample = np.sort(rng.integers(n_samples, size=n) ** 2 // n_samples) / RATE_HZ
    channels = rng.integers(n_channels, size=n).tolist()
    trains = make_trains(sample.tolist(), channels, (Segment(0, n_samples, 0.0),), n_channels)
    drawn = draw_thumbnails(trains)
    kinds = {"histogram": (drawn.histogram, 1000, 1), "raster": (drawn.raster, 10_000, 0.5)}
    for kind, (png, n_bins, power) in kinds.items():
        bin_ms = max(1, round(seconds * 100 / n_bins)) * 10.0
        width_s = math.floor(seconds * 1000 / bin_ms) * bin_ms / 1000
        windows = Windows(width_s=width_s, stride_s=width_s, bin_ms=bin_ms)
        square = 1 - Drawer(trains, windows, Picture.from_json({"kind": kind}), WIDTH).draw(0, 1)
        wanted = square[0].numpy().reshape(HEIGHT, WIDTH // HEIGHT, WIDTH).mean(axis=1)
        # Within a grey, of which there are 16, and what the rounding of shares adds.
        np.testing.assert_allclose(darkness(png), wanted**power, atol=0.5 / 15 + 0.005)
