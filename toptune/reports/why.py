"""The folder of an explanation: why.html, occlusion.csv, electrodes.csv, windows.csv, why.json.

Times in the files are seconds since the recording's start, probabilities lie between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.machine.display import count
from toptune.params import Picture as PictureParams
from toptune.pictures.thumbnails import Thumbnails, draw_thumbnails, grey_png
from toptune.recordings.positions import ElectrodePositions, place_electrodes
from toptune.recordings.trains import SpikeTrains
from toptune.reports.devices import time_ticks
from toptune.reports.page import (
    GREY,
    Block,
    Columns,
    Fact,
    Facts,
    Line,
    Note,
    Page,
    Picture,
    Section,
    Table,
    Text,
    Timeline,
    Track,
    percent,
    png_uri,
    render,
    svg_uri,
)
from toptune.runs.folder import WHY, write_csv, write_json
from toptune.runs.occlusion import Explanation, importance
from toptune.runs.predictor import Predictor

if TYPE_CHECKING:
    from toptune.machine.drawing import Figure as MplFigure

FORMAT = 1
# Axis of the drop: its top is at least this much, so that small drops look small.
_SMALL_DROP = 0.05
#: A mean drop below this is said to be small.
SMALL_ALONE = 0.02
# The map's colours end at this many percentage points or more.
_SMALL_SCALE = 0.5
# Electrodes that are named, that the table lists, and by how many a side their labels fit.
_NAMED = 3
_LISTED = 10
_LABELLED = 16


class DrawnExplanation(NamedTuple):
    """An explained recording with its pictures."""

    explained: Explanation
    thumbnails: Thumbnails  # histogram and raster plot of the whole recording
    # For each view, how it is drawn and the input of its network for the strongest window, as PNG.
    pictures: tuple[tuple[PictureParams, bytes], ...]


def draw_explanation(
    predictor: Predictor, trains: SpikeTrains, explained: Explanation
) -> DrawnExplanation:
    """Draw a recording, and the input of each network for the strongest window."""
    matched = predictor.match(explained.prediction.recording, trains)
    row = explained.rows[explained.strongest]
    pictures = []
    for number, extractor in enumerate(predictor.extractors):
        drawn = extractor.picture_of(trains, int(matched.rows[number][row]))
        if drawn is not None:
            picture, grey = drawn
            pictures.append((picture, grey_png(1 - grey)))
    return DrawnExplanation(explained, draw_thumbnails(trains), tuple(pictures))


def summary(explained: Explanation) -> dict[str, Any]:
    """Give, as plain values, the verdict and the gap that lowers its probability most."""
    p = explained.prediction
    window, stretch = np.unravel_index(explained.drop.argmax(), explained.drop.shape)
    return {
        "recording": p.recording,
        "prediction": p.prediction,
        "class": p.classes[explained.code],
        "probability": float(p.mean_probabilities[explained.code]),
        "strongest_window_start_s": float(explained.start_s[explained.strongest]),
        "strongest_stretch_start_s": float(explained.start_s[window] + explained.offset_s[stretch]),
        "stretch_s": explained.stretch_s,
        "largest_drop": float(explained.drop.max()),
        **_electrode_summary(explained),
        "warnings": list(p.warnings),
    }


def _electrode_summary(explained: Explanation) -> dict[str, Any]:
    """Give the electrodes without which the probability drops most, and in which windows."""
    electrodes = explained.electrodes
    if electrodes is None:
        return {}
    drop = electrodes.mean_drop
    order = np.argsort(-drop, kind="stable")[:_NAMED]
    return {
        "electrode_windows_start_s": explained.prediction.start_s[electrodes.rows].tolist(),
        "electrodes": [
            {"electrode": electrodes.labels[k], "drop": float(drop[k])}
            for k in order.tolist()
            if electrodes.group[k] >= 0
        ],
    }


def write_explanation(folder: Path, model: str, drawn: Sequence[DrawnExplanation]) -> None:
    """Write the page, the tables and why.json into the folder of an explanation."""
    all_explained = [one.explained for one in drawn]
    write_json(
        folder / WHY.marker,
        {
            "kind": WHY.kind,
            "format": FORMAT,
            "toptune_version": version("toptune"),
            "model": model,
            "recordings": [summary(one) for one in all_explained],
        },
    )
    write_csv(
        folder / "occlusion.csv",
        ["recording", "class", "window_start_s", "blank_start_s", "blank_s", "probability",
         "probability_without", "drop", "score_drop"],
        _occlusion_rows(all_explained),
    )  # fmt: skip
    write_csv(
        folder / "electrodes.csv",
        ["recording", "class", "electrode", "window_start_s", "spikes", "left_out_together",
         "probability", "probability_without", "drop", "score_drop"],
        _electrode_rows(all_explained),
    )  # fmt: skip
    write_csv(
        folder / "windows.csv",
        ["recording", "start_s", "prediction", "class", "probability"],
        _window_rows(all_explained),
    )
    (folder / "why.html").write_text(render(why_page(model, drawn)), "utf-8")


def _occlusion_rows(all_explained: Sequence[Explanation]) -> Iterator[list[Any]]:
    for e in all_explained:
        p = e.prediction
        for i, row in enumerate(e.rows.tolist()):
            for j, offset in enumerate(e.offset_s.tolist()):
                start = float(p.start_s[row])
                yield [
                    *(p.recording, p.classes[e.code], start, start + offset, e.stretch_s),
                    *(float(p.probabilities[row, e.code]), float(e.probability[i, j])),
                    *(float(e.drop[i, j]), float(e.score_drop[i, j])),
                ]


def _electrode_rows(all_explained: Sequence[Explanation]) -> Iterator[list[Any]]:
    for e in all_explained:
        p, electrodes = e.prediction, e.electrodes
        if electrodes is None:
            continue
        together = np.bincount(electrodes.group[electrodes.group >= 0], minlength=1)
        for k, label in enumerate(electrodes.labels):
            size = int(together[electrodes.group[k]]) if electrodes.group[k] >= 0 else 0
            for i, row in enumerate(electrodes.rows.tolist()):
                whole, drop = float(p.probabilities[row, e.code]), float(electrodes.drop[i, k])
                yield [
                    *(p.recording, p.classes[e.code], label, float(p.start_s[row])),
                    *(int(electrodes.n_spikes[i, k]), size, whole, whole - drop, drop),
                    float(electrodes.score_drop[i, k]),
                ]


def _window_rows(all_explained: Sequence[Explanation]) -> Iterator[list[Any]]:
    for e in all_explained:
        p = e.prediction
        for i, code in enumerate(p.codes.tolist()):
            share = float(p.probabilities[i, e.code])
            start = float(p.start_s[i])
            yield [p.recording, start, p.classes[code], p.classes[e.code], share]


# --- the page


def why_page(model: str, drawn: Sequence[DrawnExplanation]) -> Page:
    """Show the evidence for each verdict below the recording's activity."""
    return Page(
        title="Why this verdict?",
        lead="Which windows of a recording, which seconds in them and which electrodes contributed"
        " to the predicted class.",
        blocks=(
            Text(
                text="Spikes were removed in a sliding gap, and every window was classified again."
                " The line below the activity shows the drop in the probability of the class. Where"
                " it lies above the horizontal rule (no change), the class is less probable without"
                " the spikes in the gap, so they contributed to it. Where it lies below, they"
                " contributed to other classes."
            ),
        ),
        sections=tuple(_section(one) for one in drawn),
        footer=f"Model {model}. Written by toptune {version('toptune')}. This page shows what the"
        " model uses, which need not be what makes the neuronal networks differ.",
    )


