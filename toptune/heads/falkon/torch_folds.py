"""Folds as of `falkon.closed_form` and pairs as of `falkon.pairs`, in torch.

What enters: rows of features and their groups, a kernel, a ridge, and targets (n, c). What leaves:
float64 held-out scores in main memory, and the scores of inner folds on the device.

The formulas are those of the two modules. Leaving out one group or two is the same thing here: the
rows of the groups left out, padded to one length, are the rows of a batch of small systems that are
factored and solved together. With Nystrom centres the centres of the groups left out are not
cut out of the normal equation but made rows and columns of the identity, which is the same solution
with 0 for them, and needs no gathering.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toptune.heads.falkon.closed_form import HeldOutScores, sort_centres
from toptune.heads.falkon.kernel import Float64, KernelSum
from toptune.heads.falkon.pairs import pairs_of
from toptune.heads.falkon.torch_algebra import (
    batches,
    factor,
    factor_together,
    says_when_full,
    to_device,
    to_host,
)
from toptune.heads.falkon.torch_kernel import Iteration, TorchKernel, gram
from toptune.heads.rows import Grouping

# Groups that are left out together, by their codes.
Groups = tuple[int, ...]


class Places(NamedTuple):
    """Rows of a batch of sets of groups, padded to the longest.

    Attributes
    ----------
    sets : sequence of tuple of int
        Groups left out together, one set a system.
    rows : (b, s) int64
        Rows of each set's groups, sorted by group as all rows are, one group after the other; 0
        where there are no more.
    absent : (b, s) bool
        Where there are no more.
    """

    sets: Sequence[Groups]
    rows: NDArray[np.int64]
    absent: NDArray[np.bool_]

    @classmethod
    def of(cls, grouping: Grouping, sets: Sequence[Groups]) -> Places:
        """Find the rows of some sets of groups."""
        listed = [
            np.concatenate([np.arange(*grouping.bounds[g : g + 2]) for g in groups])
            for groups in sets
        ]
        lengths = np.array([len(rows) for rows in listed])
        absent = np.arange(lengths.max()) >= lengths[:, None]
        rows = np.zeros(absent.shape, np.int64)
        rows[~absent] = np.concatenate(listed)
        return cls(sets, rows, absent)


class _Systems(ABC):
    """A factored model of all rows, on a device; see `TorchTargets`.

    Attributes
    ----------
    grouping : Grouping
    device : torch.device
    jitter : float
        Of the factorisation of all rows.
    """

    grouping: Grouping
    device: torch.device
    jitter: float

    @abstractmethod
    def multiplied(self, Y: Tensor) -> Tensor:
        """Multiply targets (n, c), rows sorted by group, with what `scores` needs of them."""

    @abstractmethod
    def scores(self, places: Places, Y: Tensor, multiplied: Tensor) -> tuple[Tensor, Float64]:
        """Scores (b, s, c) of the places by the models without their groups, and each's jitter."""

    @abstractmethod
    def batches(self, sizes: NDArray[np.int64], n_columns: int) -> Iterator[slice]:
        """Cut systems of so many rows, in descending order, into batches for so many targets."""

    def targets(self, Y: Float64) -> TorchTargets:
        """See `toptune.heads.falkon.pairs.Pairs`."""
        with says_when_full(self.device):
            return TorchTargets(self, Y)

    def held_out_scores(self, Y: Float64) -> HeldOutScores:
        """See `toptune.heads.falkon.closed_form.Folds`."""
        return self.targets(Y).held_out_scores()


