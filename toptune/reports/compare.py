"""The comparison of a run with other runs, as a section of a report.

It has a table of all scores, a diagram of the confidence intervals and, for each other run, a
paragraph on whether a difference is detectable on the devices that both classified.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from scipy.stats import binomtest

from toptune.evaluation.scores import Verdict
from toptune.machine.display import count, one_or
from toptune.machine.drawing import new_figure
from toptune.reports.page import (
    BLUE,
    GREY,
    ORANGE,
    Block,
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

#: Up to this p-value a difference between runs is called detectable.
DETECTABLE_P = 0.05


class Paired(NamedTuple):
    """How two runs differ on the devices that both classified."""

    n_shared: int  # devices (and labels) in both runs
    n_right: tuple[int, int]  # of them, correct in the first and in the second run
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
    return compare_verdicts(first.verdicts, second.verdicts)


def compare_verdicts(first: Iterable[Verdict], second: Iterable[Verdict]) -> Paired:
    """Compare two runs by their verdicts; see `compare`."""
    correct = [
        {(v.device, v.label): v.prediction == v.label for v in verdicts}
        for verdicts in (first, second)
    ]
    shared = correct[0].keys() & correct[1].keys()
    more: Counter[str] = Counter()
    for device, label in shared:
        more[device] += correct[0][device, label] - correct[1][device, label]
    only_first = sum(difference > 0 for difference in more.values())
    only_second = sum(difference < 0 for difference in more.values())
    differ = only_first + only_second
    p = float(binomtest(only_first, differ).pvalue) if differ else 1.0
    n_right = tuple(sum(one[key] for key in shared) for one in correct)
    return Paired(
        len(shared), (n_right[0], n_right[1]), only_first, only_second, len(more) < len(shared), p
    )


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
    rows = []
    for run, name in zip(runs, names, strict=True):
        m = run.metrics
        accuracy, p = m["device_accuracy"], m["permutation_p"]
        cells = (
            f"{run.counts.right} = {percent(accuracy)}",
            *(interval(*m["device_accuracy_ci95"]), percent(m["window_accuracy_mean"])),
            *(f"{m['macro_f1']:.2f}", percent(m["chance"])),
            *("-" if p is None else p_value_text(p), percent(m["device_ece"])),
        )
        rows.append((name, *cells))
    in_pairs = any(run.counts.in_pairs for run in runs)
    correct_of = "verdicts correct" if in_pairs else "devices correct"
    return Table(
        caption="Accuracy on devices that were left out of training",
        header=(
            *("run", correct_of, "95 % interval", "windows correct", "macro F1", "chance"),
            *("p-value", "ECE of devices"),
        ),
        rows=tuple(rows),
        numeric=tuple(range(1, 8)),
    )


def _picture(runs: Sequence[ReadRun], names: Sequence[str]) -> Picture:
    figure = new_figure(6.4, 0.9 + 0.42 * len(runs))
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
    """Say whether two runs differ detectably, and on how many devices they do."""
    pair = compare(first, second)
    whole = len(first.verdicts) == len(second.verdicts) == pair.n_shared
    if not whole:
        shared = count(pair.n_shared, "verdict" if pair.in_pairs else "device")
        shared += one_or(pair.n_shared, " is", " are")
        yield Note(
            text=f"{name} and {other} were not scored on the same devices and classes: {shared} in"
            f" both runs, of {len(first.verdicts)} and {len(second.verdicts)}. Their scores cannot"
            " be compared directly."
        )
    if not pair.n_shared:
        return
    yield Text(text=difference_text(pair, name, other))


def difference_text(pair: Paired, name: str, other: str) -> str:
    """Say in words how two runs differ; that one is better only where chance is unlikely.

    Parameters
    ----------
    pair
        From `compare`.
    name, other
        Of both runs.
    """
    what = "verdict" if pair.in_pairs else "device"
    shared = count(pair.n_shared, what)
    first, second = pair.n_right
    if pair.only_first + pair.only_second == 0:
        same = (
            "both have as many correct verdicts on each device"
            if pair.in_pairs
            else "both classify the same devices correctly"
        )
        return f"No difference between {name} and {other}: {same} ({first} of {shared})."
    test = "sign test over devices" if pair.in_pairs else "exact McNemar test"
    tested = f"{test}, p = {p_value_text(pair.p)}"
    how = "with more correct verdicts in" if pair.in_pairs else "correct only in"
    only = f"{count(pair.only_first, 'device')} {how} {name}, {pair.only_second} in {other}"
    if pair.p > DETECTABLE_P:
        return (
            f"No detectable difference between {name} and {other}: {first} against {second} of"
            f" {shared} classified correctly ({only}; {tested}). A difference that so few devices"
            " do not show is not excluded."
        )
    more, less = (name, other) if pair.only_first > pair.only_second else (other, name)
    most, least = (first, second) if more == name else (second, first)
    return (
        f"{more} classifies more {what}s correctly than {less}: {most} against {least} of {shared}"
        f" ({only}; {tested})."
    )
