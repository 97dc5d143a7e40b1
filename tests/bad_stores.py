"""Stores that must be refused, all by ``toptune fit`` but one."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from bad_case import EXTRACT, FIT, Case


def json_edit(path: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    """Edit a JSON file (a pattern that fits one)."""

    def make(folder: Path) -> None:
        place = sorted(folder.glob(path))[0]
        content = json.loads(place.read_text("utf-8"))
        change(content)
        place.write_text(json.dumps(content), "utf-8")

    return make


def bytes_edit(path: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        place = sorted(folder.glob(path))[0]
        place.write_bytes(change(place.read_bytes()))

    return make


def put(*keys: Any, value: Any) -> Callable[[Any], None]:
    """Set a value somewhere inside; deleting where it is Ellipsis."""

    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        if value is ...:
            del content[keys[-1]]
        else:
            content[keys[-1]] = value

    return change


# --- stores

ROOT = "s.zarr/zarr.json"
SPIKES = "s.zarr/r0*/spikes/zarr.json"
SET = "s.zarr/r0*/features/*/zarr.json"
ARRAY = "s.zarr/r0*/features/*/features/zarr.json"
CHUNK = "s.zarr/r0*/features/*/features/c/0/0"


def store(name: str, make: Callable[[Path], object], *says: str) -> Case:
    """Spoil a store as somebody would who makes its sums right again, as LAYOUT.md has them."""

    def spoil(folder: Path) -> None:
        make(folder)
        for place in sorted(folder.glob("s.zarr/**/zarr.json")):
            seal(place)

    return Case(f"store: {name}", spoil, FIT, ("s.zarr", *says))


def seal(place: Path) -> None:
    """Write the sums of a group's files and attributes anew."""
    try:
        content = json.loads(place.read_bytes())
        attributes = content["attributes"]
        del attributes["attributes_sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    folder = place.parent
    if "files" in attributes:
        files = (path for path in folder.rglob("*") if path.is_file() and path != place)
        attributes["files"] = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    text = json.dumps(attributes, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    attributes["attributes_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    place.write_text(json.dumps(content), "utf-8")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def array(name: str, *keys: Any, value: Any, says: str) -> Case:
    """Edit the metadata of a features array."""
    return store(name, json_edit(ARRAY, put(*keys, value=value)), "features", says)


def group(path: str, *keys: Any, value: Any) -> Callable[[Path], None]:
    return json_edit(path, put("attributes", *keys, value=value))


def foreign(version: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        shutil.rmtree(folder / "s.zarr")
        made: Any = zarr.create_group(folder / "s.zarr", zarr_format=version)  # type: ignore[arg-type]
        made.create_array("x", data=np.arange(3))

    return make


def replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Put something else in the store's place."""

    def replace(folder: Path) -> None:
        shutil.rmtree(folder / "s.zarr")
        make(folder / "s.zarr")

    return replace


def linked(path: str, *, outside: bool = True) -> Callable[[Path], None]:
    """Move a part of the store away and leave a link."""

    def make(folder: Path) -> None:
        place = sorted(folder.glob(path))[0]
        target = folder / ("outside" if outside else "s.zarr/inside")
        place.rename(target)
        place.symlink_to(target)

    return make


def zstd_of(n: int) -> bytes:
    """A chunk that inflates to n zeros."""
    codec = importlib.import_module("numcodecs.zstd").Zstd(level=1)  # which ships no types
    return bytes(codec.encode(bytes(n)))


CASES = (
    Case("store: not there", lambda _: None, ("fit", "x.zarr", *FIT[2:]), ("x.zarr", "no such")),
    store("a file", replaced(Path.touch), "not a Zarr"),
    store("an empty folder", replaced(Path.mkdir), "not a Zarr"),
    store("a foreign group", foreign(3), "not a toptune store"),
    store("a foreign group of Zarr 2", foreign(2), "not a Zarr v3 store"),
    store("of a later version", group(ROOT, "version", value=99), "store format version 99"),
    store("of a version of text", group(ROOT, "version", value="1"), "store format version 1"),
    store("without settings", group(ROOT, "settings", value=...), "settings"),
    store("with settings of text", group(ROOT, "settings", value="x"), "settings"),
    store("without recordings", group(ROOT, "recordings", value=...), "recordings"),
    store("with recordings of numbers", group(ROOT, "recordings", value=[1, 2]), "list of rec"),
    store("with a strange entry", group(ROOT, "recordings", 0, "more", value=1), "list of rec"),
    store(
        "with a name that leaves it", group(ROOT, "recordings", 0, "name", value="../x"), "'../x"
    ),
    store("with an absolute name", group(ROOT, "recordings", 0, "name", value="/etc"), "'/etc'"),
    store("with a name of dots", group(ROOT, "recordings", 0, "name", value=".."), "'..'"),
    store("with a name of no text", group(ROOT, "recordings", 0, "name", value=7), "is not a rec"),
    store("with broken JSON", bytes_edit(ROOT, lambda d: d[:-20]), "cannot be read"),
    store("with nested JSON", bytes_edit(ROOT, lambda _: b"[" * 100_000), "cannot be read"),
    Case(
        "store: with JSON of 17 MiB",
        bytes_edit(ROOT, lambda d: d + b" " * 17 * 2**20),
        FIT,
        ("s.zarr", "at most"),
    ),
    store("with spikes unpublished", group(SPIKES, "published", value=False), "not published"),
    store("without a rate", group(SPIKES, "sampling_rate_hz", value=...), "damaged"),
    store("with a rate of text", group(SPIKES, "sampling_rate_hz", value="fast"), "damaged"),
    store("with features unpublished", group(SET, "published", value=1), "not published"),
    store("without parameters", group(SET, "params", value=...), "damaged"),
    store(
        "with other parameters", group(SET, "params", "windows", "width_s", value=9.0), "are tho"
    ),
    store("without sums", group(SET, "sha256", value=...), "damaged"),
    store("with another sum", group(SET, "sha256", "features", value="0" * 64), "sha256 is not"),
    store("without an array", lambda f: shutil.rmtree(sorted(f.glob(ARRAY))[0].parent), "damaged"),
    store("without a chunk", lambda f: sorted(f.glob(CHUNK))[0].unlink(), "is gone"),
    store("with a cut chunk", bytes_edit(CHUNK, lambda d: d[:-5]), "damaged"),
    store("with an empty chunk", bytes_edit(CHUNK, lambda _: b""), "not a compressed chunk"),
    store("with a flipped bit", bytes_edit(CHUNK, lambda d: d[:20] + b"\x55" + d[21:]), "damaged"),
    store("with a bomb", bytes_edit(CHUNK, lambda _: zstd_of(2**24)), "not a compressed chunk"),
    store("with chunks that are a pipe", lambda f: _pipe(sorted(f.glob(CHUNK))[0]), "no file"),
    array("of a million million rows", "shape", value=[10**12, 12], says="than any recording"),
    array(
        "in chunks of 4 TB",
        "chunk_grid",
        "configuration",
        "chunk_shape",
        value=[10**12, 12],
        says="more than any recording",
    ),
    array("of half a row", "shape", value=[2.5, 12], says="do not fit together"),
    array("of a negative length", "shape", value=[-1, 12], says="do not fit together"),
    array("of one dimension", "shape", value=[3], says="do not fit together"),
    array(
        "in chunks of none",
        "chunk_grid",
        "configuration",
        "chunk_shape",
        value=[0, 12],
        says="do not fit together",
    ),
    array("of objects", "data_type", value="object", says="object"),
    array("of texts", "data_type", value="string", says="string"),
    array(
        "with another codec", "codecs", value=[{"name": "bytes"}, {"name": "blosc"}], says="blosc"
    ),
    array("without codecs", "codecs", value=..., says="codecs"),
    array("with a transformer", "storage_transformers", value=[{"name": "x"}], says="storage_tran"),
    array(
        "with other chunk names", "chunk_key_encoding", value={"name": "v2"}, says="chunk_key_en"
    ),
    store("with a recording elsewhere", linked("s.zarr/r0*"), "is a symbolic link"),
    store("with spikes elsewhere", linked("s.zarr/r0*/spikes"), "is a symbolic link"),
    store("with an array elsewhere", linked("s.zarr/r0*/features/*/features"), "symbolic link"),
    store("with chunks elsewhere", linked("s.zarr/r0*/features/*/features/c"), "symbolic link"),
    store("with a chunk elsewhere", linked(CHUNK), "symbolic link"),
    store("with metadata elsewhere", linked(ROOT), "symbolic link"),
    store("with a link inside", linked("s.zarr/r0*", outside=False), "is a symbolic link"),
    Case(
        "store: other detection",
        lambda _: None,
        (*EXTRACT[:3], "s.zarr", *EXTRACT[4:], "--threshold-sd", "7"),
        ("s.zarr", "ptsd.threshold_sd = 8.0, not 7.0", "another store"),
    ),
)


def _pipe(place: Path) -> None:
    place.unlink()
    os.mkfifo(place)
