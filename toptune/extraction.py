"""From a devices file to a store full of features.

What enters: a devices file and parameters. What leaves: published spikes and features of every
recording, and a list of what was done, reused, too short or failed. What is published with the same
key is not done again; spikes are shared by all windows, pictures and backbones.
"""

from __future__ import annotations

import csv
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from toptune.devices import DeviceRow, DevicesFile, read_devices
from toptune.errors import InputError, InputErrors, ToptuneError
from toptune.featuretable import RecordingInfo
from toptune.params import Backbone, HighPass, Picture, Ptsd, Windows, content_key
from toptune.recording import SpikeRecording, open_recording
from toptune.store import VERSION, FeatureSet, FeatureStore, recording_name, remove_store

if TYPE_CHECKING:
    from toptune.features import FeatureEngine

_LOG = logging.getLogger(__name__)
_HASH_BLOCK = 2**20


@dataclass(frozen=True, kw_only=True)
class SpikeSettings:
    """How the spikes of a whole store are found; one store, one setting.

    Parameters
    ----------
    highpass, ptsd
        Filter and detection, for voltage.
    stream
        Label of the electrode stream, for files with several.
    sampling_rate_hz
        For spike files that do not tell their rate; None for the usual 10 kHz.
    """

    highpass: HighPass = field(default_factory=HighPass)
    ptsd: Ptsd = field(default_factory=Ptsd)
    stream: str | None = None
    sampling_rate_hz: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for the store."""
        return {
            "highpass": self.highpass.to_json(),
            "ptsd": self.ptsd.to_json(),
            "stream": self.stream,
            "sampling_rate_hz": self.sampling_rate_hz,
        }


class Progress(Protocol):
    """What watches an extraction; every call may be ignored."""

    def recording(self, number: int, total: int, name: str) -> None:
        """Note that recording `number` of `total` begins."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Note that inside it `done` of `total` samples or windows of a stage are through."""


class Silent:
    """Nobody watches."""

    def recording(self, number: int, total: int, name: str) -> None:
        """Ignore."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Ignore."""


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
        ``auto``, ``cpu`` or ``cuda``.
    batch_size
        Pictures a batch; the engine's choice where None.
    n_jobs
        Threads; None for one a core.
    keep_going
        Go on after a recording that fails, and list it; otherwise its error ends the extraction.
        What was published stays in either case.
    overwrite
        Start the store anew; the old one is removed when everything has been checked.
    progress
        Watches.

    Raises
    ------
    InputError
        Problems with the devices file or any recording's header (all at once, before any work), an
        unknown backbone, weights that do not fit, or a store whose spikes were found otherwise.
    """
    listed = read_devices(Path(devices))
    spikes = spikes or SpikeSettings()
    opened = _open_store(Path(store), spikes, overwrite)
    _preflight(listed, spikes)
    job = _Job(
        listed,
        spikes,
        windows or Windows(),
        picture or Picture(),
        backbone or Backbone(),
        n_jobs,
        progress or Silent(),
    )
    job.prepare_engine(device, batch_size)
    if opened is None:
        # Only now, so that what is refused above leaves the disk as it was.
        remove_store(Path(store))
        opened = FeatureStore.create(store, spikes.to_json())
    return job.run(opened, keep_going=keep_going)


def _open_store(path: Path, spikes: SpikeSettings, overwrite: bool) -> FeatureStore | None:
    """Open the store to go on with; None where a new one is to be made."""
    if not path.exists():
        return None
    store = FeatureStore(path)
    if overwrite:
        return None
    here, wanted = _flat(store.settings), _flat(spikes.to_json())
    for name in sorted({*here, *wanted}):
        if here.get(name) != wanted.get(name):
            raise InputError(
                f"{path}: its spikes were found with {name} = {here.get(name)!r}, not"
                f" {wanted.get(name)!r}: use the same value or another store"
            )
    return store


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """{'ptsd': {'threshold_sd': 8}} becomes {'ptsd.threshold_sd': 8}."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat.update({f"{name}.{inner}": v for inner, v in value.items()})
        else:
            flat[name] = value
    return flat


def _preflight(devices: DevicesFile, spikes: SpikeSettings) -> None:
    """Open every recording; report all that cannot be, each with its line."""
    problems = []
    for row in devices.rows:
        try:
            _check_recording(row.recording, spikes)
        except InputError as error:
            problems.append(f"{devices.path}, line {row.line}: {error}")
    if problems:
        raise InputErrors(problems)


