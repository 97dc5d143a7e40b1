"""The figures of a run for a journal, each with its data, and what is said about them.

A folder leaves: each figure as SVG or PDF, as wide as one or two columns of a journal, with text
that can still be edited; what it shows as CSV; legends.md; and methods.md, which
`toptune.reports.methods` writes. Equal runs give equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune import plot
from toptune.errors import InputError
from toptune.evaluation.effects import Effects, effect_sizes
from toptune.evaluation.scores import Verdict, accuracy_interval
from toptune.features.burst_features import TITLES
from toptune.machine.display import count
from toptune.machine.drawing import Axes, Figure, new_figure, rc_context
from toptune.recordings.trains import SpikeTrains, end_s, spike_times_s
from toptune.reports.devices import unbroken
from toptune.reports.differences import excerpt_s, rate_limits, typical_recordings
from toptune.reports.methods import Sample, describe_methods
from toptune.reports.run import refuse_other_store
from toptune.reports.scores import draw_reliability
from toptune.runs.folder import FIGURES, figures_folder, publish, write_csv, write_json
from toptune.runs.parameters import run_parameters
from toptune.runs.reading import ReadRun, read_run
from toptune.store.feature_store import FeatureStore

Format = Literal["svg", "pdf"]
Progress = Callable[[str, int, int], None]

FORMAT = 1
# Widths of one and two columns of most journals: 88 and 180 mm.
_COLUMN_IN, _PAGE_IN = 3.46, 7.09
# Parameters of the figure of effect sizes.
_N_PARAMETERS = 8
_BIN_S = 0.1
# Height of a raster plot of a typical recording, in points.
_ROW_PT = 60.0
# Devices of a figure of probabilities, and how they are arranged.
_ACROSS, _DOWN = 5, 8
_MINUTE_S = 60.0
_STYLE: Any = {
    # Letters as letters of a font that Matplotlib brings along, so that editors can change them
    # and widths are the same everywhere.
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "svg.hashsalt": "toptune",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "legend.fontsize": 6,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1,
}
_METADATA: dict[str, dict[str, None]] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


class Data(NamedTuple):
    """A CSV file beside a figure."""

    name: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Drawn(NamedTuple):
    """A figure, what it shows and what is written below it."""

    name: str
    figure: Figure
    data: tuple[Data, ...]
    legend: str


class NotDrawn(NamedTuple):
    """A figure that could not be drawn, and why."""

    name: str
    cause: str


class FigureSet(NamedTuple):
    """The figures of a run."""

    drawn: tuple[Drawn, ...]
    left: tuple[NotDrawn, ...]
    effects: Effects | None  # of the burst parameters, where they are known


def write_figures(
    run: Path | str | ReadRun,
    out: Path | str | None = None,
    format: Format = "svg",  # noqa: A002  # as of Matplotlib's `savefig`
    *,
    store: FeatureStore | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the figures of a run for a journal, with their data, legends and methods.

    Parameters
    ----------
    run : str, Path or ReadRun
        The folder of a run, or what was read from it.
    out : str or Path, optional
        The folder to write, or a set of figures to replace; ``figures`` in the run's folder where
        None.
    format : {"svg", "pdf"}
    store : FeatureStore, optional
        The store the run was fitted on. Without it there are no typical recordings, and no effect
        sizes unless the run holds burst parameters; legends.md says so.
    progress : callable, optional
        Told what is going on, how much of it is done, and how much there is.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InputError
        The folder is no run or a damaged one, the store is not the one the run was fitted on, or
        `out` is something else than a set of figures.
    """
    if format not in _METADATA:
        raise InputError(f"`format` must be 'svg' or 'pdf', got {format!r}")
    read = run if isinstance(run, ReadRun) else read_run(run)
    if store is not None:
        refuse_other_store(read, store)
    target = figures_folder(read.path) if out is None else Path(out)
    with rc_context(_STYLE):
        drawn, left, effects = _draw_all(read, store, progress)
        with publish(target, overwrite=True, kind=FIGURES) as folder:
            for one in drawn:
                path = folder / f"{one.name}.{format}"
                one.figure.savefig(path, format=format, metadata=_METADATA[format], dpi=600)
                for data in one.data:
                    write_csv(folder / f"{data.name}.csv", data.header, data.rows)
            (folder / "legends.md").write_text(_legends(read, drawn, left), "utf-8")
            sample = None if store is None else Sample.of(read, store)
            methods = describe_methods(read, sample, effects)
            (folder / "methods.md").write_text(methods, "utf-8")
            write_json(folder / FIGURES.marker, _index(read, drawn, left, format))
    return target


