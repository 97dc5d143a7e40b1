"""Folders of results, and how they are published: completely or not at all.

A folder is written under a temporary name, forced out to the disk and renamed when it is complete.
JSON files are strict (no NaN), and floats in tables have six significant digits.
"""

from __future__ import annotations

import csv
import io
import json
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from toptune.errors import InputError
from toptune.machine.durable import OLD_SUFFIX, move_into_place, writing
from toptune.machine.locks import NoLocksError, held, is_held
from toptune.machine.remote import RemotePath, local_output

FORMAT = 1
_RUN_KIND = "toptune run"


@dataclass(frozen=True)
class FolderKind:
    """How a published folder is recognised, so that no other folder is ever replaced."""

    word: str  # name of the kind in messages
    marker: str  # the JSON file in the folder whose ``kind`` is `kind`
    kind: str


RUN = FolderKind("run", "params.json", _RUN_KIND)
PREDICTIONS = FolderKind("prediction", "predictions.json", "toptune predictions")
WHY = FolderKind("explanation", "why.json", "toptune why")
SWEEP = FolderKind("sweep", "sweep.json", "toptune sweep")
FIGURES = FolderKind("set of figures", "figures.json", "toptune figures")

#: What describes a model, in its folder.
MODEL_FILE = "model.json"


def target_problems(out: Path, *, overwrite: bool, kind: FolderKind = RUN) -> list[str]:
    """List the reasons why a folder cannot be written to `out`; empty where it can."""
    if isinstance(out, RemotePath):
        try:
            local_output(out)
        except InputError as error:
            return [str(error)]
    settle(out)
    if not out.exists():
        above = next(p for p in (*out.parents, Path("/")) if p.exists())
        return [] if above.is_dir() else [f"{out}: {above} is no folder; choose another path"]
    if not overwrite:
        return [f"{out} exists; choose another name or give `overwrite=True`"]
    if not _is_one(out, kind):
        return [f"{out} is not a {kind.word} of toptune, so `overwrite=True` does not replace it"]
    return []


def sweep_problems(out: Path) -> list[str]:
    """List the reasons why a sweep can neither begin nor go on in a folder; empty where it can."""
    if isinstance(out, RemotePath) or not out.exists():
        return target_problems(out, overwrite=False)
    # A process that was killed, or had no room for the first file, leaves names with a dot.
    if out.is_dir() and all(path.name.startswith(".") for path in out.iterdir()):
        return []
    if _is_one(out, SWEEP):
        return []
    return [f"{out} is not a {SWEEP.word} of toptune: choose another folder"]


def require_target(out: Path, *, overwrite: bool, kind: FolderKind = RUN) -> None:
    """Refuse a path that a folder cannot be written to; see `target_problems`."""
    problems = target_problems(out, overwrite=overwrite, kind=kind)
    if problems:
        raise InputError(problems[0])


def _is_one(folder: Path, kind: FolderKind) -> bool:
    try:
        params = json.loads((folder / kind.marker).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(params, dict) and params.get("kind") == kind.kind


def model_folder(folder: Path | str) -> Path:
    """Give the folder of a model, which may be named by its run."""
    folder = Path(folder)
    inside = folder / "model"
    named_by_run = not (folder / MODEL_FILE).exists() and (inside / MODEL_FILE).exists()
    return inside if named_by_run else folder


def figures_folder(run: Path, report: Path | None = None) -> Path:
    """Say where the figures of a run go: beside its report, which None has in the run's folder."""
    return run / "figures" if report is None else report.with_name(f"{report.stem}-figures")


@contextmanager
def publish(out: Path, *, overwrite: bool, kind: FolderKind = RUN) -> Iterator[Path]:
    """Yield a temporary folder, which becomes `out` when the block ends without an error.

    The parents of `out` are created; with `overwrite` a folder of this kind is replaced.

    Raises
    ------
    InputError
        Something that must not be replaced was created at `out` meanwhile. The folder is then
        published under another name, which the message gives.
    StorageError
        The folder cannot be written.
    """
    settle(out)
    may_replace = overwrite and (not out.exists() or _is_one(out, kind))
    with writing(out), aside_of(out) as aside:
        yield aside
        _take_name(aside, out, replace=may_replace)


@contextmanager
def aside_of(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out`, which is removed in the end, by `settle` at the latest.

    The parents of `out` are created.
    """
    name = f".{out.name}.{secrets.token_hex(4)}"
    aside, lock = out.parent / f"{name}.partial", out.parent / f"{name}.lock"
    with ExitStack() as stack:
        # The lock only marks the folder as being written; no other process publishes it.
        with suppress(NoLocksError):
            stack.enter_context(held(lock))
        try:
            aside.mkdir(parents=True)
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _take_name(aside: Path, out: Path, *, replace: bool) -> None:
    try:
        move_into_place(aside, out, replace=replace)
    except FileExistsError:
        # Hours of computation are not lost because another process created `out` meanwhile.
        other = out.with_name(f"{out.name}-{secrets.token_hex(2)}")
        move_into_place(aside, other, replace=False)
        raise InputError(f"{out} exists, so this result is in {other}") from None


def settle(out: Path) -> None:
    """Clean up what killed processes left beside a folder that is about to be published.

    Where the system cannot exchange two folders atomically, a folder that is being replaced has
    another name for a moment. If its process was killed then, the folder gets its name back.
    Everything else that killed processes left is removed.
    """
    if not out.parent.is_dir():
        return
    ours = re.compile(rf"(\.{re.escape(out.name)}\.[0-9a-f]{{8}})\.(partial(\.old)?|lock)")
    found = [(path, m) for path in out.parent.iterdir() if (m := ours.fullmatch(path.name))]
    try:
        dead = [(p, m) for p, m in found if not is_held(out.parent / f"{m[1]}.lock")]
    except NoLocksError:  # then live and dead processes cannot be told apart
        return
    # The old folder gets its name back first: what was to replace it may be incomplete.
    for path, _ in sorted(dead, key=lambda one: not one[0].name.endswith(OLD_SUFFIX)):
        if path.name.endswith(OLD_SUFFIX) and not out.exists():
            path.rename(out)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON; NaN and infinity are an error."""
    path.write_text(json_text(value), "utf-8")


def json_text(value: Any) -> str:
    """Give strict JSON as `write_json` writes it."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_params(folder: Path, params: dict[str, Any]) -> None:
    """Write params.json, which also marks the folder as a run."""
    write_json(folder / "params.json", {"kind": _RUN_KIND, "format": FORMAT, **params})


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table; floats with six significant digits."""
    with path.open("w", encoding="utf-8", newline="") as file:
        _write_rows(file, [header])
        _write_rows(file, rows)


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Give rows as `write_csv` writes them."""
    text = io.StringIO(newline="")
    _write_rows(text, rows)
    return text.getvalue()


def _write_rows(file: TextIO, rows: Iterable[Sequence[Any]]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    for row in rows:
        writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row])


def plain(params: dict[str, Any]) -> dict[str, Any]:
    """Convert NumPy's numbers and arrays to Python's and tuples to lists, for JSON."""
    return {k: _plain(v) for k, v in params.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(one) for one in value]
    return value
