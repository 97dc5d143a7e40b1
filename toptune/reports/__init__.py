"""Reports: what people look at, as self-contained HTML pages and pictures.

A published run, an explanation or a recording enters. An HTML page leaves, which a browser shows
offline and in which every text is escaped, or, of a recording, a PNG picture.

`write_report` writes the page of a run (`toptune.reports.run`), `write_explanation` that of an
explanation (`toptune.reports.why`); `draw_overview` draws what `toptune.reports.overview` finds in
a recording. All pages are made of the blocks in `toptune.reports.page`. `write_figures` writes the
figures of a run for a journal, with their data and a description of the methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toptune.machine.lazy import lazy_names

if TYPE_CHECKING:
    from toptune.reports.figures import write_figures
    from toptune.reports.overview_plot import draw_overview
    from toptune.reports.run import find_store, write_report
    from toptune.reports.why import write_explanation

__all__ = ["draw_overview", "find_store", "write_explanation", "write_figures", "write_report"]

__getattr__ = lazy_names(
    __name__,
    {
        "figures": ("write_figures",),
        "overview_plot": ("draw_overview",),
        "run": ("find_store", "write_report"),
        "why": ("write_explanation",),
    },
)