def draw_figures(
    run: ReadRun, store: FeatureStore | None = None, progress: Progress | None = None
) -> FigureSet:
    """Draw the figures of a run; see `write_figures`."""
    with rc_context(_STYLE):
        return _draw_all(run, store, progress)


def _draw_all(run: ReadRun, store: FeatureStore | None, progress: Progress | None) -> FigureSet:
    drawn = [_confusion(run), _scores(run), _calibration(run)]
    left: list[NotDrawn] = []
    effects = None
    try:
        values = run_parameters(run, store, progress)
    except InputError as error:
        left.append(NotDrawn("parameters", str(error)))
    else:
        effects = effect_sizes(values)
        if effects.ranked():
            drawn.append(_parameters(effects))
        if store is not None:
            names = run.recordings
            chosen = typical_recordings(run, values)
            trains = {one.label: store.read_spikes(names[one.row]) for one in chosen}
            drawn += _typical(trains, {one.label: names[one.row] for one in chosen})
    if store is None:
        left.append(NotDrawn("typical", "the store with the spikes was not at hand"))
    drawn += _courses(run)
    return FigureSet(tuple(drawn), tuple(left), effects)


def _small(axes: Axes, title: str | None = None) -> None:
    """Bring what was drawn for a screen to the size of print; a legend says what a title says."""
    for text in axes.texts:
        text.set_fontsize(5.5)
    for place in ("left", "center"):
        axes.set_title("", loc=place)
    if title is not None:
        axes.set_title(title, fontsize=7)


# --- scores


def _confusion(run: ReadRun) -> Drawn:
    k = len(run.classes)
    figure = new_figure(_PAGE_IN, min(1.1 + 0.42 * k, _PAGE_IN / 2 + 0.4))
    axes = figure.subplots(1, 2)
    verdicts = "verdicts" if run.counts.in_pairs else "devices"
    rows: list[list[Any]] = []
    counted = (("devices", verdicts, run.device_confusion),
               ("windows", run.rows_are, run.scores.window_confusion))  # fmt: skip
    for ax, (of, unit, counts) in zip(axes, counted, strict=True):
        plot.confusion(run, ax, of=of)  # type: ignore[arg-type]  # a literal of the tuple above
        _small(ax, f"{unit}: {np.trace(counts)} of {counts.sum()} correct")
        totals = np.maximum(counts.sum(axis=1), 1)
        for i, j in np.ndindex(*counts.shape):
            share = float(counts[i, j] / totals[i])
            rows.append([unit, run.classes[i], run.classes[j], int(counts[i, j]), share])
    header = ("unit", "true_class", "predicted_class", "count", "share_of_true_class")
    legend = (
        f"Confusion matrices of {verdicts} (left) and {run.rows_are} (right), predicted by models"
        " that were trained without the device. Rows: true class; columns: predicted class; colour:"
        " share of the row."
    )
    return Drawn("confusion", figure, (Data("confusion", header, rows),), legend)


class _Score(NamedTuple):
    name: str
    n_right: int
    n: int
    share: float
    low: float
    high: float


def score_rows(run: ReadRun) -> list[_Score]:
    """Give the accuracy of all devices, of each class and of the simple classifiers.

    Intervals are those of `accuracy_interval`; NaN where it needs to know more than counts.
    """
    low, high = run.metrics["device_accuracy_ci95"]
    n, right = len(run.verdicts), run.n_correct
    rows = [_Score("all", right, n, run.metrics["device_accuracy"], low, high)]
    for label in run.classes:
        mine = [v for v in run.verdicts if v.label == label]
        if mine:
            rows.append(_class_score(label, mine))
    for one in run.metrics.get("compared_with") or ():
        n_right, n = one["n_right"], one["n_verdicts"]
        between = (math.nan, math.nan)
        if not run.counts.in_pairs:
            between = accuracy_interval(np.arange(n) < n_right, np.arange(n))
        name = {"svm": "SVM, burst parameters", "parameters": "logistic, burst parameters"}
        rows.append(_Score(name.get(one["name"], one["name"]), n_right, n, n_right / n, *between))
    return rows


def _class_score(label: str, verdicts: Sequence[Verdict]) -> _Score:
    right = np.array([v.prediction == v.label for v in verdicts])
    between = accuracy_interval(right, [v.device for v in verdicts])
    return _Score(label, int(right.sum()), len(right), float(right.mean()), *between)


