"""A row for every recording of a run: its verdict and how its windows voted in time, for a report.

What enters: a run read back, and where there is one its store with the spikes. What leaves: a
section of a page, the wrong ones first: probability over time, histogram and raster of the whole
recording over one time axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.evaluation.scores import Verdict
from toptune.pictures.thumbnails import Thumbnails
from toptune.reports.page import (
    Block,
    Cell,
    Details,
    Line,
    Section,
    Table,
    Text,
    Timeline,
    Track,
    png_uri,
)
from toptune.reports.scores import percent
from toptune.runs.reading import ReadRun

# More rows than this would make a page nobody scrolls through: the wrong ones come first.
MAX_TIMELINES = 64
# A step longer than this many strides is a gap, and no line is drawn across it.
_GAP_STRIDES = 1.5
_MINUTE_S = 60.0
_RIGHT = Cell(text="\u2713 right", tone="good")
_WRONG = Cell(text="\u2717 wrong", tone="bad")


class Drawn(NamedTuple):
    """What a store adds to a recording's row.

    Attributes
    ----------
    thumbnails
        Of the whole recording.
    remark
        What was noticed in it; empty where nothing was.
    """

    thumbnails: Thumbnails
    remark: str


class _Row(NamedTuple):
    """One recording of a device."""

    verdict: Verdict
    recording: str
    number: int
    n_recordings: int
    windows: NDArray[np.int64]


def shown_recordings(run: ReadRun) -> list[str]:
    """Name the recordings that get a row of their own, the wrong ones first."""
    return [row.recording for row in _rows(run)][:MAX_TIMELINES]


def devices_section(run: ReadRun, drawn: Mapping[str, Drawn]) -> Section:
    """Show every device, the wrong ones first.

    Parameters
    ----------
    run
        The run.
    drawn
        What the store adds, by recording; empty without a store.
    """
    rows = _rows(run)
    wrong = run.metrics["n_devices"] - run.n_right
    lines = "the dashed line is the class it was taken for, the solid one the true class"
    intro = (
        f"{wrong} of {run.metrics['n_devices']} devices were taken for another class; they come"
        " first, the surest mistakes at the top."
    )
    if _windows(run):
        intro += (
            f" Probability: how probable the windows around each time make a class; {lines},"
            " from 0 (bottom) to 1."
        )
    if drawn:
        one = next(iter(drawn.values())).thumbnails
        intro += (
            f" Histogram: spikes of all electrodes in {one.histogram_bin_s:g} s. Raster: a row an"
            " electrode, the darker the more often it fired."
        )
    blocks: list[Block] = [Text(text=intro)]
    if not drawn:
        blocks.append(
            Text(
                text="Without the store there are no pictures of the activity: toptune report"
                f" {run.name} --store STORE draws them.",
                quiet=True,
            )
        )
    blocks += [_timeline(run, row, drawn.get(row.recording)) for row in rows[:MAX_TIMELINES]]
    if len(rows) > MAX_TIMELINES:
        left = len(rows) - MAX_TIMELINES
        blocks.append(Text(text=f"{left} more recordings are in the table only.", quiet=True))
    blocks.append(
        Details(summary=f"All {len(run.verdicts)} devices as a table", blocks=(_table(run),))
    )
    return Section(title="Device by device", blocks=tuple(blocks))


def _rows(run: ReadRun) -> list[_Row]:
    """List a row a recording: wrong before right, then the more probable verdict first."""
    rows = []
    for verdict in sorted(run.verdicts, key=lambda v: (_right(v), -_said(run, v), v.device)):
        mine = (run.windows.device == verdict.device) & (run.windows.label == verdict.label)
        names = list(dict.fromkeys(run.where.recording[mine].tolist()))
        for number, name in enumerate(names, 1):
            windows = np.flatnonzero(mine & (run.where.recording == name))
            rows.append(_Row(verdict, name, number, len(names), windows))
    return rows


def _right(verdict: Verdict) -> bool:
    return verdict.prediction == verdict.label


def _said(run: ReadRun, verdict: Verdict) -> float:
    """Probability of the class it was taken for."""
    return float(verdict.probabilities[run.classes.index(verdict.prediction)])


def _timeline(run: ReadRun, row: _Row, drawn: Drawn | None) -> Timeline:
    v = row.verdict
    right = _right(v)
    end_s = _end_s(run, row, drawn)
    several = f", recording {row.number} of {row.n_recordings}" if row.n_recordings > 1 else ""
    return Timeline(
        name=v.device + several,
        badge=f"\u2713 {v.label}" if right else f"\u2717 {v.label}, taken for {v.prediction}",
        tone="good" if right else "bad",
        text=_sentence(run, v) + (f" {drawn.remark}" if drawn and drawn.remark else ""),
        tracks=(*_probability_tracks(run, row, end_s), *_activity_tracks(v.device, drawn)),
        ticks=tuple(time_ticks(0, end_s)) if end_s > 0 else (),
    )


def _sentence(run: ReadRun, v: Verdict) -> str:
    def part(name: str) -> str:
        k = run.classes.index(name)
        if not _windows(run):
            return f"probability of {name} {percent(float(v.probabilities[k]))}"
        return (
            f"{v.votes[k]} of {v.n_windows} windows say {name}"
            f" (mean probability {percent(float(v.probabilities[k]))})"
        )

    said = part(v.prediction) if _right(v) else f"{part(v.prediction)}, {part(v.label)}"
    return f"{said[:1].upper()}{said[1:]}."


def _end_s(run: ReadRun, row: _Row, drawn: Drawn | None) -> float:
    """Where the time axis ends: with the recording, or, not known, with the last window."""
    if drawn is not None:
        return drawn.thumbnails.duration_s
    return float(run.where.start_s[row.windows].max()) + _windows(run).get("width_s", 0.0)


def _windows(run: ReadRun) -> dict[str, float]:
    """Width and stride of the widest windows; empty where rows are of whole recordings."""
    windows = [view["params"]["windows"] for view in run.views if view["params"]["windows"]]
    return max(windows, key=lambda w: float(w["width_s"]), default={})


def _probability_tracks(run: ReadRun, row: _Row, end_s: float) -> tuple[Track, ...]:
    """Draw the windows' probabilities; nothing where one row is the whole recording."""
    v, windows = row.verdict, _windows(run)
    if not windows:
        return ()
    centre = (run.where.start_s[row.windows] + windows["width_s"] / 2) / end_s
    gap = _GAP_STRIDES * windows["stride_s"] / end_s

    def lines(name: str, tone: str) -> Iterator[Line]:
        shares = run.windows.probabilities[row.windows, run.classes.index(name)]
        for part in np.split(np.arange(len(centre)), np.flatnonzero(np.diff(centre) > gap) + 1):
            points = zip(centre[part].tolist(), shares[part].tolist(), strict=True)
            yield Line(points=tuple(points), tone="good" if tone == "good" else "bad")

    drawn = list(lines(v.label, "good"))
    if not _right(v):
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


