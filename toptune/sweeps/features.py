"""Features of all pictures and windows of a sweep, a backbone at a time.

Each recording is gone through once for all views of a backbone, which is compiled once; this is the
one place that decides so. What fails is listed, and how fast pictures were described is measured.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from toptune.errors import StorageError, ToptuneError
from toptune.extraction import PublishedSpikes, StoredFeatures, StoredSpikes
from toptune.features.recordings import one_line
from toptune.machine.progress import ProgressReporter
from toptune.recordings.devices import DeviceRow, DevicesFile
from toptune.store.feature_store import recording_name
from toptune.store.session import StoreSession
from toptune.sweeps.grid import PictureView
from toptune.sweeps.results import Failure, Throughput, ViewFacts

_LOG = logging.getLogger(__name__)


class ViewJob:
    """One view of a sweep: its features, and how fast they were made.

    Throughputs are kept in the folder `measured`; `device` is where pictures are described, for
    people; `took` is called with the view, pictures and seconds of each recording.
    """

    def __init__(
        self,
        view: PictureView,
        features: StoredFeatures,
        measured: Path,
        device: str,
        took: Callable[[PictureView, int, float], None],
    ) -> None:
        self.view = view
        self.features = features
        self.key = features.feature_set.key
        self.description = features.feature_set.description
        self.failed: list[tuple[str, str]] = []  # recordings, with the cause
        self._measured = measured / f"{self.key}.json"
        self._device = device
        self._took = took
        self.throughput = Throughput.read(self._measured)

    @property
    def facts(self) -> ViewFacts:
        """What is known of the view beside scores."""
        loaded = self.features.engine.loaded
        return ViewFacts(
            key=self.key,
            n_parameters=loaded.n_parameters,
            n_features=loaded.n_features,
            weights=loaded.weights,
            throughput=self.throughput,
        )

    def update(self, spikes: PublishedSpikes) -> None:
        """Bring the features of one recording up to date, and measure how long that takes."""
        if self.features.published(spikes) is not None:
            return
        # Neither is part of what a picture takes: all views share both.
        self.features.engine.compile()
        _ = spikes.drawers
        begin = time.perf_counter()
        rows = self.features.start(spikes).result()
        pictures, seconds = len(rows.features), time.perf_counter() - begin
        if pictures:
            self.throughput.pictures += pictures
            self.throughput.seconds += seconds
            self.throughput.device = self._device
            self.throughput.write(self._measured)
        self._took(self.view, pictures, seconds)
        self.features.write(spikes, rows)


def find_all_spikes(
    devices: DevicesFile, spikes_of: StoredSpikes, session: StoreSession, progress: ProgressReporter
) -> Iterator[Failure]:
    """Bring the spikes of all recordings into the store; yields what failed."""
    for row in _claimed(devices, session, progress):
        cause = attempt(partial(spikes_of.update, row))
        if cause is not None:
            yield Failure("recording", row.written, cause)


def extract_all(
    devices: DevicesFile,
    jobs: Sequence[ViewJob],
    spikes_of: StoredSpikes,
    session: StoreSession,
    progress: ProgressReporter,
) -> None:
    """Bring the features of all views of one backbone into the store; failures stay in the jobs."""

    def update(row: DeviceRow) -> None:
        spikes = spikes_of.update(row)
        for job in jobs:
            cause = attempt(partial(job.update, spikes))
            if cause is not None:
                job.failed.append((row.written, cause))

    for row in _claimed(devices, session, progress):
        cause = attempt(partial(update, row))
        if cause is not None:
            for job in jobs:
                job.failed.append((row.written, cause))


def _claimed(
    devices: DevicesFile, session: StoreSession, progress: ProgressReporter
) -> Iterator[DeviceRow]:
    """Go through the recordings, claiming each until the next one is asked for."""
    for number, row in enumerate(devices.rows, 1):
        progress.recording(number, len(devices.rows), row.written)
        with session.claim(recording_name(row.written), wait=True):
            yield row


def attempt(work: Callable[[], object]) -> str | None:
    """Do some work; if it fails, give the cause in one line."""
    try:
        work()
    except StorageError:
        raise  # nothing else could be written either
    except ToptuneError as error:
        return one_line(error)
    except Exception as error:  # noqa: BLE001  # logged with its traceback
        # Whatever it is, the rest of a long sweep goes on; the traceback says where to look.
        _LOG.exception("an unexpected error")
        return f"{type(error).__name__}: {one_line(error)}"
    return None
