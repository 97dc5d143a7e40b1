"""How fast each stage is on this machine, and what a whole study would take.

The work that is timed is done by the functions that the product uses. Figures are the best of a few
rounds after one to warm up; what follows from them is for the study of `STUDY`.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError, ToptuneError
from toptune.params import (
    Backbone,
    Compute,
    HighPass,
    Picture,
    PictureKind,
    Ptsd,
    SpikeSettings,
    Windows,
)

if TYPE_CHECKING:
    from toptune.recordings.mcs import McsRecording
    from toptune.recordings.trains import SpikeTrains

Work = Callable[[], float]

_RATE_HZ = 10_000.0
_CHANNELS = 60
_SPIKES_HZ = 5.0
_CLASSES = 5
# What the features in memory are made of; the study's windows are as wide.
_WINDOWS = Windows()


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is done to measure."""

    recording_s: float = 30.0  # length of the simulated recording
    pictures: int = 64  # windows that are drawn, and described by each backbone
    # Rows that the classifiers are trained on.
    devices: int = 32
    windows_a_device: int = 157
    features: int = 1280
    epochs: int = 3  # of the MLP; the study's are 25

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"Sizes.{name} must be above 0, got {value}")


class Study(NamedTuple):
    """What is predicted: the paper's protocol with one backbone and one picture."""

    devices: int = 32
    channels: int = 60
    seconds: float = 900.0
    sampling_rate_hz: float = 10_000.0
    windows_a_device: int = 157
    epochs: int = 25

    @property
    def samples(self) -> float:
        """Of all channels of all devices."""
        return self.devices * self.channels * self.seconds * self.sampling_rate_hz

    @property
    def windows(self) -> int:
        """Of all devices."""
        return self.devices * self.windows_a_device

    @property
    def trained_rows(self) -> int:
        """Rows that pass through the MLP's networks, over all folds and epochs."""
        return self.epochs * self.devices * (self.windows - self.windows_a_device)


