"""The picture of a recording that `toptune inspect` draws, as PNG.

It shows the raster plot, the histogram, the firing rates on the electrode array, the detection
thresholds, and filtered traces with the detected spikes.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.machine.drawing import Axes, Figure, LogNorm
from toptune.recordings.trains import SpikeTrains, end_s, spike_times_s
from toptune.reports.overview import Overview

_TRACES = 5
_BIN_S = 0.01
_BUSY_S = 2.0
# Bars that the histogram's picture can resolve.
_COLUMNS = 800
# Electrodes up to this rate are not counted as active in the summary, and drawn white here.
_SILENT_HZ = 0.1
_INK, _SPIKE, _BLUE, _GREY = "#1a1a1a", "#d55e00", "#0072b2", "#8a939c"  # Okabe and Ito's set
# A raster plot of more spikes is drawn with pale points, since strokes would cover everything.
_MANY_SPIKES = 200_000
# MCS labels the electrodes of its 8 x 8 arrays (without corners) by column, then row: 12 is in the
# first column and second row. Some programs put a word before it.
_TWO_DIGITS = re.compile(r"(?:^|\D)([1-8])([1-8])")
_LETTER = re.compile(r"([A-Z])(\d{1,2})")


def draw_overview(view: Overview, path: Path) -> None:
    """Write the picture of a recording as PNG.

    Parameters
    ----------
    view
        From `overview`.
    path
        The PNG file.
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
    # The format is given, since matplotlib would guess it from the file's name.
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
    _title(axes, "all spikes" + ("; grey: gaps in the recording" if _gaps(trains) else ""))


def _gaps(trains: SpikeTrains) -> list[tuple[float, float]]:
    """Start and end of the gaps between the segments, in seconds."""
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
    # As large as the positions allow; sizes are in points, 1/72 inch.
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
    text = f"firing rates, {placed.how}; white: up to {_SILENT_HZ:g}/s{_marks_used(view.summary)}"
    _title(axes, "\n".join(textwrap.wrap(text, 50, break_on_hyphens=False)))


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
    axes.set(xlabel="time (s)", ylabel="spikes per 10 ms")
    axes.set_ylim(bottom=0)
    _shade_gaps(axes, trains)
    largest = f": largest count in each {together * _BIN_S:g} s" if together > 1 else ""
    _title(axes, f"spikes of all electrodes{largest}")


def envelope(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Reduce counts to as many bars as a picture can resolve: the largest of each run of bins.

    Gives at most `_COLUMNS` values and the bins in a run; the last run may have fewer.
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
    """Draw the amplitudes of the spikes, for recordings without known thresholds."""
    sizes = trains.spikes.peak_to_peak_uv
    sizes = sizes[np.isfinite(sizes)]
    if not len(sizes):
        axes.set_axis_off()
        axes.text(0.5, 0.5, "thresholds and amplitudes are not known", ha="center")
        return
    top = float(np.quantile(sizes, 0.99))
    axes.hist(sizes, bins=60, range=(0, max(top, 1e-6)), color=_BLUE)
    axes.set(xlabel="\u00b5V, peak to peak", ylabel="spikes")
    _title(axes, "spike amplitudes (without the largest 1 %)")


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
        "filtered traces, busiest 0.2 s; dots: detected spikes; bars on the right: detection"
        " thresholds",
    )


def _draw_busiest(axes: Axes, trains: SpikeTrains) -> None:
    """Draw the busiest seconds of a recording without voltage."""
    times = spike_times_s(trains)
    steps = np.bincount((times / _BUSY_S).astype(np.int64), minlength=1)
    first = int(steps.argmax()) * _BUSY_S
    inside = (times >= first) & (times < first + _BUSY_S)
    axes.plot(times[inside], trains.spikes.channel[inside], "|", color=_INK, ms=4, mew=0.6)
    axes.set(xlabel="time (s)", ylabel="electrode", xlim=(first, first + _BUSY_S))
    axes.set_ylim(len(trains.channel_labels) - 0.5, -0.5)
    _title(axes, f"busiest {_BUSY_S:g} s; this recording holds spikes but no voltage")


def _write_facts(axes: Axes, summary: dict[str, Any]) -> None:
    """Write the header's fields and the conspicuous electrodes."""
    names = ("kind", "array", "program", "date", "stream", "reference", "dead", "over_noisy")
    lines = [
        f"mean rate  {summary['mean_rate_hz']:.2f} spikes/s per electrode",
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


# --- positions of electrodes


class ElectrodePositions(NamedTuple):
    """Positions of electrodes on their array."""

    # (n,): counted from the left and from the top, from 0; no two electrodes share a position.
    column: NDArray[np.int64]
    row: NDArray[np.int64]
    how: str  # how the positions were found, for the title
    # Whether these are positions on the array; otherwise they only show the file's order.
    known: bool


def place_electrodes(labels: Sequence[str]) -> ElectrodePositions:
    """Find the positions of electrodes from their labels; else arrange them in the file's order."""
    found = _match_all(_TWO_DIGITS, labels)
    if found is not None:
        column, row = (np.array([int(m[k]) - 1 for m in found], np.int64) for k in (1, 2))
        if _distinct(column, row):
            return ElectrodePositions(
                column, row, "column and row from the two digits of the labels", True
            )
    found = _match_all(_LETTER, labels)
    if found is not None and len({m[1] for m in found}) > 1:
        letters = sorted({m[1] for m in found})
        column = np.array([letters.index(m[1]) for m in found], np.int64)
        row = np.array([int(m[2]) for m in found], np.int64)
        row -= row.min()
        if _distinct(column, row):
            return ElectrodePositions(
                column, row, "column and row from the letter and number of the labels", True
            )
    width = math.ceil(math.sqrt(len(labels)))
    order = np.arange(len(labels))
    return ElectrodePositions(
        order % width, order // width, "in the file's order: the labels give no positions", False
    )


def _match_all(pattern: re.Pattern[str], labels: Sequence[str]) -> list[re.Match[str]] | None:
    found = [
        # The digits end the label; a letter and number are all of it.
        next((m for m in pattern.finditer(label) if m.end() == len(label)), None)
        if pattern is _TWO_DIGITS
        else pattern.fullmatch(label)
        for label in labels
    ]
    matches = [m for m in found if m is not None]
    return matches if len(matches) == len(labels) else None


def _distinct(column: NDArray[np.int64], row: NDArray[np.int64]) -> bool:
    return len(set(zip(column.tolist(), row.tolist(), strict=True))) == len(column)
