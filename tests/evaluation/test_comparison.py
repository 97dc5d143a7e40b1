"""Simple classifiers beside a run: against the same five lines fold by fold, and devices alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.svm import SVC

from toptune.evaluation.comparison import compare
from toptune.features.burst_features import BurstFeatureParams
from toptune.features.table import FeatureTable, RecordingInfo, View

N_COLUMNS = 30


def table_of(X: Any, devices: list[str], labels: list[str]) -> FeatureTable:
    params = BurstFeatureParams()
    recordings = tuple(
        RecordingInfo(f"r{i}", device, label, {})
        for i, (device, label) in enumerate(zip(devices, labels, strict=True))
    )
    return FeatureTable(
        X.astype(np.float32),
        np.zeros(len(X)),
        np.arange(len(X)),
        recordings,
        {},
        (View(params.description, "key", X.shape[1], params.to_json()),),
    )


def study(seed: int, n_devices: int = 18, shift: float = 1.5) -> FeatureTable:
    """Devices of three classes, one with three recordings, values missing and a constant column."""
    rng = np.random.default_rng(seed)
    labels = [f"c{i % 3}" for i in range(n_devices)] + ["c0", "c0"]
    devices = [f"d{i}" for i in range(n_devices)] + ["d0", "d0"]
    X = rng.standard_normal((len(labels), N_COLUMNS))
    X[:, :4] += shift * np.array([int(label[1]) for label in labels])[:, None]
    X[rng.random(X.shape) < 0.1] = np.nan
    X[:, 7] = 3
    X[:, 8] = np.nan
    return table_of(X, devices, labels)


def by_hand(table: FeatureTable) -> float:
    """Balanced accuracy of the five lines, all that is learnt learnt without the device."""
    X = table.features.astype(float)
    device = np.array([one.device for one in table.recordings])
    label = np.array([one.label for one in table.recordings])
    votes: dict[tuple[str, str], list[str]] = {}
    for left_out in np.unique(device):
        train = device != left_out
        with np.errstate(all="ignore"):
            known = ~np.isnan(X[train]).all(axis=0)
            median = np.where(known, np.nanmedian(np.where(known, X[train], 0), axis=0), 0)
        filled = np.where(np.isnan(X), median, X)
        spread = filled[train].std(axis=0)
        Z = (filled - filled[train].mean(axis=0)) / np.where(spread > 1e-12, spread, 1)
        machine = SVC(kernel="rbf", C=10, class_weight="balanced").fit(Z[train], label[train])
        for row in np.flatnonzero(~train):
            votes.setdefault((left_out, label[row]), []).append(machine.predict(Z[[row]])[0])
    right: dict[str, list[bool]] = {}
    for (_, true), named in votes.items():
        right.setdefault(true, []).append(max(sorted(set(named)), key=named.count) == true)
    return float(np.mean([np.mean(each) for each in right.values()]))


@pytest.mark.parametrize("seed", range(3))
def test_the_support_vector_machine_is_the_five_lines_inside_each_fold(seed: int) -> None:
    table = study(seed)
    svm, logistic = compare(table, "device", {})
    assert (svm.name, logistic.name) == ("svm", "parameters")
    assert svm.balanced_accuracy == pytest.approx(by_hand(table))
    assert svm.n_verdicts == logistic.n_verdicts == 18
    assert svm.device_accuracy == pytest.approx(svm.n_right / 18)
    assert logistic.balanced_accuracy > 0.4


def test_numbers_that_only_name_the_device_score_at_chance() -> None:
    n_right = n = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        devices = [f"d{i}" for i in range(15)]
        X = np.pad(np.eye(15), ((0, 0), (0, 15))) + 0.01 * rng.standard_normal((15, 30))
        labels = rng.permutation([f"c{i % 3}" for i in range(15)]).tolist()
        for one in compare(table_of(X, devices, labels), "device", {}):
            n_right, n = n_right + one.n_right, n + one.n_verdicts
    # Chance is a third; without its device a class is rarer, which must not help.
    assert n_right / n < 1 / 3 + 3 * np.sqrt(2 / 9 / n)


def test_a_head_is_not_scored_beside_itself_and_two_groups_are_enough() -> None:
    assert [one.name for one in compare(study(0), "device", {}, except_for="parameters")] == ["svm"]
    rng = np.random.default_rng(0)
    recordings = [("d0", "a"), ("d0", "b"), ("d1", "a"), ("d1", "b")]
    table = table_of(rng.standard_normal((4, 30)), *map(list, zip(*recordings, strict=True)))
    assert [one.n_verdicts for one in compare(table, "device", {})] == [4, 4]


def test_what_cannot_be_scored_is_left_out() -> None:
    alone = table_of(np.zeros((3, 30)), ["d0", "d1", "d2"], ["a", "a", "b"])
    assert compare(alone, "device", {}) == []
    merged = compare(study(1), "device", {"c12": ("c1", "c2")})
    assert len(merged) == 2
