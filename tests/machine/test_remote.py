"""URLs as paths: what they are called, what they ask a server, and what they refuse."""

from __future__ import annotations

import asyncio
import os
import pickle
import secrets
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from needs import package
from small_data import write_mcs

from toptune.errors import InputError, MissingPackagesError
from toptune.machine import objects
from toptune.machine.durable import write_whole
from toptune.machine.fingerprint import require_regular
from toptune.machine.remote import RemotePath, as_path, local_output

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows: URLs are not read there")


@pytest.fixture
def below() -> RemotePath:
    """A URL below which nothing is."""
    package("fsspec")
    path = as_path(f"memory://bucket/{secrets.token_hex(4)}")
    assert isinstance(path, RemotePath)
    return path


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("s3://bucket/a/b.h5", "s3://bucket/a/b.h5"),
        ("S3://bucket/a//b.h5/", "s3://bucket/a/b.h5"),
        (Path("s3://bucket/a.h5"), "s3://bucket/a.h5"),  # of which pathlib takes a slash
        ("s3:/bucket/a.h5", "s3://bucket/a.h5"),
        ("abfs://box@account.dfs.core.windows.net/a", "abfs://box@account.dfs.core.windows.net/a"),
        ("sftp://me@host/a b/ü#1.h5", "sftp://me@host/a b/ü#1.h5"),
    ],
)
def test_urls_are_known_in_every_form(given: str | Path, meant: str) -> None:
    path = as_path(given)
    assert isinstance(path, RemotePath)
    assert str(path) == f"{path}" == path.as_posix() == meant
    assert as_path(path) is path


@pytest.mark.parametrize("given", ["a/b.h5", "/a/b.h5", "C:/a", "c:a", "a:b", "::", "", "lsl:x"])
def test_everything_else_is_a_path_of_this_machine(given: str) -> None:
    path = as_path(given)
    assert type(path) is type(Path())
    assert path == Path(given)


def test_a_file_by_url_is_a_path_of_this_machine() -> None:
    assert as_path("file:///a%20b/c.h5") == Path("/a b/c.h5")
    assert as_path(Path("file:///a/c.h5")) == Path("/a/c.h5")
    assert as_path("file://localhost/a") == Path("/a")
    with pytest.raises(InputError, match="another machine"):
        as_path("file://host/a")


def test_a_folder_whose_name_ends_in_a_colon_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run:").mkdir()
    monkeypatch.chdir(tmp_path)
    assert as_path("run:/a.h5") == Path("run:/a.h5")
    assert isinstance(as_path("ran:/a.h5"), RemotePath)


@pytest.mark.parametrize(
    "given",
    [
        "s3://user:hunter2@bucket/a",
        "s3:/user:hunter2@bucket/a",
        "https://host/a?X-Amz-Signature=hunter2",
        "az://box/a?sig=hunter2",
    ],
)
def test_secrets_in_a_url_are_refused_and_not_repeated(given: str) -> None:
    with pytest.raises(InputError, match="environment") as refused:
        as_path(given)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("given", ["s3://", "s3:///a", "memory:///a"])
def test_a_url_without_a_bucket_is_refused(given: str) -> None:
    with pytest.raises(InputError, match="names a bucket"):
        as_path(given)


def test_it_is_a_path_like_others() -> None:
    path = as_path("s3://bucket/study/devices.csv")
    folder = path.parent
    assert path.name == "devices.csv"
    assert path.suffix == ".csv"
    assert path.stem == "devices"
    assert [str(one) for one in path.parents] == ["s3://bucket/study", "s3://bucket"]
    assert folder.parent.parent == folder.parent == as_path("s3://bucket")
    assert folder / "devices.csv" == path == folder.joinpath("devices.csv")
    assert folder / "s3://other/a.h5" == as_path("s3://other/a.h5")
    assert folder / "/data/a.h5" == Path("/data/a.h5")
    assert Path("/data") / path == path
    assert str(path.with_suffix(".json")) == "s3://bucket/study/devices.json"
    assert str(path.with_name("a.h5")) == "s3://bucket/study/a.h5"
    assert str((folder / "../raw/./a.h5").resolve()) == "s3://bucket/raw/a.h5"
    assert path.relative_to(folder) == Path("devices.csv")
    assert path.relative_to("s3://bucket") == Path("study/devices.csv")
    assert path.is_relative_to(folder)
    assert not path.is_relative_to("s3://buck")
    assert path.is_absolute()
    assert path.absolute() is path
    assert path.expanduser() is path
    with pytest.raises(ValueError, match="not below"):
        path.relative_to("/data")


def test_it_is_equal_to_the_same_url_only() -> None:
    path = as_path("s3://bucket/a.h5")
    again = pickle.loads(pickle.dumps(path))
    assert again == path
    assert type(again) is RemotePath
    assert {path: 1}[as_path("s3://bucket//a.h5")] == 1
    assert path != Path("s3:/bucket/a.h5")
    assert sorted([path, Path("a"), Path("z")])[1] == path


