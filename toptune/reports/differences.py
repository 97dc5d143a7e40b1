"""What differs between the classes of a run, as sections of a report.

By effect sizes of burst parameters over devices, a typical recording of each class, the weights of
a linear classifier, the same by batch or group, and the course over the days in vitro. Nothing is
called different, higher or lower unless its adjusted p-value allows it.
"""

from __future__ import annotations

import csv
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune import plot
from toptune.evaluation.effects import Contrast, Effect, Effects, ParameterValues, effect_sizes
from toptune.features.burst_features import NAMES, TITLES, scaled
from toptune.machine.display import count
from toptune.machine.drawing import Axes, Figure, new_figure, rc_context
from toptune.recordings.positions import place_electrodes
from toptune.recordings.trains import SpikeTrains, end_s
from toptune.reports.page import (
    Block,
    Cell,
    Columns,
    Details,
    Note,
    Picture,
    Section,
    Table,
    Text,
    p_value_text,
    svg_uri,
)
from toptune.runs.reading import ReadRun

#: The table of a linear classifier's coefficients in a run's folder.
COEFFICIENTS = "coefficients.csv"
# Columns of the devices file that say what was made or recorded together.
_TOGETHER = ("group", "batch")
_DIV = "div"
# How much of a typical recording is drawn, from its middle.
_EXCERPT_S = 120.0
_EXCERPT_BIN_S = 0.1
# Diagrams of single parameters, and rows of the table above its fold.
_N_SHOWN, _N_LISTED, _N_OF_BATCHES, _N_COEFFICIENTS = 6, 10, 3, 8
# More batches or groups than this are neither compared nor drawn.
_MOST_BATCHES = 15
# Figures are this wide, so that their text is readable on a phone too.
_WIDTH_IN, _WIDTH_PX = 4.3, 430
# Smaller p-values are not told apart.
_LEAST_P = 0.001


class Typical(NamedTuple):
    """The recording that stands for a class."""

    label: str
    row: int  # of the recordings' parameters
    is_correct: bool  # whether its device was classified correctly
    n_candidates: int


class Coefficients(NamedTuple):
    """What a linear classifier learnt."""

    classes: tuple[str, ...]
    parameters: tuple[str, ...]
    values: NDArray[np.float64]  # (parameters, classes): log-odds per standard deviation


@dataclass(frozen=True, kw_only=True, eq=False)
class Differences:
    """What is known of a run's recordings beside its predictions."""

    values: ParameterValues  # of each recording
    names: tuple[str, ...]  # (n,): of the recordings, in the order of the values' rows
    coefficients: Coefficients | None = None
    # Gives the spikes of a recording by its name; None without the store.
    spikes_of: Callable[[str], SpikeTrains] | None = None


def read_coefficients(folder: Path) -> Coefficients | None:
    """Read the coefficients of a run's classifier; None where it is not linear."""
    path = folder / COEFFICIENTS
    if not path.exists():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        (_, *classes), *rows = list(csv.reader(file))
    values = np.array([[float(cell) for cell in row[1:]] for row in rows])
    return Coefficients(tuple(classes), tuple(row[0] for row in rows), values)


def difference_sections(run: ReadRun, found: Differences) -> tuple[Section, ...]:
    """Say and show by which parameters the classes differ; see the module."""
    effects = effect_sizes(found.values)
    with rc_context({"font.size": 9.5, "axes.titlesize": 9.5, "axes.linewidth": 0.7}):
        made = (
            Section(title="What differs between the classes", blocks=tuple(_classes(effects))),
            _typical_section(run, found),
            _coefficients_section(run, found.coefficients),
            _div_section(found.values, effects),
            *(_together_section(found.values, name) for name in _columns_together(run, found)),
        )
    return tuple(one for one in made if one is not None)


# --- effect sizes of the classes


