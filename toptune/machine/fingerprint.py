"""Files and folders identified by their content, or quickly by sizes and modification times."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from toptune.errors import InputError
from toptune.machine.remote import RemotePath, fetch_whole, quick_digest_of_url, stamp_of_url

_END_BYTES = 2**16


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, or of a folder's sorted file names and their sha256s."""
    fetch_whole(path)
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{file_sha256(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def stamp_of(path: Path) -> list[list[Any]]:
    """Return names, sizes and modification times; while these stay, so does the content."""
    if isinstance(path, RemotePath):
        return stamp_of_url(path)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def quick_digest(path: Path) -> str:
    """Hash sizes and ends of files: equal content has an equal digest, others rarely."""
    if isinstance(path, RemotePath) and path.is_dir():
        return quick_digest_of_url(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        size = file.stat().st_size
        with file.open("rb") as stream:
            begin = stream.read(_END_BYTES)
            stream.seek(max(0, size - _END_BYTES))
            digest.update(f"{size}\n".encode() + begin + stream.read(_END_BYTES))
    return digest.hexdigest()


def require_regular(path: Path, *, folder: bool = True) -> None:
    """Refuse what is neither a file nor a folder, since reading a pipe or a device may never end.

    Missing files, impossible names and, unless `folder`, folders are refused as well.
    """
    try:
        there = path.exists()
    except InputError:  # of a server
        raise
    except (OSError, ValueError) as error:  # a name too long, or with a zero byte
        raise InputError(f"{str(path)[:200]!r}: no file can have this name ({error})") from None
    if not there:
        raise InputError(f"{path}: no such file{' or folder' if folder else ''}")
    if path.is_dir() and not folder:
        raise InputError(f"{path}: is a folder, where a file is needed")
    if not path.is_dir() and not path.is_file():
        raise InputError(f"{path}: is neither a file nor a folder: copy its content into a file")


#: Endings of the files of weights that are read.
WEIGHTS_ENDINGS = (".safetensors", ".pth", ".pt")


def require_weights_file(path: Path) -> None:
    """Refuse a file of weights that is not there, or of a kind that is not read."""
    if path.suffix not in WEIGHTS_ENDINGS:
        raise InputError(
            f"{path} is no weights: give imagenet, random, or a file ending in"
            f" {', '.join(WEIGHTS_ENDINGS)}"
        )
    try:
        require_regular(path, folder=False)
    except InputError as error:
        raise InputError(f"weights file {path} does not exist ({error})") from None