def _activity_tracks(device: str, drawn: Drawn | None) -> tuple[Track, ...]:
    if drawn is None:
        return ()
    t = drawn.thumbnails
    return (
        Track(
            name=f"histogram, up to {t.largest_count:,}",
            alt=f"Spikes of {device} in bins of {t.histogram_bin_s:g} s over"
            f" {t.duration_s:.0f} s, at most {t.largest_count}",
            uri=png_uri(t.histogram),
            height_px=58,
        ),
        Track(
            name="raster",
            alt=f"Raster of {device} over {t.duration_s:.0f} s",
            uri=png_uri(t.raster),
            height_px=72,
        ),
    )


def time_ticks(begin_s: float, end_s: float) -> Iterator[str]:
    """Write five times from begin to end, in minutes where they are minutes apart."""
    minutes = end_s - begin_s >= 4 * _MINUTE_S
    for part in range(5):
        time_s = begin_s + (end_s - begin_s) * part / 4
        yield f"{time_s / _MINUTE_S:.3g} min" if minutes else f"{time_s:.4g} s"


def _table(run: ReadRun) -> Table:
    grouped = run.params["group_by"] != "device"
    header = ["device", "is", "taken for", "", "windows", "of the true class", "its probability"]
    rows: list[tuple[str | Cell, ...]] = []
    for v in run.verdicts:
        k = run.classes.index(v.label)
        rows.append(
            (
                v.device,
                v.label,
                v.prediction,
                _RIGHT if _right(v) else _WRONG,
                str(v.n_windows),
                str(v.votes[k]),
                f"{v.probabilities[k]:.2f}",
                *([v.group] if grouped else []),
            )
        )
    return Table(
        caption="By device",
        header=(*header, *([run.params["group_by"]] if grouped else [])),
        rows=tuple(rows),
        numeric=(4, 5, 6),
    )
