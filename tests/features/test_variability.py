"""Irregularity of intervals against its formulas and against elephant's numbers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from burst_data import make_trains, per_train, spike_trains
from hypothesis import given, settings
from numpy.typing import NDArray

from toptune.features.variability import interval_variability
from toptune.recordings.trains import SpikeTrains


@settings(deadline=None, max_examples=80)
@given(spike_trains())
def test_variability_follows_its_formulas(trains: SpikeTrains) -> None:
    cut, plain = per_train(trains)
    n = cut.n_electrodes
    found = interval_variability(cut)
    for electrode in range(n):
        intervals, pairs = [], []
        for train in plain[electrode::n]:
            isi = [b - a for a, b in pairwise(train)]
            intervals += isi
            pairs += [(a, b) for a, b in pairwise(isi) if a + b > 0]
        cv = cv2 = lv = np.nan
        if len(intervals) > 1 and sum(intervals) > 0:
            cv = float(np.std(intervals) / np.mean(intervals))
        if pairs:
            cv2 = float(np.mean([2 * abs(a - b) / (a + b) for a, b in pairs]))
            lv = float(np.mean([3 * (a - b) ** 2 / (a + b) ** 2 for a, b in pairs]))
        of_electrode = (found.cv[electrode], found.cv2[electrode], found.lv[electrode])
        assert of_electrode == pytest.approx((cv, cv2, lv), nan_ok=True)


def elephant_trains() -> list[NDArray[np.int64]]:
    """Three bursting trains, 60 s at 10 kHz, that elephant 1.2.1 measured."""
    rng = np.random.default_rng(2024)
    trains = []
    for k in range(3):
        bursts = [
            centre + k * 37 + np.cumsum(rng.integers(30, 400, 12))
            for centre in np.arange(2, 58, 4) * 10_000
        ]
        trains.append(np.unique(np.concatenate([*bursts, rng.integers(0, 600_000, 40)])))
    return trains


def test_elephant_finds_the_same() -> None:
    trains = elephant_trains()
    assert [int(t.sum()) for t in trains] == [57461998, 61609668, 59493412]
    cut, _ = per_train(make_trains([t.tolist() for t in trains], 600_000, 10_000))
    found = interval_variability(cut)
    assert found.cv == pytest.approx([2.3690776801079716, 2.438607973402004, 2.519183234707751])
    assert found.cv2 == pytest.approx([0.886400480551478, 0.9219173766243514, 0.8501351183227407])
    assert found.lv == pytest.approx([0.8656268416681627, 0.9189069270273298, 0.8167991521204818])


def test_a_clock_has_none_and_a_poisson_process_has_one() -> None:
    rng = np.random.default_rng(3)
    poisson = np.cumsum(rng.exponential(200, 20_000)).astype(int)
    clock = np.arange(0, poisson[-1], 777)
    cut, _ = per_train(make_trains([clock.tolist(), poisson.tolist()], int(poisson[-1]) + 1))
    found = interval_variability(cut)
    assert (found.cv[0], found.cv2[0], found.lv[0]) == (0, 0, 0)
    assert (found.cv[1], found.cv2[1], found.lv[1]) == pytest.approx((1, 1, 1), abs=0.03)
