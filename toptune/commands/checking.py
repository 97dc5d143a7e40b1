"""Commands that check what is there: doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toptune.commands.options import JsonOption, print_json
from toptune.errors import InputError


def doctor(
    store: Annotated[Path | None, typer.Argument(help="A store to verify whole.")] = None,
    remove: Annotated[
        bool,
        typer.Option("--remove-damaged", help="Take damaged parts out, to be extracted again."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Verify a store, byte by byte, and name what to extract again."""
    if store is None:
        raise InputError("name the store to verify: toptune doctor S.zarr")
    from toptune.printing import print_store_report, watch_count
    from toptune.store import FeatureStore
    from toptune.store_check import check_store, remove_damaged

    with watch_count("verifying", len(FeatureStore(store).recordings)) as advance:
        report = check_store(store, progress=lambda *_: advance(None))
    removed = remove_damaged(report) if remove else ()
    if as_json:
        print_json({**report.to_json(), "removed": list(removed)})
    else:
        print_store_report(report, removed)
    if not report.is_sound:
        raise typer.Exit(3)
