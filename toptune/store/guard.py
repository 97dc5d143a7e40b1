"""Checks of a store that somebody else may have made, before Zarr reads it.

Zarr follows symbolic links, takes the memory that a shape asks for, replaces missing chunks by fill
values, and runs whatever codecs a zarr.json names. What LAYOUT.md allows is much less; everything
else is refused. Kept by hand, since no option of Zarr does this.
"""

from __future__ import annotations

import json
import math
import re
from itertools import product
from pathlib import Path
from typing import Any

from toptune.errors import InputError

_ITEM_BYTES = {"int32": 4, "int64": 8, "float32": 4, "float64": 8}
_METADATA = "zarr.json"
# Metadata of a thousand recordings take less than a megabyte.
_METADATA_BYTES = 16 * 2**20
_CHUNK_BYTES = 64 * 2**20
_MOST_CHUNKS = 10**6
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class DamagedError(InputError):
    """A group or array is not what was written.

    Parameters
    ----------
    place
        Its folder.
    cause
        How that was noticed.
    """

    def __init__(self, place: Path, cause: object) -> None:
        self.place = place
        self.cause = " ".join(str(cause).split())
        super().__init__(
            f"{place} is damaged ({self.cause}): remove that recording's folder from the store and"
            " run extract again"
        )


def check_group(folder: Path) -> None:
    """Refuse a group that is a symbolic link, or whose zarr.json is one or is absurdly long.

    Raises
    ------
    InputError
        Names the folder.
    """
    metadata = folder / _METADATA
    for place in (folder, metadata):
        if place.is_symlink():
            raise InputError(f"{place} is a symbolic link, which a store does not follow: copy it")
    if metadata.exists() and (not metadata.is_file() or metadata.stat().st_size > _METADATA_BYTES):
        raise DamagedError(folder, f"its {_METADATA} is no file of at most {_METADATA_BYTES} bytes")


def check_links(folder: Path) -> None:
    """Refuse an array any part of which is a symbolic link.

    Raises
    ------
    DamagedError
        Names the folder and the link.
    """
    for place in (folder, *folder.rglob("*")):
        if place.is_symlink():
            raise DamagedError(folder, f"{place.name} is a symbolic link")


def check_names(path: Path, names: list[Any]) -> None:
    """Refuse names of recordings that `recording_name` does not make, such as ``../x``."""
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(
                f"{path}: {name!r:.80} in its list is not a recording's name: extract into a new"
                " store"
            )


def check_array(folder: Path) -> None:
    """Refuse an array that is not stored as LAYOUT.md says, before memory is taken for it.

    All chunks must be there, each a file in the folder that inflates to one chunk.

    Raises
    ------
    InputError
        Names the folder and what is not as it should be.
    """
    check_group(folder)
    try:
        metadata = json.loads((folder / _METADATA).read_bytes())
        shape, chunk, item_bytes = _layout(metadata)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        cause = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise DamagedError(folder, cause[:200]) from None
    chunk_bytes = math.prod(chunk) * item_bytes
    counts = [-(-n // max(c, 1)) for n, c in zip(shape, chunk, strict=True)]
    if chunk_bytes > _CHUNK_BYTES or math.prod(counts) > _MOST_CHUNKS:
        raise DamagedError(
            folder, f"shape {shape} in chunks of {chunk} is more than any recording has"
        )
    for index in product(*map(range, counts)):
        _check_chunk(folder, folder.joinpath("c", *map(str, index)), chunk_bytes)


def _layout(metadata: dict[str, Any]) -> tuple[list[int], list[int], int]:
    """Shape, chunk shape and bytes a value, if the rest is as LAYOUT.md says."""
    codecs = metadata["codecs"]
    fixed = {
        "node_type": (metadata["node_type"], "array"),
        "chunk_grid": (metadata["chunk_grid"]["name"], "regular"),
        "chunk_key_encoding": (
            metadata["chunk_key_encoding"],
            {"name": "default", "configuration": {"separator": "/"}},
        ),
        "codecs": ([c["name"] for c in codecs], ["bytes", "zstd"]),
        "storage_transformers": (metadata.get("storage_transformers") or [], []),
    }
    for name, (here, wanted) in fixed.items():
        if here != wanted:
            raise ValueError(f"{name} is {here!r:.80}, not {wanted!r}")
    item_bytes = _ITEM_BYTES[metadata["data_type"]]
    shape = metadata["shape"]
    chunk = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    sizes = [*shape, *chunk]
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in sizes)
    fits = whole and len(shape) == len(chunk)
    # An axis without length has chunks without length.
    if not fits or min(sizes) < 0 or any(c < 1 <= n for n, c in zip(shape, chunk, strict=True)):
        raise ValueError(f"shape {shape!r:.60} and chunks {chunk!r:.60} do not fit together")
    return shape, chunk, item_bytes


def _check_chunk(folder: Path, place: Path, chunk_bytes: int) -> None:
    try:
        size = place.stat().st_size
        if not place.is_file():
            raise DamagedError(folder, f"{place.relative_to(folder)} is no file")
        with place.open("rb") as stream:
            head = stream.read(18)
    except FileNotFoundError:
        raise DamagedError(folder, f"{place.relative_to(folder)} is gone") from None
    except OSError as error:
        raise DamagedError(folder, f"{place.relative_to(folder)}: {error.strerror}") from None
    inflated = zstd_content_bytes(head)
    if inflated != chunk_bytes or size > chunk_bytes + chunk_bytes // 128 + 1024:
        raise DamagedError(
            folder, f"{place.relative_to(folder)} is not a compressed chunk of {chunk_bytes} bytes"
        )


def zstd_content_bytes(head: bytes) -> int | None:
    """Bytes that a Zstandard frame says it holds, by its first 18; None if it does not say.

    Source: RFC 8878, section 3.1.1.1.
    """
    if len(head) < 6 or head[:4] != _ZSTD_MAGIC:
        return None
    descriptor = head[4]
    single_segment = descriptor >> 5 & 1
    at = 5 + (0 if single_segment else 1) + (0, 1, 2, 4)[descriptor & 3]
    size = (single_segment, 2, 4, 8)[descriptor >> 6]
    if size == 0 or len(head) < at + size:
        return None
    value = int.from_bytes(head[at : at + size], "little")
    return value + 256 if size == 2 else value
