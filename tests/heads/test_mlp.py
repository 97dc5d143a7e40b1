"""The MLP head against a plain PyTorch loop per fold, and against scikit-learn's own checks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.exceptions import SkipTestWarning
from sklearn.utils.estimator_checks import check_estimator
from torch import Tensor

from toptune.errors import InputError
from toptune.heads import head_of
from toptune.heads.mlp import training as mlp_training
from toptune.heads.mlp.classifier import MLPClassifier
from toptune.heads.mlp.training import (
    Draws,
    Network,
    Rows,
    Schedule,
    StackLearner,
    TrainingFold,
    Variant,
    train_folds,
)
from toptune.heads.rows import group_rows

SCHEDULE = Schedule(
    n_hidden=16, learning_rate=0.005, learning_rate_decay=0.8, batch_size=20, epochs=6
)
# More than are trained side by side; the last two draw other weights and other batches.
SCHEDULES = (
    SCHEDULE,
    replace(SCHEDULE, weight_decay=0.1),
    replace(SCHEDULE, learning_rate_decay=1.0, weight_decay=0.01),
    replace(SCHEDULE, learning_rate=0.02),
    replace(SCHEDULE, learning_rate_decay=0.5),
    replace(SCHEDULE, n_hidden=5, epochs=2),
    replace(SCHEDULE, batch_size=33),
)


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def test_mlp_passes_the_estimator_checks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        results = check_estimator(MLPClassifier())
    assert sum(result["status"] == "passed" for result in results) > 40


def plain_loop(X: Tensor, y: Tensor, fold: TrainingFold, schedule: Schedule) -> Network:
    """Train one network the way PyTorch's tutorials do."""
    rows, draws = fold.rows, Draws(fold.seed)
    start = draws.network(X.shape[1], schedule.n_hidden, int(y.max()) + 1)
    hidden = torch.nn.Linear(X.shape[1], schedule.n_hidden)
    output = torch.nn.Linear(schedule.n_hidden, int(y.max()) + 1)
    with torch.no_grad():
        for parameter, value in zip(
            (hidden.weight, hidden.bias, output.weight, output.bias), start, strict=True
        ):
            parameter.copy_(value.reshape(parameter.shape))
    net = torch.nn.Sequential(hidden, torch.nn.ReLU(), output)
    adam = torch.optim.Adam(
        net.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
    )
    decay = torch.optim.lr_scheduler.ExponentialLR(adam, schedule.learning_rate_decay)
    for _ in range(schedule.epochs):
        order = rows[draws.order(len(rows))]
        for batch in torch.split(order, schedule.batch_size):
            adam.zero_grad()
            torch.autograd.backward(torch.nn.functional.cross_entropy(net(X[batch]), y[batch]))
            adam.step()
        decay.step()
    parts = (hidden.weight, hidden.bias[None], output.weight, output.bias[None])
    return Network(*(part.detach()[None] for part in parts))


def global_state() -> NDArray[np.uint32]:
    state = np.random.get_state(legacy=False)  # noqa: NPY002  # the global state is what is tested
    return np.array(state["state"]["key"])


def data(n: int, d: int = 12, k: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(k, (n,), generator=generator)
    y[:k] = torch.arange(k)
    X = torch.randn(k, d, generator=generator)[y] + torch.randn(n, d, generator=generator)
    return X, y


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "sizes",
    [
        # Nine equal folds: more than are trained together.
        (100,) * 9,
        # As many batches, shorter last ones, down to a single row.
        (100, 99, 81, 90),
        # Other numbers of batches, out of order, one shorter than a batch.
        (61, 100, 7, 60, 100, 1),
    ],
)
def test_folds_trained_together_are_folds_trained_one_by_one(sizes: Sequence[int]) -> None:
    X, y = data(130)
    folds = unequal_folds(sizes)
    variants = [Variant(SCHEDULE)]
    for (fold, _), network in train_all(one_label_set(X, y), folds, variants).items():
        assert_trained_alike(network, plain_loop(X, y, folds[fold], SCHEDULE), f"{fold}")


def unequal_folds(sizes: Sequence[int]) -> list[TrainingFold]:
    """Folds of so many of 130 rows."""
    shuffled = [torch.randperm(130, generator=torch.Generator().manual_seed(i)) for i in range(9)]
    return [
        TrainingFold(order[:size], (5, fold))
        for fold, (order, size) in enumerate(zip(shuffled, sizes, strict=False))
    ]


def one_label_set(X: Tensor, y: Tensor) -> Rows:
    return Rows(X, torch.nn.functional.one_hot(y).float()[None])


def train_all(
    rows: Rows, folds: Sequence[TrainingFold], variants: Sequence[Variant]
) -> dict[tuple[int, int], Network]:
    """Networks by the numbers of their fold and variant."""
    trained: dict[tuple[int, int], Network] = {}

    def keep(fold: int, variant: int, network: Network) -> None:
        assert (fold, variant) not in trained
        trained[fold, variant] = network

    train_folds(rows, folds, variants, keep)
    assert len(trained) == len(folds) * len(variants)
    return trained


