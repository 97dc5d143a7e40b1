"""Simulated recordings of cultures with five ratios of excitation to inhibition.

For each device a folder gets an MCS HDF5 recording ``NAME.h5`` (60 channels, of which one is the
reference and one is dead) and ``NAME.truth.npz`` with every spike of every neuron near an
electrode, whether or not it exceeds the noise; ``simulation.json``, which says how all were made;
and ``devices.csv``, which is written last. The same seed gives the same files, byte for byte,
however many are simulated at once.

The voltage is spike templates in coloured noise, made block by block, so that memory does not grow
with the recording.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.machine.remote import local_output
from toptune.machine.threads import compiled
from toptune.params import LONGEST_S
from toptune.recordings.mcs_writer import (
    McsChannel,
    McsHeader,
    McsStream,
    McsWriter,
    mea60_channels,
)
from toptune.recordings.simulated_network import EXCITATORY_FRACTIONS, Activity, simulate_activity
from toptune.recordings.spike_npz import write_npz
from toptune.recordings.trains import Segment, SpikeTrains, sort_spikes

_RATE_HZ = 10_000.0
# What a folder was simulated with, for commands that repeat it.
_ABOUT, _KIND = "simulation.json", "toptune simulation"
_REFERENCE = "Ref"
_PITCH_UM = 200.0
# One ADC step of an MEA2100: 59605 x 10^-12 V.
_STEP_UV = 59605e-6
_CHANNELS = mea60_channels()
_RAW = McsStream(label="Data Acquisition (1) Electrode Raw Data", channels=_CHANNELS)
_DIGITAL = McsStream(
    label="Data Acquisition (1) Digital Data",
    sub_type="Digital",
    channels=(
        McsChannel(
            label="1", channel_id=len(_CHANNELS), unit="NoUnit", conversion_factor=0, exponent=0
        ),
    ),
)


class _Device(NamedTuple):
    name: str
    label: str
    batch: str
    seed: np.random.SeedSequence


def simulate(
    out: Path,
    *,
    n_devices: int,
    seconds: float,
    seed: int,
    sampling_rate_hz: float = _RATE_HZ,
    n_jobs: int = 1,
    overwrite: bool = False,
    on_device: Callable[[str], None] | None = None,
) -> Path:
    """Simulate recordings of `n_devices` cultures, cycling over the five classes.

    Parameters
    ----------
    out
        A folder, created if missing.
    n_devices
        Device i has class i modulo 5, and every five devices are a batch.
    seconds
        Length of each recording.
    seed
        0 or above. A device does not depend on the number of devices.
    sampling_rate_hz
        5 kHz or above; a sample must last a whole number of microseconds.
    n_jobs
        Devices simulated at the same time, in threads.
    overwrite
        Whether files of these names may be replaced.
    on_device
        Called with a device's name when it is done, from the thread that simulated it.

    Returns
    -------
    Path
        The devices file.

    Raises
    ------
    InputError
        A parameter is out of range, or a file exists already.
    """
    _check(n_devices, seconds, seed, sampling_rate_hz, n_jobs)
    out = local_output(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is not a folder: choose another path")
    devices = _devices(n_devices, seed)
    table = out / "devices.csv"
    targets = [
        table,
        out / _ABOUT,
        *(out / f"{d.name}{end}" for d in devices for end in (".h5", ".truth.npz")),
    ]
    there = [path for path in targets if path.exists()]
    if there and not overwrite:
        raise InputError(
            f"{there[0]} exists already: choose another folder, or replace it by `overwrite=True`"
        )
    out.mkdir(parents=True, exist_ok=True)
    table.unlink(missing_ok=True)
    n_samples = round(seconds * sampling_rate_hz)

    def make(device: _Device) -> None:
        _simulate_device(out, device, n_samples, sampling_rate_hz)
        if on_device is not None:
            on_device(device.name)

    with ThreadPoolExecutor(n_jobs) as pool:
        list(pool.map(make, devices))
    about = {"n_devices": n_devices, "seconds": seconds, "seed": seed}
    if sampling_rate_hz == _RATE_HZ:
        _write(out / _ABOUT, json.dumps({"kind": _KIND, **about}, indent=2) + "\n")
    _write_table(table, devices)
    return table


def simulation_of(folder: Path) -> dict[str, Any] | None:
    """Give `n_devices`, `seconds` and `seed` of the simulation that made a folder; None if none."""
    try:
        about = json.loads((folder / _ABOUT).read_text("utf-8"))
        if about["kind"] == _KIND:
            wanted = {"n_devices": int, "seconds": float, "seed": int}
            return {name: cast(about[name]) for name, cast in wanted.items()}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _check(n_devices: int, seconds: float, seed: int, sampling_rate_hz: float, n_jobs: int) -> None:
    for name, value in (("n_devices", n_devices), ("n_jobs", n_jobs)):
        if value < 1:
            raise InputError(f"{name} must be 1 or above, got {value}")
    if seed < 0:
        raise InputError(f"seed must be 0 or above, got {seed}")
    check_rate(sampling_rate_hz)
    if not (1e6 / sampling_rate_hz).is_integer():
        raise InputError(
            "sampling_rate_hz must give samples of whole microseconds, as MCS files count them, "
            f"got {sampling_rate_hz:g}"
        )
    if not (math.isfinite(seconds) and seconds * sampling_rate_hz >= 1):
        raise InputError(f"seconds must be above 0, got {seconds:g}")
    if seconds > LONGEST_S:
        raise InputError(f"seconds must be at most {LONGEST_S:g}, got {seconds:g}")


def _devices(n_devices: int, seed: int) -> list[_Device]:
    labels = list(EXCITATORY_FRACTIONS)
    # The first seeds do not depend on how many are spawned.
    seeds = np.random.SeedSequence(seed).spawn(n_devices)
    return [
        _Device(
            name=f"D{i + 1:02d}_{labels[i % len(labels)]}",
            label=labels[i % len(labels)],
            batch=f"B{i // len(labels) + 1}",
            seed=child,
        )
        for i, child in enumerate(seeds)
    ]


def _simulate_device(out: Path, device: _Device, n_samples: int, sampling_rate_hz: float) -> None:
    network_seed, units_seed, noise_seed = device.seed.spawn(3)
    activity = simulate_activity(
        new_generator(network_seed),
        EXCITATORY_FRACTIONS[device.label],
        _positions_um(),
        n_samples=n_samples,
        sampling_rate_hz=sampling_rate_hz,
    )
    rng = new_generator(units_seed)
    electrodes, dead = _electrodes(rng)
    placed = _placed(rng, activity, electrodes, dead, sampling_rate_hz)
    write_npz(_truth(placed, n_samples, sampling_rate_hz), out / f"{device.name}.truth.npz")
    path = out / f"{device.name}.h5"
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    noise = new_generator(noise_seed)
    header = McsHeader(comment=f"simulated culture {device.name}")
    with McsWriter(part, header, identity=f"{device.name}/{device.seed.entropy}") as writer:
        _write_recording(writer, noise, electrodes, placed, n_samples, sampling_rate_hz)
    part.replace(path)


def _write_recording(
    writer: McsWriter,
    rng: np.random.Generator,
    electrodes: Electrodes,
    placed: PlacedSpikes,
    n_samples: int,
    sampling_rate_hz: float,
) -> None:
    tick_us = round(1e6 / sampling_rate_hz)
    recording = writer.add_recording()
    # Before the raw data, so that a reader that simply takes the first stream takes the wrong one.
    digital = recording.add_stream(replace(_DIGITAL, tick_us=tick_us))
    raw = recording.add_stream(replace(_RAW, tick_us=tick_us))
    for block in voltage_blocks(
        rng, electrodes, placed, n_samples=n_samples, sampling_rate_hz=sampling_rate_hz
    ):
        raw.write(np.rint(block / np.float32(_STEP_UV)).astype(np.int32))
        digital.write(np.zeros((1, block.shape[1]), np.int32))


def _positions_um() -> NDArray[np.float64]:
    """Return electrode positions; the reference counts as one here, and is silenced later."""
    inner = [c.label if c.label != _REFERENCE else "15" for c in _CHANNELS]
    return np.array([[int(label[0]), int(label[1])] for label in inner]) * _PITCH_UM


def _electrodes(rng: np.random.Generator) -> tuple[Electrodes, int]:
    """Draw every electrode's noise; return it with the row of the dead electrode."""
    n = len(_CHANNELS)
    reference = _reference_row()
    others = [row for row in range(n) if row != reference]
    dead = others[rng.integers(len(others))]
    noise = rng.uniform(3.0, 5.0) * np.exp(rng.normal(0, 0.15, n))
    hum = rng.uniform(0.2, 1.5, n)
    drift = rng.uniform(1.0, 10.0, n)
    offset = rng.uniform(-40.0, 40.0, n)
    # The reference is measured against itself; a dead electrode shows its amplifier's offset only.
    for row in (reference, dead):
        noise[row] = hum[row] = drift[row] = 0.0
    offset[reference] = 0.0
    return Electrodes(noise, hum, drift, rng.uniform(0.05, 0.4, n), offset), dead


