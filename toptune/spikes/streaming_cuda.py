"""Spike detection in a whole recording on a GPU.

The host reads a chunk while the previous one is uploaded on a stream of its own and the one before
is filtered. The filtered recording stays in device memory, so that noise and means are exact before
the first spike is searched. A recording that does not fit is processed in groups of channels, and
read once per group. For the same filtered samples the spikes are those of the CPU. All of it runs
on a stream of its own: it waits for nothing that torch has queued of earlier recordings.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from toptune.errors import InputError
from toptune.machine.cuda import Accelerator, DeviceArray
from toptune.machine.threads import thread_pool
from toptune.params import HighPass, Ptsd
from toptune.recordings.opening import VoltageRecording
from toptune.spikes.noise import Thresholds
from toptune.spikes.preparing_cuda import (
    HIGHPASS_BLOCK,
    DeviceHighPass,
    channel_means,
    noise_thresholds_on,
)
from toptune.spikes.ptsd_cuda import (
    DeviceSpikes,
    SpikeTensors,
    sort_device_spikes,
    walk_segments,
)
from toptune.spikes.streaming import Detected, Detection, OnSamples

# Values (channels x samples) per chunk: enough to occupy the GPU, and so few that reading the first
# chunk and computing the last, which overlap with nothing, take no noticeable time.
_CHUNK_VALUES = 4_000_000
# The share of free memory that the filtered recording may take; detection needs some of the rest.
_HELD_SHARE = 0.6


class DetectedOnDevice(NamedTuple):
    """The spikes that a GPU detected in a recording: on the host, and the same on the device."""

    found: Detected
    spikes: SpikeTensors


def detect_recording_on(
    device: Accelerator,
    recording: VoltageRecording,
    highpass: HighPass | None = None,
    ptsd: Ptsd | None = None,
    *,
    n_jobs: int | None = None,
    progress: OnSamples | None = None,
) -> DetectedOnDevice:
    """Do what `detect_recording` does on a GPU, with `n_jobs` threads that read.

    The recording is read once, or once per group of channels where not all fit. Memory that cannot
    hold one channel is an `InputError`, too.
    """
    with thread_pool(n_jobs) as pool, device.active():
        job = _Job(recording, highpass or HighPass(), ptsd or Ptsd(), pool, progress, device)
        return job.run()


@dataclass(eq=False)
class _Job(Detection):
    """Detection in one recording on a GPU."""

    device: Accelerator

    def run(self) -> DetectedOnDevice:
        parts: list[DeviceSpikes] = []
        noises: list[Thresholds] = []
        groups = self._groups()
        for rows in groups:
            spikes, noise = self._group(rows)
            parts += [s._replace(channel=s.channel + np.int32(rows.start)) for s in spikes]
            noises.append(noise)
        spikes_all = sort_device_spikes(self.device, parts, self.n_channels)
        noise = _joined(noises)
        found = self.detected(spikes_all.to_host(), noise, len(groups))
        return DetectedOnDevice(found, spikes_all.to_torch(self.device))

    def _groups(self) -> list[slice]:
        """Group the channels so that a group's filtered samples fit into the device's memory."""
        room = _room(self.device, 2 * 4 * self._buffer_values())
        n = self.recording.n_samples
        size = min(self.n_channels, room // (4 * max(n, 1)))
        if size < 1:
            raise InputError(
                f"{self.recording.path}: a channel of {n} samples does not fit into the free memory"
                " of the GPU: free some, or use `device='cpu'`"
            )
        count = math.ceil(self.n_channels / size)
        size = math.ceil(self.n_channels / count)
        return [slice(a, min(a + size, self.n_channels)) for a in range(0, self.n_channels, size)]

    def _group(self, rows: slice) -> tuple[list[DeviceSpikes], Thresholds]:
        recording = self.recording
        held = self._filtered(rows)
        names = [f"{recording.path}: channel {k}" for k in recording.channel_labels[rows]]
        means = channel_means(self.device, held, recording.segments, names)
        noise = noise_thresholds_on(self.device, held, recording.sampling_rate_hz, self.ptsd)
        spikes = walk_segments(
            self.device, held, recording.segments, self.times, means, noise.threshold_uv
        )
        return spikes, noise

    def _filtered(self, rows: slice) -> DeviceArray:
        """Read and filter some channels of the recording; (rows, samples) on the device."""
        shape = (rows.stop - rows.start, self.recording.n_samples)
        held = self.device.xp.empty(shape, np.float32)
        with self.device.uploads(self._buffer_values()) as uploads:
            for segment in self.recording.segments:
                rate = self.recording.sampling_rate_hz
                filt = DeviceHighPass(self.device, self.highpass, rate)
                end = segment.first_sample + segment.n_samples
                starts = range(segment.first_sample, end, self._step())
                for start, stop in itertools.pairwise([*starts, end]):
                    host = uploads.host(self.n_channels, stop - start)
                    self.recording.read_into(host, start, self.pool)
                    raw = uploads.send()
                    filt.apply(raw[rows], held[:, start:stop])
                    uploads.used()
                    if self.progress is not None:
                        self.progress(stop, self.recording.n_samples)
        return held

    def _buffer_values(self) -> int:
        return self.n_channels * min(self._step(), max(self.recording.n_samples, 1))

    def _step(self) -> int:
        """Choose a chunk's length: whole blocks of the filter and, if possible, of the file."""
        most = max(1, _CHUNK_VALUES // self.n_channels)
        whole = math.lcm(HIGHPASS_BLOCK, self.recording.chunk_samples)
        unit = whole if whole <= most else HIGHPASS_BLOCK
        return max(1, most // unit) * unit


def _room(device: Accelerator, buffers_bytes: int) -> int:
    """Return the bytes that the filtered recording may take."""
    return int(_HELD_SHARE * device.free_bytes()) - buffers_bytes


def _joined(noises: list[Thresholds]) -> Thresholds:
    """Concatenate the groups' channels."""
    names = [field.name for field in fields(Thresholds)]
    return Thresholds(**{k: np.concatenate([getattr(n, k) for n in noises]) for k in names})
