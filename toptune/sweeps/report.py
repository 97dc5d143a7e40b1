"""The report of a sweep: one HTML file with its tables, diagrams, failures and command.

Figures are as wide as a phone's screen, so that their text is readable there. The colours are those
of Okabe and Ito (2008, https://jfly.uni-koeln.de/color/) for colour-blind readers, and colour is
never the only difference.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scipy.stats import false_discovery_control

from toptune.errors import InputError
from toptune.evaluation.counting import Counts
from toptune.machine.display import count
from toptune.params import Compute, command_words, options_of
from toptune.reports.compare import DETECTABLE_P, compare_verdicts
from toptune.reports.page import (
    Block,
    Cell,
    Code,
    Columns,
    Details,
    Fact,
    Facts,
    HeatMap,
    Note,
    Page,
    Picture,
    Section,
    Shade,
    Table,
    Text,
    p_value_text,
    render,
    svg_uri,
)
from toptune.reports.setup import option_words
from toptune.runs.reading import read_verdicts
from toptune.sweeps.plan import describe_picture, fit_labels
from toptune.sweeps.results import (
    Outcome,
    PictureOutcome,
    SweepResult,
    by_task,
    picture_outcomes,
    warnings_of,
)
from toptune.sweeps.tables import (
    RANDOM_NOTE,
    WITHOUT_PICTURES,
    ResultTable,
    accuracy_text,
    any_random,
    result_tables,
    weights_text,
)

if TYPE_CHECKING:
    from toptune.machine.drawing import Axes, Figure

_BEST = (
    "The accuracy of the best run is too optimistic, because it was selected on the same devices."
)
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_WIDTH_IN = 5.4
_INK = "#333333"


def write_report(swept: SweepResult) -> None:
    """Write report.html into the folder of a sweep."""
    (swept.path / "report.html").write_text(render(sweep_page(swept)), "utf-8")


def sweep_page(swept: SweepResult) -> Page:
    """Assemble the report."""
    sections = [*_task_sections(swept)]
    if swept.done:
        sections.append(Section(title="All runs", blocks=(_run_table(swept),)))
    if swept.failures:
        sections.append(_failures(swept))
    sections.append(_repeat(swept))
    return Page(
        title=swept.grid.title,
        lead=_lead(swept),
        blocks=tuple(_first_blocks(swept)),
        sections=tuple(sections),
        footer=f"toptune {version('toptune')}",
    )


def _lead(swept: SweepResult) -> str:
    if not swept.done:
        return f"All runs of this sweep over {swept.devices.name} failed."
    scored = Counts.of(swept.done[0].metrics or {}).scored
    return (
        f"{len(swept.done)} runs on {scored} of {swept.devices.name}; every"
        " accuracy was computed on devices that were left out of training."
    )


def _first_blocks(swept: SweepResult) -> Iterator[Block]:
    facts = [Fact(name="runs", value=str(len(swept.done)))]
    n_lost = len(swept.outcomes) - len(swept.done)
    if n_lost or swept.failures:
        facts.append(Fact(name="failed", value=str(n_lost or len(swept.failures)), tone="bad"))
    facts += [_best(swept, task, done) for task, done in by_task(swept.done).items()]
    yield Facts(facts=tuple(facts))
    if len(swept.done) > 1:
        yield Note(text=_BEST, level="note")
    if any_random(swept.outcomes):
        yield Note(text=RANDOM_NOTE)
    for warning in warnings_of(swept.done):
        yield Note(text=warning)
    for note in swept.grid.notes:
        yield Note(text=note, level="note")
    if swept.notes:
        notes = tuple(Text(text=note) for note in swept.notes)
        yield Details(summary=f"{len(notes)} notes on recordings", blocks=notes)


def _best(swept: SweepResult, task: str, done: Sequence[Outcome]) -> Fact:
    best = max(done, key=lambda outcome: _accuracy(outcome)[0])
    m = best.metrics or {}
    low, high = m["device_accuracy_ci95"]
    view = view_labels(swept.outcomes)[best.view_key]
    label = fit_labels(o.point.fit for o in done)[best.point.fit]
    return Fact(
        name=f"best accuracy per device{f', {task}' if task else ''}",
        value=f"{m['device_accuracy']:.2f}",
        detail=f"95 % interval {low:.2f} to {high:.2f}; chance {m['chance']:.2f}; {view}, {label}",
    )


# --- a task: its classes, and what is left out together


def _task_sections(swept: SweepResult) -> Iterator[Section]:
    done = by_task(swept.done)
    for table in result_tables(swept):
        for title, blocks in _task_blocks(swept, table, done.get(table.task, [])):
            whole = f"{title}: {table.task}" if table.task else title
            yield Section(title=whole, blocks=tuple(blocks))


def _task_blocks(
    swept: SweepResult, table: ResultTable, mine: Sequence[Outcome]
) -> Iterator[tuple[str, Iterable[Block]]]:
    notes = (_quiet(note) for note in table.notes if note != RANDOM_NOTE)
    yield "Accuracies", (_shown_table(table), *_beside_best(swept, mine), *notes)
    if not mine:
        return
    maps = tuple(_heat_maps(mine))
    if maps:
        explained = (
            "Accuracy per device, from white (chance or below) to the darkest colour (all devices"
            " correct)."
        )
        yield "Pictures and windows", (_quiet(explained), Columns(blocks=maps))
    yield "Comparison of classifiers", (_classifiers(mine),)
    yield "Accuracy against throughput", _throughput(mine)


def _beside_best(swept: SweepResult, mine: Sequence[Outcome]) -> tuple[Text, ...]:
    """Say which runs of a task differ detectably from the best one, device by device."""
    if len(mine) < 2:
        return ()
    try:
        verdicts = [
            read_verdicts(swept.path / "runs" / o.name, (o.metrics or {})["classes"]) for o in mine
        ]
    except InputError:  # a run was removed meanwhile
        return ()
    best = max(range(len(mine)), key=lambda k: _accuracy(mine[k])[0])
    pairs = [compare_verdicts(verdicts[best], v) for k, v in enumerate(verdicts) if k != best]
    adjusted = false_discovery_control([pair.p for pair in pairs])
    n_apart, n = int((adjusted <= DETECTABLE_P).sum()), len(pairs)
    test = "sign test over devices" if pairs[0].in_pairs else "exact McNemar test"
    tested = f"{test}{f', adjusted for {n} comparisons' if n > 1 else ''}"
    if not n_apart:
        smallest = f"{'smallest ' if n > 1 else ''}p = {p_value_text(float(adjusted.min()))}"
        other = "the other run" if n == 1 else f"any of the {n} other runs"
        text = f"No detectable difference between the best run and {other} ({tested}, {smallest})."
    else:
        text = (
            f"Of {count(n, 'other run')}, {n_apart} classified fewer devices correctly than the"
            f" best one ({tested}, p up to {DETECTABLE_P:g}); no detectable difference between the"
            f" best one and the {n - n_apart} others."
            if n_apart < n
            else f"Each other run classified fewer devices correctly than the best one ({tested},"
            f" p up to {DETECTABLE_P:g})."
        )
    return (Text(text=text),)


def _quiet(text: str) -> Text:
    return Text(text=text, quiet=True)


def _shown_table(table: ResultTable) -> Table:
    return Table(
        caption=table.caption,
        header=table.header,
        rows=tuple(tuple(_toned(cell) for cell in row) for row in table.rows),
        numeric=tuple(range(table.n_names, len(table.header))),
    )


def _toned(cell: str) -> str | Cell:
    if cell == "failed" or cell.startswith("RANDOM"):
        return Cell(text=cell, tone="bad")
    return cell


def _heat_maps(done: Sequence[Outcome]) -> Iterator[HeatMap]:
    """Give a map for each classifier, backbone and stride with several pictures or windows."""
    labels = fit_labels(o.point.fit for o in done)
    maps: dict[tuple[str, str, str], list[PictureOutcome]] = {}
    for one in picture_outcomes(done):
        network = f"{one.view.backbone.name} {weights_text(one.facts)}"
        stride = f"every {one.view.windows.stride_s:g} s"
        maps.setdefault((labels[one.fit], network, stride), []).append(one)
    # A caption names only what differs between the maps.
    differs = [len({names[k] for names in maps}) > 1 for k in range(3)]
    for names, mine in maps.items():
        if len({(one.view.picture, one.view.windows) for one in mine}) > 1:
            parts = [name for name, wanted in zip(names, differs, strict=True) if wanted]
            yield _heat_map(", ".join(parts) or names[0], mine)


def _heat_map(what: str, mine: Sequence[PictureOutcome]) -> HeatMap:
    rows = list(dict.fromkeys(describe_picture(one.view) for one in mine))
    columns = sorted({one.view.windows.width_s for one in mine}, reverse=True)
    at = {(describe_picture(one.view), one.view.windows.width_s): one.outcome for one in mine}
    return HeatMap(
        caption=what,
        rows=tuple(rows),
        columns=tuple(f"{width:g} s" for width in columns),
        cells=tuple(tuple(_shade(at.get((row, width))) for width in columns) for row in rows),
        row_title="picture",
        column_title="window",
    )


def _shade(outcome: Outcome | None) -> Shade:
    if outcome is None:
        return Shade(text="-", share=0.0)
    m = outcome.metrics or {}
    above = (m["device_accuracy"] - m["chance"]) / (1 - m["chance"])
    return Shade(
        text=f"{m['device_accuracy']:.2f}",
        share=max(0.0, above),
        detail=Counts.of(m).right,
    )


def _classifiers(done: Sequence[Outcome]) -> Picture:
    views, fits = view_labels(done), fit_labels(o.point.fit for o in done)
    listed = [f"{views[o.view_key]}, {fits[o.point.fit]}: {_accuracy(o)[0]:.2f}" for o in done]
    return Picture(
        uri=svg_uri(draw_classifiers(done)),
        alt="Accuracy per device: " + "; ".join(listed),
        caption=f"Accuracy per device with its 95 % {_method(done)}; dashed line: chance.",
        width_px=620,
    )


def _throughput(done: Sequence[Outcome]) -> Iterator[Block]:
    shown = picture_outcomes(done)
    measured = {one.facts.key: one.facts.throughput.pictures_per_s for one in shown}
    rates = {key: rate for key, rate in measured.items() if rate}
    if not rates:
        text = "Throughput was not measured, because all features were already in the store."
        yield Text(text=text)
        return
    views = view_labels(done)
    listed = "; ".join(f"{views[key]}: {rate:.0f}" for key, rate in rates.items())
    yield Picture(
        uri=svg_uri(draw_throughput(done)),
        alt=f"Pictures per second: {listed}",
        caption="Filled markers: histograms; hollow markers: other pictures. Bars: 95 %"
        f" {_method(done).replace('interval', 'intervals')}.",
        width_px=620,
    )
    machines = dict.fromkeys(one.facts.throughput.device for one in shown)
    yield _quiet(
        "Throughput is the number of pictures per second that were drawn and turned into features"
        f" during this sweep, on {' and '.join(filter(None, machines))}. Other work on the machine"
        " lowers it."
    )
    n_missing = sum(one.facts.key not in rates for one in shown)
    if n_missing:
        yield _quiet(f"{n_missing} runs are not shown: their features were already in the store.")


# --- diagrams


def view_labels(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Name each view, by the key of its features, with what distinguishes it from the others."""
    views = {one.facts.key: _parts(one) for one in picture_outcomes(outcomes)}
    labels = {}
    for key, parts in views.items():
        differs = [part for n, part in parts.items() if len({p[n] for p in views.values()}) > 1]
        labels[key] = " ".join(filter(None, differs)) or f"{parts['picture']} {parts['window']}"
    if any(o.point.view is None for o in outcomes):
        labels[""] = WITHOUT_PICTURES
    return labels


