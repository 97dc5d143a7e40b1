"""Tables of what is found on a machine and of how fast it is, by rich, to stdout."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from toptune.bench import STUDY, BenchResult, Stage
from toptune.cli.doctor_check import Report

_PARTS = {
    "cpu": "the CPU path",
    "gpu": "the GPU path",
    "weights": "ImageNet weights (fetched when first used)",
    "extra": "for some",
}
_STATES = {"ok": "[green]ok[/]", "missing": "[red]MISSING[/]", "absent": "[yellow]-[/]"}


def print_report(report: Report) -> None:
    """Print a table a part, then how to mend what is missing, then the verdict."""
    console = Console()
    for part, title in _PARTS.items():
        checks = [check for check in report.checks if check.part == part]
        if not checks:
            continue
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for check in checks:
            table.add_row(check.name, _STATES[check.state], escape(check.found))
        console.print(table)
    # Outside the tables, so that a command can be copied whole.
    mended = [check for check in report.checks if check.remedy]
    if mended:
        console.print("to mend or to add:")
    for check in mended:
        line = f"  {check.name}: {check.remedy}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    said = {True: "complete", False: "NOT complete"}
    console.print(
        f"CPU path: {said[report.cpu_complete]}; GPU path: {said[report.gpu_complete]}",
        highlight=False,
    )


def print_bench(result: BenchResult, machine: dict[str, Any]) -> None:
    """Print a row a stage, and what the study would take."""
    console = Console()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("stage", no_wrap=True)
    table.add_column("on", no_wrap=True)
    for column in ("a second", "study", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    for stage in result.stages:
        share = result.share(stage)
        study = "" if stage.study_seconds is None else _seconds(stage.study_seconds)
        percent = "" if share is None else f"{share:.0%}"
        table.add_row(stage.name, stage.device, _rate(stage), study, percent)
    console.print(table)
    notes = [f"{stage.name}: {stage.note}" for stage in result.stages if stage.note]
    name = machine["device_name"] or machine["cpu"]
    for line in (
        *notes,
        f"study: {STUDY.devices} devices x {STUDY.seconds / 60:g} min, {STUDY.channels} channels at"
        f" {STUDY.sampling_rate_hz / 1000:g} kHz, {STUDY.windows} windows, one backbone, both"
        f" heads: {_seconds(result.study_seconds)} in all",
        f"best of up to {max(s.rounds for s in result.stages)} rounds on {name},"
        f" {machine['cpus']} cores{'; quick, so rough' if result.quick else ''}",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _rate(stage: Stage) -> str:
    for factor, sign in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if stage.per_second >= factor:
            return f"{stage.per_second / factor:.3g}{sign} {stage.unit}"
    return f"{stage.per_second:.3g} {stage.unit}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 600 else f"{seconds / 60:.3g} min"
