"""Commands on recordings: simulate, inspect, detect, extract."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toptune.cli.options import (
    N_JOBS,
    SEED,
    ARecording,
    AsJson,
    DevicesCsv,
    KeepGoing,
    Machine,
    Overwrite,
    PictureChoice,
    command,
    require_backbone,
    require_new_file,
    require_recordings,
)
from toptune.cli.printing import print_json, tell, watch_count, watch_recordings
from toptune.errors import InputError
from toptune.params import Backbone, Compute, Picture, SpikeSettings, Windows
from toptune.recordings.devices import read_devices

if TYPE_CHECKING:
    from toptune.extraction import ExtractionResult
    from toptune.reports.plate import Well


@command("toptune simulate data --devices 10 --seconds 120")
def simulate(
    directory: Annotated[Path, typer.Argument(help="Folder to write into.")],
    devices: Annotated[int, typer.Option(min=1, help="Number of cultures to simulate.")] = 10,
    seconds: Annotated[float, typer.Option(help="Length of each recording, in seconds.")] = 120.0,
    seed: Annotated[int, SEED] = 0,
    n_jobs: Annotated[int | None, N_JOBS] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write MCS recordings of simulated networks, their true spikes, and devices.csv."""
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is no folder; choose another place")
    table = directory / "devices.csv"
    if table.exists() and not overwrite:
        raise InputError(f"{table} is already there; choose another folder or overwrite it")
    from toptune.machine.threads import usable_cores
    from toptune.recordings.simulated import simulate as run

    with watch_count("simulating", devices) as advance:
        path = run(
            directory,
            n_devices=devices,
            seconds=seconds,
            seed=seed,
            n_jobs=n_jobs or usable_cores(),
            overwrite=overwrite,
            on_device=advance,
        )
    if as_json:
        print_json({"devices": str(path), "n_devices": devices, "seconds": seconds, "seed": seed})
    else:
        tell(f"{devices} recordings of {seconds:g} s; next: toptune extract {path}")


