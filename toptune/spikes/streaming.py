"""Spike detection in a recording that is read in chunks, in bounded memory for any length.

Usually one pass is enough. It filters, sums, gathers the noise windows, and keeps the few blocks of
samples that could hold a spike. Means and thresholds are known only at its end; then the kept
blocks are walked. Which blocks are kept is decided by preliminary thresholds, estimated from the
noise windows alone and lowered by a margin. If these turn out too high, or too many blocks are
kept, a second pass with the exact values walks as it reads. Either way the spikes are those of
`detect_spikes` on the whole filtered recording, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from toptune.errors import InputError
from toptune.machine.threads import channel_slices, in_threads, thread_pool
from toptune.params import HighPass, Ptsd
from toptune.recordings.opening import VoltageRecording
from toptune.recordings.trains import Spikes, SpikeTrains, join_spikes
from toptune.spikes.filters import HighPassFilter, butterworth_sections, settling_samples
from toptune.spikes.noise import Thresholds, mad_sd, noise_windows, smallest_sd, thresholds_from
from toptune.spikes.ptsd import ChannelWalk, PtsdSamples, channel_mean, merge_channels
from toptune.spikes.ptsd_compiled import (
    BLOCK,
    FINE,
    Float32,
    Float64,
    Ints,
    block_stats,
    blocks_ahead,
    keep_blocks,
)
from toptune.spikes.walking import CarriedWalk

# Values (channels x samples) per batch, so that raw and filtered samples fit into the cache.
_BATCH_VALUES = 2_000_000
# The most memory for kept blocks; with more, a second pass is made.
_KEEP_BYTES = 512 * 2**20
# The most memory for filtered channels held whole, for the median.
_WHOLE_BYTES = 768 * 2**20
# The preliminary estimate cuts off the filter's memory; that matters far less than a tenth.
_PRELIMINARY_MARGIN = 0.9

#: Called with (samples done, samples in all).
OnSamples = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Detected:
    """The spikes detected in a recording."""

    trains: SpikeTrains
    noise: Thresholds  # and which channels are dead or over-noisy
    passes: int  # how many times the recording was read
    mean_uv: Float32  # (channels,): what was subtracted from each; empty where a GPU did so


def detect_recording(
    recording: VoltageRecording,
    highpass: HighPass | None = None,
    ptsd: Ptsd | None = None,
    *,
    n_jobs: int | None = None,
    progress: OnSamples | None = None,
) -> Detected:
    """Filter a recording and find its spikes, chunk by chunk.

    The filter and the detector restart after every gap; noise and means are of the whole recording.

    Parameters
    ----------
    recording
        Raw voltage; read once, rarely twice.
    highpass, ptsd
        Filter and detection; their defaults if None.
    n_jobs
        CPU threads; all cores if None. The spikes do not depend on it.
    progress
        Called with (samples done, samples in all) after each batch.

    Raises
    ------
    InputError
        The cut-off is at or above half the sampling rate, samples are NaN, the file is damaged, or
        one channel is too long for the median that ``noise="mad"`` needs.
    """
    with thread_pool(n_jobs) as pool:
        job = _Job(recording, highpass or HighPass(), ptsd or Ptsd(), pool, progress)
        return job.run()


@dataclass(eq=False)
class Detection:
    """Detection in one recording: what the CPU's and a GPU's share."""

    recording: VoltageRecording
    highpass: HighPass
    ptsd: Ptsd
    pool: Executor | None
    progress: OnSamples | None

    def __post_init__(self) -> None:
        rate = self.recording.sampling_rate_hz
        self.times = PtsdSamples.at(self.ptsd, rate)
        self.n_channels = len(self.recording.channel_labels)
        # Refuses a cut-off that this sampling rate cannot have, before any work.
        butterworth_sections(self.highpass, rate)

    def detected(
        self, spikes: Spikes, noise: Thresholds, passes: int, mean_uv: Float32 | None = None
    ) -> Detected:
        """Put together what was found."""
        trains = SpikeTrains(
            spikes=spikes,
            channel_labels=self.recording.channel_labels,
            sampling_rate_hz=self.recording.sampling_rate_hz,
            segments=self.recording.segments,
            threshold_uv=noise.threshold_uv,
        )
        unknown = np.empty(0, np.float32)
        return Detected(trains, noise, passes, unknown if mean_uv is None else mean_uv)


class _Job(Detection):
    """Detection on the CPU: what its passes share."""

    def __post_init__(self) -> None:
        super().__post_init__()
        recording = self.recording
        self.passes = 0
        self.windows = noise_windows(recording.n_samples, recording.sampling_rate_hz)
        step = recording.chunk_samples
        self.batch_size = max(1, _BATCH_VALUES // (self.n_channels * step)) * step

    def run(self) -> Detected:
        mad = self._mad() if self.ptsd.noise == "mad" else None
        preliminary = self._preliminary_sd() if mad is None else mad
        guess = thresholds_from(self.ptsd, preliminary, preliminary).threshold_uv
        guess = (guess * _PRELIMINARY_MARGIN).astype(np.float32)
        first = _Pass(self, np.zeros(self.n_channels, np.float32), guess)
        first.read()
        smallest = smallest_sd(first.noise)
        noise = thresholds_from(self.ptsd, smallest, smallest if mad is None else mad)
        means = self._means(first.total)
        wrong_guess = bool((noise.threshold_uv < first.thresholds_uv).any())
        if first.overflowed or wrong_guess:
            spikes = self._walk(means, noise.threshold_uv)
        else:
            spikes = first.walk(means, noise.threshold_uv)
        return self.detected(spikes, noise, self.passes, mean_uv=means)

    def _walk(self, means: Float32, thresholds_uv: Float32) -> Spikes:
        """Read once more, with the exact values, and walk while reading."""
        self.passes += 1
        found: list[Spikes] = []
        segments = self.recording.segments
        segment, walk = -1, CarriedWalk(self.times, means, thresholds_uv, self.pool)
        for batch in self.batches():
            if batch.segment != segment:
                segment, walk = (
                    batch.segment,
                    CarriedWalk(self.times, means, thresholds_uv, self.pool),
                )
            new = [walk.push(batch.samples), *([walk.end()] if batch.is_last else [])]
            first = segments[segment].first_sample
            found += [spikes._replace(sample=spikes.sample + first) for spikes in new]
        return join_spikes(found)

    def filtered(self, start: int, stop: int) -> Float32:
        """Return samples [start, stop) of one segment, filtered from `start` on."""
        raw = self.recording.read(start, stop, self.pool)
        fresh = HighPassFilter(self.highpass, self.recording.sampling_rate_hz, self.n_channels)
        return fresh.apply(raw, raw, self.pool)

    def _preliminary_sd(self) -> Float64:
        """Estimate the smallest SD from noise windows filtered with little of their past."""
        limit = 5 * (self.windows[0].stop - self.windows[0].start)
        settle = settling_samples(self.highpass, self.recording.sampling_rate_hz, limit)
        views = []
        for window in self.windows:
            for segment in self.recording.segments:
                low = max(window.start, segment.first_sample)
                high = min(window.stop, segment.first_sample + segment.n_samples)
                if high - low > 1:
                    begin = max(low - settle, segment.first_sample)
                    views.append(self.filtered(begin, high)[:, low - begin :])
        return smallest_sd(views) if views else np.zeros(self.n_channels)

    def _mad(self) -> Float64:
        """Estimate the MAD of the filtered channels, in groups: the median needs whole channels."""
        n = self.recording.n_samples
        group = min(self.n_channels, _WHOLE_BYTES // (4 * max(n, 1)))
        if group < 1:
            raise InputError(
                f"{self.recording.path}: a channel of {n} samples is too long for the median of"
                " `noise='mad'`: use `noise='smallest_sd'`"
            )
        out = np.empty(self.n_channels)
        for begin in range(0, self.n_channels, group):
            rows = slice(begin, min(begin + group, self.n_channels))
            whole = np.empty((rows.stop - begin, n), np.float32)
            self.passes += 1
            for batch in self.batches():
                whole[:, batch.start : batch.start + batch.samples.shape[1]] = batch.samples[rows]
            parts = in_threads(self.pool, mad_sd, [whole[k : k + 1] for k in range(len(whole))])
            out[rows] = np.concatenate(parts)
        return out

    def _means(self, total: Float64) -> Float32:
        n = max(self.recording.n_samples, 1)
        labels = self.recording.channel_labels
        means = [
            channel_mean(float(t), n, f"{self.recording.path}: channel {label}")
            for t, label in zip(total, labels, strict=True)
        ]
        return np.array(means, np.float32)

    def batches(self) -> Iterator[_Batch]:
        """Give filtered batches in order; each overwrites the buffer of the one before."""
        recording, size = self.recording, self.batch_size
        buffer = np.empty((self.n_channels, size), np.float32)
        for number, segment in enumerate(recording.segments):
            filt = HighPassFilter(self.highpass, recording.sampling_rate_hz, self.n_channels)
            start, end = segment.first_sample, segment.first_sample + segment.n_samples
            while start < end:
                # Up to the next multiple, so that batches end where chunks of the file do.
                stop = min(end, (start // size + 1) * size)
                samples = buffer[:, : stop - start]
                recording.read_into(samples, start, self.pool)
                filt.apply(samples, samples, self.pool)
                yield _Batch(samples, start, number, stop == end)
                start = stop
                if self.progress is not None:
                    self.progress(stop, recording.n_samples)


@dataclass(frozen=True)
class _Batch:
    """Filtered samples from `start` on; `is_last` marks the last batch of a segment."""

    samples: Float32
    start: int
    segment: int
    is_last: bool


class _Parts:
    """What one channel gathers part by part: its spikes, or the fine blocks kept of a segment."""

    def __init__(self) -> None:
        self._numbers: list[Ints] = []  # samples of the recording, or numbers of blocks
        self._values: list[Float32] = []  # peak to peak, or the blocks' samples

    def add(self, numbers: Ints, values: Float32) -> None:
        self._numbers.append(numbers)
        self._values.append(values)

    def joined(self) -> tuple[Ints, Float32]:
        if not self._numbers:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        return np.concatenate(self._numbers), np.concatenate(self._values)


class _Pass:
    """A first pass over the recording: sums, noise windows, and kept blocks.

    `means` and `thresholds_uv` (channels,) decide which blocks are kept.
    """

    def __init__(self, job: _Job, means: Float32, thresholds_uv: Float32) -> None:
        self._job = job
        self._means = means
        self.thresholds_uv = thresholds_uv
        self.total = np.zeros(job.n_channels)
        self.noise = [np.empty((job.n_channels, w.stop - w.start), np.float32) for w in job.windows]
        self.overflowed = False
        self._kept_bytes = 0
        self._kept: list[list[_Parts]] = []

    def read(self) -> None:
        """Read the whole recording once."""
        self._job.passes += 1
        ahead = blocks_ahead(self._job.times.lifetime, self._job.times.overshoot, BLOCK)
        room = (2 * ahead + 3) * BLOCK
        buffer = np.empty((self._job.n_channels, room + self._job.batch_size), np.float32)
        held = first_block = done = 0
        segment = -1
        for batch in self._job.batches():
            if batch.segment != segment:
                segment, held, first_block, done = batch.segment, 0, 0, 0
                self._start_segment()
            n = batch.samples.shape[1]
            buffer[:, held : held + n] = batch.samples
            self._gather_noise(batch)
            held += n
            # A block is decided once its whole reach has been read.
            whole = -(-held // BLOCK) if batch.is_last else held // BLOCK
            decided = whole if batch.is_last else max(done, whole - ahead - 1)
            visible = held if batch.is_last else whole * BLOCK
            self._decide(buffer[:, :visible], first_block, done, decided)
            context = max(0, decided - ahead - 1)
            held -= context * BLOCK
            buffer[:, :held] = buffer[:, context * BLOCK : context * BLOCK + held].copy()
            first_block += context
            done = decided - context

    def walk(self, means: Float32, thresholds_uv: Float32) -> Spikes:
        """Walk all kept blocks, with the exact means and thresholds."""
        segments = self._job.recording.segments

        def one(channel: int) -> tuple[Ints, Float32]:
            found = _Parts()
            for segment, kept in zip(segments, self._kept, strict=True):
                walker = ChannelWalk(self._job.times, thresholds_uv[channel])
                ids, samples = kept[channel].joined()
                walker.walk_kept(ids, samples, segment.n_samples, means[channel])
                sample, uv = walker.found()
                found.add(sample + segment.first_sample, uv)
            return found.joined()

        return merge_channels(in_threads(self._job.pool, one, range(self._job.n_channels)))

    def _start_segment(self) -> None:
        self._kept.append([_Parts() for _ in range(self._job.n_channels)])

    def _gather_noise(self, batch: _Batch) -> None:
        end = batch.start + batch.samples.shape[1]
        for window, out in zip(self._job.windows, self.noise, strict=True):
            low, high = max(window.start, batch.start), min(window.stop, end)
            if low < high:
                out[:, low - window.start : high - window.start] = batch.samples[
                    :, low - batch.start : high - batch.start
                ]

    def _decide(self, x: Float32, first_block: int, begin: int, end: int) -> None:
        """Sum the blocks [begin, end) of x, and keep those that may hold a spike."""
        if end <= begin:
            return
        per_block = BLOCK // FINE
        n_blocks = -(-x.shape[1] // BLOCK)
        times = self._job.times

        def some(rows: slice) -> int:
            low, high = np.empty((2, n_blocks), np.float32)
            sums = np.empty(n_blocks)
            ids = np.empty((end - begin) * per_block, np.int64)
            samples = np.empty(ids.size * FINE, np.float32)
            added = 0
            for channel in range(rows.start, rows.stop):
                block_stats(x[channel], low, high, sums)
                # One after another, as `sequential_sum` adds the blocks of a whole recording.
                self.total[channel] = np.concatenate(
                    [self.total[channel : channel + 1], sums[begin:end]]
                ).cumsum()[-1]
                if self.overflowed:
                    continue
                count = keep_blocks(
                    x[channel], low, high, first_block * per_block, begin, end,
                    times.lifetime, times.overshoot, self._means[channel],
                    self.thresholds_uv[channel], ids, samples,
                )  # fmt: skip
                kept = self._kept[-1][channel]
                kept.add(ids[:count].copy(), samples[: count * FINE].copy())
                added += count * (FINE * 4 + 8)
            return added

        slices = channel_slices(self._job.n_channels, self._job.pool)
        self._kept_bytes += sum(in_threads(self._job.pool, some, slices))
        if self._kept_bytes > _KEEP_BYTES:
            self.overflowed = True
            self._kept = [[_Parts() for _ in k] for k in self._kept]
