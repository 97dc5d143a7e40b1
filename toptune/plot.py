"""Diagrams of recordings and runs, drawn by Matplotlib on axes of your own.

Each function draws one diagram and returns its axes, so that titles, limits and labels can be
changed afterwards. Without `ax` a new figure is made, as pyplot does; with it nothing else of
Matplotlib's state is touched. The colours are those of Okabe and Ito (2008,
https://jfly.uni-koeln.de/color/), and classes differ by their markers too.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.evaluation.effects import Effect, Effects, ParameterValues, effect_sizes
from toptune.features.burst_features import SCALES, TITLES
from toptune.machine.drawing import Axes, EllipseCollection, LogNorm, new_axes
from toptune.recordings.positions import place_electrodes
from toptune.recordings.trains import SpikeTrains, end_s, spike_times_s
from toptune.runs.parameters import run_parameters
from toptune.runs.reading import ReadRun, read_run
from toptune.runs.tables import draw_matrix

__all__ = ["array", "confusion", "course", "histogram", "parameter", "parameters", "raster"]

INK, RED, BLUE, GREY = "#1a1a1a", "#d55e00", "#0072b2", "#8a939c"
#: Of classes, in their order: they differ for colour-blind readers, and in lightness where two are
#: neighbours. More classes begin anew with other markers.
CLASS_COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a4a00", "#56b4e9", "#1a1a1a", "#e69f00",
)  # fmt: skip
CLASS_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")

# Bars that a diagram can resolve.
_COLUMNS = 800
# Electrodes up to this rate are not counted as active in summaries, and drawn white.
SILENT_HZ = 0.1
# A raster plot of more spikes is drawn with pale points, since strokes would cover everything.
_MANY_SPIKES = 200_000
# Maps of more electrodes are drawn as pixels where the rest is drawn as lines.
_MANY_ELECTRODES = 256
# How high an electrode's label is, of the room for the electrode, and at least, in points.
_LABEL_SHARE, _LEAST_LABEL_PT = 0.33, 3.0
_POINTS_PER_INCH = 72
_GOLDEN = 0.618


class HasPath(Protocol):
    """A run that was just trained."""

    @property
    def path(self) -> Path:
        """Its folder."""


Run = ReadRun | HasPath | Path | str


def raster(
    spikes: SpikeTrains,
    ax: Axes | None = None,
    *,
    start_s: float = 0.0,
    stop_s: float | None = None,
    color: str = INK,
) -> Axes:
    """Draw a mark for each spike: time from left to right, a row per electrode.

    Gaps between the recording's segments are grey.

    Parameters
    ----------
    spikes : SpikeTrains
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure where None.
    start_s, stop_s : float
        What to show, in seconds since the recording's start; up to its end where None.
    color : str
        Of the marks.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = new_axes(8, 4) if ax is None else ax
    stop_s = end_s(spikes) if stop_s is None else stop_s
    times_s = spike_times_s(spikes)
    inside = (times_s >= start_s) & (times_s <= stop_s)
    many = np.count_nonzero(inside) > _MANY_SPIKES
    style: dict[str, Any] = {"ms": 1, "mew": 0, "alpha": 0.35} if many else {"ms": 3, "mew": 0.4}
    ax.plot(times_s[inside], spikes.spikes.channel[inside], "." if many else "|", color=color,
            rasterized=True, **style)  # fmt: skip
    ax.set(xlabel="time (s)", ylabel="electrode, in the file's order", xlim=(start_s, stop_s))
    ax.set_ylim(len(spikes.channel_labels) - 0.5, -0.5)
    gaps = _shade_gaps(ax, spikes)
    write_title(ax, "all spikes" + ("; grey: gaps in the recording" if gaps else ""))
    return ax


