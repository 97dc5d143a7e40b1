"""The command that measures the speed of every stage: bench."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from toptune.cli.options import AsJson, Machine, command
from toptune.cli.printing import print_json, print_table, say, tell

if TYPE_CHECKING:
    from toptune.bench import BenchResult, Stage


@command("toptune bench --quick")
def bench(
    machine: Machine,
    backbone: Annotated[
        list[str] | None,
        typer.Option(help="Network to measure; may be repeated.", show_default="efficientnet_b0"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure for some seconds only, less precisely.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure every stage on this machine, and how long a study of 32 devices would take."""
    from toptune.bench import bench as run
    from toptune.machine.installation import describe_environment

    names = backbone or ["efficientnet_b0"]
    result = run(
        compute=machine,
        backbones=names,
        quick=quick,
        step=lambda name: say(f"... {name}"),
    )
    here = describe_environment(next(s.device for s in result.stages if s.name == names[0]))
    if as_json:
        print_json({"machine": here, **result.to_json()})
    else:
        print_bench(result, here)


def print_bench(result: BenchResult, machine: dict[str, Any]) -> None:
    """Print a row per stage, and how long the study would take."""
    from toptune.bench import STUDY

    rows = []
    for stage in result.stages:
        share = result.share(stage)
        study = "" if stage.study_seconds is None else _seconds(stage.study_seconds)
        percent = "" if share is None else f"{share:.0%}"
        rows.append((stage.name, stage.device, _rate(stage), study, percent))
    header = ("stage", "on", "per second", "study", "share")
    print_table(header, rows, n_names=2, padding=(0, 1))
    for stage in result.stages:
        if stage.note:
            tell(f"{stage.name}: {stage.note}")
    tell(
        f"study: {STUDY.devices} devices x {STUDY.seconds / 60:g} min, {STUDY.channels} channels at"
        f" {STUDY.sampling_rate_hz / 1000:g} kHz, {STUDY.windows} windows, one backbone, both"
        f" classifiers: {_seconds(result.study_seconds)} in all"
    )
    tell(
        f"best of up to {max(s.rounds for s in result.stages)} rounds on"
        f" {machine['device_name'] or machine['cpu']}, {machine['cpus']} cores"
        f"{'; quick, so only roughly measured' if result.quick else ''}"
    )


def _rate(stage: Stage) -> str:
    for factor, sign in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if stage.per_second >= factor:
            return f"{stage.per_second / factor:.3g}{sign} {stage.unit}"
    return f"{stage.per_second:.3g} {stage.unit}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 600 else f"{seconds / 60:.3g} min"
