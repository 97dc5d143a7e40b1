"""The picture of a recording: for `toptune inspect --png`.

What enters: a recording's spikes, summary and busiest moment. What leaves: a PNG with its raster,
histogram, rates on the array, thresholds, and a few detected spikes on their traces.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from toptune.recordings.trains import SpikeTrains, end_s, spike_times_s
from toptune.reports.electrode_map import place_electrodes
from toptune.reports.overview import Overview

_TRACES = 5
_BIN_S = 0.01
_BUSY_S = 2.0
# Bars of a histogram that its picture can tell apart.
_COLUMNS = 800
# Below this an electrode is called silent, as in the summary's active channels.
_SILENT_HZ = 0.1
_INK, _SPIKE, _BLUE, _GREY = "#1a1a1a", "#d55e00", "#0072b2", "#8a939c"  # Okabe and Ito's set
# A raster of more spikes is drawn as thin points: strokes would be one black area.
_MANY_SPIKES = 200_000


def draw_overview(view: Overview, path: Path) -> None:
    """Write the picture of a recording as PNG.

    Parameters
    ----------
    view
        From `overview`.
    path
        Of the PNG.
    """
    figure = Figure(figsize=(13, 9.5), layout="constrained")
    grid = figure.add_gridspec(3, 2, width_ratios=(2.6, 1), height_ratios=(3, 1.9, 2.4))
    raster = figure.add_subplot(grid[0, 0])
    _draw_raster(raster, view.trains)
    _draw_array(figure, figure.add_subplot(grid[0, 1]), view)
    _draw_histogram(figure.add_subplot(grid[1, 0], sharex=raster), view.trains)
    _draw_thresholds(figure.add_subplot(grid[1, 1]), view)
    moment = figure.add_subplot(grid[2, 0])
    if view.traces_uv is None:
        _draw_busiest(moment, view.trains)
    else:
        _draw_traces(moment, view, view.traces_uv)
    _write_facts(figure.add_subplot(grid[2, 1]), view.summary)
    s = view.summary
    figure.suptitle(
        f"{Path(s['recording']).name}: {s['n_channels']} electrodes, {s['duration_s']:.1f} s at"
        f" {s['sampling_rate_hz']:g} Hz, {s['n_spikes']:,} spikes"
    )
    # Told, since matplotlib would guess from the file's name.
    figure.savefig(path, dpi=110, format="png")


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=10)


def _draw_raster(axes: Axes, trains: SpikeTrains) -> None:
    many = len(trains.spikes.sample) > _MANY_SPIKES
    style: dict[str, Any] = {"ms": 1, "mew": 0, "alpha": 0.35} if many else {"ms": 3, "mew": 0.4}
    marker = "." if many else "|"
    axes.plot(spike_times_s(trains), trains.spikes.channel, marker, color=_INK, rasterized=True,
              **style)  # fmt: skip
    axes.set(ylabel="electrode, in the file's order", xlim=(0, end_s(trains)))
    axes.set_ylim(len(trains.channel_labels) - 0.5, -0.5)
    _shade_gaps(axes, trains)
    _title(axes, "every spike" + ("; grey: nothing was stored" if _gaps(trains) else ""))


def _gaps(trains: SpikeTrains) -> list[tuple[float, float]]:
    """Begin and end of what lies between the segments, in seconds."""
    ends = [s.start_s + s.n_samples / trains.sampling_rate_hz for s in trains.segments]
    return list(zip(ends[:-1], [s.start_s for s in trains.segments[1:]], strict=True))


def _shade_gaps(axes: Axes, trains: SpikeTrains) -> None:
    for begin, end in _gaps(trains):
        axes.axvspan(begin, end, color=_GREY, alpha=0.4, lw=0)


def _draw_array(figure: Figure, axes: Axes, view: Overview) -> None:
    channels = view.summary["channels"]
    rates = np.array([c["rate_hz"] for c in channels])
    placed = place_electrodes([c["label"] for c in channels])
    low = max(_SILENT_HZ, float(rates[rates > _SILENT_HZ].min(initial=1.0)))
    norm = LogNorm(low, max(low * 1.01, float(rates.max(initial=low))))
    # As large as the places allow: points are a seventy-second of an inch.
    side = max(placed.column.max(), placed.row.max()) + 1
    size = (190 / side) ** 2
    silent = rates <= _SILENT_HZ
    axes.scatter(placed.column[silent], placed.row[silent], size, c="white", edgecolors=_GREY)
    heat = axes.scatter(
        placed.column[~silent], placed.row[~silent], size, c=rates[~silent], cmap="cividis",
        norm=norm, edgecolors="none",
    )  # fmt: skip
    for words, marker in (("dead", "x"), ("over_noisy", "s")):
        named = set(view.summary.get(words, []))
        at = [k for k, c in enumerate(channels) if c["label"] in named]
        style: dict[str, Any] = (
            {"c": _SPIKE} if marker == "x" else {"facecolors": "none", "edgecolors": _SPIKE}
        )
        axes.scatter(placed.column[at], placed.row[at], size * 0.6, marker=marker, linewidths=2,
                     label=words.replace("_", "-"), **style)  # fmt: skip
    for k, channel in enumerate(channels):
        bright = not silent[k] and float(norm(rates[k])) > 0.55
        axes.text(
            placed.column[k], placed.row[k], channel["label"], ha="center", va="center",
            fontsize=min(8, 62 / side), color=_INK if bright or silent[k] else "white",
        )  # fmt: skip
    axes.set(xlim=(-0.6, side - 0.4), ylim=(side - 0.4, -0.6), aspect="equal")
    axes.set_axis_off()
    bar = figure.colorbar(heat, ax=axes, shrink=0.75, label="spikes/s")
    bar.outline.set_visible(False)
    _title(axes, "\n".join(textwrap.wrap(f"rates {placed.how}; white: below {_SILENT_HZ:g}/s"
                                         f"{_marks_used(view.summary)}", 50)))  # fmt: skip


def _marks_used(summary: dict[str, Any]) -> str:
    dead = "; cross: dead" if summary.get("dead") else ""
    return dead + ("; square: over-noisy" if summary.get("over_noisy") else "")


def _draw_histogram(axes: Axes, trains: SpikeTrains) -> None:
    end = end_s(trains)
    n_bins = max(1, int(np.ceil(end / _BIN_S)))
    bins = np.floor(spike_times_s(trains) / _BIN_S + 1e-9).astype(np.int64)
    counts = np.bincount(bins, minlength=n_bins)
    tops, together = envelope(counts)
    edges_s = np.append(np.arange(len(tops)) * together * _BIN_S, len(counts) * _BIN_S)
    axes.stairs(tops, edges_s, fill=True, color=_INK)
    axes.set(xlabel="time (s)", ylabel="spikes in 10 ms")
    axes.set_ylim(bottom=0)
    _shade_gaps(axes, trains)
    fullest = f": the fullest of each {together * _BIN_S:g} s" if together > 1 else ""
    _title(axes, f"all electrodes together{fullest}")


def envelope(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Put bins together until a picture can show each: the largest count of each run of bins.

    Parameters
    ----------
    counts : (n,) int64

    Returns
    -------
    tops : (m,) int64
        `_COLUMNS` at most.
    together : int
        Bins in a run; the last may have fewer.
    """
    together = -(-len(counts) // _COLUMNS)
    return np.maximum.reduceat(counts, np.arange(0, len(counts), together)), together


def _draw_thresholds(axes: Axes, view: Overview) -> None:
    channels = view.summary["channels"]
    known = [c["threshold_uv"] for c in channels if c["threshold_uv"] is not None]
    if not known:
        _draw_amplitudes(axes, view.trains)
        return
    values = [np.nan if c["threshold_uv"] is None else c["threshold_uv"] for c in channels]
    axes.plot(range(len(values)), values, "o", color=_BLUE, ms=3.5)
    axes.axhline(float(np.median(known)), color=_GREY, lw=1, ls=":")
    axes.set(
        xlabel="electrode, in the file's order", ylabel="\u00b5V, peak to peak", ylim=(0, None)
    )
    _title(axes, f"detection thresholds; dotted: median, {np.median(known):.1f} \u00b5V")


def _draw_amplitudes(axes: Axes, trains: SpikeTrains) -> None:
    """Draw how large the spikes are, where no thresholds are known."""
    sizes = trains.spikes.peak_to_peak_uv
    sizes = sizes[np.isfinite(sizes)]
    if not len(sizes):
        axes.set_axis_off()
        axes.text(0.5, 0.5, "neither thresholds nor amplitudes are known", ha="center")
        return
    top = float(np.quantile(sizes, 0.99))
    axes.hist(sizes, bins=60, range=(0, max(top, 1e-6)), color=_BLUE)
    axes.set(xlabel="\u00b5V, peak to peak", ylabel="spikes")
    _title(axes, "amplitudes (the largest hundredth left out)")


def _draw_traces(axes: Axes, view: Overview, traces_uv: NDArray[np.float32]) -> None:
    trains, n = view.trains, traces_uv.shape[1]
    spikes = trains.spikes
    inside = (spikes.sample >= view.traces_from) & (spikes.sample < view.traces_from + n)
    counts = np.bincount(spikes.channel[inside], minlength=len(trains.channel_labels))
    shown = np.argsort(-counts, kind="stable")[:_TRACES]
    gap = 1.15 * max(1.0, float(np.ptp(traces_uv[shown], axis=1).max()))
    segment = next(s for s in reversed(trains.segments) if s.first_sample <= view.traces_from)
    first_s = segment.start_s + (view.traces_from - segment.first_sample) / trains.sampling_rate_hz
    time_s = first_s + np.arange(n) / trains.sampling_rate_hz
    right = float(time_s[-1])
    for row, channel in enumerate(shown):
        trace = traces_uv[channel] - row * gap
        axes.plot(time_s, trace, color=_INK, lw=0.6)
        here = spikes.sample[inside & (spikes.channel == channel)] - view.traces_from
        axes.plot(time_s[here], trace[here], ".", color=_SPIKE, ms=6)
        threshold = trains.threshold_uv[channel]
        if np.isfinite(threshold):
            middle = -row * gap
            axes.plot([right, right], [middle - threshold / 2, middle + threshold / 2],
                      color=_BLUE, lw=3, clip_on=False, solid_capstyle="butt")  # fmt: skip
    labels = [trains.channel_labels[k] for k in shown]
    axes.set_yticks([-row * gap for row in range(len(shown))], labels)
    axes.set(xlabel="time (s)", xlim=(first_s, right), ylabel="electrode")
    axes.spines[["top", "right"]].set_visible(False)
    _title(
        axes,
        "the busiest fifth of a second as it was searched; dots: spikes; bars at the right: the"
        " threshold",
    )


def _draw_busiest(axes: Axes, trains: SpikeTrains) -> None:
    """Draw the busiest seconds of a recording that holds no voltage."""
    times = spike_times_s(trains)
    steps = np.bincount((times / _BUSY_S).astype(np.int64), minlength=1)
    first = int(steps.argmax()) * _BUSY_S
    inside = (times >= first) & (times < first + _BUSY_S)
    axes.plot(times[inside], trains.spikes.channel[inside], "|", color=_INK, ms=4, mew=0.6)
    axes.set(xlabel="time (s)", ylabel="electrode", xlim=(first, first + _BUSY_S))
    axes.set_ylim(len(trains.channel_labels) - 0.5, -0.5)
    _title(axes, f"the busiest {_BUSY_S:g} s; this recording holds spikes and no voltage")


def _write_facts(axes: Axes, summary: dict[str, Any]) -> None:
    """Write what the header says, and what is to be known of electrodes."""
    names = ("kind", "array", "program", "date", "stream", "reference", "dead", "over_noisy")
    lines = [
        f"mean rate  {summary['mean_rate_hz']:.2f} spikes/s an electrode",
        f"active  {summary['active_channels']} of {summary['n_channels']} electrodes",
    ]
    for name in names:
        value = summary.get(name)
        if name in summary and value not in (None, ""):
            shown = (", ".join(map(str, value)) or "none") if isinstance(value, list) else value
            lines.append(f"{name.replace('_', '-')}  {shown}")
    wrapped = [textwrap.fill(line, 48, subsequent_indent="      ") for line in lines]
    axes.set_axis_off()
    axes.text(0, 1, "\n".join(wrapped), va="top", fontsize=9.5, linespacing=1.6,
              transform=axes.transAxes)  # fmt: skip
