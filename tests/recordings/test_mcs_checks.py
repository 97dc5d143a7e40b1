"""Checks of MCS files that are met without a file; those with one are in the catalogue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from toptune.errors import InputError
from toptune.recordings.mcs_checks import check_gains, stretches

PATH = Path("a.h5")


def test_gains_of_any_sane_size_are_let_through() -> None:
    check_gains(PATH, ("A", "B"), np.array([1e-9, 1e6]), np.array([0.0, -32768.0]))


@pytest.mark.parametrize(
    ("gain", "zero"),
    [(0.0, 0.0), (-1.0, 0.0), (np.nan, 0.0), (np.inf, 0.0), (1.0, np.nan), (1.0, np.inf)],
)
def test_a_gain_that_gives_no_voltage_names_its_electrode(gain: float, zero: float) -> None:
    with pytest.raises(InputError, match=r"a\.h5: electrode B has a step"):
        check_gains(PATH, ("A", "B"), np.array([1.0, gain]), np.array([0.0, zero]))


def test_stretches_are_first_index_length_and_time() -> None:
    table = np.array([[100, 0, 9], [900, 10, 29]], np.int64)
    assert stretches(PATH, "Recording_0", table, 30) == ((0, 10, 100), (10, 20, 900))
