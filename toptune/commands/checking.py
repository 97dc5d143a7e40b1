"""Commands on the machine: doctor, bench."""

from __future__ import annotations

from typing import Annotated

import typer

from toptune.commands.options import (
    Device,
    DeviceOption,
    JobsOption,
    JsonOption,
    print_json,
    say,
)


def doctor(as_json: JsonOption = False) -> None:
    """Show what toptune finds on this machine, what is missing, and what mends it."""
    from toptune.check_tables import print_report
    from toptune.doctor import examine

    report = examine()
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report)
    if not report.cpu_complete:
        raise typer.Exit(1)


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
    from toptune.environment import describe_environment

    names = backbone or ["efficientnet_b0"]
    result = run(
        device=device.value, backbones=names, quick=quick, n_jobs=n_jobs,
        step=lambda name: say(f"... {name}"),
    )  # fmt: skip
    machine = describe_environment(next(s.device for s in result.stages if s.name == names[0]))
    if as_json:
        print_json({"machine": machine, **result.to_json()})
    else:
        from toptune.check_tables import print_bench

        print_bench(result, machine)
