"""Steps of one small network on the CPU.

What enters: float32 batches of rows, targets and weights. What leaves: the network, moved by Adam.

Of a step with 75 x 1280 inputs, five sixths are the first layer's two products, by torch. What lies
between them, and Adam, are compiled: as some twenty calls into torch they take twice as long, and
two threads wait for the interpreter. A network is a matter of its own calls, so it rounds the same
way whichever others are trained beside it; products batched over networks do not.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toptune.heads.mlp.network import BETAS, EPSILON, Network, Schedule
from toptune.machine.compiling import compiled

Float32 = NDArray[np.float32]


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
