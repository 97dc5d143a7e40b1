"""How many spikes are found, how many detections are true, and how many spikes are found twice.

Voltage with spikes at known times, in several shapes, sizes, rates, bursts and kinds of noise, and
recordings of `toptune simulate`, is filtered in several ways. On the same filtered traces spikes
are detected by PTSD and, where it is installed, by SpikeInterface's `locally_exclusive`.

Run it with

    python benchmarks/spike_accuracy.py

in an environment with SpikeInterface (bench_spikes.py tells how to install it) for both detectors.

A detection is true if it can be paired with a true spike of its electrode at most 1 ms away, one
with one, by the pairing with the most pairs. Recall is the share of true spikes that have a pair,
precision the share of detections. A double is a detection without a pair within 3 ms of one that
has a pair.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import scipy.signal
from numpy.typing import NDArray

from toptune.params import HighPass, Ptsd
from toptune.recordings.simulated import simulate
from toptune.recordings.spike_npz import read_npz
from toptune.spikes.filters import HighPassFilter
from toptune.spikes.ptsd import detect_spikes

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]

# Spikes of a recording, given its filtered samples, its sampling rate and which peaks count.
Peer = Callable[[Float32, float, str], list[Ints]]

NOISE_UV = 5.0
PAIRED_MS = 1.0
DOUBLE_MS = 3.0


# --- judging


class Judged(NamedTuple):
    """What was detected on all electrodes of a recording."""

    true: int  # spikes that are there
    found: int  # detections
    paired: int  # detections with a true spike of their own
    doubles: int  # detections beside a paired one

    @property
    def recall(self) -> float:
        """The share of the true spikes that were found."""
        return self.paired / max(1, self.true)

    @property
    def precision(self) -> float:
        """The share of the detections that are true."""
        return self.paired / max(1, self.found)

    @property
    def doubled(self) -> float:
        """The share of the detections that are doubles."""
        return self.doubles / max(1, self.found)


@numba.njit(nogil=True)
def pair(true: Ints, found: Ints, tolerance: int) -> NDArray[np.bool_]:
    """Tell which of the sorted detections have a true spike, one with one; as many as possible.

    Taking the earliest that fit is optimal, since all tolerances are equal.
    """
    paired = np.zeros(found.size, np.bool_)
    i = j = 0
    while i < true.size and j < found.size:
        if found[j] < true[i] - tolerance:
            j += 1
        elif found[j] > true[i] + tolerance:
            i += 1
        else:
            paired[j] = True
            i += 1
            j += 1
    return paired


def judge_electrode(true: Ints, found: Ints, sampling_rate_hz: float) -> Judged:
    """Compare the sorted samples of the detections of one electrode with the true ones."""
    paired = pair(true, found, int(PAIRED_MS * sampling_rate_hz / 1000))
    near = int(DOUBLE_MS * sampling_rate_hz / 1000)
    good, extra = found[paired], found[~paired]
    beside = np.searchsorted(good, extra + near, "right") - np.searchsorted(good, extra - near)
    return Judged(true.size, found.size, int(paired.sum()), int((beside > 0).sum()))


def judge(true: list[Ints], found: list[Ints], sampling_rate_hz: float) -> Judged:
    """Compare detections with true spikes, electrode by electrode."""
    parts = [judge_electrode(t, f, sampling_rate_hz) for t, f in zip(true, found, strict=True)]
    return Judged(*map(sum, zip(*parts, strict=True)))


# --- filters and detectors


class Filter(NamedTuple):
    """A way to filter, with PTSD's refractory period."""

    order: int
    cutoff_hz: float
    zero_phase: bool = False
    refractory_ms: float = 1.0

    def __str__(self) -> str:
        if not self.cutoff_hz:
            return "none"
        kind = "zero-phase" if self.zero_phase else "causal"
        more = "" if self.refractory_ms == 1.0 else f", refractory {self.refractory_ms:g} ms"
        return f"{kind}, order {self.order}, {self.cutoff_hz:g} Hz{more}"

    def apply(self, samples_uv: Float32, sampling_rate_hz: float) -> Float32:
        """Filter (electrodes, samples)."""
        if self.zero_phase and self.cutoff_hz:
            sos = scipy.signal.butter(
                self.order, self.cutoff_hz, "highpass", fs=sampling_rate_hz, output="sos"
            )
            out: Float64 = scipy.signal.sosfiltfilt(sos, samples_uv.astype(np.float64))
            return out.astype(np.float32)
        params = HighPass(cutoff_hz=self.cutoff_hz, order=self.order)
        return HighPassFilter(params, sampling_rate_hz, len(samples_uv)).apply(samples_uv)