def _reference_row() -> int:
    return [channel.label for channel in _CHANNELS].index(_REFERENCE)


def _placed(
    rng: np.random.Generator,
    activity: Activity,
    electrodes: Electrodes,
    dead: int,
    sampling_rate_hz: float,
) -> PlacedSpikes:
    """Draw every neuron's template and amplitude, some of them below any threshold."""
    waves = [
        template_waveform(
            _template(rng), _peak_uv(rng, electrodes.noise_sd_uv[at]), sampling_rate_hz
        )
        for at in activity.electrode
    ]
    length = len(template_waveform(TYPICAL_TEMPLATE, 1.0, sampling_rate_hz))
    channel = activity.electrode[activity.unit]
    heard = np.flatnonzero((channel != dead) & (channel != _reference_row()))
    order = heard[np.lexsort((activity.unit[heard], channel[heard], activity.sample[heard]))]
    return PlacedSpikes(
        activity.sample[order],
        channel[order],
        activity.unit[order],
        np.array(waves, np.float32).reshape(-1, length),
        samples_before_peak(sampling_rate_hz),
    )


def _template(rng: np.random.Generator) -> Template:
    return Template(
        trough_ms=rng.uniform(0.12, 0.2),
        hump_ms=rng.uniform(0.22, 0.36),
        delay_ms=rng.uniform(0.5, 0.8),
        ratio=rng.uniform(0.2, 0.5),
    )


