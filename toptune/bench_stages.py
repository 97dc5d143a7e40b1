"""The work that `toptune bench` times: each stage of the flow, by the functions the product uses.

What enters: sizes, where to compute, and a folder for a simulated recording. What leaves: pieces of
work, each of which says how much it has done.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from toptune.backbones.engine import FeatureEngine
from toptune.errors import InputError
from toptune.evaluation.folds import leave_one_group_out
from toptune.heads.falkon.classifier import FalkonClassifier
from toptune.heads.mlp.classifier import MLPClassifier
from toptune.machine.threads import in_threads, thread_pool
from toptune.params import Backbone, HighPass, Picture, Ptsd, SpikeSettings, Windows
from toptune.pictures.drawer import Drawers
from toptune.recordings.mcs import McsRecording
from toptune.recordings.opening import open_recording
from toptune.recordings.simulated.culture import simulate
from toptune.recordings.trains import Segment, SpikeTrains, sort_spikes
from toptune.spikes.filters import HighPassFilter
from toptune.spikes.finding import find_spikes
from toptune.spikes.noise import noise_thresholds
from toptune.spikes.ptsd import detect_spikes

_RATE_HZ = 10_000.0
_CHANNELS = 60
_SPIKES_HZ = 5.0
_CLASSES = 5
# What the features in memory are made of; the study's windows are as wide.
_WINDOWS = Windows()

Work = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is done to measure.

    Parameters
    ----------
    recording_s
        Length of the simulated recording.
    pictures
        Windows that are drawn, and described by each backbone.
    devices, windows_a_device, features
        Rows that the heads are trained on.
    epochs
        Of the MLP; the study's are 25.
    """

    recording_s: float = 30.0
    pictures: int = 64
    devices: int = 32
    windows_a_device: int = 157
    features: int = 1280
    epochs: int = 3

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"Sizes.{name} must be above 0, got {value}")


class Rows(NamedTuple):
    """Features as pooled ReLU outputs are: not negative, alike within a device and a class.

    Attributes
    ----------
    X : (n, d) float32
    label, device : (n,) int64
    """

    X: NDArray[np.float32]
    label: NDArray[np.int64]
    device: NDArray[np.int64]