def histogram(
    spikes: SpikeTrains,
    ax: Axes | None = None,
    *,
    bin_s: float = 0.01,
    start_s: float = 0.0,
    stop_s: float | None = None,
    color: str = INK,
) -> Axes:
    """Draw how many spikes all electrodes together have in each bin.

    Where there are more bins than a diagram can resolve, a bar shows the largest of its bins, so
    that no burst is lost; the title says so.

    Parameters
    ----------
    spikes : SpikeTrains
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure where None.
    bin_s : float
        Width of a bin in seconds, above 0.
    start_s, stop_s : float
        What to show, in seconds since the recording's start; up to its end where None. The first
        bin begins at `start_s`.
    color : str
        Of the bars.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InputError
        `bin_s` is not above 0.
    """
    if not bin_s > 0:
        raise InputError(f"`bin_s` must be above 0, got {bin_s}")
    ax = new_axes(8, 2.5) if ax is None else ax
    stop_s = end_s(spikes) if stop_s is None else stop_s
    counts = bin_counts(spikes, bin_s, start_s, stop_s)
    tops, together = envelope(counts)
    edges_s = start_s + np.append(np.arange(len(tops)) * together, len(counts)) * bin_s
    ax.stairs(tops, edges_s, fill=True, color=color)
    ax.set(xlabel="time (s)", ylabel=f"spikes per {_seconds(bin_s)}", xlim=(start_s, stop_s))
    ax.set_ylim(bottom=0)
    _shade_gaps(ax, spikes)
    largest = f": largest count in each {together * bin_s:g} s" if together > 1 else ""
    write_title(ax, f"spikes of all electrodes{largest}")
    return ax


def bin_counts(
    spikes: SpikeTrains, bin_s: float, start_s: float, stop_s: float
) -> NDArray[np.int64]:
    """Count the spikes of all electrodes in bins from `start_s` on, (bins,)."""
    n_bins = max(1, math.ceil((stop_s - start_s) / bin_s - 1e-9))
    # Times are rounded to samples, so that a spike at the beginning of a bin lies in it.
    bins = np.floor((spike_times_s(spikes) - start_s) / bin_s + 1e-9).astype(np.int64)
    return np.bincount(bins[(bins >= 0) & (bins < n_bins)], minlength=n_bins)


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:g} ms" if seconds < 1 else f"{seconds:g} s"


