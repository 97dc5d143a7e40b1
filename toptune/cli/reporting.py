"""Commands that show what was found: report, why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toptune.cli.options import Device, DeviceOption, JobsOption, JsonOption, print_json
from toptune.errors import InputError


def report(
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    store: Annotated[
        Path | None,
        typer.Option(help="The run's store, whose spikes are drawn; fit's if not set."),
    ] = None,
    beside: Annotated[
        list[Path] | None, typer.Option(help="Another run to compare with; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The HTML file; RUN/report.html if not set.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run's report: one HTML file, for any browser, offline."""
    from toptune.cli.printing import watch_steps
    from toptune.reports.run import find_store, write_report

    if out is not None and not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}")
    with watch_steps() as progress:
        path = write_report(
            run, store=find_store(run, store), beside=beside or (), out=out, progress=progress
        )
    if as_json:
        print_json({"report": str(path), "bytes": path.stat().st_size})
    else:
        typer.echo(f"report: {path}")


def why(
    model: Annotated[Path, typer.Argument(help="The model folder of a run.")],
    recordings: Annotated[list[Path], typer.Argument(help="Recordings of any kind.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A new folder for why.html and tables.")],
    of_class: Annotated[
        str | None, typer.Option("--class", help="What to explain; the verdict if not set.")
    ] = None,
    stretch_s: Annotated[
        float | None,
        typer.Option("--stretch-s", help="Seconds silenced at a time; a twelfth of a window."),
    ] = None,
    step_s: Annotated[
        float | None, typer.Option("--step-s", help="How far they move on; half of them.")
    ] = None,
    weights: Annotated[
        list[Path] | None, typer.Option(help="Backbone weights that have moved; may be repeated.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures a batch.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an explanation.")] = False,
    device: DeviceOption = Device.auto,
    n_jobs: JobsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which windows, and which seconds in them, spoke for a verdict."""
    from toptune.cli.printing import watch_extraction
    from toptune.explanation import why as run
    from toptune.reports.why import summary
    from toptune.runs.occlusion import Occlusion

    occlusion = Occlusion(stretch_s=stretch_s, step_s=step_s)
    with watch_extraction() as progress:
        explained = run(
            model, recordings, out, of_class=of_class, occlusion=occlusion, weights=weights or (),
            device=device.value, n_jobs=n_jobs, batch_size=batch_size, overwrite=overwrite,
            progress=progress,
        )  # fmt: skip
    found = [summary(one) for one in explained]
    if as_json:
        print_json({"out": str(out), "recordings": found})
        return
    for one in found:
        begin = one["strongest_stretch_start_s"]
        typer.echo(
            f"{one['recording']}: {one['prediction']}; {begin:g} to {begin + one['stretch_s']:g} s"
            f" spoke most for {one['class']} ({one['largest_drop']:+.2f})"
        )
    typer.echo(f"to be looked at: {out / 'why.html'}")
