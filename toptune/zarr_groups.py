"""Published groups of arrays in a Zarr v3 folder, proof against half-written and damaged files.

NumPy arrays with JSON-able attributes enter and leave. A group carries the sha256 of each of its
arrays, and ``published: true`` once all of them have been read back. A damaged file is an error
that names it, never data.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from toptune.errors import InputError, ToptuneError
from toptune.zarr_guard import check_array

#: What zarr and its codecs raise for files that are damaged or gone.
UNREADABLE = (OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError)
_CHUNK_BYTES = 2**20


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
    back = zarr.open_group(folder, mode="r", zarr_format=3, use_consolidated=False)
    for name in arrays:
        read_array(back, name)
    group.attrs["published"] = True


def published(group: Any, folder: Path) -> dict[str, Any]:
    """Give a group's attributes; `folder` is where it lies, for messages.

    Raises
    ------
    ToptuneError
        The group is not published.
    """
    attributes = dict(group.attrs)
    if attributes.get("published") is not True:
        raise InputError(f"{folder} is not published: remove that folder and run extract again")
    return attributes


def read_array(group: Any, name: str) -> Any:
    """Read a whole array of a group.

    Raises
    ------
    ToptuneError
        It is not what was written.
    """
    place = group.store_path.store.root / group.path / name
    check_array(place)
    try:
        data = group[name][...]
        written = group.attrs["sha256"][name]
    except UNREADABLE as error:
        raise damaged(place, error) from None
    # Zstd's checksum sees changed chunks alone: one that is gone reads as the fill value, and a
    # changed zarr.json as another type or shape.
    if _digest(data) != written:
        raise damaged(place, "its sha256 is not the one written down")
    return data


def damaged(place: Path, cause: object) -> ToptuneError:
    """Say that a group or array cannot be used, and what to do."""
    text = " ".join(str(cause).split())
    return InputError(
        f"{place} is damaged ({text}): remove that recording's folder from the store and run"
        " extract again"
    )


def _digest(data: NDArray[Any]) -> str:
    """sha256 of an array's type, shape and values; little-endian, last index fastest."""
    plain = np.ascontiguousarray(data, data.dtype.newbyteorder("<"))
    shape = ",".join(map(str, data.shape))
    digest = hashlib.sha256(f"{plain.dtype.str} {shape}\n".encode())
    digest.update(plain.tobytes())
    return digest.hexdigest()