class TorchTargets:
    """Targets multiplied with a factored model; see `toptune.heads.falkon.pairs.Targets`."""

    def __init__(self, systems: _Systems, Y: Float64) -> None:
        self._systems = systems
        self._grouping = systems.grouping
        self._Y = to_device(Y[self._grouping.order], systems.device)
        self._multiplied = systems.multiplied(self._Y)

    def held_out_scores(self) -> HeldOutScores:
        """See `toptune.heads.falkon.pairs.Targets`."""
        grouping = self._grouping
        scores = torch.empty_like(self._Y)
        jitter = np.empty(len(grouping.groups))
        with says_when_full(self._systems.device):
            for places, of_batch, added in self._solved([(g,) for g in range(len(jitter))]):
                rows = torch.from_numpy(places.rows[~places.absent]).to(scores.device)
                scores[rows] = of_batch[torch.from_numpy(~places.absent).to(scores.device)]
                jitter[[g for (g,) in places.sets]] = np.maximum(added, self._systems.jitter)
            return HeldOutScores(grouping.restore(to_host(scores)), jitter)

    def inner(self, block: range) -> Tensor:
        """See `toptune.heads.falkon.pairs.Targets`; on the device."""
        grouping, n = self._grouping, len(self._Y)
        device, n_columns = self._systems.device, self._Y.shape[1]
        with says_when_full(device):
            maps = torch.full(
                (len(block) * n, n_columns), torch.nan, dtype=torch.float32, device=device
            )
            sets = list(pairs_of(block, len(grouping.groups)))
            for places, scores, _ in self._solved(sets):
                source, target = _scattered(places, grouping, block)
                flat = scores.reshape(-1, n_columns)
                taken = flat[torch.from_numpy(source).to(device)]
                maps[torch.from_numpy(target).to(device)] = taken.float()
            return maps.view(len(block), n, n_columns)

    def _solved(self, sets: Sequence[Groups]) -> Iterator[tuple[Places, Tensor, Float64]]:
        """Solve without each set of groups, the largest first: so batches are padded little."""
        group_sizes = np.diff(self._grouping.bounds)
        sizes = np.array([group_sizes[list(groups)].sum() for groups in sets])
        order = np.argsort(-sizes, kind="stable")
        for part in self._systems.batches(sizes[order], self._Y.shape[1]):
            places = Places.of(self._grouping, [sets[number] for number in order[part]])
            yield places, *self._systems.scores(places, self._Y, self._multiplied)


