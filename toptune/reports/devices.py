"""The devices of a run, recording by recording, as a section of a report.

Each recording has a timeline: the probabilities of its windows and, where the store is at hand, the
histogram and the raster plot of its spikes. Misclassified devices come first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.evaluation.scores import Verdict
from toptune.machine.display import count, one_or
from toptune.pictures.thumbnails import HistogramThumbnail, Thumbnails
from toptune.reports.page import (
    Block,
    Cell,
    Details,
    Line,
    Section,
    Table,
    Text,
    Timeline,
    Tone,
    Track,
    percent,
    png_uri,
)
from toptune.runs.reading import ReadRun

# More timelines would make the page too long to scroll through.
MAX_TIMELINES = 64
# Windows further apart than this many strides are not connected by a line.
_GAP_STRIDES = 1.5
_MINUTE_S = 60.0
_CORRECT = Cell(text="\u2713 correct", tone="good")
_WRONG = Cell(text="\u2717 wrong", tone="bad")


class Drawn(NamedTuple):
    """What the store adds to a recording's timeline."""

    thumbnails: Thumbnails  # histogram and raster plot of the whole recording
    remark: str  # sentences on dead and over-noisy electrodes; empty where there are none


class _Row(NamedTuple):
    """One recording of a device."""

    verdict: Verdict
    recording: str
    number: int
    n_recordings: int
    windows: NDArray[np.int64]


def shown_recordings(run: ReadRun) -> list[str]:
    """Name the recordings that have a timeline, those of misclassified devices first."""
    return [row.recording for row in _rows(run)][:MAX_TIMELINES]


def devices_section(run: ReadRun, drawn: Mapping[str, Drawn]) -> Section:
    """Show every device, the misclassified ones first; without a store `drawn` is empty."""
    rows = _rows(run)
    wrong = run.counts.n_verdicts - run.n_correct
    was, is_ = one_or(wrong, "was", "were"), one_or(wrong, "is", "are")
    what = f"{is_} wrong" if run.counts.in_pairs else f"{was} misclassified"
    listed = {0: "", 1: "; it is listed first"}.get(
        wrong, "; they are listed first, most confident errors first"
    )
    intro = f"{wrong or 'None'} of {run.counts.scored} {what}{listed}."
    if _windows(run):
        intro += (
            " Probability: predicted probability of a class in the window around each time, from"
            " 0 (bottom) to 1 (top). The solid line is the true class, the dashed line the"
            " predicted class of a misclassified device."
        )
    if drawn:
        one = next(iter(drawn.values())).thumbnails
        intro += (
            f" Histogram: spikes of all electrodes in bins of {one.histogram_bin_s:g} s. Raster:"
            " one row per electrode; darker where it fired more often."
        )
    blocks: list[Block] = [Text(text=intro)]
    if not drawn:
        blocks.append(
            Text(
                text="The activity of the recordings is not shown, because the store with their"
                " spikes was not at hand when this report was written.",
                quiet=True,
            )
        )
    blocks += [_timeline(run, row, drawn.get(row.recording)) for row in rows[:MAX_TIMELINES]]
    if len(rows) > MAX_TIMELINES:
        left = len(rows) - MAX_TIMELINES
        told = f"{count(left, 'more recording')} {one_or(left, 'is', 'are')} only in the table."
        blocks.append(Text(text=told, quiet=True))
    blocks.append(Details(summary=f"Table of all {run.counts.scored}", blocks=(_table(run),)))
    return Section(title="Devices", blocks=tuple(blocks))


def _rows(run: ReadRun) -> list[_Row]:
    """List the recordings: misclassified devices first, then by falling confidence."""
    rows = []
    for verdict in sorted(
        run.verdicts, key=lambda v: (_correct(v), -_confidence(run, v), v.device)
    ):
        mine = (run.windows.device == verdict.device) & (run.windows.label == verdict.label)
        names = list(dict.fromkeys(run.origin.recording[mine].tolist()))
        for number, name in enumerate(names, 1):
            windows = np.flatnonzero(mine & (run.origin.recording == name))
            rows.append(_Row(verdict, name, number, len(names), windows))
    return rows


def _correct(verdict: Verdict) -> bool:
    return verdict.prediction == verdict.label


def _confidence(run: ReadRun, verdict: Verdict) -> float:
    """Probability of the predicted class."""
    return float(verdict.probabilities[run.classes.index(verdict.prediction)])


def _timeline(run: ReadRun, row: _Row, drawn: Drawn | None) -> Timeline:
    v = row.verdict
    correct = _correct(v)
    end_s = _end_s(run, row, drawn)
    several = f", recording {row.number} of {row.n_recordings}" if row.n_recordings > 1 else ""
    return Timeline(
        name=v.device + several,
        badge=f"\u2713 {v.label}" if correct else f"\u2717 {v.label}, classified as {v.prediction}",
        tone="good" if correct else "bad",
        text=_sentence(run, v) + (f" {drawn.remark}" if drawn and drawn.remark else ""),
        tracks=(
            *_probability_tracks(run, row, end_s),
            *(() if drawn is None else activity_tracks(v.device, drawn.thumbnails)),
        ),
        ticks=tuple(time_ticks(0, end_s)) if end_s > 0 else (),
    )


