"""Features of all pictures and windows of a sweep, a backbone at a time.

What enters: a devices file, a store and views that share a backbone. What leaves: published
features, what failed, and how fast pictures were described. Each recording is gone through once for
all views of a backbone, which is compiled once; this is the one place that decides so.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from toptune.errors import StorageError, ToptuneError
from toptune.extraction_job import Extraction
from toptune.features.describing import Begun, Describer, LazyEngine, begin_views
from toptune.machine.durable import write_whole, writing
from toptune.machine.progress import Progress
from toptune.recordings.devices import DevicesFile
from toptune.recordings.trains import SpikeTrains
from toptune.store.feature_store import recording_name
from toptune.store.session import StoreSession
from toptune.sweeps.grid import View

if TYPE_CHECKING:
    from toptune.pictures.drawer_cuda import ResidentSpikes

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
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(asdict(self)))


class ViewJob:
    """One view of a sweep: its extraction, and how fast it went.

    Parameters
    ----------
    view
        What is drawn and what describes it.
    extraction
        Of that view.
    engine
        The backbone, shared.
    measured
        File in which its throughput is kept.
    device
        Where pictures are described, for people.
    took
        Told the view, pictures and seconds of each recording.

    Attributes
    ----------
    failed
        Recordings whose features could not be made, with the cause.
    """

    def __init__(
        self,
        view: View,
        extraction: Extraction,
        engine: LazyEngine,
        measured: Path,
        device: str,
        took: Callable[[View, int, float], None],
    ) -> None:
        self.view = view
        self.extraction = extraction
        self.key = extraction.feature_set.key
        self.failed: list[tuple[str, str]] = []
        self.throughput = Throughput.read(measured)
        self._measured = measured
        self._device = device
        self._tell = took
        self._engine = engine
        extraction.begin = self._begin

    def _begin(
        self,
        trains: SpikeTrains,
        describers: Sequence[Describer],
        stage: Callable[[str, int, int], None],
        resident: ResidentSpikes | None = None,
    ) -> Begun:
        """Describe, and measure how long that takes; so it waits for the features."""
        self._engine.get()  # compiled once for all views: no part of what a picture takes
        begin = time.perf_counter()
        begun = begin_views(trains, describers, stage, resident)
        pictures = sum(len(described.features) for described in begun.result())
        self._took(pictures, time.perf_counter() - begin)
        return begun

    def _took(self, pictures: int, seconds: float) -> None:
        if pictures:
            self.throughput.pictures += pictures
            self.throughput.seconds += seconds
            self.throughput.device = self._device
            self.throughput.write(self._measured)
        self._tell(self.view, pictures, seconds)


def find_all_spikes(
    devices: DevicesFile, extraction: Extraction, session: StoreSession, progress: Progress
) -> Iterator[Failure]:
    """Bring the spikes of all recordings into the store; yields what failed."""
    for number, row in enumerate(devices.rows, 1):
        progress.recording(number, len(devices.rows), row.written)
        name = recording_name(row.written)
        with session.claim(name, wait=True):
            cause = attempt(partial(extraction.spikes_of, row, name))
        if cause is not None:
            yield Failure("recording", row.written, cause)


def describe_all(
    devices: DevicesFile, jobs: Sequence[ViewJob], session: StoreSession, progress: Progress
) -> None:
    """Bring the features of all views of one backbone into the store; failures stay in the jobs."""
    for number, row in enumerate(devices.rows, 1):
        progress.recording(number, len(devices.rows), row.written)
        name = recording_name(row.written)
        with session.claim(name, wait=True):
            for job in jobs:
                cause = attempt(partial(job.extraction.one, row, name))
                if cause is not None:
                    job.failed.append((row.written, cause))


def attempt(work: Callable[[], object]) -> str | None:
    """Do some work; give the cause in one line where it fails."""
    try:
        work()
    except StorageError:
        raise  # nothing else could be written either
    except ToptuneError as error:
        return " ".join(str(error).split())
    except Exception as error:  # noqa: BLE001  # told, with its traceback
        # Whatever it is, the rest of a long sweep goes on; the traceback says where to look.
        _LOG.exception("unforeseen")
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None
