"""Local copies of objects: shared, bounded, whole, and never gone while they are in use."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from needs import package
from s3 import Bucket, rule

from toptune.errors import InputError, StorageError
from toptune.machine import copies
from toptune.machine.remote import RemotePath, as_path

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows: URLs are not read there")


@pytest.fixture
def cache(tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for copies, of at most 1,000 bytes."""
    package("obstore")
    folder = tmp_path / "cache"
    monkeypatch.setenv("TOPTUNE_CACHE_DIR", str(folder))
    monkeypatch.setenv("TOPTUNE_CACHE_BYTES", "1000")
    bucket.server.faults()
    return folder


def url(bucket: Bucket, key: str) -> RemotePath:
    path = as_path(f"{bucket.url}/{key}")
    assert isinstance(path, RemotePath)
    return path


def local(path: RemotePath) -> Path:
    return Path(os.fspath(path))


def fetched(bucket: Bucket) -> list[str]:
    """Keys that were read since the last time."""
    found = [one.path for one in bucket.server.requests() if one.method == "GET"]
    bucket.server.faults()
    return [path.removeprefix(f"/{bucket.name}/") for path in found]


def held(cache: Path) -> list[str]:
    """Names of the files in copies."""
    return sorted(one.name for one in cache.glob("*.*/*"))


@pytest.mark.usefixtures("cache")
def test_a_copy_is_found_again_by_every_path_and_process(bucket: Bucket) -> None:
    bucket.put("raw/a.h5", b"content")
    first = url(bucket, "raw/a.h5")
    assert local(first).read_bytes() == b"content"
    assert local(first).name == "a.h5"
    assert local(first).stat().st_mtime_ns == first.found().modified_ns  # type: ignore[union-attr]
    again = url(bucket, "raw/a.h5")
    assert local(again) == local(first)
    with url(bucket, "raw/a.h5").open("rb") as stream:
        assert stream.read() == b"content"
    program = (
        "import os, sys\nfrom toptune.machine.remote import as_path\n"
        "print(os.fspath(as_path(sys.argv[1])))"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, str(first)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert told.stdout.strip() == str(local(first))
    assert fetched(bucket) == ["raw/a.h5"]


@pytest.mark.usefixtures("cache")
def test_a_changed_object_has_another_copy(bucket: Bucket) -> None:
    bucket.put("a", b"content")
    before = url(bucket, "a")
    assert local(before).read_bytes() == b"content"
    bucket.put("a", b"another")
    assert local(url(bucket, "a")).read_bytes() == b"another"
    assert local(before).read_bytes() == b"content"


def test_an_object_that_changes_while_it_is_copied_is_refused(bucket: Bucket, cache: Path) -> None:
    bucket.put("a", b"content")
    path = url(bucket, "a")
    assert path.is_file()  # from now on that content is meant
    bucket.put("a", b"another")
    with pytest.raises(InputError, match=rf"{bucket.url}/a .*changed while it was read"):
        local(path)
    assert held(cache) == []


def test_those_used_longest_ago_go_first(bucket: Bucket, cache: Path) -> None:
    for key in "abcd":
        bucket.put(key, key.encode() * 400)
    assert local(url(bucket, "a")).exists()
    time.sleep(0.02)
    assert local(url(bucket, "b")).exists()
    time.sleep(0.02)
    assert local(url(bucket, "a")).exists()  # so that b was used longest ago
    time.sleep(0.02)
    assert local(url(bucket, "c")).exists()
    assert held(cache) == ["a", "c"]


def test_a_copy_in_use_never_goes(bucket: Bucket, cache: Path) -> None:
    for key in "abc":
        bucket.put(key, key.encode() * 400)
    used, inner = url(bucket, "a"), url(bucket, "b")
    assert local(used).exists()
    assert local(inner).exists()
    with pytest.raises(InputError, match="TOPTUNE_CACHE_BYTES") as refused:
        local(url(bucket, "c"))
    assert f"{bucket.url}/c: 400 bytes do not fit" in str(refused.value)
    assert "800 are in use" in str(refused.value)
    assert held(cache) == ["a", "b"]
    inner.release()
    assert local(url(bucket, "c")).read_bytes() == b"c" * 400
    assert held(cache) == ["a", "c"]
    assert local(used).read_bytes() == b"a" * 400


@pytest.mark.usefixtures("cache")
def test_what_is_too_large_is_refused_before_it_is_read(bucket: Bucket) -> None:
    bucket.put("small", b"a")
    bucket.put("large", bytes(1001))
    kept = local(url(bucket, "small"))
    fetched(bucket)
    with pytest.raises(InputError, match="large: 1,001 bytes do not fit"):
        local(url(bucket, "large"))
    assert fetched(bucket) == []
    assert not kept.exists()  # room was tried to be made


@pytest.mark.usefixtures("cache")
def test_many_at_a_time_fetch_once(bucket: Bucket) -> None:
    bucket.put("a", bytes(700))
    bucket.server.faults(rule("slow", "GET", seconds=0.3))
    paths = [url(bucket, "a") for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(os.fspath, paths))) == 1
    assert fetched(bucket) == ["a"]