def _scores(run: ReadRun) -> Drawn:
    rows = score_rows(run)
    figure = new_figure(_COLUMN_IN, 0.7 + 0.2 * len(rows))
    axes = figure.add_subplot()
    for y, one in enumerate(rows):
        colour = plot.INK if y == 0 else plot.BLUE if y <= len(run.classes) else plot.GREY
        if not math.isnan(one.low):
            axes.plot([one.low, one.high], [y, y], color=colour, lw=1.4, solid_capstyle="butt")
        axes.plot(one.share, y, "o", color=colour, ms=4, clip_on=False)
    axes.axvline(run.metrics["chance"], color=plot.GREY, lw=0.8, ls=":")
    axes.set_yticks(range(len(rows)), [f"{one.name} ({one.n_right}/{one.n})" for one in rows])
    what = "verdicts" if run.counts.in_pairs else "devices"
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.4, -0.6), xlabel=f"share of {what} correct")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    data = [
        [o.name, o.n_right, o.n, o.share, _known(o.low), _known(o.high), run.metrics["chance"]]
        for o in rows
    ]
    header = ("score", "n_correct", "n", "share", "ci95_low", "ci95_high", "chance")
    legend = (
        f"Share of {what} classified correctly: all, those of each class, and, in grey, simple"
        f" classifiers of burst parameters on the same left-out devices. Bars: 95 % confidence"
        f" {'intervals' if not run.counts.in_pairs else 'intervals with devices as units'};"
        " dotted line: chance, the share of the most common class."
    )
    return Drawn("scores", figure, (Data("scores", header, data),), legend)


def _known(value: float) -> float | str:
    return "" if math.isnan(value) else value


def _calibration(run: ReadRun) -> Drawn:
    table = run.scores.window_reliability
    figure = new_figure(_COLUMN_IN, 3.1)
    axes = figure.add_subplot()
    draw_reliability(axes, table, run.rows_are)
    rows = [
        [float(low), float(high), int(n), float(share), _known(float(c)), _known(float(a))]
        for low, high, n, share, c, a in zip(
            table.edges[:-1], table.edges[1:], table.count, table.share, table.confidence,
            table.accuracy, strict=True,
        )
    ]  # fmt: skip
    header = ("above", "up_to", "n", "share", "mean_probability", "share_correct")
    legend = (
        f"Reliability diagram: {run.rows_are} of left-out devices, grouped by the probability of"
        " their predicted class; each device has the same weight. Bars and the sizes of dots: share"
        f" of {run.rows_are}. Expected calibration error {run.metrics['window_ece']:.3f}."
    )
    return Drawn("calibration", figure, (Data("calibration", header, rows),), legend)


# --- burst parameters


def _parameters(effects: Effects) -> Drawn:
    shown = effects.ranked()[:_N_PARAMETERS]
    devices = effects.devices
    height = 0.7 + len(shown) * (0.12 + 0.11 * len(devices.classes))
    figure = new_figure(_PAGE_IN, min(height, 9.0))
    axes = figure.add_subplot()
    plot.parameters(effects, axes, names=shown)
    for line in axes.lines:
        line.set_markersize(3)
    dots = [
        [name, TITLES.get(name, name), device, label, _known(value), _known(z)]
        for name in shown
        for device, label, value, z in zip(
            devices.device.tolist(),
            devices.label.tolist(),
            devices.column(name).tolist(),
            plot.standardised(devices.column(name)).tolist(),
            strict=True,
        )
    ]
    sizes = [
        [c.label, c.against, e.parameter, TITLES.get(e.parameter, e.parameter), e.n[0], e.n[1],
         *map(_known, (*e.median, e.delta, e.low, e.high, e.p, e.p_adjusted))]
        for c in effects.contrasts
        for e in c.effects
    ]  # fmt: skip
    data = (
        Data(
            "parameters",
            ("parameter", "title", "device", "class", "value", "sd_from_mean"),
            dots,
        ),
        Data(
            "parameters-effects",
            (
                *("class", "against", "parameter", "title", "n_class", "n_against"),
                *("median_class", "median_against", "cliffs_delta", "low", "high"),
                *("p", "p_adjusted"),
            ),
            sizes,
        ),
    )
    shown_to_differ = [e for c in effects.contrasts for e in c.effects if e.detectable]
    legend = (
        f"The {count(len(shown), 'burst parameter')} with the largest effect sizes, in standard"
        " deviations from the mean of all devices. A dot is a device, a bar the median of a class."
        " Beside each name: the largest effect, Cliff's delta of a class against the others, with"
        f" a confidence interval of {100 * effects.confidence:.3g} %, which allows for the number"
        f" of tests. {count(len(shown_to_differ), 'effect')} of {effects.n_tests} detectable at a"
        " false discovery rate of 5 %."
    )
    return Drawn("parameters", figure, data, legend)