@command("toptune inspect data/D01_100E0I.h5 --png overview.png")
def inspect(
    recording: ARecording,
    spikes: SpikeSettings,
    machine: Machine,
    png: Annotated[Path | None, typer.Option(help="PNG file to draw the recording into.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Show a recording's header, channels, thresholds and firing rates."""
    if png is not None:
        require_new_file(png, overwrite=overwrite)
    view = _overview(recording, spikes, machine)
    if png is not None:
        from toptune.reports.overview_plot import draw_overview

        draw_overview(view, png)
    if as_json:
        print_json(view.summary)
    else:
        _print_overview(view.summary)


@command("toptune plate plate.h5 -o devices.csv")
def plate(
    recording: ARecording,
    spikes: SpikeSettings,
    machine: Machine,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="CSV file to write: a line per well, labels to fill in."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """List the wells of a plate with their firing rates, and write a devices.csv to fill in."""
    if out is not None:
        require_new_file(out, overwrite=overwrite)
    require_recordings([recording])
    from toptune.machine.durable import write_whole
    from toptune.reports.plate import devices_table
    from toptune.reports.plate import plate as run

    with watch_recordings() as progress:
        wells = run(
            recording,
            spikes,
            machine,
            on_well=lambda name, number, n: progress.recording(number, n, f"well {name}"),
        )
    if out is not None:
        write_whole(out, devices_table(recording, wells, spikes, out))
    if as_json:
        print_json({"recording": str(recording), "wells": [well.to_json() for well in wells]})
        return
    _print_wells(wells)
    if out is not None:
        tell(f"{out} lists {len(wells)} wells: fill in the column label")
        tell(f"next: toptune extract {out} --store study.zarr")


def _print_wells(wells: tuple[Well, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("well", "electrodes", "active", "spikes", "rate (1/s per electrode)"):
        table.add_column(column, justify="right")
    for well in wells:
        counts = (well.n_electrodes, well.n_active, well.n_spikes)
        table.add_row(well.name, *map(str, counts), f"{well.rate_hz:.2f}")
    Console().print(table)
    for note in dict.fromkeys(note for well in wells for note in well.notes):
        those = [well.name for well in wells if note in well.notes]
        where = "all wells" if len(those) == len(wells) else f"well {', '.join(those)}"
        tell(f"note: {where}: {note}")


@command("toptune detect data/D01_100E0I.h5 -o spikes.npz")
def detect(
    recording: ARecording,
    out: Annotated[Path, typer.Option("-o", "--out", help="NPZ file to write.")],
    spikes: SpikeSettings,
    machine: Machine,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Find a recording's spikes and write them as NPZ."""
    require_new_file(out, overwrite=overwrite)
    view = _overview(recording, spikes, machine)
    from toptune.recordings.spike_npz import write_npz

    write_npz(view.trains, out)
    summary = {k: v for k, v in view.summary.items() if k != "channels"}
    if as_json:
        print_json({**summary, "out": str(out)})
    else:
        tell(
            f"{summary['n_spikes']} spikes on {summary['n_channels']} channels in"
            f" {summary['duration_s']:.1f} s -> {out}"
        )
        for note in summary["notes"]:
            tell(f"note: {note}")


def _overview(recording: Path, spikes: SpikeSettings, machine: Compute) -> Any:
    """Detect the spikes of a recording that is there."""
    require_recordings([recording])
    from toptune.reports.overview import overview

    return overview(
        recording,
        highpass=spikes.highpass,
        ptsd=spikes.ptsd,
        opening=spikes,
        device=machine.device,
        n_jobs=machine.n_jobs,
    )


def _print_overview(summary: dict[str, Any]) -> None:
    """Print a recording's header and a row per channel."""
    from rich.console import Console
    from rich.table import Table

    for name, value in summary.items():
        if name not in ("channels", "segments", "notes"):
            shown = ", ".join(map(str, value)) or "none" if isinstance(value, list) else value
            shown = f"{shown:.6g}" if isinstance(shown, float) else shown
            tell(f"{name:>18}  {shown}")
    stretches = [f"{s['n_samples']} samples from {s['start_s']:g} s" for s in summary["segments"]]
    tell(f"{'segments':>18}  {'; '.join(stretches)}")
    for note in summary["notes"]:
        tell(f"note: {note}")
    table = Table()
    for column in ("channel", "spikes", "rate (1/s)", "threshold (uV)"):
        table.add_column(column, justify="right")
    for c in summary["channels"]:
        threshold = "-" if c["threshold_uv"] is None else f"{c['threshold_uv']:.1f}"
        table.add_row(c["label"], str(c["spikes"]), f"{c['rate_hz']:.2f}", threshold)
    Console().print(table)


@command("toptune extract data/devices.csv --store study.zarr --window-s 30")
def extract(
    devices: DevicesCsv,
    store: Annotated[
        Path, typer.Option(help="Store to make or to go on with; its name ends in .zarr.")
    ],
    windows: Windows,
    pictures: Annotated[tuple[Picture, ...], PictureChoice()],
    backbone: Backbone,
    spikes: SpikeSettings,
    machine: Compute,
    keep_going: KeepGoing = False,
    resume: Annotated[
        bool, typer.Option("--resume/--overwrite", help="Go on with a store, or start it anew.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Detect spikes, draw windows, describe them, and keep it all in a store."""
    read_devices(devices)
    _require_store(store, spikes, resume=resume)
    if pictures:
        require_backbone(backbone)
    from toptune.extraction import extract as run

    with watch_recordings() as progress:
        result = run(
            devices,
            store,
            windows=windows,
            picture=pictures,
            backbone=backbone,
            spikes=spikes,
            compute=machine,
            keep_going=keep_going,
            overwrite=not resume,
            progress=progress,
        )
    if as_json:
        print_json(result.to_json())
    else:
        _print_extracted(result)
    if result.failed:
        raise typer.Exit(3)


def _require_store(path: Path, spikes: SpikeSettings, *, resume: bool) -> None:
    """Refuse what is no store, or a store whose spikes were found otherwise."""
    if path.exists():
        from toptune.store.feature_store import FeatureStore
        from toptune.store.session import refuse_other_settings

        FeatureStore(path)
        if resume:
            refuse_other_settings(path, spikes.to_json())


def _print_extracted(result: ExtractionResult) -> None:
    """Print what an extraction did, and the next command."""
    if result.feature_sets:
        tell(
            f"{result.done} recordings extracted ({result.spikes_reused} with spikes from the"
            f" store), {result.reused} were there already: {result.n_windows} windows"
        )
    else:
        tell(f"spikes of {result.done} recordings found, those of {result.reused} were there")
    for one in result.feature_sets:
        tell(f"features: {one.description} [{one.key[:8]}]")
    for note in result.notes:
        tell(f"note: {note}")
    if result.too_short:
        tell(f"shorter than a window, skipped: {', '.join(result.too_short)}")
    for recording, cause in result.failed:
        tell(f"failed: {recording}: {cause}")
    if result.failed:
        tell(f"the failures are listed in {result.store.with_suffix('.failures.csv')}")
    tell(f"next: toptune fit {result.store} -o run")
