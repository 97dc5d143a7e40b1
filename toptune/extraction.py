"""Extraction: the spikes and features of every listed recording, published in a store.

What is published with the same key is not done again; spikes are shared by all windows, pictures
and backbones. Several processes may extract into one store, and then share the recordings out; and
the workers of a cluster extract for one process, a recording a task.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.cluster import Cluster, open_cluster
from toptune.cluster.worker import RefusedWorkerError, kept, refuse_clock, threads_here
from toptune.errors import InputError, InputErrors
from toptune.features.extractor import (
    FeatureRows,
    PendingFeatures,
    StageReporter,
    start_features,
    unwatched,
)
from toptune.features.picture_features import (
    BackboneIdentity,
    PictureExtractor,
    PictureFeatureParams,
    load_engine,
)
from toptune.features.recordings import (
    Preflight,
    ProgressReporter,
    RecordingBatch,
    SilentReporter,
    SpikeFinder,
    check_recordings,
    drawers_of,
    reading,
)
from toptune.features.table import RecordingInfo
from toptune.machine.display import count, summary_html, summary_line
from toptune.machine.durable import write_whole, writing
from toptune.machine.fingerprint import file_sha256, stamp_of
from toptune.machine.remote import as_path
from toptune.machine.threads import BackgroundWriter
from toptune.params import Backbone, Compute, Picture, SpikeSettings, Windows
from toptune.recordings.devices import (
    DeviceRow,
    DevicesFile,
    label_doubts,
    read_devices,
    same_content,
)
from toptune.recordings.trains import SpikeTrains, WeightsSource, check_trains, spike_times_s
from toptune.store.feature_store import (
    FeatureSet,
    FeatureStore,
    features_key,
    precision_of,
    recording_name,
    spikes_key,
)
from toptune.store.places import place_of
from toptune.store.session import (
    StoreSession,
    Ticket,
    clock_folder,
    joined_session,
    refuse_other_settings,
    writing_session,
)

if TYPE_CHECKING:
    from toptune.backbones.engine import FeatureEngine
    from toptune.pictures.drawers import Drawers

_LOG = logging.getLogger(__name__)
# The share of windows without a spike from which a length is doubted.
_MOSTLY_EMPTY = 0.9
# From so many recordings on, a note counts them instead of naming them.
_SEVERAL = 4


@dataclass(frozen=True, kw_only=True)
class ExtractionResult:
    """What an extraction did."""

    store: Path
    feature_sets: tuple[FeatureSet, ...]  # one for each picture; empty: spikes only
    done: int  # recordings of which features, or spikes, were made now
    reused: int  # recordings whose features, or spikes, were all there already
    spikes_reused: int  # of those made now, how many had their spikes in the store
    too_short: tuple[str, ...]  # recordings, as the devices file writes them, shorter than a window
    # (recording, cause) of each that failed; only with `keep_going`
    failed: tuple[tuple[str, str], ...]
    n_windows: int  # of all listed recordings together; each is drawn as every picture
    # What a user should know of single recordings: dead or over-noisy channels
    notes: tuple[str, ...]

    @property
    def feature_set(self) -> FeatureSet:
        """The only feature set, or the first of several.

        Raises
        ------
        InputError
            Only spikes were extracted.
        """
        if not self.feature_sets:
            raise InputError(f"{self.store}: no picture was extracted, only spikes")
        return self.feature_sets[0]

    def __repr__(self) -> str:
        return summary_line(f"ExtractionResult {self.store}", self._told())

    def _repr_html_(self) -> str:
        told = [*self._told(), *(f"note: {note}" for note in self.notes)]
        header = ("failed", "cause") if self.failed else ()
        title = f"ExtractionResult {self.store}"
        return summary_html(title, told, header, self.failed, n_rows=len(self.failed))

    def _told(self) -> list[str]:
        told = [
            f"{count(self.done, 'recording')} extracted and {self.reused} there already",
            count(self.n_windows, "window") if self.feature_sets else "spikes only",
            *(one.description for one in self.feature_sets),
        ]
        told += [f"{len(self.too_short)} shorter than a window"] if self.too_short else []
        return [*told, f"{len(self.failed)} failed"] if self.failed else told

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        first = self.feature_sets[0] if self.feature_sets else None
        return {
            "store": str(self.store),
            "features_key": first.key if first else None,
            "features": first.params if first else None,
            "feature_sets": [
                {"key": one.key, "description": one.description, "params": one.params}
                for one in self.feature_sets
            ],
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
    picture: Picture | Sequence[Picture] | None = None,
    backbone: Backbone | None = None,
    spikes: SpikeSettings | None = None,
    compute: Compute | None = None,
    keep_going: bool = False,
    overwrite: bool = False,
    dask: str | Cluster | None = None,
    progress: ProgressReporter | None = None,
) -> ExtractionResult:
    """Bring the features of every listed recording into a store.

    Parameters
    ----------
    devices
        The devices file.
    store
        A store to go on with, or a new folder; or the URL of one.
    windows, picture, backbone, spikes
        What to extract; the defaults of their classes where None. Of several pictures, such as
        `RECOMMENDED_PICTURES`, each makes a feature set, all in one pass over the recordings. An
        empty list of pictures finds spikes only, which burst parameters need, without torch.
    compute
        Where and with how much of the machine.
    keep_going
        Go on after a recording that cannot be opened or fails, and list it; otherwise its error
        ends the extraction. What was published stays in either case.
    overwrite
        Start the store anew; the old one is removed when everything has been checked.
    dask
        Work on Dask's workers: a scheduler's address, ``local:N`` for N processes of this machine,
        or what `open_cluster` gave. All see the recordings and the store under the same paths.
    progress
        Shows the progress.

    Raises
    ------
    InputError
        A picture named twice; problems with the devices file or any recording's header
        (all at once, before any work), an unknown backbone, weights that do not fit, or a store
        whose spikes were found with other settings, or into which another process is extracting
        other recordings.
    StorageError
        The store cannot be written.
    """
    pictures = list_pictures(picture)
    listed = read_devices(as_path(devices))
    spikes, compute = spikes or SpikeSettings(), compute or Compute()
    backbone, progress = backbone or Backbone(), progress or SilentReporter()
    store = as_path(store)
    refuse_store(store, spikes, overwrite=overwrite)
    with ExitStack() as stack:
        cluster = None if dask is None else stack.enter_context(open_cluster(dask))
        opened = check_listed(listed, spikes)
        if opened.refused and (not keep_going or len(opened.refused) == len(listed.rows)):
            raise InputErrors(problems_of(listed, opened))
        here = Compute(device="cpu") if cluster is not None else compute
        finder = SpikeFinder(spikes, here, voltage=opened.voltage)
        engine = load_engine(backbone, here) if pictures else None
        for warning in listed.thin_classes:
            _LOG.warning("%s (fine here; fit refuses it, unless classes are merged)", warning)
        doubts = (*label_doubts(row.label for row in listed.rows), *same_content(listed))
        for warning in doubts:
            _LOG.warning("%s", warning)
        batch = RecordingBatch(
            [row.name for row in listed.rows], keep_going=keep_going, progress=progress
        )
        batch.refuse(opened.refused)
        infos = list_devices(listed)
        # Only now, so that what is refused above leaves the disk as it was.
        session = stack.enter_context(
            writing_session(
                store, spikes.to_json(), infos, devices_file=listed.path, anew=overwrite
            )
        )
        spikes_of = StoredSpikes(session.store, finder, progress.stage)
        features = [
            StoredFeatures(
                session.store, windows or Windows(), one, backbone, engine, progress.stage
            )
            for one in pictures
            if engine is not None
        ]
        if cluster is None:
            tally = _extract_here(listed, batch, session, spikes_of, features)
        else:
            job = StoreJob.of(session, spikes, compute, cluster, voltage=opened.voltage)
            wanted = ExtractionJob(store=job, features=tuple(map(FeaturesJob.of, features)))
            tally = _extract_there(listed, batch, cluster, wanted)
        return _result(listed, batch, session, features, doubts, tally)


class Extracted(NamedTuple):
    """What became of a recording."""

    n_windows: int | None  # None where no windows are drawn
    reused: bool  # its features, or spikes, were all there already
    spikes_reused: bool  # features were made from spikes that were in the store


class _Tally(NamedTuple):
    """What became of all recordings, by name, and what a user should know of them."""

    recordings: dict[str, Extracted]
    notes: tuple[str, ...]


def _extract_here(
    devices: DevicesFile,
    batch: RecordingBatch,
    session: StoreSession,
    spikes_of: StoredSpikes,
    features: Sequence[StoredFeatures],
) -> _Tally:
    """Extract every recording that is left; features are written beside the next recording."""
    told: dict[str, Extracted] = {}
    with closing(_shared_out(devices, batch, session)) as work, BackgroundWriter() as writer:
        for row, claim in work:
            with batch.working_on(row.name, row.recording):
                started = start_recording(row, spikes_of, features)
                told[row.name] = started.extracted
                if started.write is not None:
                    # Waits for a GPU and writes while the next recording is read and computed.
                    write = partial(_release_after, claim.pop_all(), started.write)
                    writer.submit(row.name, write)
            _settle(batch, writer)
        writer.wait()
        _settle(batch, writer)
    of_features = (note for one in features for note in one.notes)
    return _Tally(told, (*spikes_of.notes, *dict.fromkeys(of_features)))


def _result(
    devices: DevicesFile,
    batch: RecordingBatch,
    session: StoreSession,
    features: Sequence[StoredFeatures],
    doubts: Sequence[str],
    tally: _Tally,
) -> ExtractionResult:
    failed = batch.failed
    # Writing may have failed after a recording was counted.
    none = {name for name, _ in failed}
    extracted = {name: one for name, one in tally.recordings.items() if name not in none}
    windows_of = {name: one.n_windows for name, one in extracted.items()}
    _write_failures(session.store.path.with_suffix(".failures.csv"), failed)
    reused = sum(one.reused for one in extracted.values())
    return ExtractionResult(
        store=session.store.path,
        feature_sets=tuple(one.feature_set for one in features),
        done=len(batch.names) - len(failed) - reused,
        reused=reused,
        spikes_reused=sum(one.spikes_reused for one in extracted.values()),
        too_short=tuple(name for name in batch.names if windows_of.get(name) == 0),
        failed=failed,
        n_windows=sum(n or 0 for n in windows_of.values()),
        notes=(*devices.thin_classes, *doubts, *tally.notes),
    )


def list_pictures(picture: Picture | Sequence[Picture] | None) -> tuple[Picture, ...]:
    """Give a list of one picture, too; the default where None, and none of an empty list."""
    if picture is None or isinstance(picture, Picture):
        return (picture or Picture(),)
    for one in picture:
        if list(picture).count(one) > 1:
            raise InputError(f"the picture {one.description} is named twice: name each once")
    return tuple(picture)


def _nothing() -> None: ...


class Started(NamedTuple):
    """A recording whose features are being computed, or are all published already."""

    extracted: Extracted  # what becomes of it
    # Waits for the features and publishes them; None where they were published already.
    write: Callable[[], None] | None


def start_recording(
    row: DeviceRow, spikes_of: StoredSpikes, features: Sequence[StoredFeatures]
) -> Started:
    """Start to bring a recording's spikes and features into a store, which its caller has claimed.

    The way of a single process and of every worker of a cluster.
    """
    spikes = spikes_of.update(row)
    published = {one: one.published(spikes) for one in features}
    left = [one for one in features if published[one] is None]
    if not features:
        # Its spikes are published by now: it counts as there already, or as done, by `write`.
        return Started(Extracted(None, spikes.reused, False), None if spikes.reused else _nothing)
    if not left:
        # All are of the same windows.
        return Started(Extracted(published[features[0]] or 0, True, False), None)
    pending = start_together(left, spikes)
    # The spikes themselves are not kept in memory until the features are written.
    source = replace(spikes, found=None)

    def write() -> None:
        for one, its in zip(left, pending, strict=True):
            one.write(source, its.result())

    return Started(Extracted(len(pending[0].start_s), False, spikes.reused), write)


def _release_after(claim: ExitStack, write: Callable[[], None]) -> None:
    with claim:
        write()


def _shared_out(
    devices: DevicesFile, batch: RecordingBatch, session: StoreSession
) -> Generator[tuple[DeviceRow, ExitStack], None, None]:
    """Go through the recordings, claiming each; first those no other process is busy with.

    Whoever takes a claim over releases it; otherwise it is released when the next one is asked for.
    """
    wanted = set(batch.left)
    left = [row for row in devices.rows if row.name in wanted]
    for wait in (False, True):
        busy = []
        for row in left:
            if wait:
                _LOG.warning("waiting for another process that works on %s", row.name)
            with ExitStack() as claim:
                if claim.enter_context(session.claim(recording_name(row.name), wait=wait)):
                    yield row, claim
                else:
                    busy.append(row)
        left = busy


def _settle(batch: RecordingBatch, writer: BackgroundWriter) -> None:
    """Treat errors of writing as those of the recordings that were written."""
    for written, error in writer.take_failures():
        batch.fail(written, error)


def refuse_store(path: Path, spikes: SpikeSettings, *, overwrite: bool = False) -> None:
    """Refuse what is no store, and one to go on with whose spikes were found otherwise."""
    if place_of(path).exists():
        FeatureStore(path)
        if not overwrite:
            refuse_other_settings(path, spikes.to_json())


def check_listed(devices: DevicesFile, spikes: SpikeSettings) -> Preflight:
    """Open every listed recording, before any work."""
    return check_recordings(
        {row.name: (row.recording, row.settings(spikes)) for row in devices.rows}
    )


def problems_of(devices: DevicesFile, opened: Preflight) -> list[str]:
    """List what was refused, each with its line of the devices file."""
    return [
        f"{devices.path}, line {row.line}: {opened.refused[row.name]}"
        for row in devices.rows
        if row.name in opened.refused
    ]


def list_devices(devices: DevicesFile) -> tuple[RecordingInfo, ...]:
    """Say of each row what a store keeps of it, in the file's order."""
    return tuple(
        RecordingInfo(recording_name(r.name), r.device, r.label, r.columns) for r in devices.rows
    )


