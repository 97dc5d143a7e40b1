"""Tuning of the MLP against a naive double loop of plain PyTorch, and against leaks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.heads.mlp import classifier as mlp_classifier
from toptune.heads.mlp.classifier import MLPClassifier, held_out_scores_of, tune_mlp
from toptune.heads.mlp.head import MLP_CANDIDATES
from toptune.heads.mlp.training import Draws
from toptune.heads.nested import NestedScores, selection_loss
from toptune.heads.rows import LabelledRows, group_rows

SEED, HIDDEN, BATCH, EPOCHS, RATE = 3, 6, 16, 4, 0.01
HEAD = MLPClassifier(
    n_hidden=HIDDEN,
    batch_size=BATCH,
    epochs=EPOCHS,
    learning_rate=RATE,
    normalise=False,
    random_state=SEED,
)
CANDIDATES: tuple[Mapping[str, float], ...] = (
    {"learning_rate_decay": 0.1, "weight_decay": 0.0},
    {"learning_rate_decay": 1.0, "weight_decay": 0.3},
    {"learning_rate": 0.05},
)


pytestmark = pytest.mark.usefixtures("one_torch_thread")


class Data(NamedTuple):
    X: NDArray[np.float32]
    y: NDArray[np.str_]
    group: NDArray[np.str_]

    def unit(self) -> NDArray[np.int64]:
        return np.unique(self.group, return_inverse=True)[1].astype(np.int64)

    def tune(self, head: MLPClassifier = HEAD, **options: Any) -> NestedScores:
        candidates = options.pop("candidates", CANDIDATES)
        grouping = group_rows(self.group)
        return tune_mlp(
            head, LabelledRows(self.X, self.y, grouping, self.unit()), candidates, **options
        )


def noisy_devices(n_devices: int = 5, n_features: int = 7, seed: int = 0) -> Data:
    """Devices of unequal length, shuffled, of two classes that are not easily told apart."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(8, 15, n_devices)
    code = np.repeat(np.arange(n_devices), sizes)
    class_centres = rng.standard_normal((2, n_features))
    device_centres = rng.standard_normal((n_devices, n_features))
    X = class_centres[code % 2] + device_centres[code]
    X += rng.standard_normal((len(code), n_features))
    order = rng.permutation(len(code))
    names = np.array([f"d{device}" for device in range(n_devices)])
    labels = np.array(["even", "odd"])
    return Data(X[order].astype(np.float32), labels[code[order] % 2], names[code[order]])


def refit_scores(
    data: Data, train: NDArray[np.bool_], seed: tuple[int, ...], candidate: Mapping[str, float]
) -> NDArray[np.float64]:
    """Logits of all rows by one network, trained as PyTorch's tutorials do."""
    X = torch.from_numpy(data.X)
    y = torch.from_numpy((data.y == "odd").astype(np.int64))
    draws = Draws(seed)
    hidden, output = torch.nn.Linear(X.shape[1], HIDDEN), torch.nn.Linear(HIDDEN, 2)
    parameters = (hidden.weight, hidden.bias, output.weight, output.bias)
    with torch.no_grad():
        for parameter, value in zip(parameters, draws.network(X.shape[1], HIDDEN, 2), strict=True):
            parameter.copy_(value.reshape(parameter.shape))
    net = torch.nn.Sequential(hidden, torch.nn.ReLU(), output)
    adam = torch.optim.Adam(
        net.parameters(),
        lr=candidate.get("learning_rate", RATE),
        weight_decay=candidate.get("weight_decay", 0.0),
    )
    decay = torch.optim.lr_scheduler.ExponentialLR(adam, candidate.get("learning_rate_decay", 0.95))
    rows = torch.from_numpy(np.flatnonzero(train))
    for _ in range(EPOCHS):
        for batch in torch.split(rows[draws.order(len(rows))], BATCH):
            adam.zero_grad()
            torch.autograd.backward(torch.nn.functional.cross_entropy(net(X[batch]), y[batch]))
            adam.step()
        decay.step()
    with torch.no_grad():
        scores: NDArray[np.float64] = net(X).double().numpy()
    return scores


