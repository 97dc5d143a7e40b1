"""Network bursts against their definition written out, and on bursts made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from burst_data import (
    RATE_HZ,
    Train,
    make_trains,
    naive_log_isi,
    naive_network_bursts,
    per_train,
    spike_trains,
)
from hypothesis import given, settings

from toptune.features.bursts import log_isi_bursts
from toptune.features.network_bursts import NetworkBursts, network_bursts
from toptune.params import BurstCriteria
from toptune.recordings.trains import SpikeTrains

C = BurstCriteria()


def found_in(trains: SpikeTrains, criteria: BurstCriteria = C) -> NetworkBursts:
    """With bursts by the cut-off of 100 ms on every electrode."""
    cut, _ = per_train(trains)
    bursts = log_isi_bursts(cut, criteria, np.full(cut.n_electrodes, criteria.cutoff_ms))
    return network_bursts(cut, bursts, criteria)


@settings(deadline=None, max_examples=100)
@given(spike_trains(max_electrodes=5))
def test_burst_events_are_grouped_by_their_own_threshold(trains: SpikeTrains) -> None:
    cut, plain = per_train(trains)
    bursts = [naive_log_isi(train, C.cutoff_ms, C, RATE_HZ) for train in plain]
    expected, intervals = naive_network_bursts(plain, bursts, cut.n_electrodes, C, RATE_HZ)
    found = found_in(trains)
    listed = zip(*(part.tolist() for part in found[:5]), strict=True)
    assert list(listed) == [
        (one.stretch, one.start, one.end, len(one.electrodes), one.n_spikes) for one in expected
    ]
    assert sorted(found.event_interval.tolist()) == sorted(intervals)


def burst(at: int, n: int = 5, step: int = 10) -> Train:
    return list(range(at, at + n * step, step))


def test_a_network_burst_made_by_hand() -> None:
    trains = make_trains(
        [burst(1000) + burst(9000), burst(1020, n=8), burst(1500) + burst(9050), [7]], 20_000
    )
    found = found_in(trains)
    # The third electrode's first burst begins 480 ms late: it is alone.
    assert found.start.tolist() == [1000, 9000]
    assert found.end.tolist() == [1090, 9090]
    assert found.n_electrodes.tolist() == [2, 2]
    assert found.n_spikes.tolist() == [13, 10]
    assert found.event_interval.tolist() == [20, 480, 7500, 50]


@pytest.mark.parametrize(("n_bursting", "n_found"), [(1, 0), (2, 0), (3, 1)])
def test_a_share_of_the_electrodes_is_needed(n_bursting: int, n_found: int) -> None:
    electrodes = [burst(500 + k) for k in range(n_bursting)]
    electrodes += [[9]] * (12 - n_bursting)
    # A fifth of 12 electrodes are 2.4.
    assert len(found_in(make_trains(electrodes, 2_000)).start) == n_found


def test_without_bursts_there_are_none() -> None:
    found = found_in(make_trains([[], [5]], 1_000))
    assert all(not len(part) for part in found)


def test_no_network_burst_crosses_a_gap() -> None:
    electrodes = [burst(900), burst(1000)]
    assert len(found_in(make_trains(electrodes, 3_000)).start) == 1
    assert len(found_in(make_trains(electrodes, [1_000, 2_000])).start) == 0
