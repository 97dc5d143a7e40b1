"""The comparison of a run with other runs, as a section of a report.

It has a table of all scores, a diagram of the confidence intervals and, for each other run, a
paragraph on which run is better and whether the difference can be told from chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from scipy.stats import binomtest

from toptune.machine.drawing import Figure
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
    # Devices that are correct in one run only; of those with several verdicts, devices with more
    # correct ones in that run
    only_first: int
    only_second: int
    in_pairs: bool  # devices have several verdicts
    # Exact McNemar test: the probability of a split of those devices that is at least as unequal,
    # if both runs were equally good (McNemar 1947, Psychometrika 12:153-157; the binomial form).
    # Verdicts of one device are not independent, so where there are several this is the sign test
    # over devices (Dixon & Mood 1946, J. Am. Stat. Assoc. 41:557-566). 1 where no device differs.
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
    more: Counter[str] = Counter()
    for device, label in shared:
        more[device] += correct[0][device, label] - correct[1][device, label]
    only_first = sum(difference > 0 for difference in more.values())
    only_second = sum(difference < 0 for difference in more.values())
    differ = only_first + only_second
    p = float(binomtest(only_first, differ).pvalue) if differ else 1.0
    return Paired(len(shared), only_first, only_second, len(more) < len(shared), p)


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
    return Text(text=f"{name}: {run.classifier}. Features: {run.features}.", quiet=True)


def _table(runs: Sequence[ReadRun], names: Sequence[str]) -> Table:
    best = max(run.metrics["device_accuracy"] for run in runs)
    rows = []
    for run, name in zip(runs, names, strict=True):
        m = run.metrics
        accuracy, p = m["device_accuracy"], m["permutation_p"]
        correct = f"{run.counts.right} = {percent(accuracy)}"
        cells = (
            Cell(text=correct, tone="strong" if accuracy == best else "plain"),
            *(interval(*m["device_accuracy_ci95"]), percent(m["window_accuracy_mean"])),
            *(f"{m['macro_f1']:.2f}", percent(m["chance"])),
            *("-" if p is None else p_value_text(p), percent(m["device_ece"])),
        )
        rows.append((name, *cells))
    in_pairs = any(run.counts.in_pairs for run in runs)
    correct_of = "verdicts correct" if in_pairs else "devices correct"
    return Table(
        caption="Accuracy on devices that were left out of training; the highest is in bold",
        header=(
            *("run", correct_of, "95 % interval", "windows correct", "macro F1", "chance"),
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
        caption="Share of devices classified correctly with its 95\u202f%"
        f" {runs[0].counts.method}; dotted lines: chance.",
        width_px=640,
    )


def _verdict(first: ReadRun, second: ReadRun, name: str, other: str) -> Iterator[Block]:
    """Say which of two runs is better, and whether the difference can be told from chance."""
    pair = compare(first, second)
    whole = len(first.verdicts) == len(second.verdicts) == pair.n_shared
    if not whole:
        shared = f"{pair.n_shared} {'verdicts' if pair.in_pairs else 'devices'}"
        yield Note(
            text=f"{name} and {other} were not scored on the same devices and classes: {shared} are"
            f" in both runs, of {len(first.verdicts)} and {len(second.verdicts)}. Their scores"
            " cannot be compared directly."
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
    yield Text(text=f"{better} {intervals} {_difference(pair, name, other)}")


def _difference(pair: Paired, name: str, other: str) -> str:
    """Say on which devices two runs differ."""
    if pair.only_first + pair.only_second == 0:
        if pair.in_pairs:
            return "Both have as many correct verdicts on each device."
        return "Both classify the same devices correctly."
    what, test = "Devices classified correctly by one run only", "exact McNemar test"
    if pair.in_pairs:
        what, test = "Devices with more correct verdicts in one run", "sign test over devices"
    chance = "cannot be told from chance" if pair.p > 0.05 else "is unlikely to be chance"
    return (
        f"{what}: {pair.only_first} by {name}, {pair.only_second} by {other}. This difference"
        f" {chance} ({test}, p = {p_value_text(pair.p)})."
    )
