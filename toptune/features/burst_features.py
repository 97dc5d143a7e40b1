"""Spike and burst parameters, as laboratories usually report them, and as features.

A parameter's name ends with its unit; numbers, shares and correlations have none.

Silent and short recordings follow one rule. Rates, and shares of all electrodes, are 0 where
nothing is found. A mean over nothing (the duration of bursts where nothing bursts, the interval
between bursts where no electrode has two) is unknown, so it is NaN and not 0. All but
`firing_rate_hz` and `active_share` are computed from active electrodes only.

As features every value is scaled by constants that are written here; nothing is learnt from any
recording. A parameter that spans decades becomes ``log(1 + x / low) / log(1 + high / low)``: 0 at
0, linear far below `low`, logarithmic above, 1 at `high`. Shares and numbers with a fixed range are
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
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, get_type_hints

import numpy as np

from toptune.errors import InputError
from toptune.features.bursts import (
    Bursts,
    log_isi_bursts,
    log_isi_thresholds,
    max_interval_bursts,
    network_bursts,
)
from toptune.features.electrodes import (
    ElectrodeTrains,
    Float32,
    Float64,
    Ints,
    WindowedTrains,
    interval_variability,
    mean_count_correlation,
    mean_spike_time_tiling,
    whole_recording,
)
from toptune.features.extractor import FeatureRows, PendingFeatures
from toptune.params import BurstCriteria, Windows
from toptune.recordings.trains import SpikeTrains

if TYPE_CHECKING:
    from toptune.backbones.engine import FeatureEngine
    from toptune.features.picture_features import BackboneIdentity
    from toptune.pictures.drawers import Drawers

KIND = "parameters"
# Grows when a parameter, a definition or a constant of this module changes.
VERSION = 1
DEFAULTS = BurstCriteria()


class Scale(NamedTuple):
    """How a parameter becomes a number, 0 to 1 as a rule; bounds in the parameter's unit."""

    kind: Literal["log", "linear"]
    low: float
    high: float
    undefined: float = 0.0  # what replaces NaN in rows that may hold none

    def apply(self, values: Float64) -> Float64:
        """Scale values; NaN stays NaN."""
        if self.kind == "linear":
            return (values - self.low) / (self.high - self.low)
        scaled: Float64 = np.log1p(values / self.low) / np.log1p(self.high / self.low)
        return scaled

    def invert(self, scaled: Float64) -> Float64:
        """Give back what `apply` was given."""
        if self.kind == "linear":
            return self.low + scaled * (self.high - self.low)
        values: Float64 = self.low * np.expm1(scaled * np.log1p(self.high / self.low))
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


