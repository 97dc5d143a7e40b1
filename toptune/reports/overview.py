"""The summary of a recording that `toptune inspect` shows.

It holds the header, the thresholds and firing rates, the spikes, and the filtered voltage of the
busiest 0.2 s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.machine.cuda import accelerator
from toptune.machine.fingerprint import require_regular
from toptune.machine.remote import as_path, fetch_whole
from toptune.params import HighPass, OpeningOptions, Ptsd
from toptune.recordings.opening import OpenVoltage, SpikeRecording, open_recording
from toptune.recordings.trains import SpikeTrains
from toptune.spikes.finding import detect_voltage

_TRACE_S = 0.2


@dataclass(frozen=True, eq=False)
class Overview:
    """A recording's spikes and summary."""

    trains: SpikeTrains
    summary: dict[str, Any]  # header, thresholds and rates, as plain values
    # (channels, samples): filtered voltage of the busiest 0.2 s, where the recording holds it.
    traces_uv: NDArray[np.float32] | None = None
    traces_from: int = 0  # first sample of the traces


def overview(
    path: Path | str | Any,
    *,
    highpass: HighPass | None = None,
    ptsd: Ptsd | None = None,
    opening: OpeningOptions | None = None,
    device: str = "auto",
    n_jobs: int | None = None,
) -> Overview:
    """Open a recording, as `open_recording` does, detect its spikes and summarise it.

    What says how to detect spikes, and where, is ignored where the recording holds spikes.
    """
    if isinstance(path, str | PathLike):
        path = as_path(path)
        require_regular(path)
        fetch_whole(path)  # all of its voltage is read
    recording = open_recording(path, **(opening or OpeningOptions()).opening)
    if isinstance(recording, SpikeRecording):
        trains = recording.trains()
        return Overview(trains, _summary(recording.path, recording.kind, trains))
    with recording:
        highpass = highpass or HighPass()
        found, _ = detect_voltage(
            recording, highpass, ptsd, device=accelerator(device), n_jobs=n_jobs
        )
        trains = replace(found.trains, notes=recording.notes)
        summary = _summary(recording.path, recording.kind, trains)
        labels = recording.channel_labels
        summary |= _of_the_file(recording) | {
            "highpass_hz": highpass.cutoff_hz,
            "highpass_order": highpass.order if highpass.cutoff_hz else None,
            "dead": [labels[k] for k in found.noise.dead.nonzero()[0]],
            "over_noisy": [labels[k] for k in found.noise.noisy.nonzero()[0]],
        }
        begin, traces = _busiest(recording, trains, highpass)
    return Overview(trains, summary, traces, begin)


def header(path: Path | str | Any, opening: OpeningOptions | None = None) -> dict[str, Any] | None:
    """Describe a recording of voltage without reading its voltage; None where it holds spikes.

    Its channels are known by their labels alone. For recordings whose spikes cannot be found.
    """
    recording = open_recording(path, **(opening or OpeningOptions()).opening)
    if isinstance(recording, SpikeRecording):
        return None
    with recording:
        n_samples = sum(s.n_samples for s in recording.segments)
        return {
            "recording": str(recording.path),
            "kind": recording.kind,
            "sampling_rate_hz": recording.sampling_rate_hz,
            "duration_s": n_samples / recording.sampling_rate_hz,
            "segments": [s._asdict() for s in recording.segments],
            "n_channels": len(recording.channel_labels),
            **_of_the_file(recording),
            "notes": list(recording.notes),
            "channels": [{"label": label} for label in recording.channel_labels],
        }


def _of_the_file(recording: OpenVoltage) -> dict[str, Any]:
    """Give what the file says of how it was made."""
    return {
        "program": recording.program,
        "date": recording.date,
        "array": recording.layout,
        "stream": recording.stream_label,
        "reference": list(recording.reference_labels),
    }


# An electrode is active above so many spikes a second, a limit that is usual for cultures.
_ACTIVE_HZ = 0.1


class Activity(NamedTuple):
    """How much each electrode fires."""

    counts: NDArray[np.int64]  # spikes, (channels,)
    rates_hz: NDArray[np.float64]  # spikes per second, (channels,)
    n_active: int  # electrodes above 0.1 spikes/s


def activity(trains: SpikeTrains) -> Activity:
    """Count the spikes of each electrode."""
    counts = np.bincount(trains.spikes.channel, minlength=len(trains.channel_labels))
    rates = counts / trains.duration_s
    return Activity(counts, rates, int((rates > _ACTIVE_HZ).sum()))


def _summary(path: Path, kind: str, trains: SpikeTrains) -> dict[str, Any]:
    counts, rates, n_active = activity(trains)
    thresholds = [float(t) if np.isfinite(t) else None for t in trains.threshold_uv]
    return {
        "recording": str(path),
        "kind": kind,
        "sampling_rate_hz": trains.sampling_rate_hz,
        "duration_s": trains.duration_s,
        "segments": [s._asdict() for s in trains.segments],
        "n_channels": len(trains.channel_labels),
        "n_spikes": int(counts.sum()),
        "mean_rate_hz": float(rates.mean()),
        "active_channels": n_active,
        "notes": list(trains.notes),
        "channels": [
            {"label": label, "spikes": int(n), "rate_hz": float(r), "threshold_uv": t}
            for label, n, r, t in zip(trains.channel_labels, counts, rates, thresholds, strict=True)
        ],
    }


def _busiest(
    recording: OpenVoltage, trains: SpikeTrains, highpass: HighPass
) -> tuple[int, NDArray[np.float32]]:
    """Find and filter the 0.2 s with the most spikes; give its first sample and microvolts."""
    from toptune.spikes.filters import HighPassFilter, settling_samples

    n = max(1, int(_TRACE_S * trains.sampling_rate_hz))
    steps = np.bincount(trains.spikes.sample // n, minlength=1)
    wanted = int(steps.argmax()) * n
    segment = next(s for s in reversed(trains.segments) if s.first_sample <= wanted)
    end = min(wanted + n, segment.first_sample + segment.n_samples)
    settle = settling_samples(highpass, trains.sampling_rate_hz, 10 * n)
    begin = max(segment.first_sample, wanted - settle)
    raw = recording.read(begin, end)
    filt = HighPassFilter(highpass, trains.sampling_rate_hz, len(raw))
    return wanted, filt.apply(raw)[:, wanted - begin :]