def _check_recording(path: Path, spikes: SpikeSettings) -> None:
    from toptune.filters import HighPassFilter

    recording = open_recording(path, stream=spikes.stream, sampling_rate_hz=spikes.sampling_rate_hz)
    if not isinstance(recording, SpikeRecording):
        with recording:
            # Refuses a cut-off that this sampling rate cannot have.
            HighPassFilter(spikes.highpass, recording.sampling_rate_hz, 1)


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes; of a folder, that of its files' names and sha256s in order."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{file_sha256(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        while block := stream.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _stamp(path: Path) -> list[list[Any]]:
    """Sizes and modification times: as long as they stay, the bytes are taken to be the same."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]


class _Job:
    """One extraction."""

    def __init__(
        self,
        devices: DevicesFile,
        spikes: SpikeSettings,
        windows: Windows,
        picture: Picture,
        backbone: Backbone,
        n_jobs: int | None,
        progress: Progress,
    ) -> None:
        self.devices = devices
        self.spikes = spikes
        self.windows = windows
        self.picture = picture
        self.backbone = backbone
        self.n_jobs = n_jobs
        self.progress = progress
        self.notes: list[str] = []
        self.spikes_reused = 0
        self.reused = 0

    def prepare_engine(self, device: str, batch_size: int | None) -> None:
        from toptune.backbones import load_backbone
        from toptune.features import FeatureEngine
        from toptune.hardware import torch_device

        self.device = torch_device(device)
        loaded = load_backbone(self.backbone)
        self.size = loaded.input_size
        self.feature_set = FeatureSet.of(
            {
                "windows": self.windows.to_json(),
                "picture": self.picture.to_json(),
                "backbone": {
                    "name": loaded.name,
                    # A file is told by its name and sha256, wherever it lies.
                    "weights": Path(self.backbone.weights).name,
                    "sha256": loaded.weights_sha256,
                    "mean": list(loaded.mean),
                    "std": list(loaded.std),
                    "input_size": loaded.input_size,
                },
            }
        )
        self._make_engine: Callable[[], FeatureEngine] = lambda: FeatureEngine(
            loaded, self.device, batch_size, self.n_jobs
        )
        self._engine: FeatureEngine | None = None

    @property
    def engine(self) -> FeatureEngine:
        """Compiled when first needed: a store that is complete needs none."""
        if self._engine is None:
            self._engine = self._make_engine()
        return self._engine

    def run(self, store: FeatureStore, *, keep_going: bool) -> Extracted:
        self.store = store
        infos = tuple(
            RecordingInfo(recording_name(r.written), r.device, r.label, r.columns)
            for r in self.devices.rows
        )
        self.store.list_recordings(infos)
        failures = self.store.path.with_suffix(".failures.csv")
        failed: list[tuple[str, str]] = []
        too_short: list[str] = []
        n_windows = 0
        for number, (row, info) in enumerate(zip(self.devices.rows, infos, strict=True), 1):
            self.progress.recording(number, len(infos), row.written)
            try:
                count = self._one(row, info.name)
            except ToptuneError as error:
                if not keep_going:
                    raise
                failed.append((row.written, " ".join(str(error).split())))
                _LOG.error("%s failed: %s", row.written, failed[-1][1])
                continue
            n_windows += count
            if count == 0:
                too_short.append(row.written)
        _write_failures(failures, failed)
        return Extracted(
            store=self.store.path,
            feature_set=self.feature_set,
            done=len(infos) - len(failed) - self.reused,
            reused=self.reused,
            spikes_reused=self.spikes_reused,
            too_short=tuple(too_short),
            failed=tuple(failed),
            n_windows=n_windows,
            notes=tuple(self.notes),
        )

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
        stamp = _stamp(row.recording)
        info = self.store.spikes_info(name)
        if info is not None and info["stamp"] == stamp:
            return {**info["input"], "stamp": stamp}
        return {"recording": row.written, "sha256": file_sha256(row.recording), "stamp": stamp}

    def _publish_spikes(self, row: DeviceRow, name: str, key: str, source: dict[str, Any]) -> None:
        from toptune.detection import detect_recording

        recording = open_recording(
            row.recording,
            stream=self.spikes.stream,
            sampling_rate_hz=self.spikes.sampling_rate_hz,
        )
        info: dict[str, Any] = {"key": key, "stamp": source["stamp"], "kind": recording.kind}
        info["input"] = {k: source[k] for k in ("recording", "sha256")}
        if isinstance(recording, SpikeRecording):
            self.progress.stage("reading spikes", 0, 1)
            trains = recording.trains()
        else:
            with recording:
                found = detect_recording(
                    recording,
                    self.spikes.highpass,
                    self.spikes.ptsd,
                    n_jobs=self.n_jobs,
                    progress=lambda done, total: self.progress.stage("spikes", done, total),
                )
                info["stream"] = recording.stream_label
            trains = found.trains
            for what, mask in (("dead", found.noise.dead), ("over-noisy", found.noise.noisy)):
                labels = [trains.channel_labels[k] for k in mask.nonzero()[0]]
                info[f"{what.replace('-', '_')}_channels"] = labels
                if labels:
                    self.notes.append(f"{row.written}: {what} channels {', '.join(labels)}")
        self.store.write_spikes(name, trains, info)

    def _watch(self, total: int) -> Callable[[int], None]:
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            self.progress.stage("features", done, total)

        return count

    def _publish_features(self, row: DeviceRow, name: str, key: str, source: dict[str, Any]) -> int:
        import numpy as np

        from toptune.features import describe
        from toptune.windows import Drawer

        trains = self.store.read_spikes(name)
        drawer = Drawer(trains, self.windows, self.picture, self.size, self.device)
        if len(drawer):
            features = describe(drawer, self.engine, progress=self._watch(len(drawer)))
        else:
            _LOG.warning(
                "%s lasts %.1f s, less than a window of %g s: skipped",
                row.written, trains.duration_s, self.windows.width_s,
            )  # fmt: skip
            features = np.empty((0, 1), np.float32)
        info = {
            "key": key,
            "n_windows": len(features),
            "input": {k: source[k] for k in ("recording", "sha256")},
            "versions": _versions(),
        }
        self.store.write_features(name, features, drawer.start_s, self.feature_set, info)
        return len(features)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("toptune", "torch", "torchvision", "openvino")}


def _write_failures(path: Path, failed: list[tuple[str, str]]) -> None:
    path.unlink(missing_ok=True)
    if failed:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["recording", "cause"])
            writer.writerows(failed)
