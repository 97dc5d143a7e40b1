"""Commands that train classifiers and ask them: fit, predict, sweep."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin

import typer

from toptune.cli.options import (
    ADVANCED,
    SEED,
    AsJson,
    DaskAddress,
    DevicesCsv,
    KeepGoing,
    Machine,
    ModelFolder,
    MovedWeights,
    Only,
    Overwrite,
    Recordings,
    command,
    flag,
    require_model,
    require_recordings,
    require_store,
    typer_parameter,
)
from toptune.cli.printing import (
    opened_cluster,
    print_json,
    print_scores,
    tell,
    watch_recordings,
    watch_steps,
    watch_sweep,
)
from toptune.errors import InputError, InputErrors
from toptune.heads.base import Head
from toptune.heads.catalogue import BUILT_IN, head_of, require_spreading
from toptune.machine.display import count
from toptune.params import Compute, FitOptions, OpeningOptions, Option, options_of, parse_setting
from toptune.recordings.devices import read_devices

if TYPE_CHECKING:
    from toptune.runs.verdicts import Predictions
    from toptune.sweeps.results import SweepResult


class FitChoice:
    """What `fit` takes: options of every fit, and those of toptune's own classifiers."""

    def parameters(self) -> Iterable[inspect.Parameter]:
        """See `Expansion`."""
        yield from map(typer_parameter, options_of(FitOptions))
        for name, owners in _owners().items():
            one = next(one for one in owners[0].options if one.name == name)
            also = ", ".join(f"--head {head.name}" for head in owners[1:])
            more = f" Also of {also}." if also else ""
            more += " Repeat it to choose inside every fold." if one.several else ""
            yield typer_parameter(replace(one, help=one.help + more))

    def fields(self) -> Iterable[tuple[str, Option]]:
        """See `Expansion`."""
        return [(h.estimator.partition(":")[2], one) for h in BUILT_IN for one in h.options]

    def build(self, given: Mapping[str, Any], by_user: Collection[str]) -> FitOptions:
        """See `Expansion`."""
        head = head_of(given["head"])
        # A value is fixed only where the user gives it, and is refused with another classifier.
        values = {
            name: _of_head(head, owners, name, given[name])
            for name, owners in _owners().items()
            if name in by_user
        }
        for setting in given["settings"] or ():
            values |= _setting(head, setting)
        fixed: dict[str, Any] = {}
        tried: dict[str, tuple[Any, ...]] = {}
        for one in (one for one in head.options if one.name in values):
            listed = values[one.name] if one.several else [values[one.name]]
            for value in listed:
                head.check_option(one.name, value)
            if len(listed) > 1:
                tried[one.field] = tuple(listed)
            else:
                fixed[one.field] = listed[0]
        shared = {o.field: given[o.name] for o in options_of(FitOptions)}
        shared["merge"] = tuple(shared["merge"] or ())
        return FitOptions(head=head.name, fixed=fixed, tried=tried, **shared)


def _owners() -> dict[str, list[Head]]:
    """List toptune's own classifiers that have each option, by its name."""
    found: dict[str, list[Head]] = {}
    for head in BUILT_IN:
        for one in head.options:
            found.setdefault(one.name, []).append(head)
    return found


def _of_head(head: Head, owners: Sequence[Head], name: str, value: Any) -> Any:
    """Give what a user set of a classifier's option, which toptune's own `owners` have."""
    own = {one.name: one for one in head.options}
    if name not in own:
        names = " or ".join(owner.name for owner in owners)
        raise InputError(f"{flag(name)} belongs to --head {names}, not {head.name}")
    if head not in owners or get_origin(own[name].type) is not tuple:
        return value
    return [_numbers(own[name], text) for text in value]


def _numbers(one: Option, text: str) -> tuple[float, ...]:
    """Read numbers between commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{flag(one.name)} {text!r} is not of the form 0.5,0.5") from None


def _setting(head: Head, setting: str) -> dict[str, Any]:
    """Read KEY=VALUE for a classifier's option."""
    ((name, value),) = parse_setting(setting).items()
    listed = {one.name: one for one in head.options}
    if name not in listed:
        raise InputError(
            f"--set {setting}: --head {head.name} has no option {name}; it has {', '.join(listed)}"
        )
    one = listed[name]
    inner = value[0] if isinstance(value, list) and value else value
    is_list = isinstance(inner if get_origin(one.type) is tuple else value, list)
    return {name: value if is_list or not one.several else [value]}


