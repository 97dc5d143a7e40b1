"""Published groups of arrays in a Zarr v3 folder, safe against half-written and damaged files.

A group carries the sha256 of each of its arrays, of every file below it, and of its own attributes,
and ``published: true`` once all of it has been read back. A damaged file is an error that names it,
never data.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from toptune.errors import InputError
from toptune.machine.durable import write_whole

#: What zarr and its codecs raise for files that are damaged or gone.
UNREADABLE = (OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError)
#: Attributes that groups had before they carried sums. Beside them nothing can be in a group
#: without a sum: a flipped bit changes a name, and leaves none out.
UNSUMMED = frozenset({
    "format", "version", "settings", "recordings",
    "key", "stamp", "kind", "input", "channel_labels", "sampling_rate_hz", "stream",
    "dead_channels", "over_noisy_channels", "n_windows", "versions", "params", "weights",
    "sha256", "published",
})  # fmt: skip
#: Name of the attribute that holds the sum of the others.
SUM = "attributes_sha256"
_CHUNK_BYTES = 2**20
_METADATA = "zarr.json"
# What is read at most. Metadata of a thousand recordings take less than a megabyte.
_METADATA_LIMIT = 16 * 2**20
_CHUNK_LIMIT = 64 * 2**20
_MOST_CHUNKS = 10**6
_ITEM_BYTES = {"int32": 4, "int64": 8, "float32": 4, "float64": 8}
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class DamagedError(InputError):
    """A group or array in the folder `place` is not what was written; `cause` is how it showed."""

    def __init__(self, place: Path, cause: object) -> None:
        self.place = place
        self.cause = " ".join(str(cause).split())
        super().__init__(
            f"{place} is damaged ({self.cause}): remove that recording's folder from the store and"
            " run extract again"
        )


def write_group(folder: Path, arrays: dict[str, NDArray[Any]], attributes: dict[str, Any]) -> None:
    """Write arrays, read them back, compare, and only then mark the group as published."""
    digests = {name: _digest(data) for name, data in arrays.items()}
    group = zarr.create_group(folder, attributes={**attributes, "sha256": digests}, zarr_format=3)
    for name, data in arrays.items():
        # Rows in blocks of about a megabyte; everything else of an array lies together.
        row_bytes = max(1, data[:1].nbytes)
        rows = max(1, min(len(data), _CHUNK_BYTES // row_bytes))
        made = group.create_array(
            name,
            shape=data.shape,
            dtype=data.dtype,
            chunks=(rows, *data.shape[1:]),
            # Without the checksum nearly every flipped bit would be returned as data.
            compressors=ZstdCodec(level=3, checksum=True),
            fill_value=np.nan if data.dtype.kind == "f" else 0,
            config={"write_empty_chunks": True},
        )
        made[...] = data
    for name in arrays:
        read_array(folder, name, {"sha256": digests})
    whole = {**attributes, "sha256": digests, "files": file_sums(folder), "published": True}
    write_attributes(folder, whole)


def write_attributes(folder: Path, attributes: dict[str, Any]) -> None:
    """Write the attributes of a group that nobody reads yet, with their sum."""
    (folder / _METADATA).write_text(group_metadata(attributes), "utf-8")


def replace_attributes(folder: Path, attributes: dict[str, Any]) -> None:
    """Write the attributes of a group that others may be reading, with their sum."""
    write_whole(folder / _METADATA, group_metadata(attributes))


def group_metadata(attributes: dict[str, Any]) -> str:
    """Give the text of a group's zarr.json, with the sum of its attributes."""
    summed = {**attributes, SUM: _attributes_sum(attributes)}
    metadata = {"zarr_format": 3, "node_type": "group", "attributes": summed}
    return json.dumps(metadata, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_attributes(folder: Path) -> dict[str, Any]:
    """Read a group's attributes and hold them against their sum; damage is a DamagedError."""
    check_group(folder)
    try:
        metadata = json.loads((folder / _METADATA).read_bytes())
        attributes: dict[str, Any] = dict(metadata.pop("attributes"))
        metadata.pop("consolidated_metadata", None)
        written = attributes.pop(SUM, None)
        found = _attributes_sum(attributes)
    except (*UNREADABLE, RecursionError) as error:
        raise DamagedError(folder, error) from None
    if metadata != {"zarr_format": 3, "node_type": "group"}:
        raise DamagedError(folder, "it is not a Zarr v3 group")
    if written is None:
        unknown = sorted({*attributes} - UNSUMMED)
        if unknown:
            raise DamagedError(folder, f"the attribute {unknown[0]!r} is not one of toptune's")
    elif written != found:
        raise DamagedError(folder, "its attributes' sha256 is not the one written down")
    return attributes


def check_plain(folder: Path) -> None:
    """See that a folder is a group without attributes, as those between the published ones are."""
    if read_attributes(folder):
        raise DamagedError(folder, "it has attributes, where none should be")


def published(folder: Path) -> dict[str, Any]:
    """Give a published group's attributes; an InputError if it is damaged or not published."""
    attributes = read_attributes(folder)
    if attributes.get("published") is not True:
        raise InputError(f"{folder} is not published: remove that folder and run extract again")
    return attributes


def read_array(folder: Path, name: str, attributes: dict[str, Any]) -> Any:
    """Read a whole array of a published group, given the attributes that `published` gave.

    What is not as it was written is a DamagedError.
    """
    check_links(folder / name)
    _check_files(folder, name, attributes.get("files"))
    check_array(folder / name)
    try:
        data: Any = zarr.open_array(folder / name, mode="r", zarr_format=3)[...]
        written = attributes["sha256"][name]
    except UNREADABLE as error:
        raise DamagedError(folder / name, error) from None
    # Zstd's checksum sees changed chunks alone: one that is gone reads as the fill value, and a
    # changed zarr.json as another type or shape.
    if _digest(data) != written:
        raise DamagedError(folder / name, "its sha256 is not the one written down")
    return data


def read_length(folder: Path, name: str, attributes: dict[str, Any], *, chunks: bool = True) -> int:
    """Tell how many rows an array of a published group has; see `read_shape`."""
    return read_shape(folder, name, attributes, chunks=chunks)[0]


def read_shape(
    folder: Path, name: str, attributes: dict[str, Any], *, chunks: bool = True
) -> tuple[int, ...]:
    """Tell the shape of an array of a published group, without reading it.

    A zarr.json that is not as it was written is a DamagedError, and so are chunks that are not
    there, unless `chunks` is False.
    """
    path = f"{name}/{_METADATA}"
    check_links(folder / name)
    try:
        written = attributes.get("files", {path: None})[path]
        if written not in (None, hashlib.sha256((folder / path).read_bytes()).hexdigest()):
            raise DamagedError(folder / name, f"the sha256 of {path} is not the one written down")
        check_array(folder / name, chunks=chunks)
        shape: tuple[int, ...] = zarr.open_array(folder / name, mode="r", zarr_format=3).shape
        return shape
    except DamagedError:
        raise
    except UNREADABLE as error:
        raise DamagedError(folder / name, error) from None


def file_sums(folder: Path) -> dict[str, str]:
    """sha256 of all files below a group, by their paths, but for its own zarr.json."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path != folder / _METADATA
    }


def _check_files(folder: Path, name: str, sums: dict[str, str] | None) -> None:
    """Hold an array's files against the sums; older groups have none."""
    if sums is None:
        return
    here = {f"{name}/{path}": one for path, one in file_sums(folder / name).items()}
    metadata = folder / name / _METADATA
    if metadata.exists():
        here[f"{name}/{_METADATA}"] = hashlib.sha256(metadata.read_bytes()).hexdigest()
    written = {path: one for path, one in sums.items() if path.startswith(f"{name}/")}
    for path in sorted({*here, *written}):
        if path not in here:
            raise DamagedError(folder / name, f"{path} is gone")
        if path not in written:
            raise DamagedError(folder / name, f"{path} does not belong to it")
        if here[path] != written[path]:
            raise DamagedError(folder / name, f"the sha256 of {path} is not the one written down")


def _attributes_sum(attributes: dict[str, Any]) -> str:
    """sha256 of the attributes as JSON with sorted keys and no spaces."""
    text = json.dumps(
        attributes, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(data: NDArray[Any]) -> str:
    """sha256 of an array's type, shape and values; little-endian, last index fastest."""
    plain = np.ascontiguousarray(data, data.dtype.newbyteorder("<"))
    shape = ",".join(map(str, data.shape))
    digest = hashlib.sha256(f"{plain.dtype.str} {shape}\n".encode())
    digest.update(plain.tobytes())
    return digest.hexdigest()


# --- what Zarr must not be given
#
# Zarr follows symbolic links, takes the memory that a shape asks for, replaces missing chunks by
# fill values, and runs whatever codecs a zarr.json names. What LAYOUT.md allows is much less;
# everything else is refused. Kept by hand, since no option of Zarr does this.


def check_group(folder: Path) -> None:
    """Refuse a group that is a symbolic link, or whose zarr.json is one or is absurdly long."""
    metadata = folder / _METADATA
    for place in (folder, metadata):
        if place.is_symlink():
            raise InputError(f"{place} is a symbolic link, which a store does not follow: copy it")
    if metadata.exists() and (not metadata.is_file() or metadata.stat().st_size > _METADATA_LIMIT):
        raise DamagedError(folder, f"its {_METADATA} is no file of at most {_METADATA_LIMIT} bytes")


def check_links(folder: Path) -> None:
    """Refuse an array any part of which is a symbolic link."""
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


def check_array(folder: Path, *, chunks: bool = True) -> None:
    """Refuse an array that is not stored as LAYOUT.md says, before memory is taken for it.

    With `chunks`, all must be there, each a file in the folder that inflates to one chunk.
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
    if chunk_bytes > _CHUNK_LIMIT or math.prod(counts) > _MOST_CHUNKS:
        raise DamagedError(
            folder, f"shape {shape} in chunks of {chunk} is more than any recording has"
        )
    for index in product(*map(range, counts)) if chunks else ():
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
