"""Tables and progress bars of the command line, by rich: results to stdout, progress to stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from toptune.cli.demo import DemoResult
from toptune.extraction import Extracted
from toptune.runs.verdicts import Predictions
from toptune.store.check import StoreReport

_RANDOM_WEIGHTS = (
    "These features come from a network with seeded RANDOM weights: the demo needs no download."
    " With ImageNet's weights: toptune demo --weights imagenet --out demo-imagenet (needs the"
    " internet once), or --weights FILE."
)


def print_scores(metrics: dict[str, dict[str, Any]]) -> None:
    """Print the scores of one run or several, a row each."""
    table = Table(title="right on devices that were left out", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("head", no_wrap=True)
    for column in ("devices", "95 %", "windows", "chance", "p", "ECE", "s"):
        table.add_column(column, justify="right", no_wrap=True)
    for head, m in metrics.items():
        low, high = m["device_accuracy_ci95"]
        n_right = round(m["device_accuracy"] * m["n_devices"])
        table.add_row(
            head,
            f"{n_right}/{m['n_devices']} = {m['device_accuracy']:.2f}",
            f"{low:.2f}-{high:.2f}",
            f"{m['window_accuracy_mean']:.2f} +- {m['window_accuracy_sd']:.2f}",
            f"{m['chance']:.2f}",
            "-" if m["permutation_p"] is None else f"{m['permutation_p']:.3f}",
            f"{m['device_ece']:.2f}",
            f"{m['seconds']:.0f}",
        )
    console = Console()
    console.print(table)
    for head, m in metrics.items():
        for line in _remarks(m):
            console.print(f"{head}: {line}", highlight=False, markup=False, soft_wrap=True)


def _remarks(metrics: dict[str, Any]) -> Iterator[str]:
    """Tell what a run's numbers rest on."""
    yield from _notes_on_data(metrics)
    if metrics["centres"]:
        yield metrics["centres"]
    tuning = metrics["tuning"]
    if tuning is not None:
        final = ", ".join(f"{name} {_brief(value)}" for name, value in tuning["final"].items())
        leaky = tuning["had_the_choice_seen_all_devices"]
        yield (
            f"{tuning['n_candidates']} settings were tried inside every fold; the model of all"
            f" devices has {final} (had the choice seen all devices, device accuracy would read"
            f" {leaky['device_accuracy']:.3f})"
        )
    test = metrics["permutations"]
    if test is not None:
        yield f"p: {test['n']} shuffles of the devices' labels, parameters {test['parameters']}"
        if test["note"]:
            yield f"note: {test['note']}"


def _notes_on_data(metrics: dict[str, Any]) -> Iterator[str]:
    missing = metrics["missing_recordings"]
    if missing:
        yield (
            f"note: {len(missing)} listed recordings have no features and are not in these numbers:"
            f" {', '.join(missing)}"
        )
    for note in metrics["provenance_notes"]:
        yield f"note: {note}"
    for warning in metrics["warnings"]:
        yield f"warning: {warning}"
    if metrics["n_windows_without_partner"]:
        yield (
            f"{metrics['n_windows_without_partner']} windows have no partner in the other feature"
            " sets and were left out"
        )


def _brief(value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    return ", ".join(f"{v:.2g}" for v in values)


def print_predictions(result: Predictions) -> None:
    """Print a verdict a recording, and what speaks against it."""
    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    for one in result.recordings:
        unlike = ", UNLIKE anything in training" if one.unlike_training else ""
        say(f"{one.recording}: {one.prediction} (probability {one.probability:.2f}){unlike}")
        for warning in one.warnings:
            say(f"  warning: {warning}")
    for name, cause in result.failed:
        say(f"{name}: failed: {cause}")
    say(result.caution)


def print_demo(result: DemoResult, weights: str) -> None:
    """Print what the demonstration found, and how to go on."""
    print_scores(result.metrics)
    console = Console()
    steps = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result.seconds.items())
    console.print(f"{steps}; everything is in {result.folder}/", highlight=False)
    for head in result.metrics:
        report = result.folder / f"run-{head}" / "report.html"
        console.print(f"to be looked at: {report}", highlight=False, soft_wrap=True)
    if weights == "random":
        console.print(_RANDOM_WEIGHTS, highlight=False)


