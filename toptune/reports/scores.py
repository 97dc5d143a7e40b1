"""The scores and confusion matrices of a run, and what they mean, as blocks of a report.

The picture of the matrices in a run's folder, confusion.png, is drawn by `toptune.runs.tables`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from toptune.evaluation.scores import Reliability
from toptune.machine.display import count, one_or
from toptune.machine.drawing import Axes, Figure, new_figure
from toptune.reports.page import (
    BLUE,
    GREY,
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
    Tone,
    interval,
    p_value_text,
    percent,
    svg_uri,
)
from toptune.runs.reading import ReadRun

_SIGNIFICANT_P = 0.05
# Mean probability and accuracy that differ by no more than this are called equal.
_WELL_CALIBRATED = 0.05


def verdict_sentence(run: ReadRun) -> str:
    """Say how good a run is, and how much speaks against chance."""
    m, counts = run.metrics, run.counts
    if counts.in_pairs:
        judged = f"{counts.right} are correct, by models trained without these devices"
    else:
        were = one_or(counts.n_verdicts, "was", "were")
        judged = (
            f"{counts.n_right} of {count(counts.n_verdicts, 'device')} {were} classified correctly"
            " by models trained without them"
        )
    correct = f"{judged} ({percent(m['device_accuracy'])}; {_interval_text(run)})."
    chance = f"Always predicting the most common class would be correct for {percent(m['chance'])}"
    return f"{correct} {chance}. {_evidence(run).sentence}"


class _Evidence(NamedTuple):
    """What speaks against chance."""

    sentence: str
    tone: Tone


# Up to which p-value evidence is called what. There is no cliff: 0.04 and 0.06 are neighbours.
_GRADES = ((0.001, "very strong"), (0.01, "strong"), (0.05, "moderate"), (0.1, "weak"))


def _evidence(run: ReadRun) -> _Evidence:
    """Grade how unlikely so many correct verdicts are where the classes cannot be told apart.

    By the permutation test, which repeats everything; without one by the exact binomial test
    against the share of the commonest class. Devices with several verdicts are no binomial sample:
    then only the interval speaks.
    """
    m = run.metrics
    low, high = m["device_accuracy_ci95"]
    devices = count(m["n_devices"], "device")
    if high < m["chance"]:
        return _Evidence(
            "The accuracy is BELOW chance, which points to an error in the data or in what is left"
            " out together.",
            "bad",
        )
    p, test = _p_value(run)
    if p is None:
        if low > m["chance"]:
            return _Evidence("This lies below the interval: the accuracy is above chance.", "good")
        return _Evidence(
            "This lies inside the interval: the result cannot be told from chance with these"
            f" {devices}.",
            "plain",
        )
    tested = f"({test}, p\u00a0=\u00a0{p_value_text(p)}, {devices})"
    grade = next((word for most, word in _GRADES if p <= most), None)
    if grade is None:
        return _Evidence(
            f"The result cannot be told from chance with these {devices} ({test},"
            f" p\u00a0=\u00a0{p_value_text(p)}); that does not show that the classes are alike.",
            "plain",
        )
    more = " More devices are needed to know." if grade == "weak" else ""
    return _Evidence(
        f"This is {grade} evidence that the classes can be told apart {tested}.{more}",
        "good" if p <= _SIGNIFICANT_P else "plain",
    )


def _p_value(run: ReadRun) -> tuple[float | None, str]:
    """Give the p-value of the best test there is, and its name."""
    m, counts = run.metrics, run.counts
    test = m["permutations"]
    if test is not None and not test["note"] and m["permutation_p"] is not None:
        return m["permutation_p"], "permutation test"
    if counts.in_pairs:
        return None, ""
    p = binomtest(counts.n_right, counts.n_verdicts, m["chance"], alternative="greater").pvalue
    return float(p), "exact binomial test"


def _interval_text(run: ReadRun) -> str:
    between = interval(*run.metrics["device_accuracy_ci95"])
    method = " with devices, not verdicts, as independent units" if run.counts.in_pairs else ""
    return f"95\u202f% confidence interval {between}{method}"


def warnings_of(run: ReadRun) -> tuple[Note, ...]:
    """List the reasons not to trust a run, the most serious first."""
    m = run.metrics
    notes = []
    random = [
        view["name"]
        for view in run.views
        if view["params"].get("backbone", {}).get("weights") == "random"
    ]
    if random:
        notes.append(
            "The backbone has RANDOM weights instead of ImageNet weights. This is for testing only:"
            f" the results are meaningless. ({'; '.join(random)})"
        )
    notes += [f"{text[:1].upper()}{text[1:]}." for text in m.get("warnings", ())]
    test = m["permutations"]
    if test is not None and test["note"]:
        notes.append(f"The permutation test is not informative: {test['note']}.")
    elif test is not None and test["smallest_p"] > 0.05:
        notes.append(
            "With so few devices the smallest possible p-value is"
            f" {p_value_text(test['smallest_p'])}."
        )
    for name, members in run.params["merge"].items():
        notes.append(
            f"The classes {', '.join(members)} were merged into {name} before training. This task"
            " is easier, so its scores cannot be compared with scores of all classes."
        )
    lost = run.params["features"].get("too_short", [])
    if lost:
        notes.append(f"Recordings shorter than a window were left out: {', '.join(lost)}.")
    n_lost = m["n_windows_without_partner"]
    if n_lost:
        notes.append(
            f"{count(n_lost, 'window')} {one_or(n_lost, 'was', 'were')} left out because the"
            " other feature sets have no window at the same time."
        )
    return tuple(Note(text=text.replace("..", ".")) for text in notes)


def headline(run: ReadRun) -> Facts:
    """Choose the figures that a reader should see first."""
    m, counts = run.metrics, run.counts
    test = m["permutations"]
    p, shuffles = "not run", "no shuffles of the labels were requested"
    if test is not None:
        p = f"p = {p_value_text(m['permutation_p'])}"
        n = f"all {test['n']:,} possible" if test["exact"] else f"{test['n']:,}"
        shuffles = f"{n} shuffles of the devices' labels, {_tuning_text(test)}"
    facts = (
        Fact(
            name="Verdicts that are correct" if counts.in_pairs else "Devices classified correctly",
            value=f"{run.n_correct} of {counts.n_verdicts}",
            detail=(f"on {count(counts.n_devices, 'device')}; " if counts.in_pairs else "")
            + f"{percent(m['device_accuracy'])}; {_interval_text(run)}",
            tone=_evidence(run).tone,
        ),
        Fact(
            name=f"{run.rows_are.capitalize()} classified correctly",
            value=percent(m["window_accuracy_mean"]),
            detail=f"SD {percent(m['window_accuracy_sd'])} over {m['n_groups']} folds, each leaving"
            f" out one {run.params['group_by']}",
        ),
        Fact(
            name="Chance level",
            value=percent(m["chance"]),
            detail=f"always predicting the most common of {len(run.classes)} classes",
        ),
        Fact(name="Permutation test", value=p, detail=shuffles),
        Fact(
            name="Calibration error (ECE)",
            value=percent(m["window_ece"]),
            detail=f"of {run.rows_are}; of devices {percent(m['device_ece'])}; probabilities"
            f" {'calibrated' if m['calibrated'] else 'NOT calibrated'}",
        ),
    )
    return Facts(facts=facts)


def _tuning_text(test: dict[str, Any]) -> str:
    return "tuning repeated in each" if "anew" in test["parameters"] else "without tuning"


def scores_section(run: ReadRun) -> Section:
    """Show all scores in a table, with what each means."""
    m, units = run.metrics, run.rows_are
    low, high = m["device_accuracy_ci95"]
    of = {name: f"{value:.3f}" for name, value in m.items() if isinstance(value, int | float)}
    of_units = f"{of['window_accuracy_mean']} \u00b1 {of['window_accuracy_sd']}"
    brier = f"{of['device_brier']}; {of['window_brier']}"
    p = "-" if m["permutation_p"] is None else f"{m['permutation_p']:.4f}"
    each = " and label" if run.counts.in_pairs else ""
    vote = (
        f"majority vote of the {units} of each device{each}; 95 % {run.counts.method} {low:.3f} to"
        f" {high:.3f}"
    )
    balanced = "mean of the accuracies of the classes: large and small classes count equally"
    macro = "mean F1 score of the classes; penalises classes that are never predicted"
    together = f"all {units} of all folds together"
    squared = "squared error of the probabilities, summed over the classes; smaller is better"
    table = Table(
        caption="Every score was computed on devices that were left out of training",
        header=("score", "this run", "chance", "meaning"),
        rows=(
            ("Accuracy, devices", of["device_accuracy"], of["chance"], vote),
            (
                "Balanced accuracy, devices",
                of["balanced_accuracy"],
                of["chance_balanced"],
                balanced,
            ),
            ("Macro F1, devices", of["macro_f1"], "", macro),
            (f"Accuracy, {units}", of_units, of["chance"], "mean \u00b1 SD over the folds"),
            (
                *(f"Balanced accuracy, {units}", of["window_balanced_accuracy"]),
                *(of["chance_balanced"], together),
            ),
            (f"Macro F1, {units}", of["window_macro_f1"], "", together),
            (f"Brier score, devices; {units}", brier, f"{1 - 1 / len(run.classes):.3f}", squared),
            ("Permutation p-value", p, "", _permutation_text(m["permutations"])),
        ),
        numeric=(1, 2),
    )
    return Section(title="Scores", blocks=(table, *_compared_blocks(run), *_tuning_blocks(run)))


_SIMPLE = {
    "svm": "a support vector machine (scikit-learn, not tuned)",
    "parameters": "a logistic regression",
}


def _compared_blocks(run: ReadRun) -> tuple[Text, ...]:
    """Say what simple classifiers make of the same devices."""
    found = run.metrics.get("compared_with")
    if not found:
        return ()
    each = [
        f"{_SIMPLE.get(one['name'], one['name'])} is right in {one['n_right']} of"
        f" {one['n_verdicts']} (balanced accuracy {one['balanced_accuracy']:.3f})"
        for one in found
    ]
    return (
        Text(
            text="For comparison, from the 30 burst parameters of each whole recording, leaving out"
            f" the same devices: {'; '.join(each)}. This run is right in {run.counts.right}"
            f" (balanced accuracy {run.metrics['balanced_accuracy']:.3f})."
        ),
    )


def _permutation_text(test: dict[str, Any] | None) -> str:
    if test is None:
        return "no permutation test was requested"
    return (
        f"share of {test['n']:,} shuffles of the devices' labels with a device accuracy at least as"
        f" high; {_tuning_text(test)}"
    )


def _tuning_blocks(run: ReadRun) -> tuple[Block, ...]:
    """Say what tuning chose, and how much choosing on all devices would inflate the accuracy."""
    tuning = run.metrics["tuning"]
    seconds = f"Training and scoring took {run.metrics['seconds']:.1f} s."
    if tuning is None:
        return (Text(text=f"No parameter was tuned. {seconds}"),)
    leaky = tuning["had_the_choice_seen_all_devices"]["device_accuracy"]
    names = [name for name in tuning["chosen"][0] if name != "folds"]
    rows = tuple((str(c["folds"]), *(_value(c[name]) for name in names)) for c in tuning["chosen"])
    gain = leaky - run.metrics["device_accuracy"]
    return (
        Text(
            text=f"Parameters were chosen from {tuning['n_candidates']} settings inside every fold,"
            " without the devices left out. Choosing them on all devices instead would have given a"
            f" device accuracy of {leaky:.3f}, a difference of {100 * gain:+.0f} percentage points"
            f" that is due to the choice alone. {seconds}"
        ),
        Table(
            caption="Parameters chosen by the folds; the model trained on all devices has "
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
    """Show the confusion matrices of devices and of windows, and the most common error."""
    of = "Verdicts" if run.counts.in_pairs else "Devices"
    blocks: tuple[Block, ...] = (
        Text(
            text="Rows: true class; columns: predicted class. Correct predictions lie on the framed"
            " diagonal. Percentages are shares of a row."
        ),
        Columns(
            blocks=(
                confusion_map(run.device_confusion, run.classes, of),
                confusion_map(run.scores.window_confusion, run.classes, run.rows_are.capitalize()),
            )
        ),
        *_most_common_error(run),
    )
    return Section(title="Confusion matrices", blocks=blocks)


def confusion_map(counts: NDArray[np.int64], classes: tuple[str, ...], unit: str) -> HeatMap:
    """Turn counts, (k, k) with a row per true class, into a map coloured by each row's shares."""
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
        caption=f"{unit}: {np.trace(counts)} of {counts.sum()} correct",
        rows=classes,
        columns=classes,
        cells=cells,
        row_title="true class",
        column_title="predicted class",
    )