# --- typical recordings


def _typical(trains: dict[str, SpikeTrains], names: dict[str, str]) -> Iterator[Drawn]:
    if not trains:
        return
    figure = new_figure(_PAGE_IN, 0.3 + 1.2 * len(trains))
    grid = figure.subplots(len(trains), 3, squeeze=False, width_ratios=(2.2, 1.7, 1.2))
    limits = rate_limits(list(trains.values()))
    spikes: list[list[Any]] = []
    counts: list[list[Any]] = []
    electrodes: list[list[Any]] = []
    for row, (label, one) in zip(grid, trains.items(), strict=True):
        start_s, stop_s = excerpt_s(one)
        plot.raster(one, row[0], start_s=start_s, stop_s=stop_s)
        row[0].set_ylabel("electrode")
        tops = _draw_counts(row[1], one, start_s, stop_s)
        plot.array(one, row[2], labels=False, limits_hz=limits)
        row[2].collections[-1].colorbar.remove()  # one for all is below
        for axes in row:
            _small(axes)
            axes.set_xlabel("time (s)" if axes in grid[-1] else "")
        row[0].set_title(label, loc="left")
        for line in row[0].lines:
            line.set(markersize=_ROW_PT / len(one.channel_labels), markeredgewidth=0.3)
        times = spike_times_s(one)
        inside = (times >= start_s) & (times <= stop_s)
        labelled = [one.channel_labels[k] for k in one.spikes.channel[inside].tolist()]
        spikes += [
            [label, who, f"{time:.4f}"]
            for who, time in zip(labelled, times[inside].tolist(), strict=True)
        ]
        counts += [
            [label, names[label], round(start_s + k * _BIN_S, 6), n] for k, n in enumerate(tops)
        ]
        electrodes += [
            [label, names[label], who, rate]
            for who, rate in zip(
                one.channel_labels, plot.electrode_rates(one).tolist(), strict=True
            )
        ]
    bar = figure.colorbar(
        grid[-1, 2].collections[-1], ax=list(grid[:, 2]), location="right", shrink=0.35,
        label="spikes/s",
    )  # fmt: skip
    bar.outline.set_visible(False)
    of = ("class", "recording")
    data = (
        Data("typical-raster", ("class", "electrode", "time_s"), spikes),
        Data("typical-histogram", (*of, "bin_start_s", "spikes"), counts),
        Data("typical-array", (*of, "electrode", "rate_hz"), electrodes),
    )
    legend = (
        "A typical recording of each class, whose burst parameters are nearest to those of the"
        " others: raster plot (a row per electrode) and spikes of all electrodes in bins of"
        f" {1000 * _BIN_S:g} ms over an excerpt from its middle, and firing rates of the whole"
        " recording on the electrode array (white: up to 0.1 spikes/s). Recordings:"
        f" {'; '.join(f'{label}: {name}' for label, name in names.items())}."
    )
    yield Drawn("typical", figure, data, legend)


def _draw_counts(axes: Axes, trains: SpikeTrains, start_s: float, stop_s: float) -> list[int]:
    counts = plot.bin_counts(trains, _BIN_S, start_s, stop_s)
    edges_s = start_s + np.arange(len(counts) + 1) * _BIN_S
    axes.stairs(counts, edges_s, fill=True, color=plot.INK)
    axes.set(
        xlabel="time (s)",
        ylabel=f"spikes per\n{1000 * _BIN_S:g} ms",
        xlim=(start_s, min(stop_s, end_s(trains))),
    )
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    listed: list[int] = counts.tolist()
    return listed


# --- probabilities over time


def _courses(run: ReadRun) -> Iterator[Drawn]:
    """Draw the probabilities of each device's windows; nothing where rows are recordings."""
    windows = [view["params"]["windows"] for view in run.views if view["params"]["windows"]]
    widest = max(windows, key=lambda w: float(w["width_s"]), default=None)
    if widest is None:
        return
    ordered = sorted(run.verdicts, key=lambda v: (run.classes.index(v.label), v.device))
    for first in range(0, len(ordered), _ACROSS * _DOWN):
        number = first // (_ACROSS * _DOWN) + 1
        name = "courses" if number == 1 else f"courses-{number}"
        yield _courses_of(run, ordered[first : first + _ACROSS * _DOWN], widest, name)


