"""Matplotlib, imported so that it draws into files whatever the environment says.

``MPLBACKEND`` names a program that shows figures on a screen. A notebook hands its own to every
program it starts, and Matplotlib cannot be imported where that is not installed. Reports show
nothing: their figures are made by `new_figure`, never by pyplot, and saved as PNG or SVG. So the
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
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

__all__ = [
    "Axes", "EllipseCollection", "Figure", "FigureCanvasAgg", "FuncFormatter", "LogLocator",
    "LogNorm", "Normalize", "NullFormatter", "new_axes", "new_figure", "rc_context",
]  # fmt: skip


class _RepeatableLayout(ConstrainedLayoutEngine):
    """Matplotlib's layout, with the same result every time.

    Its solver leaves positions that may differ in their last bit from one time to the next, and
    the names of clip paths in an SVG file are made of all bits.
    """

    def execute(self, fig: Figure) -> None:
        super().execute(fig)
        for axes in fig.axes:
            arranged = axes.get_in_layout()
            left, bottom, width, height = axes.get_position(original=True).bounds
            axes.set_position((round(left, 9), round(bottom, 9), round(width, 9), round(height, 9)))
            axes.set_in_layout(arranged)  # which `set_position` takes away


def new_figure(width_in: float, height_in: float) -> Figure:
    """Make a figure for a file, with room for all text; equal figures give equal bytes."""
    return Figure(figsize=(width_in, height_in), layout=_RepeatableLayout())


def new_axes(width_in: float, height_in: float) -> Axes:
    """Make a figure with one diagram, which a notebook or a screen shows where there is one."""
    size = (width_in, height_in)
    try:
        from matplotlib import pyplot as plt

        return plt.figure(figsize=size, layout="constrained").add_subplot()
    except ImportError:  # a screen that the environment names and that is not there
        figure = new_figure(width_in, height_in)
        FigureCanvasAgg(figure)
        return figure.add_subplot()