def _sentence(run: ReadRun, v: Verdict) -> str:
    def part(name: str) -> str:
        k = run.classes.index(name)
        if not _windows(run):
            return f"probability of {name} {percent(float(v.probabilities[k]))}"
        return (
            f"{v.votes[k]} of {count(v.n_windows, 'window')}"
            f" {one_or(int(v.votes[k]), 'was', 'were')} classified as {name} (mean probability"
            f" {percent(float(v.probabilities[k]))})"
        )

    names = [v.prediction] if _correct(v) else [v.prediction, v.label]
    text = ", ".join(part(name) for name in names)
    return f"{text[:1].upper()}{text[1:]}."


def _end_s(run: ReadRun, row: _Row, drawn: Drawn | None) -> float:
    """End of the time axis: that of the recording or, if unknown, of the last window."""
    if drawn is not None:
        return drawn.thumbnails.duration_s
    return float(run.origin.start_s[row.windows].max()) + _windows(run).get("width_s", 0.0)


def _windows(run: ReadRun) -> dict[str, float]:
    """Width and stride of the widest windows; empty where rows are whole recordings."""
    windows = [view["params"]["windows"] for view in run.views if view["params"]["windows"]]
    return max(windows, key=lambda w: float(w["width_s"]), default={})


def _probability_tracks(run: ReadRun, row: _Row, end_s: float) -> tuple[Track, ...]:
    """Draw the windows' probabilities; nothing where rows are whole recordings."""
    v, windows = row.verdict, _windows(run)
    if not windows:
        return ()
    start_s = run.origin.start_s[row.windows]
    centre = (start_s + windows["width_s"] / 2) / end_s

    def lines(name: str, tone: Tone) -> Iterator[Line]:
        shares = run.windows.probabilities[row.windows, run.classes.index(name)]
        for part in unbroken(start_s, windows["stride_s"]):
            points = zip(centre[part].tolist(), shares[part].tolist(), strict=True)
            yield Line(points=tuple(points), tone=tone)

    drawn = list(lines(v.label, "good"))
    if not _correct(v):
        drawn += lines(v.prediction, "bad")
    truth = run.windows.probabilities[row.windows, run.classes.index(v.label)]
    track = Track(
        name="probability",
        alt=f"Probability of {v.label} over {len(row.windows)} windows, from"
        f" {percent(float(truth.min()))} to {percent(float(truth.max()))}",
        lines=tuple(drawn),
        marks=(0.5,),
        height_px=60,
    )
    return (track,)


def unbroken(start_s: NDArray[np.float64], stride_s: float) -> list[NDArray[np.int64]]:
    """Split a recording's windows, ascending, where a line between them would cross a gap."""
    apart = np.flatnonzero(np.diff(start_s) > _GAP_STRIDES * stride_s) + 1
    return np.split(np.arange(len(start_s)), apart)


def activity_tracks(device: str, t: Thumbnails | HistogramThumbnail) -> Iterator[Track]:
    """Show the histogram of a whole recording, and the raster where there is one."""
    yield Track(
        name=f"histogram, up to {t.largest_count:,}",
        alt=f"Histogram of the spikes of {device} in bins of {t.histogram_bin_s:g} s over"
        f" {t.duration_s:.0f} s, at most {t.largest_count} per bin",
        uri=png_uri(t.histogram),
        height_px=58,
    )
    if isinstance(t, Thumbnails):
        yield Track(
            name="raster",
            alt=f"Raster plot of {device} over {t.duration_s:.0f} s",
            uri=png_uri(t.raster),
            height_px=72,
        )


def time_ticks(begin_s: float, end_s: float) -> Iterator[str]:
    """Write five times from start to end, in minutes where they are at least a minute apart."""
    minutes = end_s - begin_s >= 4 * _MINUTE_S
    for part in range(5):
        time_s = begin_s + (end_s - begin_s) * part / 4
        yield f"{time_s / _MINUTE_S:.3g} min" if minutes else f"{time_s:.4g} s"


def _table(run: ReadRun) -> Table:
    grouped = run.params["group_by"] != "device"
    header = [
        *("device", "true class", "predicted class", "", "windows"),
        *("windows of the true class", "probability of the true class"),
    ]
    rows: list[tuple[str | Cell, ...]] = []
    for v in run.verdicts:
        k = run.classes.index(v.label)
        judged = (v.device, v.label, v.prediction, _CORRECT if _correct(v) else _WRONG)
        counted = (str(v.n_windows), str(v.votes[k]), f"{v.probabilities[k]:.2f}")
        rows.append((*judged, *counted, *([v.group] if grouped else [])))
    return Table(
        caption="Verdict of each device",
        header=(*header, *([run.params["group_by"]] if grouped else [])),
        rows=tuple(rows),
        numeric=(4, 5, 6),
    )