def _write_failures(path: Path, failed: Iterable[tuple[str, str]]) -> None:
    rows = [("recording", "cause"), *failed]
    with writing(path):
        if len(rows) == 1:
            path.unlink(missing_ok=True)
            return
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        write_whole(path, text.getvalue())


# --- on the workers of a cluster


@dataclass(frozen=True, kw_only=True)
class StoreJob:
    """Into which store workers bring spikes and features, and how they compute."""

    ticket: Ticket
    spikes: SpikeSettings
    compute: Compute
    voltage: bool  # any recording holds voltage

    @classmethod
    def of(
        cls,
        session: StoreSession,
        spikes: SpikeSettings,
        compute: Compute,
        cluster: Cluster,
        *,
        voltage: bool,
    ) -> StoreJob:
        """Describe what the caller wants, on the device that the workers offer."""
        device: Any = cluster.device(compute.device)
        n_jobs = compute.n_jobs or cluster.n_jobs
        there = replace(compute, device=device, n_jobs=n_jobs)
        return cls(ticket=session.ticket, spikes=spikes, compute=there, voltage=voltage)

    @property
    def on_gpu(self) -> bool:
        """Whether each task takes a GPU for itself."""
        return self.compute.device == "cuda"

    def parts(self) -> WorkerParts:
        """Give what this process has for the job, made by its first task here."""
        return kept(self.ticket.token, "parts", lambda: WorkerParts(self))


