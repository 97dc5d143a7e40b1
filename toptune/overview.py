"""What a recording holds, at a glance: for `toptune inspect`.

A recording enters; a summary (JSON-able) leaves, and a picture if wanted: traces with their spikes,
raster, histogram and rates.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toptune.cuda import accelerator
from toptune.finding import detect_voltage
from toptune.mcs import McsRecording
from toptune.params import HighPass, Ptsd
from toptune.recording import SpikeRecording, open_recording
from toptune.spiketrains import SpikeTrains

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TRACE_S = 0.2
_TRACES = 4
_INK, _SPIKE, _FAINT = "#1a1a1a", "#d55e00", "#0072b2"  # Okabe and Ito's colour-blind safe set


@dataclass(frozen=True, eq=False)
class Overview:
    """A recording's spikes and what to say about it.

    Parameters
    ----------
    trains
        Detected, or read where the recording holds spikes.
    summary
        JSON-able: header, thresholds and rates.
    traces_uv : (channels, samples) float32, optional
        Filtered voltage around the busiest moment, where there is voltage.
    traces_from
        Its first sample.
    """

    trains: SpikeTrains
    summary: dict[str, Any]
    traces_uv: NDArray[np.float32] | None = None
    traces_from: int = 0


def overview(
    path: Path | str,
    *,
    highpass: HighPass | None = None,
    ptsd: Ptsd | None = None,
    stream: str | None = None,
    sampling_rate_hz: float | None = None,
    device: str = "auto",
    n_jobs: int | None = None,
) -> Overview:
    """Open a recording, find its spikes and sum it up.

    Parameters
    ----------
    path, stream, sampling_rate_hz
        As for `open_recording`.
    highpass, ptsd, n_jobs
        As for `detect_recording`; without meaning where the recording holds spikes.
    device
        ``auto``, ``cpu`` or ``cuda``: where to detect.
    """
    recording = open_recording(path, stream=stream, sampling_rate_hz=sampling_rate_hz)
    if isinstance(recording, SpikeRecording):
        trains = recording.trains()
        return Overview(trains, _summary(recording.path, recording.kind, trains))
    with recording:
        highpass = highpass or HighPass()
        found, _ = detect_voltage(
            recording, highpass, ptsd, device=accelerator(device), n_jobs=n_jobs
        )
        summary = _summary(recording.path, recording.kind, found.trains)
        labels = recording.channel_labels
        summary |= {
            "program": recording.program,
            "date": recording.date,
            "array": recording.layout,
            "stream": recording.stream_label,
            "reference": list(recording.reference_labels),
            "dead": [labels[k] for k in found.noise.dead.nonzero()[0]],
            "over_noisy": [labels[k] for k in found.noise.noisy.nonzero()[0]],
        }
        begin, traces = _busiest(recording, found.trains, highpass)
    return Overview(found.trains, summary, traces, begin)


def _summary(path: Path, kind: str, trains: SpikeTrains) -> dict[str, Any]:
    counts = np.bincount(trains.spikes.channel, minlength=len(trains.channel_labels))
    rates = counts / trains.duration_s
    thresholds = [float(t) if np.isfinite(t) else None for t in trains.threshold_uv]
    return {
        "recording": str(path),
        "kind": kind,
        "sampling_rate_hz": trains.sampling_rate_hz,
        "duration_s": trains.duration_s,
        "segments": [s._asdict() for s in trains.segments],
        "n_channels": len(trains.channel_labels),
        "n_spikes": int(counts.sum()),
        "mean_rate_hz": float(rates.mean()),
        "active_channels": int((rates > 0.1).sum()),
        "channels": [
            {"label": label, "spikes": int(n), "rate_hz": float(r), "threshold_uv": t}
            for label, n, r, t in zip(trains.channel_labels, counts, rates, thresholds, strict=True)
        ],
    }


def _busiest(
    recording: McsRecording, trains: SpikeTrains, highpass: HighPass
) -> tuple[int, NDArray[np.float32]]:
    """Filter the fifth of a second with the most spikes; its first sample and microvolts."""
    from toptune.filters import HighPassFilter, settling_samples

    n = max(1, int(_TRACE_S * trains.sampling_rate_hz))
    steps = np.bincount(trains.spikes.sample // n, minlength=1)
    wanted = int(steps.argmax()) * n
    segment = next(s for s in reversed(trains.segments) if s.first_sample <= wanted)
    end = min(wanted + n, segment.first_sample + segment.n_samples)
    settle = settling_samples(highpass, trains.sampling_rate_hz, 10 * n)
    begin = max(segment.first_sample, wanted - settle)
    raw = recording.read(begin, end)
    filt = HighPassFilter(highpass, trains.sampling_rate_hz, len(raw))
    return wanted, filt.apply(raw)[:, wanted - begin :]


def draw_overview(view: Overview, path: Path) -> None:
    """Write the picture of a recording as PNG: traces, raster, histogram, rates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8.5), layout="constrained")
    grid = figure.add_gridspec(3, 2, width_ratios=(4, 1), height_ratios=(3, 2, 2.4))
    raster = figure.add_subplot(grid[0, 0])
    _draw_raster(raster, view.trains)
    _draw_rates(figure.add_subplot(grid[0, 1], sharey=raster), view)
    _draw_histogram(figure.add_subplot(grid[1, :]), view.trains)
    _draw_traces(figure.add_subplot(grid[2, :]), view)
    s = view.summary
    figure.suptitle(
        f"{Path(s['recording']).name}: {s['n_channels']} channels, {s['duration_s']:.1f} s at"
        f" {s['sampling_rate_hz']:g} Hz, {s['n_spikes']} spikes"
    )
    # Told, since matplotlib would guess from the file's name.
    figure.savefig(path, dpi=110, format="png")