class BurstParameters(NamedTuple):
    """The parameters, each with its scale and words for it, in the order of the columns."""

    # Spikes per second and electrode, over all electrodes.
    firing_rate_hz: Annotated[float, _RATE_HZ, "firing rate (spikes/s per electrode)"]
    # Share of electrodes that are active (`BurstCriteria.active_hz`).
    active_share: Annotated[float, _SHARE, "share of electrodes that are active"]
    # Spikes per second and active electrode; NaN without one.
    active_rate_hz: Annotated[float, _RATE_HZ, "firing rate of active electrodes (spikes/s)"]
    # SD over mean of the active electrodes' rates; NaN with fewer than two.
    rate_cv: Annotated[float, _CV, "spread of rates over electrodes (CV)"]
    # Irregularity of inter-spike intervals (`toptune.features.electrodes`), means over the
    # electrodes that have it; NaN where none has.
    isi_cv: Annotated[float, _CV, "irregularity of intervals (CV)"]
    isi_cv2: Annotated[
        float, Scale("linear", 0.0, 2.0), "irregularity of successive intervals (CV2)"
    ]
    isi_lv: Annotated[float, Scale("linear", 0.0, 3.0), "local variation of intervals (LV)"]
    # Bursts per minute and active electrode, by the MaxInterval method; 0 without one.
    burst_rate_per_min: Annotated[float, _PER_MIN, "bursts per minute and electrode"]
    # Share of active electrodes that burst (`BurstCriteria.bursting_per_minute`); NaN without an
    # active one.
    bursting_share: Annotated[float, _SHARE, "share of electrodes that burst"]
    # Share of spikes that lie in bursts; NaN without spikes.
    burst_spike_share: Annotated[float, _SHARE, "share of spikes in bursts"]
    # Means over bursts, from the first spike to the last.
    burst_duration_s: Annotated[float, _DURATION_S, "burst duration (s)"]
    burst_spikes: Annotated[float, _SPIKES, "spikes per burst"]
    # Mean interval from a burst's last spike to the next one's first, on one electrode, and SD over
    # mean of these intervals, NaN with fewer than two.
    burst_interval_s: Annotated[float, _INTERVAL_S, "interval between bursts (s)"]
    burst_interval_cv: Annotated[float, _CV, "irregularity of intervals between bursts (CV)"]
    # The same, by the logISI method.
    logisi_burst_rate_per_min: Annotated[
        float, _PER_MIN, "bursts per minute and electrode (logISI)"
    ]
    logisi_bursting_share: Annotated[float, _SHARE, "share of electrodes that burst (logISI)"]
    logisi_burst_spike_share: Annotated[float, _SHARE, "share of spikes in bursts (logISI)"]
    logisi_burst_duration_s: Annotated[float, _DURATION_S, "burst duration (s, logISI)"]
    logisi_burst_spikes: Annotated[float, _SPIKES, "spikes per burst (logISI)"]
    logisi_burst_interval_s: Annotated[float, _INTERVAL_S, "interval between bursts (s, logISI)"]
    # Geometric mean of the thresholds that were found in the electrodes' histograms.
    logisi_threshold_s: Annotated[
        float, Scale("log", 0.01, 1.0, math.inf), "longest interval inside bursts (s, logISI)"
    ]
    # Median interval between successive beginnings of bursts, all electrodes together (inter-burst-
    # event interval, Pasquale et al. 2010).
    event_interval_s: Annotated[
        float,
        Scale("log", 0.001, 10.0, math.inf),
        "interval between burst onsets on any electrode (s)",
    ]
    # Network bursts per minute (`toptune.features.bursts`).
    network_burst_rate_per_min: Annotated[float, _PER_MIN, "network bursts per minute"]
    # Mean, from the first spike of the first burst to the last spike of all.
    network_burst_duration_s: Annotated[float, _DURATION_S, "network burst duration (s)"]
    # Mean share of active electrodes that take part.
    network_burst_electrodes: Annotated[float, _SHARE, "share of electrodes in a network burst"]
    # Share of spikes that lie in network bursts' bursts; NaN without spikes.
    network_burst_spike_share: Annotated[float, _SHARE, "share of spikes in network bursts"]
    # Mean from one network burst's beginning to the next one's, and SD over mean of these
    # intervals, NaN with fewer than two.
    network_burst_interval_s: Annotated[float, _INTERVAL_S, "interval between network bursts (s)"]
    network_burst_interval_cv: Annotated[float, _CV, "irregularity of network bursts (CV)"]
    # Mean over pairs of active electrodes (Cutts & Eglen 2014); NaN without a pair.
    spike_time_tiling: Annotated[float, _CORRELATION, "synchrony of electrodes (spike time tiling)"]
    # Mean over pairs of active electrodes of Pearson's correlation of spike counts in bins.
    count_correlation: Annotated[float, _CORRELATION, "correlation of spike counts"]


NAMES = BurstParameters._fields
_HINTS = get_type_hints(BurstParameters, include_extras=True)
SCALES: dict[str, Scale] = {name: hint.__metadata__[0] for name, hint in _HINTS.items()}
#: What each parameter is called in reports and diagrams, with its unit.
TITLES: dict[str, str] = {name: hint.__metadata__[1] for name, hint in _HINTS.items()}