def loss_of(scores: NDArray[np.float64], data: Data) -> float:
    return selection_loss(scores, (data.y == "odd").astype(np.int64), data.unit())


def test_tuning_is_a_double_loop_of_refits() -> None:
    data = noisy_devices(seed=10)
    tuned = data.tune()
    names = np.unique(data.group)
    outer = np.empty((len(CANDIDATES), len(data.y), 2))
    for p, candidate in enumerate(CANDIDATES):
        for g, name in enumerate(names):
            inner = np.full((len(data.y), 2), np.nan)
            for h, other in enumerate(names):
                if h == g:
                    continue
                train = (data.group != name) & (data.group != other)
                seed = (SEED, 1 + min(g, h), 1 + max(g, h))
                held_out = data.group == other
                inner[held_out] = refit_scores(data, train, seed, candidate)[held_out]
            training = data.group != name
            assert tuned.loss[p, g] == pytest.approx(loss_of(inner, data), abs=1e-4)
            if tuned.choice[g] == p:
                np.testing.assert_allclose(tuned.inner_scores[g], inner, atol=1e-4)
            fitted = refit_scores(data, training, (SEED, 1 + g), candidate)
            outer[p, ~training] = fitted[~training]
        assert tuned.final_loss[p] == pytest.approx(loss_of(outer[p], data), abs=1e-4)
    np.testing.assert_array_equal(tuned.choice, tuned.loss.argmin(axis=0))
    # Otherwise it would not be seen which candidate scored which fold.
    assert len(set(tuned.choice.tolist())) > 1
    for g, name in enumerate(names):
        rows = data.group == name
        np.testing.assert_allclose(tuned.scores[rows], outer[tuned.choice[g], rows], atol=1e-4)
    assert tuned.final_choice == tuned.final_loss.argmin()
    np.testing.assert_allclose(tuned.final_scores, outer[tuned.final_choice], atol=1e-4)
    assert not tuned.jitter.any()


def test_outer_networks_are_those_of_the_head_with_the_chosen_parameters() -> None:
    data = noisy_devices(seed=1)
    head = MLPClassifier(n_hidden=HIDDEN, batch_size=BATCH, epochs=EPOCHS, random_state=7)
    # The third is normalised otherwise, the fourth draws other weights.
    candidates = (*CANDIDATES[:2], {"normalise": False}, {"n_hidden": 9, "epochs": 2})
    tuned = data.tune(head, candidates=candidates)
    grouping = group_rows(data.group)
    plain = [
        MLPClassifier(**{**head.get_params(), **candidate}).held_out_scores(
            data.X, data.y, grouping
        )
        for candidate in candidates
    ]
    for g, choice in enumerate(tuned.choice):
        rows = grouping.rows(g)
        np.testing.assert_array_equal(tuned.scores[rows], plain[choice][rows])
    np.testing.assert_array_equal(tuned.final_scores, plain[tuned.final_choice])


def test_tuning_does_not_depend_on_threads_or_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    data = noisy_devices()
    seen: list[tuple[int, int]] = []
    first = data.tune(progress=lambda *done: seen.append(done))
    assert seen == [(done, 45) for done in range(3, 48, 3)]
    torch.set_num_threads(3)
    # Four folds of all rows a block.
    monkeypatch.setattr(mlp_classifier, "_LISTED_ROWS", 4 * len(data.y))
    seen.clear()
    other = data.tune(progress=lambda *done: seen.append(done))
    torch.set_num_threads(1)
    assert seen == [(done, 45) for done in range(3, 48, 3)]
    for name in ("loss", "final_loss", "choice", "scores", "inner_scores", "final_scores"):
        np.testing.assert_array_equal(getattr(first, name), getattr(other, name))


