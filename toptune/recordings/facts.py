"""What is known of recordings besides their spikes, and of weights besides their values.

Trained models carry these facts, to say what they were trained on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from toptune.recordings.trains import SpikeTrains


@dataclass(frozen=True, kw_only=True)
class RecordingFacts:
    """How a recording was made, and how many spikes it has.

    Parameters
    ----------
    name
        The recording, for messages.
    sampling_rate_hz
        Samples per second.
    n_electrodes
        Channels, including silent and dead ones.
    n_spikes
        Spikes on all channels.
    duration_s
        Recorded time without gaps.
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
        """Spikes/s per electrode, as the mean over all electrodes."""
        return self.n_spikes / (self.n_electrodes * self.duration_s)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class WeightsSource:
    """Where a backbone's weights came from, to find them again.

    Parameters
    ----------
    path
        The weights file, if there was one; it may have been moved since.
    seed
        The seed of random weights; None for others.
    """

    path: str | None = None
    seed: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, which ``WeightsSource(**values)`` reads back."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """The recordings and the weights behind a table of features.

    Parameters
    ----------
    recordings
        In the order of the table's recordings.
    weights
        The source of the backbone's weights for each view of the table; None if the store does not
        say, because an earlier toptune made it.
    """

    recordings: tuple[RecordingFacts, ...]
    weights: tuple[WeightsSource | None, ...]
