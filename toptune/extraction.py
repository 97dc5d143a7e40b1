"""From a devices file to a store full of features.

What enters: a devices file and parameters. What leaves: published spikes and features of every
recording, and a list of what was done, reused, too short or failed. What is published with the same
key is not done again; spikes are shared by all windows, pictures and backbones.
"""

from __future__ import annotations

import csv
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from toptune.describing import BackboneIdentity, Describer, LazyEngine, ViewParams
from toptune.devices import DeviceRow, DevicesFile, read_devices
from toptune.errors import InputError, InputErrors, ToptuneError
from toptune.facts import WeightsSource
from toptune.featuretable import RecordingInfo
from toptune.finding import SpikeSettings, check_recording, find_spikes
from toptune.fingerprint import file_sha256, stamp_of
from toptune.params import Backbone, Picture, Windows, content_key
from toptune.progress import Progress, Silent
from toptune.store import VERSION, FeatureSet, FeatureStore, recording_name, remove_store

__all__ = ["Extracted", "Extraction", "SpikeSettings", "extract"]

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
    opened = open_store(Path(store), spikes, overwrite=overwrite)
    problems = recording_problems(listed, spikes)
    if problems:
        raise InputErrors(problems)
    backbone = backbone or Backbone()
    engine = load_engine(backbone, device=device, batch_size=batch_size, n_jobs=n_jobs)
    if opened is None:
        # Only now, so that what is refused above leaves the disk as it was.
        remove_store(Path(store))
        opened = FeatureStore.create(store, spikes.to_json())
    job = Extraction(
        listed,
        spikes,
        windows or Windows(),
        picture or Picture(),
        backbone,
        engine,
        n_jobs,
        progress or Silent(),
    )
    for warning in listed.thin_classes:
        _LOG.warning("%s (fine here; fit refuses it, unless classes are merged)", warning)
        job.notes.append(warning)
    return job.run(opened, keep_going=keep_going)


def load_engine(
    backbone: Backbone, *, device: str, batch_size: int | None = None, n_jobs: int | None = None
) -> LazyEngine:
    """Load a backbone for extraction; it is compiled when first needed.

    Raises
    ------
    InputError
        An unknown backbone or device, or weights that do not fit.
    """
    from toptune.backbones import load_backbone
    from toptune.hardware import torch_device

    device = torch_device(device)
    return LazyEngine(load_backbone(backbone), device, batch_size, n_jobs)


def open_store(path: Path, spikes: SpikeSettings, *, overwrite: bool) -> FeatureStore | None:
    """Open the store to go on with; None where a new one is to be made.

    Raises
    ------
    InputError
        It is no store, or its spikes were found with other settings.
    """
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


def recording_problems(devices: DevicesFile, spikes: SpikeSettings) -> list[str]:
    """Open every recording, and tell which cannot be, each with its line."""
    problems = []
    for row in devices.rows:
        try:
            check_recording(row.recording, spikes)
        except InputError as error:
            problems.append(f"{devices.path}, line {row.line}: {error}")
    return problems


def list_devices(devices: DevicesFile) -> tuple[RecordingInfo, ...]:
    """Say of each row what a store keeps of it, in the file's order."""
    return tuple(
        RecordingInfo(recording_name(r.written), r.device, r.label, r.columns) for r in devices.rows
    )


class PublishedSpikes(NamedTuple):
    """Spikes that are in the store.

    Attributes
    ----------
    key : str
        Theirs.
    source : dict
        What they were found in: name, sha256, stamp.
    reused : bool
        They were there already.
    """

    key: str
    source: dict[str, Any]
    reused: bool


