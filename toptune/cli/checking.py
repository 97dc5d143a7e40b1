"""Commands that check what is there: doctor, for a machine or a store, and bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toptune.cli.options import (
    Device,
    DeviceOption,
    JobsOption,
    JsonOption,
    print_json,
    say,
)
from toptune.errors import InputError


def doctor(
    store: Annotated[
        Path | None, typer.Argument(help="A store to verify whole; this machine if not given.")
    ] = None,
    remove: Annotated[
        bool,
        typer.Option("--remove-damaged", help="Take damaged parts out, to be extracted again."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what is found on this machine and what mends it, or verify a store byte by byte."""
    if store is not None:
        _verify_store(store, remove, as_json)
        return
    if remove:
        raise InputError("--remove-damaged needs a store: toptune doctor S.zarr --remove-damaged")
    from toptune.cli.check_tables import print_report
    from toptune.cli.doctor import examine

    report = examine()
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report)
    if not report.cpu_complete:
        raise typer.Exit(1)


def _verify_store(path: Path, remove: bool, as_json: bool) -> None:
    from toptune.cli.printing import print_store_report, watch_count
    from toptune.store.check import check_store, remove_damaged
    from toptune.store.feature_store import FeatureStore

    with watch_count("verifying", len(FeatureStore(path).recordings)) as advance:
        report = check_store(path, progress=lambda *_: advance(None))
    removed = remove_damaged(report) if remove else ()
    if as_json:
        print_json({**report.to_json(), "removed": list(removed)})
    else:
        print_store_report(report, removed)
    if not report.is_sound:
        raise typer.Exit(3)


def bench(
    backbone: Annotated[
        list[str] | None, typer.Option(help="Of torchvision or timm; may be repeated.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Some seconds, rougher figures.")] = False,
    device: DeviceOption = Device.auto,
    n_jobs: JobsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure every stage on this machine, and what a study of 32 devices would take."""
    from toptune.bench import bench as run
    from toptune.machine.environment import describe_environment

    names = backbone or ["efficientnet_b0"]
    result = run(
        device=device.value, backbones=names, quick=quick, n_jobs=n_jobs,
        step=lambda name: say(f"... {name}"),
    )  # fmt: skip
    machine = describe_environment(next(s.device for s in result.stages if s.name == names[0]))
    if as_json:
        print_json({"machine": machine, **result.to_json()})
    else:
        from toptune.cli.check_tables import print_bench

        print_bench(result, machine)
