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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toptune.background import BackgroundWriter
from toptune.cuda import Accelerator, accelerator
from toptune.describing import (
    BackboneIdentity,
    Begun,
    Describer,
    LazyEngine,
    ViewParams,
    begin_views,
)
from toptune.devices import DeviceRow, DevicesFile, read_devices
from toptune.durable import write_whole, writing
from toptune.errors import InputError, InputErrors, StorageError, ToptuneError
from toptune.facts import WeightsSource
from toptune.featuretable import RecordingInfo
from toptune.finding import SpikeSettings, check_recording, find_spikes
from toptune.fingerprint import file_sha256, stamp_of
from toptune.params import Backbone, Picture, Windows, content_key
from toptune.progress import Progress, Silent
from toptune.store import VERSION, FeatureSet, FeatureStore, recording_name
from toptune.store_session import StoreSession, refuse_other_settings, writing_session

if TYPE_CHECKING:
    from toptune.features import Precision

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
    if store.exists():
        FeatureStore(store)  # refuses what is no store, to be overwritten or not
        if not overwrite:
            refuse_other_settings(store, spikes.to_json())
    refused, voltage = _preflight(listed, spikes)
    if refused and (not keep_going or len(refused) == len(listed.rows)):
        raise InputErrors([f"{listed.path}, line {row.line}: {e}" for row, e in refused])
    job = _Job(
        listed,
        spikes,
        windows or Windows(),
        picture or Picture(),
        backbone or Backbone(),
        accelerator(device) if voltage else None,
        n_jobs,
        progress or Silent(),
    )
    job.prepare_engine(device, batch_size, precision)
    job.refuse(refused)
    # Only now, so that what is refused above leaves the disk as it was.
    with writing_session(store, spikes.to_json(), job.infos, anew=overwrite) as session:
        return job.run(session, keep_going=keep_going)


def _preflight(
    devices: DevicesFile, spikes: SpikeSettings
) -> tuple[list[tuple[DeviceRow, InputError]], bool]:
    """Open every recording; give those that cannot be, with the reason, and if any is voltage."""
    refused = []
    voltage = False
    for row in devices.rows:
        try:
            voltage |= check_recording(row.recording, spikes) is not None
        except InputError as error:
            refused.append((row, error))
    return refused, voltage


