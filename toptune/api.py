"""The steps from Python, in a call each, as the commands of the same names do them.

`extract`, `predict` and `explain` are where their work is; here are those that put several parts
together: `fit`, `sweep` and `report`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, get_origin

from toptune.cluster import Cluster, open_cluster
from toptune.errors import InputError
from toptune.heads.base import Head, Progress
from toptune.heads.catalogue import head_of, require_spreading
from toptune.machine.durable import writing
from toptune.machine.remote import as_path, local_output
from toptune.params import Compute, Device, FitOptions, Option, write_merge, write_names
from toptune.reports.run import find_store, write_report
from toptune.runs.folder import FIGURES, figures_folder, require_target
from toptune.store.feature_store import FeatureStore
from toptune.store.tables import table_for
from toptune.sweeps.grid import Grid, read_grid
from toptune.sweeps.report import write_report as write_sweep_report
from toptune.sweeps.results import SilentSweep, SweepReporter, SweepResult
from toptune.sweeps.sweep import sweep as run_sweep
from toptune.sweeps.tables import write_result_tables
from toptune.training import RunResult
from toptune.training import fit as fit_table


def fit(
    store: FeatureStore | Path | str,
    out: Path | str,
    *,
    head: str = "falkon",
    features: str | Sequence[str] = (),
    parameters: Mapping[str, Any] | None = None,
    group_by: str = "device",
    merge: Mapping[str, Sequence[str]] | None = None,
    classes: Sequence[str] | None = None,
    strata: str | None = None,
    windows_per_recording: int | None = None,
    tune: bool = True,
    permutations: int | None = None,
    seed: int = 0,
    device: Device = "auto",
    allow_incomplete: bool = False,
    overwrite: bool = False,
    dask: str | Cluster | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Train a classifier on a store, and score it by leaving each device out once.

    Without further arguments that is the recommended classifier on all that the store has.

    Parameters
    ----------
    store
        What `extract` made, or its path.
    out
        Folder of the run; must not exist, unless `overwrite` and it is a run.
    head
        Name of the classifier: ``falkon``, ``mlp``, ``recordings``, ``parameters``, or one that an
        installed package adds.
    features
        Which feature sets to train on, by words of their descriptions; several are fused.
        ``parameters`` are burst parameters of the same windows. ``falkon`` and ``recordings`` take
        all unless told otherwise.
    parameters
        Values of the classifier's options, such as ``{"penalty": 1e-5}``. Of a list of values one
        is chosen inside every fold.
    group_by
        Column of devices.csv whose values are left out together.
    merge
        Classes to be merged, by the name of what they become: ``{"drug": ["low", "high"]}``.
    classes
        In which order reports and diagrams show the classes; None: as devices.csv names them first.
    strata
        Column of devices.csv; labels are shuffled only within its values.
    windows_per_recording
        The most windows of a recording to train on and to score, evenly spread; 0: all; None: as
        the classifier recommends.
    tune
        Choose parameters inside every fold, or take the classifier's defaults.
    permutations
        Number of label shuffles for the p-value; 0: none; None: as the classifier recommends.
    seed
        Of all random numbers: equal seeds give equal results.
    device
        Where to compute: ``auto``, ``cpu`` or ``cuda``.
    allow_incomplete
        Leave out recordings without features, and say so.
    overwrite
        Replace a run in `out`.
    dask
        Choose the parameters of ``mlp`` on Dask's workers: a scheduler's address, ``local:N`` for N
        processes of this machine, or what `open_cluster` gave.
    progress
        Told what is going on, how much of it is done, and how much there is.

    Returns
    -------
    RunResult
        Its `path` holds the report, the tables and the model.

    Raises
    ------
    InputError
        No such store or classifier, options that it does not have or that are out of range,
        feature sets that cannot be told apart, or anything wrong with the input (`InputErrors`
        lists all of it), before anything is trained.
    MissingPackagesError
        The classifier needs torch, which is not installed.
    """
    fixed, tried = _settings(head_of(head), parameters or {})
    options = FitOptions(
        head=head,
        fixed=fixed,
        tried=tried,
        group_by=group_by,
        merge=tuple(write_merge(name, tuple(those)) for name, those in (merge or {}).items()),
        classes=None if classes is None else write_names(classes),
        strata=strata,
        windows_per_recording=windows_per_recording,
        tune=tune,
        permutations=permutations,
        seed=seed,
    )
    return fit_store(
        store,
        out,
        options,
        features=[features] if isinstance(features, str) else features,
        device=device,
        allow_incomplete=allow_incomplete,
        overwrite=overwrite,
        dask=dask,
        progress=progress,
    )


