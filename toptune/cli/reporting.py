"""Commands that show what was found: report, why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toptune.cli.options import (
    ADVANCED,
    AsJson,
    ModelFolder,
    MovedWeights,
    Only,
    Overwrite,
    Recordings,
    command,
    require_model,
    require_parent,
    require_recordings,
    require_run,
    require_store,
)
from toptune.cli.printing import print_json, tell, watch_recordings, watch_steps
from toptune.params import Compute, OpeningOptions


@command("toptune report run")
def report(
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    store: Annotated[
        Path | None,
        typer.Option(
            help="Store whose spikes are drawn, if it is no longer where the run was fitted."
        ),
    ] = None,
    beside: Annotated[
        list[Path] | None, typer.Option(help="Another run to compare with; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="HTML file to write; RUN/report.html if not given."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's report: one HTML file for any browser, offline."""
    if out is not None:
        require_parent(out)
    for folder in (run, *(beside or ())):
        require_run(folder)
    if store is not None:
        require_store(store)
    from toptune.reports.run import find_store, write_report

    with watch_steps() as progress:
        path = write_report(
            run, store=find_store(run, store), beside=beside or (), out=out, progress=progress
        )
    if as_json:
        print_json({"report": str(path), "bytes": path.stat().st_size})
    else:
        tell(f"report: {path}")


@command("toptune why run/model data/D01_100E0I.h5 -o why")
def why(
    model: ModelFolder,
    recordings: Recordings,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="New folder for why.html and its tables.")
    ],
    opening: OpeningOptions,
    machine: Annotated[Compute, Only(("device", "batch_size", "n_jobs"))],
    of_class: Annotated[
        str | None,
        typer.Option("--class", help="Class to explain; the predicted class if not given."),
    ] = None,
    stretch_s: Annotated[
        float | None,
        typer.Option(
            "--stretch-s",
            help="Length of the gap without spikes, in seconds; 1/12 of a window if not given.",
            rich_help_panel=ADVANCED,
        ),
    ] = None,
    step_s: Annotated[
        float | None,
        typer.Option(
            "--step-s",
            help="How far the gap moves at a time, in seconds; half its length if not given.",
            rich_help_panel=ADVANCED,
        ),
    ] = None,
    weights: MovedWeights = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Show which windows, and which seconds in them, contributed to a verdict."""
    from toptune.runs.folder import WHY, require_target

    require_target(out, overwrite=overwrite, kind=WHY)
    require_model(model)
    require_recordings(recordings)
    from toptune.explanation import why as run
    from toptune.reports.why import summary
    from toptune.runs.occlusion import Occlusion

    occlusion = Occlusion(stretch_s=stretch_s, step_s=step_s)
    with watch_recordings() as progress:
        explained = run(
            model,
            recordings,
            out,
            of_class=of_class,
            occlusion=occlusion,
            weights=weights or (),
            opening=opening,
            compute=machine,
            overwrite=overwrite,
            progress=progress,
        )
    found = [summary(one) for one in explained]
    if as_json:
        print_json({"out": str(out), "recordings": found})
        return
    for one in found:
        begin = one["strongest_stretch_start_s"]
        tell(
            f"{one['recording']}: {one['prediction']}; {begin:g} to {begin + one['stretch_s']:g} s"
            f" contributed most to {one['class']} ({one['largest_drop']:+.2f})"
        )
    tell(f"report: {out / 'why.html'}")
