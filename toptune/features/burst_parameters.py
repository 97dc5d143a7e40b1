"""Spike and burst parameters of recordings or windows, as laboratories usually report them.

A parameter's name ends with its unit; numbers, shares and correlations have none.

Silent and short recordings follow one rule. Rates, and shares of all electrodes, are 0 where
nothing is found. A mean over nothing (the duration of bursts where nothing bursts, the interval
between bursts where no electrode has two) is unknown, so it is NaN and not 0. All but
`firing_rate_hz` and `active_share` are computed from active electrodes only.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.features.bursts import (
    Bursts,
    log_isi_bursts,
    log_isi_thresholds,
    max_interval_bursts,
    network_bursts,
)
from toptune.features.electrodes import (
    ElectrodeTrains,
    WindowedTrains,
    interval_variability,
    mean_count_correlation,
    mean_spike_time_tiling,
    whole_recording,
)
from toptune.params import BurstCriteria, Windows
from toptune.recordings.trains import SpikeTrains


class BurstParameters(NamedTuple):
    """The parameters, in their order.

    Attributes
    ----------
    firing_rate_hz
        Spikes per second and electrode, over all electrodes.
    active_share
        Share of electrodes that are active (`BurstCriteria.active_hz`).
    active_rate_hz
        Spikes per second and active electrode; NaN without one.
    rate_cv
        SD over mean of the active electrodes' rates; NaN with fewer than two.
    isi_cv, isi_cv2, isi_lv
        Irregularity of inter-spike intervals (`toptune.features.electrodes`), means over the
        electrodes that have it; NaN where none has.
    burst_rate_per_min
        Bursts per minute and active electrode, by the MaxInterval method; 0 without one.
    bursting_share
        Share of active electrodes that burst (`BurstCriteria.bursting_per_minute`); NaN without
        an active one.
    burst_spike_share
        Share of spikes that lie in bursts; NaN without spikes.
    burst_duration_s
        Mean over bursts, first spike to last.
    burst_spikes
        Mean over bursts.
    burst_interval_s
        Mean interval from a burst's last spike to the next one's first, on one electrode.
    burst_interval_cv
        SD over mean of these intervals; NaN with fewer than two.
    logisi_burst_rate_per_min, logisi_bursting_share, logisi_burst_spike_share, \
logisi_burst_duration_s, logisi_burst_spikes, logisi_burst_interval_s
        The same, by the logISI method.
    logisi_threshold_s
        Geometric mean of the thresholds that were found in the electrodes' histograms.
    event_interval_s
        Median interval between successive beginnings of bursts, all electrodes together (inter-
        burst-event interval, Pasquale et al. 2010).
    network_burst_rate_per_min
        Network bursts per minute (`toptune.features.bursts`).
    network_burst_duration_s
        Mean, from the first spike of the first burst to the last spike of all.
    network_burst_electrodes
        Mean share of active electrodes that take part.
    network_burst_spike_share
        Share of spikes that lie in network bursts' bursts; NaN without spikes.
    network_burst_interval_s
        Mean from one network burst's beginning to the next one's.
    network_burst_interval_cv
        SD over mean of these intervals; NaN with fewer than two.
    spike_time_tiling
        Mean over pairs of active electrodes (Cutts & Eglen 2014); NaN without a pair.
    count_correlation
        Mean over pairs of active electrodes of Pearson's correlation of spike counts in bins.
    """

    firing_rate_hz: float
    active_share: float
    active_rate_hz: float
    rate_cv: float
    isi_cv: float
    isi_cv2: float
    isi_lv: float
    burst_rate_per_min: float
    bursting_share: float
    burst_spike_share: float
    burst_duration_s: float
    burst_spikes: float
    burst_interval_s: float
    burst_interval_cv: float
    logisi_burst_rate_per_min: float
    logisi_bursting_share: float
    logisi_burst_spike_share: float
    logisi_burst_duration_s: float
    logisi_burst_spikes: float
    logisi_burst_interval_s: float
    logisi_threshold_s: float
    event_interval_s: float
    network_burst_rate_per_min: float
    network_burst_duration_s: float
    network_burst_electrodes: float
    network_burst_spike_share: float
    network_burst_interval_s: float
    network_burst_interval_cv: float
    spike_time_tiling: float
    count_correlation: float


NAMES = BurstParameters._fields
DEFAULTS = BurstCriteria()


def recording_parameters(
    trains: SpikeTrains, criteria: BurstCriteria = DEFAULTS
) -> BurstParameters:
    """Measure a whole recording; nothing is counted across a gap.

    Raises
    ------
    InputError
        A spike lies outside the recording or on a channel it does not have.
    """
    return parameters_of(whole_recording(trains), criteria)


class WindowParameters(NamedTuple):
    """Parameters of windows."""

    values: NDArray[np.float64]  # (windows, parameters), columns as `NAMES`
    start_s: NDArray[np.float64]  # (windows,), seconds since the recording's start


def window_parameters(
    trains: SpikeTrains, windows: Windows, criteria: BurstCriteria = DEFAULTS
) -> WindowParameters:
    """Measure every window of a recording by itself, as if there were nothing around it.

    Raises
    ------
    InputError
        A spike lies outside the recording or on a channel it does not have.
    """
    cut = WindowedTrains(trains, windows)
    values = np.array([parameters_of(window, criteria) for window in cut], dtype=np.float64)
    return WindowParameters(values.reshape(len(cut), len(NAMES)), cut.start_s)


def parameters_of(trains: ElectrodeTrains, criteria: BurstCriteria = DEFAULTS) -> BurstParameters:
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


def _share(n_spikes: NDArray[np.int64], trains: ElectrodeTrains) -> float:
    return float(n_spikes.sum()) / len(trains.sample) if len(trains.sample) else math.nan


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of what is not NaN; NaN of nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _cv(values: NDArray[np.float64]) -> float:
    """SD, with n in the denominator, over mean; NaN of fewer than two values or of zeros."""
    if len(values) < 2 or not values.mean() > 0:
        return math.nan
    return float(values.std() / values.mean())
