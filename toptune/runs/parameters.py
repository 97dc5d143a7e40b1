"""The burst parameters of a run's recordings, as the run's folder or its store has them."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError, MissingPackagesError
from toptune.evaluation.effects import ParameterValues
from toptune.features.burst_features import NAMES, BurstFeatureParams, in_units
from toptune.runs.reading import ReadRun
from toptune.store.feature_store import FeatureStore
from toptune.store.tables import parameter_table

#: The table in a run's folder that holds them.
TABLE = "parameters.csv"


def run_parameters(
    run: ReadRun,
    store: FeatureStore | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> ParameterValues:
    """Give the burst parameters of the recordings a run was trained on.

    They are read from parameters.csv where the run has it, else measured from the store's spikes.

    Parameters
    ----------
    run : ReadRun
    store : FeatureStore, optional
        None: the one that the run names, where it is needed.
    progress : callable, optional
        Told what is going on, how many recordings are measured, and how many there are.

    Returns
    -------
    ParameterValues
        A row a recording, in the order of the run's windows. Classes are merged where the run's
        are; further columns of the devices file are there as far as the store has them.

    Raises
    ------
    InputError
        The run has no parameters.csv, and no store with its spikes is at hand; or the table is
        damaged.
    """
    rows, names = run.first_windows, run.recordings
    known = _read(run.path / TABLE) or _measured(run, _store_of(run, store), names, progress)
    missing = [name for name in names if name not in known]
    if missing:
        raise InputError(f"{run.path}: there are no burst parameters of recording {missing[0]}")
    return ParameterValues(
        names=NAMES,
        values=np.array([known[name] for name in names]).reshape(len(names), len(NAMES)),
        device=run.windows.device[rows],
        label=run.windows.label[rows],
        classes=run.classes,
        columns=_columns(run, store, names),
    )


def _read(path: Path) -> dict[str, list[float]]:
    """Read parameters.csv; empty where there is none, or one with other parameters."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    try:
        return {
            row["recording"]: [float(row[name]) if row[name] else math.nan for name in NAMES]
            for row in rows
        }
    except KeyError:  # of an earlier toptune with other parameters
        return {}
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from None


def _measured(
    run: ReadRun,
    store: FeatureStore | None,
    names: list[str],
    progress: Callable[[str, int, int], None] | None,
) -> dict[str, list[float]]:
    if store is None:
        raise InputError(
            f"{run.path} has no {TABLE}, and the store with its spikes is not at hand: name it"
        )
    table = parameter_table(
        store, BurstFeatureParams(), only=set(names), allow_incomplete=True, progress=progress
    )
    values = in_units(table.features).tolist()
    of = [table.recordings[row].name for row in table.recording]
    return dict(zip(of, values, strict=True))


def _store_of(run: ReadRun, store: FeatureStore | None) -> FeatureStore | None:
    return FeatureStore.at(run.params.get("store")) if store is None else store


def _columns(run: ReadRun, store: FeatureStore | None, names: list[str]) -> dict[str, NDArray[Any]]:
    """Look up the further columns of the devices file."""
    try:
        store = _store_of(run, store)
    except (InputError, MissingPackagesError):
        return {}
    infos = {} if store is None else {info.name: info.columns for info in store.recordings}
    columns = dict.fromkeys(column for name in names for column in infos.get(name, {}))
    return {
        column: np.array([infos.get(name, {}).get(column, "") for name in names], dtype=str)
        for column in columns
    }
