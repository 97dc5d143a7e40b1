"""The store: spikes and features of many recordings in one folder, shared by all that need them.

Spikes and features enter with the parameters that made them, each named by a key that covers its
input and all parameters. Tables of features leave (`FeatureStore.table`, `table_for`).

A `FeatureStore` reads and publishes; `writing_session` lets several processes write into one at a
time; `check_store` verifies every file, and `remove_damaged` takes out what can be made again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toptune.machine.caches import give_cupy_a_folder
from toptune.machine.lazy import lazy_names

# Zarr imports CuPy, which makes its folder at once, so that stores could not be opened without one.
give_cupy_a_folder()

if TYPE_CHECKING:
    from toptune.store.check import check_store, remove_damaged
    from toptune.store.feature_store import FeatureSet, FeatureStore
    from toptune.store.session import writing_session
    from toptune.store.tables import parameter_table, table_for
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "check": ("check_store", "remove_damaged"),
            "feature_store": ("FeatureSet", "FeatureStore"),
            "session": ("writing_session",),
            "tables": ("parameter_table", "table_for"),
        },
    )

__all__ = [
    "FeatureSet", "FeatureStore", "check_store", "parameter_table", "remove_damaged", "table_for",
    "writing_session",
]  # fmt: skip
