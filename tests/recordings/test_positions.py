"""Labels say where electrodes lie, or that they do not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toptune.recordings.positions import place_electrodes

MEA60 = [f"{c}{r}" for c in range(1, 9) for r in range(1, 9) if (c in (1, 8)) + (r in (1, 8)) < 2]


@pytest.mark.parametrize("prefix", ["", "El ", "E-00155 "])
def test_mcs_labels_are_column_then_row(prefix: str) -> None:
    labels = [prefix + label for label in reversed(MEA60)]
    assert len(labels) == 60
    placed = place_electrodes(labels)
    assert placed.known
    at = {label[-2:]: (c, r) for label, c, r in zip(labels, placed.column, placed.row, strict=True)}
    assert at["21"] == (1, 0)  # second from the left, at the top
    assert at["12"] == (0, 1)
    assert at["87"] == (7, 6)
    assert not {(0, 0), (7, 0), (0, 7), (7, 7)} & set(at.values())  # no corners


def test_letters_are_columns_and_numbers_rows() -> None:
    placed = place_electrodes(["B03", "A02", "O02", "A03"])
    assert placed.known
    assert placed.column.tolist() == [1, 0, 2, 0]
    assert placed.row.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(
    "labels",
    [
        ["E1", "E2", "E3"],  # one letter: a name, not a column
        ["12", "13", "99"],  # no 8 x 8 array has a row 9
        ["12", "12"],  # two at one place
        ["A12", "B12", "Ref"],
        ["x 12", "x 13", "x 112"],
    ],
)
def test_labels_that_tell_no_place_are_put_in_order(labels: list[str]) -> None:
    placed = place_electrodes(labels)
    assert not placed.known
    assert "order" in placed.how
    assert sorted(zip(placed.row, placed.column, strict=True)) == list(
        zip(placed.row, placed.column, strict=True)
    )


@given(st.lists(st.text(alphabet="AB E123489-", max_size=5), min_size=1, max_size=70, unique=True))
def test_no_two_electrodes_share_a_place(labels: list[str]) -> None:
    placed = place_electrodes(labels)
    places = set(zip(placed.column.tolist(), placed.row.tolist(), strict=True))
    assert len(places) == len(labels)
    assert np.min([placed.column, placed.row]) >= 0
