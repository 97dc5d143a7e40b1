"""What stands against a sweep, found before any work.

What enters: a devices file, a grid and a folder. What leaves: devices and loaded backbones, or all
problems at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from toptune.devices import DeviceRow, DevicesFile, read_devices
from toptune.errors import InputError, InputErrors, ToptuneError
from toptune.featuretable import RecordingInfo
from toptune.finding import check_recording
from toptune.fit import fit_problems
from toptune.grid import FitOptions, Grid
from toptune.hardware import torch_device
from toptune.params import Backbone
from toptune.run_folder import FolderKind, target_problems
from toptune.store import FeatureStore, recording_name
from toptune.sweep_features import SharedEngine

SWEEP = FolderKind("sweep", "sweep.json", "toptune sweep")
#: Name of the one store in a sweep's folder.
STORE = "store.zarr"


class Checked(NamedTuple):
    """What a sweep works with.

    Attributes
    ----------
    devices : DevicesFile
    engines : dict of Backbone to SharedEngine
        In the grid's order; not compiled yet.
    """

    devices: DevicesFile
    engines: dict[Backbone, SharedEngine]


def check_sweep(
    devices: Path, grid: Grid, out: Path, *, device: str, n_jobs: int | None, seed: int
) -> Checked:
    """Check everything that can be checked before any work.

    Parameters
    ----------
    devices, grid, out, device, n_jobs, seed
        As for `toptune.sweep.sweep`.

    Raises
    ------
    InputErrors
        All problems at once.
    """
    problems: list[str] = []
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        problems += target_problems(out, overwrite=True, kind=SWEEP)
    listed: DevicesFile | None = None
    try:
        listed = read_devices(devices)
        problems += _recording_problems(listed, grid)
        problems += _fit_problems(listed, grid, seed, device)
        problems += _store_problems(out / STORE, grid)
    except InputErrors as error:
        problems += error.problems
    except InputError as error:
        problems.append(str(error))
    engines = _load(grid, device, n_jobs, problems)
    if problems or listed is None:
        raise InputErrors(list(dict.fromkeys(problems)))
    return Checked(listed, engines)


def _load(
    grid: Grid, device: str, n_jobs: int | None, problems: list[str]
) -> dict[Backbone, SharedEngine]:
    from toptune.backbones import load_backbone

    engines = {}
    for backbone in dict.fromkeys(view.backbone for view in grid.views):
        try:
            where = torch_device(device)
            engines[backbone] = SharedEngine(load_backbone(backbone), where, n_jobs=n_jobs)
        except ToptuneError as error:
            problems.append(str(error))
    return engines


def _recording_problems(devices: DevicesFile, grid: Grid) -> list[str]:
    problems = []
    for row in devices.rows:
        try:
            check_recording(row.recording, grid.spikes)
        except InputError as error:
            problems.append(f"{devices.path}, line {row.line}: {error}")
    return problems


def _store_problems(store: Path, grid: Grid) -> list[str]:
    """Say whether the store that is there has its spikes from other settings."""
    if not store.exists() or FeatureStore(store).settings == grid.spikes.to_json():
        return []
    return [
        f"{store}: its spikes were found with other settings of detection: use the same, or sweep"
        " into another folder"
    ]


def _fit_problems(devices: DevicesFile, grid: Grid, seed: int, device: str) -> list[str]:
    infos = [recording_info(row) for row in devices.rows]
    fits = dict.fromkeys(c.fit for c in grid.combinations)
    return [
        problem
        for one in fits
        for problem in fit_problems(infos, one.head, **fit_arguments(one, seed, device))
    ]


def recording_info(row: DeviceRow) -> RecordingInfo:
    """Say of a row what a store keeps of it."""
    return RecordingInfo(recording_name(row.written), row.device, row.label, row.columns)


def fit_arguments(options: FitOptions, seed: int, device: str) -> dict[str, Any]:
    """Give the arguments of `fit` for a way of fitting.

    Parameters
    ----------
    options
        How.
    seed, device
        Of the sweep. A GPU is asked for where it is of use: not every head has a use for one.
    """
    return {
        "group_by": options.group_by,
        "merge": options.merge,
        "head_params": dict(options.params),
        "tune": options.tune,
        "grid": dict(options.tried),
        "permutations": options.permutations,
        "strata": options.strata,
        "seed": seed,
        "device": "auto" if device == "cuda" else device,
    }