STUDY = Study()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What was measured of one stage."""

    name: str
    device: str  # where it was computed
    unit: str  # of `amount`
    amount: float  # work done in a round
    seconds: float  # of the fastest round
    rounds: int  # how many were measured
    # What the study's work would take at this rate; None where it is no stage of its own.
    study_seconds: float | None = None
    in_total: bool = False  # whether the study's total counts it
    note: str = ""  # what the figure rests on

    @property
    def per_second(self) -> float:
        """Work per second."""
        return self.amount / self.seconds


@dataclass(frozen=True)
class BenchResult:
    """All stages, in the order of the flow."""

    stages: tuple[Stage, ...]
    quick: bool

    @property
    def study_seconds(self) -> float:
        """What the study would take in all."""
        return sum(s.study_seconds for s in self.stages if s.in_total and s.study_seconds)

    def share(self, stage: Stage) -> float | None:
        """Part of the study that a stage takes, from 0 to 1; None of what the total leaves out."""
        if not stage.in_total or stage.study_seconds is None:
            return None
        return stage.study_seconds / self.study_seconds

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "quick": self.quick,
            "study": {**STUDY._asdict(), "windows": STUDY.windows, "seconds": self.study_seconds},
            "stages": [
                {**vars(s), "per_second": s.per_second, "study_share": self.share(s)}
                for s in self.stages
            ],
        }


class _Plan(NamedTuple):
    """A stage to measure, and what it is to the study."""

    name: str
    device: str
    unit: str
    work: Work
    # Work of the study, and by which power of the work its seconds grow.
    study_amount: float | None = None
    power: int = 1
    in_total: bool = False
    note: str = ""


def bench(
    *,
    compute: Compute | None = None,
    backbones: Sequence[str] = ("efficientnet_b0",),
    quick: bool = False,
    sizes: Sizes | None = None,
    step: Callable[[str], None] = lambda _: None,
) -> BenchResult:
    """Measure every stage.

    `compute` says where, and on how many threads. The first of `backbones` is the study's; their
    weights are random, which takes no less time than others. `quick` does less work in fewer
    rounds: some seconds, and rougher figures. `sizes` is how much is done; by default what fits a
    minute on two cores. `step` is called with a stage's name before it is measured. An unknown
    device or backbone, or none, is an InputError.
    """
    from toptune.machine.device import float64_device, torch_device

    if not backbones:
        raise InputError("name at least one backbone")
    compute = compute or Compute()
    where, direct = torch_device(compute.device), float64_device(compute.device)
    small = Sizes(recording_s=10, pictures=16, windows_a_device=64, epochs=1)
    sizes = sizes or (small if quick else Sizes())
    budget_s, most = (0.3, 2) if quick else (2.5, 5)
    measured = []
    with tempfile.TemporaryDirectory(prefix="toptune-bench-") as folder:
        stages = Stages(Path(folder), sizes, where, compute.n_jobs)
        ready = {name: stages.backbone(name) for name in dict.fromkeys(backbones)}
        for plan in _plans(stages, sizes, where, direct, ready):
            step(plan.name)
            measured.append(_measure(plan, budget_s, most))
    return BenchResult(tuple(measured), quick)


def _plans(
    stages: Stages, sizes: Sizes, device: str, direct: str, ready: dict[str, tuple[Work, int]]
) -> Iterator[_Plan]:
    samples, cached = "samples", "from the file cache"
    yield _Plan("reading an MCS file", "cpu", samples, stages.read, note=cached)
    yield _Plan("filter, in memory", "cpu", samples, stages.filter)
    yield _Plan("PTSD, in memory", "cpu", samples, stages.detect)
    yield _Plan("merely reading that memory", "cpu", samples, stages.memory)
    yield _Plan(
        "file to spikes", "cpu", samples, stages.file_to_spikes, STUDY.samples, in_total=True,
        note="reads, filters and detects at once",
    )  # fmt: skip
    first, (_, size) = next(iter(ready.items()))
    for kind in get_args(PictureKind):
        yield _Plan(
            f"drawing, {kind}, {size} x {size}", device, "pictures",
            partial(stages.draw, kind, size), STUDY.windows, in_total=kind == "histogram",
        )  # fmt: skip
    for name, (work, _) in ready.items():
        yield _Plan(
            name, device, "pictures", work, STUDY.windows, in_total=name == first,
            note="random weights",
        )  # fmt: skip
    fewer = sizes.windows_a_device * sizes.devices < STUDY.windows
    yield _Plan(
        "Falkon, leave one device out", direct, "windows", partial(stages.falkon, direct),
        STUDY.windows, power=3, in_total=True,
        note="without tuning" + ("; extrapolated by windows^3, an upper limit" if fewer else ""),
    )  # fmt: skip
    yield _Plan(
        "MLP, leave one device out", device, "rows", stages.mlp, STUDY.trained_rows, in_total=True,
        note=f"without tuning; {sizes.epochs} of {STUDY.epochs} epochs",
    )  # fmt: skip


def _measure(plan: _Plan, budget_s: float, most: int) -> Stage:
    """Do a stage's work once to warm up, then until the budget is spent or there are enough."""
    amount = plan.work()
    took: list[float] = []
    while not took or (len(took) < most and sum(took) < budget_s):
        began = time.perf_counter()
        done = plan.work()
        took.append(time.perf_counter() - began)
        if done != amount:
            raise ToptuneError(f"{plan.name} did {done:g} {plan.unit}, and {amount:g} before")
    best = min(took)
    study_s = None
    if plan.study_amount is not None:
        study_s = best * (plan.study_amount / amount) ** plan.power
    return Stage(
        name=plan.name,
        device=plan.device,
        unit=plan.unit,
        amount=amount,
        seconds=best,
        rounds=len(took),
        study_seconds=study_s,
        in_total=plan.in_total,
        note=plan.note,
    )


# --- the work of each stage


class Rows(NamedTuple):
    """Features as pooled ReLU outputs are: not negative, alike within a device and a class."""

    X: NDArray[np.float32]  # (n, d)
    label: NDArray[np.int64]  # (n,)
    device: NDArray[np.int64]  # (n,)


