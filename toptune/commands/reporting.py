"""Commands that show what was found: report, why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toptune.commands.options import JsonOption, print_json
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
    from toptune.printing import watch_steps
    from toptune.report import find_store, write_report

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
