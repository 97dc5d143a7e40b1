"""Matplotlib, imported so that it draws into files whatever the environment says.

``MPLBACKEND`` names a program that shows figures on a screen. A notebook hands its own to every
program it starts, and Matplotlib cannot be imported where that is not installed. Reports show
nothing: their figures are made by `Figure`, never by pyplot, and saved as PNG or SVG. So the
variable is taken away while Matplotlib is imported, and stays as it was for who else uses
Matplotlib in this process; `new_axes` alone uses pyplot, for who draws from Python. All other
modules import from here.
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
    from matplotlib.collections import EllipseCollection
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

__all__ = [
    "Axes", "EllipseCollection", "Figure", "FigureCanvasAgg", "FuncFormatter", "LogLocator",
    "LogNorm", "Normalize", "NullFormatter", "new_axes", "rc_context",
]  # fmt: skip


def new_axes(width_in: float, height_in: float) -> Axes:
    """Make a figure with one diagram, which a notebook or a screen shows where there is one."""
    size = (width_in, height_in)
    try:
        from matplotlib import pyplot as plt

        return plt.figure(figsize=size, layout="constrained").add_subplot()
    except ImportError:  # a screen that the environment names and that is not there
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        return figure.add_subplot()