class Stages:
    """Every stage's work, made ready when it is first asked for.

    A simulated recording is written into `folder`; pictures, features and the MLP are computed on
    `device`, ``cpu`` or ``cuda``.
    """

    def __init__(self, folder: Path, sizes: Sizes, device: str, n_jobs: int | None) -> None:
        self._folder = folder
        self._sizes = sizes
        self._device = device
        self._n_jobs = n_jobs

    @cached_property
    def recording(self) -> Path:
        """An MCS file of a simulated culture."""
        from toptune.recordings.simulated import simulate

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
        from toptune.spikes.filters import HighPassFilter

        return HighPassFilter(HighPass(), _RATE_HZ, len(self.samples_uv)).apply(self.samples_uv)

    @cached_property
    def trains(self) -> SpikeTrains:
        """Spikes at random, as many windows long as pictures are wanted."""
        from toptune.recordings.trains import Segment, SpikeTrains, sort_spikes

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
        """Features and labels for the classifiers."""
        s, rng = self._sizes, np.random.default_rng(0)
        label = np.arange(s.devices) % _CLASSES
        centres = rng.random((_CLASSES, s.features))
        devices = centres[label] + 0.6 * rng.standard_normal((s.devices, s.features))
        noise = 0.3 * rng.standard_normal((s.devices, s.windows_a_device, s.features))
        X = np.maximum(devices[:, None] + noise, 0).reshape(-1, s.features).astype(np.float32)
        device = np.repeat(np.arange(s.devices), s.windows_a_device)
        return Rows(X, label[device], device)

    def _opened(self) -> McsRecording:
        from toptune.recordings.mcs import McsRecording
        from toptune.recordings.opening import open_recording

        opened = open_recording(self.recording)
        assert isinstance(opened, McsRecording)
        return opened

    def read(self) -> float:
        """Read the recording in chunks; samples of all channels."""
        with self._opened() as recording:
            return float(sum(chunk.size for chunk in recording.chunks()))

    def filter(self) -> float:
        """Filter it in memory; samples of all channels."""
        from toptune.machine.threads import thread_pool
        from toptune.spikes.filters import HighPassFilter

        with thread_pool(self._n_jobs) as pool:
            made = HighPassFilter(HighPass(), _RATE_HZ, len(self.samples_uv))
            return float(made.apply(self.samples_uv, pool=pool).size)

    @cached_property
    def thresholds_uv(self) -> NDArray[np.float32]:
        """What the spikes of filtered samples exceed, (channels,) microvolts."""
        from toptune.spikes.noise import noise_thresholds

        return noise_thresholds(self.filtered_uv, _RATE_HZ, Ptsd()).threshold_uv

    def detect(self) -> float:
        """Find the spikes of filtered samples, thresholds known; samples of all channels."""
        from toptune.spikes.ptsd import detect_spikes

        samples = self.filtered_uv
        detect_spikes(samples, _RATE_HZ, Ptsd(), self.thresholds_uv, n_jobs=self._n_jobs)
        return float(samples.size)

    def memory(self) -> float:
        """Read the same samples, and no more; samples of all channels."""
        from toptune.machine.threads import in_threads, thread_pool

        words = self.filtered_uv.view(np.int32)
        with thread_pool(self._n_jobs) as pool:
            in_threads(pool, np.bitwise_xor.reduce, words)
        return float(words.size)

    def file_to_spikes(self) -> float:
        """Read, filter and detect as `extract` does; samples of all channels."""
        from toptune.features.recordings import SpikeFinder

        seen = [0]

        def note(_: str, done: int, __: int) -> None:
            seen[0] = done

        finder = SpikeFinder(
            SpikeSettings(), Compute(device="cpu", n_jobs=self._n_jobs), voltage=True
        )
        found = finder.find(self.recording, note)
        return float(seen[0] * len(found.trains.channel_labels))

    def draw(self, kind: str, size: int) -> float:
        """Draw every window from spikes; pictures."""
        from toptune.pictures.drawers import Drawers

        picture = Picture.from_json({**Picture().to_json(), "kind": kind})
        made = Drawers(self.trains).drawer(_WINDOWS, picture, size, self._device)
        pictures = made.draw(0, len(made))
        if self._device != "cpu":
            import torch

            torch.cuda.synchronize(self._device)
        return float(len(pictures))

    def backbone(self, backbone: str) -> tuple[Work, int]:
        """Describe pictures by a backbone with random weights; pictures, and their size."""
        from toptune.backbones.engine import FeatureEngine
        from toptune.backbones.loading import load_backbone
        from toptune.pictures.drawers import Drawers

        loaded = load_backbone(Backbone(name=backbone, weights="random"))
        engine = FeatureEngine(loaded, self._device, n_threads=self._n_jobs)
        made = Drawers(self.trains)
        drawer = made.drawer(_WINDOWS, Picture(), engine.input_size, self._device)
        pictures = drawer.draw(0, len(drawer))

        def describe() -> float:
            return float(len(engine.features(pictures)))

        return describe, engine.input_size

    def falkon(self, device: str) -> float:
        """Score every window by Falkon without its device; windows."""
        from toptune.evaluation.folds import leave_one_group_out
        from toptune.heads.falkon.classifier import FalkonClassifier

        scored = leave_one_group_out(FalkonClassifier(device=device), *self.rows)
        return float(len(scored.predictions))

    def mlp(self) -> float:
        """Train the MLP without each device; rows passed through a network."""
        from toptune.evaluation.folds import leave_one_group_out
        from toptune.heads.mlp.classifier import MLPClassifier

        epochs = self._sizes.epochs
        head = MLPClassifier(epochs=epochs, device=self._device)
        folds = leave_one_group_out(head, *self.rows).folds
        return float(epochs * sum(fold.n_train_rows for fold in folds))