def _classes(effects: Effects) -> Iterator[Block]:
    yield Text(text=_how_compared(effects))
    if not effects.contrasts or not effects.n_tests:
        yield Text(text="No parameter is known of two devices on both sides: nothing to compare.")
        return
    yield from _summary(effects)
    shown = distinct(effects.ranked())[:_N_SHOWN]
    yield Columns(blocks=tuple(_parameter_picture(effects, name) for name in shown))
    joined = "; lines join the values of a device" if _any_paired(effects) else ""
    yield Text(text=f"A dot is a device, a bar the median of a class{joined}.", quiet=True)
    yield _largest_table(effects)
    yield Details(
        summary=f"All {len(effects.devices.names)} parameters",
        printed=False,  # pages of numbers
        blocks=(
            Text(text=_formulas(effects), quiet=True),
            *(_table_of(one, effects.confidence) for one in effects.contrasts),
        ),
    )


def distinct(names: Sequence[str]) -> list[str]:
    """Leave out a parameter that is there already, measured by the other way to find bursts."""
    kept: dict[str, str] = {}
    for name in names:
        kept.setdefault(name.removeprefix("logisi_"), name)
    return list(kept.values())


def _how_compared(effects: Effects) -> str:
    paired = [one.paired for one in effects.contrasts]
    if len(paired) == 1:
        (only,) = effects.contrasts
        which = f"{only.label} is compared with {only.against}"
    else:
        which = "Each class is compared with all others together"
    which += f" in {count(len(effects.devices.names), 'parameter')} of spikes and bursts"
    if paired and all(paired):
        return (
            f"{which}, each device with itself: with the means of its recordings. The effect \u03b4"
            " (Cliff's delta) is 1 where every device has the larger value in that class, \u22121"
            " where every one has the smaller value, and 0 where as many rise as fall."
        )
    return (
        f"{which}. Each device counts once, with the mean of its recordings. The effect \u03b4"
        " (Cliff's delta) is 1 where every device of a class lies above the others, \u22121 where"
        " every one lies below, and 0 where they lie alike."
    )


def _any_paired(effects: Effects) -> bool:
    return len(set(effects.devices.device.tolist())) < len(effects.devices.device)


def _formulas(effects: Effects) -> str:
    return (
        "\u03b4 is the share of pairs of devices in which the one of the class has the larger"
        " value, minus the share in which it has the smaller one (Cliff 1993), which equals the"
        " rank-biserial correlation; its interval is that of Newcombe (2006, method 5), of devices"
        " compared with themselves Wilson's. p: exact test of Mann and Whitney, of devices"
        " compared with themselves Wilcoxon's signed-rank test; a permutation test where values"
        f" are tied. Adjusted p: for all {effects.n_tests} tests (Benjamini & Hochberg 1995); up"
        " to 0.05 a difference is called detectable, so that 1 in 20 of the differences named may"
        f" be due to chance. Intervals have a confidence of {100 * effects.confidence:.4g}\u202f%"
        " each, which allows for the number of tests too (Benjamini & Yekutieli 2005). A value is"
        " missing where it is not defined, as the duration of bursts in a culture without bursts."
    )


def _summary(effects: Effects) -> Iterator[Block]:
    if len(effects.contrasts) == 1:
        (only,) = effects.contrasts
        yield Note(text=_sentence(only, effects), level="note")
        return
    n = len(effects.detectable)
    if not n:
        yield Note(text=_nothing(effects), level="note")
        return
    rows = []
    for one in effects.contrasts:
        shown = [e for e in one.ranked() if e.detectable]
        largest = "; ".join(_brief(e) for e in shown[:3]) or "no detectable difference"
        n_tested = sum(not math.isnan(e.p) for e in one.effects)
        rows.append((one.label, str(_n_devices(one)[0]), f"{len(shown)} of {n_tested}", largest))
    yield Table(
        caption="Parameters in which each class differs detectably from all others",
        header=("class", "devices", "parameters that differ", "largest differences"),
        rows=tuple(rows),
        numeric=(1, 2),
    )


def _n_devices(contrast: Contrast) -> tuple[int, int]:
    """Devices on both sides: of the parameter that most of them have."""
    return max(e.n for e in contrast.effects)


def _nothing(effects: Effects) -> str:
    smallest = min(e.p_adjusted for one in effects.contrasts for e in one.ranked())
    return (
        f"No detectable difference in any of {effects.n_tests} comparisons (smallest adjusted"
        f" {p_words(smallest)}). That does not show that there is none: it may be too small for so"
        " few devices."
    )


