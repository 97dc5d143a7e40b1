"""What a sweep reports: while it works, and when it is done. Times are in seconds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from toptune.machine.durable import write_whole, writing
from toptune.machine.progress import ProgressReporter
from toptune.params import FitOptions
from toptune.sweeps.grid import Grid, GridPoint, PictureView


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


class Failure(NamedTuple):
    """Something that could not be done.

    Attributes
    ----------
    what : str
        ``recording``, ``features`` or ``run``.
    name : str
        Of the recording, the view or the run.
    cause : str
        One line.
    """

    what: str
    name: str
    cause: str


@dataclass(kw_only=True)
class Throughput:
    """How fast pictures were drawn and described, compiling the backbone not counted.

    Parameters
    ----------
    pictures, seconds
        In all that was measured.
    device
        Where, for people; the last one.
    """

    pictures: int = 0
    seconds: float = 0.0
    device: str = ""

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
    """What is known of a view beside its scores.

    Parameters
    ----------
    key
        Of its features.
    n_parameters
        Of the backbone, the classifier not counted.
    n_features
        Length of a feature vector.
    weights
        Where they come from, for people.
    throughput
        Pictures per second.
    """

    key: str
    n_parameters: int
    n_features: int
    weights: str
    throughput: Throughput


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a grid point.

    Parameters
    ----------
    point
        What it is.
    facts
        Of its view; None where it has none.
    name
        Of its folder in ``runs``; empty where it never came to that.
    metrics
        What its metrics.json holds; None where it failed.
    cause
        Why it failed.
    reused
        The run was there already.
    """

    point: GridPoint
    facts: ViewFacts | None
    name: str = ""
    metrics: dict[str, Any] | None = None
    cause: str = ""
    reused: bool = False

    @property
    def view_key(self) -> str:
        """Key of its features; empty where there are no pictures."""
        return "" if self.facts is None else self.facts.key


class PictureOutcome(NamedTuple):
    """A grid point with pictures, and what became of it.

    Attributes
    ----------
    view : PictureView
    facts : ViewFacts
    fit : FitOptions
    outcome : Outcome
    """

    view: PictureView
    facts: ViewFacts
    fit: FitOptions
    outcome: Outcome

    @property
    def metrics(self) -> dict[str, Any]:
        """Its scores; an error where it has none."""
        assert self.outcome.metrics is not None
        return self.outcome.metrics


def picture_outcomes(outcomes: Iterable[Outcome]) -> list[PictureOutcome]:
    """Give the outcomes that have pictures, in order."""
    return [
        PictureOutcome(o.point.view, o.facts, o.point.fit, o)
        for o in outcomes
        if o.point.view is not None and o.facts is not None
    ]


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep made.

    Parameters
    ----------
    path
        Its folder.
    devices
        The devices file.
    grid
        What was asked for.
    outcomes
        In the grid's order; none where recordings failed.
    failures
        Everything that could not be done.
    notes
        What a user should know.
    seed, device
        As given.
    seconds
        What this call took.
    """

    path: Path
    devices: Path
    grid: Grid
    outcomes: tuple[Outcome, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]
    seed: int
    device: str
    seconds: float

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
