"""The scores of a run, and what they mean, for a report.

What enters: a run read back. What leaves: sentences, tables, confusion matrices and a diagram of
calibration, as blocks of a page.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from toptune.evaluation.reliability import Reliability
from toptune.reports.page import (
    Block,
    Columns,
    Fact,
    Facts,
    HeatMap,
    Note,
    Picture,
    Section,
    Shade,
    Table,
    Text,
    svg_uri,
)
from toptune.runs.reading import ReadRun

# Okabe and Ito's colours, as on the page.
BLUE, ORANGE, GREY = "#0067a3", "#b84300", "#5a626b"
# Stated and true shares nearer than this are called the same.
_HONEST = 0.05
# A narrow space at which no line breaks.
_NARROW = "\u202f"


def percent(share: float) -> str:
    """Write a share as people read it: whole per cent."""
    return f"{100 * share:.0f}{_NARROW}%"


def interval(low: float, high: float) -> str:
    """Write an interval of shares."""
    return f"{100 * low:.0f} to {100 * high:.0f}{_NARROW}%"


def p_value_text(p: float) -> str:
    """Write a p-value with as many digits as it deserves."""
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def verdict_sentence(run: ReadRun) -> str:
    """Say in a sentence how good a run is, and whether that is more than chance."""
    m = run.metrics
    low, high = m["device_accuracy_ci95"]
    right = (
        f"{run.n_right} of {m['n_devices']} devices were recognised by models that had never seen"
        f" them ({percent(m['device_accuracy'])}; 95{_NARROW}% interval {interval(low, high)})."
    )
    chance = f"Naming the commonest class every time would get {percent(m['chance'])}"
    if low > m["chance"]:
        return f"{right} {chance}: this is clearly more."
    if high < m["chance"]:
        return f"{right} {chance}: this is LESS, so something is wrong with the data or the split."
    return f"{right} {chance}, which lies inside the interval: nothing has been shown."


def warnings_of(run: ReadRun) -> tuple[Note, ...]:
    """List what speaks against trusting a run, the gravest first."""
    m = run.metrics
    notes = []
    random = [view["name"] for view in run.views if _weights(view) == "random"]
    if random:
        notes.append(
            "The backbone has seeded RANDOM weights, not ImageNet's: this run shows that everything"
            f" works, not how good the method is. ({'; '.join(random)})"
        )
    notes += [f"{text[:1].upper()}{text[1:]}." for text in m.get("warnings", ())]
    test = m["permutations"]
    if test is not None and test["note"]:
        notes.append(f"The permutation test cannot say much: {test['note']}.")
    elif test is not None and test["smallest_p"] > 0.05:
        notes.append(
            f"With so few devices no p below {p_value_text(test['smallest_p'])} is possible."
        )
    for name, members in run.params["merge"].items():
        notes.append(
            f"The classes {', '.join(members)} were merged into {name} before training: an easier"
            " task, not to be compared with scores of all classes."
        )
    lost = run.params["features"].get("too_short", [])
    if lost:
        notes.append(f"Shorter than a window, and left out: {', '.join(lost)}.")
    if m["n_windows_without_partner"]:
        notes.append(
            f"{m['n_windows_without_partner']} windows have no partner in the other feature sets"
            " and were left out."
        )
    return tuple(Note(text=text.replace("..", ".")) for text in notes)


def _weights(view: dict[str, Any]) -> str | None:
    weights: str | None = view["params"].get("backbone", {}).get("weights")
    return weights


def headline(run: ReadRun) -> Facts:
    """Pick the figures to see first."""
    m = run.metrics
    low, high = m["device_accuracy_ci95"]
    test = m["permutations"]
    beyond = low > m["chance"]
    facts = [
        Fact(
            name="Devices recognised",
            value=f"{run.n_right} of {m['n_devices']}",
            detail=f"{percent(m['device_accuracy'])}, 95{_NARROW}% interval {interval(low, high)}",
            tone="good" if beyond else "bad",
        ),
        Fact(
            name="Windows recognised" if _has_windows(run) else "Recordings recognised",
            value=percent(m["window_accuracy_mean"]),
            detail=f"\u00b1 {percent(m['window_accuracy_sd'])}, SD over {m['n_groups']}"
            f" {run.params['group_by']}s left out",
        ),
        Fact(
            name="By chance",
            value=percent(m["chance"]),
            detail=f"always naming the commonest of {len(run.classes)} classes",
        ),
        Fact(
            name="Could it be luck?",
            value="not tested" if test is None else f"p = {p_value_text(m['permutation_p'])}",
            detail="no permutation test was made" if test is None else _test_detail(test),
        ),
        Fact(
            name="Stated probabilities are off by",
            value=percent(m["window_ece"]),
            detail=f"of windows, {'calibrated' if m['calibrated'] else 'NOT calibrated'};"
            f" of devices {percent(m['device_ece'])}",
        ),
    ]
    return Facts(facts=tuple(facts))


def _has_windows(run: ReadRun) -> bool:
    """Whether a row of the head is a window, and not a whole recording."""
    return any(view["params"].get("windows") for view in run.views)


def _test_detail(test: dict[str, Any]) -> str:
    how = f"all {test['n']:,}" if test["exact"] else f"{test['n']:,}"
    again = "tuned anew each time" if "anew" in test["parameters"] else "nothing to tune"
    return f"{how} shuffles of the devices' labels, {again}"


def scores_section(run: ReadRun) -> Section:
    """All scores in a table, with what each is."""
    m = run.metrics
    low, high = m["device_accuracy_ci95"]
    rows = (
        (
            "Device accuracy",
            f"{m['device_accuracy']:.3f}",
            f"{m['chance']:.3f}",
            f"each device's windows vote; 95 % Wilson interval {low:.3f} to {high:.3f}",
        ),
        (
            "Balanced accuracy, devices",
            f"{m['balanced_accuracy']:.3f}",
            f"{m['chance_balanced']:.3f}",
            "mean over classes, so that a large class counts no more than a small one",
        ),
        ("Macro F1, devices", f"{m['macro_f1']:.3f}", "", "does not forgive a class never found"),
        (
            "Window accuracy",
            f"{m['window_accuracy_mean']:.3f} \u00b1 {m['window_accuracy_sd']:.3f}",
            f"{m['chance']:.3f}",
            "mean \u00b1 SD over what was left out together",
        ),
        (
            "Balanced accuracy, windows",
            f"{m['window_balanced_accuracy']:.3f}",
            f"{m['chance_balanced']:.3f}",
            "all windows count once",
        ),
        ("Macro F1, windows", f"{m['window_macro_f1']:.3f}", "", ""),
        (
            "Brier score, devices; windows",
            f"{m['device_brier']:.3f}; {m['window_brier']:.3f}",
            f"{1 - 1 / len(run.classes):.3f}",
            "error of the probabilities; smaller is better",
        ),
        (
            "Permutation p",
            "-" if m["permutation_p"] is None else f"{m['permutation_p']:.4f}",
            "",
            _permutation_text(m["permutations"]),
        ),
    )
    table = Table(
        caption="Every score is of devices that were left out of training",
        header=("score", "here", "by chance", "what it is"),
        rows=rows,
        numeric=(1, 2),
    )
    return Section(title="Scores", blocks=(table, *_tuning_blocks(run)))


def _permutation_text(test: dict[str, Any] | None) -> str:
    if test is None:
        return "not tested: --permutations N of toptune fit does"
    return (
        f"share of {test['n']:,} shuffles of the devices' labels that do as well; parameters"
        f" {test['parameters']}"
    )


def _tuning_blocks(run: ReadRun) -> tuple[Block, ...]:
    """Tell what tuning chose and what it cost."""
    tuning = run.metrics["tuning"]
    seconds = f"The whole fit took {run.metrics['seconds']:.1f} s."
    if tuning is None:
        return (Text(text=f"Nothing was tuned: one setting of the head. {seconds}"),)
    leaky = tuning["had_the_choice_seen_all_devices"]["device_accuracy"]
    names = [name for name in tuning["chosen"][0] if name != "folds"]
    rows = tuple((str(c["folds"]), *(_value(c[name]) for name in names)) for c in tuning["chosen"])
    gain = leaky - run.metrics["device_accuracy"]
    cost = (
        f"had the choice been made on all devices, the same run would read {leaky:.3f}: that"
        f" mistake is worth {100 * gain:+.0f} points here"
    )
    return (
        Text(
            text=f"{tuning['n_candidates']} settings were tried inside every fold, without the"
            f" devices left out; {cost}. {seconds}"
        ),
        Table(
            caption="What the folds chose; the model of all devices has "
            + ", ".join(f"{k} {_value(v)}" for k, v in tuning["final"].items()),
            header=("folds", *names),
            rows=rows,
            numeric=tuple(range(len(names) + 1)),
        ),
    )


def _value(value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def confusion_section(run: ReadRun) -> Section:
    """Show what is taken for what: devices and windows."""
    blocks: tuple[Block, ...] = (
        Text(
            text="A row is what the devices are, a column what they were taken for; the framed"
            " diagonal is right. Percentages are shares of a row."
        ),
        Columns(
            blocks=(
                confusion_map(device_confusion(run), run.classes, "Devices"),
                confusion_map(run.scores.window_confusion, run.classes, "Windows"),
            )
        ),
        *_commonest_mistake(run),
    )
    return Section(title="What is taken for what", blocks=blocks)


def device_confusion(run: ReadRun) -> NDArray[np.int64]:
    """Count the verdicts, (k, k) int64: rows are labels, columns predictions."""
    counts = np.zeros((len(run.classes),) * 2, dtype=np.int64)
    for v in run.verdicts:
        counts[run.classes.index(v.label), run.classes.index(v.prediction)] += 1
    return counts


def confusion_map(counts: NDArray[np.int64], classes: tuple[str, ...], unit: str) -> HeatMap:
    """Write a confusion matrix as a heat map of each row's shares.

    Parameters
    ----------
    counts : (k, k) int64
        Rows are labels, columns predictions.
    classes : tuple of str
    unit : str
        What was counted.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cells = tuple(
        tuple(
            Shade(
                text=str(n) if n else "",
                share=float(shares[i, j]),
                detail=percent(float(shares[i, j])) if n else "",
                marked=i == j,
            )
            for j, n in enumerate(row)
        )
        for i, row in enumerate(counts.tolist())
    )
    return HeatMap(
        caption=f"{unit}: {np.trace(counts)} of {counts.sum()} right",
        rows=classes,
        columns=classes,
        cells=cells,
        row_title="true",
        column_title="taken for",
    )


