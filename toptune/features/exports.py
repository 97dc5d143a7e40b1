"""Feature tables as other packages hold them: pandas, xarray and AnnData.

The packages are imported when they are asked for, and are no dependency.
"""

from __future__ import annotations

import json
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from toptune.errors import InputError

if TYPE_CHECKING:
    from toptune.features.table import FeatureTable

# Of every window, before the further columns of the devices file.
_FIXED = ("device", "label", "recording", "start_s")


def to_pandas(table: FeatureTable) -> Any:
    """See `FeatureTable.to_pandas`."""
    pandas = _library("pandas")
    rows = pandas.DataFrame(observations(table))
    features = pandas.DataFrame(table.features, columns=feature_names(table))
    return pandas.concat([rows, features], axis=1)


def to_xarray(table: FeatureTable) -> Any:
    """See `FeatureTable.to_xarray`."""
    xarray = _library("xarray")
    rows = {name: ("window", values) for name, values in observations(table).items()}
    return xarray.DataArray(
        table.features,
        dims=("window", "feature"),
        coords={
            **rows,
            "feature": feature_names(table),
            "feature_set": ("feature", _views(table)),
        },
        name="features",
        attrs={"provenance": json.dumps(table.provenance)},
    )


def to_anndata(table: FeatureTable) -> Any:
    """See `FeatureTable.to_anndata`."""
    # First, since it says what to install, and pandas comes with it.
    anndata = _library("anndata")
    pandas = _library("pandas")
    # AnnData's rows and columns have names, which are text.
    names = [str(row) for row in range(len(table.features))]
    columns = pandas.DataFrame({"feature_set": _views(table)}, index=feature_names(table))
    return anndata.AnnData(
        X=table.features,
        obs=pandas.DataFrame(observations(table), index=names),
        var=columns,
        uns={"provenance": json.dumps(table.provenance)},
    )


def observations(table: FeatureTable) -> dict[str, Any]:
    """Say of every window where it is from: (n,) each, by the name of the column.

    A further column of the devices file that a recording lacks is empty there; one with the name of
    another column is called ``NAME (devices file)``.
    """
    of_row = [table.recordings[row] for row in table.recording.tolist()]
    columns: dict[str, Any] = {
        "device": np.array([info.device for info in of_row], dtype=object),
        "label": np.array([info.label for info in of_row], dtype=object),
        "recording": np.array([info.name for info in of_row], dtype=object),
        "start_s": table.start_s,
    }
    taken = {*_FIXED, *feature_names(table), "feature", "feature_set", "window"}
    for name in dict.fromkeys(name for info in table.recordings for name in info.columns):
        shown = f"{name} (devices file)" if name in taken else name
        columns[shown] = np.array([info.columns.get(name, "") for info in of_row], dtype=object)
    return columns


def feature_names(table: FeatureTable) -> list[str]:
    """Name the columns: burst parameters by their names, others f0, f1 and so on.

    Where there are several feature sets, each one's names begin with its number: ``1:f0``.
    """
    from toptune.features.burst_features import KIND, NAMES

    names = []
    for number, size in enumerate(table.view_sizes):
        kind = table.views[number].params.get("kind") if table.views else None
        own = [f"f{column}" for column in range(size)]
        if kind == KIND and size == len(NAMES):
            own = list(NAMES)
        prefix = f"{number + 1}:" if len(table.view_sizes) > 1 else ""
        names += [f"{prefix}{name}" for name in own]
    return names


def _views(table: FeatureTable) -> list[str]:
    """Describe the feature set of each column."""
    if not table.views:
        return [""] * table.features.shape[1]
    return [view.name for view in table.views for _ in range(view.n_columns)]


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(
            f"the package {name} is not installed here ({error}): pip install {name}"
        ) from None