def envelope(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Reduce counts to as many bars as a picture can resolve: the largest of each run of bins.

    Gives at most 800 values and the bins in a run; the last run may have fewer.
    """
    together = -(-len(counts) // _COLUMNS)
    return np.maximum.reduceat(counts, np.arange(0, len(counts), together)), together


def _shade_gaps(ax: Axes, spikes: SpikeTrains) -> bool:
    """Shade the gaps between the segments; whether there are any."""
    ends = [s.start_s + s.n_samples / spikes.sampling_rate_hz for s in spikes.segments]
    starts = [s.start_s for s in spikes.segments]
    for begin, end in zip(ends[:-1], starts[1:], strict=True):
        ax.axvspan(begin, end, color=GREY, alpha=0.4, lw=0)
    return len(starts) > 1


def array(
    spikes: SpikeTrains,
    ax: Axes | None = None,
    *,
    labels: bool = True,
    limits_hz: tuple[float, float] | None = None,
    dead: Iterable[str] = (),
    over_noisy: Iterable[str] = (),
) -> Axes:
    """Draw the electrodes where they lie on their array, coloured by their firing rates.

    Positions are read from the electrodes' labels, as MCS, Axion and others write them; where these
    give none, electrodes are in the file's order, and the title says so. Electrodes with up to 0.1
    spikes/s are white.

    Parameters
    ----------
    spikes : SpikeTrains
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure where None. The colour bar takes some of its room.
    labels : bool
        Write the electrodes' labels, where there is room for readable ones.
    limits_hz : tuple of float, optional
        Rates, above 0, at which the colours begin and end, so that several maps can be compared;
        those of this recording, and at most 1 spike/s for the lower one, where None.
    dead, over_noisy : iterable of str
        Labels of electrodes to mark by a cross, and by a square.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = new_axes(5, 4.4) if ax is None else ax
    rates = electrode_rates(spikes)
    placed = place_electrodes(spikes.channel_labels)
    silent = rates <= SILENT_HZ
    low, high = limits_hz or (rates[~silent].min(initial=1.0), rates.max(initial=SILENT_HZ))
    norm = LogNorm(max(low, SILENT_HZ), max(high, 1.01 * max(low, SILENT_HZ)), clip=True)
    width, height = placed.column.max(initial=0) + 1, placed.row.max(initial=0) + 1
    side = max(width, height)
    at = np.stack([placed.column, placed.row], axis=1)
    ax.set(xlim=(-0.6, width - 0.4), ylim=(height - 0.4, -0.6), aspect="equal")
    ax.set_axis_off()
    # In units of the axis, so that they neither overlap nor shrink with the figure.
    colours: tuple[tuple[NDArray[np.bool_], dict[str, Any]], ...] = (
        (silent, {"facecolors": "white", "edgecolors": GREY}),
        (~silent, {"array": rates[~silent], "cmap": "cividis", "norm": norm}),
    )
    for mine, style in colours:
        heat = EllipseCollection(
            0.92, 0.92, 0, units="x", offsets=at[mine], offset_transform=ax.transData,
            rasterized=len(rates) > _MANY_ELECTRODES, **style,
        )  # fmt: skip
        ax.add_collection(heat)
    cell_pt = _cell_pt(ax, side)
    marks = _mark_electrodes(ax, spikes.channel_labels, at, dead, over_noisy, cell_pt)
    if labels:
        bright = silent | (np.asarray(norm(np.maximum(rates, SILENT_HZ))) > 0.55)
        _label_electrodes(ax, spikes.channel_labels, at, bright, cell_pt)
    bar = ax.figure.colorbar(heat, ax=ax, shrink=0.75, label="spikes/s")
    bar.outline.set_visible(False)
    text = f"firing rates, {placed.how}; white: up to {SILENT_HZ:g}/s{marks}"
    write_title(ax, "\n".join(textwrap.wrap(text, 50, break_on_hyphens=False)))
    return ax


def electrode_rates(spikes: SpikeTrains) -> NDArray[np.float64]:
    """Spikes per second of each electrode, (electrodes,)."""
    counts = np.bincount(spikes.spikes.channel, minlength=len(spikes.channel_labels))
    return counts / spikes.duration_s


def _mark_electrodes(
    ax: Axes, labels: Sequence[str], at: NDArray[np.int64], dead: Iterable[str],
    over_noisy: Iterable[str], cell_pt: float,
) -> str:  # fmt: skip
    """Draw the marks, and say what they mean."""
    said = ""
    marked: tuple[tuple[str, str, str, set[str], dict[str, Any]], ...] = (
        ("dead", "cross", "x", set(dead), {"c": RED}),
        ("over-noisy", "square", "s", set(over_noisy), {"facecolors": "none", "edgecolors": RED}),
    )
    for words, symbol, marker, named, style in marked:
        rows = [k for k, label in enumerate(labels) if label in named]
        if rows:
            ax.scatter(at[rows, 0], at[rows, 1], 0.6 * cell_pt**2, marker=marker, linewidths=2,
                       label=words, **style)  # fmt: skip
            said += f"; {symbol}: {words}"
    return said


def _cell_pt(ax: Axes, side: int) -> float:
    """Room for an electrode in points, as the axes are now."""
    box = ax.get_window_extent()
    return min(box.width, box.height) * _POINTS_PER_INCH / ax.figure.dpi / side


def _label_electrodes(
    ax: Axes,
    labels: Sequence[str],
    at: NDArray[np.int64],
    dark: NDArray[np.bool_],
    cell_pt: float,
) -> None:
    size_pt = min(8.0, _LABEL_SHARE * cell_pt)
    if size_pt < _LEAST_LABEL_PT:
        return
    for label, (column, row), is_dark in zip(labels, at, dark, strict=True):
        ax.text(column, row, label, ha="center", va="center", fontsize=size_pt,
                color=INK if is_dark else "white")  # fmt: skip


# --- of a run


def confusion(
    run: Run, ax: Axes | None = None, *, of: Literal["devices", "windows"] = "devices"
) -> Axes:
    """Draw a run's confusion matrix: rows are true classes, columns predicted ones.

    Cells are coloured by the share of their row. All predictions are of devices that were left out
    of training.

    Parameters
    ----------
    run : str, Path, ReadRun or RunResult
        The run, or its folder.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure where None.
    of : {"devices", "windows"}
        What is counted: the verdicts on devices, or the predictions of single windows.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InputError
        The folder is no run or a damaged one, or `of` is something else.
    """
    if of not in ("devices", "windows"):
        raise InputError(f"`of` must be 'devices' or 'windows', got {of!r}")
    read = _read(run)
    side = max(3.2, 0.8 * len(read.classes)) + 0.08 * max(map(len, read.classes))
    ax = new_axes(side, side) if ax is None else ax
    if of == "windows":
        draw_matrix(ax, read.scores.window_confusion, read.classes, read.rows_are.capitalize())
    else:
        unit = "Verdicts" if read.counts.in_pairs else "Devices"
        draw_matrix(ax, read.device_confusion, read.classes, unit)
    return ax


def parameters(
    run: Run | Effects,
    ax: Axes | None = None,
    *,
    n: int = 8,
    names: Sequence[str] | None = None,
) -> Axes:
    """Draw the burst parameters that differ most between the classes, a dot for each device.

    Each row is a parameter, in standard deviations from the mean of all devices; bars are medians.
    Beside its name stands the largest effect: Cliff's delta of a class against the others, with an
    interval that allows for the number of parameters (`toptune.evaluation.effects`).

    Parameters
    ----------
    run : str, Path, ReadRun, RunResult or Effects
        A run, whose parameters are read or, where its folder lacks them, measured from its store;
        or what `effect_sizes` gave.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure where None.
    n : int
        How many parameters to show.
    names : sequence of str, optional
        Show these instead, in this order.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InputError
        The run's parameters are not known, or no device has any of them.
    """
    effects = effects_of(run)
    shown = list(names) if names is not None else list(effects.ranked()[:n])
    if not shown:
        raise InputError("there is no parameter that two classes have in at least two devices each")
    devices = effects.devices
    classes = devices.classes
    ax = new_axes(8, 1.2 + len(shown) * (0.3 + 0.16 * len(classes))) if ax is None else ax
    step = 0.84 / len(classes)
    for row, name in enumerate(shown):
        z = standardised(devices.column(name))
        for k, label in enumerate(classes):
            mine = z[(devices.label == label) & ~np.isnan(z)]
            y = row + (k - (len(classes) - 1) / 2) * step
            _dots(ax, mine, y + _spread(len(mine), 0.6 * step), k, label if not row else "")
            if len(mine):
                ax.plot([np.median(mine)] * 2, [y - 0.42 * step, y + 0.42 * step],
                        color=class_colour(k), lw=2.2, solid_capstyle="butt")  # fmt: skip
    for row in range(1, len(shown)):
        ax.axhline(row - 0.5, color=GREY, lw=0.5, alpha=0.5)
    ax.set_yticks(range(len(shown)), [_row_title(effects, name) for name in shown])
    ax.set(ylim=(len(shown) - 0.5, -0.5), xlabel="SD from the mean of all devices")
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(4, len(classes)),
              frameon=False)  # fmt: skip
    return ax


