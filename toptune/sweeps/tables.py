"""The tables of a sweep, in the paper's form: accuracy per picture (mean +- SD), and per device.

Each task (classes, and what is left out together) has one table with a row for each feature set and
two columns for each classifier, as CSV, Markdown or cells; runs.csv has a row for each run.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from toptune.evaluation.counting import Counts
from toptune.params import parse_merges
from toptune.runs.folder import write_csv
from toptune.sweeps.grid import PictureView
from toptune.sweeps.plan import describe_fit, describe_picture, fit_labels
from toptune.sweeps.results import (
    Outcome,
    PictureOutcome,
    SweepResult,
    ViewFacts,
    by_task,
    picture_outcomes,
)

RANDOM_NOTE = "Rows whose weights are RANDOM are for testing only: their results are meaningless."
#: Names the row of the classifier that is trained on spike and burst parameters.
WITHOUT_PICTURES = "burst parameters"


@dataclass(frozen=True, kw_only=True)
class ResultTable:
    """One table."""

    task: str  # merged classes and what is left out together; empty for the plain task
    title: str  # of the sweep and of the task
    shared: str  # backbone, weights, picture and windows, as far as all rows have them in common
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]  # of text, as many cells as the header has
    n_names: int  # number of columns, from the left, that name the row
    notes: tuple[str, ...]  # sentences below the table

    @property
    def caption(self) -> str:
        """What the table shows, in one sentence."""
        shared = f" ({self.shared})" if self.shared else ""
        return f"{self.title}: accuracy per picture (mean ± SD) and per device{shared}."

    def to_csv(self) -> str:
        """Write the table as CSV; what all rows have in common is in the last column."""
        last = ("of all rows",) if self.shared else ()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow((*self.header, *last))
        writer.writerows((*row, *([self.shared] if last else [])) for row in self.rows)
        return text.getvalue()

    def to_markdown(self) -> str:
        """Write the table as Markdown, with its caption and notes."""
        marks = ["---"] * self.n_names + ["---:"] * (len(self.header) - self.n_names)
        cells = (self.header, tuple(marks), *self.rows)
        lines = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in cells]
        notes = [line for note in self.notes for line in ("", note)]
        return "\n".join([f"**{self.caption}**", "", *lines, *notes]) + "\n"


def result_tables(swept: SweepResult) -> tuple[ResultTable, ...]:
    """Make a table for each task."""
    tasks = by_task(swept.outcomes)
    return tuple(_table(swept.grid.title, task, outcomes) for task, outcomes in tasks.items())


def _table(title: str, task: str, outcomes: Sequence[Outcome]) -> ResultTable:
    labels = fit_labels(o.point.fit for o in outcomes)
    by_view: dict[PictureView, list[PictureOutcome]] = {}
    for one in picture_outcomes(outcomes):
        by_view.setdefault(one.view, []).append(one)
    # A classifier that uses no pictures has its own row and columns, at the end.
    without = [o for o in outcomes if o.point.view is None]
    fits = dict.fromkeys(labels[one.fit] for one in picture_outcomes(outcomes))
    fits |= dict.fromkeys(labels[o.point.fit] for o in without)
    names, shared = _naming([_names(view, mine[0].facts) for view, mine in by_view.items()])
    scored = next((o for o in outcomes if o.metrics is not None), None)
    paper = _paper_columns(list(by_view), scored)
    header = [*names[0], *(f"{fit}: per {of}" for fit in fits for of in ("picture", "device"))]
    header += ["paper: per picture", "paper: per device"] if paper else []
    rows = []
    for number, mine in enumerate(by_view.values()):
        of_fit = {labels[one.fit]: one.outcome for one in mine}
        cells = [cell for fit in fits for cell in _cells(of_fit.get(fit))]
        rows.append((*names[number].values(), *cells, *(paper[number] if paper else ())))
    for outcome in without:
        alone = {labels[outcome.point.fit]: outcome}
        cells = [cell for fit in fits for cell in _cells(alone.get(fit))]
        row = (WITHOUT_PICTURES, *([""] * (len(names[0]) - 1)), *cells)
        rows.append((*row, *(("", "") if paper else ())))
    return ResultTable(
        task=task,
        title=f"{title}; {task}" if task else title,
        shared=shared,
        header=tuple(header),
        rows=tuple(rows),
        n_names=len(names[0]),
        notes=tuple(_notes(outcomes, scored, with_paper=bool(paper))),
    )


def _notes(
    outcomes: Sequence[Outcome], scored: Outcome | None, *, with_paper: bool
) -> Iterator[str]:
    if scored is not None and scored.metrics is not None:
        m, group = scored.metrics, scored.point.fit.group_by
        yield (
            f"Per picture: mean ± SD over {m['n_groups']} folds, each leaving out one {group}; per"
            f" device: share of {Counts.of(m).scored} classified correctly by majority vote."
            f" {len(m['classes'])} classes ({', '.join(m['classes'])}); always predicting the most"
            f" common class gives {m['chance']:.2f}."
        )
    labels = fit_labels(o.point.fit for o in outcomes)
    whole = {label: describe_fit(fit, task=False) for fit, label in labels.items()}
    hidden = [text.replace(", ", ": ", 1) for label, text in whole.items() if text != label]
    if hidden:
        yield f"{'; '.join(hidden)}."
    if any_random(outcomes):
        yield RANDOM_NOTE
    if with_paper:
        yield f"Paper: {_SOURCE}"


def any_random(outcomes: Iterable[Outcome]) -> bool:
    """Whether any outcome was made with random weights."""
    return any(one.facts.is_random for one in picture_outcomes(outcomes))


def weights_text(facts: ViewFacts) -> str:
    """Name the weights; RANDOM ones in capitals."""
    if facts.is_random:
        return facts.weights.replace("random", "RANDOM", 1)
    return facts.weights.removeprefix("file ")


def accuracy_text(mean: float, sd: float) -> str:
    """Write an accuracy as the paper does."""
    return f"{mean:.3f} ± {sd:.3f}"


def _cells(outcome: Outcome | None) -> tuple[str, str]:
    if outcome is None:
        return "", ""
    m = outcome.metrics
    if m is None:
        return "failed", "failed"
    per_picture = accuracy_text(m["window_accuracy_mean"], m["window_accuracy_sd"])
    return per_picture, f"{m['device_accuracy']:.3f}"


def _paper_columns(views: Sequence[PictureView], scored: Outcome | None) -> list[tuple[str, str]]:
    """Give the paper's figures for each view; nothing for other tasks or where none is known."""
    if scored is None:
        return []
    classes = (scored.metrics or {})["classes"]
    merges = parse_merges(scored.point.fit.merge).values()
    found = [paper_figures(view, classes, merges) for view in views]
    if not any(found):
        return []
    return [
        (accuracy_text(f.window_mean, f.window_sd), f"{f.device:.3f}") if f else ("", "")
        for f in found
    ]


