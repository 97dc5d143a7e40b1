"""Spike detection by PTSD, on the CPU or a GPU.

A recording or filtered microvolts enter; `Spikes` leave, sorted by sample and channel. Voltage is
high-pass filtered (`filters`), each channel's threshold is set from its noise (`noise`), and PTSD
finds the spikes: in memory (`ptsd`), or in a recording of any length (`streaming`). All ways find
the same spikes. `find_spikes` takes a recording of any format, and is what the stages above use.
Modules ending in `_cuda` are the same for a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toptune.machine.lazy import lazy_names

if TYPE_CHECKING:
    from toptune.spikes.filters import HighPassFilter
    from toptune.spikes.finding import FoundSpikes, check_recording, detect_voltage, find_spikes
    from toptune.spikes.noise import Thresholds, noise_thresholds
    from toptune.spikes.ptsd import detect_spikes
    from toptune.spikes.streaming import Detected, detect_recording
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "filters": ("HighPassFilter",),
            "finding": ("FoundSpikes", "check_recording", "detect_voltage", "find_spikes"),
            "noise": ("Thresholds", "noise_thresholds"),
            "ptsd": ("detect_spikes",),
            "streaming": ("Detected", "detect_recording"),
        },
    )

__all__ = [
    "Detected", "FoundSpikes", "HighPassFilter", "Thresholds", "check_recording",
    "detect_recording", "detect_spikes", "detect_voltage", "find_spikes", "noise_thresholds",
]  # fmt: skip