def parameter(run: Run | Effects, name: str, ax: Axes | None = None) -> Axes:
    """Draw one burst parameter in its unit: a dot for each device, a column for each class.

    Bars are medians. Parameters that span decades have a logarithmic axis. Where devices have
    several labels, lines join their values.

    Parameters
    ----------
    run : str, Path, ReadRun, RunResult or Effects
        As of `parameters`.
    name : str
        Of the parameter, such as ``firing_rate_hz`` (docs/parameters.md).
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure where None.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InputError
        The run's parameters are not known, or there is no such parameter.
    """
    devices = effects_of(run).devices
    if name not in devices.names:
        raise InputError(f"there is no parameter {name!r}; there are {', '.join(devices.names)}")
    ax = new_axes(1.2 + 0.7 * len(devices.classes), 2.6) if ax is None else ax
    values = devices.column(name)
    known = ~np.isnan(values)
    own = _own_offsets(devices)
    for k, label in enumerate(devices.classes):
        rows = np.flatnonzero((devices.label == label) & known)
        mine = values[rows]
        _dots(ax, k + (_spread(len(mine), 0.5) if own is None else own[rows]), mine, k, label)
        if len(mine):
            ax.plot([k - 0.34, k + 0.34], [np.median(mine)] * 2, color=class_colour(k), lw=2.2,
                    solid_capstyle="butt")  # fmt: skip
    if own is not None:
        _join_devices(ax, devices, values, own)
    scale = SCALES.get(name)
    if scale is not None and scale.kind == "log" and known.any() and values[known].min() > 0:
        wide = values[known].max() > 20 * values[known].min()
        ax.set_yscale("log" if wide else "linear")
    ax.set_xticks(range(len(devices.classes)), list(devices.classes))
    ax.set(xlim=(-0.6, len(devices.classes) - 0.4), ylabel=TITLES.get(name, name))
    ax.tick_params(axis="x", length=0)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _own_offsets(devices: ParameterValues) -> NDArray[np.float64] | None:
    """Give each row the offset of its device; None where every device has one row."""
    names = dict.fromkeys(devices.device.tolist())
    if len(names) == len(devices.device):
        return None
    offset = dict(zip(names, _spread(len(names), 0.5).tolist(), strict=True))
    return np.array([offset[name] for name in devices.device.tolist()])


def _join_devices(
    ax: Axes, devices: ParameterValues, values: NDArray[np.float64], own: NDArray[np.float64]
) -> None:
    """Join the values of each device in the order of the classes."""
    column = np.array([devices.classes.index(label) for label in devices.label.tolist()])
    for device in dict.fromkeys(devices.device.tolist()):
        rows = np.flatnonzero((devices.device == device) & ~np.isnan(values))
        rows = rows[np.argsort(column[rows], kind="stable")]
        if len(rows) > 1:
            ax.plot(column[rows] + own[rows], values[rows], "-", color=GREY, lw=0.7, zorder=0.5)