def _courses_of(
    run: ReadRun, verdicts: Sequence[Verdict], windows: dict[str, float], name: str
) -> Drawn:
    down = -(-len(verdicts) // _ACROSS)
    figure = new_figure(_PAGE_IN, 0.5 + 0.85 * down)
    grid = figure.subplots(down, _ACROSS, squeeze=False, sharey=True)
    rows: list[list[Any]] = []
    for axes, verdict in zip(grid.flat, verdicts, strict=False):
        rows += _draw_course(axes, run, verdict, windows)
    for axes in grid.flat[len(verdicts) :]:
        axes.set_axis_off()
    grid[0, 0].set(ylim=(-0.03, 1.03), yticks=(0, 0.5, 1))
    figure.supxlabel("time (min)", fontsize=7)
    figure.supylabel("probability", fontsize=7)
    header = ("device", "true_class", "recording", "start_s", "centre_min", "class", "probability")
    legend = (
        "Predicted probabilities over time, by models that were trained without the device: of the"
        " true class (blue, solid) and, where the device was misclassified, of the predicted class"
        f" (red, dashed). A point is a window of {windows['width_s']:g} s, at its centre. Titles:"
        " device, and the true class; of misclassified ones also the predicted class."
    )
    return Drawn(name, figure, (Data(name, header, rows),), legend)


def _draw_course(
    axes: Axes, run: ReadRun, verdict: Verdict, windows: dict[str, float]
) -> Iterator[list[Any]]:
    mine = np.flatnonzero(
        (run.windows.device == verdict.device) & (run.windows.label == verdict.label)
    )
    wrong = verdict.prediction != verdict.label
    shown = [(verdict.label, plot.BLUE, "-")]
    if wrong:
        shown.append((verdict.prediction, plot.RED, "--"))
    for label, colour, dashes in shown:
        for part in _together(run, mine, windows["stride_s"]):
            start_s = run.origin.start_s[part]
            centre_min = (start_s + windows["width_s"] / 2) / _MINUTE_S
            shares = run.windows.probabilities[part, run.classes.index(label)]
            marker = "." if len(part) == 1 else ""
            axes.plot(centre_min, shares, color=colour, ls=dashes, marker=marker, lw=0.8, ms=2)
            for row, start, centre, share in zip(
                part.tolist(), start_s.tolist(), centre_min.tolist(), shares.tolist(), strict=True
            ):
                of = (verdict.device, verdict.label, str(run.origin.recording[row]))
                yield [*of, start, centre, label, share]
    said = f"{verdict.label} \u2192 {verdict.prediction}" if wrong else verdict.label
    axes.set_title(f"{verdict.device}\n{said}", fontsize=5, color=plot.RED if wrong else plot.INK)
    axes.axhline(0.5, color=plot.GREY, lw=0.4, ls=":")
    axes.spines[["top", "right"]].set_visible(False)


def _together(
    run: ReadRun, rows: NDArray[np.int64], stride_s: float
) -> Iterator[NDArray[np.int64]]:
    """Split windows where another recording begins, or where there is a gap."""
    recording = run.origin.recording[rows]
    for of_one in np.split(rows, np.flatnonzero(recording[1:] != recording[:-1]) + 1):
        for part in unbroken(run.origin.start_s[of_one], stride_s):
            yield of_one[part]


# --- what is written beside the figures


def _legends(run: ReadRun, drawn: Sequence[Drawn], left: Sequence[NotDrawn]) -> str:
    parts = [f"# Figures of {run.name}\n"]
    for number, one in enumerate(drawn, 1):
        files = ", ".join(f"{data.name}.csv" for data in one.data)
        parts.append(f"**Figure {number} ({one.name}).** {one.legend} Data: {files}.\n")
    parts += [f"Not drawn: {one.name}, because {one.cause}.\n" for one in left]
    return "\n".join(parts)


def _index(
    run: ReadRun, drawn: Sequence[Drawn], left: Sequence[NotDrawn], suffix: Format
) -> dict[str, Any]:
    """Give figures.json, by which the folder is known as a set of figures."""
    return {
        "kind": FIGURES.kind,
        "format": FORMAT,
        "toptune_version": version("toptune"),
        "run": run.name,
        "figures": [
            {"file": f"{o.name}.{suffix}", "data": [f"{d.name}.csv" for d in o.data]} for o in drawn
        ],
        "not_drawn": [one._asdict() for one in left],
    }
