"""From a recording of any format to its spikes, for extraction and prediction alike.

Spikes are detected in voltage, on the CPU or a GPU, or read where the recording holds spikes only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from toptune.machine.cuda import Accelerator
from toptune.machine.display import one_or
from toptune.machine.remote import fetch_whole
from toptune.params import HighPass, Ptsd, SpikeSettings
from toptune.recordings.opening import SpikeRecording, VoltageRecording, open_recording
from toptune.recordings.trains import Segment, SpikeTrains

if TYPE_CHECKING:
    from toptune.recordings.objects import NamedRecording
    from toptune.spikes.ptsd_cuda import SpikeTensors
    from toptune.spikes.streaming import Detected


@dataclass(frozen=True, kw_only=True)
class Header:
    """What is known of a recording before its voltage is read."""

    segments: tuple[Segment, ...]
    sampling_rate_hz: float


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundSpikes:
    """A recording's spikes, and what detection noticed.

    Parameters
    ----------
    trains
        The spikes.
    kind
        The recording's format.
    stream
        Label of the electrode stream; None if spikes were read from a file.
    dead_channels, over_noisy_channels
        Labels; none if spikes were read from a file.
    on_device
        The same spikes on the GPU that found them; None if the CPU did.
    """

    trains: SpikeTrains
    kind: str
    stream: str | None = None
    dead_channels: tuple[str, ...] = ()
    over_noisy_channels: tuple[str, ...] = ()
    on_device: SpikeTensors | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, one line each."""
        noticed = (("dead", self.dead_channels), ("over-noisy", self.over_noisy_channels))
        # A colon, since a name that is a number would read as how many there are.
        of_channels = (
            f"{what} {one_or(len(who), 'channel', 'channels')}: {', '.join(who)}"
            for what, who in noticed
            if who
        )
        return (*of_channels, *self.trains.notes)


def check_recording(path: Path | NamedRecording, settings: SpikeSettings) -> Header | None:
    """Open a recording and check that its spikes can be found; None if it holds spikes only.

    Raises
    ------
    InputError
        It cannot be opened, is truncated, or its sampling rate is too low for the filter's cut-off.
    """
    from toptune.spikes.filters import HighPassFilter

    recording = open_recording(path, **settings.opening)
    if isinstance(recording, SpikeRecording):
        return None
    with recording:
        recording.check_whole()
        # Refuses a cut-off above half the sampling rate.
        HighPassFilter(settings.highpass, recording.sampling_rate_hz, 1)
        return Header(segments=recording.segments, sampling_rate_hz=recording.sampling_rate_hz)


def detect_voltage(
    recording: VoltageRecording,
    highpass: HighPass | None = None,
    ptsd: Ptsd | None = None,
    *,
    device: Accelerator | None = None,
    n_jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Detected, SpikeTensors | None]:
    """Detect a recording's spikes on the CPU, or on a GPU if one is given; see `detect_recording`.

    On a GPU the spikes are returned as they lie there, too; None on the CPU.
    """
    if device is None:
        from toptune.spikes.streaming import detect_recording

        return detect_recording(recording, highpass, ptsd, n_jobs=n_jobs, progress=progress), None
    from toptune.spikes.streaming_cuda import detect_recording_on

    return detect_recording_on(device, recording, highpass, ptsd, n_jobs=n_jobs, progress=progress)


def find_spikes(
    path: Path | NamedRecording,
    settings: SpikeSettings,
    *,
    device: Accelerator | None = None,
    n_jobs: int | None = None,
    stage: Callable[[str, int, int], None],
) -> FoundSpikes:
    """Detect a recording's spikes, or read them if it holds spikes only.

    Parameters
    ----------
    path
        A recording of any format, or an object, as for `open_recording`.
    settings
        How spikes are detected.
    device
        A GPU to detect on; None for the CPU.
    n_jobs
        CPU threads; all cores if None.
    stage
        Called with (what is being done, samples done, samples in all) now and then.

    Raises
    ------
    InputError
        See `open_recording`, `detect_recording` and `detect_recording_on`.
    """
    fetch_whole(path)  # all of its voltage is read
    recording = open_recording(path, **settings.opening)
    if isinstance(recording, SpikeRecording):
        stage("reading spikes", 0, 1)
        return FoundSpikes(trains=recording.trains(), kind=recording.kind)
    with recording:
        found, on_device = detect_voltage(
            recording,
            settings.highpass,
            settings.ptsd,
            device=device,
            n_jobs=n_jobs,
            progress=lambda done, total: stage("spikes", done, total),
        )
    labels = found.trains.channel_labels
    return FoundSpikes(
        trains=replace(found.trains, notes=recording.notes),
        kind=recording.kind,
        stream=recording.stream_label,
        dead_channels=tuple(labels[k] for k in found.noise.dead.nonzero()[0]),
        over_noisy_channels=tuple(labels[k] for k in found.noise.noisy.nonzero()[0]),
        on_device=on_device,
    )