def course(
    values: ParameterValues, name: str, ax: Axes | None = None, *, column: str = "div"
) -> Axes:
    """Draw one burst parameter over the days in vitro: a line a device, a dot a recording.

    Parameters
    ----------
    values : ParameterValues
        Of recordings (`toptune.runs.parameters.run_parameters`); the class is its ``label``.
    name : str
        Of the parameter.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure where None.
    column : str
        The column of the devices file that holds the days, as numbers; recordings without one are
        left out.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InputError
        There is no such column, or no such parameter.
    """
    if column not in values.columns or name not in values.names:
        raise InputError(f"there is no column {column!r} or no parameter {name!r}")
    ax = new_axes(4.5, 3) if ax is None else ax
    days, y = numbers(values.columns[column]), values.column(name)
    known = ~(np.isnan(days) | np.isnan(y))
    for k, label in enumerate(values.classes):
        told = label
        for device in dict.fromkeys(values.device[values.label == label].tolist()):
            mine = np.flatnonzero((values.device == device) & (values.label == label) & known)
            mine = mine[np.argsort(days[mine], kind="stable")]
            if len(mine):
                ax.plot(days[mine], y[mine], "-", color=class_colour(k), lw=0.9, alpha=0.7)
                _dots(ax, days[mine], y[mine], k, told)
                told = ""
    ax.set(xlabel="days in vitro" if column.casefold() == "div" else column,
           ylabel=TITLES.get(name, name))  # fmt: skip
    ax.spines[["top", "right"]].set_visible(False)
    if known.any():
        ax.legend(frameon=False, fontsize="small")
    return ax


def numbers(texts: Iterable[str]) -> NDArray[np.float64]:
    """Read a column's numbers, such as ``21`` or ``DIV 21``; NaN where there is none."""
    found = [re.fullmatch(r"\s*(?:div|day)?\s*(-?\d+(?:\.\d+)?)\s*d?\s*", t, re.I) for t in texts]
    return np.array([math.nan if m is None else float(m[1]) for m in found])


def effects_of(run: Run | Effects) -> Effects:
    """Give the effect sizes of a run's parameters, or those that are given."""
    return run if isinstance(run, Effects) else effect_sizes(run_parameters(_read(run)))


def _read(run: Run) -> ReadRun:
    if isinstance(run, ReadRun):
        return run
    return read_run(run if isinstance(run, Path | str) else run.path)


def _row_title(effects: Effects, name: str) -> str:
    title = textwrap.fill(TITLES.get(name, name), 34)
    if name not in effects.ranked():
        return title
    contrast, effect = effects.largest(name)
    who = "" if len(effects.contrasts) == 1 else f"{contrast.label}: "
    return f"{title}\n{who}{effect_text(effect)}"


def effect_text(effect: Effect) -> str:
    """Write an effect with its interval: ``\u03b4 0.82 (0.41 to 0.95)``."""
    return f"\u03b4 {signed(effect.delta)} ({signed(effect.low)} to {signed(effect.high)})"


def signed(value: float) -> str:
    """Write a number with two decimals and a minus sign as long as a plus sign."""
    return f"{value:.2f}".replace("-", "\u2212")


def _dots(ax: Axes, x: NDArray[Any], y: NDArray[Any], k: int, label: str) -> None:
    ax.plot(x, y, CLASS_MARKERS[k % len(CLASS_MARKERS)], color=class_colour(k), ms=4.5, mew=0.5,
            mec="white", label=label or None, ls="none")  # fmt: skip


def class_colour(number: int) -> str:
    """Colour of a class by its number in the order in which classes are shown."""
    return CLASS_COLOURS[number % len(CLASS_COLOURS)]


def standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bring what is known to mean 0 and SD 1; equal values to 0."""
    known = values[~np.isnan(values)]
    if not len(known):
        return values
    sd = float(known.std())
    scaled: NDArray[np.float64] = (values - known.mean()) / (sd if sd > 0 else 1.0)
    return scaled


def _spread(n: int, width: float) -> NDArray[np.float64]:
    """Give n offsets, always the same, so that equal dots lie side by side."""
    return np.array([width * (k * _GOLDEN % 1 - 0.5) if n > 1 else 0.0 for k in range(n)])


def write_title(ax: Axes, text: str) -> None:
    """Write a small title at the left."""
    ax.set_title(text, loc="left", fontsize=10)
