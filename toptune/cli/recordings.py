"""Commands on recordings: simulate, inspect, detect, extract."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toptune.cli.options import (
    N_JOBS,
    SEED,
    ARecording,
    AsJson,
    DaskAddress,
    DevicesCsv,
    KeepGoing,
    Machine,
    Overwrite,
    PictureChoice,
    command,
    in_flags,
    require_backbone,
    require_new_file,
    require_recordings,
)
from toptune.cli.printing import (
    command_line,
    free_name,
    opened_cluster,
    print_json,
    tell,
    watch_count,
    watch_recordings,
)
from toptune.errors import InputError, ToptuneError
from toptune.machine.display import count, one_or
from toptune.machine.remote import local_output
from toptune.params import Backbone, Compute, OpeningOptions, Picture, SpikeSettings, Windows
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
    local_output(directory)
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
        tell(f"{count(devices, 'recording')} of {seconds:g} s")
        store = free_name(str(directory / "store.zarr"))
        words = ("toptune", "extract", path, "--store", store, *_window_words(seconds))
        tell(f"next: {command_line(*words)}")


def _window_words(shortest_s: float) -> list[str]:
    """Choose windows of which several fit into a recording, where the usual ones do not."""
    usual = Windows()
    if shortest_s >= 3 * usual.width_s:
        return []
    width_s = next((w for w in _WINDOWS_S if 3 * w <= shortest_s), _WINDOWS_S[-1])
    stride = ["--stride-s", f"{width_s / 2:g}"] if width_s / 2 < usual.stride_s else []
    return ["--window-s", f"{width_s:g}", *stride]


_WINDOWS_S = (100.0, 50.0, 30.0, 20.0, 10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1)


@command("toptune inspect data/D01_100E0I.h5 --png overview.png")
def inspect(
    recording: ARecording,
    spikes: SpikeSettings,
    machine: Machine,
    png: Annotated[Path | None, typer.Option(help="PNG file to draw the recording into.")] = None,
    channels: Annotated[
        bool, typer.Option("--channels", help="List every channel, before the header.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Show a recording's header, channels, thresholds and firing rates."""
    if png is not None:
        require_new_file(png, overwrite=overwrite)
    try:
        view = _overview(recording, spikes, machine)
    except ToptuneError as error:
        _print_header(recording, spikes, error, as_json=as_json)
        raise
    if png is not None:
        from toptune.reports.overview_plot import draw_overview

        draw_overview(view, png)
    if as_json:
        print_json(view.summary)
    else:
        _print_overview(view.summary, every_channel=channels)


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
        shortest_s = min(well.duration_s for well in wells)
        tell(f"{out} lists {count(len(wells), 'well')}: fill in the column label")
        words = ("--store", free_name("study.zarr"), *_window_words(shortest_s))
        tell(f"next: {command_line('toptune', 'extract', out, *words)}")


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
            f"{count(summary['n_spikes'], 'spike')} on"
            f" {count(summary['n_channels'], 'channel')} in {summary['duration_s']:.1f} s -> {out}"
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


def _print_header(
    path: Path, opening: OpeningOptions, error: ToptuneError, *, as_json: bool
) -> None:
    """Print what is known of a recording whose spikes cannot be found, if it can be opened."""
    from toptune.reports.overview import header

    try:
        known = header(path, opening)
    except ToptuneError:  # the very error that there is already
        return
    if known is None:
        return
    if as_json:
        print_json({**known, "problem": in_flags(str(error))})
        return
    _print_facts(known)
    tell(f"{'channels':>18}  {_listed([c['label'] for c in known['channels']])}")


# Up to so many channels are always listed, and of lists of names so many are shown.
_FEW_CHANNELS = 16
_SHOWN_NAMES = 12
_BUSIEST = 5


def _print_overview(summary: dict[str, Any], *, every_channel: bool) -> None:
    """Print a recording's header, and its channels: all of them, or how they are spread."""
    channels = summary["channels"]
    every_channel = every_channel or len(channels) <= _FEW_CHANNELS
    if every_channel:
        for line in _channel_lines(channels):
            tell(line)
    _print_facts(summary)
    if not every_channel:
        for line in _spread_lines(channels):
            tell(line)
        tell("every channel: add --channels; a picture: --png FILE; all values: --json")
    if channels and len(summary.get("dead", ())) == len(channels):
        tell(
            "note: every channel is constant, so there can be no spikes: is this the right stream?"
        )


def _print_facts(summary: dict[str, Any]) -> None:
    """Print a line for each fact, and the notes."""
    for name, value in summary.items():
        if name not in ("channels", "segments", "notes"):
            shown = _listed(value) if isinstance(value, list) else value
            if name in ("dead", "over_noisy") and value:  # a label alone would read as a count
                shown = f"{count(len(value), 'electrode')}: {shown}"
            shown = f"{shown:.6g}" if isinstance(shown, float) else shown
            tell(f"{name:>18}  {'not known' if shown is None else shown}")
    stretches = [
        f"{count(s['n_samples'], 'sample')} from {s['start_s']:g} s" for s in summary["segments"]
    ]
    tell(f"{'segments':>18}  {_listed(stretches, '; ')}")
    for note in summary["notes"]:
        tell(f"note: {note}")


