"""The direct solver on a torch device: models, folds, and what tuning asks for, all in float64.

What enters and what leaves is as of `falkon.direct`, `falkon.closed_form` and
`toptune.heads.nested`; the work, from the kernel to the losses of shuffled labels, is done on the
device. On torch's own processor device the very same code runs, which is how it is tested.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toptune.heads.falkon.closed_form import Folds
from toptune.heads.falkon.direct import Problem, Solution
from toptune.heads.falkon.kernel import Float64, KernelSum
from toptune.heads.falkon.memory import KEPT_SHARE
from toptune.heads.falkon.pairs import Pairs
from toptune.heads.falkon.torch_algebra import factor, says_when_full, to_device, to_host
from toptune.heads.falkon.torch_folds import AllRowsSystems, TorchSystems
from toptune.heads.falkon.torch_kernel import Iteration, TorchKernel, free_bytes, gram
from toptune.heads.nested import Basis, Labelling
from toptune.heads.rows import Grouping
from toptune.heads.selection import SHARPENINGS, SURPRISE, spread_rows, unit_weights


class TorchDirect:
    """Cholesky factorisations in float64 on a device, and closed forms for the folds.

    Parameters
    ----------
    device : str
        A torch device, such as ``cuda``.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self._systems = TorchSystems(self.device)

    def solve(self, problem: Problem, Y: Float64) -> Solution:
        """See `toptune.heads.falkon.solvers.Solver`."""
        with says_when_full(self.device):
            right = to_device(Y, self.device)
            if problem.centre_rows is None:
                lower, jitter = self._factor_all_rows(problem)
            else:
                lower, jitter, right = self._factor_nystrom(problem, problem.centre_rows, right)
            return Solution(to_host(torch.cholesky_solve(right, lower)), jitter, 0)

    def _factor_all_rows(self, problem: Problem) -> tuple[Tensor, float]:
        X = to_device(problem.X, self.device)

        def regularised() -> Tensor:
            K = gram(X, problem.kernel)
            K.diagonal().add_(problem.ridge)
            return K

        return factor(regularised, "the kernel matrix")

    def _factor_nystrom(
        self, problem: Problem, centres: NDArray[np.int64], Y: Tensor
    ) -> tuple[Tensor, float, Tensor]:
        order = np.arange(len(problem.X))
        where = Iteration(device=str(self.device), precision="float64")
        Z = TorchKernel(problem.X, order, centres, problem.kernel, where, keep_bytes=0)
        normal = problem.ridge * Z.centre_kernel
        moments = Y.new_zeros(len(centres), Y.shape[1])
        for part, block in Z.blocks(0, len(order)):
            normal.addmm_(block.T, block)
            moments.addmm_(block.T, Y[part])
        return *factor(normal.clone, "the normal equation"), moments

    def folds(self, problem: Problem, grouping: Grouping) -> Folds:
        """See `toptune.heads.falkon.solvers.Solver`."""
        X, kernel, ridge = problem.X, problem.kernel, problem.ridge
        if problem.centre_rows is None:
            return self._systems.all_rows(X, grouping, kernel=kernel, ridge=ridge)
        centres = problem.centre_rows
        return self._systems.nystrom(X, grouping, centres, kernel=kernel, ridge=ridge)

    def factors(
        self, problems: Sequence[Problem], grouping: Grouping, groups_at_once: int
    ) -> TorchFactors:
        """Give the candidates' factored models, as `toptune.heads.nested.nest` asks for them."""
        return TorchFactors(problems, grouping, groups_at_once, self.device)

    def judge(self, labelling: Labelling, basis: Basis, grouping: Grouping) -> TorchJudge:
        """Judge labellings where the models are."""
        return TorchJudge(labelling, basis, grouping, self.device)