class WorkerParts:
    """What a worker keeps between the recordings of a job: the open store, finder and networks."""

    def __init__(self, job: StoreJob) -> None:
        compute = job.compute
        self.compute = replace(compute, n_jobs=compute.n_jobs or threads_here())
        self._ticket = job.ticket
        try:
            self.store = FeatureStore(job.ticket.store)
            with joined_session(job.ticket, self.store):
                pass
        except InputError as error:
            raise RefusedWorkerError(
                f"{error} (all workers must see the store under this path, and its locks)"
            ) from None
        self._finder = SpikeFinder(job.spikes, self.compute, voltage=job.voltage)
        self._engines: dict[Backbone, FeatureEngine] = {}
        # The file system may be another machine's, as a bucket always is.
        refuse_clock(clock_folder(job.ticket.store))

    @contextmanager
    def spikes_of(self, row: DeviceRow) -> Iterator[StoredSpikes]:
        """Join the session and claim a recording, for as long as it is worked on."""
        with (
            joined_session(self._ticket, self.store) as session,
            session.claim(recording_name(row.name), wait=True),
            reading(row.recording),
        ):
            yield StoredSpikes(session.store, self._finder, unwatched)

    def features(self, view: FeaturesJob) -> StoredFeatures:
        """Make what brings features into the store; those of other weights are refused."""
        backbone = view.backbone
        if backbone not in self._engines:
            self._engines[backbone] = load_engine(backbone, self.compute)
        engine = self._engines[backbone]
        made = StoredFeatures(self.store, view.windows, view.picture, backbone, engine, unwatched)
        if made.feature_set.key != view.key:
            raise RefusedWorkerError(
                f"the weights {backbone.weights} of {backbone.name} are others than the caller's"
                f" (sha256 {engine.loaded.weights_sha256[:8]}, not"
                f" {view.weights[:8]}): have the same file on all machines"
            )
        return made

    def release(self) -> None:
        """Give back what compiled networks take; each is compiled again when it is needed."""
        for engine in self._engines.values():
            engine.release()


