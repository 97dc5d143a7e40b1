"""What stands under a name is whole, and on the disk before the name is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from toptune.errors import StorageError
from toptune.machine import durable
from toptune.machine.durable import exchange, move_into_place, sync_tree, write_whole, writing


def make_folder(path: Path, text: str) -> Path:
    (path / "inner").mkdir(parents=True)
    (path / "file").write_text(text)
    (path / "inner" / "file").write_text(text)
    return path


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """What is forced out and renamed, in order."""
    seen: list[tuple[str, Path]] = []
    sync, rename, replace, swap = durable.sync, Path.rename, Path.replace, durable.exchange

    def on_sync(path: Path) -> None:
        seen.append(("sync", path))
        sync(path)

    def on_rename(self: Path, target: Path) -> Path:
        seen.append(("rename", target))
        return rename(self, target)

    def on_replace(self: Path, target: Path) -> Path:
        seen.append(("rename", target))
        return replace(self, target)

    def on_exchange(a: Path, b: Path) -> bool:
        seen.append(("rename", b))
        return swap(a, b)

    monkeypatch.setattr(durable, "sync", on_sync)
    monkeypatch.setattr(Path, "rename", on_rename)
    monkeypatch.setattr(Path, "replace", on_replace)
    monkeypatch.setattr(durable, "exchange", on_exchange)
    return seen


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_is_on_the_disk_before_its_name_and_the_name_before_we_return(
    tmp_path: Path, events: list[tuple[str, Path]], replace: bool
) -> None:
    place = tmp_path / "place"
    if replace:
        make_folder(place, "old")
    aside = make_folder(tmp_path / "aside", "new")
    move_into_place(aside, place, replace=replace)
    assert (place / "inner" / "file").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["place"]
    *before, last = events
    at = before.index(("rename", place))
    everything = {aside, aside / "file", aside / "inner", aside / "inner" / "file"}
    assert {path for what, path in before[:at] if what == "sync"} == everything
    # Names inside a folder come before the folder's own.
    order = [path for _, path in before[:at]]
    assert order.index(aside / "inner" / "file") < order.index(aside / "inner")
    assert order.index(aside / "inner") < order.index(aside)
    assert last == ("sync", tmp_path)


def test_a_file_is_on_the_disk_before_it_replaces_another(
    tmp_path: Path, events: list[tuple[str, Path]]
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    write_whole(path, "new")
    assert path.read_text() == "new"
    (_, part), rename, folder = events
    assert part.name.startswith(".file.")
    assert (rename, folder) == (("rename", path), ("sync", tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(StorageError, match=r"No space left on device.*make room and run the same"),
        writing(path),
    ):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_taken_name_is_refused_and_nothing_lost(tmp_path: Path) -> None:
    place, aside = make_folder(tmp_path / "place", "old"), make_folder(tmp_path / "aside", "new")
    with pytest.raises(FileExistsError):
        move_into_place(aside, place, replace=False)
    assert (place / "file").read_text() == "old"
    assert (aside / "file").read_text() == "new"


def test_names_are_exchanged_or_the_system_is_known_not_to(tmp_path: Path) -> None:
    a, b = make_folder(tmp_path / "a", "a"), make_folder(tmp_path / "b", "b")
    if exchange(a, b):
        assert ((a / "file").read_text(), (b / "file").read_text()) == ("b", "a")
    else:
        assert ((a / "file").read_text(), (b / "file").read_text()) == ("a", "b")


def test_folders_are_replaced_where_names_cannot_be_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "exchange", lambda *_: False)
    place, aside = make_folder(tmp_path / "place", "old"), make_folder(tmp_path / "aside", "new")
    move_into_place(aside, place, replace=True)
    assert (place / "file").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["place"]


def test_a_folder_that_cannot_be_forced_out_is_not_fatal_but_a_broken_disk_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / "a", "a")
    real = os.fsync
    code = errno.EINVAL

    def no_folders(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112  # a name of the kernel's
            raise OSError(code, "no")
        real(descriptor)

    if not Path("/proc/self/fd").exists():
        pytest.skip("/proc: not on this system")
    monkeypatch.setattr(os, "fsync", no_folders)
    sync_tree(tmp_path / "a")
    code = errno.EIO
    with pytest.raises(OSError, match="no"):
        sync_tree(tmp_path / "a")