def test_it_asks_the_server(below: RemotePath) -> None:
    file = below / "raw" / "a.txt"
    assert not file.exists()
    assert not below.exists()
    write_whole(file, "first")
    (below / "raw" / "deep" / "b.txt").write_text("second")
    assert file.exists()
    assert file.is_file()
    assert not file.is_dir()
    assert (below / "raw").is_dir()
    assert not (below / "raw").is_file()
    assert file.stat().st_size == 5
    assert file.read_text() == "first"
    assert file.read_bytes() == b"first"
    with file.open("rb") as stream:
        assert stream.seek(2) == 2
        assert stream.read(2) == b"rs"
        assert stream.read() == b"t"
        assert stream.read() == b""
    with file.open(encoding="utf-8") as text:
        assert list(text) == ["first"]
    assert sorted(below.iterdir()) == [below / "raw"]
    assert sorted(below.rglob("*.txt")) == [file, below / "raw" / "deep" / "b.txt"]
    assert sorted((below / "raw").glob("*")) == [file, below / "raw" / "deep"]
    assert list(below.glob("**/b.*")) == [below / "raw" / "deep" / "b.txt"]
    assert list(below.glob("*/*.txt")) == [file]
    file.write_bytes(b"another")
    assert file.stat().st_size == 7
    file.unlink()
    assert not file.exists()
    file.unlink(missing_ok=True)
    for call in (file.unlink, file.stat, file.read_bytes, lambda: file.open("rb")):
        with pytest.raises(FileNotFoundError):
            call()
    with pytest.raises(InputError, match="no such file"):
        require_regular(file)


def test_it_is_a_local_copy_to_others(
    below: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOPTUNE_CACHE_DIR", str(tmp_path))
    (below / "set" / "a.txt").write_text("first")
    (below / "set" / "deep" / "b.txt").write_text("second")
    folder, file = below / "set", below / "set" / "a.txt"
    with open(file) as text:  # noqa: PTH123  # what libraries do
        assert text.read() == "first"
    assert Path(os.fspath(file)).name == "a.txt"
    copied = Path(os.fspath(folder))
    assert copied.is_relative_to(tmp_path)
    assert (copied / "deep" / "b.txt").read_text() == "second"
    # What is in the folder is in its copy, too; the server is not asked any more.
    (below / "set" / "a.txt").unlink()
    assert (folder / "a.txt").is_file()
    assert (folder / "a.txt").exists()
    assert not (folder / "none").exists()
    assert os.fspath(folder / "deep" / "b.txt") == str(copied / "deep" / "b.txt")
    with pytest.raises(InputError, match="no such file"):
        os.fspath(folder / "../none")
    assert os.fspath(folder / "a.txt") == str(copied / "a.txt")
    assert sorted(folder.rglob("*.txt")) == [folder / "a.txt", folder / "deep" / "b.txt"]
    folder.release()
    assert not (folder / "a.txt").exists()


@pytest.mark.parametrize(
    "what",
    ["mkdir", "touch", "rmdir", "chmod", "rename", "replace", "symlink_to", "hardlink_to"],
)
def test_what_a_url_has_not_is_refused(what: str) -> None:
    path = as_path("s3://bucket/a")
    with pytest.raises(OSError, match="s3://bucket/a: a URL has no"):
        getattr(path, what)(*(["x"] if what in ("rename", "replace", "symlink_to") else []))
    with pytest.raises(OSError, match="s3://bucket/a"):
        path.open("wb")


def test_results_are_not_written_to_urls() -> None:
    with pytest.raises(InputError, match="s3://bucket/run: results are written to a local path"):
        local_output("s3://bucket/run")
    assert local_output("run") == Path("run")


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "find_spec", lambda _: None)
    monkeypatch.setattr(objects, "_roots", {})
    for url, name in (("s3://bucket/a", "obstore"), ("sftp://host/a", "fsspec")):
        with pytest.raises(MissingPackagesError, match=rf"{name}.*toptune\[cloud\]"):
            as_path(url).exists()


def test_a_kind_that_nothing_serves_is_refused() -> None:
    package("fsspec")
    with pytest.raises(InputError, match="nosuch:// is no kind of URL"):
        as_path("nosuch://host/a").exists()


def test_local_recordings_load_nothing_for_urls(tmp_path: Path) -> None:
    recording = write_mcs(tmp_path / "a.h5", seed=1, seconds=1)
    program = (
        "import sys\n"
        "from toptune.recordings.opening import open_recording\n"
        "from toptune.machine.fingerprint import file_sha256, stamp_of\n"
        "from pathlib import Path\n"
        f"path = Path({str(recording)!r})\n"
        "with open_recording(path) as one:\n"
        "    one.check_whole()\n"
        "    one.read(0, 100)\n"
        "file_sha256(path), stamp_of(path)\n"
        "print({'obstore', 'fsspec', 'zarr', 'boto3', 'toptune.machine.objects'} & {*sys.modules})"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.strip() == "set()"


def test_the_end_waits_for_whoever_is_giving_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    # As a thread of obstore's: it wakes the loop, and wants the interpreter once more.
    inside, released = threading.Event(), threading.Event()
    real = asyncio.SelectorEventLoop.call_soon_threadsafe

    def slowly(self: Any, call: Any, *given: Any, **more: Any) -> Any:
        made = real(self, call, *given, **more)
        if call is nothing:
            inside.set()
            released.wait(10)
        return made

    monkeypatch.setattr(asyncio.SelectorEventLoop, "call_soon_threadsafe", slowly)
    loop = objects._Loop()
    giver = threading.Thread(target=loop.loop.call_soon_threadsafe, args=(nothing,))
    giver.start()
    assert inside.wait(10)
    ending = threading.Thread(target=loop.stop)
    ending.start()
    ending.join(0.3)
    assert ending.is_alive()
    released.set()
    ending.join(10)
    giver.join(10)
    assert not ending.is_alive()
    assert loop.loop.is_closed()


def nothing() -> None: ...