DEFAULT = Filter(HighPass().order, HighPass().cutoff_hz)
EARLIER = Filter(2, 300)  # the default until order 1 became it
FILTERS = (
    Filter(1, 0),
    *(Filter(1, cutoff) for cutoff in (100, 200, 250, 300, 400, 500)),
    *(Filter(order, cutoff) for order in (2, 3, 4) for cutoff in (100, 200, 300)),
    *(Filter(1, 300, refractory_ms=ms) for ms in (1.2, 1.5, 2.0)),
    *(Filter(2, 300, refractory_ms=ms) for ms in (1.5, 2.0)),
    *(Filter(order, cutoff, True) for order in (1, 2) for cutoff in (100, 300)),
)
# Behind these SpikeInterface detects, too.
PEERED = {*(Filter(order, 300) for order in (1, 2)), *(Filter(k, 300, True) for k in (1, 2))}


def by_ptsd(samples_uv: Float32, sampling_rate_hz: float, filt: Filter) -> list[Ints]:
    """Detect by PTSD; the sorted samples of each electrode."""
    spikes = detect_spikes(samples_uv, sampling_rate_hz, Ptsd(refractory_ms=filt.refractory_ms))
    return [spikes.sample[spikes.channel == k] for k in range(len(samples_uv))]


def spikeinterface() -> Peer | None:
    """Give `locally_exclusive` with its own threshold, 5, each electrode by itself, if installed.

    Its last argument says which peaks count: neg (its default) or both.
    """
    try:
        from spikeinterface.core import NumpyRecording
        from spikeinterface.sortingcomponents.peak_detection import detect_peaks
    except ImportError:
        return None

    def detect(samples_uv: Float32, sampling_rate_hz: float, sign: str) -> list[Ints]:
        n = len(samples_uv)
        recording: Any = NumpyRecording([np.ascontiguousarray(samples_uv.T)], sampling_rate_hz)
        recording.set_dummy_probe_from_locations(np.arange(2 * n).reshape(n, 2) * 200.0)
        # As SpikeInterface estimates it, but over the whole recording. The dead have no spikes.
        centred = samples_uv - np.median(samples_uv, axis=1, keepdims=True)
        noise = np.median(np.abs(centred), axis=1) / 0.6745
        settings = {
            "peak_sign": sign,
            "detect_threshold": 5,
            "exclude_sweep_ms": 1.0,
            "radius_um": 0.0,
            "noise_levels": np.where(noise > 0, noise, np.inf),
        }
        job = {"n_jobs": 1, "chunk_duration": "10s", "progress_bar": False}
        peaks = detect_peaks(
            recording, method="locally_exclusive", method_kwargs=settings, job_kwargs=job
        )
        return [
            np.sort(peaks["sample_index"][peaks["channel_index"] == k]).astype(np.int64)
            for k in range(n)
        ]

    return detect


# --- recordings with known spikes


class Known(NamedTuple):
    """Voltage of several electrodes, and the samples of their true spikes, sorted."""

    samples_uv: Float32
    true: list[Ints]
    sampling_rate_hz: float


class Bump(NamedTuple):
    """A Gaussian part of a spike's shape."""

    height: float
    at_ms: float
    width_ms: float  # standard deviation


