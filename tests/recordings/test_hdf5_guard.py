"""Guarding HDF5 files: what is let through is what the library reads, what is refused is named."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from toptune.errors import InputError
from toptune.recordings import hdf5_guard
from toptune.recordings.hdf5_guard import (
    check_all_heaps,
    check_heaps,
    check_inflation,
    check_links,
    check_stored,
    check_texts,
    has_variable_text,
)

TEXT = h5py.string_dtype()
TABLE = np.dtype(
    [("a", "<i2"), ("first", TEXT), ("b", "<f8"), ("c", "<i4", (3,)), ("second", TEXT), ("d", "u1")]
)
WORDS = ["x", "a longer word than the others", "", "\u00e9\u00e9", "y" * 3000]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = tmp_path / "a.h5"
    with h5py.File(place, "w") as file:
        rows = [(k, word, k / 2, (1, 2, 3), word[::-1], k) for k, word in enumerate(WORDS)]
        file["deep/er/table"] = np.array(rows, TABLE)
        file["deep/numbers"] = np.arange(1000.0)
        file["again"] = file["deep"]  # the same group under another name, and within itself
        file["deep/itself"] = file["deep"]
    return place


@pytest.fixture
def file(path: Path) -> Iterator[Any]:
    with h5py.File(path, "r+") as opened:
        yield opened


def test_groups_in_circles_and_good_tables_are_let_through(file: Any, path: Path) -> None:
    check_links(file, path)
    check_heaps(file["deep/er/table"], path)
    check_stored(file["deep/er/table"], path, 10**6)
    check_all_heaps(path)
    read = file["deep/er/table"]["first"]
    assert [word.decode() for word in read] == WORDS


@pytest.mark.parametrize(
    ("link", "kind"),
    [(h5py.SoftLink("/deep"), "a soft link"), (h5py.ExternalLink("b.h5", "/x"), "another file")],
)
@pytest.mark.parametrize("where", ["x", "deep/x", "deep/er/x"])
def test_links_are_refused_at_every_level(
    file: Any, path: Path, link: Any, kind: str, where: str
) -> None:
    file[where] = link
    with pytest.raises(InputError, match=f"{kind}.*links are not followed"):
        check_links(file, path)


def test_every_object_of_a_heap_is_looked_at(file: Any, path: Path) -> None:
    file.close()
    whole = path.read_bytes()
    # Walk the heaps as the format says, and give each object in turn no length and no number.
    places = []
    start = whole.index(b"GCOL")
    while start >= 0:
        size = int.from_bytes(whole[start + 8 : start + 16], "little")
        at = start + 16
        while at + 16 <= start + size:
            places.append(at)
            length = int.from_bytes(whole[at + 8 : at + 16], "little")
            index = int.from_bytes(whole[at : at + 2], "little")
            at += length if index == 0 else 16 + -(-length // 8) * 8
        start = whole.find(b"GCOL", start + 1)
    assert len(places) >= 2 * len(WORDS) - 2
    for place in places:
        path.write_bytes(whole[:place] + bytes(16) + whole[place + 16 :])
        with pytest.raises(InputError, match=r"a\.h5: the texts at byte"):
            check_all_heaps(path)
        far = (2**63).to_bytes(8, "little")
        path.write_bytes(whole[: place + 8] + far + whole[place + 16 :])
        with h5py.File(path) as again, pytest.raises(InputError, match="the texts at byte"):
            check_heaps(again["deep/er/table"], path)


def test_a_text_longer_than_any_name_is_refused_before_it_is_read(file: Any, path: Path) -> None:
    offset = file["deep/er/table"].id.get_offset()
    file.close()
    data = bytearray(path.read_bytes())
    data[offset + 2 : offset + 6] = (2**32 - 1).to_bytes(4, "little")  # after the first column
    path.write_bytes(data)
    with h5py.File(path) as again, pytest.raises(InputError, match="a text claims 4294967295"):
        check_heaps(again["deep/er/table"], path)


@pytest.mark.parametrize("how", [{"chunks": (2,)}, {"chunks": (5,), "compression": "gzip"}])
def test_tables_in_chunks_have_all_heaps_of_the_file_looked_at(
    file: Any, path: Path, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = file.create_dataset("chunked", data=file["deep/er/table"][...], **how)
    file.flush()
    seen: list[Path] = []
    monkeypatch.setattr(hdf5_guard, "check_all_heaps", seen.append)
    check_heaps(made, path)
    assert seen == [path]


def test_only_texts_of_variable_length_lie_in_heaps(file: Any) -> None:
    node = file["deep"]
    node.attrs["fixed"] = np.bytes_(b"abc")
    node.attrs["number"] = 3
    assert not has_variable_text(node)
    node.attrs["free"] = "abc"
    assert has_variable_text(node)


@pytest.mark.parametrize("filters", [{}, {"shuffle": True}, {"fletcher32": True}])
def test_a_chunk_may_inflate_to_a_chunk_and_no_more(
    file: Any, path: Path, filters: dict[str, Any]
) -> None:
    n = 5 * 2**20
    file.create_dataset("z", (n,), "<i4", chunks=(n,), compression="gzip", **filters)
    random = np.random.default_rng(0).bytes(4 * 2**18) + bytes(4 * (n - 2**18))
    for length, ok in ((4 * n, True), (4 * n + 1, False)):
        stored = zlib.compress(random + bytes(length - 4 * n), 1)
        assert len(stored) > 2**20
        file["z"].id.write_direct_chunk((0,), stored)
        if ok:
            check_inflation(file["z"], path)
        else:
            with pytest.raises(InputError, match="inflates to more than the 20971520"):
                check_inflation(file["z"], path)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"shape": (10**9,), "chunks": (1000,)}, "claims 8000000000 bytes in shape"),
        ({"shape": (10**9,)}, "claims 8000000000 bytes in shape"),
        ({"shape": (2**24,), "chunks": (2**24,)}, "has chunks of 134217728 bytes"),
        ({"shape": (100,), "chunks": (10,), "compression": "lzf"}, "filter 32000"),
        ({"shape": (100,), "chunks": (10,), "scaleoffset": 3}, "filter 6"),
        ({"shape": (2**18,), "chunks": (1000,)}, "more than the limit of 1000000"),
    ],
)
def test_what_is_not_stored_as_it_should_be_is_refused(
    file: Any, path: Path, how: dict[str, Any], says: str
) -> None:
    made = file.create_dataset("d", dtype="<f8", **how)
    file.flush()
    with pytest.raises(InputError, match=rf"a\.h5: /d .*{says}|a\.h5: a chunk of /d.*{says}"):
        check_stored(made, path, 1_000_000)


def test_data_in_other_files_are_refused(file: Any, path: Path, tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.write_bytes(bytes(800))
    made = file.create_dataset("e", (100,), "<f8", external=[(str(outside), 0, 800)])
    layout = h5py.VirtualLayout((100,), "<f8")
    layout[...] = h5py.VirtualSource("b.h5", "x", (100,))
    for dataset in (made, file.create_virtual_dataset("v", layout)):
        with pytest.raises(InputError, match="are in other files"):
            check_stored(dataset, path)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Write texts in every way in which they are stored."""
    place = tmp_path / "texts.h5"
    with h5py.File(place, "w") as file:
        file.create_dataset("plain", data=WORDS, dtype=TEXT)
        file.create_dataset("one", data="alone", dtype=TEXT)
        for name, how in (("gzip", {}), ("shuffled", {"shuffle": True})):
            file.create_dataset(
                name, data=WORDS, dtype=TEXT, chunks=(2,), compression="gzip", **how
            )
        lists = file.create_dataset("lists", (2,), h5py.vlen_dtype("<i4"))
        lists[0] = [1, 2, 3]
        file["table"] = np.array([(1, "x", 0.5, (1, 2, 3), "yy", 2)], TABLE)
        file.create_dataset("never written", (5,), TEXT)
    return place