def _peak_uv(rng: np.random.Generator, noise_sd_uv: float) -> float:
    """Draw a neuron's peak: median 9 noise SDs, one in six below 5.5, one in six above 15."""
    return float(noise_sd_uv * np.clip(9.0 * np.exp(rng.normal(0, 0.5)), 2.0, 40.0))


def _truth(placed: PlacedSpikes, n_samples: int, sampling_rate_hz: float) -> SpikeTrains:
    """Return the true spikes by electrode, without the reference, which readers leave out too."""
    reference = _reference_row()
    swing = np.ptp(placed.waveforms_uv, axis=1) if len(placed.waveforms_uv) else np.empty(0)
    labels = tuple(c.label for c in _CHANNELS if c.label != _REFERENCE)
    return SpikeTrains(
        spikes=sort_spikes(
            placed.sample,
            (placed.channel - (placed.channel > reference)).astype(np.int32),
            swing[placed.shape].astype(np.float32),
        ),
        channel_labels=labels,
        sampling_rate_hz=sampling_rate_hz,
        segments=(Segment(0, n_samples, 0.0),),
        threshold_uv=np.full(len(labels), np.nan, np.float32),
    )


def _write_table(path: Path, devices: list[_Device]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("recording", "device", "label", "batch"))
    writer.writerows((f"{d.name}.h5", d.name, d.label, d.batch) for d in devices)
    _write(path, text.getvalue())


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


