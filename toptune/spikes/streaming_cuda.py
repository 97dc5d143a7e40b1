"""Spikes of a whole recording on a GPU: read, uploaded, filtered, held there, and walked.

Chunks of raw microvolts enter, spikes leave, on the device. The host reads a chunk while the one
before travels on a stream of its own and the one before that is filtered. The filtered recording
stays in device memory, so that noise and means are exact before the first spike is looked for.
Where it does not fit, groups of channels that do are done one after the other, and the file is read
once a group. Given the same filtered samples, the spikes are those of the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from toptune.errors import InputError
from toptune.machine.cuda import Accelerator, DeviceArray, Uploads
from toptune.machine.threads import thread_pool
from toptune.params import HighPass, Ptsd
from toptune.recordings.opening import VoltageRecording
from toptune.recordings.trains import SpikeTrains
from toptune.spikes.filters_cuda import HIGHPASS_BLOCK, DeviceHighPass
from toptune.spikes.noise_cuda import channel_means, noise_thresholds_on
from toptune.spikes.ptsd import PtsdSamples, Thresholds
from toptune.spikes.ptsd_cuda import DeviceSpikes, sort_device_spikes, walk_segments
from toptune.spikes.streaming import Detected

# Values (channels x samples) a chunk: large enough for the GPU, small enough that reading the first
# and computing the last, which nothing overlaps, do not count.
_CHUNK_VALUES = 4_000_000
# Of the free memory, what the filtered recording may take; detection takes some of the rest.
_HELD_SHARE = 0.6

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class DetectedOnDevice:
    """What detection on a GPU found in a recording.

    Parameters
    ----------
    spikes
        The spikes, on the device.
    found
        The same on the host, with thresholds and what was noticed.
    """

    spikes: DeviceSpikes
    found: Detected


def detect_recording_on(
    device: Accelerator,
    recording: VoltageRecording,
    highpass: HighPass | None = None,
    ptsd: Ptsd | None = None,
    *,
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> DetectedOnDevice:
    """Filter a recording and find its spikes on the device.

    The filter and the detector restart at every gap; noise and means are the recording's.

    Parameters
    ----------
    device
        Where; `toptune.machine.cuda.accelerator` opens it.
    recording
        Raw voltage; read once, or once a group of channels where not all fit.
    highpass, ptsd
        Filter and detection; their defaults where None.
    n_jobs
        Threads that read; None for one a core.
    progress
        Called with (samples done, samples in all) after each chunk.

    Raises
    ------
    InputError
        The cut-off is at or above half the sampling rate, samples are NaN, the file is damaged, or
        the device's memory cannot hold one channel.
    """
    with thread_pool(n_jobs) as pool, device.active():
        job = _Job(device, recording, highpass or HighPass(), ptsd or Ptsd(), pool, progress)
        return job.run()


class _Job:
    """One recording's detection."""

    def __init__(
        self,
        device: Accelerator,
        recording: VoltageRecording,
        highpass: HighPass,
        ptsd: Ptsd,
        pool: Executor | None,
        progress: Progress | None,
    ) -> None:
        self.device = device
        self.recording = recording
        self.highpass = highpass
        self.ptsd = ptsd
        self.times = PtsdSamples.at(ptsd, recording.sampling_rate_hz)
        self.pool = pool
        self.progress = progress
        self.n_channels = len(recording.channel_labels)
        # Refuses a cut-off that this sampling rate cannot have, before any work.
        DeviceHighPass(device, highpass, recording.sampling_rate_hz)

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
        trains = SpikeTrains(
            spikes=spikes_all.to_host(),
            channel_labels=self.recording.channel_labels,
            sampling_rate_hz=self.recording.sampling_rate_hz,
            segments=self.recording.segments,
            threshold_uv=noise.threshold_uv,
        )
        return DetectedOnDevice(spikes_all, Detected(trains, noise, len(groups)))

    def _groups(self) -> list[slice]:
        """Channels whose filtered samples fit into the device's memory together."""
        room = _room(self.device, 2 * 4 * self._buffer_values())
        n = self.recording.n_samples
        size = min(self.n_channels, room // (4 * max(n, 1)))
        if size < 1:
            raise InputError(
                f"{self.recording.path}: a channel of {n} samples does not fit into the free memory"
                " of the GPU: free some, or use --device cpu"
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
        """Read the recording; (rows, samples) of it filtered, on the device."""
        shape = (rows.stop - rows.start, self.recording.n_samples)
        held = self.device.xp.empty(shape, np.float32)
        with self.device.uploads(self._buffer_values()) as uploads:
            for segment in self.recording.segments:
                rate = self.recording.sampling_rate_hz
                filt = DeviceHighPass(self.device, self.highpass, rate)
                for start, stop in self._chunks(segment.first_sample, segment.n_samples):
                    raw = self._uploaded(uploads, start, stop)
                    filt.apply(raw[rows], held[:, start:stop])
                    uploads.used()
                    if self.progress is not None:
                        self.progress(stop, self.recording.n_samples)
        return held

    def _uploaded(self, uploads: Uploads, start: int, stop: int) -> DeviceArray:
        host = uploads.host(self.n_channels, stop - start)
        self.recording.read_into(host, start, self.pool)
        return uploads.send()

    def _buffer_values(self) -> int:
        return self.n_channels * min(self._step(), max(self.recording.n_samples, 1))

    def _step(self) -> int:
        """Choose a chunk's samples: whole blocks of the filter and, if possible, of the file."""
        most = max(1, _CHUNK_VALUES // self.n_channels)
        whole = math.lcm(HIGHPASS_BLOCK, self.recording.chunk_samples)
        unit = whole if whole <= most else HIGHPASS_BLOCK
        return max(1, most // unit) * unit

    def _chunks(self, first: int, n: int) -> Iterator[tuple[int, int]]:
        step = self._step()
        for start in range(first, first + n, step):
            yield start, min(start + step, first + n)


def _room(device: Accelerator, buffers_bytes: int) -> int:
    """Bytes that the filtered recording may take."""
    return int(_HELD_SHARE * device.free_bytes()) - buffers_bytes


def _joined(noises: list[Thresholds]) -> Thresholds:
    """Put the groups' channels one after the other."""
    return Thresholds(
        np.concatenate([n.threshold_uv for n in noises]),
        np.concatenate([n.noise_sd_uv for n in noises]),
        np.concatenate([n.dead for n in noises]),
        np.concatenate([n.noisy for n in noises]),
    )