def _section(drawn: DrawnExplanation) -> Section:
    e, p = drawn.explained, drawn.explained.prediction
    name = p.classes[e.code]
    found = summary(e)
    begin = found["strongest_stretch_start_s"]
    verdict = Fact(
        name="Verdict",
        value=p.prediction,
        detail=f"predicted in {p.votes[p.code]} of {len(p.codes)} windows; mean"
        f" probability {percent(p.probability)}",
    )
    strongest = Fact(
        name=f"Contributed most to {name}",
        value=f"{begin:g} to {begin + e.stretch_s:g} s",
        detail=f"without these spikes the probability of {name} in that window is"
        f" {100 * found['largest_drop']:.0f} percentage points lower",
    )
    warnings = (Note(text=warning) for warning in p.warnings)
    facts = (verdict, strongest, *_electrode_fact(e, name))
    shown = (Facts(facts=facts), _whole(drawn, name), _window(drawn, name))
    blocks: tuple[Block, ...] = (*warnings, *shown, *_without_time(drawn), *_electrodes(e, name))
    return Section(title=Path(p.recording).name, blocks=blocks)


def _whole(drawn: DrawnExplanation, name: str) -> Timeline:
    e, p, t = drawn.explained, drawn.explained.prediction, drawn.thumbnails
    half = _width_s(e) / 2
    time_s, drop = importance(e)
    centres = ((p.start_s + half) / t.duration_s).tolist()
    shares = zip(centres, p.probabilities[:, e.code].tolist(), strict=True)
    return Timeline(
        name="The whole recording",
        badge=name,
        tone="plain",
        text=f"{count(len(e.rows), 'window')}, each classified {count(len(e.offset_s), 'time')}"
        f" with the spikes of {e.stretch_s:g} s removed.{_silent_text(e)}",
        tracks=(
            Track(
                name=f"histogram, up to {t.largest_count:,}",
                alt=f"Histogram of spikes in bins of {t.histogram_bin_s:g} s",
                uri=png_uri(t.histogram),
                height_px=80,
            ),
            _drop_track(time_s / t.duration_s, drop),
            Track(
                name=f"probability of {name}",
                alt=f"Probability of {name} in {len(p.codes)} windows",
                lines=(Line(points=tuple(shares), tone="good"),),
                marks=(0.5,),
            ),
            Track(
                name="raster",
                alt="Raster plot of the recording",
                uri=png_uri(t.raster),
                height_px=80,
            ),
        ),
        ticks=tuple(time_ticks(0, t.duration_s)),
    )