class TorchFactors:
    """Factored models of the candidates, one after the other, on a device.

    The kernel of a candidate is kept for the next where that has the same.

    Parameters
    ----------
    problems : sequence of Problem
        Of the candidates; they differ in kernel and ridge, never in rows.
    grouping : Grouping
    groups_at_once : int
        The most groups that a fold will leave out.
    device : torch.device
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        grouping: Grouping,
        groups_at_once: int,
        device: torch.device,
    ) -> None:
        self._problems, self._grouping = problems, grouping
        self._groups_at_once = groups_at_once
        self._device = device
        self._kept: tuple[KernelSum, Tensor] | None = None

    def __call__(self, number: int) -> Pairs[Tensor]:
        """Factor a candidate's model."""
        problem = self._problems[number]
        if problem.centre_rows is not None:
            return TorchSystems(self._device).nystrom(
                problem.X,
                self._grouping,
                problem.centre_rows,
                kernel=problem.kernel,
                ridge=problem.ridge,
                groups_at_once=self._groups_at_once,
            )
        with says_when_full(self._device):
            K = self._gram(problem)
        return AllRowsSystems(K, self._grouping, problem.ridge)

    def _gram(self, problem: Problem) -> Tensor:
        if self._kept is not None and self._kept[0] == problem.kernel:
            return self._kept[1]
        # Gone before the next is made.
        self._kept = None
        K = gram(to_device(problem.X[self._grouping.order], self._device), problem.kernel)
        if 8 * K.numel() <= KEPT_SHARE * free_bytes(self._device):
            self._kept = problem.kernel, K
        return K


class TorchJudge:
    """Judges labellings on a device; see `toptune.heads.nested.Judge`.

    Parameters
    ----------
    labelling : Labelling
    basis : Basis
        Of the labellings to judge, the first of `labelling`.
    grouping : Grouping
    device : torch.device
    """

    def __init__(
        self, labelling: Labelling, basis: Basis, grouping: Grouping, device: torch.device
    ) -> None:
        self._device = device
        self._basis = basis
        self._sharpness = labelling.sharpness
        self._coefficients = torch.from_numpy(basis.by_class()).to(device)
        n_judged = self._coefficients.shape[2]
        self._labels = torch.from_numpy(labelling.labels[:n_judged]).to(device)
        judged = spread_rows(labelling.unit)
        self._folds = [
            self._fold(judged[grouping.codes[judged] != group], labelling.unit)
            for group in range(len(grouping.groups))
        ]

    def _fold(
        self, rows: NDArray[np.int64], unit: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows that are judged in an outer fold, their units, and their weights."""
        parts = (rows, unit[rows], unit_weights(unit[rows]))
        first, second, third = (torch.from_numpy(part).to(self._device) for part in parts)
        return first, second, third

    def losses(self, block: range, maps: Tensor) -> Float64:
        """See `toptune.heads.nested.Judge`; the device is waited for once."""
        with says_when_full(self._device):
            found = [self._of_fold(group, fold) for group, fold in zip(block, maps, strict=True)]
            return to_host(torch.stack(found))

    def observed(self, maps: Tensor, fold: int) -> NDArray[np.float32]:
        """See `toptune.heads.nested.Judge`."""
        scores = maps[fold] @ self._coefficients[:, :, 0].T
        brought: NDArray[np.float32] = scores.cpu().numpy()
        return brought

    def _of_fold(self, group: int, maps: Tensor) -> Tensor:
        rows, unit, weights = self._folds[group]
        logits = (maps[rows] @ self._coefficients).mul_(self._sharpness)
        return labelling_losses(logits, self._labels[:, unit].T, weights)


def labelling_losses(logits: Tensor, codes: Tensor, weights: Tensor) -> Tensor:
    """Do what `toptune.heads.selection.labelling_losses` does, in the same order.

    Parameters
    ----------
    logits : (k, m, r) float32
        Overwritten.
    codes : (m, r) int64
    weights : (m,) float64

    Returns
    -------
    (r,) float64
    """
    logits *= SHARPENINGS[0]
    logits -= logits.amax(dim=0)
    own = logits.gather(0, codes[None])[0]
    errors = weights @ (own < 0).double()
    powers = logits.exp_()
    surprise = torch.full_like(errors, torch.inf)
    for _ in SHARPENINGS:
        here = weights @ (powers.sum(dim=0).log() - own).double()
        surprise = torch.minimum(surprise, here)
        powers *= powers
        own *= 2
    return errors + SURPRISE * surprise
