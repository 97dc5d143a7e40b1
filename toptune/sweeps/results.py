"""What a sweep reports: while it works, and when it is done. Times are in seconds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from toptune.features.recordings import ProgressReporter, SilentReporter
from toptune.machine.durable import write_whole, writing
from toptune.params import FitOptions
from toptune.sweeps.grid import Grid, GridPoint, PictureView
from toptune.sweeps.plan import describe_task


class SweepReporter(ProgressReporter, Protocol):
    """Shows the progress of a sweep; every call may be ignored."""

    def begin(self, n_pictures: int, n_runs: int) -> None:
        """Note how many pictures are to be described and how many runs to be made."""

    def doing(self, text: str) -> None:
        """Note what is going on."""

    def described(self, n_pictures: int) -> None:
        """Note that pictures were described, or need not be."""

    def ran(self, outcome: Outcome) -> None:
        """Note how a run ended."""

    def left(self, seconds: float, whole: bool) -> None:
        """Note how long the rest takes; `whole` is false while some of it cannot be estimated."""


class SilentSweep(SilentReporter):
    """Shows nothing."""

    def begin(self, n_pictures: int, n_runs: int) -> None:
        """See `SweepReporter`."""

    def doing(self, text: str) -> None:
        """See `SweepReporter`."""

    def described(self, n_pictures: int) -> None:
        """See `SweepReporter`."""

    def ran(self, outcome: Outcome) -> None:
        """See `SweepReporter`."""

    def left(self, seconds: float, whole: bool) -> None:
        """See `SweepReporter`."""


class Failure(NamedTuple):
    """Something that could not be done."""

    what: str  # recording, features or run
    name: str  # of the recording, the view or the run
    cause: str  # one line


@dataclass(kw_only=True)
class Throughput:
    """How fast pictures were drawn and described, compiling the backbone not counted."""

    pictures: int = 0
    seconds: float = 0.0
    device: str = ""  # for people; the last one

    @property
    def pictures_per_s(self) -> float | None:
        """Pictures per second; None where nothing was measured."""
        return self.pictures / self.seconds if self.seconds > 0 else None

    @classmethod
    def read(cls, path: Path) -> Throughput:
        """Read what was measured earlier; nothing where there is no such file."""
        return cls(**json.loads(path.read_text("utf-8"))) if path.exists() else cls()

    def write(self, path: Path) -> None:
        """Keep it beside the features, since those are not made again."""
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(asdict(self)))


@dataclass(frozen=True, kw_only=True)
class ViewFacts:
    """What is known of a view beside its scores."""

    key: str  # of its features
    n_parameters: int  # of the backbone, the classifier not counted
    n_features: int
    weights: str  # where they come from, for people
    throughput: Throughput

    @property
    def is_random(self) -> bool:
        """Whether the weights are random."""
        return self.weights.startswith("random")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a grid point."""

    point: GridPoint
    facts: ViewFacts | None  # of its view; None where it has none
    name: str = ""  # of its folder in runs; empty where it never came to that
    metrics: dict[str, Any] | None = None  # what its metrics.json holds; None where it failed
    cause: str = ""  # why it failed
    reused: bool = False  # the run was there already

    @property
    def view_key(self) -> str:
        """Key of its features; empty where there are no pictures."""
        return "" if self.facts is None else self.facts.key


class PictureOutcome(NamedTuple):
    """A grid point with pictures, and what became of it."""

    view: PictureView
    facts: ViewFacts
    fit: FitOptions
    outcome: Outcome


def by_task(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """Group outcomes by their classes and by what is left out together."""
    tasks: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        tasks.setdefault(describe_task(outcome.point.fit), []).append(outcome)
    return tasks


def warnings_of(outcomes: Iterable[Outcome]) -> list[str]:
    """Give the warnings of runs, each once."""
    found = [w for o in outcomes for w in (o.metrics or {}).get("warnings", [])]
    return list(dict.fromkeys(found))


def picture_outcomes(outcomes: Iterable[Outcome]) -> list[PictureOutcome]:
    """Give the outcomes that have pictures, in order."""
    return [
        PictureOutcome(o.point.view, o.facts, o.point.fit, o)
        for o in outcomes
        if o.point.view is not None and o.facts is not None
    ]


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep made."""

    path: Path
    devices: Path
    grid: Grid
    outcomes: tuple[Outcome, ...]  # in the grid's order; none where recordings failed
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]
    seed: int
    device: str  # as given
    seconds: float  # what this call took

    @property
    def done(self) -> tuple[Outcome, ...]:
        """What has scores."""
        return tuple(o for o in self.outcomes if o.metrics is not None)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "folder": str(self.path),
            "grid": self.grid.name,
            "n_runs": len(self.outcomes),
            "done": len(self.done),
            "reused": sum(o.reused for o in self.outcomes),
            "runs": [{"name": o.name, "metrics": o.metrics} for o in self.done],
            "failed": [f._asdict() for f in self.failures],
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
        }
