"""Matplotlib, imported so that it draws into files whatever the environment says.

``MPLBACKEND`` names a program that shows figures on a screen. A notebook hands its own to every
program it starts, and Matplotlib cannot be imported where that is not installed. Nothing is shown
here: figures are made by `Figure`, never by pyplot, and saved as PNG or SVG. So the variable is
taken away while Matplotlib is imported, and stays as it was for who else uses Matplotlib in this
process. All other modules import from here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from toptune.machine.caches import give_matplotlib_a_folder


@contextmanager
def _without_a_screen() -> Iterator[None]:
    """Import Matplotlib inside the context."""
    if "matplotlib" in sys.modules:
        yield
        return
    backend = os.environ.pop("MPLBACKEND", None)
    give_matplotlib_a_folder()
    try:
        yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        import matplotlib as mpl

        # What the user of a notebook draws by pyplot is still shown there.
        with suppress(ValueError):
            mpl.rcParams["backend"] = backend


with _without_a_screen():
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

__all__ = [
    "Axes", "Figure", "FigureCanvasAgg", "FuncFormatter", "LogLocator", "LogNorm", "Normalize",
    "NullFormatter", "rc_context",
]  # fmt: skip
