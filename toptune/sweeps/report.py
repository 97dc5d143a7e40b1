"""The report of a sweep: one HTML file with its tables, diagrams, failures and command."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from toptune.params import Compute, command_words, options_of
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
    render,
    svg_uri,
)
from toptune.reports.setup import option_words
from toptune.sweeps.plan import describe_picture, describe_task, fit_labels
from toptune.sweeps.plots import draw_classifiers, draw_throughput, view_labels
from toptune.sweeps.results import Outcome, PictureOutcome, SweepResult, picture_outcomes
from toptune.sweeps.tables import (
    RANDOM_NOTE,
    ResultTable,
    accuracy_text,
    any_random,
    result_tables,
    weights_text,
)

_BEST = (
    "The accuracy of the best run is too optimistic, because it was selected on the same devices."
    " Where intervals overlap, it is not shown that one run is better than the other."
)


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
    metrics = swept.done[0].metrics or {}
    return (
        f"{len(swept.done)} runs on {metrics['n_devices']} devices of {swept.devices.name}; every"
        " accuracy was computed on devices that were left out of training."
    )


def _first_blocks(swept: SweepResult) -> Iterator[Block]:
    facts = [Fact(name="runs", value=str(len(swept.done)))]
    n_lost = len(swept.outcomes) - len(swept.done)
    if n_lost or swept.failures:
        facts.append(Fact(name="failed", value=str(n_lost or len(swept.failures)), tone="bad"))
    facts += [_best(swept, task, done) for task, done in _tasks(swept.done).items()]
    yield Facts(facts=tuple(facts))
    if len(swept.done) > 1:
        yield Note(text=_BEST, level="note")
    if any_random(swept.outcomes):
        yield Note(text=RANDOM_NOTE)
    warnings = [w for o in swept.done for w in (o.metrics or {}).get("warnings", [])]
    for warning in dict.fromkeys(warnings):
        yield Note(text=warning)
    for note in swept.grid.notes:
        yield Note(text=note, level="note")
    if swept.notes:
        notes = tuple(Text(text=note) for note in swept.notes)
        yield Details(summary=f"{len(notes)} notes on recordings", blocks=notes)


def _tasks(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Group outcomes by their classes and by what is left out together."""
    tasks: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        tasks.setdefault(describe_task(outcome.point.fit), []).append(outcome)
    return tasks


def _best(swept: SweepResult, task: str, done: Sequence[Outcome]) -> Fact:
    best = max(done, key=_device_accuracy)
    m = best.metrics or {}
    low, high = m["device_accuracy_ci95"]
    view = view_labels(swept.outcomes)[best.view_key]
    label = fit_labels(o.point.fit for o in done)[best.point.fit]
    return Fact(
        name=f"best accuracy per device{f', {task}' if task else ''}",
        value=f"{m['device_accuracy']:.2f}",
        detail=f"95 % interval {low:.2f} to {high:.2f}; chance {m['chance']:.2f}; {view}, {label}",
    )


def _device_accuracy(outcome: Outcome) -> float:
    return float((outcome.metrics or {})["device_accuracy"])


# --- a task: its classes, and what is left out together


def _task_sections(swept: SweepResult) -> Iterator[Section]:
    done = _tasks(swept.done)
    for table in result_tables(swept):
        mine = done.get(table.task, [])
        blocks: list[Block] = [_shown_table(table)]
        blocks += [Text(text=note, quiet=True) for note in table.notes if note != RANDOM_NOTE]
        yield Section(title=_titled("Accuracies", table.task), blocks=tuple(blocks))
        if not mine:
            continue
        maps = tuple(_heat_maps(mine))
        if maps:
            explained = Text(
                text="Accuracy per device, from white (chance or below) to the darkest colour (all"
                " devices correct).",
                quiet=True,
            )
            yield Section(
                title=_titled("Pictures and windows", table.task),
                blocks=(explained, Columns(blocks=maps)),
            )
        yield Section(
            title=_titled("Comparison of classifiers", table.task), blocks=(_classifiers(mine),)
        )
        yield Section(
            title=_titled("Accuracy against throughput", table.task),
            blocks=tuple(_throughput(mine)),
        )


def _titled(what: str, task: str) -> str:
    return f"{what}: {task}" if task else what


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
        detail=f"{round(m['device_accuracy'] * m['n_devices'])} of {m['n_devices']}",
    )


def _classifiers(done: Sequence[Outcome]) -> Picture:
    views, fits = view_labels(done), fit_labels(o.point.fit for o in done)
    accuracies = [
        f"{views[o.view_key]}, {fits[o.point.fit]}: {_device_accuracy(o):.2f}" for o in done
    ]
    return Picture(
        uri=svg_uri(draw_classifiers(done)),
        alt="Accuracy per device: " + "; ".join(accuracies),
        caption="Accuracy per device with its 95 % Wilson interval; dashed line: chance.",
        width_px=620,
    )


def _throughput(done: Sequence[Outcome]) -> Iterator[Block]:
    shown = picture_outcomes(done)
    rates = {
        one.facts.key: one.facts.throughput.pictures_per_s
        for one in shown
        if one.facts.throughput.pictures_per_s
    }
    if not rates:
        yield Text(
            text="Throughput was not measured, because all features were already in the store."
        )
        return
    views = view_labels(done)
    listed = "; ".join(f"{views[key]}: {rate:.0f}" for key, rate in rates.items())
    yield Picture(
        uri=svg_uri(draw_throughput(done)),
        alt=f"Pictures per second: {listed}",
        caption="Filled markers: histograms; hollow markers: raster plots. Bars: 95 % Wilson"
        " intervals.",
        width_px=620,
    )
    machines = dict.fromkeys(one.facts.throughput.device for one in shown)
    yield Text(
        text=(
            "Throughput is the number of pictures per second that were drawn and turned into"
            f" features during this sweep, on {' and '.join(filter(None, machines))}. Other work on"
            " the machine lowers it."
        ),
        quiet=True,
    )
    n_missing = sum(one.facts.key not in rates for one in shown)
    if n_missing:
        yield Text(
            text=f"{n_missing} runs are not shown: their features were already in the store.",
            quiet=True,
        )


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
        n_right = round(m["device_accuracy"] * m["n_devices"])
        rows.append(
            (
                o.name,
                f"{m['device_accuracy']:.3f} ({n_right}/{m['n_devices']})",
                f"{low:.2f} to {high:.2f}",
                accuracy_text(m["window_accuracy_mean"], m["window_accuracy_sd"]),
                f"{m['chance']:.2f}",
                "-" if p is None else f"{p:.3f}",
                "-" if rate is None else f"{rate:.0f}",
                f"{m['seconds']:.0f}",
            )
        )
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
        rows=tuple((f.what, f.name, f.cause) for f in swept.failures),
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
            Text(
                text="Spikes, features and runs that exist for the same data and settings are"
                " reused; everything else is computed.",
                quiet=True,
            ),
            Details(summary=f"Grid {swept.grid.name}", blocks=(Code(text=swept.grid.text),)),
        ),
    )
