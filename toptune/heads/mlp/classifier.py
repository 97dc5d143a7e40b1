"""The MLP: the small network that the paper trains on a frozen backbone's features.

``Linear(d, 64), ReLU, Linear(64, classes)``; Adam with learning rate 0.0005 that decays
exponentially, batches of 75, 25 epochs, cross-entropy (Pastore et al.).

Its parameters are chosen inside every fold: g outer folds and g (g - 1) / 2 pairs of groups are
trained once per candidate, all with the candidates side by side, scored, and dropped: memory is
that of the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone

from toptune.errors import InputError
from toptune.heads.base import StepProgress
from toptune.heads.mlp.head import RULES
from toptune.heads.mlp.training import (
    Network,
    Rows,
    Schedule,
    TrainingFold,
    Variant,
    fold_scores,
    logits_of,
    one_hot,
    train_folds,
    without,
)
from toptune.heads.nested import FoldScores, NestedScores, check_tuning, choose, folds_and_pairs
from toptune.heads.rows import (
    Float64,
    Grouping,
    Ints,
    LabelledRows,
    RowClassifier,
    check_device,
    check_shapes,
    cut,
    encode_classes,
    l2_normalise_views,
    seed_of,
    view_sizes_of,
)

if TYPE_CHECKING:
    from toptune.heads.mlp.workers import Workers

# Rows that the lists of training rows may hold at a time, 8 bytes each.
_LISTED_ROWS = 2**25
# Labellings whose networks are trained side by side; their batches are gathered once.
_LABELLINGS_TOGETHER = 8
#: Takes the number of a classifier, the groups of a model, one of those, and its rows' scores.
PutScores = Callable[[int, tuple[int, ...], int, Float64], None]
# What a candidate may not override: the draws and the device are the run's.
_NOT_TUNED = frozenset({"random_state", "device"})


class MLPClassifier(RowClassifier):
    """The paper's network: one hidden layer of rectified linear units, trained by Adam.

    Training is in float32, scoring in float64. No global random state is read or changed.

    Parameters
    ----------
    n_hidden : int
        Units of the hidden layer.
    learning_rate : float
        Of the first epoch.
    learning_rate_decay : float
        Factor from one epoch to the next, above 0 and at most 1. The paper says exponential but no
        rate; 0.95 ends 25 epochs at 0.29 of the first rate.
    weight_decay : float
        Times the weights and biases, added to their gradient (L2), as `torch.optim.Adam` does.
    batch_size, epochs : int
    normalise : bool
        Divide each row by its own length and multiply it by sqrt(d), so that its values have a mean
        square of 1; a row of zeros stays zero. Nothing is learnt from other rows. At unit length
        alone, values of 0.03 barely move the weights in 25 epochs: on 1666 windows of 30 real
        cultures under MobileNetV2 the training loss stopped at 1.12, and at 0.38 with the factor
        (0.45 for rows as the backbone gives them).
    view_sizes : sequence of int or None
        Columns of each of several feature sets side by side; None where there is one. Each is
        normalised by itself, so that none outweighs the others by the scale of its values.
    device : str
        Where torch trains, such as ``cpu`` or ``cuda``.
    random_state : int, numpy Generator, RandomState or None
        Draws initial weights and the order of rows.

    Attributes
    ----------
    classes_ : (k,) array
    n_features_in_ : int
    network_ : Network
        The weights, float32, on the CPU.
    """

    _head = "mlp"
    _rules = RULES
    _tensors = Network._fields

    def __init__(
        self,
        n_hidden: int = 64,
        learning_rate: float = 0.0005,
        learning_rate_decay: float = 0.95,
        weight_decay: float = 0.0,
        batch_size: int = 75,
        epochs: int = 25,
        normalise: bool = True,
        view_sizes: Sequence[int] | None = None,
        device: str = "cpu",
        random_state: Any = 0,
    ) -> None:
        self.n_hidden = n_hidden
        self.learning_rate = learning_rate
        self.learning_rate_decay = learning_rate_decay
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.epochs = epochs
        self.normalise = normalise
        self.view_sizes = view_sizes
        self.device = device
        self.random_state = random_state

    def _train(self, X: NDArray[Any], codes: Ints) -> None:
        rows = self.shared_rows(X, codes, len(self.classes_))
        everything = TrainingFold(torch.arange(len(X)), (seed_of(self.random_state), 0))
        trained: list[Network] = []

        def keep(_fold: int, _variant: int, network: Network) -> None:
            trained.append(network)

        train_folds(rows, [everything], [Variant(self.schedule())], keep)
        self.network_ = Network(*(part.cpu() for part in trained[0]))

    def held_out_scores(self, X: Any, y: Any, grouping: Grouping) -> Float64:
        """Logits of every row by a network trained without that row's group, all trained at once.

        Each fold draws its own initial weights and orders, from `random_state` and its number.
        Returns (n, k), the classes in sorted order.
        """
        X, classes, codes = self.check(X, y)
        rows = self.shared_rows(X, codes, len(classes))
        seed = seed_of(self.random_state)
        scores: Float64 = fold_scores(rows, grouping, [Variant(self.schedule())], seed)[0]
        return scores

    def _check_together(self, n_features: int) -> None:
        view_sizes_of(self, n_features)
        check_device(self)

    def schedule(self) -> Schedule:
        """Give the parameters that a training follows."""
        return Schedule(**{one.name: getattr(self, one.name) for one in fields(Schedule)})

    def shared_rows(self, X: NDArray[Any], codes: Ints, n_classes: int) -> Rows:
        """Bring rows and one or several label sets, (n,) or (l, n), to where torch trains."""
        device = torch.device(self.device)
        return Rows(self._rows(X).to(device), one_hot(np.atleast_2d(codes), n_classes, device))

    def _rows(self, X: NDArray[Any]) -> torch.Tensor:
        if self.normalise:
            sizes = view_sizes_of(self, X.shape[1])
            scale = np.repeat(np.sqrt(sizes), sizes).astype(X.dtype)
            X = l2_normalise_views(X, sizes) * scale
        return torch.from_numpy(np.ascontiguousarray(X, dtype=np.float32))

    def _scores(self, X: NDArray[Any]) -> Float64:
        logits: Float64 = self.network_.logits(self._rows(X)).numpy()
        return logits

    def _learnt(self) -> list[NDArray[Any]]:
        return [np.ascontiguousarray(part[0].numpy()) for part in self.network_]

    def _restore(self, *learnt: NDArray[Any]) -> int:
        parts = {n: np.asarray(p, np.float32) for n, p in zip(self._tensors, learnt, strict=True)}
        n_hidden, d = parts["hidden_weight"].shape
        k = len(self.classes_)
        check_shapes(parts, ((n_hidden, d), (1, n_hidden), (k, n_hidden), (1, k)))
        self.network_ = Network(*(torch.tensor(part)[None] for part in parts.values()))
        return int(d)


class TrainingData(NamedTuple):
    """What networks are trained on."""

    source: Any  # as it was given; the same object holds the same rows
    X: NDArray[Any]  # (n, d), checked
    codes: Ints  # (n,), of classes
    n_classes: int
    group: Ints  # (n,), codes of the groups


def tune_mlp(
    classifier: MLPClassifier,
    rows: LabelledRows,
    candidates: Sequence[Mapping[str, Any]],
    *,
    progress: StepProgress | None = None,
    workers: Workers | None = None,
) -> NestedScores:
    """Choose a candidate inside each fold's training groups, and score the fold by it.

    The network of outer fold g is the one that `MLPClassifier.held_out_scores` trains with the
    chosen candidate's parameters; inner networks draw from the seed and both groups. Where leaving
    out two groups leaves no row of a class, the networks are trained all the same, without a
    positive example of it: rows of that class are then misclassified, whatever the candidate.

    Each candidate costs g (g + 1) / 2 networks, and g x n x k float32 of memory for inner scores.
    `progress` is told how many networks are trained, and of how many. They are trained by `workers`
    where there are any; on processors of one kind that changes nothing. Raises `InputError`: fewer
    than three groups, no candidate, or one that the classifier cannot take.
    """
    X, y, grouping, unit = rows
    n_groups = len(grouping.groups)
    check_tuning(n_groups, candidates)
    classifiers = [_overridden(classifier, candidate) for candidate in candidates]
    for each in classifiers:
        checked, classes, codes = each.check(X, y)
    scores = FoldScores.empty(len(classifiers), n_groups, len(codes), len(classes))
    seed = seed_of(classifier.random_state)
    models = folds_and_pairs(n_groups)
    n_done, n_networks = 0, len(classifiers) * len(models)
    for numbers in _by_rows(classifiers, checked.shape[1]):
        alike = [classifiers[number] for number in numbers]
        watched = _onwards(progress, n_done, n_networks)
        put = _Put(grouping, numbers, scores)
        if workers is not None:
            data = TrainingData(X, checked, codes, len(classes), grouping.codes)
            workers.score(alike, data, models, seed, put, watched)
        else:
            shared = alike[0].shared_rows(checked, codes, len(classes))
            score_models(shared, alike, grouping, models, seed, put, watched)
        n_done += len(models) * len(alike)
    return choose(scores, codes, unit, grouping)


def score_models(
    shared: Rows,
    classifiers: Sequence[MLPClassifier],
    grouping: Grouping,
    models: Sequence[tuple[int, ...]],
    seed: int,
    put: PutScores,
    progress: StepProgress | None = None,
) -> None:
    """Train networks without some groups each, and score those groups.

    The way of a single process and of every worker of a cluster.

    Parameters
    ----------
    shared : Rows
        Of all networks.
    classifiers : sequence of MLPClassifier
        With each of their schedules, every network is trained.
    grouping : Grouping
    models : sequence of tuple of int
        The groups that each network does not see.
    seed : int
    put : callable
        Given the number of a classifier, the groups of a model, one of those, and its rows' scores,
        (rows, k) float64; from several threads.
    progress : callable, optional
    """
    variants = [Variant(one.schedule()) for one in classifiers]
    n_done, n_networks = 0, len(models) * len(variants)
    for part in cut(len(models), _LISTED_ROWS // len(grouping.codes)):
        left_out = models[part]

        def score(
            fold: int,
            variant: int,
            network: Network,
            left_out: Sequence[tuple[int, ...]] = left_out,
        ) -> None:
            for group in left_out[fold]:
                logits = logits_of(network, shared, grouping.rows(group))
                put(variant, left_out[fold], group, logits)

        folds = [without(grouping, groups, seed) for groups in left_out]
        train_folds(shared, folds, variants, score, _onwards(progress, n_done, n_networks))
        n_done += len(folds) * len(variants)


def held_out_scores_of(
    classifier: MLPClassifier, X: Any, labellings: NDArray[Any], grouping: Grouping
) -> Iterator[Float64]:
    """Held-out scores for each of many labellings, as permutation tests need them.

    Each fold starts from the same weights and sees the same batches whatever the labels, so that
    the scores depend on nothing else; those of one labelling are what
    `MLPClassifier.held_out_scores` gives for it.

    `labellings`, (n, r) labels: one labelling a column, all of the same classes. Yields (n, k), one
    labelling after the other. Raises `InputError` as `MLPClassifier.fit` does; at once.
    """
    labellings = np.asarray(labellings)
    X, _, _ = classifier.check(X, labellings[:, 0])
    classes, codes = encode_classes(classifier, labellings.ravel())
    by_labelling = codes.reshape(labellings.shape).T
    return _scores_by_labelling(classifier, X, by_labelling, len(classes), grouping)


def _scores_by_labelling(
    classifier: MLPClassifier, X: NDArray[Any], codes: Ints, n_classes: int, grouping: Grouping
) -> Iterator[Float64]:
    seed = seed_of(classifier.random_state)
    rows = classifier.shared_rows(X, codes[:1], n_classes)
    for part in cut(len(codes), _LABELLINGS_TOGETHER):
        some = codes[part]
        rows = Rows(rows.X, one_hot(some, n_classes, rows.X.device))
        variants = [Variant(classifier.schedule(), labels) for labels in range(len(some))]
        yield from fold_scores(rows, grouping, variants, seed)


def _overridden(classifier: MLPClassifier, candidate: Mapping[str, Any]) -> MLPClassifier:
    """Give the classifier with a candidate's parameters."""
    names = sorted(set(classifier.get_params()) - _NOT_TUNED)
    for name in candidate:
        if name not in names:
            raise InputError(
                f"{name!r} of the classifier mlp cannot be tuned; there are {', '.join(names)}"
            )
    overridden: MLPClassifier = clone(classifier).set_params(**candidate)
    return overridden


def _by_rows(classifiers: Sequence[MLPClassifier], n_features: int) -> list[list[int]]:
    """Numbers of the classifiers that train on the same rows, normalised in the same way."""
    groups: dict[tuple[bool, tuple[int, ...]], list[int]] = {}
    for number, classifier in enumerate(classifiers):
        key = bool(classifier.normalise), view_sizes_of(classifier, n_features)
        groups.setdefault(key, []).append(number)
    return list(groups.values())


@dataclass(frozen=True)
class _Put:
    """Writes down the scores of classifiers, of which `numbers` are those among all."""

    grouping: Grouping
    numbers: list[int]
    scores: FoldScores

    def __call__(
        self, variant: int, left_out: tuple[int, ...], group: int, scores: Float64
    ) -> None:
        rows = self.grouping.rows(group)
        self.scores.put(self.numbers[variant], left_out, group, rows, scores)


def _onwards(progress: StepProgress | None, before: int, total: int) -> StepProgress | None:
    """Progress of one training of several, in networks."""
    return None if progress is None else lambda done, _: progress(before + done, total)