def fit_store(
    store: FeatureStore | Path | str,
    out: Path | str,
    options: FitOptions,
    *,
    features: Sequence[str] = (),
    device: Device = "auto",
    allow_incomplete: bool = False,
    overwrite: bool = False,
    dask: str | Cluster | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Do what `fit` does, with options that are checked already."""
    out = local_output(out)
    # Before burst parameters are measured, which may take a minute.
    require_target(out, overwrite=overwrite)
    opened = store if isinstance(store, FeatureStore) else FeatureStore(store)
    if dask is not None:
        require_spreading(options.head)
    table = table_for(
        opened,
        options.head,
        features,
        windows_per_recording=options.windows_per_recording,
        allow_incomplete=allow_incomplete,
        progress=progress,
    )
    with nullcontext() if dask is None else open_cluster(dask) as cluster:
        return fit_table(
            table,
            options,
            out,
            facts=opened.training_facts(table),
            device=device,
            overwrite=overwrite,
            store=opened,
            cluster=cluster,
            progress=progress,
        )


def _settings(
    head: Head, given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
    """Tell values that are fixed from those to choose from, by the classifier's own fields."""
    options = {name: one for one in head.options for name in (one.field, one.name)}
    fixed: dict[str, Any] = {}
    tried: dict[str, tuple[Any, ...]] = {}
    for name, value in given.items():
        if name not in options:
            listed = ", ".join(one.field for one in head.options)
            raise InputError(f"the classifier {head.name} has no option {name!r}; it has {listed}")
        one = options[name]
        values = tuple(value) if _are_several(one, value) else (value,)
        for each in values:
            head.check_option(one.name, each)
        if len(values) == 1:
            (fixed[one.field],) = values
        else:
            tried[one.field] = values
    return fixed, tried


def _are_several(one: Option, value: Any) -> bool:
    """Whether a value is a list of values; a value of some options is a tuple itself."""
    if not (one.several and isinstance(value, list | tuple)):
        return False
    return get_origin(one.type) is not tuple or any(isinstance(v, list | tuple) for v in value)


def sweep(
    devices: Path | str,
    grid: Grid | Path | str,
    out: Path | str,
    *,
    settings: Mapping[str, Any] | None = None,
    compute: Compute | None = None,
    seed: int = 0,
    dask: str | Cluster | None = None,
    progress: SweepReporter | None = None,
) -> SweepResult:
    """Extract, fit and score every combination of a grid, and write its tables and report.

    Parameters
    ----------
    devices
        The devices file.
    grid
        A TOML file, ``table1`` or ``table2`` of the paper, or what `toptune.sweeps.read_grid` gave.
    out
        A new folder, or that of a sweep to go on with.
    settings
        Values in place of the grid's, by its keys.
    compute
        Where and with how much of the machine.
    seed
        Of the classifiers and of random weights.
    dask
        Find spikes, describe pictures and tune ``mlp`` on Dask's workers, as of `extract`.
    progress
        Shows the progress.

    Returns
    -------
    SweepResult
        What failed is in its `failures`.

    Raises
    ------
    InputErrors
        Everything that is wrong with the grid, the devices file, the recordings' headers or the
        folder, before any work.
    """
    if isinstance(grid, Grid):
        if settings:
            raise InputError("`settings` are for a grid that is read: give its file or its name")
    else:
        words = [f"{key}={_toml(value)}" for key, value in (settings or {}).items()]
        grid = read_grid(grid, words, seed=seed)
    out = local_output(out)
    result = run_sweep(
        devices, grid, out, compute=compute, seed=seed, dask=dask, watch=progress or SilentSweep()
    )
    with writing(out):
        write_result_tables(result)
        write_sweep_report(result)
    return result


def _toml(value: Any) -> str:
    """Write a value as TOML does, which for these kinds is what JSON does."""
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def report(
    run: RunResult | Path | str,
    *,
    store: FeatureStore | Path | str | None = None,
    beside: Sequence[RunResult | Path | str] = (),
    out: Path | str | None = None,
    figures: Literal["svg", "pdf"] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a run's report: one HTML file for any browser, offline.

    Parameters
    ----------
    run
        What `fit` gave, or the folder of a run.
    store
        Whose spikes are drawn, where it is no longer where the run was fitted.
    beside
        Other runs to compare with.
    out
        The file; report.html in the run's folder where None.
    figures
        Also write each figure for a journal as a file of this kind, with its data as CSV, legends
        and a description of the methods: into ``figures`` in the run's folder or, where `out` is
        ``NAME.html``, into ``NAME-figures`` beside it.
    progress
        Told what is going on, how much of it is done, and how much there is.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    InputError
        The folder is no run or a damaged one, the store is not the one the run was fitted on, or
        something else is where the figures go.
    """
    folder = _folder(run)
    if isinstance(store, FeatureStore):
        opened: FeatureStore | None = store
    else:
        opened = find_store(folder, None if store is None else as_path(store))
    out = None if out is None else local_output(out)
    place = figures_folder(folder, out)
    if figures is not None:
        require_target(place, overwrite=True, kind=FIGURES)
    path = write_report(
        folder,
        store=opened,
        beside=[_folder(one) for one in beside],
        out=out,
        progress=progress,
    )
    if figures is not None:
        # Here, since it loads Matplotlib, which no other step needs before it is at work.
        from toptune.reports.figures import write_figures

        write_figures(folder, place, figures, store=opened, progress=progress)
    return path


def _folder(run: RunResult | Path | str) -> Path:
    return run.path if isinstance(run, RunResult) else Path(run)