def _naming(views: Sequence[dict[str, str]]) -> tuple[list[dict[str, str]], str]:
    """Give of each view's names what differs between them, and as a phrase what does not."""
    first = views[0]
    varying = [n for n in first if len({names[n] for names in views}) > 1]
    # A single view needs a name, too. A backbone's size and weights are listed with it.
    columns = varying or ["picture"]
    if "backbone" in varying:
        columns = list(dict.fromkeys(("backbone", "parameters (M)", "weights", *varying)))
    shared = [_PHRASES[n].format(text) for n, text in first.items() if n not in columns]
    return [{n: names[n] for n in columns} for names in views], ", ".join(shared)


_PHRASES = {
    "backbone": "{}",
    "parameters (M)": "{} M parameters",
    "weights": "weights {}",
    "picture": "{}",
    "window (s)": "windows of {} s",
    "stride (s)": "a window every {} s",
}


def _names(view: PictureView, facts: ViewFacts) -> dict[str, str]:
    texts = (
        *(view.backbone.name, f"{facts.n_parameters / 1e6:.1f}", weights_text(facts)),
        *(describe_picture(view), f"{view.windows.width_s:g}", f"{view.windows.stride_s:g}"),
    )
    return dict(zip(_PHRASES, texts, strict=True))


# --- what the paper reports: Pastore et al., 32 devices of five ratios of excitatory to inhibitory
# neurons, each left out once; only those figures that are known from the paper's text