class Extraction:
    """Bringing features of one kind into a store, recording by recording.

    Parameters
    ----------
    devices
        What is listed.
    spikes, windows, picture, backbone
        What to extract.
    engine
        The backbone, loaded; extractions may share it, and it is compiled once.
    n_jobs
        Threads of spike detection; one a core where None.
    progress
        Watches.

    Attributes
    ----------
    feature_set
        What is extracted.
    describer
        What draws and describes.
    store
        Where to; set by `run`, or by who calls `one`.
    notes
        What a user should know.
    """

    store: FeatureStore

    def __init__(
        self,
        devices: DevicesFile,
        spikes: SpikeSettings,
        windows: Windows,
        picture: Picture,
        backbone: Backbone,
        engine: LazyEngine,
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
        view = ViewParams(
            windows=windows, picture=picture, backbone=BackboneIdentity.of(engine.loaded, backbone)
        )
        self.feature_set = FeatureSet.of(view.to_json())
        self.describer = Describer(windows, picture, engine)

    def run(self, store: FeatureStore, *, keep_going: bool) -> Extracted:
        """Bring all recordings up to date; see `extract`."""
        self.store = store
        infos = list_devices(self.devices)
        self.store.list_recordings(infos)
        failures = self.store.path.with_suffix(".failures.csv")
        failed: list[tuple[str, str]] = []
        too_short: list[str] = []
        n_windows = 0
        for number, (row, info) in enumerate(zip(self.devices.rows, infos, strict=True), 1):
            self.progress.recording(number, len(infos), row.written)
            try:
                count = self.one(row, info.name)
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

    def one(self, row: DeviceRow, name: str) -> int:
        """Bring one recording's features up to date, and its spikes first; returns its windows."""
        found = self.spikes_of(row, name)
        key = content_key({"spikes": found.key, "features": self.feature_set.key})
        published = self.store.features_info(name, self.feature_set.key)
        if published is not None and published["key"] == key:
            self.reused += 1
            return int(published["n_windows"])
        self.spikes_reused += found.reused
        return self._publish_features(row, name, key, found.source)

    def spikes_of(self, row: DeviceRow, name: str) -> PublishedSpikes:
        """Bring one recording's spikes up to date."""
        source = self._input(row, name)
        key = content_key(
            {"input": source["sha256"], "settings": self.spikes.to_json(), "version": VERSION}
        )
        info = self.store.spikes_info(name)
        reused = info is not None and info["key"] == key
        if not reused:
            if info is not None:
                _LOG.warning("%s changed since it was extracted: doing it again", row.written)
            self._publish_spikes(row, name, key, source)
        return PublishedSpikes(key, source, reused)

    def _input(self, row: DeviceRow, name: str) -> dict[str, Any]:
        """Fingerprint of the input; hashed anew only where size or time of a file changed."""
        stamp = stamp_of(row.recording)
        info = self.store.spikes_info(name)
        if info is not None and info["stamp"] == stamp:
            return {**info["input"], "stamp": stamp}
        return {"recording": row.written, "sha256": file_sha256(row.recording), "stamp": stamp}

    def _publish_spikes(self, row: DeviceRow, name: str, key: str, source: dict[str, Any]) -> None:
        found = find_spikes(
            row.recording, self.spikes, n_jobs=self.n_jobs, stage=self.progress.stage
        )
        info: dict[str, Any] = {"key": key, "stamp": source["stamp"], "kind": found.kind}
        info["input"] = {k: source[k] for k in ("recording", "sha256")}
        if found.stream is not None:
            info["stream"] = found.stream
            info["dead_channels"] = list(found.dead_channels)
            info["over_noisy_channels"] = list(found.over_noisy_channels)
        self.notes += [f"{row.written}: {note}" for note in found.notes]
        self.store.write_spikes(name, found.trains, info)

    def _publish_features(self, row: DeviceRow, name: str, key: str, source: dict[str, Any]) -> int:
        trains = self.store.read_spikes(name)
        features, start_s = self.describer.describe(trains, self.progress.stage)
        if not len(features):
            _LOG.warning(
                "%s lasts %.1f s, less than a window of %g s: skipped",
                row.written, trains.duration_s, self.windows.width_s,
            )  # fmt: skip
            features = features[:, :1]
        info = {
            "key": key,
            "n_windows": len(features),
            "input": {k: source[k] for k in ("recording", "sha256")},
            "versions": _versions(),
            "weights": _weights_source(self.backbone).to_json(),
        }
        self.store.write_features(name, features, start_s, self.feature_set, info)
        return len(features)


def _weights_source(backbone: Backbone) -> WeightsSource:
    """Where prediction finds the same weights again; the keys know them by their sha256."""
    if backbone.weights == "imagenet":
        return WeightsSource()
    if backbone.weights == "random":
        return WeightsSource(seed=backbone.seed)
    return WeightsSource(path=str(Path(backbone.weights).resolve()))


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
