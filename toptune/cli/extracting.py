"""The command from recordings to features: extract."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toptune.cli.options import AsJson, DevicesCsv, KeepGoing, command
from toptune.cli.paths import require_weights
from toptune.cli.printing import print_json, tell
from toptune.params import Backbone, Compute, Picture, SpikeSettings, Windows
from toptune.recordings.devices import read_devices

if TYPE_CHECKING:
    from toptune.extraction import ExtractionResult


@command("toptune extract data/devices.csv --store study.zarr --window-s 30")
def extract(
    devices: DevicesCsv,
    store: Annotated[
        Path, typer.Option(help="Store to make or to go on with; its name ends in .zarr.")
    ],
    windows: Windows,
    picture: Picture,
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
    require_weights(backbone.weights)
    from toptune.cli.progress import watch_recordings
    from toptune.extraction import extract as run

    with watch_recordings() as progress:
        result = run(
            devices,
            store,
            windows=windows,
            picture=picture,
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
    tell(
        f"{result.done} recordings extracted ({result.spikes_reused} with spikes from the store),"
        f" {result.reused} were there already: {result.n_windows} windows"
    )
    tell(f"features: {result.feature_set.description} [{result.feature_set.key[:8]}]")
    for note in result.notes:
        tell(f"note: {note}")
    if result.too_short:
        tell(f"shorter than a window, skipped: {', '.join(result.too_short)}")
    for recording, cause in result.failed:
        tell(f"failed: {recording}: {cause}")
    if result.failed:
        tell(f"the failures are listed in {result.store.with_suffix('.failures.csv')}")
    tell(f"next: toptune fit {result.store} --head falkon -o run-falkon")