_SOURCE = (
    "Pastore et al., An efficient deep learning approach to identify dynamics in in vitro neural"
    " networks; their 64-unit network on their recordings. Empty cells: not known here."
)
_ENDS = frozenset({"100E0I", "0E100I"})
_MIXED = frozenset({"75E25I", "50E50I", "25E75I"})


class PaperFigures(NamedTuple):
    """Accuracies the paper reports."""

    window_mean: float  # per picture, over the devices
    window_sd: float
    device: float


_FIVE = {("histogram", 120.0, 5.0, "efficientnet_b0"): PaperFigures(0.747, 0.353, 0.813)}
_MERGED = {("histogram", 120.0, 5.0, "efficientnet_b0"): PaperFigures(0.957, 0.175, 0.969)}


def paper_figures(
    view: PictureView, classes: Collection[str], merges: Collection[Collection[str]]
) -> PaperFigures | None:
    """Give what the paper reports of a view, trained on these classes; None where not known."""
    windows = view.windows
    kind = (view.picture.kind, windows.width_s, windows.stride_s, view.backbone.name)
    # The paper's plotting program sets each picture's own axis.
    drawn_alike = view.picture.count_axis == "window"
    return (_figures(classes, merges) or {}).get(kind) if drawn_alike else None


def _figures(
    classes: Collection[str], merges: Collection[Collection[str]]
) -> dict[tuple[str, float, float, str], PaperFigures] | None:
    if set(classes) == _ENDS | _MIXED and not merges:
        return _FIVE
    merged_mixed = [frozenset(members) for members in merges] == [_MIXED]
    return _MERGED if merged_mixed and set(classes) > _ENDS and len(classes) == 3 else None


# --- files


def write_result_tables(swept: SweepResult) -> None:
    """Write the tables of a sweep into its folder.

    These are a CSV file for each task (table.csv, further ones with the task in the name), table.md
    with all tables, and runs.csv with a row for each run.
    """
    tables = result_tables(swept)
    for old in swept.path.glob("table*.csv"):
        old.unlink()
    for table in tables:
        slug = re.sub(r"[^A-Za-z0-9._]+", "_", table.task).strip("._")
        name = f"table-{slug[:80]}.csv" if slug else "table.csv"
        (swept.path / name).write_text(table.to_csv(), "utf-8")
    (swept.path / "table.md").write_text("\n".join(t.to_markdown() for t in tables), "utf-8")
    write_runs(swept.path / "runs.csv", swept.outcomes)


_OF_METRICS = (
    "n_devices", "n_verdicts", "n_windows", "window_accuracy_mean", "window_accuracy_sd",
    "device_accuracy", "balanced_accuracy", "macro_f1", "chance", "permutation_p", "device_ece",
    "seconds",
)  # fmt: skip


def write_runs(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write one row for each run."""
    header = [
        *("run", "picture", "count_axis", "window_s", "stride_s", "backbone", "parameters"),
        *("features", "weights", "head", "fit", "merge", "group_by", *_OF_METRICS),
        *("device_accuracy_low", "device_accuracy_high", "pictures_per_s", "machine", "cause"),
    ]
    write_csv(path, header, (_run_row(outcome) for outcome in outcomes))


def _run_row(outcome: Outcome) -> list[Any]:
    fit, metrics = outcome.point.fit, outcome.metrics or {}
    view, facts = outcome.point.view, outcome.facts
    drawn: list[Any] = [None] * 8
    speed: list[Any] = [None] * 2
    if view is not None and facts is not None:
        drawn = [
            *(view.picture.kind, view.picture.count_axis),
            *(view.windows.width_s, view.windows.stride_s),
            *(view.backbone.name, facts.n_parameters, facts.n_features, weights_text(facts)),
        ]
        speed = [facts.throughput.pictures_per_s, facts.throughput.device]
    return [
        *(outcome.name, *drawn, fit.head, describe_fit(fit, task=False)),
        *("; ".join(fit.merge), fit.group_by),
        *(metrics.get(name) for name in _OF_METRICS),
        *metrics.get("device_accuracy_ci95", (None, None)),
        *(*speed, outcome.cause),
    ]
