"""Spikes and sorted units through neo's raw readers, each unit as a channel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.params import FASTEST_HZ, OpeningOptions
from toptune.recordings.trains import Segment, SpikeTrains, length_of_spikes, sort_spikes
from toptune.recordings.voltage import different


class Span(NamedTuple):
    """What a file says of a recording's time."""

    start_s: float
    end_s: float | None  # None if the file does not say


def neo_trains(
    path: Path, rawio: Any, units: Sequence[int], span: Span, options: OpeningOptions
) -> SpikeTrains:
    """Read the spikes of some units, by their numbers in neo's header, of a parsed file."""
    if rawio.block_count() != 1 or rawio.segment_count(0) != 1:
        raise InputError(
            f"{path}: holds the spikes of {rawio.segment_count(0)} recordings, whose clocks start"
            " anew: save each as a file of its own"
        )
    header = rawio.header["spike_channels"][list(units)]
    rate = _ticks_per_second(rawio, header)
    names, ids = ([str(value).strip() for value in header[key]] for key in ("name", "id"))
    both = [f"{name} {identity}" for name, identity in zip(names, ids, strict=True)]
    times = [
        rawio.rescale_spike_timestamp(
            rawio.get_spike_timestamps(block_index=0, seg_index=0, spike_channel_index=unit),
            dtype="float64",
        )
        for unit in units
    ]
    return unit_trains(path, times, different(path, names, ids, both), rate, span, options)


def unit_trains(
    path: Path,
    times_s: Sequence[NDArray[np.float64]],
    labels: Sequence[str],
    sampling_rate_hz: float,
    span: Span,
    options: OpeningOptions,
) -> SpikeTrains:
    """Make spike trains of the times of units, in seconds by the file's clock.

    Times are rounded to the nearest sample; amplitudes are unknown. Where neither the file nor the
    user says how long the recording lasts, it ends with the second of its last spike.
    """
    if not labels:
        raise InputError(f"{path}: holds no unit: is it a recording before its spikes were found?")
    rate = sampling_rate_hz
    start_s = span.start_s if options.start_s is None else options.start_s
    every = np.concatenate([np.asarray(t, np.float64) for t in times_s]) - start_s
    if not np.isfinite(every).all():
        raise InputError(f"{path}: some times of spikes are not finite: export the file again")
    if len(every) and every.min() * rate < -0.5:
        raise InputError(
            f"{path}: a spike at {every.min() + start_s:g} s is before the start at {start_s:g} s:"
            " give the start by `start_s`"
        )
    notes: tuple[str, ...] = ()
    if span.end_s is not None:
        length_s = span.end_s - start_s
    elif options.duration_s is not None:
        length_s = options.duration_s
    else:
        length_s, note = length_of_spikes(path, float(every.max()) if len(every) else None)
        notes = (note,)
    if not length_s * rate < 2**53 or every.max(initial=0.0) * rate > 2**53:
        raise InputError(f"{path}: claims to last {length_s:g} s at {rate:g} Hz: is it damaged?")
    sample = np.rint(every * rate).astype(np.int64)
    # The last spike may have been found at the very end of the recording.
    n_samples = max(round(length_s * rate), int(sample.max(initial=-1)) + 1)
    channel = np.repeat(np.arange(len(labels), dtype=np.int32), [len(t) for t in times_s])
    return SpikeTrains(
        spikes=sort_spikes(
            np.maximum(sample, 0), channel, np.full(len(sample), np.nan, np.float32)
        ),
        channel_labels=tuple(labels),
        sampling_rate_hz=rate,
        segments=(Segment(0, n_samples, 0.0),),
        threshold_uv=np.full(len(labels), np.nan, np.float32),
        notes=notes,
    )


def _ticks_per_second(rawio: Any, header: Any) -> float:
    """Give the rate of the clock of spikes; that of waveforms where the clock is finer than any."""
    with np.errstate(all="ignore"):
        rate = 1.0 / float(rawio.rescale_spike_timestamp(np.array([1], np.int64), "float64")[0])
    if rate <= FASTEST_HZ:
        return round(rate, 6)
    return float(header["wf_sampling_rate"].max(initial=0.0))