# Of an autoregressive process of order 2: amplifier noise has more power at low frequencies.
_AR = (0.35, 0.1)
_HUM_HZ = 50.0
# Samples for which drift is constant; it changes by about 0.1 uV, far less than the noise.
_DRIFT_STEP = 65
# 30 chunks of a 60-channel MCS file, so that its writer need not cut and join blocks.
_BLOCK = 126 * _DRIFT_STEP
_BEFORE_MS = 0.8
_AFTER_MS = 1.7
# Below this, a template has only a few samples and is no longer biphasic.
MIN_SAMPLING_RATE_HZ = 5_000.0


class Template(NamedTuple):
    """The shape of a neuron's spike at an electrode."""

    trough_ms: float  # width (SD) of the negative peak
    hump_ms: float  # width (SD) of the positive peak after it
    delay_ms: float  # from the negative peak to the positive one
    ratio: float  # height of the positive peak relative to the negative one


TYPICAL_TEMPLATE = Template(trough_ms=0.15, hump_ms=0.28, delay_ms=0.6, ratio=0.35)


class Electrodes(NamedTuple):
    """Noise, hum, drift and offset of each electrode, (channels,) float64 in microvolts and hertz.

    A dead electrode and the reference have a `noise_sd_uv` of 0, and show their offset only.
    """

    noise_sd_uv: NDArray[np.float64]
    hum_uv: NDArray[np.float64]
    drift_uv: NDArray[np.float64]
    drift_hz: NDArray[np.float64]
    offset_uv: NDArray[np.float64]


class PlacedSpikes(NamedTuple):
    """Spikes to add to the traces, sorted by sample."""

    sample: NDArray[np.int64]  # (n,), of the template's negative peak
    channel: NDArray[np.int32]  # (n,), the electrode
    shape: NDArray[np.int32]  # (n,), the row of waveforms_uv
    waveforms_uv: NDArray[np.float32]  # (shapes, length), from `template_waveform`
    peak_at: int  # column of the negative peak


def template_waveform(
    template: Template, peak_uv: float, sampling_rate_hz: float
) -> NDArray[np.float32]:
    """Return a biphasic spike whose negative peak is `peak_uv` below zero; (length,) float32."""
    before = samples_before_peak(sampling_rate_hz)
    after = math.ceil(_AFTER_MS * sampling_rate_hz / 1000)
    ms = np.arange(-before, after + 1) * 1000 / sampling_rate_hz
    trough = np.exp(-0.5 * (ms / template.trough_ms) ** 2)
    hump = np.exp(-0.5 * ((ms - template.delay_ms) / template.hump_ms) ** 2)
    wave = template.ratio * hump - trough
    # Both ends must be zero, to leave no steps in the trace, and the peak exact despite the hump.
    wave *= np.sin(np.pi * (np.arange(len(ms)) + 1) / (len(ms) + 1)) ** 0.25
    scaled: NDArray[np.float32] = (wave * (peak_uv / -wave[before])).astype(np.float32)
    return scaled


def samples_before_peak(sampling_rate_hz: float) -> int:
    """Return the column of the negative peak in a waveform of `template_waveform`."""
    return math.ceil(_BEFORE_MS * sampling_rate_hz / 1000)