def print_overview(summary: dict[str, Any]) -> None:
    """Print a recording's header and a row a channel."""
    console = Console()
    for name, value in summary.items():
        if name not in ("channels", "segments"):
            shown = ", ".join(map(str, value)) or "none" if isinstance(value, list) else value
            shown = f"{shown:.6g}" if isinstance(shown, float) else shown
            console.print(f"{name:>18}  {shown}", highlight=False, markup=False)
    stretches = [f"{s['n_samples']} samples from {s['start_s']:g} s" for s in summary["segments"]]
    console.print(f"{'segments':>18}  {'; '.join(stretches)}", highlight=False)
    table = Table()
    for column in ("channel", "spikes", "rate (1/s)", "threshold (uV)"):
        table.add_column(column, justify="right")
    for c in summary["channels"]:
        threshold = "-" if c["threshold_uv"] is None else f"{c['threshold_uv']:.1f}"
        table.add_row(c["label"], str(c["spikes"]), f"{c['rate_hz']:.2f}", threshold)
    console.print(table)


def print_extracted(result: Extracted) -> None:
    """Print what an extraction did, and the next command."""
    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say(
        f"{result.done} recordings extracted ({result.spikes_reused} with spikes from the store),"
        f" {result.reused} were there already: {result.n_windows} windows"
    )
    say(f"features: {result.feature_set.description} [{result.feature_set.key[:8]}]")
    for note in result.notes:
        say(f"note: {note}")
    if result.too_short:
        say(f"shorter than a window, skipped: {', '.join(result.too_short)}")
    for recording, cause in result.failed:
        say(f"failed: {recording}: {cause}")
    if result.failed:
        say(f"the failures are listed in {result.store.with_suffix('.failures.csv')}")
    say(f"next: toptune fit {result.store} --head falkon -o run-falkon")


def print_store_report(report: StoreReport, removed: tuple[str, ...]) -> None:
    """Print what verifying a store found, and what to do."""
    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say(
        f"{report.n_recordings} recordings listed, {report.n_groups} groups verified"
        f" ({report.n_bytes / 1e6:.1f} MB)"
    )
    for finding in report.findings:
        say(f"{finding.kind}: {finding.place}: {finding.cause}")
    if report.n_unsummed:
        say(
            f"note: {report.n_unsummed} groups were made by an earlier toptune: their arrays have"
            " sums, their attributes have none"
        )
    for place in removed:
        say(f"removed: {place}")
    if report.is_sound:
        say("sound: all that is listed is there and as it was written")
        return
    say(f"to extract again: {', '.join(report.extract_again)}")
    if not removed and any(f.kind == "damaged" for f in report.findings):
        say(f"next: toptune doctor {report.path} --remove-damaged, then toptune extract as before")
    else:
        say("next: toptune extract as before; it makes what is not there")


@contextmanager
def watch_count(what: str, total: int) -> Iterator[Callable[[object], None]]:
    """Show a bar that each call moves by one, on a terminal."""
    with _bar() as bar:
        task = bar.add_task(what, total=total)

        def advance(_: object) -> None:
            bar.advance(task)

        yield advance


class _Watch:
    """Two bars: recordings, and the stage inside the present one."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._all: TaskID | None = None
        self._stage = bar.add_task("", total=None, visible=False)

    def recording(self, number: int, total: int, name: str) -> None:
        if self._all is None:
            self._all = self._bar.add_task("", total=total)
        self._bar.update(self._all, completed=number - 1, description=name[-40:])

    def stage(self, name: str, done: int, total: int) -> None:
        self._bar.update(
            self._stage, description=f"  {name}", completed=done, total=total, visible=True
        )


@contextmanager
def watch_steps() -> Iterator[Callable[[str, int, int], None]]:
    """Show one bar that goes through steps, on a terminal."""
    with _bar() as bar:
        task = bar.add_task("", total=None, visible=False)

        def step(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total, visible=True)

        yield step


@contextmanager
def watch_extraction() -> Iterator[_Watch]:
    """Show an extraction's progress, on a terminal."""
    with _bar() as bar:
        yield _Watch(bar)


def _bar() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
