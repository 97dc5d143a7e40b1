"""From a devices file to a store full of features.

What enters: a devices file and parameters. What leaves: published spikes and features of every
recording, and a list of what was done, reused, too short or failed. What is published with the same
key is not done again; spikes are shared by all windows, pictures and backbones.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from toptune.errors import InputError, InputErrors, StorageError, ToptuneError
from toptune.extraction_job import Extraction, load_engine
from toptune.features.table import RecordingInfo
from toptune.machine.background import BackgroundWriter
from toptune.machine.cuda import accelerator
from toptune.machine.durable import write_whole, writing
from toptune.machine.progress import Progress, Silent
from toptune.params import Backbone, Picture, SpikeSettings, Windows
from toptune.recordings.devices import DeviceRow, DevicesFile, read_devices
from toptune.spikes.finding import check_recording
from toptune.store.feature_store import FeatureSet, FeatureStore, recording_name
from toptune.store.session import StoreSession, refuse_other_settings, writing_session

if TYPE_CHECKING:
    from toptune.backbones.engine import Precision

__all__ = ["Extracted", "SpikeSettings", "extract"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """What an extraction did.

    Parameters
    ----------
    store
        Where it went.
    feature_set
        What was extracted.
    done, reused
        Recordings whose features were made now, or were there already.
    spikes_reused
        Of those made now, how many had their spikes in the store.
    too_short
        Recordings (as the devices file writes them) shorter than a window; kept, without features.
    failed
        (recording, cause) of each that failed; only with ``keep_going``.
    n_windows
        Windows of all listed recordings together.
    notes
        What a user should know of single recordings: dead or over-noisy channels.
    """

    store: Path
    feature_set: FeatureSet
    done: int
    reused: int
    spikes_reused: int
    too_short: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    n_windows: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "store": str(self.store),
            "features_key": self.feature_set.key,
            "features": self.feature_set.params,
            "done": self.done,
            "reused": self.reused,
            "spikes_reused": self.spikes_reused,
            "n_windows": self.n_windows,
            "too_short": list(self.too_short),
            "failed": [{"recording": r, "cause": c} for r, c in self.failed],
            "notes": list(self.notes),
        }


def extract(
    devices: Path | str,
    store: Path | str,
    *,
    windows: Windows | None = None,
    picture: Picture | None = None,
    backbone: Backbone | None = None,
    spikes: SpikeSettings | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    batch_size: int | None = None,
    n_jobs: int | None = None,
    keep_going: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Extracted:
    """Bring the features of every listed recording into a store.

    Parameters
    ----------
    devices
        The devices file.
    store
        A store to go on with, or a new folder.
    windows, picture, backbone, spikes
        What to extract; the defaults of their classes where None.
    device
        ``auto``, ``cpu`` or ``cuda``, for spikes and features.
    precision
        In which backbones compute: ``auto`` is 16 bits on CUDA and float32 on the CPU.
    batch_size
        Pictures a batch; the engine's choice where None.
    n_jobs
        Threads; None for one a core.
    keep_going
        Go on after a recording that cannot be opened or fails, and list it; otherwise its error
        ends the extraction. What was published stays in either case.
    overwrite
        Start the store anew; the old one is removed when everything has been checked.
    progress
        Watches.

    Raises
    ------
    InputError
        Problems with the devices file or any recording's header (all at once, before any work), an
        unknown backbone, weights that do not fit, or a store whose spikes were found otherwise, or
        into which another process is extracting other recordings.
    StorageError
        The store cannot be written.
    """
    listed = read_devices(Path(devices))
    spikes = spikes or SpikeSettings()
    store = Path(store)
    refuse_store(store, spikes, overwrite=overwrite)
    opened = open_recordings(listed, spikes)
    if opened.refused and (not keep_going or len(opened.refused) == len(listed.rows)):
        raise InputErrors(opened.problems(listed))
    backbone = backbone or Backbone()
    spike_device = accelerator(device) if opened.voltage else None
    job = Extraction(
        spikes,
        windows or Windows(),
        picture or Picture(),
        backbone,
        load_engine(
            backbone, device=device, precision=precision, batch_size=batch_size, n_jobs=n_jobs
        ),
        spike_device,
        n_jobs,
        progress or Silent(),
    )
    for warning in listed.thin_classes:
        _LOG.warning("%s (fine here; fit refuses it, unless classes are merged)", warning)
        job.notes.append(warning)
    batch = _Batch(listed, job, keep_going=keep_going)
    batch.refuse(opened.refused)
    # Only now, so that what is refused above leaves the disk as it was.
    with writing_session(
        store, spikes.to_json(), batch.infos, devices_file=listed.path, anew=overwrite
    ) as session:
        return batch.run(session)


def refuse_store(path: Path, spikes: SpikeSettings, *, overwrite: bool = False) -> None:
    """Refuse what is no store, to be overwritten or not, and one with other spikes than wanted.

    Raises
    ------
    InputError
        Names the first setting that differs.
    """
    if path.exists():
        FeatureStore(path)
        if not overwrite:
            refuse_other_settings(path, spikes.to_json())


class Opened(NamedTuple):
    """What opening every recording showed.

    Attributes
    ----------
    refused : list of (DeviceRow, ToptuneError)
        Recordings that cannot be opened, with the reason.
    voltage : bool
        Whether any of the others holds voltage.
    """

    refused: list[tuple[DeviceRow, ToptuneError]]
    voltage: bool

    def problems(self, devices: DevicesFile) -> list[str]:
        """Tell each refusal with its line."""
        return [f"{devices.path}, line {row.line}: {error}" for row, error in self.refused]


def open_recordings(devices: DevicesFile, spikes: SpikeSettings) -> Opened:
    """Open every recording, before any work."""
    refused: list[tuple[DeviceRow, ToptuneError]] = []
    voltage = False
    for row in devices.rows:
        try:
            with _reading(row):
                voltage |= check_recording(row.recording, spikes) is not None
        except ToptuneError as error:
            refused.append((row, error))
    return Opened(refused, voltage)


def list_devices(devices: DevicesFile) -> tuple[RecordingInfo, ...]:
    """Say of each row what a store keeps of it, in the file's order."""
    return tuple(
        RecordingInfo(recording_name(r.written), r.device, r.label, r.columns) for r in devices.rows
    )


