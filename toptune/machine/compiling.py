"""Functions compiled by Numba, kept on disk so that only the first run of an installation waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[Function], Function]:
    """Compile a function for the CPU; it runs without the interpreter's lock.

    Numba keeps the machine code beside the source, or in the user's cache folder where the
    installation is read-only, or in ``NUMBA_CACHE_DIR``. Where none of them can be written, the
    function is compiled again in every process.

    Parameters
    ----------
    options
        Further options of `numba.njit`.
    """

    def decorate(function: Function) -> Function:
        try:
            made: Function = numba.njit(nogil=True, cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache function" not in str(error):
                raise
            made = numba.njit(nogil=True, **options)(function)
        return made

    return decorate
