"""Features of all pictures and windows of a sweep, a backbone at a time.

What enters: a devices file, a store and views. What leaves: published features, what failed, and
how fast pictures were described. This is the one place where a sweep extracts: view by view, those
of one backbone one after the other, so that it is compiled once, with spikes from the store after
the first view.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from toptune.describing import BackboneIdentity, LazyEngine, ViewParams
from toptune.errors import ToptuneError
from toptune.extraction import Extracted, SpikeSettings, extract
from toptune.grid import View
from toptune.progress import Progress
from toptune.run_folder import write_json
from toptune.store import FeatureSet

if TYPE_CHECKING:
    from toptune.features import FeatureEngine

_LOG = logging.getLogger(__name__)


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
        """Pictures a second; None where nothing was measured."""
        return self.pictures / self.seconds if self.seconds > 0 else None

    @classmethod
    def read(cls, path: Path) -> Throughput:
        """Read what was measured earlier; nothing where there is no such file."""
        return cls(**json.loads(path.read_text("utf-8"))) if path.exists() else cls()

    def write(self, path: Path) -> None:
        """Keep it beside the features, since those are not made again."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        write_json(part, asdict(self))
        part.replace(path)


class SharedEngine(LazyEngine):
    """A backbone that several extractions use, which tells when it is about to describe."""

    ready: Callable[[], object] | None = None

    def get(self) -> FeatureEngine:
        """Give the engine; compiled by the first call."""
        engine = super().get()
        if self.ready is not None:
            self.ready()
        return engine


class ViewJob:
    """One view of a sweep: its features, and how fast they were made.

    Parameters
    ----------
    view
        What is drawn and what describes it.
    engine
        The backbone, shared.
    measured
        Folder in which throughputs are kept.
    machine
        Where pictures are described, for people.

    Attributes
    ----------
    feature_set
        What the features are called in the store.
    failed
        (recording, cause) of those whose features could not be made.
    throughput
        Of all that was made so far.
    """

    def __init__(self, view: View, engine: SharedEngine, measured: Path, machine: str) -> None:
        self.view = view
        self.engine = engine
        params = ViewParams(
            windows=view.windows,
            picture=view.picture,
            backbone=BackboneIdentity.of(engine.loaded, view.backbone),
        )
        self.feature_set = FeatureSet.of(params.to_json())
        self.failed: tuple[tuple[str, str], ...] = ()
        self._measured = measured / f"{self.key}.json"
        self._machine = machine
        self.throughput = Throughput.read(self._measured)

    @property
    def key(self) -> str:
        """Of the feature set."""
        return self.feature_set.key

    def extract(
        self,
        devices: Path,
        store: Path,
        spikes: SpikeSettings,
        *,
        n_jobs: int | None,
        progress: Progress,
        took: Callable[[int, float], None],
    ) -> Extracted | None:
        """Bring the features into the store, as `extract` does; None where that broke off.

        Parameters
        ----------
        devices, store, spikes, n_jobs, progress
            As for `extract`.
        took
            Told now and then how many pictures were described since, and in how many seconds.
        """
        clock = _Clock(progress, took)
        self.engine.ready = clock.start

        def work() -> Extracted:
            return extract(
                devices,
                store,
                windows=self.view.windows,
                picture=self.view.picture,
                backbone=self.view.backbone,
                engine=self.engine,
                spikes=spikes,
                n_jobs=n_jobs,
                keep_going=True,
                progress=clock,
            )

        done: list[Extracted] = []
        cause = attempt(lambda: done.append(work()))
        self.engine.ready = None
        if cause is not None:
            self.failed = (("all recordings", cause),)
            return None
        self.failed = done[0].failed
        self._measure(done[0], clock)
        return done[0]

    def _measure(self, done: Extracted, clock: _Clock) -> None:
        seconds = clock.seconds
        if self.engine.device != "cpu":
            # There work is only queued when it is told of, so the whole is measured, where it held
            # nothing but describing.
            seconds = clock.since_first_s if done.spikes_reused == done.done else 0.0
        if clock.pictures and seconds > 0:
            self.throughput.pictures += clock.pictures
            self.throughput.seconds += seconds
            self.throughput.device = self._machine
            self.throughput.write(self._measured)


class _Clock:
    """Measures describing, from an engine being ready to the last batch, and passes on progress."""

    def __init__(self, progress: Progress, took: Callable[[int, float], None]) -> None:
        self._progress = progress
        self._took = took
        self._mark = self._first = 0.0
        self._done = 0
        self.pictures = 0
        self.seconds = 0.0

    @property
    def since_first_s(self) -> float:
        """Seconds since an engine was first ready."""
        return time.perf_counter() - self._first if self._first else 0.0

    def start(self) -> None:
        """Begin a recording's pictures."""
        self._mark = time.perf_counter()
        self._first = self._first or self._mark
        self._done = 0

    def recording(self, number: int, total: int, name: str) -> None:
        """Pass on."""
        self._progress.recording(number, total, name)

    def stage(self, name: str, done: int, total: int) -> None:
        """Count pictures, and pass on."""
        if name == "features":
            now = time.perf_counter()
            more, seconds = done - self._done, now - self._mark
            self._mark, self._done = now, done
            self.pictures += more
            self.seconds += seconds
            self._took(more, seconds)
        self._progress.stage(name, done, total)


def attempt(work: Callable[[], object]) -> str | None:
    """Do some work; give the cause in one line where it fails."""
    try:
        work()
    except ToptuneError as error:
        return " ".join(str(error).split())
    except Exception as error:  # noqa: BLE001  # told, with its traceback
        # Whatever it is, the rest of a long sweep goes on; the traceback says where to look.
        _LOG.exception("unforeseen")
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None