class _Batch:
    """All listed recordings, shared with other processes that extract the same."""

    def __init__(self, devices: DevicesFile, job: Extraction, *, keep_going: bool) -> None:
        self.devices = devices
        self.infos = list_devices(devices)
        self.job = job
        self.keep_going = keep_going
        self.failed: dict[str, str] = {}
        self.windows_of: dict[str, int] = {}

    def refuse(self, refused: Iterable[tuple[DeviceRow, ToptuneError]]) -> None:
        """List recordings that could not be opened, before anything is done."""
        for row, error in refused:
            self._list(row.written, error)

    def run(self, session: StoreSession) -> Extracted:
        job = self.job
        job.store = session.store
        # Closed at once also after an error, so that no claim outlives it; the writer before them.
        with closing(self._shared_out(session)) as work, BackgroundWriter() as job.writer:
            for row, name in work:
                try:
                    with _reading(row):
                        self.windows_of[row.written] = job.one(row, name)
                except ToptuneError as error:
                    self._failed(row.written, error)
                self._settle(job.writer)
            job.writer.wait()
            self._settle(job.writer)
        order = [row.written for row in self.devices.rows]
        failed = tuple((r, self.failed[r]) for r in order if r in self.failed)
        _write_failures(session.store.path.with_suffix(".failures.csv"), failed)
        return Extracted(
            store=session.store.path,
            feature_set=job.feature_set,
            done=len(order) - len(failed) - job.reused,
            reused=job.reused,
            spikes_reused=job.spikes_reused,
            too_short=tuple(r for r in order if self.windows_of.get(r) == 0),
            failed=failed,
            n_windows=sum(self.windows_of.values()),
            notes=tuple(job.notes),
        )

    def _shared_out(self, session: StoreSession) -> Generator[tuple[DeviceRow, str], None, None]:
        """Go through the recordings, claiming each; first those no other process is busy with."""
        rows = zip(self.devices.rows, self.infos, strict=True)
        left = [(row, info.name) for row, info in rows if row.written not in self.failed]
        number = len(self.infos) - len(left)
        for wait in (False, True):
            busy = []
            for row, name in left:
                if wait:
                    _LOG.warning("waiting for another process that works on %s", row.written)
                # Whoever writes the recording in the background takes the claim over.
                with ExitStack() as self.job.claim:
                    if not self.job.claim.enter_context(session.claim(name, wait=wait)):
                        busy.append((row, name))
                        continue
                    number += 1
                    self.job.progress.recording(number, len(self.infos), row.written)
                    yield row, name
            left = busy

    def _settle(self, writer: BackgroundWriter) -> None:
        """Treat errors of writing as those of the recordings that were written."""
        for written, error in writer.take_failures():
            self._failed(written, error)

    def _failed(self, written: str, error: BaseException) -> None:
        """List a recording as failed where told to go on; otherwise, or on a defect, raise."""
        # Where one recording could not be stored, no other could be either.
        fatal = isinstance(error, StorageError) or not isinstance(error, ToptuneError)
        if fatal or not self.keep_going:
            raise error
        self.windows_of.pop(written, None)
        self._list(written, error)

    def _list(self, written: str, error: BaseException) -> None:
        self.failed[written] = " ".join(str(error).split())
        _LOG.error("%s failed: %s", written, self.failed[written])


@contextmanager
def _reading(row: DeviceRow) -> Iterator[None]:
    """Let what a bad recording raises, foreseen or not, be that recording's failure."""
    try:
        yield
    except ToptuneError:
        raise
    except OSError as error:
        raise InputError(f"{row.recording}: cannot be read ({error.strerror or error})") from error
    except Exception as error:
        # A batch of hours must not end at one file that a reader stumbles over.
        _LOG.debug("%s", row.recording, exc_info=True)
        raise ToptuneError(
            f"{row.recording}: failed unexpectedly ({type(error).__name__}: {error}); please report"
            " this with the recording"
        ) from error


def _write_failures(path: Path, failed: Iterable[tuple[str, str]]) -> None:
    rows = [("recording", "cause"), *failed]
    with writing(path):
        if len(rows) == 1:
            path.unlink(missing_ok=True)
            return
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        write_whole(path, text.getvalue())
