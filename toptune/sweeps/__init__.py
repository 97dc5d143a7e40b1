"""Sweeps: every combination of a grid of options, extracted, fitted and scored in one folder.

A devices file and a grid enter (`read_grid`). A folder leaves, with one store, a run for each
combination, and a list of what failed (`toptune.sweeps.sweep.sweep`); then tables that compare the
runs (`write_result_tables`), and a page (`write_report`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toptune.sweeps.grid import read_grid
    from toptune.sweeps.report import write_report
    from toptune.sweeps.tables import write_result_tables

__all__ = ["read_grid", "write_report", "write_result_tables"]

# Imported when first used, since scikit-learn and torch take seconds to load.
_HOMES = {
    "read_grid": "grid",
    "write_report": "report",
    "write_result_tables": "tables",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"toptune.sweeps.{_HOMES[name]}"), name)