def test_what_a_killed_process_left_goes(bucket: Bucket, cache: Path) -> None:
    bucket.put("a", bytes(700))
    bucket.put("b", bytes(700))
    bucket.server.faults(rule("slow", "GET", seconds=30))
    program = (
        "import os, sys\nfrom toptune.machine.remote import as_path\n"
        "os.fspath(as_path(sys.argv[1]))"
    )
    with subprocess.Popen([sys.executable, "-c", program, f"{bucket.url}/a"]) as process:
        try:
            limit = time.monotonic() + 30
            while not [*cache.glob("*.partial-*")] and time.monotonic() < limit:
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGKILL)
    assert [*cache.glob("*.partial-*")]
    bucket.server.faults()
    # Neither its lock nor its bytes are in the way of others.
    assert len(local(url(bucket, "b")).read_bytes()) == 700
    assert not [*cache.glob("*.partial-*")]
    assert len(local(url(bucket, "a")).read_bytes()) == 700


@pytest.mark.usefixtures("cache")
def test_a_shortened_copy_is_fetched_again(bucket: Bucket) -> None:
    bucket.put("a", b"content")
    path = url(bucket, "a")
    copy = local(path)
    path.release()
    copy.chmod(0o600)
    copy.write_bytes(b"con")
    assert local(url(bucket, "a")).read_bytes() == b"content"


@pytest.mark.usefixtures("cache")
def test_a_folder_is_copied_whole(bucket: Bucket) -> None:
    for key in ("set/x", "set/deep/y", "set/deep/", "other"):
        bucket.put(key, b"" if key.endswith("/") else key.encode())
    copy = local(url(bucket, "set"))
    assert {str(one.relative_to(copy)) for one in copy.rglob("*") if one.is_file()} == {
        "x",
        "deep/y",
    }
    assert (copy / "deep" / "y").read_text() == "set/deep/y"


def test_a_full_disk_is_one_clear_error(
    bucket: Bucket, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("a", b"content")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match="TOPTUNE_CACHE_DIR") as refused:
        local(url(bucket, "a"))
    assert f"{bucket.url}/a: no local copy" in str(refused.value)
    assert "No space left on device" in str(refused.value)
    assert held(cache) == []


@pytest.mark.usefixtures("cache")
def test_what_is_not_there_has_no_copy(bucket: Bucket) -> None:
    with pytest.raises(InputError, match=re.escape(f"{bucket.url}/none: no such file or folder")):
        local(url(bucket, "none"))


@pytest.mark.parametrize(
    ("given", "n_bytes"), [("", None), ("2000", 2000), ("2 kB", 2000), ("0.5M", 500_000)]
)
def test_the_limit_may_be_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, n_bytes: int | None
) -> None:
    monkeypatch.setenv("TOPTUNE_CACHE_BYTES", given)
    limit = copies._limit(tmp_path)
    assert limit == n_bytes if n_bytes else limit > 10**6
    monkeypatch.setenv("TOPTUNE_CACHE_BYTES", "many")
    with pytest.raises(InputError, match="TOPTUNE_CACHE_BYTES=many"):
        copies._limit(tmp_path)
