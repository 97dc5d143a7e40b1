"""Commands that show what was found: report, why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

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
from toptune.cli.printing import print_json, tell, watch_recording_steps, watch_steps
from toptune.params import Compute, OpeningOptions

FigureFormat = Literal["svg", "pdf"]


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
    figures: Annotated[
        FigureFormat | None,
        typer.Option(
            help="Also write each figure as a file for a journal, with its data as CSV and"
            " methods.md, into RUN/figures (with -o X.html: X-figures)."
        ),
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
    from toptune.runs.folder import FIGURES, figures_folder, require_target

    place = figures_folder(run, out)
    if figures is not None:
        require_target(place, overwrite=True, kind=FIGURES)
    from toptune.reports.run import find_store, write_report

    with watch_steps() as progress:
        opened = find_store(run, store)
        path = write_report(run, store=opened, beside=beside or (), out=out, progress=progress)
        if figures is not None:
            from toptune.reports.figures import write_figures

            write_figures(run, place, figures, store=opened, progress=progress)
    if as_json:
        drawn = {} if figures is None else {"figures": str(place)}
        print_json({"report": str(path), "bytes": path.stat().st_size, **drawn})
        return
    tell(f"report: {path}")
    if figures is not None:
        tell(f"figures and methods.md: {place}")


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
    electrode_windows: Annotated[
        int,
        typer.Option(
            "--electrode-windows",
            min=0,
            help="In how many windows each electrode is left out; 0: in none.",
            rich_help_panel=ADVANCED,
        ),
    ] = 4,
    weights: MovedWeights = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Show which windows, seconds and electrodes contributed to a verdict."""
    from toptune.runs.folder import WHY, require_target

    require_target(out, overwrite=overwrite, kind=WHY)
    require_model(model)
    require_recordings(recordings)
    from toptune.explanation import explain as run
    from toptune.reports.why import summary
    from toptune.runs.occlusion import Occlusion

    occlusion = Occlusion(stretch_s=stretch_s, step_s=step_s, electrode_windows=electrode_windows)
    with watch_recording_steps(len(recordings), _WHY_SHARES, _WHY_EXPECTED_S) as progress:
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
        for line in _told(one):
            tell(line)
    tell(f"report: {out / 'why.html'}")


# The steps of explaining a recording, in their order, and their shares of its time, measured with
# two pictures and burst parameters on 2 cores; and how long it takes there.
_WHY_SHARES = {
    "spikes": 0.05,
    "features": 0.15,
    "burst parameters": 0.05,
    "gaps": 0.4,
    "electrodes": 0.35,
}
_WHY_EXPECTED_S = 30.0


def _told(found: dict[str, Any]) -> Iterator[str]:
    """Say what a recording was classified as, and what contributed most to the class."""
    from toptune.reports.why import SMALL_ALONE

    name = found["class"]
    yield f"{found['recording']}: {found['prediction']}"
    begin, drop = found["strongest_stretch_start_s"], found["largest_drop"]
    yield (
        f"  {begin:g} to {begin + found['stretch_s']:g} s contributed most to {name} ({drop:+.2f})"
    )
    electrodes = found.get("electrodes", [])
    if electrodes:
        each = ", ".join(f"{one['electrode']} ({one['drop']:+.2g})" for one in electrodes)
        small = ", each of them little" if electrodes[0]["drop"] < SMALL_ALONE else ""
        yield f"  of the electrodes {each} contributed most{small}"
