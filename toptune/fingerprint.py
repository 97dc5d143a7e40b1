"""Files told apart by content, and by size and time as long as those stay.

A file or folder enters; a sha256 (64 hex digits) or a stamp (JSON-able) leaves.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

_HASH_BLOCK = 2**20


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes; of a folder, that of its files' names and sha256s in order."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{file_sha256(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        while block := stream.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def stamp_of(path: Path) -> list[list[Any]]:
    """Sizes and modification times: as long as they stay, the bytes are taken to be the same."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]