# --- measuring


def recording_parameters(
    trains: SpikeTrains, criteria: BurstCriteria = DEFAULTS
) -> BurstParameters:
    """Measure a whole recording; nothing is counted across a gap."""
    return _measure(whole_recording(trains), criteria)


# Of the starts of a recording's windows, (n,) in seconds, chooses rows, (m,) ascending.
ChooseWindows = Callable[[Float64], Ints]


def window_parameters(
    trains: SpikeTrains,
    windows: Windows,
    criteria: BurstCriteria = DEFAULTS,
    chosen: ChooseWindows | None = None,
) -> tuple[Float64, Float64]:
    """Measure every window of a recording, or chosen ones, each as if there were nothing around it.

    Returns the parameters, (windows, parameters) with columns as `NAMES`, and the start of each
    window in seconds since the recording's start.
    """
    cut = WindowedTrains(trains, windows)
    rows = np.arange(len(cut)) if chosen is None else chosen(cut.start_s)
    values = np.array([_measure(cut[row], criteria) for row in rows.tolist()], dtype=np.float64)
    return values.reshape(len(rows), len(NAMES)), cut.start_s[rows]


def _measure(trains: ElectrodeTrains, criteria: BurstCriteria) -> BurstParameters:
    """Measure some stretches of a recording, of more than 0 seconds, together."""
    rates_hz = trains.counts / trains.duration_s
    is_active = rates_hz >= criteria.active_hz
    active, active_hz = trains.only(is_active), rates_hz[is_active]
    variability = interval_variability(active)
    max_interval = max_interval_bursts(active, criteria)
    thresholds = log_isi_thresholds(active, criteria)
    log_isi = log_isi_bursts(active, criteria, thresholds.used)
    of_log_isi = _burst_statistics(active, log_isi, criteria)[:-1]
    # In the order of the parameters; both kinds of statistics are.
    return BurstParameters._make(
        (
            _mean(rates_hz),
            _mean(is_active.astype(np.float64)),
            _mean(active_hz),
            _cv(active_hz),
            *map(_mean, variability),
            *_burst_statistics(active, max_interval, criteria),
            *of_log_isi,
            float(np.exp(_mean(np.log(thresholds.found)))) / 1000,
            *_network_statistics(active, log_isi, criteria),
            mean_spike_time_tiling(active, criteria.coincidence_ms),
            mean_count_correlation(active, criteria.count_bin_ms),
        )
    )


def _burst_statistics(
    trains: ElectrodeTrains, bursts: Bursts, criteria: BurstCriteria
) -> tuple[float, ...]:
    """Give ``burst_rate_per_min`` up to ``burst_interval_cv``, of active electrodes' bursts."""
    train, n = trains.train[bursts.first], trains.n_electrodes
    minutes = trains.duration_s / 60
    start, end = trains.sample[bursts.first], trains.sample[bursts.last]
    of_electrode = np.bincount(train % max(1, n), minlength=n)
    bursting = of_electrode[:n] / minutes >= criteria.bursting_per_minute
    interval_s = (start[1:] - end[:-1])[train[1:] == train[:-1]] / trains.sampling_rate_hz
    return (
        len(start) / (n * minutes) if n else 0.0,
        _mean(bursting.astype(np.float64)),
        _share(bursts.n_spikes, trains),
        _mean((end - start) / trains.sampling_rate_hz),
        _mean(bursts.n_spikes.astype(np.float64)),
        _mean(interval_s),
        _cv(interval_s),
    )


def _network_statistics(
    trains: ElectrodeTrains, bursts: Bursts, criteria: BurstCriteria
) -> tuple[float, ...]:
    """Give ``event_interval_s`` up to ``network_burst_interval_cv``, of active electrodes."""
    found = network_bursts(trains, bursts, criteria)
    rate_hz = trains.sampling_rate_hz
    interval_s = np.diff(found.start)[np.diff(found.stretch) == 0] / rate_hz
    events = found.event_interval
    return (
        float(np.median(events)) / rate_hz if len(events) else math.nan,
        len(found.start) / (trains.duration_s / 60),
        _mean((found.end - found.start) / rate_hz),
        _mean(found.n_electrodes / max(1, trains.n_electrodes)),
        _share(found.n_spikes, trains),
        _mean(interval_s),
        _cv(interval_s),
    )


