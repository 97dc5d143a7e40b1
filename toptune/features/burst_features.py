"""Burst parameters as features: of whole recordings, or of the pictures' windows.

Every value is scaled by constants that are written here; nothing is learnt from any recording.

Scaling. A parameter that spans decades becomes ``log(1 + x / low) / log(1 + high / low)``: 0 at 0,
linear far below `low`, logarithmic above, 1 at `high`. Shares and numbers with a fixed range are
brought to 0 to 1 by a straight line. `low` and `high` bound what is common in cultures.

Whole recordings: one column per parameter, scaled, NaN where it is not defined. The classifier
replaces NaN by what it learns from its training rows.

Windows, beside pictures: Falkon divides each row by its length, which would lose how large its
values are together. So a scaled value z, kept between 0 and 1, becomes the point ``cos(pi/2 z),
sin(pi/2 z)`` of a quarter circle: every row then has one length, and that division changes nothing.
Distances on it are those of z but for a factor between 1.41 and 1.57. Parameters that are not
defined get the value that comes nearest to what is meant (`Scale.undefined`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.features.burst_parameters import NAMES, recording_parameters, window_parameters
from toptune.features.extractor import FeatureRows, PendingFeatures
from toptune.params import BurstCriteria, Windows
from toptune.recordings.trains import SpikeTrains

if TYPE_CHECKING:
    from toptune.backbones.engine import FeatureEngine
    from toptune.features.picture_features import BackboneIdentity
    from toptune.pictures.drawer import Drawers

KIND = "parameters"
# Grows when a parameter, a definition or a constant of this module changes.
VERSION = 1


class Scale(NamedTuple):
    """How a parameter becomes a number, 0 to 1 as a rule; bounds in the parameter's unit."""

    kind: Literal["log", "linear"]
    low: float
    high: float
    undefined: float = 0.0  # what replaces NaN in rows that may hold none

    def apply(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scale values; NaN stays NaN."""
        if self.kind == "linear":
            return (values - self.low) / (self.high - self.low)
        scaled: NDArray[np.float64] = np.log1p(values / self.low) / np.log1p(self.high / self.low)
        return scaled

    def invert(self, scaled: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give back what `apply` was given."""
        if self.kind == "linear":
            return self.low + scaled * (self.high - self.low)
        values: NDArray[np.float64] = self.low * np.expm1(scaled * np.log1p(self.high / self.low))
        return values


_RATE_HZ = Scale("log", 0.1, 50.0)
_CV = Scale("log", 1.0, 10.0)
_PER_MIN = Scale("log", 1.0, 100.0)
_SHARE = Scale("linear", 0.0, 1.0)
_DURATION_S = Scale("log", 0.1, 10.0)
_SPIKES = Scale("log", 10.0, 1000.0)
# Without a second burst the interval between bursts is longer than the recording.
_INTERVAL_S = Scale("log", 1.0, 100.0, math.inf)
_CORRELATION = Scale("linear", -1.0, 1.0)

SCALES: dict[str, Scale] = {
    "firing_rate_hz": _RATE_HZ,
    "active_share": _SHARE,
    "active_rate_hz": _RATE_HZ,
    "rate_cv": _CV,
    "isi_cv": _CV,
    "isi_cv2": Scale("linear", 0.0, 2.0),
    "isi_lv": Scale("linear", 0.0, 3.0),
    "burst_rate_per_min": _PER_MIN,
    "bursting_share": _SHARE,
    "burst_spike_share": _SHARE,
    "burst_duration_s": _DURATION_S,
    "burst_spikes": _SPIKES,
    "burst_interval_s": _INTERVAL_S,
    "burst_interval_cv": _CV,
    "logisi_burst_rate_per_min": _PER_MIN,
    "logisi_bursting_share": _SHARE,
    "logisi_burst_spike_share": _SHARE,
    "logisi_burst_duration_s": _DURATION_S,
    "logisi_burst_spikes": _SPIKES,
    "logisi_burst_interval_s": _INTERVAL_S,
    "logisi_threshold_s": Scale("log", 0.01, 1.0, math.inf),
    "event_interval_s": Scale("log", 0.001, 10.0, math.inf),
    "network_burst_rate_per_min": _PER_MIN,
    "network_burst_duration_s": _DURATION_S,
    "network_burst_electrodes": _SHARE,
    "network_burst_spike_share": _SHARE,
    "network_burst_interval_s": _INTERVAL_S,
    "network_burst_interval_cv": _CV,
    "spike_time_tiling": _CORRELATION,
    "count_correlation": _CORRELATION,
}


def scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale parameters, (n, parameters) float64 with columns as `NAMES`; NaN stays NaN."""
    columns = [SCALES[name].apply(values[:, column]) for column, name in enumerate(NAMES)]
    return np.stack(columns, axis=1)


def in_units(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Give back the parameters of whole recordings, (n, parameters) scaled, in their units."""
    values = rows.astype(np.float64)
    columns = [SCALES[name].invert(values[:, column]) for column, name in enumerate(NAMES)]
    return np.stack(columns, axis=1)


def on_circles(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn each parameter, (n, parameters) as `NAMES` in units, into a point of a quarter circle.

    Gives (n, 2 x parameters) float64: cosines, then sines; finite, and every row of length
    sqrt(parameters).
    """
    undefined = np.array([SCALES[name].undefined for name in NAMES])
    z = scaled(np.where(np.isnan(values), undefined, values)).clip(0, 1)
    angle = np.pi / 2 * z
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=1)


@dataclass(frozen=True, kw_only=True)
class BurstFeatureParams:
    """All that decides the rows of burst parameters, given a recording's spikes.

    Parameters
    ----------
    windows
        One row a window; None for one row a recording.
    criteria
        What counts as a burst.
    """

    windows: Windows | None = None
    criteria: BurstCriteria = field(default_factory=BurstCriteria)
    # No network describes them.
    backbone: ClassVar[None] = None

    @property
    def description(self) -> str:
        """One line for people."""
        if self.windows is None:
            return f"{KIND} of the whole recording"
        return f"{KIND}, {self.windows.width_s:g} s every {self.windows.stride_s:g} s"

    @property
    def n_columns(self) -> int:
        """Columns of a row."""
        return len(NAMES) * (1 if self.windows is None else 2)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as a view's `params`."""
        return {
            "kind": KIND,
            "version": VERSION,
            "windows": None if self.windows is None else self.windows.to_json(),
            "criteria": self.criteria.to_json(),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> BurstFeatureParams:
        """Build from what `to_json` gave; another version or unknown names are an error."""
        windows = values["windows"]
        made = cls(
            windows=None if windows is None else Windows.from_json(windows),
            criteria=BurstCriteria.from_json(values["criteria"]),
        )
        if made.to_json() != values:
            raise InputError(
                f"the burst parameters are of version {values.get('version')}, this toptune has"
                f" version {VERSION}, or their criteria are not complete: fit again"
            )
        return made

    def extractor(self, engine_of: Callable[[BackboneIdentity], FeatureEngine]) -> BurstExtractor:
        """Make what measures them."""
        del engine_of
        return BurstExtractor(self)


class BurstExtractor:
    """Measures the burst parameters of any recording's spikes.

    Parameters
    ----------
    params
        What is measured.
    """

    stage = "burst parameters"

    def __init__(self, params: BurstFeatureParams) -> None:
        self.params = params
        self.windows = params.windows
        self.n_columns = params.n_columns

    def n_steps(self, trains: SpikeTrains) -> int:
        """Count one: a recording is measured in one step."""
        del trains
        return 1

    def start(self, drawers: Drawers, count: Callable[[int], object]) -> PendingFeatures:
        """Measure the recording, or all of its windows, at once."""
        count(0)
        rows = self.measure(drawers.trains)
        count(1)
        return PendingFeatures(rows.start_s, lambda: rows.features)

    def measure(self, trains: SpikeTrains) -> FeatureRows:
        """Measure the recording, or all of its windows.

        Parameters
        ----------
        trains
            The recording's spikes.

        Returns
        -------
        FeatureRows
            No row where the recording is shorter than a window, or has no sample.

        Raises
        ------
        InputError
            A spike lies outside the recording or on a channel it does not have.
        """
        criteria = self.params.criteria
        if self.windows is not None:
            found = window_parameters(trains, self.windows, criteria)
            return FeatureRows(on_circles(found.values).astype(np.float32), found.start_s)
        if not trains.n_samples or not trains.channel_labels:
            return FeatureRows(np.empty((0, len(NAMES)), np.float32), np.empty(0))
        values = np.array([recording_parameters(trains, criteria)], dtype=np.float64)
        start_s = np.array([trains.segments[0].start_s])
        return FeatureRows(scaled(values).astype(np.float32), start_s)

    def extract_variants(
        self,
        trains: SpikeTrains,
        variants: Iterable[tuple[SpikeTrains, Sequence[int]]],
        n_rows: int,
    ) -> Iterator[NDArray[np.float32]]:
        """Measure some windows of variants of a recording, one variant at a time."""
        del trains, n_rows
        for variant, rows in variants:
            yield self.measure(variant).features[rows]

    def picture_of(self, trains: SpikeTrains, row: int) -> None:
        """Give none: there is no picture."""
        del trains, row
