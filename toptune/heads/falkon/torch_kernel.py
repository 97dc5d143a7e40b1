"""Kernels on a torch device: of all rows with each other, and with Nystrom centres in blocks.

What enters: rows of features, which of them are centres, a kernel, and where and how precisely to
compute. What leaves: K(X, X), or blocks of Z = K(X, C), on that device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toptune.heads.falkon.kernel import KernelSum
from toptune.heads.falkon.memory import KEPT_SHARE, available_memory

PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
_TOLERANCES = {"float64": 1e-8, "float32": 1e-4}
# Rows of the kernel at a time.
_BLOCK_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """How the equations are iterated on.

    Attributes
    ----------
    device : str
        Where torch computes, such as ``cpu`` or ``cuda``.
    precision : str
        ``float64``; or ``float32``, which is faster and halves the memory.
    tolerance : float or None
        Of the residual of the preconditioned equations, relative to their right-hand side, in
        every column of the targets. None: 1e-8 in float64, 1e-4 in float32, whose rounding allows
        no less.
    max_iterations : int
        Of each attempt.
    """

    device: str = "cpu"
    precision: str = "float64"
    tolerance: float | None = None
    max_iterations: int = 500

    @property
    def reached(self) -> float:
        """The tolerance, as a number."""
        return _TOLERANCES[self.precision] if self.tolerance is None else self.tolerance


class TorchKernel:
    """Rows of ``Z = K(X, C)`` on a device, kept there where they fit, otherwise evaluated again.

    Parameters
    ----------
    X : (N, d) float32 or float64
    order : (n,) int64
        Rows of X, in the order of Z's.
    centre_rows : (m,) int64
        Rows of X, in the order of Z's columns.
    kernel : KernelSum
    iteration : Iteration
    keep_bytes : int, optional
        Size up to which Z is kept. Default: a quarter of the device's free memory.

    Attributes
    ----------
    centre_kernel : (m, m) tensor
        B, both triangles.
    """

    def __init__(
        self,
        X: NDArray[np.floating[Any]],
        order: NDArray[np.int64],
        centre_rows: NDArray[np.int64],
        kernel: KernelSum,
        iteration: Iteration,
        keep_bytes: int | None = None,
    ) -> None:
        self._device = torch.device(iteration.device)
        self._dtype = PRECISIONS[iteration.precision]
        self._X, self._order, self._views = X, order, kernel.views()
        self._centres = [
            self.tensor(X[centre_rows][:, view.columns]) / view.width for view in self._views
        ]
        self.centre_kernel = self._evaluate(centre_rows)
        self.centre_kernel.fill_diagonal_(sum(view.weight for view in self._views))
        self._kept: torch.Tensor | None = None
        size = len(order) * len(centre_rows) * self.centre_kernel.element_size()
        if size <= (self._free() if keep_bytes is None else keep_bytes):
            kept = self.centre_kernel.new_empty(len(order), len(centre_rows))
            for part, block in self.blocks(0, len(order)):
                kept[part] = block
            self._kept = kept

    def tensor(self, values: NDArray[np.floating[Any]]) -> torch.Tensor:
        """Bring values to the device, in the precision of the iteration."""
        return torch.as_tensor(np.ascontiguousarray(values), dtype=self._dtype, device=self._device)

    def blocks(self, start: int, stop: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """Go through rows start to stop of Z: where each block belongs, and the block."""
        for first in range(start, stop, _BLOCK_ROWS):
            part = slice(first, min(first + _BLOCK_ROWS, stop))
            if self._kept is None:
                yield part, self._evaluate(self._order[part])
            else:
                yield part, self._kept[part]

    def rows(self, places: NDArray[np.int64]) -> torch.Tensor:
        """Rows of Z at some places, in any order: (len(places), m)."""
        if self._kept is None:
            return self._evaluate(self._order[places])
        return self._kept[torch.from_numpy(places).to(self._device)]

    def _evaluate(self, rows: NDArray[np.int64]) -> torch.Tensor:
        X = self._X[rows]
        views = (
            _gaussian(self.tensor(X[:, view.columns]) / view.width, z, view.weight)
            for view, z in zip(self._views, self._centres, strict=True)
        )
        total = next(views)
        for block in views:
            total += block
        return total

    def _free(self) -> int:
        return int(KEPT_SHARE * free_bytes(self._device))


def gram(X: torch.Tensor, kernel: KernelSum) -> torch.Tensor:
    """Kernel of rows, (n, d), with each other: (n, n), both triangles, in the type of the rows."""
    total: torch.Tensor | None = None
    for view in kernel.views():
        x = X[:, view.columns] / view.width
        K = _gaussian(x, x, view.weight)
        # Rounding leaves the distance of a row to itself near 0; it is 0.
        K.fill_diagonal_(view.weight)
        total = K if total is None else total.add_(K)
    assert total is not None  # a KernelSum has a view with a weight above 0
    return total


def free_bytes(device: torch.device) -> int:
    """Bytes a device can still give, those that torch holds and does not use included."""
    if device.type != "cuda":
        return available_memory()
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + held


def _gaussian(x: torch.Tensor, z: torch.Tensor, weight: float) -> torch.Tensor:
    """``weight exp(-|x - z|^2 / 2)`` of rows in units of their widths."""
    block = x @ z.T
    block -= 0.5 * x.square().sum(dim=1)[:, None]
    block -= 0.5 * z.square().sum(dim=1)
    # Rounding can make a squared distance slightly negative.
    return block.clamp_(max=0).exp_().mul_(weight)
