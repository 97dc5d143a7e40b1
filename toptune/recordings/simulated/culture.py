"""Recordings of simulated cultures with five ratios of excitation to inhibition.

For each device a folder gets an MCS HDF5 recording ``NAME.h5`` (60 channels, of which one is the
reference and one is dead) and ``NAME.truth.npz`` with every spike of every neuron near an
electrode, whether or not it exceeds the noise; and ``devices.csv``, which is written last. The same
seed gives the same files, byte for byte, however many are simulated at once.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.recordings.simulated.mcs_writer import (
    McsChannel,
    McsHeader,
    McsStream,
    McsWriter,
    mea60_channels,
)
from toptune.recordings.simulated.network import EXCITATORY_FRACTIONS, Activity, simulate_activity
from toptune.recordings.simulated.traces import (
    TYPICAL_TEMPLATE,
    Electrodes,
    PlacedSpikes,
    Template,
    check_rate,
    new_generator,
    samples_before_peak,
    template_waveform,
    voltage_blocks,
)
from toptune.recordings.spike_npz import write_npz
from toptune.recordings.trains import LONGEST_S, Segment, SpikeTrains, sort_spikes

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
    sampling_rate_hz: float = 10_000.0,
    n_jobs: int = 1,
    overwrite: bool = False,
    on_device: Callable[[str], None] | None = None,
) -> Path:
    """Simulate recordings of `n_devices` cultures, cycling over the five classes.

    Parameters
    ----------
    out
        A folder; created if missing.
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
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is not a folder: choose another path")
    devices = _devices(n_devices, seed)
    table = out / "devices.csv"
    targets = [table, *(out / f"{d.name}{end}" for d in devices for end in (".h5", ".truth.npz"))]
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
    _write_table(table, devices)
    return table


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
    part = path.with_name(path.name + ".part")
    part.write_text(text.getvalue(), encoding="utf-8")
    part.replace(path)
