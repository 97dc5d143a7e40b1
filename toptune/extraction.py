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
from typing import Any

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
    engine: LazyEngine | None = None,
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
    engine
        The backbone, loaded already, so that several extractions compile it once; made for
        `backbone`, `device`, `batch_size` and `n_jobs` where None.
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
    job.prepare_engine(device, batch_size, engine)
    # What uses the labels refuses these, and may merge them first.
    job.notes += listed.thin_classes
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
            check_recording(row.recording, spikes)
        except InputError as error:
            problems.append(f"{devices.path}, line {row.line}: {error}")
    if problems:
        raise InputErrors(problems)


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

    def prepare_engine(
        self, device: str, batch_size: int | None, engine: LazyEngine | None = None
    ) -> None:
        from toptune.backbones import load_backbone
        from toptune.hardware import torch_device

        if engine is None:
            # Compiled when first needed: a store that is complete needs none.
            loaded = load_backbone(self.backbone)
            engine = LazyEngine(loaded, torch_device(device), batch_size, self.n_jobs)
        view = ViewParams(
            windows=self.windows,
            picture=self.picture,
            backbone=BackboneIdentity.of(engine.loaded, self.backbone),
        )
        self.feature_set = FeatureSet.of(view.to_json())
        self.describer = Describer(self.windows, self.picture, engine)

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
