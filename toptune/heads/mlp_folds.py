"""Training of many small networks at once, one a fold, each with its own rows, order and weights.

What enters: float32 rows and class numbers, shared by all folds, on the device that is to work, and
for each fold the rows it may learn from. What leaves: the folds' weights, stacked.

Each fold is trained exactly as a loop over `torch.nn.Linear`, cross-entropy and `torch.optim.Adam`
would: the folds share nothing but the calls. Those are batched matrix products over folds into
buffers made once, with the gradients written out by hand. With 75 x 1280 inputs, one step of one
fold takes 0.4 ms on two cores, where a loop over folds takes 2 ms (benchmarks/bench_heads.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Folds trained together by one CPU thread. Their weights, moments and gradients (1.3 MB a fold for
# 1280 features) stay in the cache; 8 are a tenth faster but leave more cores idle. A fixed number,
# since small products round differently in other company. A GPU takes all folds.
_CPU_FOLDS = 4


class Network(NamedTuple):
    """Weights of f networks ``relu(x W1' + b1) W2' + b2``, as `torch.nn.Linear` keeps them.

    Attributes
    ----------
    hidden_weight : (f, h, d) float32
    hidden_bias : (f, 1, h) float32
    output_weight : (f, k, h) float32
    output_bias : (f, 1, k) float32
    """

    hidden_weight: Tensor
    hidden_bias: Tensor
    output_weight: Tensor
    output_bias: Tensor

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
    """How a network is trained.

    Attributes
    ----------
    n_hidden, batch_size, epochs : int
    learning_rate : float
        Of the first epoch.
    learning_rate_decay : float
        Factor from one epoch to the next.
    """

    n_hidden: int
    learning_rate: float
    learning_rate_decay: float
    batch_size: int
    epochs: int


class Draws:
    """All random numbers of one fold: first its weights, then an order of its rows per epoch.

    Drawn on the CPU whatever the device, from a generator of their own, so that a fold is the same
    on every device and whichever folds it is trained with.

    Parameters
    ----------
    seed : sequence of int
        Numbers from 0; sequences of one length that differ give independent draws.
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


class Rows(NamedTuple):
    """What the folds share.

    Attributes
    ----------
    X : (n, d) float32 tensor
    targets : (n, k) float32 tensor
        1 for a row's class, otherwise 0.
    """

    X: Tensor
    targets: Tensor


def train_folds(
    rows: Rows, train_rows: Sequence[Tensor], draws: Sequence[Draws], schedule: Schedule
) -> Network:
    """Train one network a fold.

    Parameters
    ----------
    rows : Rows
        On the device that is to work.
    train_rows : sequence of (n_f,) int64 tensors
        Rows each fold learns from; any number of them, at least one.
    draws : sequence of Draws
        As many.
    schedule : Schedule

    Returns
    -------
    Network
        As many networks, in the same order.
    """
    device = rows.X.device
    n_threads = torch.get_num_threads() if device.type == "cpu" else 1
    limit = _CPU_FOLDS if device.type == "cpu" else len(train_rows)
    passes = list(_passes(train_rows, schedule.batch_size, limit))

    def train(folds: list[int]) -> Network:
        return _train_pass(
            rows, [train_rows[f] for f in folds], [draws[f] for f in folds], schedule
        )

    networks = _in_threads(train, passes, n_threads) if device.type == "cpu" else map(train, passes)
    trained: dict[int, Network] = {}
    for folds, network in zip(passes, networks, strict=True):
        trained.update({fold: network.fold(i) for i, fold in enumerate(folds)})
    stacked = zip(*(trained[fold] for fold in range(len(train_rows))), strict=True)
    return Network(*(torch.cat(parts) for parts in stacked))


def _in_threads(
    train: Callable[[list[int]], Network], passes: list[list[int]], n_threads: int
) -> list[Network]:
    """Run passes side by side, each on one thread.

    Threads inside a product would have to wait for each other some twenty times a step: on a
    machine that does other work as well, that took sixteen times as long. Each thread for itself
    also adds up in the same order whatever their number: results do not depend on it.
    """
    try:
        # In a new thread, torch.set_num_threads holds for that thread, and for MKL everywhere.
        with ThreadPoolExecutor(
            n_threads, initializer=torch.set_num_threads, initargs=(1,)
        ) as executor:
            return list(executor.map(train, passes))
    finally:
        torch.set_num_threads(n_threads)


def _passes(train_rows: Sequence[Tensor], batch_size: int, limit: int) -> Iterator[list[int]]:
    """Folds to train together, `limit` at most: of equal numbers of batches, hence of steps.

    Adam's correction depends on the number of steps, and a fold that has run out of batches must
    not move on by its momentum. So folds of different lengths go separately.
    """
    n_batches = [math.ceil(len(rows) / batch_size) for rows in train_rows]
    for count in sorted(set(n_batches), reverse=True):
        folds = [fold for fold, n in enumerate(n_batches) if n == count]
        for start in range(0, len(folds), limit):
            yield folds[start : start + limit]


def _train_pass(
    rows: Rows, train_rows: Sequence[Tensor], draws: Sequence[Draws], schedule: Schedule
) -> Network:
    device = rows.X.device
    n_features, n_classes = rows.X.shape[1], rows.targets.shape[1]
    starts = [draw.network(n_features, schedule.n_hidden, n_classes) for draw in draws]
    network = Network(*(torch.cat(parts).to(device) for parts in zip(*starts, strict=True)))
    step = _Step(rows, network, schedule)
    for epoch in range(schedule.epochs):
        step.set_learning_rate(schedule.learning_rate * schedule.learning_rate_decay**epoch)
        for index, weight in _batches(train_rows, draws, schedule.batch_size, device):
            step(index, weight)
    return network


def _batches(
    train_rows: Sequence[Tensor], draws: Sequence[Draws], batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch: rows (f, b) of each batch, and their weights (f, b, 1) in the fold's mean loss.

    A fold whose last batch is shorter than another's is filled up with rows of weight 0.
    """
    longest = max(len(rows) for rows in train_rows)
    index = torch.zeros((len(train_rows), longest), dtype=torch.int64)
    for fold, (rows, draw) in enumerate(zip(train_rows, draws, strict=True)):
        index[fold, : len(rows)] = rows[draw.order(len(rows))]
    n_rows = torch.tensor([len(rows) for rows in train_rows])[:, None]
    index, n_rows = index.to(device), n_rows.to(device)
    for start in range(0, longest, batch_size):
        stop = min(start + batch_size, longest)
        n_here = (n_rows - start).clamp(max=batch_size)
        present = torch.arange(stop - start, device=device) < n_here
        yield index[:, start:stop], (present / n_here)[:, :, None]


class _Step:
    """One step of Adam for all folds of a pass, in buffers that are made once."""

    def __init__(self, rows: Rows, network: Network, schedule: Schedule) -> None:
        self._rows = rows
        self._network = network
        self._gradients = Network(*(torch.empty_like(part) for part in network))
        for part, gradient in zip(network, self._gradients, strict=True):
            part.grad = gradient
        # fused: one pass over weights, moments and gradients instead of nine.
        self._adam = torch.optim.Adam(list(network), lr=schedule.learning_rate, fused=True)
        shape = (len(network.hidden_weight) * schedule.batch_size, rows.X.shape[1])
        self._inputs = torch.empty(shape, device=rows.X.device)

    def set_learning_rate(self, learning_rate: float) -> None:
        for group in self._adam.param_groups:
            group["lr"] = learning_rate

    def __call__(self, index: Tensor, weight: Tensor) -> None:
        """Move the weights by the gradient of the weighted cross-entropy of a batch."""
        W1, b1, W2, b2 = self._network
        g_W1, g_b1, g_W2, g_b2 = self._gradients
        flat = index.reshape(-1)
        x = torch.index_select(self._rows.X, 0, flat, out=self._inputs[: len(flat)])
        x = x.view(*index.shape, -1)
        targets = self._rows.targets.index_select(0, flat).view(*index.shape, -1)
        hidden = torch.baddbmm(b1, x, W1.transpose(1, 2)).relu_()
        logits = torch.baddbmm(b2, hidden, W2.transpose(1, 2))
        # Gradient of the cross-entropy with respect to the logits.
        error = torch.softmax(logits, dim=2).sub_(targets).mul_(weight)
        torch.bmm(error.transpose(1, 2), hidden, out=g_W2)
        torch.sum(error, dim=1, keepdim=True, out=g_b2)
        back = torch.bmm(error, W2).mul_(hidden > 0)
        torch.bmm(back.transpose(1, 2), x, out=g_W1)
        torch.sum(back, dim=1, keepdim=True, out=g_b1)
        self._adam.step()