def _parts(one: PictureOutcome) -> dict[str, str]:
    return {
        "backbone": one.view.backbone.name,
        "weights": "random" if one.facts.is_random else "",
        "picture": describe_picture(one.view),
        "window": f"{one.view.windows.width_s:g} s",
        "stride": f"every {one.view.windows.stride_s:g} s",
    }


def draw_classifiers(outcomes: Sequence[Outcome]) -> Figure:
    """Draw device accuracy with its interval: a row for each view, a marker for each classifier.

    The outcomes are those of one task, each with scores.
    """
    from toptune.machine.drawing import new_figure

    labels = view_labels(outcomes)
    of = fit_labels(o.point.fit for o in outcomes)
    fits = list(dict.fromkeys(of.values()))
    step = 0.8 / len(fits)
    # Each classifier needs the height of a line.
    height = 1.3 + len(labels) * max(0.3, 0.16 * len(fits)) + 0.2 * len(fits)
    figure = new_figure(_WIDTH_IN, height)
    axes = figure.add_subplot()
    rows = {key: row for row, key in enumerate(labels)}
    for k, fit in enumerate(fits):
        mine = [o for o in outcomes if of[o.point.fit] == fit]
        y = [rows[o.view_key] + (k - (len(fits) - 1) / 2) * step for o in mine]
        shares = [_accuracy(o) for o in mine]
        error = [[s - low for s, low, _ in shares], [high - s for s, _, high in shares]]
        axes.errorbar(
            [share for share, _, _ in shares],
            y,
            xerr=error,
            fmt=_MARKERS[k % len(_MARKERS)],
            color=_COLOURS[k % len(_COLOURS)],
            ms=5,
            elinewidth=1,
            label=fit,
        )
    _chance(axes.axvline, outcomes)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(labels) - 0.5, -0.5), xlabel="accuracy per device")
    axes.set_yticks(range(len(labels)), list(labels.values()), fontsize=9)
    _plain_frame(axes, "x")
    figure.legend(loc="outside upper center", ncols=1 + (len(fits) < 3), fontsize=9, frameon=False)
    return figure


