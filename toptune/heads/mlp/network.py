"""One small network, or a stack of them: its weights, its draws, and a step of its training.

What enters: float32 batches of rows and targets, on the device that is to work. What leaves:
weights moved as `torch.nn.Linear`, cross-entropy and `torch.optim.Adam` would move them, with the
gradients written out by hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

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
