"""Training of many small networks: folds, each with its own rows, order and weights, in variants.

All networks share float32 rows and label sets, on the device that computes. A fold is the rows it
may learn from and the seed of its random draws; a variant is a schedule and a label set, and every
fold is trained in each variant. Networks are given away one by one, as soon as they are trained.

The variants of a fold start from the same weights and see the same batches, which are gathered once
for all of them. Nothing else is shared: on the CPU a network is the same, bit for bit, whichever
others it is trained with. There every thread takes a fold of its own; a GPU takes as many folds as
its memory holds, in batched products.

A step moves the weights as `torch.nn.Linear`, cross-entropy and `torch.optim.Adam` would move
them, with the gradients written out by hand. `StackLearner` does it in batched products for a
GPU. `CpuLearner` does it for a single network: of a step with 75 x 1280 inputs, five sixths are the
first layer's two products, by torch. What lies between them, and Adam, are compiled: as some twenty
calls into torch they take twice as long, and two threads wait for the interpreter. On the CPU a
network is computed by calls of its own, so it rounds the same way whichever others are trained
beside it; products batched over networks do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toptune.heads.base import StepProgress
from toptune.heads.rows import Float64, Grouping, cut
from toptune.machine.threads import compiled

Float32 = NDArray[np.float32]

# Those of `torch.optim.Adam`.
BETAS, EPSILON = (0.9, 0.999), 1e-8


class Network(NamedTuple):
    """Weights of f networks ``relu(x W1' + b1) W2' + b2``, as `torch.nn.Linear` keeps them."""

    hidden_weight: Tensor  # (f, h, d) float32
    hidden_bias: Tensor  # (f, 1, h) float32
    output_weight: Tensor  # (f, k, h) float32
    output_bias: Tensor  # (f, 1, k) float32

    def fold(self, index: int) -> Network:
        """One of the networks, still stacked: f = 1."""
        return Network(*(part[index : index + 1] for part in self))

    def logits(self, X: Tensor) -> Tensor:
        """Compute outputs (n, k) float64 of a single network for rows (n, d).

        In float64, so that a row's output does not depend on the rows it is computed with.
        """
        W1, b1, W2, b2 = (part[0].double() for part in self)
        return torch.addmm(b2, torch.addmm(b1, X.double(), W1.T).relu_(), W2.T)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a network is trained."""

    n_hidden: int
    learning_rate: float  # of the first epoch
    learning_rate_decay: float  # factor from one epoch to the next
    batch_size: int
    epochs: int
    # Times the weights and biases, added to their gradient, as `torch.optim.Adam` does
    weight_decay: float = 0.0

    @property
    def draws(self) -> tuple[int, int, int]:
        """What networks share that start from the same weights and see the same batches."""
        return self.n_hidden, self.batch_size, self.epochs


class Draws:
    """All random numbers of one fold: first its weights, then an order of its rows per epoch.

    Drawn on the CPU whatever the device, from a generator of their own, so that a fold is the same
    on every device and whichever folds it is trained with. Seeds, numbers from 0, that differ in
    more than zeros at their end give independent draws.
    """

    def __init__(self, seed: Sequence[int]) -> None:
        state = np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0]
        self._generator = torch.Generator().manual_seed(int(state))

    def network(self, n_features: int, n_hidden: int, n_classes: int) -> Network:
        """Draw initial weights, uniform in +-1/sqrt(inputs) as of `torch.nn.Linear`."""
        return Network(
            self._uniform((1, n_hidden, n_features), n_features),
            self._uniform((1, 1, n_hidden), n_features),
            self._uniform((1, n_classes, n_hidden), n_hidden),
            self._uniform((1, 1, n_classes), n_hidden),
        )

    def order(self, n_rows: int) -> Tensor:
        """Draw the next epoch's order of a fold's rows: (n_rows,) int64."""
        return torch.randperm(n_rows, generator=self._generator)

    def _uniform(self, shape: tuple[int, ...], n_inputs: int) -> Tensor:
        bound = 1 / math.sqrt(n_inputs)
        return torch.empty(shape).uniform_(-bound, bound, generator=self._generator)


