"""What is known of recordings beside their spikes, and of weights beside their values.

What enters: spike trains, or what a store wrote down. What leaves: small frozen facts, JSON-able,
which a trained model carries so that it can tell what it was trained on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from toptune.recordings.trains import SpikeTrains


@dataclass(frozen=True, kw_only=True)
class RecordingFacts:
    """How a recording was made, and how much was going on in it.

    Parameters
    ----------
    name
        The recording, for messages.
    sampling_rate_hz
        Samples a second.
    n_electrodes
        Channels, silent and dead ones too.
    n_spikes
        On all of them.
    duration_s
        Recorded time, gaps not counted.
    """

    name: str
    sampling_rate_hz: float
    n_electrodes: int
    n_spikes: int
    duration_s: float

    @classmethod
    def of(cls, name: str, trains: SpikeTrains) -> RecordingFacts:
        """Count a recording's spikes."""
        return cls(
            name=name,
            sampling_rate_hz=trains.sampling_rate_hz,
            n_electrodes=len(trains.channel_labels),
            n_spikes=len(trains.spikes.sample),
            duration_s=trains.duration_s,
        )

    @property
    def electrode_rate_hz(self) -> float:
        """Spikes a second and electrode, the mean over all electrodes."""
        return self.n_spikes / (self.n_electrodes * self.duration_s)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class WeightsSource:
    """Where a backbone's weights can be had again.

    Parameters
    ----------
    path
        The file, where they came from one; it may since have been moved.
    seed
        Of random weights; None for others.
    """

    path: str | None = None
    seed: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, which ``WeightsSource(**values)`` reads back."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """What a store knows of the recordings and the weights behind a table of features.

    Parameters
    ----------
    recordings
        In the order of the table's recordings.
    weights
        For each view of the table, where its backbone's weights came from; None where the store
        does not know, because an earlier toptune made it.
    """

    recordings: tuple[RecordingFacts, ...]
    weights: tuple[WeightsSource | None, ...]
