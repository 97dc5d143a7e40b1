"""Simulated recordings of neuronal cultures, with known spikes.

A number of devices, a length and a seed enter. `simulate` writes, for each device, an MCS file as
Multi Channel Systems' program would and the true spikes, and a devices file. `network` decides when
neurons fire, `traces` makes the voltage, and `mcs_writer` the files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toptune.machine.lazy import lazy_names

if TYPE_CHECKING:
    from toptune.recordings.simulated.culture import simulate
    from toptune.recordings.simulated.mcs_writer import McsChannel, McsHeader, McsStream, McsWriter
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "culture": ("simulate",),
            "mcs_writer": ("McsChannel", "McsHeader", "McsStream", "McsWriter"),
        },
    )

__all__ = [
    "McsChannel", "McsHeader", "McsStream", "McsWriter", "simulate",
]  # fmt: skip
