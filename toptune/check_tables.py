"""Tables of what is found on a machine and of how fast it is, by rich, to stdout."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from toptune.doctor_check import Report

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
