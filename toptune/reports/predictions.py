"""The report of a prediction: verdicts on recordings, and how far the model can be trusted.

Times are seconds since the recording's start, probabilities lie between 0 and 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.evaluation.counting import Counts
from toptune.heads.catalogue import head_of
from toptune.machine.display import count
from toptune.pictures.thumbnails import HistogramThumbnail, Thumbnails
from toptune.reports.devices import MAX_TIMELINES, activity_tracks, time_ticks, unbroken
from toptune.reports.page import (
    Block,
    Cell,
    Fact,
    Facts,
    Line,
    Note,
    Page,
    Section,
    Table,
    Text,
    Timeline,
    Tone,
    Track,
    interval,
    p_value_text,
    percent,
    render,
)
from toptune.runs.model import Model
from toptune.runs.verdicts import Predictions, RecordingPrediction

NAME = "report.html"

#: A recording at a glance.
Drawn = Thumbnails | HistogramThumbnail

# Of more classes the table has no room for all probabilities, and the page's head for all numbers.
_MOST_COLUMNS, _MOST_FACTS = 4, 6


def write_report(
    folder: Path, predictions: Predictions, model: Model, drawn: Sequence[Drawn]
) -> None:
    """Write report.html into the folder of a prediction.

    `model` made the predictions; `drawn` are pictures of the recordings, in the same order.
    """
    (folder / NAME).write_text(render(predictions_page(predictions, model, drawn)), "utf-8")


def predictions_page(
    predictions: Predictions,
    model: Model,
    drawn: Sequence[Drawn],
    more: Sequence[Section] = (),
) -> Page:
    """Assemble the report, with `more` sections before that on the model; see `write_report`."""
    names = _short_names([one.recording for one in predictions.recordings])
    sections = [*more, _model_section(predictions, model)]
    if predictions.recordings:
        sections = [
            Section(title="Verdicts", blocks=(_table(predictions, model, names),)),
            _recordings_section(predictions, model, names, drawn),
            *sections,
        ]
    if predictions.failed:
        failed = Table(
            caption="Also in failures.csv.",
            header=("recording", "cause"),
            rows=predictions.failed,
        )
        sections.append(Section(title="Recordings that failed", blocks=(failed,)))
    n = len(predictions.recordings)
    return Page(
        title=f"Verdicts on {count(n, 'recording')}",
        lead=_lead(predictions),
        blocks=(_facts(predictions), *_notes(predictions, model)),
        sections=tuple(sections),
        footer=f"Model {predictions.model}. Written by toptune {version('toptune')}.",
    )


def _short_names(recordings: Sequence[str]) -> list[str]:
    """Name files without their folders, unless two would then have the same name."""
    short = [Path(name).name or name for name in recordings]
    return short if len(set(short)) == len(short) else list(recordings)


def _lead(predictions: Predictions) -> str:
    counts = Counter(one.prediction for one in predictions.recordings).most_common()
    if not counts:
        return "No recording could be judged."
    parts = [f"{n} {'looks' if n == 1 else 'look'} like {name}" for name, n in counts]
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    n = len(predictions.recordings)
    told = f"Of {count(n, 'recording')}, {listed}."
    m, counted = predictions.cross_validated, Counts.of(predictions.cross_validated)
    scored = counted.scored.replace(" device", " left-out device")
    return (
        f"{told} On {scored} the same procedure was right in"
        f" {percent(m['device_accuracy'])} (95\u202f% confidence interval"
        f" {interval(*m['device_accuracy_ci95'])})."
    )


def _facts(predictions: Predictions) -> Facts:
    recordings, m = predictions.recordings, predictions.cross_validated
    counts = Counter(one.prediction for one in recordings)
    n_unlike = sum(one.unlike_training for one in recordings)
    facts = [
        Fact(name=name, value=str(n), detail=f"of {count(len(recordings), 'recording')}")
        for name, n in counts.most_common(_MOST_FACTS)
    ]
    facts.append(
        Fact(
            name="Unlike anything in training",
            value=str(n_unlike),
            detail=f"of {count(len(recordings), 'recording')}",
            tone="bad" if n_unlike else "plain",
        )
    )
    if predictions.failed:
        facts.append(Fact(name="Failed", value=str(len(predictions.failed)), tone="bad"))
    low, high = m["device_accuracy_ci95"]
    facts.append(
        Fact(
            name="Accuracy of the model on left-out devices",
            value=percent(m["device_accuracy"]),
            detail=f"{Counts.of(m).right}; 95\u202f% confidence interval {interval(low, high)};"
            f" chance {percent(m['chance'])}",
            tone="good" if low > m["chance"] else "bad",
        )
    )
    return Facts(facts=tuple(facts))


def _notes(predictions: Predictions, model: Model) -> Iterator[Block]:
    """Say what speaks against trusting the verdicts, the most serious first."""
    if any(_has_random_weights(view.params) for view in model.views):
        yield Note(
            text="The backbone has RANDOM weights instead of ImageNet weights. This is for testing"
            " only: the verdicts are meaningless."
        )
    m = predictions.cross_validated
    if m["device_accuracy_ci95"][0] <= m["chance"]:
        yield Note(
            text="On devices that were left out of training this model cannot be told from chance,"
            " so its verdicts say nothing."
        )
    unlike = [one for one in predictions.recordings if one.unlike_training]
    if unlike:
        what = "recording is" if len(unlike) == 1 else "recordings are"
        yield Note(
            text=f"{len(unlike)} {what} unlike anything in training: the verdict extrapolates, and"
            " the accuracy above does not hold for it."
        )


def _has_random_weights(params: object) -> bool:
    return getattr(getattr(params, "backbone", None), "weights", None) == "random"


# --- verdicts


def _anchor(number: int) -> str:
    return f"recording-{number + 1}"


def _table(predictions: Predictions, model: Model, names: Sequence[str]) -> Table:
    has_windows = _windows(model) is not None
    all_shown = len(predictions.classes) <= _MOST_COLUMNS
    classes = predictions.classes if all_shown else ()
    rows: list[tuple[str | Cell, ...]] = []
    for number, (one, name) in enumerate(zip(predictions.recordings, names, strict=True)):
        link = _anchor(number) if number < MAX_TIMELINES else ""
        remarks = len(one.warnings)
        unlike = Cell(text="unlike training", tone="bad")
        rows.append(
            (
                Cell(text=name, link=link),
                Cell(text=one.prediction, tone="strong"),
                f"{one.probability:.2f}",
                *([f"{one.votes[one.code]} of {len(one.codes)}"] if has_windows else []),
                *_other_probabilities(one, all_shown=all_shown),
                unlike if one.unlike_training else count(remarks, "remark") if remarks else "none",
            )
        )
    return Table(
        caption="Verdict on each recording"
        + (
            ": the class of most of its windows; probabilities are means over all windows."
            if has_windows
            else "."
        )
        + " Also in verdicts.csv.",
        header=(
            *("recording", "predicted class", "its probability"),
            *(["its windows"] if has_windows else []),
            *([f"probability of {name}" for name in classes] or ["next class"]),
            "warnings",
        ),
        rows=tuple(rows),
        numeric=tuple(range(2, 3 + has_windows + len(classes))),
    )


def _other_probabilities(one: RecordingPrediction, *, all_shown: bool) -> list[str]:
    """Write the mean probability of each class, or of the next one only."""
    if all_shown:
        return [f"{p:.2f}" for p in one.mean_probabilities]
    other = _next_class(one)
    return [f"{one.classes[other]} {one.mean_probabilities[other]:.2f}"]


def _recordings_section(
    predictions: Predictions, model: Model, names: Sequence[str], drawn: Sequence[Drawn]
) -> Section:
    intro = "Histogram: spikes of all electrodes."
    if any(isinstance(one, Thumbnails) for one in drawn):
        intro += " Raster: one row per electrode; darker where it fired more often."
    if _windows(model):
        intro = (
            "Probability: of the predicted class (solid line) and of the next one (dashed line) in"
            f" the window around each time, from 0 (bottom) to 1 (top). {intro}"
        )
    blocks: list[Block] = [Text(text=intro)]
    shown = zip(predictions.recordings[:MAX_TIMELINES], names, drawn, strict=False)
    blocks += [_timeline(model, k, *one) for k, one in enumerate(shown)]
    left = len(predictions.recordings) - MAX_TIMELINES
    if left > 0:
        blocks.append(Text(text=f"{count(left, 'more recording')} only in the table.", quiet=True))
    return Section(title="Recordings", blocks=tuple(blocks))


def _timeline(
    model: Model, number: int, one: RecordingPrediction, name: str, drawn: Drawn
) -> Timeline:
    end_s = drawn.duration_s
    unlike = ", UNLIKE anything in training" if one.unlike_training else ""
    return Timeline(
        name=name,
        badge=f"{one.prediction}{unlike}",
        tone="bad" if one.unlike_training else "plain",
        text=" ".join([_sentence(model, one), *(f"Warning: {w}." for w in one.warnings)]),
        tracks=(*_probability_tracks(model, one, end_s), *activity_tracks(name, drawn)),
        ticks=tuple(time_ticks(0, end_s)) if end_s > 0 else (),
        anchor=_anchor(number),
    )


def _next_class(one: RecordingPrediction) -> int:
    """Give the most probable class but for the predicted one."""
    others = one.mean_probabilities.copy()
    others[one.code] = -1
    return int(others.argmax())


def _sentence(model: Model, one: RecordingPrediction) -> str:
    other = _next_class(one)
    behind = f"next {one.classes[other]}, {percent(float(one.mean_probabilities[other]))}"
    if not _windows(model):
        return f"Probability of {one.prediction} {percent(one.probability)}; {behind}."
    return (
        f"{one.votes[one.code]} of {count(len(one.codes), 'window')} classified as"
        f" {one.prediction} (mean probability {percent(one.probability)}); {behind}."
    )


def _windows(model: Model) -> tuple[float, float] | None:
    """Width and stride of the widest windows, in seconds; None where rows are whole recordings."""
    found = [view.params.windows for view in model.views if view.params.windows is not None]
    widest = max(found, key=lambda windows: windows.width_s, default=None)
    return None if widest is None else (widest.width_s, widest.stride_s)


def _probability_tracks(model: Model, one: RecordingPrediction, end_s: float) -> Iterator[Track]:
    """Draw the windows' probabilities, and which windows are unlike training."""
    windows = _windows(model)
    if windows is None or end_s <= 0:
        return
    width_s, stride_s = windows
    centre_s = one.start_s + width_s / 2
    parts = unbroken(one.start_s, stride_s)

    def lines(code: int, tone: Tone) -> list[Line]:
        heights = one.probabilities[:, code]
        return [_line(centre_s[k], heights[k], stride_s, end_s, tone) for k in parts]

    mine = one.probabilities[:, one.code]
    yield Track(
        name="probability",
        alt=f"Probability of {one.prediction} in {count(len(mine), 'window')}, from"
        f" {percent(float(mine.min()))} to {percent(float(mine.max()))}",
        lines=(*lines(one.code, "good"), *lines(_next_class(one), "bad")),
        marks=(0.5,),
        height_px=60,
    )
    unlike = np.flatnonzero(one.novelty.unlike)
    if len(unlike):
        level = np.full(1, 0.5)
        yield Track(
            name="unlike training",
            alt=f"{len(unlike)} of {count(len(mine), 'window')} unlike anything in training",
            lines=tuple(_line(centre_s[[k]], level, stride_s, end_s, "bad") for k in unlike),
            height_px=14,
        )