def _silent_text(e: Explanation) -> str:
    if not e.n_silent:
        return ""
    of_all = f" {count(e.n_silent, 'gap')} of {e.probability.size}"
    return f"{of_all} held no spike, so that nothing changed."


def _window(drawn: DrawnExplanation, name: str) -> Timeline:
    e = drawn.explained
    start = float(e.start_s[e.strongest])
    width = _width_s(e)
    share = e.prediction.probabilities[e.rows[e.strongest], e.code]
    middle = (e.offset_s + e.stretch_s / 2) / width
    return Timeline(
        name="The window of highest confidence, as the input of the network",
        badge=f"{start:g} to {start + width:g} s",
        tone="plain",
        text=f"Probability of {name}: {percent(float(share))}.",
        tracks=(
            *(
                Track(
                    name=picture.description,
                    alt=f"The {picture.description} of this window, the input of the network",
                    uri=png_uri(content),
                    height_px=130,
                )
                for picture, content in drawn.pictures
                if picture.has_time
            ),
            _drop_track(middle, e.drop[e.strongest]),
        ),
        ticks=tuple(time_ticks(start, start + width)),
    )


def _without_time(drawn: DrawnExplanation) -> Iterator[Picture]:
    """Show the inputs of networks that have no axis of time."""
    for picture, content in drawn.pictures:
        if not picture.has_time:
            yield Picture(
                uri=png_uri(content),
                alt=f"The {picture.description} of this window, the input of the network",
                caption=f"{picture.description} of the same window, also an input of the network:"
                " electrodes by electrodes.",
                width_px=260,
            )


def _electrode_fact(e: Explanation, name: str) -> Iterator[Fact]:
    """Name the electrodes that contributed most."""
    if e.electrodes is None:
        return
    found = summary(e)["electrodes"]
    value = ", ".join(one["electrode"] for one in found) or "none"
    largest = max((one["drop"] for one in found), default=0.0)
    alone = "" if largest >= SMALL_ALONE else "; no electrode matters much alone"
    yield Fact(
        name="Electrodes that contributed most",
        value=value,
        detail=f"without the first of them the probability of {name} is on average"
        f" {100 * largest:.2g} percentage points lower{alone}",
    )


