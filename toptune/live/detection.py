"""Spikes in voltage that comes block by block; every sample is filtered and searched once.

The threshold of a channel comes from its noise, which is known only when some voltage is there. So
a threshold is learnt on a calibration span, the first seconds of a recording, and stays; or it is
given. What came during the span is kept, filtered, and searched as soon as the span is over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError, ToptuneError
from toptune.machine.display import one_or
from toptune.params import SpikeSettings
from toptune.recordings.opening import SpikeRecording, open_recording
from toptune.recordings.trains import Spikes
from toptune.spikes.filters import HighPassFilter
from toptune.spikes.noise import noise_thresholds
from toptune.spikes.ptsd import PtsdSamples, channel_mean, sequential_sum
from toptune.spikes.ptsd_compiled import BLOCK, Float32, block_stats
from toptune.spikes.streaming import detect_recording
from toptune.spikes.walking import VALUES_FOR_THREADS, CarriedWalk

_KIND, _FORMAT = "toptune thresholds", 1
# The most memory for the voltage of a calibration span.
_MOST_BYTES = 2 * 2**30


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibration:
    """What detection must know of each channel before it can search for spikes.

    Parameters
    ----------
    channel_labels
        The channels' names.
    threshold_uv : (channels,) float32
        Peak-to-peak thresholds in microvolts; infinite for a dead channel, which has no spikes.
    mean_uv : (channels,) float32
        What is subtracted from the filtered voltage, in microvolts.
    dead, noisy : (channels,) bool
        As `toptune.spikes.noise.Thresholds` has them.
    span_s
        Seconds of voltage that it was learnt on.

    Raises
    ------
    InputError
        The arrays do not fit the names; a threshold is NaN or not above 0; a mean is no number.
    """

    channel_labels: tuple[str, ...]
    threshold_uv: NDArray[np.float32]
    mean_uv: NDArray[np.float32]
    dead: NDArray[np.bool_]
    noisy: NDArray[np.bool_]
    span_s: float

    def __post_init__(self) -> None:
        shape = (len(self.channel_labels),)
        arrays = (self.threshold_uv, self.mean_uv, self.dead, self.noisy)
        if any(array.shape != shape for array in arrays):
            raise InputError(
                f"thresholds of {shape[0]} channels need as many values of each kind, got"
                f" {', '.join(str(array.shape) for array in arrays)}"
            )
        if not (self.threshold_uv > 0).all() or not np.isfinite(self.mean_uv).all():
            raise InputError("thresholds must be above 0, and means must be numbers")

    @classmethod
    def of_recording(
        cls,
        recording: Path | str | Any,
        settings: SpikeSettings | None = None,
        *,
        n_jobs: int | None = None,
    ) -> Calibration:
        """Learn on a whole recording: then its replay has the very spikes of `detect_recording`.

        Parameters
        ----------
        recording
            Voltage, as for `open_recording`.
        settings
            How it is opened, filtered and searched; the defaults if None.
        n_jobs
            CPU threads; all cores if None.

        Raises
        ------
        InputError
            It cannot be read, or holds spikes only.
        """
        settings = settings or SpikeSettings()
        opened = open_recording(recording, **settings.opening)
        if isinstance(opened, SpikeRecording):
            raise InputError(f"{recording} holds spikes only: thresholds are learnt from voltage")
        with opened:
            found = detect_recording(opened, settings.highpass, settings.ptsd, n_jobs=n_jobs)
            noise = found.noise
            return cls(
                channel_labels=opened.channel_labels,
                threshold_uv=noise.threshold_uv,
                mean_uv=found.mean_uv,
                dead=noise.dead,
                noisy=noise.noisy,
                span_s=opened.n_samples / opened.sampling_rate_hz,
            )

    @classmethod
    def read(cls, path: Path | str) -> Calibration:
        """Read what `write` wrote; an `InputError` where the file holds something else."""
        path = Path(path)
        try:
            values = json.loads(path.read_text("utf-8"))
            if values.pop("kind") != _KIND or values.pop("format") != _FORMAT:
                raise ValueError("it is of another kind or format")
            infinite = [np.inf if uv is None else uv for uv in values.pop("threshold_uv")]
            return cls(
                channel_labels=tuple(map(str, values.pop("channel_labels"))),
                threshold_uv=np.array(infinite, np.float32),
                mean_uv=np.array(values.pop("mean_uv"), np.float32),
                dead=np.array(values.pop("dead"), np.bool_),
                noisy=np.array(values.pop("noisy"), np.bool_),
                span_s=float(values.pop("span_s")),
            )
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, InputError):
                raise InputError(f"{path}: {error}") from None
            raise InputError(f"{path} holds no thresholds of toptune: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """Plain values; an infinite threshold is None. The digits are exact."""
        thresholds = self.threshold_uv.tolist()
        return {
            "kind": _KIND,
            "format": _FORMAT,
            "channel_labels": list(self.channel_labels),
            "threshold_uv": [None if uv == np.inf else uv for uv in thresholds],
            "mean_uv": self.mean_uv.tolist(),
            "dead": self.dead.tolist(),
            "noisy": self.noisy.tolist(),
            "span_s": self.span_s,
        }

    def write(self, path: Path | str) -> None:
        """Write them as JSON."""
        Path(path).write_text(json.dumps(self.to_json(), indent=1) + "\n", "utf-8")

    @property
    def notes(self) -> tuple[str, ...]:
        """Which channels are dead or over-noisy, one line each."""
        noticed = (("dead", self.dead), ("over-noisy", self.noisy))
        names = self.channel_labels
        listed = ((what, [names[k] for k in which.nonzero()[0]]) for what, which in noticed)
        return tuple(
            f"{what} {one_or(len(who), 'channel', 'channels')}: {', '.join(who)}"
            for what, who in listed
            if who
        )

    def in_order(self, channel_labels: Sequence[str]) -> Calibration:
        """Put the channels into another order; an `InputError` names those that are missing."""
        place = {label: k for k, label in enumerate(self.channel_labels)}
        missing = [label for label in channel_labels if label not in place]
        if missing:
            raise InputError(
                f"the thresholds have no {one_or(len(missing), 'channel', 'channels')}"
                f" {', '.join(missing[:10])}: they were learnt on another array"
            )
        rows = [place[label] for label in channel_labels]
        return Calibration(
            channel_labels=tuple(channel_labels),
            threshold_uv=self.threshold_uv[rows],
            mean_uv=self.mean_uv[rows],
            dead=self.dead[rows],
            noisy=self.noisy[rows],
            span_s=self.span_s,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class CertainSpikes:
    """What is certain of a stretch, which is voltage between two gaps."""

    stretch: int  # its number, from 0
    spikes: Spikes  # new ones, by sample; samples count from the stretch's start
    known_to: int  # there are no more spikes before this sample
    ended: bool  # the stretch has `known_to` samples, and no more come


class LiveDetector:
    """Filters and searches voltage that comes block by block.

    Parameters
    ----------
    channel_labels, sampling_rate_hz
        Of the source.
    settings
        How it is filtered and searched.
    calibration
        Thresholds and means; learnt on the first `calibration_s` seconds if None.
    calibration_s
        Seconds of voltage, gaps not counted, to learn on.
    pool
        Threads.

    Raises
    ------
    InputError
        The cut-off is at or above half the sampling rate, the calibration is of other channels, or
        its span is not above 0 or needs too much memory.
    """

    def __init__(
        self,
        channel_labels: tuple[str, ...],
        sampling_rate_hz: float,
        settings: SpikeSettings,
        *,
        calibration: Calibration | None = None,
        calibration_s: float = 30.0,
        pool: Executor | None = None,
    ) -> None:
        self.channel_labels = channel_labels
        self.sampling_rate_hz = sampling_rate_hz
        self.calibration = None if calibration is None else calibration.in_order(channel_labels)
        self._settings = settings
        self._pool = pool
        self._times = PtsdSamples.at(settings.ptsd, sampling_rate_hz)
        self._filter = self._fresh_filter()
        self._walk: CarriedWalk | None = None
        self._stretch = -1
        # Until the calibration: the filtered voltage of each stretch, and whether it has ended.
        self._held: list[list[Float32]] = []
        self._n_held = 0
        self.n_to_learn = self._span(calibration_s) if calibration is None else 0

    def _span(self, calibration_s: float) -> int:
        if not (np.isfinite(calibration_s) and calibration_s > 0):
            raise InputError(f"calibration_s must be above 0, got {calibration_s!r}")
        n = max(2, round(calibration_s * self.sampling_rate_hz))
        # What is held, and once more in one piece.
        size = 8 * n * len(self.channel_labels)
        if size > _MOST_BYTES:
            most_s = calibration_s * _MOST_BYTES / size
            raise InputError(
                f"learning thresholds on {calibration_s:g} s of {len(self.channel_labels)} channels"
                f" takes {size / 2**30:.1f} GiB: let `calibration_s` be {int(most_s)} or less, or"
                " give thresholds by `calibration`"
            )
        return n

    @property
    def n_learnt_on(self) -> int:
        """Samples that have come to learn on, until the calibration is known."""
        return self._n_held

    def start_stretch(self) -> Iterator[CertainSpikes]:
        """Begin to filter and search anew, behind a gap or at the beginning; give what was left."""
        yield from self._end_stretch()
        self._stretch += 1
        self._filter = self._fresh_filter()
        if self.calibration is None:
            self._held.append([])
        else:
            self._walk = self._fresh_walk(self.calibration)

    def push(self, samples_uv: Float32) -> Iterator[CertainSpikes]:
        """Take the next samples of the stretch, (channels, n) float32 microvolts, raw."""
        pool = self._pool if samples_uv.size >= VALUES_FOR_THREADS else None
        filtered = self._filter.apply(samples_uv, None, pool)
        if self.calibration is None:
            self._held[-1].append(filtered)
            self._n_held += filtered.shape[1]
            if self._n_held >= self.n_to_learn:
                yield from self._calibrate()
            return
        if self._walk is None:
            raise ToptuneError("samples came before their stretch was begun")
        yield _found(self._stretch, self._walk, self._walk.push(filtered))

    def end(self) -> Iterator[CertainSpikes]:
        """Give what is left where the source ends; learn on what has come of the span."""
        if self.calibration is None and self._n_held:
            yield from self._calibrate()
        yield from self._end_stretch()

    def _end_stretch(self) -> Iterator[CertainSpikes]:
        walk, self._walk = self._walk, None
        if walk is not None:
            yield _found(self._stretch, walk, walk.end(), ended=True)

    def _calibrate(self) -> Iterator[CertainSpikes]:
        """Learn on the span, and search what was held; the last stretch goes on."""
        stretches = [in_one(parts) for parts in self._held]
        self._held = []
        self.calibration = self._learn(stretches)
        for number, samples in enumerate(stretches, self._stretch + 1 - len(stretches)):
            walk = self._fresh_walk(self.calibration)
            yield _found(number, walk, walk.push(samples))
            if number == self._stretch:
                self._walk = walk
            else:
                yield _found(number, walk, walk.end(), ended=True)

    def _learn(self, stretches: Sequence[Float32]) -> Calibration:
        """Learn from the first `n_to_learn` samples as if they were a whole recording."""
        left, span = self.n_to_learn, []
        for samples in stretches:
            span.append(samples[:, :left])
            left -= span[-1].shape[1]
        whole = in_one(span)
        n = whole.shape[1]
        means = [
            channel_mean(_total([samples[row] for samples in span]), n, f"channel {label}")
            for row, label in enumerate(self.channel_labels)
        ]
        noise = noise_thresholds(whole, self.sampling_rate_hz, self._settings.ptsd)
        return Calibration(
            channel_labels=self.channel_labels,
            threshold_uv=noise.threshold_uv,
            mean_uv=np.array(means, np.float32),
            dead=noise.dead,
            noisy=noise.noisy,
            span_s=n / self.sampling_rate_hz,
        )

    def _fresh_filter(self) -> HighPassFilter:
        n_channels = len(self.channel_labels)
        return HighPassFilter(self._settings.highpass, self.sampling_rate_hz, n_channels)

    def _fresh_walk(self, calibration: Calibration) -> CarriedWalk:
        means, thresholds = calibration.mean_uv, calibration.threshold_uv
        return CarriedWalk(self._times, means, thresholds, self._pool)


def in_one(parts: Sequence[Float32]) -> Float32:
    """Put parts, (channels, n), one behind the other."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _found(
    stretch: int, walk: CarriedWalk, spikes: Spikes, *, ended: bool = False
) -> CertainSpikes:
    return CertainSpikes(stretch=stretch, spikes=spikes, known_to=walk.known_to, ended=ended)


def _total(stretches: Sequence[Float32]) -> float:
    """Add up a channel's samples in the order in which a whole recording's are added."""
    sums = []
    for x in stretches:
        n_blocks = -(-x.size // BLOCK)
        low, high = np.empty((2, n_blocks), np.float32)
        sums.append(np.empty(n_blocks))
        block_stats(x, low, high, sums[-1])
    return sequential_sum(np.concatenate(sums))