@dataclass(frozen=True, kw_only=True)
class FeaturesJob:
    """One kind of features that workers make."""

    windows: Windows
    picture: Picture
    backbone: Backbone
    key: str  # of the feature set, which covers the weights' sha256
    weights: str  # their sha256, for people

    @classmethod
    def of(cls, features: StoredFeatures) -> FeaturesJob:
        """Describe what the caller has."""
        return cls(
            windows=features.extractor.windows,
            picture=features.extractor.picture,
            backbone=_found_everywhere(features.backbone),
            key=features.feature_set.key,
            weights=features.engine.loaded.weights_sha256,
        )


def _found_everywhere(backbone: Backbone) -> Backbone:
    """Name a file of weights so that a process in another folder finds it."""
    if backbone.weights in ("imagenet", "random"):
        return backbone
    return replace(backbone, weights=str(Path(backbone.weights).absolute()))


@dataclass(frozen=True, kw_only=True)
class ExtractionJob:
    """What a worker must know to extract any of the listed recordings."""

    store: StoreJob
    features: tuple[FeaturesJob, ...]


class Reported(NamedTuple):
    """What a worker tells of a recording."""

    extracted: Extracted
    notes: tuple[tuple[str, str], ...]  # recording and note, of its spikes
    feature_notes: tuple[str, ...]