def voltage_blocks(
    rng: np.random.Generator,
    electrodes: Electrodes,
    placed: PlacedSpikes,
    *,
    n_samples: int,
    sampling_rate_hz: float,
) -> Iterator[NDArray[np.float32]]:
    """Yield (channels, up to 8190) float32 microvolts until `n_samples` are reached."""
    n_channels = len(electrodes.noise_sd_uv)
    phases = rng.uniform(0, 2 * np.pi, (n_channels, 2))
    state = np.zeros((n_channels, 2))
    gain = electrodes.noise_sd_uv / _ar_sd()
    # sin(wt + p) = sin(wt) cos(p) + cos(wt) sin(p), so that all channels share one pair of waves.
    mix = np.stack([np.cos(phases[:, 0]), np.sin(phases[:, 0])], axis=1)
    hum = (electrodes.hum_uv[:, None] * mix).astype(np.float32)
    for start in range(0, n_samples, _BLOCK):
        block = rng.standard_normal((n_channels, min(_BLOCK, n_samples - start)), np.float32)
        time_s = (start + np.arange(block.shape[1])) / sampling_rate_hz
        angle = 2 * np.pi * _HUM_HZ * time_s
        mains = np.stack([np.sin(angle), np.cos(angle)]).astype(np.float32)
        drift = _drift_uv(electrodes, phases[:, 1], time_s[::_DRIFT_STEP])
        _colour(block, state, gain, mains, hum, drift)
        _add_spikes(block, placed, start)
        yield block


def new_generator(seed: int | np.random.SeedSequence) -> np.random.Generator:
    """Return a random generator; SFC64 is NumPy's fastest bit generator."""
    return np.random.Generator(np.random.SFC64(seed))


def check_rate(sampling_rate_hz: float) -> None:
    """Refuse rates at which templates cannot be sampled."""
    if not MIN_SAMPLING_RATE_HZ <= sampling_rate_hz < math.inf:
        raise InputError(
            f"sampling_rate_hz must be {MIN_SAMPLING_RATE_HZ:g} or above, got {sampling_rate_hz:g}"
        )


def _ar_sd() -> float:
    """Return the autoregressive process's SD for unit innovations (Box & Jenkins, section 3.2)."""
    a, b = _AR
    return math.sqrt((1 - b) / ((1 + b) * ((1 - b) ** 2 - a**2)))


@compiled()
def _colour(
    block: NDArray[np.float32],
    state: NDArray[np.float64],
    gain: NDArray[np.float64],
    mains: NDArray[np.float32],
    hum: NDArray[np.float32],
    drift: NDArray[np.float32],
) -> None:
    """Turn white noise into each channel's autoregressive noise, with hum and drift, in place."""
    a, b = _AR
    for channel in range(block.shape[0]):
        last, before = state[channel]
        for t in range(block.shape[1]):
            now = block[channel, t] + a * last + b * before
            before = last
            last = now
            wave = hum[channel, 0] * mains[0, t] + hum[channel, 1] * mains[1, t]
            block[channel, t] = now * gain[channel] + wave + drift[channel, t // _DRIFT_STEP]
        state[channel, 0] = last
        state[channel, 1] = before


def _drift_uv(
    electrodes: Electrodes, phases: NDArray[np.float64], time_s: NDArray[np.float64]
) -> NDArray[np.float32]:
    angle = 2 * np.pi * electrodes.drift_hz[:, None] * time_s + phases[:, None]
    slow = electrodes.drift_uv[:, None] * np.sin(angle) + electrodes.offset_uv[:, None]
    return slow.astype(np.float32)


def _add_spikes(block: NDArray[np.float32], placed: PlacedSpikes, start: int) -> None:
    length = placed.waveforms_uv.shape[1]
    low, high = np.searchsorted(placed.sample, [start - length, start + block.shape[1] + length])
    _stamp(
        block,
        placed.sample[low:high] - placed.peak_at - start,
        placed.channel[low:high],
        placed.shape[low:high],
        placed.waveforms_uv,
    )


@compiled()
def _stamp(
    block: NDArray[np.float32],
    first: NDArray[np.int64],
    channel: NDArray[np.int32],
    shape: NDArray[np.int32],
    waveforms: NDArray[np.float32],
) -> None:
    """Add each spike's waveform from column `first` on, as far as it is inside the block."""
    for i in range(len(first)):
        for k in range(max(0, -first[i]), min(waveforms.shape[1], block.shape[1] - first[i])):
            block[channel[i], first[i] + k] += waveforms[shape[i], k]