# The largest peak is 1 high, and at 0 ms.
SHAPES = {
    "biphasic": (Bump(-1, 0, 0.15), Bump(0.35, 0.6, 0.28)),
    "narrow": (Bump(-1, 0, 0.09), Bump(0.45, 0.35, 0.16)),
    "wide": (Bump(-1, 0, 0.25), Bump(0.35, 1.0, 0.45)),
    "triphasic": (Bump(0.3, -0.4, 0.13), Bump(-1, 0, 0.14), Bump(0.4, 0.5, 0.25)),
    "slow after-potential": (Bump(-1, 0, 0.18), Bump(0.12, 1.8, 0.8)),
    "inverted": (Bump(1, 0, 0.15), Bump(-0.35, 0.6, 0.28)),
    "symmetric": (Bump(-1, 0, 0.16), Bump(0.9, 0.5, 0.2)),
}


def waveform(shape: str, sampling_rate_hz: float) -> tuple[Float64, int]:
    """Sample a shape; with the index of its largest peak."""
    before, after = int(0.0015 * sampling_rate_hz), int(0.006 * sampling_rate_hz)
    ms = np.arange(-before, after + 1) * 1000 / sampling_rate_hz
    parts = [b.height * np.exp(-0.5 * ((ms - b.at_ms) / b.width_ms) ** 2) for b in SHAPES[shape]]
    wave = np.sum(parts, axis=0)
    scaled: Float64 = wave / np.abs(wave).max()
    return scaled, int(np.abs(wave).argmax())


def poisson_train(rng: np.random.Generator, rate_hz: float, seconds: float) -> Float64:
    """Draw spike times, 3 ms apart or more, with this mean rate."""
    gap_s = 0.003
    n = int(rate_hz * seconds * 1.5 + 50)
    times = np.cumsum(gap_s + rng.exponential(1 / rate_hz - gap_s, n))
    return times[times < seconds]


def burst_train(rng: np.random.Generator, seconds: float) -> tuple[Float64, Float64]:
    """Draw bursts of some 12 spikes, 2 ms apart or more (6 in the mean), one every 2 s.

    The second value is each spike's size: it halves during a burst and recovers before the next.
    """
    times, sizes = [], []
    start = min(float(rng.exponential(1.0)), seconds / 2)
    while start < seconds:
        n = int(rng.integers(4, 21))
        times.append(start + np.cumsum(0.002 + rng.gamma(2.0, 0.002, n)))
        sizes.append(np.maximum(0.5, 0.5 ** (np.arange(n) / 8)))
        start = float(times[-1][-1] + 0.3 + rng.exponential(1.6))
    joined, size = np.concatenate(times), np.concatenate(sizes)
    return joined[joined < seconds], size[joined < seconds]


def coloured(rng: np.random.Generator, shape: tuple[int, int], *_: float) -> Float64:
    """Noise of an amplifier: autoregressive of order 2, SD 1."""
    raw = scipy.signal.lfilter([1], [1, -0.35, -0.1], rng.standard_normal(shape))
    noise: Float64 = raw / raw.std()
    return noise


def white(rng: np.random.Generator, shape: tuple[int, int], *_: float) -> Float64:
    """White noise, SD 1."""
    return rng.standard_normal(shape)


def slow(
    rng: np.random.Generator, shape: tuple[int, int], sampling_rate_hz: float, times: float = 1.0
) -> Float64:
    """Noise of an amplifier, 50 Hz hum of SD 1, and field potentials from 1 to 30 Hz of SD 2."""
    waves = scipy.signal.butter(1, [1, 30], "bandpass", fs=sampling_rate_hz, output="sos")
    field = scipy.signal.sosfilt(waves, rng.standard_normal(shape))
    phase = rng.uniform(0, 2 * np.pi, (shape[0], 1))
    hum = np.sqrt(2) * np.sin(2 * np.pi * 50 * np.arange(shape[1]) / sampling_rate_hz + phase)
    noise: Float64 = coloured(rng, shape) + times * (hum + 2 * field / field.std())
    return noise


def very_slow(rng: np.random.Generator, shape: tuple[int, int], sampling_rate_hz: float) -> Float64:
    """Do the same with twice the hum and field potentials."""
    return slow(rng, shape, sampling_rate_hz, 2.0)