class StackLearner:
    """Networks of f folds in one variant, and Adam's state of them."""

    def __init__(self, start: Network, schedule: Schedule) -> None:
        self.network = Network(*(part.clone() for part in start))
        self._schedule = schedule
        self._gradients = Network(*(torch.empty_like(part) for part in start))
        self._means = [torch.zeros_like(part) for part in start]
        self._squares = [torch.zeros_like(part) for part in start]
        self._n_steps = torch.zeros((), device=start.hidden_weight.device)

    def step(self, x: Tensor, targets: Tensor, weight: Tensor, epoch: int) -> None:
        """Move the weights by the gradient of the weighted cross-entropy of a batch.

        All float32: `x`, (f, b, d); `targets`, (f, b, k); `weight`, (f, b, 1).
        """
        W1, b1, W2, b2 = self.network
        g_W1, g_b1, g_W2, g_b2 = self._gradients
        hidden = torch.baddbmm(b1, x, W1.transpose(1, 2)).relu_()
        logits = torch.baddbmm(b2, hidden, W2.transpose(1, 2))
        # Gradient of the cross-entropy with respect to the logits.
        error = torch.softmax(logits, dim=2).sub_(targets).mul_(weight)
        torch.bmm(error.transpose(1, 2), hidden, out=g_W2)
        torch.sum(error, dim=1, keepdim=True, out=g_b2)
        # The sign of a rectified value is its derivative.
        back = torch.bmm(error, W2).mul_(hidden.sign_())
        torch.bmm(back.transpose(1, 2), x, out=g_W1)
        torch.sum(back, dim=1, keepdim=True, out=g_b1)
        self._move(epoch)

    def _move(self, epoch: int) -> None:
        """Do what `torch.optim.Adam(fused=True).step()` does.

        Its own bookkeeping before each of these calls takes longer than the call itself.
        """
        schedule = self._schedule
        self._n_steps += 1
        torch._fused_adam_(
            list(self.network),
            list(self._gradients),
            self._means,
            self._squares,
            [],
            [self._n_steps] * len(self._means),
            lr=schedule.learning_rate * schedule.learning_rate_decay**epoch,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=schedule.weight_decay,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )


class CpuLearner:
    """A single network (f = 1) in one schedule, and Adam's state of it."""

    def __init__(self, start: Network, schedule: Schedule) -> None:
        self._schedule = schedule
        weights = torch.cat([part.reshape(-1) for part in start])
        gradient = torch.empty_like(weights)
        self.network = _shaped_like(start, weights)
        slopes = _shaped_like(start, gradient)
        self._W1_T = self.network.hidden_weight[0].T
        self._g_W1 = slopes.hidden_weight[0]
        self._between = [part[0].numpy() for part in self.network[1:]]
        self._g_between = [part[0].numpy() for part in slopes[1:]]
        self._weights, self._gradient = weights.numpy(), gradient.numpy()
        self._means = np.zeros_like(self._weights)
        self._squares = np.zeros_like(self._weights)
        self._hidden = torch.empty((schedule.batch_size, start.hidden_weight.shape[1]))
        self._n_steps = 0

    def step(self, x: Tensor, targets: Tensor, weight: Tensor, epoch: int) -> None:
        """Do the same as `StackLearner.step`, for f = 1."""
        rows = x[0]
        hidden = self._hidden[: len(rows)]
        torch.mm(rows, self._W1_T, out=hidden)
        _between_layers(
            hidden.numpy(), targets[0].numpy(), weight[0].numpy(), *self._between, *self._g_between
        )
        torch.mm(hidden.T, rows, out=self._g_W1)
        self._n_steps += 1
        _move(
            self._weights,
            self._gradient,
            self._means,
            self._squares,
            *_adam_constants(self._schedule, epoch, self._n_steps),
        )


def _shaped_like(network: Network, values: Tensor) -> Network:
    """Give views of a flat vector the shapes of a network's parts, one after the other."""
    sizes = [part.numel() for part in network]
    parts = torch.split(values, sizes)
    return Network(*(part.view(like.shape) for part, like in zip(parts, network, strict=True)))


