"""Guarding groups and arrays: what toptune wrote is let through; bad input has its catalogue."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from toptune.errors import InputError
from toptune.store.feature_store import recording_name
from toptune.store.groups import (
    check_array,
    check_group,
    check_names,
    write_group,
    zstd_content_bytes,
)

GOLDEN = Path(__file__).parents[2] / "store" / "golden.zarr"


def test_every_array_of_the_golden_store_is_let_through() -> None:
    seen = 0
    for metadata in GOLDEN.rglob("zarr.json"):
        check_group(metadata.parent)
        if json.loads(metadata.read_text("utf-8"))["node_type"] == "array":
            check_array(metadata.parent)
            seen += 1
    assert seen >= 14


@settings(deadline=None, max_examples=30)
@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int32, np.int64]),
        hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=50),
        elements=st.integers(0, 3),
    )
)
def test_whatever_is_written_is_let_through(
    tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    folder = tmp_path_factory.mktemp("g") / "group"
    write_group(folder, {"x": data}, {})
    check_array(folder / "x")


def test_arrays_of_many_chunks_must_have_them_all(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(700_000, 1))
    write_group(tmp_path / "g", {"x": data}, {})
    chunks = sorted(p for p in (tmp_path / "g" / "x" / "c").rglob("*") if p.is_file())
    assert len(chunks) == 6
    check_array(tmp_path / "g" / "x")
    for chunk in chunks:
        content = chunk.read_bytes()
        chunk.unlink()
        with pytest.raises(InputError, match=rf"c/{chunk.parent.name}/0 is gone"):
            check_array(tmp_path / "g" / "x")
        chunk.write_bytes(content)


@pytest.mark.parametrize("n", [1, 255, 256, 257, 65_791, 65_792, 65_793, 2**20, 2**24])
@pytest.mark.parametrize("checksum", [True, False])
def test_a_frame_tells_how_much_it_holds(n: int, checksum: bool) -> None:
    codec = importlib.import_module("numcodecs.zstd").Zstd(level=1, checksum=checksum)
    rng = np.random.default_rng(n)
    for content in (bytes(n), rng.bytes(n)):
        assert zstd_content_bytes(bytes(codec.encode(content))[:18]) == n


@pytest.mark.parametrize("head", [b"", b"\x28\xb5\x2f\xfd", b"\x1f\x8b" + bytes(16), bytes(18)])
def test_what_is_no_frame_tells_nothing(head: bytes) -> None:
    assert zstd_content_bytes(head) is None


@given(st.text(min_size=1))
def test_every_name_that_toptune_makes_is_let_through(written: str) -> None:
    check_names(Path("s.zarr"), [recording_name(written)])


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", "/etc", ".writing-1", "a\n"]
)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"s\.zarr: .* is not a recording's name"):
        check_names(Path("s.zarr"), [name])


def test_a_store_may_itself_be_reached_by_a_link(tmp_path: Path) -> None:
    from toptune.store.feature_store import FeatureStore

    FeatureStore.create(tmp_path / "s.zarr", {})
    (tmp_path / "link.zarr").symlink_to(tmp_path / "s.zarr")
    assert FeatureStore(tmp_path / "link.zarr").recordings == ()
    other: Any = zarr.open_group(tmp_path / "link.zarr", mode="r")
    assert other.attrs["format"] == "toptune"