def test_the_outer_group_never_reaches_its_own_choice_or_inner_scores() -> None:
    data = noisy_devices(n_devices=6)
    tuned = data.tune()
    rng = np.random.default_rng(5)
    for g, name in enumerate(np.unique(data.group)[:3]):
        rows = data.group == name
        X, y = data.X.copy(), data.y.copy()
        X[rows] = 100 * rng.standard_normal((rows.sum(), X.shape[1]))
        y[rows] = np.where(y[rows] == "odd", "even", "odd")
        other = Data(X, y, data.group).tune()
        assert other.choice[g] == tuned.choice[g]
        np.testing.assert_array_equal(other.loss[:, g], tuned.loss[:, g])
        np.testing.assert_array_equal(other.inner_scores[g], tuned.inner_scores[g])
        # The change is real: other folds learn from these rows.
        assert not np.array_equal(other.loss, tuned.loss)
        assert np.isnan(tuned.inner_scores[g, rows]).all()
        assert np.isfinite(tuned.inner_scores[g, ~rows]).all()


def test_features_that_only_identify_the_device_score_at_chance() -> None:
    rng = np.random.default_rng(0)
    n_devices, n_windows = 20, 6
    device = np.repeat(np.arange(n_devices), n_windows)
    X = rng.standard_normal((n_devices, 60))[device] + 0.05 * rng.standard_normal(
        (n_devices * n_windows, 60)
    )
    accuracies = []
    for _ in range(4):
        label = rng.permutation(np.arange(n_devices) % 2)
        data = Data(
            X.astype(np.float32), np.array(["even", "odd"])[label[device]], device.astype(str)
        )
        head = MLPClassifier(n_hidden=16, epochs=6, learning_rate=0.01)
        inside = head.fit(data.X, data.y).predict(data.X)
        assert (inside == data.y).all()
        tuned = data.tune(head, candidates=CANDIDATES[:2])
        said_odd = tuned.scores[:, 1] > tuned.scores[:, 0]
        accuracies.append(float((said_odd == (data.y == "odd")).mean()))
    # 80 devices: 3 standard deviations are 0.17.
    assert 0.33 < np.mean(accuracies) < 0.6


def test_a_class_that_leaves_with_two_groups_is_trained_without() -> None:
    data = noisy_devices(n_devices=5)
    names = np.unique(data.group)
    y = np.where(np.isin(data.group, names[:2]), "rare", data.y)
    tuned = Data(data.X, y, data.group).tune()
    assert tuned.scores.shape == (len(y), 3)
    rows = data.group == names[1]
    inner = tuned.inner_scores[0]
    assert np.isfinite(inner[rows]).all()
    assert (inner[rows].argmax(axis=1) != 2).all()


def test_scores_of_many_labellings_are_those_of_each() -> None:
    data = noisy_devices()
    grouping = group_rows(data.group)
    rng = np.random.default_rng(0)
    of_device = np.array([data.y[data.group == name][0] for name in grouping.groups])
    # More than are trained side by side.
    labellings = np.stack(
        [data.y, *(rng.permutation(of_device)[grouping.codes] for _ in range(9))], axis=1
    )
    head = MLPClassifier(n_hidden=HIDDEN, batch_size=BATCH, epochs=2, weight_decay=0.01)
    scores = list(held_out_scores_of(head, data.X, labellings, grouping))
    assert len(scores) == 10
    for labels, each in zip(labellings.T, scores, strict=True):
        np.testing.assert_array_equal(each, head.held_out_scores(data.X, labels, grouping))
    assert not np.array_equal(scores[0], scores[1])


def test_what_cannot_be_tuned_is_refused() -> None:
    data = noisy_devices(n_devices=3)
    with pytest.raises(InputError, match="'weight' of the classifier mlp cannot be tuned"):
        data.tune(candidates=[{"weight": 1}])
    with pytest.raises(InputError, match="'random_state' of the classifier mlp cannot be tuned"):
        data.tune(candidates=[{"random_state": 1}])
    with pytest.raises(InputError, match="at least one candidate"):
        data.tune(candidates=[])
    with pytest.raises(InputError, match="weight_decay must be 0 or above, got -1"):
        data.tune(candidates=[{}, {"weight_decay": -1}])
    two = noisy_devices(n_devices=2)
    with pytest.raises(InputError, match="needs three groups, got 2"):
        two.tune()


def test_default_candidates_are_ones_the_head_takes() -> None:
    data = noisy_devices(n_devices=3)
    tuned = data.tune(MLPClassifier(n_hidden=4, epochs=1), candidates=MLP_CANDIDATES)
    assert tuned.loss.shape == (len(MLP_CANDIDATES), 3)
