"""Runs beside each other, and which is better, for a report.

What enters: runs read back, the reported one first. What leaves: a section of a page with their
scores in one table, their intervals in one diagram, and for each other run a sentence on which is
better and whether the difference could be chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from scipy.stats import binomtest

from toptune.reports.page import Block, Cell, Note, Picture, Section, Table, Text, svg_uri
from toptune.reports.scores import BLUE, GREY, ORANGE, interval, p_value_text, percent
from toptune.runs.reading import ReadRun


class Paired(NamedTuple):
    """How two runs differ on the devices that both judged.

    Attributes
    ----------
    n_shared
        Devices (and labels) in both.
    only_first, only_second
        Of them, right in one run only.
    p
        Exact McNemar test: how often as unequal a split of those devices comes by chance
        (McNemar 1947, Psychometrika 12:153-157; the binomial form). 1 where there is none.
    """

    n_shared: int
    only_first: int
    only_second: int
    p: float


def compare(first: ReadRun, second: ReadRun) -> Paired:
    """Compare the verdicts of two runs device by device.

    Parameters
    ----------
    first, second
        The runs; devices with other labels, as where classes are merged, are not shared.
    """
    right = [
        {(v.device, v.label): v.prediction == v.label for v in run.verdicts}
        for run in (first, second)
    ]
    shared = right[0].keys() & right[1].keys()
    only_first = sum(right[0][unit] and not right[1][unit] for unit in shared)
    only_second = sum(right[1][unit] and not right[0][unit] for unit in shared)
    differ = only_first + only_second
    p = float(binomtest(only_first, differ).pvalue) if differ else 1.0
    return Paired(len(shared), only_first, only_second, p)


def beside_section(runs: Sequence[ReadRun]) -> Section:
    """Put runs beside each other.

    Parameters
    ----------
    runs
        The reported run, then the others; two at least.
    """
    names = run_names(runs)
    blocks: list[Block] = [_table(runs, names), _picture(runs, names)]
    for run, name in zip(runs[1:], names[1:], strict=True):
        blocks += _verdict(runs[0], run, names[0], name)
    return Section(title="Beside other runs", blocks=tuple(blocks))


def run_names(runs: Sequence[ReadRun]) -> list[str]:
    """Name runs by their folders, by their whole paths where two have one name."""
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return names
    return [str(Path(run.path)) for run in runs]


def _saw(run: ReadRun) -> str:
    return f"{run.metrics['head']} on {' + '.join(view['name'] for view in run.views)}"


def _table(runs: Sequence[ReadRun], names: Sequence[str]) -> Table:
    best = max(run.metrics["device_accuracy"] for run in runs)
    rows = []
    for run, name in zip(runs, names, strict=True):
        m = run.metrics
        leads = m["device_accuracy"] == best
        rows.append(
            (
                name,
                Cell(
                    text=f"{run.n_right} of {m['n_devices']} = {percent(m['device_accuracy'])}",
                    tone="strong" if leads else "plain",
                ),
                interval(*m["device_accuracy_ci95"]),
                percent(m["window_accuracy_mean"]),
                f"{m['macro_f1']:.2f}",
                percent(m["chance"]),
                "-" if m["permutation_p"] is None else p_value_text(m["permutation_p"]),
                percent(m["device_ece"]),
                _saw(run),
            )
        )
    return Table(
        caption="The best share of devices is in bold; each run left its devices out of training",
        header=("run", "devices", "95 %", "windows", "macro F1", "chance", "p", "ECE", "what"),
        rows=tuple(rows),
        numeric=tuple(range(1, 8)),
    )


def _picture(runs: Sequence[ReadRun], names: Sequence[str]) -> Picture:
    figure = Figure(figsize=(6.4, 0.9 + 0.42 * len(runs)), layout="constrained")
    axes = figure.add_subplot()
    for row, run in enumerate(runs):
        m = run.metrics
        low, high = m["device_accuracy_ci95"]
        colour, marker = (BLUE, "o") if row == 0 else (ORANGE, "s")
        axes.plot([low, high], [row, row], color=colour, lw=2.2, solid_capstyle="butt")
        axes.plot(m["device_accuracy"], row, marker, color=colour, ms=8)
        axes.plot([m["chance"]] * 2, [row - 0.35, row + 0.35], color=GREY, lw=1.4, ls=":")
    axes.set_yticks(range(len(runs)), names)
    axes.set(xlim=(0, 1), ylim=(len(runs) - 0.4, -0.6), xlabel="share of devices right")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return Picture(
        uri=svg_uri(figure),
        alt="; ".join(
            f"{name}: {percent(r.metrics['device_accuracy'])},"
            f" {interval(*r.metrics['device_accuracy_ci95'])}"
            for name, r in zip(names, runs, strict=True)
        ),
        caption="Share of devices right with its 95 % Wilson interval; dotted: chance.",
        width_px=640,
    )


def _verdict(first: ReadRun, second: ReadRun, name: str, other: str) -> Iterator[Block]:
    """Say which of two runs is better, and whether that could be chance."""
    pair = compare(first, second)
    whole = len(first.verdicts) == len(second.verdicts) == pair.n_shared
    if not whole:
        yield Note(
            text=f"{name} and {other} were not scored on the same devices and classes: they share"
            f" {pair.n_shared}, of {len(first.verdicts)} and {len(second.verdicts)}. Their scores"
            " are answers to different questions."
        )
    if not pair.n_shared:
        return
    a, b = first.metrics, second.metrics
    more, less = (name, other) if a["device_accuracy"] >= b["device_accuracy"] else (other, name)
    gap = abs(a["device_accuracy"] - b["device_accuracy"])
    better = (
        f"{name} and {other} have the same share of devices right."
        if gap == 0
        else f"{more} is better than {less}: {100 * gap:.0f} points more devices right."
    )
    (low_a, high_a), (low_b, high_b) = a["device_accuracy_ci95"], b["device_accuracy_ci95"]
    overlap = low_a <= high_b and low_b <= high_a
    intervals = f"Their 95 % intervals {'overlap' if overlap else 'do not overlap'}."
    if pair.only_first + pair.only_second == 0:
        paired = "Device by device they are right on the same ones."
    else:
        chance = "could well be chance" if pair.p > 0.05 else "is hardly chance"
        paired = (
            f"Device by device, {name} alone is right on {pair.only_first}, {other} alone on"
            f" {pair.only_second}: that {chance} (exact McNemar test, p = {p_value_text(pair.p)})."
        )
    yield Text(text=f"{better} {intervals} {paired}")
