"""How alike two rows of features are, for telling recordings that are unlike those of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toptune.heads.falkon.kernel import Centres, KernelSum
from toptune.heads.rows import l2_normalise_views

# Where parameters lie that a recording does not have.
UNDEFINED = 0.0
# The kernel of a classifier that has none; FalkonClassifier says where the number comes from.
PLAIN_WIDTH = 0.5

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Nearness:
    """How near two rows of features are: a classifier's kernel, after its normalisation.

    Attributes
    ----------
    kernel : KernelSum
        Its weights sum to 1.
    normalise : bool
        Whether rows are divided by their length first, view by view.
    """

    kernel: KernelSum
    normalise: bool = True

    @classmethod
    def plain(cls, view_sizes: Sequence[int]) -> Nearness:
        """Take Gaussians of a fixed width on normalised rows, where a classifier has no kernel."""
        n = len(view_sizes)
        return cls(KernelSum((PLAIN_WIDTH,) * n, (1 / n,) * n, tuple(view_sizes)))

    def largest(
        self,
        features: NDArray[np.float32],
        reference: NDArray[np.float32],
        apart: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    ) -> NDArray[np.float64]:
        """Find how near each row comes to the nearest reference row.

        Parameters
        ----------
        features : (n, d) float32
        reference : (m, d) float32
        apart : ((n,) int64, (m,) int64), optional
            A number for each row of both; rows of equal numbers are not compared.

        Returns
        -------
        (n,) float64
            The largest value of the kernel; 0 where a row is compared with none.
        """
        centres = Centres(self.kernel, self._rows(reference))
        largest = np.empty(len(features))
        for first in range(0, len(features), _ROWS_AT_ONCE):
            part = slice(first, first + _ROWS_AT_ONCE)
            values = centres.kernel_of(self._rows(features[part]))
            if apart is not None:
                values[apart[0][part, None] == apart[1]] = 0
            largest[part] = values.max(axis=1)
        return largest

    def _rows(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self.normalise:
            return np.where(np.isnan(features), UNDEFINED, features).astype(np.float32)
        rows: NDArray[np.float32] = l2_normalise_views(features, self.kernel.view_sizes)
        return rows

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "widths": list(self.kernel.widths),
            "weights": list(self.kernel.weights),
            "view_sizes": list(self.kernel.view_sizes),
            "normalise": self.normalise,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Nearness:
        """Build from what `to_json` gave."""
        names = ("widths", "weights", "view_sizes")
        return cls(KernelSum(*(tuple(values[name]) for name in names)), values["normalise"])