def assert_trained_alike(network: Network, expected: Network, what: str) -> None:
    for name, part, other in zip(Network._fields, network, expected, strict=True):
        torch.testing.assert_close(part, other, atol=1e-4, rtol=0, msg=f"{what} {name}")


@pytest.fixture(params=["cpu", "gpu"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train as the CPU does, and, on the CPU, as a GPU does: several folds in batched products."""
    if request.param == "gpu":
        monkeypatch.setattr(mlp_training, "CpuLearner", StackLearner)
        monkeypatch.setattr(mlp_training, "_folds_together", lambda _rows, _variants: 4)


@pytest.mark.usefixtures("way")
def test_every_fold_follows_every_schedule_and_label_set() -> None:
    X, y = data(130)
    labellings = torch.stack([y, y.flip(0), (y + 1) % 3])
    shared = Rows(X, torch.nn.functional.one_hot(labellings).float())
    folds = unequal_folds((61, 100, 99, 81, 90, 7, 60, 100, 1))
    variants = [Variant(schedule, labels) for labels in (2, 0) for schedule in SCHEDULES]
    for (fold, number), network in train_all(shared, folds, variants).items():
        schedule, labels = variants[number]
        expected = plain_loop(X, labellings[labels], folds[fold], schedule)
        assert_trained_alike(network, expected, f"{fold} {schedule} {labels}")


def test_a_network_is_the_same_bit_for_bit_in_any_company() -> None:
    X, y = data(130)
    shared = one_label_set(X, y)
    folds = unequal_folds((100, 100, 90, 61, 99))
    together = train_all(shared, folds, [Variant(schedule) for schedule in SCHEDULES])
    for fold, variant in [(0, 0), (1, 3), (2, 1), (3, 6), (4, 5)]:
        alone = train_all(shared, [folds[fold]], [Variant(SCHEDULES[variant])])[0, 0]
        pairs = zip(together[fold, variant], alone, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_progress_counts_networks_and_an_interruption_ends_the_training() -> None:
    X, y = data(60)
    folds = [TrainingFold(torch.arange(50), (0, fold)) for fold in range(6)]
    variants = [Variant(schedule) for schedule in SCHEDULES[:3]]
    seen: list[tuple[int, int]] = []
    n_used = []

    def use(fold: int, variant: int, _network: Network) -> None:
        n_used.append((fold, variant))

    train_folds(one_label_set(X, y), folds, variants, use, progress=lambda *done: seen.append(done))
    assert seen == [(done, 18) for done in range(3, 19, 3)]

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    n_used.clear()
    many = [TrainingFold(torch.arange(50), (0, fold)) for fold in range(200)]
    with pytest.raises(KeyboardInterrupt):
        train_folds(one_label_set(X, y), many, variants, use, progress=interrupt)
    assert len(n_used) < 300
    assert torch.get_num_threads() == 1


def test_folds_differ_in_weights_and_order_but_not_by_their_company() -> None:
    a, b = Draws([1, 0]), Draws([1, 1])
    assert not torch.equal(a.network(3, 4, 2).hidden_weight, b.network(3, 4, 2).hidden_weight)
    assert not torch.equal(a.order(50), b.order(50))
    first = a.order(50)
    assert not torch.equal(first, a.order(50))
    assert torch.equal(first.sort().values, torch.arange(50))


def test_initial_weights_are_those_of_linear_layers() -> None:
    network = Draws([3]).network(400, 64, 5)
    for part, n_inputs in zip(network, (400, 400, 64, 64), strict=True):
        bound = n_inputs**-0.5
        assert part.abs().max() <= bound
        assert part.abs().max() > 0.7 * bound
    assert abs(float(network.hidden_weight.mean())) < 0.01 * 400**-0.5


def test_held_out_scores_are_of_networks_trained_without_the_group() -> None:
    X, y = data(60)
    groups = np.repeat(["x", "y", "z"], [10, 30, 20])
    head = MLPClassifier(epochs=3, n_hidden=8, normalise=False, random_state=4)
    scores = head.held_out_scores(X.numpy(), y.numpy(), group_rows(groups))
    for fold, group in enumerate("xyz"):
        rows = torch.from_numpy(np.flatnonzero(groups != group))
        schedule = Schedule(
            n_hidden=8, learning_rate=0.0005, learning_rate_decay=0.95, batch_size=75, epochs=3
        )
        alone = plain_loop(X, y, TrainingFold(rows, (4, 1 + fold)), schedule)
        held_out = groups == group
        expected = alone.logits(X[torch.from_numpy(held_out)])
        np.testing.assert_allclose(scores[held_out], expected, atol=1e-4)


def test_seed_decides_everything_and_global_generators_stay() -> None:
    X, y = (part.numpy() for part in data(80))
    torch_state = torch.get_rng_state()
    numpy_state = global_state()
    first, again, other = (
        MLPClassifier(random_state=s, epochs=2).fit(X, y).predict_proba(X) for s in (7, 7, 8)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(global_state(), numpy_state)


def test_number_of_threads_changes_nothing_and_is_left_as_it_was() -> None:
    X, y = data(90)
    folds = [
        TrainingFold(torch.arange(90)[torch.arange(90) % 5 != fold], (0, fold)) for fold in range(5)
    ]
    trained = []
    for n_threads in (1, 2, 3):
        torch.set_num_threads(n_threads)
        trained.append(train_all(one_label_set(X, y), folds, [Variant(SCHEDULE)]))
        assert torch.get_num_threads() == n_threads
    torch.set_num_threads(1)
    for other in trained[1:]:
        for key, network in trained[0].items():
            assert all(torch.equal(a, b) for a, b in zip(network, other[key], strict=True))


def test_each_view_is_scaled_by_itself() -> None:
    X, y = (part.numpy() for part in data(80, d=12))
    views = X.copy()
    views[:, 5:] *= 1000
    head = MLPClassifier(epochs=3, n_hidden=8, view_sizes=(5, 7)).fit(views, y)
    by_hand = np.hstack(
        [
            part / np.linalg.norm(part, axis=1, keepdims=True) * part.shape[1] ** 0.5
            for part in (X[:, :5], X[:, 5:])
        ]
    )
    plain = MLPClassifier(epochs=3, n_hidden=8, normalise=False).fit(by_hand, y)
    np.testing.assert_allclose(head.predict_proba(views), plain.predict_proba(by_hand), atol=1e-5)
    one_view = MLPClassifier(epochs=3, n_hidden=8).fit(views, y)
    assert not np.allclose(head.predict_proba(views), one_view.predict_proba(views), atol=1e-2)
    whole = MLPClassifier(epochs=3, n_hidden=8, view_sizes=(12,)).fit(views, y)
    np.testing.assert_array_equal(whole.predict_proba(views), one_view.predict_proba(views))


def test_weight_decay_shrinks_the_weights() -> None:
    X, y = (part.numpy() for part in data(80))
    free, held = (
        MLPClassifier(epochs=20, learning_rate=0.01, weight_decay=decay).fit(X, y).network_
        for decay in (0.0, 0.1)
    )
    assert held.hidden_weight.norm() < 0.5 * free.hidden_weight.norm()


def test_scale_of_the_features_does_not_matter_when_rows_are_normalised() -> None:
    X, y = (part.numpy() for part in data(80))
    small = MLPClassifier(epochs=3).fit(X, y).predict_proba(X)
    large = MLPClassifier(epochs=3).fit(1024 * X, y).predict_proba(1024 * X)
    np.testing.assert_array_equal(small, large)


def test_paper_schedule_learns_separable_classes_of_a_backbones_size() -> None:
    X, y = (part.numpy() for part in data(600, d=1280, k=5))
    head = MLPClassifier().fit(np.abs(X[:400]), y[:400])
    assert (head.predict(np.abs(X[400:])) == y[400:]).mean() > 0.95


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"epochs": 0}, "MLPClassifier.epochs must be a whole number from 1, got 0"),
        ({"batch_size": 2.5}, "MLPClassifier.batch_size must be a whole number from 1, got 2.5"),
        ({"learning_rate": -1}, "MLPClassifier.learning_rate must be above 0, got -1"),
        ({"learning_rate_decay": 1.5}, "learning_rate_decay must be at most 1, got 1.5"),
        ({"weight_decay": -0.1}, "MLPClassifier.weight_decay must be 0 or above, got -0.1"),
        ({"weight_decay": float("nan")}, "weight_decay must be 0 or above, got nan"),
        ({"view_sizes": (5, 6)}, "MLPClassifier.view_sizes adds up to 11, but the rows have 12"),
    ],
)
def test_parameters_out_of_range_are_named(params: dict[str, Any], message: str) -> None:
    X, y = data(20)
    with pytest.raises(InputError, match=message):
        head_of("mlp").make(params).fit(X.numpy(), y.numpy())


def test_tensors_bring_the_head_back() -> None:
    X, y = (part.numpy() for part in data(50))
    head = MLPClassifier(epochs=2, weight_decay=0.01, view_sizes=[4, 8]).fit(X, y)
    back = MLPClassifier.from_tensors(head.to_tensors(), head.get_params(), head.classes_)
    np.testing.assert_array_equal(back.predict_proba(X), head.predict_proba(X))
    tensors = head.to_tensors()
    with pytest.raises(InputError, match="the model's output_weight is"):
        MLPClassifier.from_tensors(tensors, {}, head.classes_[:2])
    del tensors["hidden_bias"]
    with pytest.raises(InputError, match="no model of the classifier mlp: it has no 'hidden_bias'"):
        MLPClassifier.from_tensors(tensors, {}, head.classes_)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("abacus", "MLPClassifier.device must be cpu or cuda, got 'abacus'"),
        ("cuda:97", "MLPClassifier.device is 'cuda:97', but torch finds no such device; use cpu"),
    ],
)
def test_a_device_that_is_not_there_is_refused_and_none_stands_in(
    device: str, message: str
) -> None:
    X, y = np.eye(4), np.array([0, 1, 0, 1])
    with pytest.raises(InputError, match=message):
        MLPClassifier(device=device, epochs=1).fit(X, y)