def _most_common_error(run: ReadRun) -> tuple[Text, ...]:
    wrong = run.device_confusion
    np.fill_diagonal(wrong, 0)
    if not wrong.any():
        return ()
    i, j = np.unravel_index(wrong.argmax(), wrong.shape)
    n_class = sum(v.label == run.classes[i] for v in run.verdicts)
    return (
        Text(
            text=f"The most common error: {wrong[i, j]} of"
            f" {count(n_class, f'{run.classes[i]} device')}"
            f" {one_or(int(wrong[i, j]), 'was', 'were')} classified as {run.classes[j]}."
        ),
    )


def calibration_section(run: ReadRun) -> Section:
    """Compare the predicted probabilities with how often the predictions are correct."""
    table = run.scores.window_reliability
    filled = table.count > 0
    confidence = float(table.share[filled] @ table.confidence[filled])
    accuracy = float(table.share[filled] @ table.accuracy[filled])
    if abs(confidence - accuracy) <= _WELL_CALIBRATED:
        judged = "on average the probabilities agree with the accuracy"
    elif confidence > accuracy:
        judged = "the classifier is overconfident"
    else:
        judged = "the classifier is underconfident"
    figure = Picture(
        uri=svg_uri(_draw_reliability(table, run.rows_are)),
        alt="Reliability diagram: "
        + "; ".join(
            f"predicted probability {percent(c)}, correct {percent(a)}"
            for c, a in zip(table.confidence[filled], table.accuracy[filled], strict=True)
        ),
        caption=f"Reliability diagram: {run.rows_are} grouped by the probability of their predicted"
        " class. On the diagonal this probability equals the share of correct predictions; below"
        " the diagonal the classifier is overconfident. Bars and dot sizes show the share of"
        f" {run.rows_are} in each group.",
        width_px=460,
    )
    text = Text(
        text=f"The mean probability of the predicted class is {percent(confidence)}, and"
        f" {percent(accuracy)} of {run.rows_are} are classified correctly (each device has the same"
        f" weight): {judged}."
    )
    return Section(title="Calibration of the probabilities", blocks=(text, figure))


def _draw_reliability(table: Reliability, rows_are: str) -> Figure:
    figure = new_figure(4.6, 3.9)
    draw_reliability(figure.add_subplot(), table, rows_are)
    return figure


def draw_reliability(axes: Axes, table: Reliability, rows_are: str) -> None:
    """Draw a reliability diagram; `rows_are` is what was predicted: windows or recordings."""
    centre = (table.edges[:-1] + table.edges[1:]) / 2
    width = table.edges[1] - table.edges[0]
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":")
    axes.bar(centre, table.share, width * 0.86, color="#d8dce1")
    filled = table.count > 0
    points = (table.confidence[filled], table.accuracy[filled])
    axes.plot(*points, color=BLUE, lw=1.2)
    # Small where there are few windows, since the share of correct ones is uncertain there.
    axes.scatter(*points, s=12 + 400 * table.share[filled], color=BLUE, zorder=3)
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="probability of the predicted class",
        ylabel=f"share of {rows_are} correct",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_aspect("equal")