def _sentence(contrast: Contrast, effects: Effects) -> str:
    """Say in a sentence in how much two classes differ."""
    shown = [e for e in contrast.ranked() if e.detectable]
    n = _n_devices(contrast)
    if not shown:
        return f"{contrast.label} ({n[0]}) against {contrast.against} ({n[1]}): " + _nothing(
            effects
        )
    largest = "; ".join(_brief(e) for e in shown[:4])
    more = f"; and {len(shown) - 4} more" if len(shown) > 4 else ""
    n_tested = sum(not math.isnan(e.p) for e in contrast.effects)
    return (
        f"{contrast.label} ({count(n[0], 'device')}) differs detectably from {contrast.against}"
        f" ({count(n[1], 'device')}) in {len(shown)} of {count(n_tested, 'parameter')}: {largest}"
        f"{more}."
    )


def _brief(effect: Effect) -> str:
    """Name a detectable difference: ``spikes per burst higher (\u03b4 0.98)``."""
    side = "higher" if effect.delta > 0 else "lower"
    name = TITLES.get(effect.parameter, effect.parameter)
    return f"{name} {side} (\u03b4 {plot.signed(effect.delta)})"


def _parameter_picture(effects: Effects, name: str) -> Picture:
    contrast, effect = effects.largest(name)
    figure = _figure(2.7)
    axes = plot.parameter(effects, name, figure.add_subplot())
    axes.set_ylabel("")
    _wrapped_title(axes, TITLES.get(name, name))
    _turn_long_labels(axes, effects.devices.classes)
    who = f"{contrast.label} against {contrast.against}: "
    alt = "; ".join(
        f"{label}: median {_number(float(np.nanmedian(mine)))}"
        for label in effects.devices.classes
        if np.isfinite(mine := effects.devices.column(name)[effects.devices.label == label]).any()
    )
    return Picture(
        uri=svg_uri(figure),
        alt=f"{TITLES.get(name, name)} of each device. {alt}",
        caption=f"{who}{plot.effect_text(effect)}, {_judged(effect)}",
        width_px=_WIDTH_PX,
    )


def _judged(effect: Effect) -> str:
    if effect.detectable:
        return f"adjusted {p_words(effect.p_adjusted)}"
    return f"no detectable difference (adjusted {p_words(effect.p_adjusted)})"


_HEADER = ("median", "of the others", "devices", "\u03b4", "interval of \u03b4", "p", "adjusted p")


def _cells(effect: Effect) -> tuple[str | Cell, ...]:
    if math.isnan(effect.delta):
        n = f"{effect.n[0]}, {effect.n[1]}"
        return (*map(_number, effect.median), n, "-", "too few devices", "-", "-")
    adjusted = Cell(text=_p(effect.p_adjusted), tone="strong" if effect.detectable else "plain")
    return (
        *map(_number, effect.median),
        f"{effect.n[0]}, {effect.n[1]}",
        plot.signed(effect.delta),
        f"{plot.signed(effect.low)} to {plot.signed(effect.high)}",
        _p(effect.p),
        adjusted,
    )


def _largest_table(effects: Effects) -> Table:
    several = len(effects.contrasts) > 1
    rows = []
    for name in effects.ranked()[:_N_LISTED]:
        contrast, effect = effects.largest(name)
        cells = _cells(effect)
        cells = (*cells[: len(cells) - 2], cells[-1])  # p by itself is in the whole tables
        rows.append((TITLES.get(name, name), *([contrast.label] * several), *cells))
    (first,) = effects.contrasts[:1]
    of = "the class that differs most" if several else first.label
    header = _HEADER if several else _two_classes(first)
    n_names = 1 + several
    return Table(
        caption=f"The {count(len(rows), 'largest difference')}, each of {of}; detectable ones in"
        " bold",
        header=("parameter", *(["class"] * several), *header[:-2], header[-1]),
        rows=tuple(rows),
        numeric=tuple(range(n_names, n_names + len(header) - 1)),
    )


def _two_classes(contrast: Contrast) -> tuple[str, ...]:
    if contrast.against == "the others":
        return _HEADER
    return (f"median of {contrast.label}", f"of {contrast.against}", *_HEADER[2:])


