"""Published groups of arrays in a Zarr v3 folder, safe against half-written and damaged files.

A group carries the sha256 of each of its arrays, of every file below it, and of its own attributes,
and ``published: true`` once all of it has been read back. A damaged file is an error that names it,
never data.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from toptune.errors import InputError
from toptune.machine.durable import write_whole
from toptune.store.guard import DamagedError, check_array, check_group, check_links

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
    (folder / _METADATA).write_text(_metadata(attributes), "utf-8")


def replace_attributes(folder: Path, attributes: dict[str, Any]) -> None:
    """Write the attributes of a group that others may be reading, with their sum."""
    write_whole(folder / _METADATA, _metadata(attributes))


def _metadata(attributes: dict[str, Any]) -> str:
    summed = {**attributes, SUM: _attributes_sum(attributes)}
    metadata = {"zarr_format": 3, "node_type": "group", "attributes": summed}
    return json.dumps(metadata, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_attributes(folder: Path) -> dict[str, Any]:
    """Read a group's attributes and hold them against their sum.

    Raises
    ------
    DamagedError
        They are not what was written, or cannot be read.
    """
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
    """Give a published group's attributes.

    Raises
    ------
    InputError
        The group is damaged or not published.
    """
    attributes = read_attributes(folder)
    if attributes.get("published") is not True:
        raise InputError(f"{folder} is not published: remove that folder and run extract again")
    return attributes


def read_array(folder: Path, name: str, attributes: dict[str, Any]) -> Any:
    """Read a whole array of a published group.

    Parameters
    ----------
    folder
        Of the group.
    name
        Of the array.
    attributes
        Of the group, as `published` gave them.

    Raises
    ------
    DamagedError
        It is not what was written.
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


def read_length(folder: Path, name: str, attributes: dict[str, Any]) -> int:
    """Tell how many rows an array of a published group has, without reading them.

    Raises
    ------
    DamagedError
        Its zarr.json is not what was written.
    """
    path = f"{name}/{_METADATA}"
    try:
        written = attributes.get("files", {path: None})[path]
        if written not in (None, hashlib.sha256((folder / path).read_bytes()).hexdigest()):
            raise DamagedError(folder / name, f"the sha256 of {path} is not the one written down")
        return int(zarr.open_array(folder / name, mode="r", zarr_format=3).shape[0])
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