def extract_recording(job: ExtractionJob, row: DeviceRow) -> Reported:
    """Extract one recording on a worker, which publishes it itself."""
    parts = job.store.parts()
    features = [parts.features(one) for one in job.features]
    with parts.spikes_of(row) as spikes_of:
        started = start_recording(row, spikes_of, features)
        if started.write is not None:
            started.write()
    notes = tuple(note for one in features for note in one.notes)
    return Reported(started.extracted, spikes_of.noted, notes)


def _extract_there(
    devices: DevicesFile, batch: RecordingBatch, cluster: Cluster, job: ExtractionJob
) -> _Tally:
    """Extract every recording that is left on a cluster's workers."""
    wanted = set(batch.left)
    rows = {row.name: row for row in devices.rows if row.name in wanted}
    told: dict[str, Reported] = {}
    done = cluster.run(
        f"{__name__}:{extract_recording.__name__}", job, rows,
        on_gpu=job.store.on_gpu,
    )  # fmt: skip
    with closing(done):
        for one in done:
            with batch.working_on(one.name, rows[one.name].recording):
                told[one.name] = one.value()
    # In the order of the devices file, as a single process comes to them.
    in_order = [(name, told[name]) for name in rows if name in told]
    of_spikes = summed_notes([note for _, one in in_order for note in one.notes])
    of_features = (note for _, one in in_order for note in one.feature_notes)
    extracted = {name: one.extracted for name, one in in_order}
    return _Tally(extracted, (*of_spikes, *dict.fromkeys(of_features)))


# --- one recording


@dataclass(eq=False, kw_only=True)
class PublishedSpikes:
    """Spikes of a recording that are in the store."""

    row: DeviceRow
    store: FeatureStore
    key: str  # of the spikes
    source: dict[str, Any]  # what they were found in: name, sha256, stamp
    reused: bool  # they were there already
    found: Drawers | None = None  # None: they are read when needed

    @property
    def name(self) -> str:
        """Of the recording in the store."""
        return recording_name(self.row.name)

    @cached_property
    def drawers(self) -> Drawers:
        """The spikes, for extractors."""
        if self.found is not None:
            return self.found
        return _drawers(self.store.read_spikes(self.name))


def _drawers(trains: SpikeTrains) -> Drawers:
    from toptune.pictures.drawers import Drawers

    return Drawers(trains)