def _scattered(
    places: Places, grouping: Grouping, block: range
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where scores of pairs go: places of (b x s) rows, and rows of (len(block) x n) of the maps.

    Rows of h are what is scored inside the training data of g, and rows of g inside that of h.
    """
    n = len(grouping.order)
    group = grouping.codes[grouping.order][places.rows]
    # Codes of both groups add up, so each row's other group is the sum less its own.
    other = np.array(places.sets).sum(axis=1)[:, None] - group
    wanted = ~places.absent & (other >= block.start) & (other < block.stop)
    source = np.flatnonzero(wanted)
    target = (other[wanted] - block.start) * n + grouping.order[places.rows[wanted]]
    return source.astype(np.int64), target.astype(np.int64)


class AllRowsSystems(_Systems):
    """Kernel ridge regression with every row as a centre, inverted once for folds and pairs.

    Parameters
    ----------
    K : (n, n) float64
        ``K(X, X)``, rows sorted by group.
    grouping : Grouping
        Of the n rows.
    ridge : float
    """

    def __init__(self, K: Tensor, grouping: Grouping, ridge: float) -> None:
        self.grouping, self.device = grouping, K.device

        def regularised() -> Tensor:
            A = K.clone()
            A.diagonal().add_(ridge)
            return A

        with says_when_full(self.device):
            lower, self.jitter = factor(regularised, "the kernel matrix")
            self._inverse = torch.cholesky_inverse(lower)

    def multiplied(self, Y: Tensor) -> Tensor:
        """``Q Y``."""
        return self._inverse @ Y

    def scores(self, places: Places, Y: Tensor, multiplied: Tensor) -> tuple[Tensor, Float64]:
        """``Y_S - (Q_SS)^-1 (Q Y)_S``."""
        rows = torch.from_numpy(places.rows).to(self.device)
        absent = torch.from_numpy(places.absent).to(self.device)
        blocks = self._inverse[rows[:, :, None], rows[:, None, :]]
        blocks.masked_fill_(absent[:, :, None] | absent[:, None, :], 0)
        names = ["a block of the inverse kernel matrix"] * len(rows)
        systems = factor_together(blocks, absent, names)
        right = multiplied[rows].masked_fill_(absent[:, :, None], 0)
        return Y[rows] - systems.solve(right), systems.jitter

    def batches(self, sizes: NDArray[np.int64], n_columns: int) -> Iterator[slice]:
        """See `_Systems`."""
        # A block, its factor, a mask and a copy; targets, their products, and what is solved.
        largest = int(sizes[0])
        n_bytes = 8 * largest * (4 * largest + 4 * n_columns)
        return batches(len(sizes), largest, self.device, n_bytes)


class NystromSystems(_Systems):
    """The normal equation of all rows with Nystrom centres, on a device.

    Parameters
    ----------
    Z : TorchKernel
        Rows sorted by group, and centres too.
    grouping : Grouping
    centre_bounds : (g + 1,) int64
        Group i holds the centres ``centre_bounds[i]:centre_bounds[i + 1]``.
    ridge : float
    """

    jitter = 0.0

    def __init__(
        self,
        Z: TorchKernel,
        grouping: Grouping,
        centre_bounds: NDArray[np.int64],
        ridge: float,
    ) -> None:
        self.grouping, self.device = grouping, Z.centre_kernel.device
        self._Z = Z
        self._centre_group = np.repeat(np.arange(len(grouping.groups)), np.diff(centre_bounds))
        self._normal = ridge * Z.centre_kernel
        for _, block in Z.blocks(0, len(grouping.order)):
            self._normal.addmm_(block.T, block)

    def multiplied(self, Y: Tensor) -> Tensor:
        """``Z'Y``."""
        total = Y.new_zeros(len(self._normal), Y.shape[1])
        for part, block in self._Z.blocks(0, len(Y)):
            total.addmm_(block.T, Y[part])
        return total

    def scores(self, places: Places, Y: Tensor, multiplied: Tensor) -> tuple[Tensor, Float64]:
        """Solve the normal equation without the rows and the centres of the groups."""
        rows = torch.from_numpy(places.rows).to(self.device)
        absent = torch.from_numpy(places.absent).to(self.device)
        Z = self._Z.rows(places.rows.ravel()).view(*rows.shape, -1)
        Z.masked_fill_(absent[:, :, None], 0)
        without = torch.baddbmm(self._normal.expand(len(Z), -1, -1), Z.mT, Z, alpha=-1)
        left_out = [np.isin(self._centre_group, groups) for groups in places.sets]
        no_centre = torch.from_numpy(np.stack(left_out)).to(self.device)
        without.masked_fill_(no_centre[:, :, None] | no_centre[:, None, :], 0)
        systems = factor_together(without, no_centre, self._names(places.sets))
        right = multiplied - Z.mT @ Y[rows]
        right.masked_fill_(no_centre[:, :, None], 0)
        return Z @ systems.solve(right), systems.jitter

    def batches(self, sizes: NDArray[np.int64], n_columns: int) -> Iterator[slice]:
        """See `_Systems`."""
        # The equation, its factor, a mask and a copy; the rows of the kernel; and all targets.
        m, s = len(self._normal), int(sizes[0])
        n_bytes = 8 * (m * (4 * m + 2 * s + 4 * n_columns) + 2 * s * n_columns)
        return batches(len(sizes), m, self.device, n_bytes)

    def _names(self, sets: Sequence[Groups]) -> list[str]:
        named = [" and ".join(str(self.grouping.groups[g]) for g in groups) for groups in sets]
        return [f"the normal equation without group {name}" for name in named]


@dataclass(frozen=True)
class TorchSystems:
    """Makes factored models on a device.

    Attributes
    ----------
    device : torch.device
    """

    device: torch.device

    def all_rows(
        self, X: NDArray[np.floating[Any]], grouping: Grouping, *, kernel: KernelSum, ridge: float
    ) -> AllRowsSystems:
        """Factor ``K + ridge I``; see `toptune.heads.falkon.closed_form.AllRowsFolds.factor`."""
        with says_when_full(self.device):
            K = gram(to_device(X[grouping.order], self.device), kernel)
        return AllRowsSystems(K, grouping, ridge)

    def nystrom(
        self,
        X: NDArray[np.floating[Any]],
        grouping: Grouping,
        centre_rows: NDArray[np.int64],
        *,
        kernel: KernelSum,
        ridge: float,
        groups_at_once: int = 1,
        keep_bytes: int | None = None,
    ) -> NystromSystems:
        """Evaluate the kernel's products; see `falkon.closed_form.NystromFolds.factor`."""
        centres, bounds = sort_centres(grouping, centre_rows, groups_at_once)
        where = Iteration(device=str(self.device), precision="float64")
        with says_when_full(self.device):
            Z = TorchKernel(X, grouping.order, centres, kernel, where, keep_bytes)
            return NystromSystems(Z, grouping, bounds, ridge)
