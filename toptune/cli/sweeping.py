"""The command that goes through a grid: sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toptune.cli.options import (
    Device,
    DeviceOption,
    JobsOption,
    JsonOption,
    SeedOption,
    print_json,
)


def sweep(
    devices: Annotated[Path, typer.Argument(help="CSV: recording,device,label.")],
    grid: Annotated[
        str, typer.Argument(help="A TOML file, or table1 or table2, which ship with toptune.")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="A new folder, or that of a sweep to go on with.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="KEY=VALUE above the grid's, as in TOML: stride_s=60, window_s=[120,10]; repeat.",
        ),
    ] = None,
    device: DeviceOption = Device.auto,
    n_jobs: JobsOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Extract, fit and score every combination of a grid: the paper's tables, or your own."""
    from toptune.cli.sweep_printing import print_swept, watch_sweep
    from toptune.machine.durable import writing
    from toptune.sweeps.grid import read_grid
    from toptune.sweeps.report import write_report
    from toptune.sweeps.sweep import sweep as run
    from toptune.sweeps.tables import write_result_tables

    read = read_grid(grid, settings or (), seed=seed)
    with watch_sweep() as watch:
        result = run(
            devices, read, out, device=device.value, n_jobs=n_jobs, seed=seed, watch=watch
        )  # fmt: skip
        with writing(out):
            write_result_tables(result)
            write_report(result)
    if as_json:
        print_json(result.to_json())
    else:
        print_swept(result)
    if result.failures:
        raise typer.Exit(3)
