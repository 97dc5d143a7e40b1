"""The folder a run is published as.

What enters: results. What leaves: JSON (strict: no NaN) and CSV. A folder is written aside and
renamed when it is complete, so what bears the name of a run is a whole run.
"""

from __future__ import annotations

import csv
import json
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toptune.errors import InputError

FORMAT = 1
_RUN_KIND = "toptune run"


@dataclass(frozen=True)
class FolderKind:
    """How a folder that was published is known again, so that nothing else is ever replaced.

    Attributes
    ----------
    word : str
        What it is, for messages.
    marker : str
        The JSON file in it whose ``kind`` is `kind`.
    kind : str
    """

    word: str
    marker: str
    kind: str


RUN = FolderKind("run", "params.json", _RUN_KIND)


def target_problems(out: Path, *, overwrite: bool, kind: FolderKind = RUN) -> list[str]:
    """Say why a folder may not be written to `out`; an empty list where it may."""
    if not out.exists():
        return []
    if not overwrite:
        return [f"{out} exists; choose another name or pass --overwrite"]
    if not _is_one(out, kind):
        return [f"{out} is not a {kind.word} of toptune, so --overwrite does not replace it"]
    return []


def require_target(out: Path, *, overwrite: bool, kind: FolderKind = RUN) -> None:
    """Refuse a place that a folder may not be written to; see `target_problems`."""
    problems = target_problems(out, overwrite=overwrite, kind=kind)
    if problems:
        raise InputError(problems[0])


def _is_one(folder: Path, kind: FolderKind) -> bool:
    try:
        params = json.loads((folder / kind.marker).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(params, dict) and params.get("kind") == kind.kind


@contextmanager
def publish(out: Path, *, overwrite: bool, kind: FolderKind = RUN) -> Iterator[Path]:
    """Give a folder to write to, which becomes `out` when the block ends without an error.

    Parameters
    ----------
    out : Path
        Its parents are made.
    overwrite : bool
        Replace one of that name and kind; anything else there is refused.
    kind : FolderKind

    Raises
    ------
    InputError
        See `target_problems`.
    """
    require_target(out, overwrite=overwrite, kind=kind)
    out.parent.mkdir(parents=True, exist_ok=True)
    name = f".{out.name}.{uuid.uuid4().hex[:8]}"
    aside, old = out.parent / f"{name}.partial", out.parent / f"{name}.old"
    try:
        aside.mkdir()
        yield aside
        if out.exists():
            out.rename(old)
        aside.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    finally:
        for rest in (aside, old):
            shutil.rmtree(rest, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON; NaN and infinity are an error."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", "utf-8")


def write_params(folder: Path, params: dict[str, Any]) -> None:
    """Write params.json, which is also what marks the folder as a run."""
    write_json(folder / "params.json", {"kind": _RUN_KIND, "format": FORMAT, **params})


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table; floats with six significant digits."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for row in rows:
            writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row])


def plain(params: dict[str, Any]) -> dict[str, Any]:
    """Turn NumPy's numbers and arrays into Python's, and tuples into lists: what JSON knows."""
    return {k: _plain(v) for k, v in params.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(one) for one in value]
    return value
