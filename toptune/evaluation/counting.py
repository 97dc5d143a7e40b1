"""How many verdicts and devices a run's scores count, and the words for them.

A device gets a verdict for each of its labels: two where it was recorded basal and with a drug. The
verdicts of one device are not independent, so both numbers are given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from toptune.machine.display import count


class Counts(NamedTuple):
    """What the accuracy per device is a share of."""

    n_right: int  # verdicts
    n_verdicts: int
    n_devices: int

    @classmethod
    def of(cls, metrics: Mapping[str, Any]) -> Counts:
        """Read them from metrics.json, or from what a model keeps of it.

        Where there is no ``n_verdicts``, an earlier toptune counted verdicts as devices.
        """
        n_devices: int = metrics["n_devices"]
        n_verdicts: int = metrics.get("n_verdicts", n_devices)
        return cls(round(metrics["device_accuracy"] * n_verdicts), n_verdicts, n_devices)

    @property
    def in_pairs(self) -> bool:
        """Whether devices have several verdicts."""
        return self.n_verdicts > self.n_devices

    @property
    def scored(self) -> str:
        """What was scored: ``30 devices`` or ``8 verdicts on 4 devices``."""
        devices = count(self.n_devices, "device")
        return f"{count(self.n_verdicts, 'verdict')} on {devices}" if self.in_pairs else devices

    @property
    def right(self) -> str:
        """How much of it is right: ``26 of 30`` or ``7 of 8 verdicts on 4 devices``."""
        return f"{self.n_right} of {self.scored if self.in_pairs else self.n_verdicts}"

    @property
    def method(self) -> str:
        """What the confidence interval is called."""
        return "interval with devices as units (bootstrap)" if self.in_pairs else "Wilson interval"
