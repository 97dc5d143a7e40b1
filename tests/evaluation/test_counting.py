"""The words for what was scored."""

from __future__ import annotations

import pytest

from toptune.evaluation.counting import Counts


def test_verdicts_and_devices_are_told_apart_where_they_differ() -> None:
    plain = Counts.of({"n_devices": 30, "n_verdicts": 30, "device_accuracy": 26 / 30})
    assert (plain.right, plain.scored, plain.method) == (
        "26 of 30",
        "30 devices",
        "Wilson interval",
    )
    pairs = Counts.of({"n_devices": 4, "n_verdicts": 8, "device_accuracy": 7 / 8})
    assert (pairs.right, pairs.scored) == (
        "7 of 8 verdicts on 4 devices",
        "8 verdicts on 4 devices",
    )
    assert "devices as units" in pairs.method


@pytest.mark.parametrize("n_right", range(31))
def test_scores_of_an_earlier_toptune_count_verdicts_as_devices(n_right: int) -> None:
    counts = Counts.of({"n_devices": 30, "device_accuracy": n_right / 30})
    assert counts == (n_right, 30, 30)
    assert not counts.in_pairs
