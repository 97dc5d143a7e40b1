"""The command that goes through a grid: sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toptune.cli.options import SEED, AsJson, DevicesCsv, Machine, command
from toptune.cli.printing import print_json, tell
from toptune.recordings.devices import read_devices

if TYPE_CHECKING:
    from toptune.sweeps.results import SweepResult


@command("toptune sweep data/devices.csv table1 -o sweep --set window_s=30")
def sweep(
    devices: DevicesCsv,
    grid: Annotated[
        str, typer.Argument(help="TOML file, or table1 or table2, which come with toptune.")
    ],
    out: Annotated[
        Path,
        typer.Option("-o", "--out", help="New folder, or that of a sweep to go on with."),
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
    as_json: AsJson = False,
) -> None:
    """Extract, fit and score every combination of a grid: the paper's tables, or your own."""
    from toptune.sweeps.grid import read_grid

    read = read_grid(grid, settings or (), seed=seed)
    read_devices(devices)
    from toptune.runs.folder import SWEEP, require_target

    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        require_target(out, overwrite=True, kind=SWEEP)
    from toptune.cli.progress import watch_sweep
    from toptune.machine.durable import writing
    from toptune.sweeps.report import write_report
    from toptune.sweeps.sweep import sweep as run
    from toptune.sweeps.tables import write_result_tables

    with watch_sweep() as watch:
        result = run(
            devices,
            read,
            out,
            compute=machine,
            seed=seed,
            watch=watch,
        )
        with writing(out):
            write_result_tables(result)
            write_report(result)
    if as_json:
        print_json(result.to_json())
    else:
        print_swept(result)
    if result.failures:
        raise typer.Exit(3)


def print_swept(swept: SweepResult) -> None:
    """Print the tables, what to know of them, and where everything is."""
    from toptune.sweeps.plan import describe_task
    from toptune.sweeps.tables import RANDOM_NOTE, any_random, result_tables

    for table in result_tables(swept) if swept.done else ():
        tell(table.to_markdown())
    if not swept.done and any_random(swept.outcomes):
        tell(RANDOM_NOTE)
    for task in dict.fromkeys(describe_task(o.point.fit) for o in swept.done):
        mine = [o for o in swept.done if describe_task(o.point.fit) == task]
        warnings = [w for o in mine for w in (o.metrics or {}).get("warnings", [])]
        for warning in dict.fromkeys(warnings):
            tell(f"warning: {warning}")
    for note in swept.notes:
        tell(f"note: {note}")
    for failure in swept.failures:
        tell(f"failed: {failure.what} {failure.name}: {failure.cause}")
    n_reused = sum(o.reused for o in swept.outcomes)
    tell(
        f"{len(swept.done)} of {len(swept.outcomes)} runs are there ({n_reused} were before);"
        f" {swept.seconds:.0f} s; report: {swept.path / 'report.html'}"
    )