def test_good_texts_are_let_through(texts: Path) -> None:
    with h5py.File(texts) as file:
        check_texts(file, texts)


@pytest.mark.parametrize(("value", "at"), [(4000, 0), (2**31, 0), (60_000, 12)])
def test_a_text_that_claims_more_than_its_heap_holds_is_refused(
    texts: Path, value: int, at: int
) -> None:
    with h5py.File(texts) as file:
        offset = file["plain"].id.get_offset() + 16 + at
    data = bytearray(texts.read_bytes())
    data[offset : offset + 4] = value.to_bytes(4, "little")
    texts.write_bytes(data)
    with h5py.File(texts) as file, pytest.raises(InputError, match=r"texts at byte .* are damaged"):
        check_texts(file, texts)


def test_a_text_of_another_kind_than_the_library_knows_is_refused(texts: Path) -> None:
    with h5py.File(texts) as file:
        kind = bytes(file["one"].id.get_type().encode())
    data = texts.read_bytes()
    stored = b"\x19" + kind[3:6] + (16).to_bytes(4, "little")
    assert stored in data
    texts.write_bytes(data.replace(stored, b"\x19\x0f" + stored[2:]))
    with h5py.File(texts) as file, pytest.raises(InputError, match="its type is unknown"):
        check_texts(file, texts)
