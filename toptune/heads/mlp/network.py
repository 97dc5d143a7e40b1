"""One small network, or a stack of them: its weights, its random draws, and a step of its training.

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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toptune.machine.threads import compiled

Float32 = NDArray[np.float32]

# Those of `torch.optim.Adam`.
BETAS, EPSILON = (0.9, 0.999), 1e-8


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
    weight_decay : float
        Times the weights and biases, added to their gradient, as `torch.optim.Adam` does.
    """

    n_hidden: int
    learning_rate: float
    learning_rate_decay: float
    batch_size: int
    epochs: int
    weight_decay: float = 0.0

    def draws_like(self, other: Schedule) -> bool:
        """Tell whether networks of both start from the same weights and see the same batches."""
        return (self.n_hidden, self.batch_size, self.epochs) == (
            other.n_hidden,
            other.batch_size,
            other.epochs,
        )


class Draws:
    """All random numbers of one fold: first its weights, then an order of its rows per epoch.

    Drawn on the CPU whatever the device, from a generator of their own, so that a fold is the same
    on every device and whichever folds it is trained with.

    Parameters
    ----------
    seed : sequence of int
        Numbers from 0; sequences that differ in more than zeros at their end give independent
        draws.
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

        Parameters
        ----------
        x : (f, b, d) float32
        targets : (f, b, k) float32
        weight : (f, b, 1) float32
        epoch : int
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
    """A single network in one schedule, and Adam's state of it.

    Parameters
    ----------
    start : Network
        Initial weights of f = 1; not changed.
    schedule : Schedule
    """

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
        """Move the weights by the gradient of the weighted cross-entropy of a batch.

        Parameters
        ----------
        x : (1, b, d) float32
        targets : (1, b, k) float32
        weight : (1, b, 1) float32
        epoch : int
        """
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

    Parameters
    ----------
    hidden : (b, h) float32
        ``x W1'``; becomes the gradient of the cross-entropy with respect to it, bias included.
    targets : (b, k) float32
    weight : (b, 1) float32
    b1, W2, b2 : (1, h), (k, h), (1, k) float32
    g_b1, g_W2, g_b2 : of the same shapes
        Are filled.
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
