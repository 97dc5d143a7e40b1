"""Commands on the machine: doctor, bench."""

from __future__ import annotations

import typer

from toptune.commands.options import JsonOption, print_json


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