def draw_throughput(outcomes: Sequence[Outcome]) -> Figure:
    """Draw device accuracy against pictures per second.

    The outcomes are those of one task, each with scores; those without pictures are horizontal
    lines.
    """
    from toptune.machine.drawing import new_figure

    measured = [one for one in picture_outcomes(outcomes) if one.facts.throughput.pictures_per_s]
    names = list(dict.fromkeys(_network(one) for one in measured))
    of = fit_labels(one.fit for one in measured)
    fits = list(dict.fromkeys(of.values()))
    without = [o for o in outcomes if o.point.view is None]
    entries = len(names) + len(without) + (len(fits) if len(fits) > 1 else 0)
    figure = new_figure(_WIDTH_IN, 3.9 + 0.1 * entries)
    axes = figure.add_subplot()
    for one in measured:
        colour = _COLOURS[names.index(_network(one)) % len(_COLOURS)]
        share, low, high = _accuracy(one.outcome)
        axes.errorbar(
            one.facts.throughput.pictures_per_s or 1.0,
            share,
            yerr=[[share - low], [high - share]],
            fmt=_MARKERS[fits.index(of[one.fit]) % len(_MARKERS)],
            color=colour,
            ms=6,
            elinewidth=0.7,
            mfc=colour if one.view.picture.kind == "histogram" else "white",
        )
    for name in names:
        axes.plot([], [], "o", color=_COLOURS[names.index(name) % len(_COLOURS)], label=name)
    for k, label in enumerate(fits if len(fits) > 1 else ()):
        axes.plot([], [], _MARKERS[k % len(_MARKERS)], color=_INK, label=label)
    for outcome in without:
        share = _accuracy(outcome)[0]
        axes.axhline(share, color=_INK, lw=1, ls=":", label=f"{WITHOUT_PICTURES}: {share:.2f}")
    _chance(axes.axhline, outcomes)
    axes.set(
        xscale="log", ylim=(-0.03, 1.03), xlabel="pictures per second", ylabel="accuracy per device"
    )
    _plain_log_ticks(axes, [one.facts.throughput.pictures_per_s or 1.0 for one in measured])
    _plain_frame(axes, "both")
    figure.legend(loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    return figure


def _network(one: PictureOutcome) -> str:
    random = " (random weights)" if one.facts.is_random else ""
    return f"{one.view.backbone.name}{random}"


def _method(outcomes: Sequence[Outcome]) -> str:
    """Name the intervals of outcomes with scores, all of one task."""
    return Counts.of(outcomes[0].metrics or {}).method


def _accuracy(outcome: Outcome) -> tuple[float, float, float]:
    """Device accuracy and its interval."""
    assert outcome.metrics is not None
    low, high = outcome.metrics["device_accuracy_ci95"]
    return outcome.metrics["device_accuracy"], low, high


def _chance(line: Callable[..., Any], outcomes: Sequence[Outcome]) -> None:
    assert outcomes[0].metrics is not None
    chance = outcomes[0].metrics["chance"]
    label = f"chance (most common class): {chance:.2f}"
    line(chance, color=_INK, lw=1, ls=(0, (4, 3)), label=label)


def _plain_log_ticks(axes: Axes, rates: Sequence[float]) -> None:
    """Label the axis at 1, 2 and 5 of each decade, around the measured rates."""
    from toptune.machine.drawing import FuncFormatter, LogLocator, NullFormatter

    axes.set_xlim(min(rates) / 1.5, max(rates) * 1.5)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _plain_frame(axes: Axes, grid: Any) -> None:
    axes.grid(axis=grid, color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


# --- all runs, what failed, how to repeat it


def _run_table(swept: SweepResult) -> Details:
    header = (
        *("run", "accuracy per device", "95 % interval", "accuracy per picture", "chance"),
        *("p-value", "pictures/s", "seconds of fit"),
    )
    rows = []
    for o in swept.done:
        m = o.metrics or {}
        low, high = m["device_accuracy_ci95"]
        p, rate = m["permutation_p"], o.facts and o.facts.throughput.pictures_per_s
        counts = Counts.of(m)
        row = (
            o.name,
            f"{m['device_accuracy']:.3f} ({counts.n_right}/{counts.n_verdicts})",
            f"{low:.2f} to {high:.2f}",
            accuracy_text(m["window_accuracy_mean"], m["window_accuracy_sd"]),
            f"{m['chance']:.2f}",
            "-" if p is None else f"{p:.3f}",
            "-" if rate is None else f"{rate:.0f}",
            f"{m['seconds']:.0f}",
        )
        rows.append(row)
    table = Table(
        caption="Each run is a folder in runs/, with its report, model and parameters.",
        header=header,
        rows=tuple(rows),
        numeric=tuple(range(1, len(header))),
    )
    return Details(summary=f"Table of all {len(rows)} runs", blocks=(table,))


def _failures(swept: SweepResult) -> Section:
    table = Table(
        caption="Also in failures.csv. The same command tries again only what failed.",
        header=("step", "name", "cause"),
        rows=swept.failures,
    )
    return Section(title="Failures", blocks=(table,))


def repeat_command(swept: SweepResult) -> str:
    """Give the command that continues the sweep, or repeats it elsewhere."""
    grid = swept.grid
    file = Path(grid.where)
    return shlex.join([
        *("toptune", "sweep", str(swept.devices.resolve())),
        str(file.resolve()) if file.is_file() else grid.where,
        *option_words(set=list(grid.settings), seed=swept.seed),
        *command_words(options_of(Compute), {"device": swept.device}),
        *("-o", str(swept.path.resolve())),
    ])  # fmt: skip


def _repeat(swept: SweepResult) -> Section:
    return Section(
        title="How to repeat this sweep",
        blocks=(
            Code(text=repeat_command(swept)),
            _quiet(
                "Spikes, features and runs that exist for the same data and settings are reused;"
                " everything else is computed."
            ),
            Details(summary=f"Grid {swept.grid.name}", blocks=(Code(text=swept.grid.text),)),
        ),
    )
