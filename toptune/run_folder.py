"""The folder a run is published as, and the model in it.

What enters: results and a trained head. What leaves: JSON (strict: no NaN), CSV, and ``model/``:
the weights as safetensors, everything else as JSON, no pickle. A folder is written aside and
renamed when it is complete, so what bears the name of a run is a whole run.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from toptune.errors import InputError
from toptune.heads import head_type

FORMAT = 1
_RUN_KIND = "toptune run"
_MODEL_KIND = "toptune model"


def target_problems(out: Path, *, overwrite: bool) -> list[str]:
    """Say why a run may not be written to `out`; an empty list where it may."""
    if not out.exists():
        return []
    if not overwrite:
        return [f"{out} exists; choose another name or pass --overwrite"]
    if not _is_run(out):
        return [f"{out} is not a run of toptune, so --overwrite does not replace it"]
    return []


def _is_run(folder: Path) -> bool:
    try:
        params = json.loads((folder / "params.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(params, dict) and params.get("kind") == _RUN_KIND


@contextmanager
def publish(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a folder to write to, which becomes `out` when the block ends without an error.

    Parameters
    ----------
    out : Path
        Its parents are made.
    overwrite : bool
        Replace a run of that name; anything else there is refused.

    Raises
    ------
    InputError
        See `target_problems`.
    """
    problems = target_problems(out, overwrite=overwrite)
    if problems:
        raise InputError(problems[0])
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


@dataclass(frozen=True)
class SavedModel:
    """A trained head as read from ``model/``.

    Attributes
    ----------
    head : str
        ``mlp`` or ``falkon``.
    estimator : classifier
        Fitted.
    provenance : dict
        Of the features it was trained on.
    """

    head: str
    estimator: Any
    provenance: dict[str, Any]


def write_model(folder: Path, head: str, estimator: Any, provenance: dict[str, Any]) -> None:
    """Write a fitted head as model.safetensors and model.json.

    Parameters
    ----------
    folder : Path
        Made here.
    head : str
    estimator : classifier
        Fitted; its classes are strings.
    provenance : dict
        JSON-able.
    """
    folder.mkdir()
    tensors = save({k: np.ascontiguousarray(v) for k, v in estimator.to_tensors().items()})
    (folder / "model.safetensors").write_bytes(tensors)
    description = {
        "kind": _MODEL_KIND,
        "format": FORMAT,
        "head": head,
        "params": plain(estimator.get_params()),
        "classes": [str(name) for name in estimator.classes_],
        "n_features": int(estimator.n_features_in_),
        "tensors_sha256": hashlib.sha256(tensors).hexdigest(),
        "provenance": provenance,
    }
    write_json(folder / "model.json", description)


def read_model(folder: Path) -> SavedModel:
    """Read what `write_model` wrote.

    Raises
    ------
    InputError
        No model, one of a later format, or weights that are not those model.json describes.
    """
    try:
        description = json.loads((folder / "model.json").read_text("utf-8"))
        tensors = (folder / "model.safetensors").read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no model: {error}") from None
    if not isinstance(description, dict) or description.get("kind") != _MODEL_KIND:
        raise InputError(f"{folder}/model.json does not describe a model of toptune")
    if description["format"] != FORMAT:
        raise InputError(
            f"{folder} has model format {description['format']}, this version reads {FORMAT}"
        )
    if hashlib.sha256(tensors).hexdigest() != description["tensors_sha256"]:
        raise InputError(f"{folder}/model.safetensors is damaged: its sha256 is not model.json's")
    try:
        loaded = load(tensors)
    except SafetensorError as error:
        raise InputError(f"{folder}/model.safetensors cannot be read: {error}") from None
    head = description["head"]
    classes = np.array(description["classes"], dtype=str)
    estimator = head_type(head).from_tensors(loaded, description["params"], classes)
    return SavedModel(head, estimator, description["provenance"])


def load_model(folder: Path) -> Any:
    """Read the fitted head of a run's ``model/``; it predicts as it did when it was written."""
    return read_model(folder).estimator


def plain(params: dict[str, Any]) -> dict[str, Any]:
    """Turn NumPy's numbers into Python's, which JSON knows."""
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in params.items()}