def _line(
    centre_s: NDArray[np.float64],
    heights: NDArray[np.float64],
    stride_s: float,
    end_s: float,
    tone: Tone,
) -> Line:
    """Connect windows; of a single one, draw a line as long as a stride."""
    if len(centre_s) == 1:
        centre_s = centre_s + np.array([-0.5, 0.5]) * stride_s
        heights = np.repeat(heights, 2)
    places = np.clip(centre_s / end_s, 0, 1)
    return Line(points=tuple(zip(places.tolist(), heights.tolist(), strict=True)), tone=tone)


# --- the model


def _model_section(predictions: Predictions, model: Model) -> Section:
    m = predictions.cross_validated
    counts = Counts.of(m)
    names = [view.name for view in model.views]
    of_windows = m.get("window_accuracy_mean")
    p = m.get("permutation_p")
    unit = "recording" if _windows(model) is None else "window"
    scored = f"{counts.right} = {percent(m['device_accuracy'])}"
    n_recordings = len(model.provenance["inputs"])
    rows = [
        ("classifier", _title(model), ""),
        ("features", "; ".join(names), f"what the classifier is given of each {unit}"),
        ("classes", ", ".join(model.classes), "a recording of anything else gets one of them, too"),
        (
            "trained on",
            f"{count(n_recordings, 'recording')} of {count(counts.n_devices, 'device')}",
            "all devices of the run",
        ),
        (
            "accuracy, devices",
            scored,
            f"95\u202f% {counts.method} {interval(*m['device_accuracy_ci95'])}; chance"
            f" {percent(m['chance'])}",
        ),
    ]
    if of_windows is not None:
        rows.append((f"accuracy, {unit}s", percent(of_windows), "mean over the folds"))
    if p is not None:
        rows.append(("permutation test", f"p = {p_value_text(p)}", "labels of devices shuffled"))
    rows.append(("trained by", f"toptune {model.toptune_version}", str(predictions.model)))
    table = Table(
        caption="What the model is, and how it scored on devices that were left out of training",
        header=("", "this model", "remark"),
        rows=tuple(rows),
    )
    return Section(title="The model", blocks=(table, *_trust(predictions)))


def _title(model: Model) -> str:
    try:
        return head_of(model.head).title
    except InputError:  # of a package that is not installed here
        return model.head


def _trust(predictions: Predictions) -> Iterator[Block]:
    """Say what the probabilities and scores are worth for a new recording."""
    error = predictions.cross_validated.get("window_ece")
    if predictions.calibrated:
        off = "" if error is None else f" On left-out devices they were off by {percent(error)}"
        off += " on average (expected calibration error)." if off else ""
        yield Text(
            text="The probabilities were calibrated on left-out devices: of many windows with a"
            f" probability of 80\u202f%, about 80\u202f% should be classified correctly.{off}"
        )
    else:
        yield Text(
            text="The probabilities were NOT calibrated: they rank windows, but a probability of"
            " 80\u202f% need not mean that 80\u202f% are classified correctly."
        )
    yield Text(
        text="The scores hold for new recordings that were made as those of training were: the same"
        " preparation, age, array and recording program. A recording is called unlike training"
        " where most of its windows lie further from all training windows than those of other"
        " devices did, or where its firing rate, electrodes or sampling rate are out of range. This"
        " finds gross differences, not every difference."
    )