class _Job:
    """One extraction."""

    def __init__(
        self,
        devices: DevicesFile,
        spikes: SpikeSettings,
        windows: Windows,
        picture: Picture,
        backbone: Backbone,
        spike_device: Accelerator | None,
        n_jobs: int | None,
        progress: Progress,
    ) -> None:
        self.devices = devices
        self.spikes = spikes
        self.windows = windows
        self.picture = picture
        self.backbone = backbone
        self.spike_device = spike_device
        self.n_jobs = n_jobs
        self.progress = progress
        self.infos = tuple(
            RecordingInfo(recording_name(r.written), r.device, r.label, r.columns)
            for r in devices.rows
        )
        self.notes: list[str] = []
        self.spikes_reused = 0
        self.reused = 0
        self.failed: dict[str, str] = {}
        self.windows_of: dict[str, int] = {}
        self.keep_going = False

    def prepare_engine(
        self, device: str, batch_size: int | None, precision: Precision = "auto"
    ) -> None:
        import torch

        from toptune.backbones import load_backbone
        from toptune.features import resolve_precision
        from toptune.hardware import torch_device

        device = torch_device(device)
        resolve_precision(precision, torch.device(device))
        loaded = load_backbone(self.backbone)
        view = ViewParams(
            windows=self.windows,
            picture=self.picture,
            backbone=BackboneIdentity.of(loaded, self.backbone),
        )
        self.feature_set = FeatureSet.of(view.to_json())
        # Compiled when first needed: a store that is complete needs none.
        engine = LazyEngine(loaded, device, batch_size, self.n_jobs, precision)
        self.describer = Describer(self.windows, self.picture, engine)

    def refuse(self, refused: Iterable[tuple[DeviceRow, InputError]]) -> None:
        """List recordings that could not be opened, before anything is done."""
        for row, error in refused:
            self._list(row.written, error)

    def run(self, session: StoreSession, *, keep_going: bool) -> Extracted:
        self.store = session.store
        self.keep_going = keep_going
        # Closed at once also after an error, so that no claim outlives it; the writer before them.
        with closing(self._shared_out(session)) as work, BackgroundWriter() as self.writer:
            for row, name in work:
                try:
                    with _reading(row):
                        self.windows_of[row.written] = self._one(row, name)
                except ToptuneError as error:
                    self._failed(row.written, error)
                self._settle()
            self.writer.wait()
            self._settle()
        order = [row.written for row in self.devices.rows]
        failed = tuple((r, self.failed[r]) for r in order if r in self.failed)
        _write_failures(self.store.path.with_suffix(".failures.csv"), failed)
        return Extracted(
            store=self.store.path,
            feature_set=self.feature_set,
            done=len(order) - len(failed) - self.reused,
            reused=self.reused,
            spikes_reused=self.spikes_reused,
            too_short=tuple(r for r in order if self.windows_of.get(r) == 0),
            failed=failed,
            n_windows=sum(self.windows_of.values()),
            notes=tuple(self.notes),
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
                with ExitStack() as self.claim:
                    if not self.claim.enter_context(session.claim(name, wait=wait)):
                        busy.append((row, name))
                        continue
                    number += 1
                    self.progress.recording(number, len(self.infos), row.written)
                    yield row, name
            left = busy

    def _settle(self) -> None:
        """Treat errors of writing as those of the recordings that were written."""
        for written, error in self.writer.take_failures():
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

    def _one(self, row: DeviceRow, name: str) -> int:
        """Bring one recording up to date; returns its windows."""
        source = self._input(row, name)
        spikes_key = content_key(
            {"input": source["sha256"], "settings": self.spikes.to_json(), "version": VERSION}
        )
        info = self.store.spikes_info(name)
        there = info is not None and info["key"] == spikes_key
        key = content_key({"spikes": spikes_key, "features": self.feature_set.key})
        if there:
            published = self.store.features_info(name, self.feature_set.key)
            if published is not None and published["key"] == key:
                self.reused += 1
                return int(published["n_windows"])
            self.spikes_reused += 1
        else:
            if info is not None:
                _LOG.warning("%s changed since it was extracted: doing it again", row.written)
            self._publish_spikes(row, name, spikes_key, source)
        return self._publish_features(row, name, key, source)

    def _input(self, row: DeviceRow, name: str) -> dict[str, Any]:
        """Fingerprint of the input; hashed anew only where size or time of a file changed."""
        stamp = stamp_of(row.recording)
        info = self.store.spikes_info(name)
        if info is not None and info["stamp"] == stamp:
            return {**info["input"], "stamp": stamp}
        return {"recording": row.written, "sha256": file_sha256(row.recording), "stamp": stamp}

    def _publish_spikes(self, row: DeviceRow, name: str, key: str, source: dict[str, Any]) -> None:
        found = find_spikes(
            row.recording, self.spikes, device=self.spike_device, n_jobs=self.n_jobs,
            stage=self.progress.stage,
        )  # fmt: skip
        # The key says which bytes the spikes came from: those that were hashed.
        if stamp_of(row.recording) != source["stamp"]:
            raise InputError(
                f"{row.recording}: the file changed while it was read: run extract again when"
                " nothing writes to it"
            )
        info: dict[str, Any] = {"key": key, "stamp": source["stamp"], "kind": found.kind}
        info["versions"] = _versions("toptune", "numpy", "numba", "h5py")
        info["input"] = {k: source[k] for k in ("recording", "sha256")}
        if found.stream is not None:
            info["stream"] = found.stream
            info["dead_channels"] = list(found.dead_channels)
            info["over_noisy_channels"] = list(found.over_noisy_channels)
        self.notes += [f"{row.written}: {note}" for note in found.notes]
        self.store.write_spikes(name, found.trains, info)

    def _publish_features(self, row: DeviceRow, name: str, key: str, source: dict[str, Any]) -> int:
        trains = self.store.read_spikes(name)
        begun = begin_views(trains, [self.describer], self.progress.stage)
        n_windows = len(begun.start_s[0])
        if not n_windows:
            _LOG.warning(
                "%s lasts %.1f s, less than a window of %g s: skipped",
                row.written, trains.duration_s, self.windows.width_s,
            )  # fmt: skip
        info = {
            "key": key,
            "n_windows": n_windows,
            "input": {k: source[k] for k in ("recording", "sha256")},
            "versions": _versions("toptune", "torch", "torchvision", "timm", "openvino"),
            "computed": self.describer.engine.computed.to_json(),
            "weights": _weights_source(self.backbone).to_json(),
        }
        # Waits for a GPU and writes while the next recording is read, and computed.
        claim = self.claim.pop_all()
        self.writer.submit(row.written, partial(self._write_features, name, begun, info, claim))
        return n_windows

    def _write_features(
        self, name: str, begun: Begun, info: dict[str, Any], claim: ExitStack
    ) -> None:
        with claim:
            (described,) = begun.result()
            features = described.features
            if not len(features):
                features = features[:, :1]
            self.store.write_features(name, features, described.start_s, self.feature_set, info)


def _weights_source(backbone: Backbone) -> WeightsSource:
    """Where prediction finds the same weights again; the keys know them by their sha256."""
    if backbone.weights == "imagenet":
        return WeightsSource()
    if backbone.weights == "random":
        return WeightsSource(seed=backbone.seed)
    return WeightsSource(path=str(Path(backbone.weights).resolve()))


def _versions(*programs: str) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in programs}


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
