"""Features of one kind, recording by recording: spikes where they are not there yet, then pictures.

What enters: a recording that the devices file lists, and a store. What leaves: its spikes and
features, published. What is there with the same key is not done again; spikes are shared by all
windows, pictures and backbones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from toptune.errors import InputError
from toptune.features.describing import (
    BackboneIdentity,
    Begun,
    Describer,
    LazyEngine,
    ViewParams,
    begin_views,
)
from toptune.machine.background import BackgroundWriter
from toptune.machine.cuda import Accelerator
from toptune.machine.fingerprint import file_sha256, stamp_of
from toptune.machine.progress import Progress
from toptune.params import Backbone, Picture, SpikeSettings, Windows, content_key
from toptune.recordings.devices import DeviceRow
from toptune.recordings.facts import WeightsSource
from toptune.recordings.trains import SpikeTrains
from toptune.spikes.finding import FoundSpikes, find_spikes
from toptune.store.feature_store import VERSION, FeatureSet, FeatureStore

if TYPE_CHECKING:
    from toptune.backbones.engine import Precision
    from toptune.pictures.drawer_cuda import ResidentSpikes

_LOG = logging.getLogger(__name__)

Begin = Callable[
    [
        SpikeTrains,
        Sequence[Describer],
        Callable[[str, int, int], None],
        "ResidentSpikes | None",
    ],
    Begun,
]


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
    resident : ResidentSpikes or None
        The same on the GPU, if they were just found there.
    """

    key: str
    source: dict[str, Any]
    reused: bool
    resident: ResidentSpikes | None


def load_engine(
    backbone: Backbone,
    *,
    device: str,
    precision: Precision = "auto",
    batch_size: int | None = None,
    n_jobs: int | None = None,
) -> LazyEngine:
    """Load a backbone for extraction; it is compiled when first needed.

    Raises
    ------
    InputError
        An unknown backbone or device, a precision that the device has not, or weights that do not
        fit.
    """
    import torch

    from toptune.backbones.engine import resolve_precision
    from toptune.backbones.loading import load_backbone
    from toptune.machine.device import torch_device

    device = torch_device(device)
    resolve_precision(precision, torch.device(device))
    return LazyEngine(load_backbone(backbone), device, batch_size, n_jobs, precision)


class Extraction:
    """Bringing features of one kind into a store, one recording after the other.

    Parameters
    ----------
    spikes, windows, picture, backbone
        What to extract.
    engine
        The backbone, loaded; extractions may share it, and it is compiled once.
    spike_device
        What finds spikes in voltage; the CPU where None.
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
    begin
        What begins to describe a recording; `begin_views`, unless replaced.
    store
        Where to; set before the first recording.
    writer, claim
        What writes features in the background, and the hold on the recording that goes over to it;
        without a writer features are written at once.
    notes, spikes_reused, reused
        What a user should know, and how many recordings had their spikes, or all, in the store.
    """

    store: FeatureStore

    def __init__(
        self,
        spikes: SpikeSettings,
        windows: Windows,
        picture: Picture,
        backbone: Backbone,
        engine: LazyEngine,
        spike_device: Accelerator | None,
        n_jobs: int | None,
        progress: Progress,
    ) -> None:
        self.spikes = spikes
        self.windows = windows
        self.backbone = backbone
        self.spike_device = spike_device
        self.n_jobs = n_jobs
        self.progress = progress
        self.notes: list[str] = []
        self.spikes_reused = 0
        self.reused = 0
        self.writer: BackgroundWriter | None = None
        self.claim = ExitStack()
        self.begin: Begin = begin_views
        view = ViewParams(
            windows=windows, picture=picture, backbone=BackboneIdentity.of(engine.loaded, backbone)
        )
        self.feature_set = FeatureSet.of(view.to_json())
        self.describer = Describer(windows, picture, engine)

    def one(self, row: DeviceRow, name: str) -> int:
        """Bring one recording's features up to date, and its spikes first; returns its windows."""
        found = self.spikes_of(row, name)
        key = content_key({"spikes": found.key, "features": self.feature_set.key})
        published = self.store.features_info(name, self.feature_set.key)
        if published is not None and published["key"] == key:
            self.reused += 1
            return int(published["n_windows"])
        self.spikes_reused += found.reused
        return self._publish_features(row, name, key, found)

    def spikes_of(self, row: DeviceRow, name: str) -> PublishedSpikes:
        """Bring one recording's spikes up to date."""
        source = self._input(row, name)
        key = content_key(
            {"input": source["sha256"], "settings": self.spikes.to_json(), "version": VERSION}
        )
        info = self.store.spikes_info(name)
        if info is not None and info["key"] == key:
            return PublishedSpikes(key, source, True, None)
        if info is not None:
            _LOG.warning("%s changed since it was extracted: doing it again", row.written)
        found = self._publish_spikes(row, name, key, source)
        resident = None
        if found.on_device is not None:
            from toptune.pictures.drawer_cuda import ResidentSpikes

            sample, channel, _ = found.on_device.to_torch()
            resident = ResidentSpikes(sample, channel)
        return PublishedSpikes(key, source, False, resident)

    def _input(self, row: DeviceRow, name: str) -> dict[str, Any]:
        """Fingerprint of the input; hashed anew only where size or time of a file changed."""
        stamp = stamp_of(row.recording)
        info = self.store.spikes_info(name)
        if info is not None and info["stamp"] == stamp:
            return {**info["input"], "stamp": stamp}
        return {"recording": row.written, "sha256": file_sha256(row.recording), "stamp": stamp}

    def _publish_spikes(
        self, row: DeviceRow, name: str, key: str, source: dict[str, Any]
    ) -> FoundSpikes:
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
        return found

    def _publish_features(
        self, row: DeviceRow, name: str, key: str, spikes: PublishedSpikes
    ) -> int:
        computed = {"computed": self.describer.engine.computed.to_json()}
        # Before they are computed, not only before they are written.
        self.store.refuse_mixture(self.feature_set, computed)
        trains = self.store.read_spikes(name)
        begun = self.begin(trains, [self.describer], self.progress.stage, spikes.resident)
        n_windows = len(begun.start_s[0])
        if not n_windows:
            _LOG.warning(
                "%s lasts %.1f s, less than a window of %g s: skipped",
                row.written, trains.duration_s, self.windows.width_s,
            )  # fmt: skip
        info = {
            "key": key,
            "n_windows": n_windows,
            "input": {k: spikes.source[k] for k in ("recording", "sha256")},
            "versions": _versions("toptune", "torch", "torchvision", "timm", "openvino"),
            **computed,
            "weights": _weights_source(self.backbone).to_json(),
        }
        write = partial(self._write_features, name, begun, info, self.claim.pop_all())
        if self.writer is None:
            write()
        else:
            # Waits for a GPU and writes while the next recording is read, and computed.
            self.writer.submit(row.written, write)
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
