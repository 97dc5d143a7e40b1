"""Training of many small networks: folds, each with its own rows, order and weights, in variants.

All networks share float32 rows and label sets, on the device that computes. A fold is the rows it
may learn from and the seed of its random draws; a variant is a schedule and a label set, and every
fold is trained in each variant. Networks are given away one by one, as soon as they are trained.

Each network is trained exactly as a loop over `torch.nn.Linear`, cross-entropy and
`torch.optim.Adam` would. The variants of a fold start from the same weights and see the same
batches, which are gathered once for all of them. Nothing else is shared: on the CPU a network is
the same, bit for bit, whichever others it is trained with. There every thread takes a fold of its
own; a GPU takes as many folds as its memory holds, in batched products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toptune.heads.base import StepProgress
from toptune.heads.mlp.network import CpuLearner, Draws, Network, Schedule, StackLearner
from toptune.heads.rows import Float64, Grouping

# Variants trained side by side: enough to gather batches rarely, few enough for their weights,
# moments and gradients (1.3 MB each for 1280 features) to stay in the cache.
_VARIANTS_TOGETHER = 4
# Share of a GPU's free memory that one pass may fill.
_GPU_SHARE = 0.5


class Rows(NamedTuple):
    """What all networks share.

    Attributes
    ----------
    X : (n, d) float32 tensor
    targets : (l, n, k) float32 tensor
        1 for a row's class, otherwise 0; l label sets.
    """

    X: Tensor
    targets: Tensor


def one_hot(codes: NDArray[np.int64], n_classes: int, device: torch.device) -> Tensor:
    """Targets (l, n, k) of l label sets (l, n), given by the number of each row's class."""
    return torch.nn.functional.one_hot(torch.from_numpy(codes), n_classes).float().to(device)


class TrainingFold(NamedTuple):
    """What the networks of one fold have in common.

    Attributes
    ----------
    rows : (n_f,) int64 tensor
        Rows they learn from; any number, at least one.
    seed : tuple of int
        Of their `Draws`.
    """

    rows: Tensor
    seed: tuple[int, ...]


class Variant(NamedTuple):
    """One way to train every fold.

    Attributes
    ----------
    schedule : Schedule
    labels : int
        Which label set of `Rows.targets` is learnt.
    """

    schedule: Schedule
    labels: int = 0


class _Pass(NamedTuple):
    """Numbers of the folds and variants that are trained together."""

    folds: list[int]
    variants: list[int]


def train_folds(
    rows: Rows,
    folds: Sequence[TrainingFold],
    variants: Sequence[Variant],
    use: Callable[[int, int, Network], None],
    *,
    progress: StepProgress | None = None,
) -> None:
    """Train every fold in every variant.

    Memory on the CPU is that of `_VARIANTS_TOGETHER` networks a thread, whatever their number.

    Parameters
    ----------
    rows : Rows
        On the device that is to work.
    folds : sequence of TrainingFold
    variants : sequence of Variant
    use : callable
        Given the numbers of a fold and of a variant and their network (f = 1, on the device);
        from several threads at once, in no certain order.
    progress : callable, optional
        Given how many networks are trained, and of how many.
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
            for together in _chunks(equal, limit):
                for some in _chunks(alike, _VARIANTS_TOGETHER):
                    yield _Pass(together, some)


def _alike(variants: Sequence[Variant]) -> Iterator[list[int]]:
    """Numbers of the variants that start from the same weights and see the same batches."""
    left = list(range(len(variants)))
    while left:
        first = variants[left[0]].schedule
        yield [number for number in left if variants[number].schedule.draws_like(first)]
        left = [number for number in left if not variants[number].schedule.draws_like(first)]


def _chunks(numbers: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


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
    """Logits of every row by networks trained without that row's group.

    Parameters
    ----------
    rows : Rows
    grouping : Grouping
        Of the n rows.
    variants : sequence of Variant
        Each trained in every fold.
    seed : int
    progress : callable, optional
        Given how many networks are trained, and of how many.

    Returns
    -------
    (v, n, k) float64
    """
    folds = [without(grouping, (fold,), seed) for fold in range(len(grouping.groups))]
    scores = np.empty((len(variants), *rows.targets.shape[1:]))

    def score(fold: int, variant: int, network: Network) -> None:
        held_out = grouping.rows(fold)
        scores[variant, held_out] = logits_of(network, rows, held_out)

    train_folds(rows, folds, variants, score, progress=progress)
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
