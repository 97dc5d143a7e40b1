"""Drawing 157 windows of 120 s (15 minutes, 60 channels, a busy recording) at 224 x 224.

The peer draws the same histograms by matplotlib's Agg and `fill_between`, one at a time: as usual,
in a figure of the default 640 x 480 pixels with axes, and as fast as it can be, bare and 224 x 224.
It draws only a few; compare `extra_info["ms_per_picture"]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from toptune.params import Picture, PictureKind, Windows
from toptune.pictures.drawer import Drawer
from toptune.recordings.trains import Segment, SpikeTrains, sort_spikes

SIZE = 224
EVERY = (
    *(Picture(kind=kind) for kind in get_args(PictureKind)),
    Picture(count_axis="log"),
)
N_PEER = 8


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@cache
def busy_recording() -> SpikeTrains:
    """5 Hz a channel on average, most of it in network bursts (about 90 different counts)."""
    rng = np.random.default_rng(0)
    n = 5 * 60 * 900
    rate = np.repeat(np.exp(rng.normal(0, 1.3, 900)), 1000)
    millisecond = rng.choice(900_000, n, p=rate / rate.sum())
    sample = (millisecond * 10 + rng.integers(0, 10, n)).astype(np.int64)
    channel = rng.integers(0, 60, n).astype(np.int32)
    return SpikeTrains(
        spikes=sort_spikes(sample, channel, np.ones(n, dtype=np.float32)),
        channel_labels=tuple(f"{i:02d}" for i in range(60)),
        sampling_rate_hz=10_000,
        segments=(Segment(0, 9_000_000, 0.0),),
        threshold_uv=np.full(60, np.nan, dtype=np.float32),
    )


def draw_by_matplotlib(counts: NDArray[np.int64], n_windows: int, lean: bool) -> NDArray[np.uint8]:
    pictures = []
    for w in range(n_windows):
        window = counts[w * 500 : w * 500 + 12_000]
        figure = Figure(figsize=(SIZE / 100, SIZE / 100) if lean else (6.4, 4.8), dpi=100)
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1)) if lean else figure.add_subplot()
        axes.fill_between(np.arange(12_000), window, step="post", color="black", linewidth=0)
        axes.set_xlim(0, 12_000)
        axes.set_ylim(0, window.max())
        if lean:
            axes.axis("off")
        canvas.draw()  # type: ignore[no-untyped-call]  # matplotlib types neither
        pictures.append(np.asarray(canvas.buffer_rgba())[..., 0])  # type: ignore[no-untyped-call]
    return np.array(pictures)


def per_picture(benchmark: Any, n: int) -> None:
    benchmark.extra_info["pictures"] = n
    if benchmark.stats:  # none where benchmarks only run as tests
        benchmark.extra_info["ms_per_picture"] = benchmark.stats.stats.min * 1000 / n


@pytest.mark.benchmark(group="157 windows of 120 s")
@pytest.mark.parametrize("picture", EVERY, ids=lambda picture: picture.description)
def test_toptune_from_spikes(benchmark: Any, picture: Picture) -> None:
    trains = busy_recording()

    def run() -> torch.Tensor:
        drawer = Drawer(trains, Windows(), picture, SIZE)
        return drawer.draw(0, len(drawer))

    pictures = benchmark(run)
    assert pictures.shape == (157, SIZE, SIZE)
    per_picture(benchmark, 157)


@pytest.mark.benchmark(group="157 windows of 120 s")
@pytest.mark.parametrize("picture", EVERY, ids=lambda picture: picture.description)
def test_toptune_drawing_alone(benchmark: Any, picture: Picture) -> None:
    drawer = Drawer(busy_recording(), Windows(), picture, SIZE)
    assert benchmark(drawer.draw, 0, 157).shape == (157, SIZE, SIZE)
    per_picture(benchmark, 157)


@pytest.mark.benchmark(group="157 windows of 120 s")
@pytest.mark.parametrize("lean", [False, True], ids=["default figure", "bare 224 x 224"])
def test_matplotlib_fill_between(benchmark: Any, lean: bool) -> None:
    trains = busy_recording()
    counts = np.bincount(trains.spikes.sample // 100, minlength=90_000)
    arguments = (counts, N_PEER, lean)
    pictures = benchmark.pedantic(draw_by_matplotlib, arguments, rounds=3, warmup_rounds=1)
    per_picture(benchmark, N_PEER)
    if lean:
        # The same pictures: the peer anti-aliases in steps, so compare what a few pixels hold.
        drawn = Drawer(trains, Windows(), Picture(), SIZE).draw(0, N_PEER).numpy()
        means = [p.reshape(N_PEER, 14, 16, 14, 16).mean((2, 4)) for p in (pictures / 255, drawn)]
        assert np.corrcoef(means[0].ravel(), means[1].ravel())[0, 1] > 0.95