def _times_s(trains: SpikeTrains) -> NDArray[np.float64]:
    """Seconds since the recording's start, gaps included."""
    firsts = np.array([s.first_sample for s in trains.segments])
    starts = np.array([s.start_s for s in trains.segments])
    which = np.searchsorted(firsts, trains.spikes.sample, side="right") - 1
    since = (trains.spikes.sample - firsts[which]) / trains.sampling_rate_hz
    return np.asarray(starts[which] + since)


def _end_s(trains: SpikeTrains) -> float:
    """Seconds from the recording's start to its end, gaps included."""
    last = trains.segments[-1]
    return last.start_s + last.n_samples / trains.sampling_rate_hz


def _draw_raster(axes: Axes, trains: SpikeTrains) -> None:
    axes.plot(_times_s(trains), trains.spikes.channel, "|", color=_INK, ms=3, mew=0.4)
    axes.set(xlabel="time (s)", ylabel="channel", ylim=(len(trains.channel_labels) - 0.5, -0.5))
    axes.set_xlim(0, _end_s(trains))
    axes.set_title("spikes", loc="left", fontsize=10)


def _draw_rates(axes: Axes, view: Overview) -> None:
    rates = [c["rate_hz"] for c in view.summary["channels"]]
    axes.set_title("rates", loc="left", fontsize=10)
    axes.barh(range(len(rates)), rates, color=_FAINT, height=0.8)
    silent = [k for k, c in enumerate(view.summary["channels"]) if c["threshold_uv"] is None]
    if silent and view.traces_uv is not None:
        axes.plot([0] * len(silent), silent, "x", color=_SPIKE, ms=6, mew=1.5, clip_on=False)
        axes.set_title("rates; x = dead", loc="left", fontsize=10)
    axes.set(xlabel="rate (spikes/s)")
    axes.tick_params(labelleft=False)


def _draw_histogram(axes: Axes, trains: SpikeTrains) -> None:
    times = _times_s(trains)
    end = _end_s(trains)
    n_bins = max(1, int(np.ceil(end / 0.01)))
    counts = np.bincount((times / 0.01).astype(np.int64), minlength=n_bins)
    axes.fill_between(np.arange(len(counts)) * 0.01, counts, step="post", color=_INK, lw=0)
    axes.set(xlabel="time (s)", ylabel="spikes per 10 ms", xlim=(0, end), ylim=(0, None))
    axes.set_title("all channels together", loc="left", fontsize=10)


def _draw_traces(axes: Axes, view: Overview) -> None:
    if view.traces_uv is None:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "spikes only: no voltage in this recording", ha="center")
        return
    trains, n = view.trains, view.traces_uv.shape[1]
    spikes = trains.spikes
    inside = (spikes.sample >= view.traces_from) & (spikes.sample < view.traces_from + n)
    counts = np.bincount(spikes.channel[inside], minlength=len(trains.channel_labels))
    shown = np.argsort(-counts, kind="stable")[:_TRACES]
    gap = 1.2 * max(1.0, float(np.ptp(view.traces_uv[shown])))
    time_s = (view.traces_from + np.arange(n)) / trains.sampling_rate_hz
    for row, channel in enumerate(shown):
        trace = view.traces_uv[channel]
        axes.plot(time_s, trace - row * gap, color=_INK, lw=0.6)
        here = spikes.sample[inside & (spikes.channel == channel)] - view.traces_from
        axes.plot(time_s[here], trace[here] - row * gap, ".", color=_SPIKE, ms=5)
    labels = [trains.channel_labels[k] for k in shown]
    axes.set_yticks([-row * gap for row in range(len(shown))], labels)
    axes.set(xlabel="stored time (s)", xlim=(time_s[0], time_s[-1]))
    axes.set_title(
        "the busiest fifth of a second, filtered; dots are spikes", loc="left", fontsize=10
    )
