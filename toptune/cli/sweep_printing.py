"""What a sweep shows: bars and the time left on a terminal, a line a run anywhere, by rich."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from toptune.sweeps.plan import describe_fit, describe_picture, describe_task
from toptune.sweeps.results import Outcome, Swept
from toptune.sweeps.tables import RANDOM_NOTE, any_random, result_tables


class _Watch:
    """Bars for pictures, runs and what is going on; a line to stderr for each run that ends."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._pictures = bar.add_task("pictures", total=None, visible=False, extra="")
        self._runs = bar.add_task("runs", total=None, visible=False, extra="")
        self._now = bar.add_task("", total=None, extra="")
        self._done = 0
        self._total = 0
        self._left = ""

    def begin(self, n_pictures: int, n_runs: int) -> None:
        self._total = n_runs
        self._show(self._pictures, n_pictures)
        self._show(self._runs, n_runs)

    def _show(self, task: TaskID, total: int) -> None:
        self._bar.update(task, total=total, visible=total > 0)

    def doing(self, text: str) -> None:
        self._bar.update(self._now, description=text, total=None, completed=0)

    def recording(self, number: int, total: int, name: str) -> None:
        self._bar.update(self._now, completed=number - 1, total=total, extra=name[-40:])

    def stage(self, name: str, done: int, total: int) -> None:
        self._bar.update(self._now, extra=f"{name} {done}/{total}")

    def described(self, n_pictures: int) -> None:
        self._bar.advance(self._pictures, n_pictures)

    def left(self, seconds: float, whole: bool) -> None:
        self._left = time_left(seconds, whole) if seconds else ""
        self._bar.update(self._runs, extra=self._left)

    def ran(self, outcome: Outcome) -> None:
        self._done += 1
        self._bar.advance(self._runs)
        self._bar.console.print(
            f"[{self._done}/{self._total}] {run_line(outcome)}"
            + (f"; {self._left}" if self._left and self._done < self._total else ""),
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def time_left(seconds: float, whole: bool) -> str:
    """Say how long the rest takes, no finer than is known."""
    if seconds < 60:
        told = f"{seconds:.0f} s"
    elif seconds < 5400:
        told = f"{seconds / 60:.0f} min"
    else:
        told = f"{seconds / 3600:.1f} h"
    return f"about {told} left" if whole else f"more than {told} left"


def run_line(outcome: Outcome) -> str:
    """One line on a run that ended."""
    view, fit = outcome.combination.view, describe_fit(outcome.combination.fit)
    what = fit
    if view is not None:
        drawn = f"{describe_picture(view)}, {view.windows.width_s:g} s"
        what = f"{view.backbone.name}, {drawn}, {fit}"
    m = outcome.metrics
    if m is None:
        return f"{what}: FAILED: {outcome.cause}"
    scores = (
        f"devices {m['device_accuracy']:.3f},"
        f" windows {m['window_accuracy_mean']:.3f} ± {m['window_accuracy_sd']:.3f}"
    )
    return f"{what}: {scores}" + (" (was there already)" if outcome.reused else "")


@contextmanager
def watch_sweep() -> Iterator[_Watch]:
    """Show a sweep's progress: bars on a terminal, and a line a run on stderr."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[extra]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        yield _Watch(bar)


def print_swept(swept: Swept) -> None:
    """Print the tables, what to know of them, and where everything is."""
    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    for table in result_tables(swept) if swept.done else ():
        say(table.to_markdown())
    if not swept.done and any_random(swept.outcomes):
        say(RANDOM_NOTE)
    for task in dict.fromkeys(describe_task(o.combination.fit) for o in swept.done):
        mine = [o for o in swept.done if describe_task(o.combination.fit) == task]
        warnings = [w for o in mine for w in (o.metrics or {}).get("warnings", [])]
        for warning in dict.fromkeys(warnings):
            say(f"warning: {warning}")
    for note in swept.notes:
        say(f"note: {note}")
    for failure in swept.failures:
        say(f"failed: {failure.what} {failure.name}: {failure.cause}")
    n_reused = sum(o.reused for o in swept.outcomes)
    say(
        f"{len(swept.done)} of {len(swept.outcomes)} runs are there ({n_reused} were before);"
        f" {swept.seconds:.0f} s; report: {swept.path / 'report.html'}"
    )
