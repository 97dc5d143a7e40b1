"""Any recording can be drawn, and the picture shows what was recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from needs import shared
from small_data import write_mcs

from toptune.machine.drawing import Figure, new_figure
from toptune.recordings.spike_npz import write_npz
from toptune.recordings.trains import Segment, Spikes, SpikeTrains
from toptune.reports import overview_plot
from toptune.reports.overview import Overview, overview
from toptune.reports.overview_plot import draw_overview


def make_trains(n_channels: int, segments: tuple[Segment, ...], n_spikes: int) -> SpikeTrains:
    rng = np.random.default_rng(0)
    n_samples = sum(s.n_samples for s in segments)
    return SpikeTrains(
        spikes=Spikes(
            np.sort(rng.integers(0, n_samples, n_spikes)),
            rng.integers(0, n_channels, n_spikes).astype(np.int32),
            np.full(n_spikes, np.nan, np.float32),
        ),
        channel_labels=tuple(f"E{k}" for k in range(n_channels)),
        sampling_rate_hz=1000.0,
        segments=segments,
        threshold_uv=np.full(n_channels, np.nan, np.float32),
    )


@pytest.mark.parametrize(
    ("n_channels", "segments", "n_spikes"),
    [
        (1, (Segment(0, 5000, 0.0),), 0),  # silent
        (1, (Segment(0, 5000, 0.0),), 1),
        (9, (Segment(0, 5000, 0.0), Segment(5000, 100, 9.0)), 300),  # with a gap
        (120, (Segment(0, 50_000, 0.0),), 5000),
    ],
)
def test_spike_recordings_of_any_kind_are_drawn(
    tmp_path: Path, n_channels: int, segments: tuple[Segment, ...], n_spikes: int
) -> None:
    write_npz(make_trains(n_channels, segments, n_spikes), tmp_path / "r.npz")
    draw_overview(overview(tmp_path / "r.npz"), tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def drawn(view: Overview, path: Path, monkeypatch: pytest.MonkeyPatch) -> Figure:
    """The figure that was written."""
    figures: list[Figure] = []

    def remember(width_in: float, height_in: float) -> Figure:
        figures.append(new_figure(width_in, height_in))
        return figures[0]

    monkeypatch.setattr(overview_plot, "new_figure", remember)
    draw_overview(view, path)
    return figures[0]


def test_dots_lie_on_the_traces_at_the_detected_spikes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mcs(tmp_path / "r.h5", seed=1, rate_hz=40)
    view = overview(tmp_path / "r.h5")
    figure = drawn(view, tmp_path / "r.png", monkeypatch)
    (axes,) = (a for a in figure.axes if "busiest" in a.get_title(loc="left"))
    lines = axes.get_lines()
    dots = [line.get_xydata() for line in lines if line.get_marker() == "."]
    drawn_lines = [np.asarray(line.get_xydata()) for line in lines if line.get_marker() != "."]
    traces = [xy for xy in drawn_lines if len(xy) > 1000]
    assert len(traces) == len(dots) == 4
    spike_s = view.trains.spikes.sample / 10_000
    for trace, dot in zip(traces, map(np.asarray, dots), strict=True):
        assert len(dot) > 0
        for x, y in dot:
            assert np.abs(spike_s - x).min() < 1e-6
            assert trace[np.abs(trace[:, 0] - x).argmin(), 1] == pytest.approx(y)


def test_recording_of_mcs_is_drawn_with_its_over_noisy_electrodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = list(shared("data", "mcs").glob("*.h5"))
    from toptune.params import HighPass

    view = overview(files[0], highpass=HighPass(cutoff_hz=0))
    figure = drawn(view, tmp_path / "r.png", monkeypatch)
    titles = " ".join(a.get_title(loc="left") for a in figure.axes).replace("\n", " ")
    assert "the labels give no positions" in titles
    assert "square: over-noisy" in titles