def _table_of(contrast: Contrast, confidence: float) -> Table:
    undefined = [e for e in contrast.effects if math.isnan(e.delta)]
    paired = ", each device compared with itself" if contrast.paired else ""
    return Table(
        caption=f"{contrast.label} against {contrast.against}{paired};"
        f" {100 * confidence:.4g}\u202f% intervals",
        header=("parameter", *_two_classes(contrast)),
        rows=tuple(
            (TITLES.get(e.parameter, e.parameter), *_cells(e))
            for e in (*contrast.ranked(), *undefined)
        ),
        numeric=tuple(range(1, 1 + len(_HEADER))),
    )


# --- a typical recording of each class


def typical_recordings(run: ReadRun, values: ParameterValues) -> tuple[Typical, ...]:
    """Choose the medoid of each class: the recording whose parameters are nearest to the others'.

    Parameters are scaled by their constants and standardised over all recordings; a distance is the
    mean square over the parameters that both recordings have. Where devices of the class were
    classified correctly, one of theirs is chosen.
    """
    z = np.apply_along_axis(plot.standardised, 0, scaled(values.values))
    right = {(v.device, v.label) for v in run.verdicts if v.prediction == v.label}
    chosen = []
    for label in values.classes:
        rows = np.flatnonzero(values.label == label)
        if not len(rows):
            continue
        distance = np.array([[_distance(z[i], z[j]) for j in rows] for i in rows])
        correct = np.array([(values.device[row], label) in right for row in rows])
        candidates = np.flatnonzero(correct) if correct.any() else np.arange(len(rows))
        best = candidates[distance[candidates].sum(axis=1).argmin()]
        chosen.append(Typical(label, int(rows[best]), bool(correct.any()), len(candidates)))
    return tuple(chosen)


def _distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    squared = (first - second) ** 2
    known = squared[~np.isnan(squared)]
    return float(known.mean()) if len(known) else math.inf


def _typical_section(run: ReadRun, found: Differences) -> Section | None:
    if found.spikes_of is None:
        return None
    chosen = typical_recordings(run, found.values)
    trains = {one.label: found.spikes_of(found.names[one.row]) for one in chosen}
    limits = rate_limits(list(trains.values()))
    blocks: list[Block] = [
        Text(
            text="Typical is the recording whose parameters are nearest to those of all others of"
            " its class, among the devices that were classified correctly where there are any. Maps"
            " of firing rates have one scale."
        )
    ]
    for one in chosen:
        spikes = trains[one.label]
        told = _who(found, one)
        blocks.append(
            Columns(
                blocks=(
                    _activity_picture(one, spikes, told),
                    _array_picture(one, spikes, told, limits),
                )
            )
        )
    return Section(title="A typical recording of each class", blocks=tuple(blocks))


def _who(found: Differences, one: Typical) -> str:
    wrong = "" if one.is_correct else " (no device of this class was classified correctly)"
    return f"{one.label}: device {found.values.device[one.row]}{wrong}"


def excerpt_s(spikes: SpikeTrains) -> tuple[float, float]:
    """Choose the stretch of a recording that is drawn, from its middle; in seconds."""
    whole_s = end_s(spikes)
    first = max(0.0, round((whole_s - _EXCERPT_S) / 2))
    return first, min(whole_s, first + _EXCERPT_S)


def draw_activity(spikes: SpikeTrains) -> Figure:
    """Draw the raster and the histogram of the middle of a recording above one time axis."""
    start_s, stop_s = excerpt_s(spikes)
    figure = _figure(3.4)
    upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (2.2, 1)})
    plot.raster(spikes, upper, start_s=start_s, stop_s=stop_s).set(xlabel="", ylabel="electrode")
    plot.histogram(spikes, lower, bin_s=_EXCERPT_BIN_S, start_s=start_s, stop_s=stop_s)
    lower.set_ylabel(f"spikes/{1000 * _EXCERPT_BIN_S:g} ms")
    for axes in (upper, lower):
        plot.write_title(axes, "")
        axes.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()
    return figure


def _activity_picture(one: Typical, spikes: SpikeTrains, told: str) -> Picture:
    start_s, stop_s = excerpt_s(spikes)
    whole = end_s(spikes)
    part = "the whole recording" if stop_s - start_s >= whole else "from its middle"
    return Picture(
        uri=svg_uri(draw_activity(spikes)),
        alt=f"Raster plot and histogram of a typical recording of {one.label}",
        caption=f"{told}. Raster, a row per electrode, and histogram of all electrodes;"
        f" {stop_s - start_s:.0f} s, {part}.",
        width_px=_WIDTH_PX,
    )


