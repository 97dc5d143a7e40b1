"""What commands print: results on stdout; everything else, and progress bars, on stderr."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from toptune.cli.options import in_flags
from toptune.evaluation.counting import Counts
from toptune.machine.display import count, one_or

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from toptune.cluster import Cluster
    from toptune.sweeps.results import Outcome


def say(text: str) -> None:
    """Tell the user something beside the results, on stderr."""
    typer.echo(printable(in_flags(text)), err=True)


def tell(text: str) -> None:
    """Print a line of results, on stdout."""
    typer.echo(printable(in_flags(text)))


def printable(text: str) -> str:
    """Keep what a file says from steering the terminal."""
    return "".join(c if c == "\n" or c.isprintable() else repr(c)[1:-1] for c in text)


def shorten(text: str, width: int) -> str:
    """Take letters out of the middle of a text that is too wide: the end of a name tells most."""
    if len(text) <= width:
        return text
    end = max(max(0, width - 1) * 2 // 3, width // 2)
    return f"{text[: max(0, width - 1 - end)]}\u2026{text[len(text) - end :]}"[: max(0, width)]


def command_line(*words: object) -> str:
    """Write a command that can be pasted into a shell."""
    return shlex.join(map(str, words))


def free_name(name: str) -> str:
    """Name a file or folder that is not there yet: ``s.zarr``, ``s-2.zarr`` and so on."""
    wanted = Path(name)
    free, number = wanted, 1
    while free.exists():
        number += 1
        free = wanted.with_stem(f"{wanted.stem}-{number}")
    return str(free)


def print_json(value: Any) -> None:
    """Print a result as strict JSON, on stdout."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def print_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, n_names: int = 1, **look: Any
) -> None:
    """Print a table whose columns after the first `n_names` are numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, **look)
    for k, column in enumerate(header):
        table.add_column(column, justify="left" if k < n_names else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def print_scores(metrics: dict[str, dict[str, Any]]) -> None:
    """Print the scores of one run or several, by classifier, and what they rest on."""
    rows = []
    for head, m in metrics.items():
        low, high = m["device_accuracy_ci95"]
        counts = Counts.of(m)
        row = (
            head,
            f"{counts.n_right}/{counts.n_verdicts} = {m['device_accuracy']:.2f}",
            f"{low:.2f}-{high:.2f}",
            f"{m['window_accuracy_mean']:.2f} ± {m['window_accuracy_sd']:.2f}",
            f"{m['chance']:.2f}",
            "-" if m["permutation_p"] is None else f"{m['permutation_p']:.3f}",
            f"{m['device_ece']:.2f}",
            f"{m['seconds']:.0f}",
        )
        rows.append(row)
    in_pairs = any(Counts.of(m).in_pairs for m in metrics.values())
    header = (
        "classifier",
        "verdicts" if in_pairs else "devices",
        "95 % CI",
        "windows",
        "chance",
        "p",
        "ECE",
        "s",
    )
    print_table(header, rows, title="scores on devices left out of training", padding=0)
    for head, m in metrics.items():
        for line in _remarks(m):
            tell(f"{head}: {line}")


def _remarks(metrics: dict[str, Any]) -> Iterator[str]:
    """Say what a run's numbers rest on."""
    counts = Counts.of(metrics)
    if counts.in_pairs:
        yield (
            f"{counts.right} are right: a device has a verdict for each of its labels; in the 95 %"
            " CI devices, not verdicts, are independent units (bootstrap over devices)"
        )
    yield from _notes_on_data(metrics)
    if metrics["centres"]:
        yield metrics["centres"]
    tuning = metrics["tuning"]
    if tuning is not None:
        final = ", ".join(f"{name} {_brief(value)}" for name, value in tuning["final"].items())
        n = tuning["n_candidates"]
        leaky = tuning["had_the_choice_seen_all_devices"]
        yield (
            f"{count(n, 'setting')} {one_or(n, 'was', 'were')} tried inside every fold; the model"
            f" trained on all devices uses {final} (chosen on all devices instead, which is too"
            f" optimistic, device accuracy would be {leaky['device_accuracy']:.3f})"
        )
    simple = metrics["compared_with"]
    if simple:
        each = ", ".join(
            f"{one['name']} {one['n_right']}/{one['n_verdicts']} = {one['device_accuracy']:.2f}"
            for one in simple
        )
        yield f"for comparison, burst parameters of whole recordings: {each}"
    test = metrics["permutations"]
    if test is not None:
        yield (
            f"p: {count(test['n'], 'shuffle')} of the devices' labels, parameters"
            f" {test['parameters']}"
        )
        if test["note"]:
            yield f"note: {test['note']}"


