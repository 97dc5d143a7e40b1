"""What a command line came to, and what is read from the files of a run."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Ran(NamedTuple):
    """The exit code, and what was printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_json(path: Path) -> Any:
    """JSON as its standard has it, without NaN and infinities."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(path.read_text("utf-8"), parse_constant=refuse)