class StoredSpikes:
    """Brings recordings' spikes into a store, unless they are there already.

    With `keep`, what is found stays in memory until `forget`, for further passes over the
    recordings. `notes` is what a user should know of single ones: dead or over-noisy channels.
    """

    def __init__(
        self, store: FeatureStore, finder: SpikeFinder, stage: StageReporter, *, keep: bool = False
    ) -> None:
        self._store = store
        self._finder = finder
        self._stage = stage
        self._keep = keep
        self._kept: dict[str, tuple[str, SpikeTrains]] = {}
        self._notes: list[tuple[str, str]] = []  # recording, note

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of single recordings; what holds for several, in one line."""
        return summed_notes(self._notes)

    @property
    def noted(self) -> tuple[tuple[str, str], ...]:
        """The same, each by itself: recording and note."""
        return tuple(self._notes)

    def update(self, row: DeviceRow) -> PublishedSpikes:
        """Bring one recording's spikes up to date."""
        name = recording_name(row.name)
        info = self._store.spikes_info(name)
        source = _source_of(row, info)
        settings = row.settings(self._finder.settings)
        key = spikes_key(source["sha256"], settings.to_json())
        reused = info is not None and info["key"] == key
        if info is not None and not reused:
            _LOG.warning("%s changed since it was extracted: doing it again", row.name)
        found = self._again(name, key) if reused else self._find(row, name, key, source)
        return PublishedSpikes(
            row=row, store=self._store, key=key, source=source, reused=reused, found=found
        )

    def read(self, name: str) -> SpikeTrains:
        """Give a recording's spikes that are up to date, from memory where they are kept."""
        return self._kept[name][1] if name in self._kept else self._store.read_spikes(name)

    def forget(self) -> None:
        """Keep nothing any longer."""
        self._kept.clear()
        self._keep = False

    def _again(self, name: str, key: str) -> Drawers | None:
        """Give spikes that an earlier pass found; None where they are to be read."""
        kept_key, trains = self._kept.get(name, (None, None))
        return None if trains is None or kept_key != key else _drawers(trains)

    def _find(self, row: DeviceRow, name: str, key: str, source: dict[str, Any]) -> Drawers:
        """Find a recording's spikes and publish them."""
        settings = row.settings(self._finder.settings)
        found = self._finder.find(row.recording, self._stage, settings)
        # The key says which bytes the spikes came from: those that were hashed.
        if stamp_of(row.recording) != source["stamp"]:
            raise InputError(
                f"{row.recording}: the file changed while it was read: run extract again when"
                " nothing writes to it"
            )
        info: dict[str, Any] = {"key": key, "stamp": source["stamp"], "kind": found.kind}
        info["versions"] = _versions("toptune", "numpy", "numba", "h5py")
        info["input"] = _input_of(source)
        if found.stream is not None:
            info["stream"] = found.stream
            info["dead_channels"] = list(found.dead_channels)
            info["over_noisy_channels"] = list(found.over_noisy_channels)
        self._notes += [(row.name, note) for note in found.notes]
        self._store.write_spikes(name, found.trains, info)
        # As when they are read back, which happens in other processes only.
        check_trains(self._store.path / name / "spikes", found.trains)
        if self._keep:
            self._kept[name] = (key, found.trains)
        return drawers_of(found)


