"""Scaling of burst parameters: fixed, finite, and nothing lost that Falkon divides by."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from burst_data import make_trains, spike_trains
from features.test_burst_parameters import bursting_culture
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.features.burst_features import (
    NAMES,
    SCALES,
    BurstExtractor,
    BurstFeatureParams,
    on_circles,
    recording_parameters,
    scaled,
    window_parameters,
)
from toptune.features.extractor import read_feature_params
from toptune.features.picture_features import PictureFeatureParams
from toptune.heads.rows import l2_normalise
from toptune.params import BurstCriteria, Windows
from toptune.recordings.trains import SpikeTrains

WINDOWS = Windows(width_s=2.0, stride_s=0.5)


def test_every_parameter_has_its_scale_in_the_order_of_the_columns() -> None:
    assert tuple(SCALES) == NAMES
    assert len(NAMES) == 30


@pytest.mark.parametrize("name", NAMES)
def test_a_scale_rises_from_0_at_its_low_end_to_1_at_its_high_end(name: str) -> None:
    scale = SCALES[name]
    bottom = scale.low if scale.kind == "linear" else 0.0
    z = scale.apply(np.array([bottom, scale.high, np.nan]))
    assert z[:2].tolist() == pytest.approx([0, 1])
    assert math.isnan(z[2])
    there = np.geomspace(1e-3, 10, 20) * scale.high
    np.testing.assert_allclose(scale.invert(scale.apply(there)), there)
    assert (np.diff(scale.apply(np.linspace(bottom, 3 * scale.high, 50))) > 0).all()
    if scale.kind == "log":
        # Its definition, at the constant where it turns from linear to logarithmic.
        at_low = math.log(2) / math.log(1 + scale.high / scale.low)
        assert scale.apply(np.array([scale.low]))[0] == pytest.approx(at_low)


values = arrays(
    np.float64, (3, len(NAMES)), elements=st.sampled_from((0.0, 0.001, 0.3, 1.0, 7.0, 1e4, np.nan))
)


@settings(deadline=None, max_examples=60)
@given(values)
def test_windows_become_finite_rows_of_one_length(values: NDArray[np.float64]) -> None:
    rows = on_circles(values)
    assert np.isfinite(rows).all()
    np.testing.assert_allclose((rows**2).sum(axis=1), len(NAMES))
    # Falkon's own normalisation is a factor, the same for every row.
    np.testing.assert_allclose(l2_normalise(rows), rows / math.sqrt(len(NAMES)), rtol=1e-12)
    # Where z is seen, it is seen whole: the angle gives it back.
    z = 2 / np.pi * np.arctan2(rows[:, len(NAMES) :], rows[:, : len(NAMES)])
    known = ~np.isnan(values)
    np.testing.assert_allclose(z[known], scaled(values)[known].clip(0, 1), atol=1e-9)
    assert set(np.round(z[~known], 9).ravel().tolist()) <= {0.0, 0.5, 1.0}


@settings(deadline=None, max_examples=8)
@given(spike_trains())
def test_rows_are_the_parameters_scaled(trains: SpikeTrains) -> None:
    whole = BurstExtractor(BurstFeatureParams()).measure(trains)
    expected = scaled(np.array([recording_parameters(trains)]))
    np.testing.assert_array_equal(whole.features, expected.astype(np.float32))
    assert whole.start_s.tolist() == [0.0]
    found = BurstExtractor(BurstFeatureParams(windows=WINDOWS)).measure(trains)
    expected, _ = window_parameters(trains, WINDOWS)
    np.testing.assert_array_equal(found.features, on_circles(expected).astype(np.float32))
    assert np.isfinite(found.features).all()


def test_what_is_too_short_has_no_row() -> None:
    short = make_trains([[5]], 1_000)
    described = BurstExtractor(BurstFeatureParams(windows=WINDOWS)).measure(short)
    assert described.features.shape == (0, 60)
    empty = make_trains([[]], [])
    assert BurstExtractor(BurstFeatureParams()).measure(empty).features.shape == (0, 30)
    whole = BurstExtractor(BurstFeatureParams()).measure(bursting_culture())
    assert whole.features.shape == (1, 30)


def test_params_are_read_back_or_refused() -> None:
    for windows in (None, WINDOWS):
        params = BurstFeatureParams(windows=windows, criteria=BurstCriteria(start_ms=100.0))
        assert read_feature_params(params.to_json()) == params
    plain = BurstFeatureParams().to_json()
    for damage in ({"version": 2}, {"extra": 1}):
        with pytest.raises(InputError, match="fit again"):
            read_feature_params({**plain, **damage})
    with pytest.raises(InputError, match="BurstCriteria has no parameter 'x'"):
        read_feature_params({**plain, "criteria": {"x": 1}})
    picture: dict[str, Any] = {
        "windows": WINDOWS.to_json(),
        "picture": {"kind": "raster", "count_axis": "window"},
        "backbone": {
            "name": "n", "weights": "random", "sha256": "f", "mean": [0.0], "std": [1.0],
            "input_size": 8,
        },
    }  # fmt: skip
    assert isinstance(read_feature_params(picture), PictureFeatureParams)


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        ({"active_hz": 0}, "active_hz"),
        ({"between_ms": -1}, "between_ms"),
        ({"void": 1.0}, "void"),
        ({"min_spikes": 1}, "min_spikes"),
        ({"start_ms": 400.0}, "end_ms"),
    ],
)
def test_criteria_out_of_range_are_named(bad: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=f"BurstCriteria.{name} must be"):
        BurstCriteria(**bad)