def _notes_on_data(metrics: dict[str, Any]) -> Iterator[str]:
    missing = metrics["missing_recordings"]
    if missing:
        yield (
            f"note: {count(len(missing), 'listed recording')} {one_or(len(missing), 'has', 'have')}"
            f" no features and {one_or(len(missing), 'is', 'are')} not in these scores:"
            f" {', '.join(missing)}"
        )
    for note in metrics["provenance_notes"]:
        yield f"note: {note}"
    for warning in metrics["warnings"]:
        yield f"warning: {warning}"
    lone = metrics["n_windows_without_partner"]
    if lone:
        yield (
            f"{count(lone, 'window')} {one_or(lone, 'is', 'are')} missing from one of the feature"
            f" sets and {one_or(lone, 'was', 'were')} left out"
        )


def _brief(value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    return ", ".join(f"{v:.2g}" for v in values)


@contextmanager
def opened_cluster(dask: str | None) -> Iterator[Cluster | None]:
    """Open the workers that are asked for, if any, and tell where Dask shows its work."""
    if dask is None:
        yield None
        return
    from toptune.cluster import open_cluster
    from toptune.cluster.client import require_dask

    require_dask(dask)
    quieten_dask()
    with open_cluster(dask) as cluster:
        shown = cluster.dashboard
        say(f"Dask: {cluster.address}; {f'dashboard: {shown}' if shown else 'no dashboard'}")
        yield cluster


def quieten_dask() -> None:
    """Leave what Dask's processes tell of themselves to their own logs."""
    import distributed  # noqa: F401  # it sets levels when it is imported

    for name in ("distributed", "distributed.client", "distributed.nanny", "tornado"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


# --- progress bars, where stderr is a terminal


@contextmanager
def watch_count(what: str, total: int) -> Iterator[Callable[[object], None]]:
    """Show a bar that each call moves by one."""
    with _bar() as bar:
        task = bar.add_task(what, total=total)
        yield lambda _: bar.advance(task)


@contextmanager
def watch_steps() -> Iterator[Callable[[str, int, int], None]]:
    """Show one bar that goes through steps."""
    with _bar() as bar:
        task = bar.add_task("", total=None, visible=False)

        def step(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total, visible=True)

        yield step


class _RecordingsWatch:
    """Two bars: recordings, and the stage inside the present one."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._all: TaskID | None = None
        self._stage = bar.add_task("", total=None, visible=False)

    def recording(self, number: int, total: int, name: str) -> None:
        if self._all is None:
            self._all = self._bar.add_task(name, total=total)
        self._bar.update(self._all, completed=number - 1, description=name)

    def stage(self, name: str, done: int, total: int) -> None:
        self._bar.update(
            self._stage, description=f"  {name}", completed=done, total=total, visible=True
        )


@contextmanager
def watch_recordings() -> Iterator[_RecordingsWatch]:
    """Show how work goes on from recording to recording."""
    with _bar() as bar:
        yield _RecordingsWatch(bar)


class _SweepWatch:
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
        for task, total in ((self._pictures, n_pictures), (self._runs, n_runs)):
            self._bar.update(task, total=total, visible=total > 0)

    def doing(self, text: str) -> None:
        self._bar.update(self._now, description=text, total=None, completed=0)

    def recording(self, number: int, total: int, name: str) -> None:
        self._bar.update(self._now, completed=number - 1, total=total, extra=name)

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


@contextmanager
def watch_sweep() -> Iterator[_SweepWatch]:
    """Show a sweep's progress: bars on a terminal, and a line per run anywhere."""
    with _bar(extra=True) as bar:
        yield _SweepWatch(bar)


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
    from toptune.sweeps.plan import describe_fit, describe_picture

    view, fit = outcome.point.view, describe_fit(outcome.point.fit)
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


class _WholeWatch:
    """One bar for the whole of a piece of work, which goes through steps of expected lengths."""

    def __init__(self, bar: Progress, expected_s: float) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=expected_s, extra=time_left(expected_s, True))
        self._expected_s = expected_s
        self._before_s = 0.0  # expected of all steps that are done
        self._step_s = 0.0  # expected of the present one
        self._text = ""

    def begin(self, text: str, expected_s: float) -> None:
        self._before_s += self._step_s
        self._step_s, self._text = expected_s, text
        self.part(0.0)
        if self._bar.disable:
            say(f"... {text}")

    def part(self, done: float, text: str = "") -> None:
        completed = min(self._before_s + done * self._step_s, self._expected_s)
        self.show(completed / self._expected_s, f"{self._text} {text}".rstrip())

    def show(self, share: float, text: str) -> None:
        """Show that a share of all work is done, 0 to 1."""
        task = self._bar.tasks[self._task]
        left_s = remaining_s(task.elapsed or 0.0, share, self._expected_s)
        self._bar.update(
            self._task,
            description=text,
            completed=share * self._expected_s,
            extra=time_left(left_s, True),
        )


def remaining_s(elapsed_s: float, share: float, expected_s: float) -> float:
    """Guess the time left: as expected at first, by this machine's own speed soon after."""
    measured = min(1.0, share / 0.15)
    guess_s = (1 - measured) * expected_s
    if share > 0:
        guess_s += measured * elapsed_s / share
    return max(1.0, (1 - share) * guess_s)


@contextmanager
def watch_whole(expected_s: float) -> Iterator[_WholeWatch]:
    """Show one bar with the time left of several steps; lines of text where there is no bar."""
    with _bar(extra=True, counted=False) as bar:
        yield _WholeWatch(bar, expected_s)


class _StepsWatch:
    """One bar over all recordings, each of which goes through steps of known shares of its time."""

    def __init__(self, whole: _WholeWatch, shares: Mapping[str, float]) -> None:
        self._whole = whole
        self._shares = shares
        self._name = ""
        self._before, self._total = 0, 1

    def recording(self, number: int, total: int, name: str) -> None:
        self._before, self._total = number - 1, total
        file = PurePath(name).name
        self._name = f"[{number}/{total}] {file}" if total > 1 else file
        self._whole.show(self._before / total, self._name)

    def stage(self, name: str, done: int, total: int) -> None:
        if name not in self._shares:
            return
        steps = list(self._shares)
        share = sum(self._shares[one] for one in steps[: steps.index(name)])
        share += self._shares[name] * done / max(1, total)
        share /= sum(self._shares.values())
        self._whole.show((self._before + share) / self._total, f"{name}: {self._name}")


@contextmanager
def watch_recording_steps(
    n_recordings: int, shares: Mapping[str, float], expected_s: float
) -> Iterator[_StepsWatch]:
    """Show one bar with the time left over recordings that take `expected_s` each.

    `shares` are the steps of a recording, in their order, with the share of its time.
    """
    with _bar(extra=True, counted=False) as bar:
        yield _StepsWatch(_WholeWatch(bar, n_recordings * expected_s), shares)


class BarWidths(NamedTuple):
    """How a terminal's columns are shared among a bar and what stands beside it."""

    bar: int
    description: int
    extra: int

    @classmethod
    def of(cls, columns: int, *, counted: bool, extra: bool) -> BarWidths:
        """Share the columns, so that the bar never gives way to a long name."""
        bar = max(10, min(40, columns // 3 - 2))
        # One blank between neighbours, and none in the last column, where a line would break.
        left = columns - bar - 3 - (_COUNT_WIDTH + 1 if counted else 0)
        if not extra:
            return cls(bar, max(6, left - _TIME_WIDTH), _TIME_WIDTH)
        # A time left fits; in a sweep's bars it is a name.
        told = max(_LEFT_WIDTH, left // 2) if counted else _LEFT_WIDTH
        return cls(bar, max(6, left - told), min(told, max(6, left - 6)))


# Of 9999/9999, of 0:00:00, and of "more than 59 min left".
_COUNT_WIDTH, _TIME_WIDTH, _LEFT_WIDTH = 9, 7, 21
# The bar on the terminal, if there is one.
_shown: list[Progress] = []


def bar_is_shown() -> bool:
    """Whether a bar stands in the terminal's last line."""
    return any(bar.live.is_started and not bar.disable for bar in _shown)


@contextmanager
def _bar(*, counted: bool = True, extra: bool = False) -> Iterator[Progress]:
    """Show bars: what is going on, the bar, a count, and the time left or a text."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
    from rich.text import Text

    console = Console(stderr=True)
    widths = BarWidths.of(console.width, counted=counted, extra=extra)

    class Description(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(shorten(task.description, widths.description), no_wrap=True)

    class Extra(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(shorten(str(task.fields.get("extra", "")), widths.extra), no_wrap=True)

    class Count(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(_count_text(task.completed, task.total), no_wrap=True)

    made = Progress(
        Description(),
        BarColumn(bar_width=widths.bar),
        *([Count()] if counted else []),
        Extra() if extra else TimeRemainingColumn(),
        console=console,
        transient=True,
        # Notebooks ask for colours (FORCE_COLOR), whoever reads; a bar needs a terminal.
        disable=not (console.is_terminal and console.file.isatty()),
    )
    with made:
        _shown.append(made)
        try:
            yield made
        finally:
            _shown.remove(made)


def _count_text(done: float, total: float | None) -> str:
    """Write how much is done: as a count, or in per cent where there are very many."""
    if total is None:
        return ""
    if total > 9999:
        return f"{100 * done / total:.0f}%"
    return f"{done:.0f}/{total:.0f}"
