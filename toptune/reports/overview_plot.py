"""The picture of a recording that `toptune inspect` draws, as PNG.

It shows the raster plot, the histogram, the firing rates on the electrode array, the detection
thresholds, and filtered traces with the detected spikes.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toptune import plot
from toptune.machine.display import named_electrodes
from toptune.machine.drawing import Axes, new_figure
from toptune.recordings.trains import SpikeTrains, spike_times_s
from toptune.reports.overview import Overview

_TRACES = 5
_BUSY_S = 2.0
_INK, _SPIKE, _BLUE, _GREY = plot.INK, plot.RED, plot.BLUE, plot.GREY


def draw_overview(view: Overview, path: Path) -> None:
    """Write the picture of a recording as PNG.

    Parameters
    ----------
    view
        From `overview`.
    path
        The PNG file.
    """
    figure = new_figure(13, 9.5)
    grid = figure.add_gridspec(3, 2, width_ratios=(2.6, 1), height_ratios=(3, 1.9, 2.4))
    raster = figure.add_subplot(grid[0, 0])
    plot.raster(view.trains, raster).set_xlabel("")
    plot.array(
        view.trains,
        figure.add_subplot(grid[0, 1]),
        dead=view.summary.get("dead", ()),
        over_noisy=view.summary.get("over_noisy", ()),
    )
    plot.histogram(view.trains, figure.add_subplot(grid[1, 0], sharex=raster))
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
    plot.write_title(axes, f"detection thresholds; dotted: median, {np.median(known):.1f} \u00b5V")


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
    plot.write_title(axes, "spike amplitudes (without the largest 1 %)")


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
    plot.write_title(
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
    plot.write_title(axes, f"busiest {_BUSY_S:g} s; this recording holds spikes but no voltage")


def _write_facts(axes: Axes, summary: dict[str, Any]) -> None:
    """Write the header's fields and the conspicuous electrodes."""
    lines = [
        f"mean rate  {summary['mean_rate_hz']:.2f} spikes/s per electrode",
        f"active  {summary['active_channels']} of {summary['n_channels']} electrodes",
    ]
    names = ("kind", "array", "program", "date", "stream", "reference")
    for name in names:
        value = summary.get(name)
        if value not in (None, "", []):
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{name}  {shown}")
    for key in ("dead", "over_noisy"):
        if key in summary:
            word = key.replace("_", "-")
            found = summary[key]
            lines.append(named_electrodes(word, found) if found else f"no {word} electrode")
    wrapped = [textwrap.fill(line, 48, subsequent_indent="      ") for line in lines]
    axes.set_axis_off()
    axes.text(0, 1, "\n".join(wrapped), va="top", fontsize=9.5, linespacing=1.6,
              transform=axes.transAxes)  # fmt: skip