@command("toptune fit study.zarr -o run")
def fit(
    store: Annotated[Path, typer.Argument(help="A store made by extract, or its URL.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="New folder for the run.")],
    options: Annotated[FitOptions, FitChoice()],
    machine: Annotated[Compute, Only(("device",))],
    head: Annotated[
        str,
        typer.Option(
            help=f"Classifier to train: {', '.join(head.name for head in BUILT_IN)}, or one that an"
            " installed package adds."
        ),
    ] = "falkon",
    features: Annotated[
        list[str] | None,
        typer.Option(
            help="Feature set to train on; repeat it to fuse several. 'parameters': burst"
            " parameters of the same windows. falkon and recordings take all unless told otherwise."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set any option of the classifier, with a value as in TOML; may be repeated.",
            rich_help_panel=ADVANCED,
        ),
    ] = None,
    allow_incomplete: Annotated[
        bool,
        typer.Option(
            "--allow-incomplete", help="Leave out recordings without features, and say so."
        ),
    ] = False,
    overwrite: Overwrite = False,
    dask: DaskAddress = None,
    as_json: AsJson = False,
) -> None:
    """Train a classifier on a store's features, and score it by leaving each device out once."""
    del head, settings  # they are in the options
    from toptune.runs.folder import require_target

    # Before burst parameters are measured, which may take a minute.
    require_target(out, overwrite=overwrite)
    require_store(store)
    if dask is not None:
        require_spreading(options.head)
    from toptune.store.feature_store import FeatureStore

    opened = FeatureStore(store)  # refused here, before what trains and draws is loaded
    from toptune.api import fit_store

    with opened_cluster(dask) as cluster, watch_steps() as progress:
        result = fit_store(
            opened,
            out,
            options,
            features=features or (),
            device=machine.device,
            allow_incomplete=allow_incomplete,
            overwrite=overwrite,
            dask=cluster,
            progress=progress,
        )
    if as_json:
        print_json(result.metrics)
    else:
        print_scores({options.head: result.metrics})
        tell(f"run: {result.path}; report: {result.path / 'report.html'}")


@command("toptune predict run data/D01_100E0I.h5 -o predictions")
def predict(
    model: ModelFolder,
    recordings: Recordings,
    opening: OpeningOptions,
    machine: Compute,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="New folder for report.html and the tables.")
    ] = None,
    weights: MovedWeights = None,
    keep_going: KeepGoing = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Predict the class of each recording, and say what speaks against trusting it."""
    require_model(model)
    if out is not None:
        from toptune.runs.folder import PREDICTIONS, require_target

        require_target(out, overwrite=overwrite, kind=PREDICTIONS)
    if not keep_going:
        require_recordings(recordings)
    from toptune.prediction import predict as run

    with watch_recordings() as progress:
        result = run(
            model,
            recordings,
            weights=weights or (),
            opening=opening,
            compute=machine,
            out=out,
            overwrite=overwrite,
            keep_going=keep_going,
            progress=progress,
        )
    if as_json:
        print_json(result.to_json())
    else:
        print_predictions(result)
        if out is not None:
            tell(f"report: {out / 'report.html'}")
    if result.failed:
        raise typer.Exit(3)


def print_predictions(result: Predictions) -> None:
    """Print a verdict per recording, and what speaks against it."""
    for one in result.recordings:
        unlike = ", UNLIKE anything in training" if one.unlike_training else ""
        tell(f"{one.recording}: {one.prediction} (probability {one.probability:.2f}){unlike}")
        for warning in one.warnings:
            tell(f"  warning: {warning}")
    for name, cause in result.failed:
        tell(f"{name}: failed: {cause}")
    tell(result.caution)


@command("toptune sweep data/devices.csv table1 -o sweep --set window_s=30")
def sweep(
    devices: DevicesCsv,
    grid: Annotated[
        str, typer.Argument(help="TOML file, or table1 or table2, which come with toptune.")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="New folder, or that of a sweep to go on with.")
    ],
    machine: Machine,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Use this value, written as in TOML, instead of the grid's; may be repeated.",
        ),
    ] = None,
    seed: Annotated[int, SEED] = 0,
    dask: DaskAddress = None,
    as_json: AsJson = False,
) -> None:
    """Extract, fit and score every combination of a grid: the paper's tables, or your own."""
    from toptune.sweeps.grid import read_grid

    read = read_grid(grid, settings or (), seed=seed)
    read_devices(devices)
    from toptune.runs.folder import sweep_problems

    if problems := sweep_problems(out):
        raise InputErrors(problems)
    from toptune.api import sweep as run

    with opened_cluster(dask) as cluster, watch_sweep() as watch:
        result = run(devices, read, out, compute=machine, seed=seed, dask=cluster, progress=watch)
    if as_json:
        print_json(result.to_json())
    else:
        print_swept(result)
    if result.failures:
        raise typer.Exit(3)


def print_swept(swept: SweepResult) -> None:
    """Print the tables, what to know of them, and where everything is."""
    from toptune.sweeps.results import by_task, warnings_of
    from toptune.sweeps.tables import RANDOM_NOTE, any_random, result_tables

    for table in result_tables(swept) if swept.done else ():
        tell(table.to_markdown())
    if not swept.done and any_random(swept.outcomes):
        tell(RANDOM_NOTE)
    for done in by_task(swept.done).values():
        for warning in warnings_of(done):
            tell(f"warning: {warning}")
    for note in swept.notes:
        tell(f"note: {note}")
    for failure in swept.failures:
        tell(f"failed: {failure.what} {failure.name}: {failure.cause}")
    n_reused = sum(o.reused for o in swept.outcomes)
    tell(
        f"{len(swept.done)} of {count(len(swept.outcomes), 'run')} done ({n_reused} before);"
        f" {swept.seconds:.0f} s; report: {swept.path / 'report.html'}"
    )