class Scenario(NamedTuple):
    """What is simulated: neurons of these shapes at every electrode, with the noise added."""

    group: str
    name: str
    shapes: tuple[str, ...] = ("biphasic",)
    # Height of the largest peak in SDs of the noise; drawn for every neuron if not given: median 9,
    # one in six below 5.5, one in six above 15, none below 5 or above 40.
    peak_sd: float | None = None
    rate_hz: float = 5.0
    bursts: bool = False
    noise: Callable[..., Float64] = coloured
    sampling_rate_hz: float = 10_000.0

    def simulate(self, n_channels: int, seconds: float, seed: int) -> Known:
        """Add the spikes of all neurons to the noise."""
        rng = np.random.default_rng([seed, *self.name.encode()])
        rate, n = self.sampling_rate_hz, round(seconds * self.sampling_rate_hz)
        samples = NOISE_UV * self.noise(rng, (n_channels, n), rate)
        true = []
        for channel in range(n_channels):
            mine = []
            for shape in self.shapes:
                peak_sd = self.peak_sd or float(np.clip(9 * np.exp(rng.normal(0, 0.5)), 5, 40))
                times = poisson_train(rng, self.rate_hz, seconds)
                sizes = np.ones(times.size)
                if self.bursts:
                    times, sizes = burst_train(rng, seconds)
                wave, peak_at = waveform(shape, rate)
                at = np.rint(times * rate).astype(np.int64)
                inside = (at > len(wave)) & (at < n - len(wave))
                for first, size in zip(at[inside] - peak_at, sizes[inside], strict=True):
                    samples[channel, first : first + len(wave)] += size * peak_sd * NOISE_UV * wave
                mine.append(at[inside])
            true.append(np.sort(np.concatenate(mine)))
        return Known(samples.astype(np.float32), true, rate)


SIMULATED = "toptune simulate"
LARGE = "large spikes"


def _scenarios() -> Iterator[Scenario]:
    for sd in (5.0, 6.6, 9.0, 15.0):
        yield Scenario("noise levels", f"peaks of {sd:g} noise SDs", peak_sd=sd)
    for shape in SHAPES:
        yield Scenario("shapes", shape, (shape,))
    for rate in (1.0, 20.0, 50.0):
        yield Scenario("rates", f"{rate:g} spikes/s", rate_hz=rate)
    for shape in SHAPES:
        yield Scenario("bursts", f"bursts, {shape}", (shape,), bursts=True)
    three = ("biphasic", "triphasic", "wide")
    yield Scenario("several neurons", "three neurons", three, rate_hz=15.0)
    yield Scenario("several neurons", "three neurons, bursts", three, bursts=True)
    yield Scenario("kinds of noise", "white noise", noise=white)
    yield Scenario("kinds of noise", "hum and field potentials", noise=slow)
    yield Scenario("kinds of noise", "strong hum and field potentials", noise=very_slow)
    yield Scenario("sampling rates", "5 kHz", sampling_rate_hz=5_000.0)
    yield Scenario("sampling rates", "25 kHz", sampling_rate_hz=25_000.0)
    for shape in SHAPES:
        yield Scenario(LARGE, f"{shape}, 25 noise SDs", (shape,), peak_sd=25.0)


SCENARIOS = tuple(_scenarios())


def simulated(
    folder: Path, n_devices: int, seconds: float, seed: int
) -> Iterator[tuple[str, Known]]:
    """Give recordings of `toptune simulate`; their truth has spikes below any threshold, too."""
    from toptune.recordings.opening import open_recording

    simulate(folder, n_devices=n_devices, seconds=seconds, seed=seed)
    for path in sorted(folder.glob("*.h5")):
        opened: Any = open_recording(path)
        with opened as recording:
            samples = recording.read(0, recording.n_samples)
            rate, labels = recording.sampling_rate_hz, recording.channel_labels
        trains = read_npz(path.with_suffix(".truth.npz"))
        assert trains.channel_labels == labels
        spikes = trains.spikes
        true = [np.sort(spikes.sample[spikes.channel == k]) for k in range(len(labels))]
        yield path.stem, Known(samples, true, rate)


