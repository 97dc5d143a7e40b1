"""How many rows serve as centres, and which kernels are kept, by the memory that is free.

The rules:

- All rows serve as centres up to `all_rows_limit`: as many as fit two float64 matrices of
  rows x rows into half of the memory at hand, and never more than 15,000. At 15,000 they take
  3.6 GB, and n^3 makes each further doubling of the rows eight times slower.
- On a GPU the memory at hand is the GPU's, and four such matrices must fit into half of it.
- Above it, 4,000 rows are drawn as Nystrom centres.
- The kernel of rows and centres is kept where it fits a quarter of the memory at hand, and
  evaluated again, block by block, where it does not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from toptune.machine.device import available_memory

# Above it, all rows as centres take too long: see above.
ALL_ROWS_CAP = 15_000
NYSTROM_CENTRES = 4_000
# Share of the memory at hand for the matrices of rows x rows, and for a kernel that is kept.
ALL_ROWS_SHARE = 0.5
KEPT_SHARE = 0.25
# On a GPU nothing is factored in place: the kernel, a copy with the ridge, its factor, its inverse.
GPU_MATRICES = 4.0


class CentrePlan(NamedTuple):
    """How many centres the Falkon classifier takes for a number of rows, and why.

    Attributes
    ----------
    n_centres : int or None
        None: all rows.
    reason : str
        One line for the log.
    """

    n_centres: int | None
    reason: str


def plan_centres(
    n_rows: int, available_bytes: int | None = None, *, n_matrices: float = 2.0
) -> CentrePlan:
    """Decide between all rows and Nystrom centres, by the rules of this module.

    Parameters
    ----------
    n_rows : int
    available_bytes : int, optional
        Default: what is free now.
    n_matrices : float
        See `all_rows_limit`.
    """
    available = available_memory() if available_bytes is None else available_bytes
    limit = all_rows_limit(available, n_matrices=n_matrices)
    if n_rows <= limit:
        return CentrePlan(None, f"all {n_rows} windows are centres (up to {limit} may be)")
    n_centres = min(NYSTROM_CENTRES, n_rows)
    why = (
        f"more than {ALL_ROWS_CAP} take too long"
        if limit == ALL_ROWS_CAP
        else f"{available / 2**30:.1f} GiB of memory are at hand, enough for {limit} as centres"
    )
    return CentrePlan(n_centres, f"{n_centres} of {n_rows} windows are Nystrom centres: {why}")


def all_rows_limit(available_bytes: int, *, n_matrices: float = 2.0) -> int:
    """Count the rows up to which all of them can be centres.

    Parameters
    ----------
    available_bytes : int
    n_matrices : float
        How many float64 matrices of rows x rows there are at once. One fit or one set of folds
        has one, and with two or three groups half of another. On a GPU there are
        `GPU_MATRICES`.
    """
    fitting = math.isqrt(int(ALL_ROWS_SHARE * available_bytes / (8 * n_matrices)))
    return min(ALL_ROWS_CAP, fitting)