def _listed(names: Sequence[object], between: str = ", ") -> str:
    """Write some names, and how many more there are."""
    more = len(names) - _SHOWN_NAMES
    shown = between.join(map(str, names[:_SHOWN_NAMES] if more > 0 else names))
    return f"{shown} and {more} more" if more > 0 else shown or "none"


def _channel_lines(channels: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """List every channel, in as many columns as the terminal has room for, read downwards."""
    from rich.console import Console

    header = ("channel", "spikes", "1/s", "threshold")
    cells = [
        (c["label"], str(c["spikes"]), f"{c['rate_hz']:.2f}", _microvolts(c["threshold_uv"]))
        for c in channels
    ]
    if not cells:
        return
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        return "  ".join(f"{text:>{width}}" for text, width in zip(row, widths, strict=True))

    n_columns = max(1, (Console().width + 4) // (len(line(header)) + 4))
    n_rows = -(-len(cells) // n_columns)
    columns = [cells[first : first + n_rows] for first in range(0, len(cells), n_rows)]
    yield "    ".join(line(header) for _ in columns)
    for row in range(n_rows):
        yield "    ".join(line(column[row]) for column in columns if row < len(column))


def _spread_lines(channels: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say how rates and thresholds are spread over the channels, and which ones stand out."""
    import numpy as np

    rates = [c["rate_hz"] for c in channels]
    thresholds = [c["threshold_uv"] for c in channels if c["threshold_uv"] is not None]
    names = ("least", "25 %", "median", "75 %", "largest")
    yield f"{'of the channels':>18}  {''.join(f'{name:>9}' for name in names)}"
    for what, values in (("rate (1/s)", rates), ("threshold (uV)", thresholds)):
        if values:
            quartiles = np.quantile(values, (0, 0.25, 0.5, 0.75, 1))
            yield f"{what:>18}  {''.join(f'{value:>9.2f}' for value in quartiles.tolist())}"
    busy = sorted(channels, key=lambda c: -c["rate_hz"])[:_BUSIEST]
    shown = ", ".join(f"{c['label']} ({c['rate_hz']:.1f}/s)" for c in busy if c["spikes"])
    yield f"{'most active':>18}  {shown or 'none'}"
    silent = [c["label"] for c in channels if not c["spikes"]]
    yield f"{'without a spike':>18}  {_listed(silent)}"


def _microvolts(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} uV"


@command("toptune extract data/devices.csv --store study.zarr --window-s 30")
def extract(
    devices: DevicesCsv,
    store: Annotated[
        Path,
        typer.Option(
            help="Store to make or to go on with; its name ends in .zarr. May be a URL: s3://..."
        ),
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
    dask: DaskAddress = None,
    as_json: AsJson = False,
) -> None:
    """Detect spikes, draw windows, describe them, and keep it all in a store."""
    read_devices(devices)
    _require_store(store, spikes, resume=resume)
    if pictures:
        require_backbone(backbone)
    from toptune.extraction import extract as run

    with opened_cluster(dask) as cluster, watch_recordings() as progress:
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
            dask=cluster,
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
            f"{count(result.done, 'recording')} extracted ({result.spikes_reused} with spikes from"
            f" the store), {result.reused} {one_or(result.reused, 'was', 'were')} there already:"
            f" {count(result.n_windows, 'window')}"
        )
    else:
        tell(
            f"spikes of {count(result.done, 'recording')} found, those of {result.reused} were"
            " there"
        )
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
    _print_next(result)


def _print_next(result: ExtractionResult) -> None:
    """Print the command that trains on what was extracted, if it can."""
    if result.feature_sets and not result.n_windows:
        tell("no recording is as long as a window: give a shorter one, such as --window-s 30")
    elif _may_be_fitted(result):
        incomplete = ("--allow-incomplete",) if result.failed else ()
        # Without pictures there are spikes, and so burst parameters.
        head = () if result.feature_sets else ("--head", "parameters")
        words = ("toptune", "fit", result.store, *head, "-o", free_name("run"), *incomplete)
        tell(f"next: {command_line(*words)}")


def _may_be_fitted(result: ExtractionResult) -> bool:
    """Whether each of several classes has two devices with windows; else notes say what to do."""
    from toptune.store.feature_store import FeatureStore

    store = FeatureStore(result.store)

    def is_there(name: str) -> bool:
        if not result.feature_sets:
            return store.spikes_info(name) is not None
        info = store.features_info(name, result.feature_set.key)
        return info is not None and info["n_windows"] > 0

    devices: dict[str, set[str]] = {one.label: set() for one in store.recordings}
    for one in store.recordings:
        if is_there(one.name):
            devices[one.label].add(one.device)
    return len(devices) > 1 and all(len(those) > 1 for those in devices.values())
