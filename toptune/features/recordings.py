"""The one way from recordings to features, which extract, predict, why and sweep share.

All recordings are opened before any work (`check_recordings`). Then each is opened once more: its
spikes are found on the device that was asked for (`SpikeFinder`), and features are computed from
them (`toptune.features.extractor.start_features`). A recording that fails is listed, or ends the
work (`RecordingBatch`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from toptune.errors import InputError, StorageError, ToptuneError
from toptune.features.extractor import StageReporter
from toptune.machine.cuda import accelerator
from toptune.machine.interruption import heed_interrupt
from toptune.machine.remote import read_ahead, release
from toptune.params import Compute, SpikeSettings
from toptune.spikes import finding

if TYPE_CHECKING:
    from toptune.pictures.drawers import Drawers
    from toptune.recordings.objects import NamedRecording

_LOG = logging.getLogger(__name__)
# Of so many recordings by URL the headers are read together.
_AHEAD = 64


class ProgressReporter(Protocol):
    """Shows the progress of work on recordings; every call may be ignored."""

    def recording(self, number: int, total: int, name: str) -> None:
        """Note that recording `number` of `total` begins."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Note that in a stage of its work `done` of `total` samples or windows are done."""


class SilentReporter:
    """Shows nothing."""

    def recording(self, number: int, total: int, name: str) -> None:
        """Ignore."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Ignore."""


class Preflight(NamedTuple):
    """What opening every recording showed."""

    refused: dict[str, ToptuneError]  # that cannot be worked on, by name, with the reason
    voltage: bool  # any recording that could be opened holds voltage


def check_recordings(
    recordings: Mapping[str, tuple[Path | NamedRecording, SpikeSettings]],
    require: Callable[[str, finding.Header], None] | None = None,
) -> Preflight:
    """Open every recording, before any work.

    Parameters
    ----------
    recordings
        By name, as the user wrote it: where, and how its spikes are to be found.
    require
        Called with the name and header of each recording of voltage; may refuse it.
    """
    refused: dict[str, ToptuneError] = {}
    voltage = False
    for number, (name, (path, settings)) in enumerate(recordings.items()):
        if number % _AHEAD == 0:
            read_ahead(one for one, _ in islice(recordings.values(), number, number + _AHEAD))
        try:
            with reading(path):
                header = finding.check_recording(path, settings)
                if header is not None:
                    voltage = True
                    if require is not None:
                        require(name, header)
        except ToptuneError as error:
            refused[name] = error
    return Preflight(refused, voltage)


class SpikeFinder:
    """Finds the spikes of any number of recordings, on the device that `compute` asks for.

    Without `voltage` in any recording no GPU is needed; where it is asked for and there is none,
    that is an `InputError`.
    """

    def __init__(self, settings: SpikeSettings, compute: Compute, *, voltage: bool) -> None:
        self.settings = settings
        self._device = accelerator(compute.device) if voltage else None
        self._n_jobs = compute.n_jobs

    def find(
        self,
        path: Path | NamedRecording,
        stage: StageReporter,
        settings: SpikeSettings | None = None,
    ) -> finding.FoundSpikes:
        """Open a recording and find its spikes, with settings of its own if they are given."""
        return finding.find_spikes(
            path,
            settings or self.settings,
            device=self._device,
            n_jobs=self._n_jobs,
            stage=stage,
        )


def drawers_of(found: finding.FoundSpikes) -> Drawers:
    """Prepare spikes that were just found for extractors; on a GPU they stay where they are."""
    from toptune.pictures.drawers import Drawers

    if found.on_device is None:
        return Drawers(found.trains)
    from toptune.pictures.drawer_cuda import ResidentSpikes

    on_device = found.on_device
    return Drawers(found.trains, ResidentSpikes(on_device.sample, on_device.channel))


class RecordingBatch:
    """Several recordings that are worked on one after the other, of which some may fail.

    Parameters
    ----------
    names
        Of all recordings, as the user wrote them.
    keep_going
        List a recording that fails, and go on; otherwise its error ends the work.
    progress
        Shows which recording is worked on.
    """

    def __init__(
        self, names: Sequence[str], *, keep_going: bool, progress: ProgressReporter
    ) -> None:
        self.names = tuple(names)
        self._keep_going = keep_going
        self._progress = progress
        self._failed: dict[str, str] = {}
        self._number = 0

    @property
    def failed(self) -> tuple[tuple[str, str], ...]:
        """(recording, cause) of each that failed, in the order of all recordings."""
        return tuple((n, self._failed[n]) for n in self.names if n in self._failed)

    @property
    def left(self) -> list[str]:
        """Those that have not failed."""
        return [name for name in self.names if name not in self._failed]

    def refuse(self, refused: Mapping[str, ToptuneError]) -> None:
        """List recordings that cannot be worked on, before any work."""
        for name, error in refused.items():
            self._list(name, error)
            self._number += 1

    @contextmanager
    def working_on(self, name: str, path: Path | NamedRecording) -> Iterator[None]:
        """Work on a recording; what is raised inside is that recording's failure."""
        self._number += 1
        self._progress.recording(self._number, len(self.names), name)
        try:
            with reading(path):
                yield
        except ToptuneError as error:
            self.fail(name, error)

    def fail(self, name: str, error: BaseException) -> None:
        """List a recording as failed if `keep_going`; otherwise, or on a defect, raise."""
        # Where one recording could not be stored, no other could be either.
        fatal = isinstance(error, StorageError) or not isinstance(error, ToptuneError)
        if fatal or not self._keep_going:
            raise error
        self._list(name, error)

    def _list(self, name: str, error: BaseException) -> None:
        self._failed[name] = one_line(error)
        _LOG.error("%s failed: %s", name, self._failed[name])


def one_line(error: BaseException) -> str:
    """Give an error's message in one line."""
    return " ".join(str(error).split())


@contextmanager
def reading(path: Path | NamedRecording) -> Iterator[None]:
    """Turn whatever a bad recording raises into an error that names the recording."""
    try:
        yield
    except ToptuneError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:
        heed_interrupt(error)
        # A batch of hours must not end at one file that a reader stumbles over.
        _LOG.debug("%s", path, exc_info=True)
        raise ToptuneError(
            f"{path}: failed unexpectedly ({type(error).__name__}: {error}); please report"
            " this with the recording"
        ) from error
    finally:
        # The copy of what was read by a URL may go, where others need its room.
        release(getattr(path, "source", path))
