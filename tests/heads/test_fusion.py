"""What fusing costs and gains: a view of noise, and views that each know a part."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.evaluation.evaluate import Units, evaluate
from toptune.heads.catalogue import head_of
from toptune.heads.rows import l2_normalise

N_DEVICES, N_WINDOWS, N_COLUMNS = 24, 5, 16


class Study(NamedTuple):
    """Windows of devices of three classes, seen in several views."""

    views: list[NDArray[np.float32]]
    label: NDArray[Any]
    device: NDArray[Any]


def study(seed: int, n_views: int = 2) -> Study:
    """Devices differ more than their windows; each view separates the classes a little."""
    rng = np.random.default_rng(seed)
    kind = np.arange(N_DEVICES) % 3
    row = np.repeat(np.arange(N_DEVICES), N_WINDOWS)
    views = []
    for _ in range(n_views):
        centre = rng.standard_normal((3, N_COLUMNS))
        of_device = rng.standard_normal((N_DEVICES, N_COLUMNS))
        windows = rng.standard_normal((len(row), N_COLUMNS))
        X = np.abs(5 + 0.55 * centre[kind[row]] + of_device[row] + 0.7 * windows)
        views.append(l2_normalise(X).astype(np.float32))
    device = np.array([f"d{i:02}" for i in range(N_DEVICES)])[row]
    return Study(views, np.array([f"c{k}" for k in kind])[row], device)


def accuracy(views: list[NDArray[np.float32]], data: Study, name: str = "falkon") -> float:
    """Share of left-out devices that a head with its defaults names right, tuning included."""
    head, sizes = head_of(name), tuple(view.shape[1] for view in views)
    X = np.concatenate(views, axis=1)
    params, _ = head.prepare({}, n_rows=len(X), view_sizes=sizes, device="cpu")
    found = evaluate(
        head,
        head.make(params),
        X,
        data.label,
        data.device,
        Units.of(data.device, data.label),
        head.candidates(params, {}, len(sizes), tune=True),
    )
    right = [
        found.folds.probabilities[data.device == one].mean(axis=0).argmax()
        == np.flatnonzero(found.folds.classes == data.label[data.device == one][0])[0]
        for one in np.unique(data.device)
    ]
    return float(np.mean(right))


def test_a_view_of_pure_noise_costs_at_most_a_fiftieth_in_the_mean() -> None:
    alone, beside = [], []
    for seed in range(16):
        data = study(seed)
        rng = np.random.default_rng([seed, 1])
        noise = l2_normalise(np.abs(5 + rng.standard_normal(data.views[0].shape)))
        alone.append(accuracy(data.views, data))
        beside.append(accuracy([*data.views, noise.astype(np.float32)], data))
    # The task is one in which there is something to lose.
    assert 0.5 < np.mean(alone) < 0.95
    assert np.mean(beside) >= np.mean(alone) - 0.02


def test_views_that_each_know_a_part_do_better_together() -> None:
    together, single = [], []
    for seed in range(6):
        data = study(seed, n_views=3)
        together.append(accuracy(data.views, data))
        single.append(max(accuracy([view], data) for view in data.views))
    # On average no worse than the best of the parts, chosen by whoever knows the truth.
    assert np.mean(together) >= np.mean(single)