def _adam_constants(schedule: Schedule, epoch: int, n_steps: int) -> tuple[np.float32, ...]:
    """Weight decay, step size, and factor of the root mean square, as `_move` takes them."""
    rate = schedule.learning_rate * schedule.learning_rate_decay**epoch
    return (
        np.float32(schedule.weight_decay),
        np.float32(rate / (1 - BETAS[0] ** n_steps)),
        np.float32(1 / math.sqrt(1 - BETAS[1] ** n_steps)),
    )


@compiled(fastmath={"reassoc", "contract"}, error_model="numpy")
def _between_layers(
    hidden: Float32,
    targets: Float32,
    weight: Float32,
    b1: Float32,
    W2: Float32,
    b2: Float32,
    g_b1: Float32,
    g_W2: Float32,
    g_b2: Float32,
) -> Any:
    """Go from the hidden layer's sums to the gradients, of all but the first layer's weights.

    `hidden`, (b, h), is ``x W1'`` and becomes the gradient of the cross-entropy with respect to it,
    bias included; `targets` are (b, k), `weight` (b, 1), b1 (1, h), W2 (k, h), b2 (1, k). Their
    gradients are filled.
    """
    n_hidden, n_classes = hidden.shape[1], len(W2)
    error = np.empty(n_classes, dtype=np.float32)
    back = np.empty(n_hidden, dtype=np.float32)
    g_b1[:], g_W2[:], g_b2[:] = 0, 0, 0
    for i in range(len(hidden)):
        row = hidden[i]
        for j in range(n_hidden):
            row[j] = max(row[j] + b1[0, j], np.float32(0))
        for c in range(n_classes):
            logit = b2[0, c]
            for j in range(n_hidden):
                logit += row[j] * W2[c, j]
            error[c] = logit
        # Less the largest, so that nothing overflows.
        error[:] = np.exp(error - error.max())
        total = error.sum()
        back[:] = 0
        for c in range(n_classes):
            slope = (error[c] / total - targets[i, c]) * weight[i, 0]
            g_b2[0, c] += slope
            for j in range(n_hidden):
                g_W2[c, j] += slope * row[j]
                back[j] += slope * W2[c, j]
        for j in range(n_hidden):
            row[j] = back[j] if row[j] > 0 else np.float32(0)
            g_b1[0, j] += row[j]


@compiled(fastmath={"contract"}, error_model="numpy")
def _move(
    weights: Float32,
    gradient: Float32,
    means: Float32,
    squares: Float32,
    weight_decay: np.float32,
    step_size: np.float32,
    root_factor: np.float32,
) -> Any:
    """Do a step of Adam (Kingma & Ba 2015) with L2, as `torch.optim.Adam` orders its operations."""
    keep_mean, keep_square = np.float32(BETAS[0]), np.float32(BETAS[1])
    new_mean, new_square = np.float32(1 - BETAS[0]), np.float32(1 - BETAS[1])
    epsilon = np.float32(EPSILON)
    for i in range(len(weights)):
        slope = gradient[i] + weight_decay * weights[i]
        mean = keep_mean * means[i] + new_mean * slope
        square = keep_square * squares[i] + new_square * slope * slope
        means[i], squares[i] = mean, square
        weights[i] -= step_size * mean / (np.sqrt(square) * root_factor + epsilon)


# --- many of them

# Variants trained side by side: enough to gather batches rarely, few enough for their weights,
# moments and gradients (1.3 MB each for 1280 features) to stay in the cache.
_VARIANTS_TOGETHER = 4
# Share of a GPU's free memory that one pass may fill.
_GPU_SHARE = 0.5


class Rows(NamedTuple):
    """What all networks share."""

    X: Tensor  # (n, d) float32 tensor
    targets: Tensor  # (l, n, k) float32 tensor: 1 for a row's class, otherwise 0; l label sets


def one_hot(codes: NDArray[np.int64], n_classes: int, device: torch.device) -> Tensor:
    """Targets (l, n, k) of l label sets (l, n), given by the number of each row's class."""
    return torch.nn.functional.one_hot(torch.from_numpy(codes), n_classes).float().to(device)


class TrainingFold(NamedTuple):
    """What the networks of one fold have in common."""

    rows: Tensor  # (n_f,) int64 tensor: rows they learn from; any number, at least one
    seed: tuple[int, ...]  # of their `Draws`


