"""Sweeps: every combination of a grid of options, extracted, fitted and scored in one folder.

A devices file and a grid enter (`read_grid`). A folder leaves, with one store, a run for each
combination, and a list of what failed (`toptune.sweeps.sweep.sweep`); then tables that compare the
runs (`write_result_tables`), and a page (`write_report`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toptune.machine.lazy import lazy_names

if TYPE_CHECKING:
    from toptune.sweeps.grid import read_grid
    from toptune.sweeps.report import write_report
    from toptune.sweeps.tables import write_result_tables
else:
    __getattr__ = lazy_names(
        __name__,
        {"grid": ("read_grid",), "report": ("write_report",), "tables": ("write_result_tables",)},
    )

__all__ = ["read_grid", "write_report", "write_result_tables"]