def _electrodes(e: Explanation, name: str) -> Iterator[Block]:
    """Show on the array, and in a table, what each electrode contributed."""
    electrodes = e.electrodes
    if electrodes is None:
        return
    starts = e.prediction.start_s[electrodes.rows]
    windows = ", ".join(f"{start:g} to {start + _width_s(e):g} s" for start in starts.tolist())
    how = (
        "There are too many electrodes to leave out each alone: those of similar rates were left"
        " out together, and each is shown with what its group contributed."
        if electrodes.in_groups
        else "The spikes of each electrode were removed, one electrode after the other."
    )
    yield Text(
        text=f"{how} The drop in the probability of {name} is the mean over"
        f" {count(len(starts), 'window')} ({windows}), not over the whole recording."
        " All values are in electrodes.csv."
    )
    placed = place_electrodes(electrodes.labels)
    drop = 100 * electrodes.mean_drop
    active = electrodes.group >= 0
    order = [k for k in np.argsort(-drop, kind="stable").tolist() if active[k]]
    table = Table(
        caption="Electrodes that contributed most",
        header=("electrode", "spikes per minute", "drop (percentage points)"),
        rows=tuple(
            (
                electrodes.labels[k],
                f"{60 * electrodes.n_spikes[:, k].mean() / _width_s(e):.1f}",
                f"{drop[k]:+.2f}",
            )
            for k in order[:_LISTED]
        ),
        numeric=(1, 2),
    )
    picture = Picture(
        uri=svg_uri(_draw_map(placed, electrodes.labels, drop, active)),
        alt="Map of the array: drop in probability without each electrode, from"
        f" {drop.min():.1f} to {drop.max():.1f} percentage points",
        caption=f"Electrodes, {placed.how}. Orange: contributed to {name}; purple: to other"
        " classes; without colour: little or nothing.",
        width_px=420,
    )
    yield Columns(blocks=(picture, table))


def _draw_map(
    placed: ElectrodePositions,
    labels: Sequence[str],
    drop: NDArray[np.float64],
    active: NDArray[np.bool_],
) -> MplFigure:
    """Draw the array with each electrode in the colour of its drop, in percentage points."""
    from toptune.machine.drawing import Normalize, new_figure, rc_context

    n_columns, n_rows = int(placed.column.max()) + 1, int(placed.row.max()) + 1
    side = max(n_columns, n_rows)
    limit = max(_SMALL_SCALE, float(np.abs(drop).max()))
    size = (210 / side) ** 2
    with rc_context():
        figure = new_figure(4.4, 0.9 + 4.4 * n_rows / side)
        axes = figure.subplots()
        axes.scatter(
            placed.column[~active], placed.row[~active], size, c="white", edgecolors=GREY, lw=0.6
        )
        heat = axes.scatter(
            placed.column[active], placed.row[active], size, c=drop[active], cmap="PuOr_r",
            norm=Normalize(-limit, limit), edgecolors=GREY, linewidths=0.6,
        )  # fmt: skip
        if side <= _LABELLED:
            for k, label in enumerate(labels):
                pale = abs(drop[k]) < 0.6 * limit
                axes.text(
                    placed.column[k], placed.row[k], label, ha="center", va="center",
                    fontsize=min(8, 56 / side), color="black" if pale else "white",
                )  # fmt: skip
        axes.set(xlim=(-0.6, n_columns - 0.4), ylim=(n_rows - 0.4, -0.6), aspect="equal")
        axes.set_axis_off()
        figure.colorbar(
            heat, ax=axes, location="bottom", shrink=0.8, aspect=30,
            label="drop in probability (percentage points)",
        )  # fmt: skip
    return figure


def _width_s(e: Explanation) -> float:
    """Width of the explained windows: the last gap ends with the window."""
    return float(e.offset_s[-1] + e.stretch_s)


def _drop_track(place: NDArray[np.float64], drop: NDArray[np.float64]) -> Track:
    low, high = min(0.0, float(drop.min())), max(_SMALL_DROP, float(drop.max()))
    points = zip(place.tolist(), ((drop - low) / (high - low)).tolist(), strict=True)
    return Track(
        name=f"drop, {round(100 * low)} to {round(100 * high)} percentage points",
        alt="Drop in probability without the spikes in the gap, from"
        f" {drop.min():.2f} to {drop.max():.2f}",
        lines=(Line(points=tuple(points), tone="strong"),),
        marks=(-low / (high - low),),
        height_px=80,
    )