def _commonest_mistake(run: ReadRun) -> tuple[Text, ...]:
    wrong = device_confusion(run)
    np.fill_diagonal(wrong, 0)
    if not wrong.any():
        return ()
    i, j = np.unravel_index(wrong.argmax(), wrong.shape)
    n_class = sum(v.label == run.classes[i] for v in run.verdicts)
    return (
        Text(
            text=f"The commonest mistake: {wrong[i, j]} of {n_class} {run.classes[i]} devices are"
            f" taken for {run.classes[j]}."
        ),
    )


def calibration_section(run: ReadRun) -> Section:
    """Whether probabilities mean what they say."""
    table = run.scores.window_reliability
    filled = table.count > 0
    stated = float(table.share[filled] @ table.confidence[filled])
    true = float(table.share[filled] @ table.accuracy[filled])
    if abs(stated - true) <= _HONEST:
        judged = "on the whole its probabilities can be taken at their word"
    elif stated > true:
        judged = "it is surer than it should be"
    else:
        judged = "it is more often right than it says"
    figure = Picture(
        uri=svg_uri(_draw_reliability(table)),
        alt="Reliability diagram: "
        + "; ".join(
            f"stated {percent(c)}, right {percent(a)}"
            for c, a in zip(table.confidence[filled], table.accuracy[filled], strict=True)
        ),
        caption="Windows by the probability of the class they are taken for. On the diagonal,"
        " stated probability and share of right windows agree; below it, the head is too sure."
        " Bars and the size of the dots: how many windows there are.",
        width_px=460,
    )
    text = Text(
        text=f"Of the class it names, the head states a probability of {percent(stated)} on"
        f" average, and is right in {percent(true)} of windows (every device counting once):"
        f" {judged}."
    )
    return Section(title="Can its probabilities be believed?", blocks=(text, figure))


def _draw_reliability(table: Reliability) -> Figure:
    figure = Figure(figsize=(4.6, 3.9), layout="constrained")
    axes = figure.add_subplot()
    centre = (table.edges[:-1] + table.edges[1:]) / 2
    width = table.edges[1] - table.edges[0]
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":")
    axes.bar(centre, table.share, width * 0.86, color="#d8dce1")
    filled = table.count > 0
    points = (table.confidence[filled], table.accuracy[filled])
    axes.plot(*points, color=BLUE, lw=1.2)
    # Small where few windows are, whose share of right ones means little.
    axes.scatter(*points, s=12 + 400 * table.share[filled], color=BLUE, zorder=3)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="stated probability", ylabel="share of right windows")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_aspect("equal")
    return figure