def draw_rates(spikes: SpikeTrains, limits_hz: tuple[float, float] | None) -> Figure:
    """Draw the map of firing rates of a recording."""
    figure = _figure(3.4)
    plot.write_title(plot.array(spikes, figure.add_subplot(), limits_hz=limits_hz), "")
    return figure


def _array_picture(
    one: Typical, spikes: SpikeTrains, told: str, limits_hz: tuple[float, float]
) -> Picture:
    rates = plot.electrode_rates(spikes)
    n_active = int((rates > plot.SILENT_HZ).sum())
    placed = place_electrodes(spikes.channel_labels)
    return Picture(
        uri=svg_uri(draw_rates(spikes, limits_hz)),
        alt=f"Firing rates of {len(rates)} electrodes of a typical recording of {one.label}: mean"
        f" {rates.mean():.2f} spikes/s, {n_active} active",
        caption=f"{told}. Firing rates of the whole recording, mean {rates.mean():.2g} spikes/s;"
        f" {n_active} of {count(len(rates), 'electrode')} above {plot.SILENT_HZ:g} spikes/s, the"
        f" others empty. Positions: {placed.how}.",
        width_px=_WIDTH_PX,
    )


def rate_limits(trains: Sequence[SpikeTrains]) -> tuple[float, float]:
    """Give the lowest and highest rate of active electrodes, at which the colours of maps end."""
    rates = np.concatenate([plot.electrode_rates(one) for one in trains])
    active = rates[rates > plot.SILENT_HZ]
    if not len(active):
        return plot.SILENT_HZ, 1.0
    return float(active.min()), float(active.max())


# --- what a linear classifier weighs


def _coefficients_section(run: ReadRun, found: Coefficients | None) -> Section | None:
    if found is None:
        return None
    order = [name for name in run.classes if name in found.classes]
    # Of two classes the coefficients are each other's negatives: those of the second say it all.
    shown = order[1:] if len(order) == 2 else order
    pictures = tuple(_coefficient_picture(found, name, order) for name in shown)
    rows = tuple(
        (
            TITLES.get(name, name),
            *(plot.signed(float(found.values[k, found.classes.index(c)])) for c in order),
        )
        for k, name in enumerate(found.parameters)
    )
    return Section(
        title="What the classifier weighs",
        blocks=(
            Text(
                text="The coefficients of the logistic regression trained on all devices: by how"
                " much the log-odds of a class rise with one standard deviation of a parameter."
                " Parameters that go together share their weight, and the penalty shrinks all: a"
                " small coefficient does not show that a parameter does not differ."
            ),
            Columns(blocks=pictures),
            Details(
                summary="All coefficients",
                blocks=(
                    Table(
                        caption="Log-odds per standard deviation",
                        header=("parameter", *order),
                        rows=rows,
                        numeric=tuple(range(1, 1 + len(order))),
                    ),
                ),
            ),
        ),
    )


def _coefficient_picture(found: Coefficients, label: str, order: Sequence[str]) -> Picture:
    mine = found.values[:, found.classes.index(label)]
    largest = np.argsort(-np.abs(mine), kind="stable")[:_N_COEFFICIENTS]
    titles = [TITLES.get(found.parameters[k], found.parameters[k]) for k in largest]
    figure = _figure(0.9 + 0.34 * len(largest))
    axes = figure.add_subplot()
    colour = plot.class_colour(list(order).index(label))
    axes.barh(range(len(largest)), mine[largest], color=colour, height=0.6)
    axes.axvline(0, color=plot.GREY, lw=0.8)
    axes.set_yticks(range(len(largest)), [textwrap.fill(t, 30) for t in titles], fontsize=8.5)
    reach = 1.05 * float(np.abs(found.values).max(initial=1e-9))
    axes.set(ylim=(len(largest) - 0.4, -0.6), xlim=(-reach, reach), xlabel="log-odds per SD")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    listed = "; ".join(
        f"{t} {plot.signed(float(mine[k]))}" for t, k in zip(titles, largest, strict=True)
    )
    return Picture(
        uri=svg_uri(figure),
        alt=f"Largest coefficients of {label}: {listed}",
        caption=f"{label}: the {len(largest)} largest coefficients.",
        width_px=_WIDTH_PX,
    )