class Variant(NamedTuple):
    """One way to train every fold."""

    schedule: Schedule
    labels: int = 0  # which label set of `Rows.targets` is learnt


class _Pass(NamedTuple):
    """Numbers of the folds and variants that are trained together."""

    folds: list[int]
    variants: list[int]


def train_folds(
    rows: Rows,
    folds: Sequence[TrainingFold],
    variants: Sequence[Variant],
    use: Callable[[int, int, Network], None],
    progress: StepProgress | None = None,
) -> None:
    """Train every fold in every variant, with few networks in memory, whatever their number.

    `use` is given the numbers of a fold and of a variant and their network (f = 1, on the device),
    from several threads at once, in no certain order; `progress`, how many networks are trained,
    and of how many.
    """
    device = rows.X.device

    def train(these: _Pass) -> int:
        chosen = [variants[number] for number in these.variants]
        trained = _train_pass(rows, [folds[number] for number in these.folds], chosen)
        for variant, networks in zip(these.variants, trained, strict=True):
            for i, fold in enumerate(these.folds):
                use(fold, variant, networks.fold(i))
        return len(these.folds) * len(these.variants)

    passes = list(_passes(folds, variants, _folds_together(rows, variants)))
    n_done = 0
    with closing(_run(train, passes, device)) as trained:
        for n_trained in trained:
            n_done += n_trained
            if progress is not None:
                progress(n_done, len(folds) * len(variants))


def _run(
    train: Callable[[_Pass], int], passes: list[_Pass], device: torch.device
) -> Generator[int]:
    """Run passes; on the CPU side by side, each on one thread.

    Threads inside a product would have to wait for each other some twenty times a step: on a
    machine that does other work as well, that took sixteen times as long. Each thread for itself
    also adds up in the same order whatever their number: results do not depend on it.
    """
    if device.type != "cpu":
        yield from map(train, passes)
        return
    n_threads = torch.get_num_threads()
    # In a new thread, torch.set_num_threads holds for that thread, and for MKL everywhere.
    executor = ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from executor.map(train, passes)
    finally:
        # Where something failed or was interrupted, what has not begun need not be waited for.
        executor.shutdown(cancel_futures=True)
        torch.set_num_threads(n_threads)


def _passes(
    folds: Sequence[TrainingFold], variants: Sequence[Variant], limit: int
) -> Iterator[_Pass]:
    """Folds to train together, `limit` at most, in variants that can share their batches.

    Such folds are of equal numbers of batches, hence of steps: Adam's correction depends on the
    number of steps, and a network that has run out of batches must not move on by its momentum.
    """
    for alike in _alike(variants):
        batch_size = variants[alike[0]].schedule.batch_size
        n_batches = [math.ceil(len(fold.rows) / batch_size) for fold in folds]
        for count in sorted(set(n_batches), reverse=True):
            equal = [number for number, n in enumerate(n_batches) if n == count]
            for together in cut(len(equal), limit):
                for some in cut(len(alike), _VARIANTS_TOGETHER):
                    yield _Pass(equal[together], alike[some])