class Stages:
    """Every stage's work, made ready when it is first asked for.

    Parameters
    ----------
    folder
        Exists; a simulated recording is written into it.
    sizes
        How much.
    device
        ``cpu`` or ``cuda``: where pictures, features and the MLP are computed.
    n_jobs
        Threads; None for one a core.
    """

    def __init__(self, folder: Path, sizes: Sizes, device: str, n_jobs: int | None) -> None:
        self._folder = folder
        self._sizes = sizes
        self._device = device
        self._n_jobs = n_jobs

    @cached_property
    def recording(self) -> Path:
        """An MCS file of a simulated culture."""
        simulate(self._folder, n_devices=1, seconds=self._sizes.recording_s, seed=0)
        (path,) = self._folder.glob("*.h5")
        return path

    @cached_property
    def samples_uv(self) -> NDArray[np.float32]:
        """The recording in memory, (channels, samples) microvolts."""
        with self._opened() as recording:
            return recording.read(0, recording.n_samples)

    @cached_property
    def filtered_uv(self) -> NDArray[np.float32]:
        """The same after the default high-pass filter."""
        return HighPassFilter(HighPass(), _RATE_HZ, len(self.samples_uv)).apply(self.samples_uv)

    @cached_property
    def trains(self) -> SpikeTrains:
        """Spikes at random, as many windows long as pictures are wanted."""
        seconds = _WINDOWS.width_s + _WINDOWS.stride_s * (self._sizes.pictures - 1)
        n = round(seconds * _RATE_HZ)
        rng = np.random.default_rng(0)
        count = round(_CHANNELS * _SPIKES_HZ * seconds)
        sample, channel = rng.integers(n, size=count), rng.integers(_CHANNELS, size=count)
        return SpikeTrains(
            spikes=sort_spikes(sample, channel.astype(np.int32), np.full(count, 50, np.float32)),
            channel_labels=tuple(str(k) for k in range(_CHANNELS)),
            sampling_rate_hz=_RATE_HZ,
            segments=(Segment(0, n, 0.0),),
            threshold_uv=np.full(_CHANNELS, 40, np.float32),
        )

    @cached_property
    def rows(self) -> Rows:
        """Features and labels of the heads."""
        s, rng = self._sizes, np.random.default_rng(0)
        label = np.arange(s.devices) % _CLASSES
        centres = rng.random((_CLASSES, s.features))
        devices = centres[label] + 0.6 * rng.standard_normal((s.devices, s.features))
        noise = 0.3 * rng.standard_normal((s.devices, s.windows_a_device, s.features))
        X = np.maximum(devices[:, None] + noise, 0).reshape(-1, s.features).astype(np.float32)
        device = np.repeat(np.arange(s.devices), s.windows_a_device)
        return Rows(X, label[device], device)

    def _opened(self) -> McsRecording:
        opened = open_recording(self.recording)
        assert isinstance(opened, McsRecording)
        return opened

    def read(self) -> float:
        """Read the recording in chunks; samples of all channels."""
        with self._opened() as recording:
            return float(sum(chunk.size for chunk in recording.chunks()))

    def filter(self) -> float:
        """Filter it in memory; samples of all channels."""
        with thread_pool(self._n_jobs) as pool:
            made = HighPassFilter(HighPass(), _RATE_HZ, len(self.samples_uv))
            return float(made.apply(self.samples_uv, pool=pool).size)

    def detector(self) -> Work:
        """Find the spikes of filtered samples, thresholds known; samples of all channels."""
        samples = self.filtered_uv
        thresholds = noise_thresholds(samples, _RATE_HZ, Ptsd()).threshold_uv

        def detect() -> float:
            detect_spikes(samples, _RATE_HZ, Ptsd(), thresholds, n_jobs=self._n_jobs)
            return float(samples.size)

        return detect

    def memory(self) -> float:
        """Read the same samples, and no more; samples of all channels."""
        words = self.filtered_uv.view(np.int32)
        with thread_pool(self._n_jobs) as pool:
            in_threads(pool, np.bitwise_xor.reduce, words)
        return float(words.size)

    def file_to_spikes(self) -> float:
        """Read, filter and detect as `extract` does; samples of all channels."""
        seen = [0]

        def note(_: str, done: int, __: int) -> None:
            seen[0] = done

        found = find_spikes(self.recording, SpikeSettings(), n_jobs=self._n_jobs, stage=note)
        return float(seen[0] * len(found.trains.channel_labels))

    def drawer(self, kind: str, size: int) -> Work:
        """Draw every window from spikes; pictures."""
        picture = Picture.from_json({**Picture().to_json(), "kind": kind})

        def draw() -> float:
            made = Drawers(self.trains).drawer(_WINDOWS, picture, size, self._device)
            pictures = made.draw(0, len(made))
            self._wait()
            return float(len(pictures))

        return draw

    def describer(self, backbone: str) -> tuple[Work, int]:
        """Describe pictures by a backbone with random weights; pictures, and their size."""
        from toptune.backbones.loading import load_backbone

        loaded = load_backbone(Backbone(name=backbone, weights="random"))
        engine = FeatureEngine(loaded, self._device, n_threads=self._n_jobs)
        drawings = Drawers(self.trains)
        drawer = drawings.drawer(_WINDOWS, Picture(), engine.input_size, self._device)
        pictures = drawer.draw(0, len(drawer))

        def describe() -> float:
            return float(len(engine.features(pictures)))

        return describe, engine.input_size

    def falkon(self, device: str) -> Work:
        """Score every window by Falkon without its device; windows."""
        head = FalkonClassifier(device=device)
        return lambda: float(len(leave_one_group_out(head, *self.rows).predictions))

    def mlp(self) -> Work:
        """Train the MLP without each device; rows passed through a network."""
        epochs = self._sizes.epochs
        head = MLPClassifier(epochs=epochs, device=self._device)

        def train() -> float:
            folds = leave_one_group_out(head, *self.rows).folds
            return float(epochs * sum(fold.n_train_rows for fold in folds))

        return train

    def _wait(self) -> None:
        if self._device != "cpu":
            torch.cuda.synchronize(self._device)