# --- the tables


DETECTORS = ("PTSD", "SpikeInterface neg", "SpikeInterface both")


class Measured(NamedTuple):
    """What came out of one recording."""

    group: str
    name: str
    judged: dict[tuple[Filter, str], Judged]


def measure(known: Known, filters: Sequence[Filter], peer: Peer | None) -> dict[Any, Judged]:
    """Judge PTSD behind every filter on one recording, and SpikeInterface behind some."""
    results = {}
    for filt in filters:
        filtered = filt.apply(known.samples_uv, known.sampling_rate_hz)
        found = {"PTSD": by_ptsd(filtered, known.sampling_rate_hz, filt)}
        if peer is not None and filt in PEERED:
            for sign in ("neg", "both"):
                found[f"SpikeInterface {sign}"] = peer(filtered, known.sampling_rate_hz, sign)
        for name, spikes in found.items():
            results[filt, name] = judge(known.true, spikes, known.sampling_rate_hz)
    return results


def say(text: str = "") -> None:
    """Print a line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def mean_of(rows: Iterable[Judged]) -> str:
    """Write mean recall, precision and share of doubles, each recording counting the same."""
    values = np.mean([(r.recall, r.precision, r.doubled) for r in rows], axis=0)
    return " / ".join(f"{value:.3f}" for value in values)


def say_filters(measured: Sequence[Measured], detector: str) -> None:
    """Print a line for each filter, with means over recordings."""
    filters = [f for f, d in measured[0].judged if d == detector]
    if not filters:
        return
    ours = [m for m in measured if m.group == SIMULATED]
    large = [m for m in measured if m.group == LARGE]
    most = [m for m in measured if m.group != LARGE]
    say(f"\n{detector}: recall / precision / doubles, means over recordings\n")
    say(f"| filter | all but large spikes ({len(most)}) | of these, {SIMULATED} ({len(ours)}) |"
        f" {LARGE} ({len(large)}) |\n|---|---|---|---|")  # fmt: skip
    for filt in filters:
        cells = [mean_of(m.judged[filt, detector] for m in part) for part in (most, ours, large)]
        say(f"| {filt} | {' | '.join(cells)} |")


def say_recordings(measured: Sequence[Measured], default: Filter) -> None:
    """Print a line for each recording: the earlier filter, the default one, and SpikeInterface."""
    columns = [(EARLIER, "PTSD"), *((default, detector) for detector in DETECTORS)]
    columns = [c for c in columns if c in measured[0].judged]
    head = " | ".join(f"{detector}, {filt}" for filt, detector in columns)
    say("\nrecall / precision / doubles\n")
    say(f"| recording | true spikes | {head} |\n|---|---|{'---|' * len(columns)}")
    for group, members in itertools.groupby(measured, key=lambda m: m.group):
        for one in members:
            cells = " | ".join(mean_of([one.judged[c]]) for c in columns)
            say(f"| {group}: {one.name} | {one.judged[columns[0]].true} | {cells} |")


def main() -> None:
    """Simulate, detect, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--channels", type=int, default=16, help="electrodes of a recording")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a recording")
    parser.add_argument("--devices", type=int, default=5, help="recordings of toptune simulate")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    peer = spikeinterface()
    if peer is None:
        say("SpikeInterface is not installed: PTSD is measured alone")
    measured = []
    for scenario in SCENARIOS:
        known = scenario.simulate(given.channels, given.seconds, given.seed)
        measured.append(Measured(scenario.group, scenario.name, measure(known, FILTERS, peer)))
    with tempfile.TemporaryDirectory() as folder:
        for name, known in simulated(Path(folder), given.devices, given.seconds, given.seed):
            measured.append(Measured(SIMULATED, name, measure(known, FILTERS, peer)))
    for detector in DETECTORS:
        say_filters(measured, detector)
    say_recordings(measured, DEFAULT)


if __name__ == "__main__":
    main()