def _share(n_spikes: Ints, trains: ElectrodeTrains) -> float:
    return float(n_spikes.sum()) / len(trains.sample) if len(trains.sample) else math.nan


def _mean(values: Float64) -> float:
    """Mean of what is not NaN; NaN of nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _cv(values: Float64) -> float:
    """SD, with n in the denominator, over mean; NaN of fewer than two values or of zeros."""
    if len(values) < 2 or not values.mean() > 0:
        return math.nan
    return float(values.std() / values.mean())


# --- features


def scaled(values: Float64) -> Float64:
    """Scale parameters, (n, parameters) float64 with columns as `NAMES`; NaN stays NaN."""
    columns = [SCALES[name].apply(values[:, column]) for column, name in enumerate(NAMES)]
    return np.stack(columns, axis=1)


def in_units(rows: Float32) -> Float64:
    """Give back the parameters of whole recordings, (n, parameters) scaled, in their units."""
    values = rows.astype(np.float64)
    columns = [SCALES[name].invert(values[:, column]) for column, name in enumerate(NAMES)]
    return np.stack(columns, axis=1)


def on_circles(values: Float64) -> Float64:
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
    """All that decides the rows of burst parameters, given a recording's spikes."""

    windows: Windows | None = None  # one row a window; None for one row a recording
    criteria: BurstCriteria = field(default_factory=BurstCriteria)
    backbone: ClassVar[None] = None  # no network describes them

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

    def with_windows(self, windows: Windows) -> BurstFeatureParams:
        """Describe other windows in the same way."""
        return replace(self, windows=windows)

    def extractor(self, engine_of: Callable[[BackboneIdentity], FeatureEngine]) -> BurstExtractor:
        """Make what measures them."""
        del engine_of
        return BurstExtractor(self)


class BurstExtractor:
    """Measures the burst parameters of any recording's spikes."""

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

    def measure(self, trains: SpikeTrains, chosen: ChooseWindows | None = None) -> FeatureRows:
        """Measure the recording, or all of its windows, or those that are chosen.

        There is no row where the recording is shorter than a window, or has no sample. A spike
        outside the recording or on a channel it does not have is an `InputError`.
        """
        criteria = self.params.criteria
        if self.windows is not None:
            values, start_s = window_parameters(trains, self.windows, criteria, chosen)
            return FeatureRows(on_circles(values).astype(np.float32), start_s)
        if not trains.n_samples or not trains.channel_labels:
            return FeatureRows(np.empty((0, len(NAMES)), np.float32), np.empty(0))
        values = np.array([recording_parameters(trains, criteria)])
        start_s = np.array([trains.segments[0].start_s])
        return FeatureRows(scaled(values).astype(np.float32), start_s)

    def extract_variants(
        self,
        trains: SpikeTrains,
        variants: Iterable[tuple[SpikeTrains, Sequence[int]]],
        n_rows: int,
    ) -> Iterator[Float32]:
        """Measure some windows of variants of a recording, one variant at a time."""
        del trains, n_rows
        for variant, rows in variants:
            yield self._rows(variant, rows)

    def _rows(self, trains: SpikeTrains, rows: Sequence[int]) -> Float32:
        """Measure some windows of a recording, in any order."""
        if self.windows is None:
            return self.measure(trains).features[rows]
        ascending, place = np.unique(np.asarray(rows, np.int64), return_inverse=True)
        return self.measure(trains, lambda _: ascending).features[place]

    def picture_of(self, trains: SpikeTrains, row: int) -> None:
        """Give none: there is no picture."""
        del trains, row
