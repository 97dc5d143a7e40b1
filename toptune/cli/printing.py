"""What commands print: lines and tables of results on stdout, everything else on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import typer

from toptune.cli.flags import in_flags


def say(text: str) -> None:
    """Tell the user something beside the results, on stderr."""
    typer.echo(_harmless(in_flags(text)), err=True)


def tell(text: str) -> None:
    """Print a line of results, on stdout."""
    typer.echo(_harmless(in_flags(text)))


def _harmless(text: str) -> str:
    """Keep what a file says from steering the terminal."""
    return "".join(c if c == "\n" or c.isprintable() else repr(c)[1:-1] for c in text)


def print_json(value: Any) -> None:
    """Print a result as strict JSON, on stdout."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def print_scores(metrics: dict[str, dict[str, Any]]) -> None:
    """Print the scores of one run or several, by classifier, and what they rest on."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title="scores on devices left out of training", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("classifier", no_wrap=True)
    for column in ("devices", "95 % CI", "windows", "chance", "p", "ECE", "s"):
        table.add_column(column, justify="right", no_wrap=True)
    for head, m in metrics.items():
        low, high = m["device_accuracy_ci95"]
        n_right = round(m["device_accuracy"] * m["n_devices"])
        table.add_row(
            head,
            f"{n_right}/{m['n_devices']} = {m['device_accuracy']:.2f}",
            f"{low:.2f}-{high:.2f}",
            f"{m['window_accuracy_mean']:.2f} ± {m['window_accuracy_sd']:.2f}",
            f"{m['chance']:.2f}",
            "-" if m["permutation_p"] is None else f"{m['permutation_p']:.3f}",
            f"{m['device_ece']:.2f}",
            f"{m['seconds']:.0f}",
        )
    Console().print(table)
    for head, m in metrics.items():
        for line in _remarks(m):
            tell(f"{head}: {line}")


def _remarks(metrics: dict[str, Any]) -> Iterator[str]:
    """Say what a run's numbers rest on."""
    yield from _notes_on_data(metrics)
    if metrics["centres"]:
        yield metrics["centres"]
    tuning = metrics["tuning"]
    if tuning is not None:
        final = ", ".join(f"{name} {_brief(value)}" for name, value in tuning["final"].items())
        leaky = tuning["had_the_choice_seen_all_devices"]
        yield (
            f"{tuning['n_candidates']} settings were tried inside every fold; the model trained on"
            f" all devices uses {final} (chosen on all devices instead, which is too optimistic,"
            f" device accuracy would be {leaky['device_accuracy']:.3f})"
        )
    test = metrics["permutations"]
    if test is not None:
        yield f"p: {test['n']} shuffles of the devices' labels, parameters {test['parameters']}"
        if test["note"]:
            yield f"note: {test['note']}"


def _notes_on_data(metrics: dict[str, Any]) -> Iterator[str]:
    missing = metrics["missing_recordings"]
    if missing:
        yield (
            f"note: {len(missing)} listed recordings have no features and are not in these scores:"
            f" {', '.join(missing)}"
        )
    for note in metrics["provenance_notes"]:
        yield f"note: {note}"
    for warning in metrics["warnings"]:
        yield f"warning: {warning}"
    if metrics["n_windows_without_partner"]:
        yield (
            f"{metrics['n_windows_without_partner']} windows are missing from one of the feature"
            " sets and were left out"
        )


def _brief(value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    return ", ".join(f"{v:.2g}" for v in values)