# --- batches, groups, and days in vitro


def _columns_together(run: ReadRun, found: Differences) -> list[str]:
    """Name the columns that say what was made together, and that have values to compare."""
    asked = {*_TOGETHER, str(run.params["group_by"]).casefold()} - {"device"}
    return [
        name
        for name in found.values.columns
        if name.casefold() in asked and len(set(found.values.columns[name].tolist()) - {""}) > 1
    ]


def _together_section(values: ParameterValues, column: str) -> Section | None:
    of = values.by(column)
    if len(of.classes) > _MOST_BATCHES:
        return None
    effects = effect_sizes(of)
    if not effects.n_tests:
        return None
    shown = distinct(effects.ranked())[:_N_OF_BATCHES]
    return Section(
        title=f"What differs by {column}",
        blocks=(
            Text(
                text=f"The same comparison by the column {column} instead of the class. Where its"
                " values differ and hold different classes, a classifier may have learnt"
                f" the {column}."
            ),
            *_summary(effects),
            _devices_by(values, column),
            Columns(blocks=tuple(_parameter_picture(effects, name) for name in shown)),
            Details(
                summary=f"All {len(of.names)} parameters by {column}",
                blocks=tuple(_table_of(one, effects.confidence) for one in effects.contrasts),
            ),
        ),
    )


def _devices_by(values: ParameterValues, column: str) -> Table:
    """Count devices of each class and batch."""
    kinds = list(dict.fromkeys(v for v in values.columns[column].tolist() if v))
    rows = []
    for label in values.classes:
        counts = [
            len(set(values.device[(values.label == label) & (values.columns[column] == kind)]))
            for kind in kinds
        ]
        rows.append((label, *(str(n) if n else "-" for n in counts)))
    return Table(
        caption=f"Devices of each class and {column}",
        header=("class", *kinds),
        rows=tuple(rows),
        numeric=tuple(range(1, 1 + len(kinds))),
    )


def _div_section(values: ParameterValues, effects: Effects) -> Section | None:
    name = next((one for one in values.columns if one.casefold() == _DIV), None)
    if name is None:
        return None
    days = plot.numbers(values.columns[name])
    if len(np.unique(days[~np.isnan(days)])) < 2:
        return None
    shown = distinct(effects.ranked())[:_N_SHOWN] or [NAMES[0]]
    pictures = tuple(_course_picture(values, parameter, name) for parameter in shown)
    return Section(
        title="Course over the days in vitro",
        blocks=(
            Text(
                text="A line is a device and a dot a recording. The parameters are those that"
                " differ most between the classes. Nothing is tested here: recordings of different"
                " ages were averaged above."
            ),
            Columns(blocks=pictures),
        ),
    )


def _course_picture(values: ParameterValues, parameter: str, column: str) -> Picture:
    figure = _figure(2.7)
    axes = plot.course(values, parameter, figure.add_subplot(), column=column)
    axes.set_ylabel("")
    _wrapped_title(axes, TITLES.get(parameter, parameter))
    n = count(len(set(values.device.tolist())), "device")
    return Picture(
        uri=svg_uri(figure),
        alt=f"{TITLES.get(parameter, parameter)} of {n} over the days in vitro",
        caption=f"{n}, {count(len(values.device), 'recording')}.",
        width_px=_WIDTH_PX,
    )


# --- words and figures


def p_words(p: float) -> str:
    """Write a p-value with its letter: ``p = 0.034``, ``p < 0.001``."""
    return f"p\u00a0{_p(p)}" if p < _LEAST_P else f"p\u00a0=\u00a0{_p(p)}"


def _p(p: float) -> str:
    return f"<\u00a0{_LEAST_P:g}" if p < _LEAST_P else p_value_text(p)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def _figure(height_in: float) -> Figure:
    return new_figure(_WIDTH_IN, height_in)


def _wrapped_title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=9.5)


def _turn_long_labels(axes: Axes, labels: Sequence[str]) -> None:
    if sum(map(len, labels)) + 2 * len(labels) > 44:
        axes.tick_params(axis="x", labelrotation=35)
        for text in axes.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
