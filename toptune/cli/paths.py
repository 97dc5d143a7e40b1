"""Refuse paths before anything heavy is imported, in the words of the library's own checks.

The library checks again, with all that it knows; these checks need no numbers and no torch, so that
a mistyped name is answered at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from toptune.errors import InputError, InputErrors
from toptune.machine.fingerprint import require_regular

_WEIGHTS = (".safetensors", ".pth", ".pt")


def require_recordings(recordings: Iterable[Path]) -> None:
    """Refuse recordings that are not there, all at once."""
    problems = []
    for recording in recordings:
        try:
            require_regular(recording)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputErrors(problems)


def require_store(path: Path) -> None:
    """Refuse a store that is not there."""
    if not path.exists():
        raise InputError(f"{path}: no such store: make one with `extract`")


def require_model(folder: Path) -> None:
    """Refuse a folder that holds no model."""
    try:
        (folder / "model.json").stat()
    except OSError as error:
        raise InputError(
            f"{folder} holds no model: {error}: name the model folder of a run"
        ) from None


def require_run(folder: Path) -> None:
    """Refuse a folder that is not a run's."""
    try:
        params = json.loads((folder / "params.json").read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{folder} is not a whole run: params.json: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{folder / 'params.json'} is damaged: {error}") from None
    if not isinstance(params, dict) or params.get("kind") != "toptune run":
        raise InputError(f"{folder} is not a run of toptune: give the folder that fit wrote")


def require_weights(weights: str) -> None:
    """Refuse a file of weights that is not there, or of a kind that is not read."""
    path = Path(weights)
    if weights in ("imagenet", "random"):
        return
    if path.suffix not in _WEIGHTS:
        raise InputError(
            f"{path} is no weights: give imagenet, random, or a file ending in"
            f" {', '.join(_WEIGHTS)}"
        )
    try:
        require_regular(path, folder=False)
    except InputError as error:
        raise InputError(f"weights file {path} does not exist ({error})") from None


def require_new_file(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that cannot or must not be written."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a file")
    require_parent(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already: choose another file or --overwrite")


def require_parent(path: Path) -> None:
    """Refuse a file whose folder is not there."""
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
