"""Commands from features to verdicts: fit, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from toptune.cli.options import (
    Device,
    DeviceOption,
    Head,
    JobsOption,
    JsonOption,
    PrecisionChoice,
    PrecisionOption,
    RateOption,
    SeedOption,
    Solver,
    StreamOption,
    print_json,
)
from toptune.errors import InputError
from toptune.params import FitOptions


def fit(
    store: Annotated[Path, typer.Argument(help="A store made by extract.")],
    head: Annotated[Head, typer.Option(help="What to train on the features.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A new folder for the run.")],
    group_by: Annotated[
        str, typer.Option(help="Column of devices.csv that is left out together.")
    ] = "device",
    merge: Annotated[
        list[str] | None, typer.Option(help="NAME=A,B,C merges classes; may be repeated.")
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            help="Which features, where the store has several; repeated: fuse them. 'parameters':"
            " burst parameters of the same windows."
        ),
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune/--no-tune", help="Choose parameters inside every fold.")
    ] = True,
    width: Annotated[
        list[float] | None,
        typer.Option(help="Falkon: SD of the Gaussian. One value fixes it, several are tried."),
    ] = None,
    penalty: Annotated[
        list[float] | None, typer.Option(help="Falkon: ridge per row; one or several.")
    ] = None,
    view_weights: Annotated[
        list[str] | None,
        typer.Option(help="Falkon, fused features: weights such as 0.5,0.5; one or several."),
    ] = None,
    n_centres: Annotated[
        int | None, typer.Option(help="Falkon: Nystrom centres; all rows if they fit.")
    ] = None,
    solver: Annotated[Solver | None, typer.Option(help="Falkon; see docs/falkon.md.")] = None,
    epochs: Annotated[int | None, typer.Option(help="MLP.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="MLP.")] = None,
    learning_rate_decay: Annotated[
        list[float] | None,
        typer.Option(help="MLP: factor from epoch to epoch; one or several."),
    ] = None,
    weight_decay: Annotated[
        list[float] | None, typer.Option(help="MLP: L2 penalty; one or several.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="MLP.")] = None,
    inverse_penalty: Annotated[
        list[float] | None,
        typer.Option("--C", help="Parameters: C of the logistic regression; one or several."),
    ] = None,
    permutations: Annotated[
        int | None,
        typer.Option(
            min=0, help="Shuffles for the p-value: 1000 Falkon, 200 parameters, 0 the MLP."
        ),
    ] = None,
    strata: Annotated[
        str | None, typer.Option(help="Column of devices.csv within which labels are shuffled.")
    ] = None,
    allow_incomplete: Annotated[
        bool,
        typer.Option(
            "--allow-incomplete", help="Leave out recordings without features, and say so."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run.")] = False,
    device: Annotated[
        Device,
        typer.Option(help="auto takes a GPU; for Falkon's direct solver one with fast float64."),
    ] = Device.auto,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a head, leaving each device out once, and score it."""
    given: dict[Head, dict[str, Any]] = {
        Head.falkon: {
            "width": width,
            "penalty": penalty,
            "view_weights": [_weights(text) for text in view_weights or ()],
            "n_centres": n_centres,
            "solver": None if solver is None else solver.value,
        },
        Head.mlp: {
            "epochs": epochs,
            "learning_rate": learning_rate,
            "learning_rate_decay": learning_rate_decay,
            "weight_decay": weight_decay,
            "batch_size": batch_size,
        },
        Head.parameters: {"C": inverse_penalty},
    }
    for other, its_own in given.items():
        for name, value in its_own.items():
            if other is not head and value:
                option = "--" + name.replace("_", "-")
                raise InputError(f"{option} belongs to --head {other.value}, not {head.value}")
    from toptune.cli.printing import print_scores, watch_steps
    from toptune.runs.folder import require_target
    from toptune.store.feature_store import FeatureStore
    from toptune.store.tables import table_for
    from toptune.training import fit as run

    # Before burst parameters are measured, which may take a minute.
    require_target(out, overwrite=overwrite)
    opened = FeatureStore(store)
    fixed, tried = _fixed_and_tried(given[head])
    options = FitOptions(
        head=head.value, fixed=fixed, tried=tried, group_by=group_by, merge=tuple(merge or ()),
        tune=tune, permutations=permutations, strata=strata, seed=seed,
    )  # fmt: skip
    with watch_steps() as progress:
        table = table_for(
            opened, head.value, features or (), allow_incomplete=allow_incomplete,
            progress=progress,
        )  # fmt: skip
        result = run(
            table, options, out, facts=opened.training_facts(table), device=device.value,
            overwrite=overwrite, store=opened, progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(result.metrics)
    else:
        print_scores({head.value: result.metrics})
        typer.echo(f"run: {result.path}; to be looked at: {result.path / 'report.html'}")


def predict(
    model: Annotated[Path, typer.Argument(help="The model folder of a run.")],
    recordings: Annotated[list[Path], typer.Argument(help="Recordings of any kind.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A new folder for windows.csv and verdicts.")
    ] = None,
    weights: Annotated[
        list[Path] | None, typer.Option(help="Backbone weights that have moved; may be repeated.")
    ] = None,
    stream: StreamOption = None,
    sampling_rate_hz: RateOption = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures a batch.")] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="List failing recordings and go on.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a prediction.")] = False,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = PrecisionChoice.auto,
    n_jobs: JobsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say which class each recording looks like, and what speaks against trusting it."""
    from toptune.cli.printing import print_predictions, watch_extraction
    from toptune.prediction import predict as run

    with watch_extraction() as progress:
        result = run(
            model, recordings, weights=weights or (), stream=stream,
            sampling_rate_hz=sampling_rate_hz, device=device.value, precision=precision.value,
            n_jobs=n_jobs, batch_size=batch_size, out=out, overwrite=overwrite,
            keep_going=keep_going, progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(result.to_json())
    else:
        print_predictions(result)
    if result.failed:
        raise typer.Exit(3)


def _weights(text: str) -> tuple[float, ...]:
    """Read numbers between commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--view-weights {text!r} is not of the form 0.5,0.5") from None


def _fixed_and_tried(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
    """Tell options with one value, which are fixed, from those with several, which are tried."""
    fixed: dict[str, Any] = {}
    tried: dict[str, tuple[Any, ...]] = {}
    for name, value in given.items():
        if isinstance(value, list) and len(value) > 1:
            tried[name] = tuple(value)
        elif isinstance(value, list) and value:
            fixed[name] = value[0]
        elif value is not None and value != []:
            fixed[name] = value
    return fixed, tried
