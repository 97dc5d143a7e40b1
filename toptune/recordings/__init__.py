"""Recordings of every format, and the spikes and windows in them.

A path enters. `open_recording` recognises its format by content and returns either voltage, as
(channels, samples) float32 microvolts in ranges and chunks, or spikes that were detected elsewhere,
as `SpikeTrains`. `read_devices` reads which recording belongs to which device and class, and
`window_starts` places sliding windows. A format is added in `opening` and in a module beside it.
`simulate` writes MCS recordings of cultures that do not exist, with their true spikes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toptune.machine.lazy import lazy_names

if TYPE_CHECKING:
    from toptune.recordings.devices import DevicesFile, read_devices
    from toptune.recordings.opening import SpikeRecording, VoltageRecording, open_recording
    from toptune.recordings.simulated import simulate
    from toptune.recordings.spike_npz import read_npz, write_npz
    from toptune.recordings.trains import (
        RecordingFacts,
        Segment,
        Spikes,
        SpikeTrains,
        TrainingFacts,
        WeightsSource,
    )
    from toptune.recordings.windows import WindowStarts, window_starts
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "devices": ("DevicesFile", "read_devices"),
            "opening": ("SpikeRecording", "VoltageRecording", "open_recording"),
            "spike_npz": ("read_npz", "write_npz"),
            "simulated": ("simulate",),
            "trains": (
                *("RecordingFacts", "Segment", "SpikeTrains", "Spikes"),
                *("TrainingFacts", "WeightsSource"),
            ),
            "windows": ("WindowStarts", "window_starts"),
        },
    )

__all__ = [
    "DevicesFile", "RecordingFacts", "Segment", "SpikeRecording", "SpikeTrains", "Spikes",
    "TrainingFacts", "VoltageRecording", "WeightsSource", "WindowStarts", "open_recording",
    "read_devices", "read_npz", "simulate", "window_starts", "write_npz",
]  # fmt: skip