def _alike(variants: Sequence[Variant]) -> list[list[int]]:
    """Numbers of the variants that start from the same weights and see the same batches."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for number, variant in enumerate(variants):
        groups.setdefault(variant.schedule.draws, []).append(number)
    return list(groups.values())


def _folds_together(rows: Rows, variants: Sequence[Variant]) -> int:
    """Folds in a pass: one on the CPU; on a GPU what its memory holds.

    That is weights, gradients and two moments of each network, and each fold's batch.
    """
    if rows.X.device.type == "cpu":
        return 1
    free, _ = torch.cuda.mem_get_info(rows.X.device)
    n_features = rows.X.shape[1]
    n_hidden = max(variant.schedule.n_hidden for variant in variants)
    batch_size = max(variant.schedule.batch_size for variant in variants)
    # Of the output layer and of what lies between the layers, less than of the first.
    network = 2 * 4 * n_hidden * n_features * min(len(variants), _VARIANTS_TOGETHER)
    n_bytes = 4 * (network + batch_size * (n_features + 4 * n_hidden))
    return max(1, int(_GPU_SHARE * free / n_bytes))


def _train_pass(
    rows: Rows, folds: Sequence[TrainingFold], variants: Sequence[Variant]
) -> list[Network]:
    """Train folds of equal numbers of batches in variants that draw alike; one stack a variant."""
    device, schedule = rows.X.device, variants[0].schedule
    draws = [Draws(fold.seed) for fold in folds]
    starts = [
        draw.network(rows.X.shape[1], schedule.n_hidden, rows.targets.shape[2]) for draw in draws
    ]
    start = Network(*(torch.cat(parts).to(device) for parts in zip(*starts, strict=True)))
    learner_type = CpuLearner if device.type == "cpu" else StackLearner
    learners = [learner_type(start, variant.schedule) for variant in variants]
    weights = _weights([len(fold.rows) for fold in folds], schedule.batch_size, device)
    inputs = torch.empty((len(folds) * schedule.batch_size, rows.X.shape[1]), device=device)
    for epoch in range(schedule.epochs):
        order = _orders(folds, draws).to(device)
        targets = {
            labels: rows.targets[labels].index_select(0, order.reshape(-1)).view(*order.shape, -1)
            for labels in {variant.labels for variant in variants}
        }
        for number, weight in enumerate(weights):
            batch = slice(number * schedule.batch_size, (number + 1) * schedule.batch_size)
            index = order[:, batch].reshape(-1)
            x = torch.index_select(rows.X, 0, index, out=inputs[: len(index)])
            x = x.view(len(folds), -1, x.shape[1])
            for learner, variant in zip(learners, variants, strict=True):
                learner.step(x, targets[variant.labels][:, batch], weight, epoch)
    return [learner.network for learner in learners]


def _orders(folds: Sequence[TrainingFold], draws: Sequence[Draws]) -> Tensor:
    """Rows of each fold (f, longest) int64 in one epoch's order; shorter folds end in zeros."""
    longest = max(len(fold.rows) for fold in folds)
    order = torch.zeros((len(folds), longest), dtype=torch.int64)
    for number, (fold, draw) in enumerate(zip(folds, draws, strict=True)):
        n_rows = len(fold.rows)
        order[number, :n_rows] = fold.rows[draw.order(n_rows)]
    return order


def _weights(sizes: Sequence[int], batch_size: int, device: torch.device) -> list[Tensor]:
    """Weights (f, b, 1) of the rows of each batch in its mean loss; 0 where a fold has ended."""
    n_rows = torch.tensor(sizes)[:, None]
    weights = []
    for start in range(0, max(sizes), batch_size):
        width = min(batch_size, max(sizes) - start)
        n_here = (n_rows - start).clamp(max=batch_size)
        present = torch.arange(width) < n_here
        weights.append((present / n_here)[:, :, None].to(device))
    return weights


def fold_scores(
    rows: Rows,
    grouping: Grouping,
    variants: Sequence[Variant],
    seed: int,
    progress: StepProgress | None = None,
) -> Float64:
    """Logits of every row in each variant, (v, n, k), by networks trained without its group."""
    folds = [without(grouping, (fold,), seed) for fold in range(len(grouping.groups))]
    scores = np.empty((len(variants), *rows.targets.shape[1:]))

    def score(fold: int, variant: int, network: Network) -> None:
        held_out = grouping.rows(fold)
        scores[variant, held_out] = logits_of(network, rows, held_out)

    train_folds(rows, folds, variants, score, progress)
    return scores


def without(grouping: Grouping, left_out: Sequence[int], seed: int) -> TrainingFold:
    """Rows outside some groups, and a seed of their own; 0 is the network of all rows."""
    train = np.flatnonzero(~np.isin(grouping.codes, left_out))
    return TrainingFold(torch.from_numpy(train), (seed, *(1 + group for group in left_out)))


def logits_of(network: Network, rows: Rows, chosen: NDArray[np.int64]) -> Float64:
    """Logits (m, k) float64 of some rows by a single network."""
    inputs = rows.X[torch.from_numpy(chosen).to(rows.X.device)]
    logits: Float64 = network.logits(inputs).cpu().numpy()
    return logits