def summed_notes(notes: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Write notes, each with its recording; one that holds for several becomes one line."""
    names: dict[str, list[str]] = {}
    for name, note in notes:
        names.setdefault(note, []).append(name)
    return tuple(
        f"{', '.join(those) if len(those) < _SEVERAL else f'{len(those)} recordings'}: {note}"
        for note, those in names.items()
    )


def _source_of(row: DeviceRow, info: dict[str, Any] | None) -> dict[str, Any]:
    """Fingerprint of the input; hashed anew only where size or time of a file changed."""
    stamp = stamp_of(row.recording)
    known = info is not None and info["stamp"] == stamp
    sha256 = info["input"]["sha256"] if info and known else _sha256(row.recording, repr(stamp))
    source = {"recording": row.written, "sha256": sha256, "stamp": stamp}
    return {**source, "opening": dict(row.opening)} if row.opening else source


@lru_cache(maxsize=1)
def _sha256(path: Path, stamp: str) -> str:
    """Hash a recording; of a plate, whose wells follow each other, once."""
    del stamp  # another one is another content
    return file_sha256(path)


def _input_of(source: dict[str, Any]) -> dict[str, Any]:
    """Give what a store keeps of it."""
    return {k: v for k, v in source.items() if k != "stamp"}


class StoredFeatures:
    """Brings features of one kind of picture into a store, one recording after the other.

    `engine` is the backbone, loaded; several kinds may share it.
    """

    def __init__(
        self,
        store: FeatureStore,
        windows: Windows,
        picture: Picture,
        backbone: Backbone,
        engine: FeatureEngine,
        stage: StageReporter,
    ) -> None:
        self._store = store
        self.backbone = backbone
        self.extractor = PictureExtractor(windows, picture, engine)
        self.stage = stage
        self.engine = engine
        self.notes: list[str] = []  # what a user should know of single recordings
        identity = BackboneIdentity.of(engine.loaded, backbone)
        params = PictureFeatureParams(windows=windows, picture=picture, backbone=identity)
        self.feature_set = FeatureSet.of(params.to_json())

    def published(self, spikes: PublishedSpikes) -> int | None:
        """Count the windows of features that are published and up to date; None without them.

        Those of another precision than the one that was asked for are an `InputError`.
        """
        info = self._store.features_info(spikes.name, self.feature_set.key)
        if info is None or info["key"] != self._key(spikes):
            return None
        if self.engine.precision != "auto" and precision_of(info) != self.engine.computed.precision:
            self.refuse_mixture()
        return int(info["n_windows"])

    def start(self, spikes: PublishedSpikes) -> PendingFeatures:
        """Start to compute the features of a recording."""
        (pending,) = start_together([self], spikes)
        return pending

    def refuse_mixture(self) -> None:
        """Refuse to add features that would be computed otherwise than those in the store."""
        self._store.refuse_mixture(self.feature_set, self._computed())

    def warn(self, spikes: PublishedSpikes, start_s: NDArray[np.float64]) -> None:
        """Warn of a recording whose windows begin at some times: of none, or of mostly empty ones.

        The length of one with spikes in few of its windows may be wrong.
        """
        trains = spikes.drawers.trains
        if not len(start_s):
            _LOG.warning(
                "%s lasts %.1f s, less than a window of %g s: skipped",
                spikes.row.name, trains.duration_s, self.extractor.windows.width_s,
            )  # fmt: skip
        times = spike_times_s(trains)
        ends = start_s + self.extractor.windows.width_s
        empty = np.searchsorted(times, ends) == np.searchsorted(times, start_s)
        if len(times) and len(start_s) and empty.mean() > _MOSTLY_EMPTY:
            note = (
                f"{spikes.row.name}: {np.count_nonzero(empty)} of {len(empty)} windows hold no"
                " spike: are its times and its length right?"
            )
            _LOG.warning("%s", note)
            self.notes.append(note)

    def write(self, spikes: PublishedSpikes, features: FeatureRows) -> None:
        """Publish the features of a recording."""
        info = {
            "key": self._key(spikes),
            "n_windows": len(features.start_s),
            "input": _input_of(spikes.source),
            "versions": _versions("toptune", "torch", "torchvision", "timm", "openvino"),
            **self._computed(),
            "weights": _weights_source(self.backbone).to_json(),
        }
        self._store.write_features(
            spikes.name,
            # An array without rows is stored with one column.
            features.features if len(features.features) else features.features[:, :1],
            features.start_s,
            self.feature_set,
            info,
        )

    def _key(self, spikes: PublishedSpikes) -> str:
        return features_key(spikes.key, self.feature_set.key)

    def _computed(self) -> dict[str, dict[str, str]]:
        return {"computed": self.engine.computed.to_json()}


def start_together(
    features: Sequence[StoredFeatures], spikes: PublishedSpikes
) -> list[PendingFeatures]:
    """Start to compute several kinds of features of a recording, all of the same windows.

    The spikes are put into bins once. What a user should know of the recording is said once.
    """
    # Before they are computed, not only before they are written.
    for one in features:
        one.refuse_mixture()
    extractors = [one.extractor for one in features]
    pending = start_features(spikes.drawers, extractors, features[0].stage)
    features[0].warn(spikes, pending[0].start_s)
    return pending


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
