"""The comparison of a run with other runs, as a section of a report.

It has a table of all scores, a diagram of the confidence intervals and, for each other run, a
paragraph on which run is better and whether the difference can be told from chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from scipy.stats import binomtest

from toptune.reports.page import (
    BLUE,
    GREY,
    ORANGE,
    Block,
    Cell,
    Note,
    Picture,
    Section,
    Table,
    Text,
    interval,
    p_value_text,
    percent,
    svg_uri,
)
from toptune.runs.reading import ReadRun


class Paired(NamedTuple):
    """How two runs differ on the devices that both classified."""

    n_shared: int  # devices (and labels) in both runs
    only_first: int  # how many of them are correct in one run only
    only_second: int
    # Exact McNemar test: the probability of a split of those devices that is at least as unequal,
    # if both runs were equally good (McNemar 1947, Psychometrika 12:153-157; the binomial form).
    # 1 where no device is correct in one run only.
    p: float


def compare(first: ReadRun, second: ReadRun) -> Paired:
    """Compare the verdicts of two runs device by device.

    Devices whose labels differ, because classes were merged, are not shared.
    """
    correct = [
        {(v.device, v.label): v.prediction == v.label for v in run.verdicts}
        for run in (first, second)
    ]
    shared = correct[0].keys() & correct[1].keys()
    only_first = sum(correct[0][unit] and not correct[1][unit] for unit in shared)
    only_second = sum(correct[1][unit] and not correct[0][unit] for unit in shared)
    differ = only_first + only_second
    p = float(binomtest(only_first, differ).pvalue) if differ else 1.0
    return Paired(len(shared), only_first, only_second, p)


def comparison_section(runs: Sequence[ReadRun]) -> Section:
    """Compare the reported run, the first, with the others; at least two."""
    names = run_names(runs)
    blocks: list[Block] = [_table(runs, names)]
    blocks += [_description(run, name) for run, name in zip(runs, names, strict=True)]
    blocks.append(_picture(runs, names))
    for run, name in zip(runs[1:], names[1:], strict=True):
        blocks += _verdict(runs[0], run, names[0], name)
    return Section(title="Comparison with other runs", blocks=tuple(blocks))


def run_names(runs: Sequence[ReadRun]) -> list[str]:
    """Name runs by their folders, or by whole paths where two folders have the same name."""
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return names
    return [str(Path(run.path)) for run in runs]


def _description(run: ReadRun, name: str) -> Text:
    features = " + ".join(view["name"] for view in run.views)
    return Text(text=f"{name}: {run.classifier}. Features: {features}.", quiet=True)


def _table(runs: Sequence[ReadRun], names: Sequence[str]) -> Table:
    best = max(run.metrics["device_accuracy"] for run in runs)
    rows = []
    for run, name in zip(runs, names, strict=True):
        m = run.metrics
        accuracy, p = m["device_accuracy"], m["permutation_p"]
        correct = f"{run.n_correct} of {m['n_devices']} = {percent(accuracy)}"
        cells = (
            Cell(text=correct, tone="strong" if accuracy == best else "plain"),
            *(interval(*m["device_accuracy_ci95"]), percent(m["window_accuracy_mean"])),
            *(f"{m['macro_f1']:.2f}", percent(m["chance"])),
            *("-" if p is None else p_value_text(p), percent(m["device_ece"])),
        )
        rows.append((name, *cells))
    return Table(
        caption="Accuracy on devices that were left out of training; the highest is in bold",
        header=(
            *("run", "devices correct", "95 % interval", "windows correct", "macro F1", "chance"),
            *("p-value", "ECE of devices"),
        ),
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
    axes.set(
        xlim=(0, 1), ylim=(len(runs) - 0.4, -0.6), xlabel="share of devices classified correctly"
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return Picture(
        uri=svg_uri(figure),
        alt="; ".join(
            f"{name}: {percent(r.metrics['device_accuracy'])},"
            f" {interval(*r.metrics['device_accuracy_ci95'])}"
            for name, r in zip(names, runs, strict=True)
        ),
        caption="Share of devices classified correctly with its 95\u202f% Wilson interval; dotted"
        " lines: chance.",
        width_px=640,
    )


def _verdict(first: ReadRun, second: ReadRun, name: str, other: str) -> Iterator[Block]:
    """Say which of two runs is better, and whether the difference can be told from chance."""
    pair = compare(first, second)
    whole = len(first.verdicts) == len(second.verdicts) == pair.n_shared
    if not whole:
        yield Note(
            text=f"{name} and {other} were not scored on the same devices and classes:"
            f" {pair.n_shared} devices are in both runs, of {len(first.verdicts)} and"
            f" {len(second.verdicts)}. Their scores cannot be compared directly."
        )
    if not pair.n_shared:
        return
    a, b = first.metrics, second.metrics
    more, less = (name, other) if a["device_accuracy"] >= b["device_accuracy"] else (other, name)
    gap = abs(a["device_accuracy"] - b["device_accuracy"])
    better = (
        f"{name} and {other} have the same device accuracy."
        if gap == 0
        else f"{more} has a higher device accuracy than {less}, by {100 * gap:.0f} percentage"
        " points."
    )
    (low_a, high_a), (low_b, high_b) = a["device_accuracy_ci95"], b["device_accuracy_ci95"]
    overlap = low_a <= high_b and low_b <= high_a
    intervals = f"Their 95\u202f% intervals {'overlap' if overlap else 'do not overlap'}."
    if pair.only_first + pair.only_second == 0:
        paired = "Both classify the same devices correctly."
    else:
        chance = "cannot be told from chance" if pair.p > 0.05 else "is unlikely to be chance"
        paired = (
            f"Devices classified correctly by one run only: {pair.only_first} by {name},"
            f" {pair.only_second} by {other}. This difference {chance} (exact McNemar test, p ="
            f" {p_value_text(pair.p)})."
        )
    yield Text(text=f"{better} {intervals} {paired}")
