"""A store below a URL: the same bytes as in a folder, whatever bit is flipped or request the last.

`TOPTUNE_FLIPS=all TOPTUNE_KILLS=all pytest tests/store/test_replica.py` flips a bit of every byte,
and kills at every request.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dying import Requests
from needs import package
from s3 import Bucket, rule
from store_cases import (
    LISTED,
    SET,
    A,
    B,
    content,
    flips,
    in_memory,
    make_store,
    read_all,
    write_all,
    write_recording,
)

from toptune.errors import InputError, StorageError, ToptuneError
from toptune.machine import objects, threads
from toptune.machine.remote import RemotePath, as_path
from toptune.params import SpikeSettings
from toptune.store import replica
from toptune.store.check import check_store, remove_damaged
from toptune.store.feature_store import FeatureStore
from toptune.store.groups import DamagedError

SETTINGS = SpikeSettings().to_json()


def as_remote(store: FeatureStore) -> RemotePath:
    assert isinstance(store.path, RemotePath)
    return store.path


def bytes_of(url: RemotePath) -> dict[str, bytes]:
    return {key: url.objects.get(key) or b"" for key in url.objects.list()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two recordings in a folder; look, do not touch."""
    path = tmp_path_factory.mktemp("made") / "s.zarr"
    make_store(path)
    return path


@pytest.fixture
def url(folder: Path) -> RemotePath:
    """A copy of it in memory."""
    url = in_memory()
    for key, data in content(folder).items():
        url.objects.put(key, data)
    return url


def test_a_bucket_holds_the_bytes_of_a_folder(bucket: Bucket, folder: Path) -> None:
    path = f"{bucket.url}/study/s.zarr"
    made = make_store(path)
    assert bucket.content("study/s.zarr/") == content(folder)
    local = FeatureStore(folder)
    assert read_all(path) == read_all(folder)
    table = FeatureStore(path).table(SET)
    assert np.array_equal(table.features, local.table(SET).features)
    assert np.array_equal(FeatureStore(path).table(SET, stream=True).features, table.features)
    assert FeatureStore(path).training_facts(table) == local.training_facts(local.table(SET))
    assert FeatureStore(path).size_of(SET) == local.size_of(SET)
    assert FeatureStore(path).choose("net") == local.choose("net")
    assert check_store(path).to_json() == {**check_store(folder).to_json(), "store": path}
    assert repr(made).startswith(f"<FeatureStore {path}: 2 recordings")


def test_what_was_copied_from_a_folder_is_gone_on_with(bucket: Bucket, folder: Path) -> None:
    bucket.upload(folder, "s.zarr/")
    store = FeatureStore(f"{bucket.url}/s.zarr")
    write_recording(store, B, 5)
    other = make_store(in_memory())
    write_recording(other, B, 5)
    assert bucket.content("s.zarr/") == bytes_of(as_remote(other))


def test_a_flipped_bit_of_any_object_is_refused_by_its_url(url: RemotePath) -> None:
    expected = read_all(url)
    rng = np.random.default_rng(0)
    refused, harmless = 0, 0
    for key in [k for k in url.objects.list() if k.startswith((A, "zarr.json"))]:
        intact = url.objects.get(key)
        assert intact is not None
        for byte, bit in flips(len(intact), rng):
            broken = bytearray(intact)
            broken[byte] ^= 1 << bit
            url.objects.put(key, bytes(broken))
            try:
                got = read_all(url)
            except ToptuneError as error:
                refused += 1
                assert str(url / A if key.startswith(A) else url) in str(error)  # noqa: PT017
                assert "replicas" not in str(error)  # noqa: PT017
            else:
                harmless += 1  # the same JSON, written otherwise
                assert got == expected
                assert key.endswith("zarr.json")
        url.objects.put(key, intact)
    assert refused > 100
    assert harmless <= refused / 100


def test_a_group_without_its_manifest_is_absent_and_not_damaged(url: RemotePath) -> None:
    url.objects.delete([f"{A}/features/{SET.key}/zarr.json"])
    assert FeatureStore(url).features_info(A, SET.key) is None
    place = f"{A}/features/{SET.key}"
    found = [(f.kind, f.place) for f in check_store(url).findings]
    assert found == [("note", place), ("missing", place)]
    url.objects.delete([f"{B}/spikes/zarr.json"])
    assert FeatureStore(url).spikes_info(B) is None
    found = [(f.kind, f.place) for f in check_store(url).findings]
    assert found == [("note", place), ("missing", B), ("note", B)]
    for seed, name in enumerate((A, B), 1):
        write_recording(FeatureStore(url), name, seed)
    assert check_store(url).is_sound


@pytest.mark.parametrize("key", ["spikes/sample/c/0", "spikes/sample/zarr.json", "zarr.json"])
def test_an_object_that_is_gone_is_damage_and_can_be_taken_out(url: RemotePath, key: str) -> None:
    url.objects.delete([f"{A}/{key}"])
    with pytest.raises(DamagedError, match=rf"{url}/{A}.* is damaged"):
        FeatureStore(url).read_spikes(A)
    report = check_store(url)
    assert [f.kind for f in report.findings] == ["damaged"]
    assert "replicas" not in report.findings[0].cause
    assert remove_damaged(report) == (A,)
    assert url.objects.list(A) == []
    write_recording(FeatureStore(url), A, 1)
    assert check_store(url).is_sound
    assert url.parent.objects.list(".s.zarr.locks") == []


def test_objects_that_do_not_belong_to_a_group_are_named_and_do_no_harm(url: RemotePath) -> None:
    expected = read_all(url)
    url.objects.put(f"{A}/spikes/notes.txt", b"mine")
    url.objects.put("other/thing", b"mine")
    assert read_all(url) == expected
    causes = {f.place: (f.kind, f.cause) for f in check_store(url).findings}
    assert causes == {
        f"{A}/spikes": ("damaged", "notes.txt does not belong to it"),
        "other": ("note", "not written by toptune"),
    }


def test_no_store_and_a_copy_that_is_not_complete_are_told_apart(url: RemotePath) -> None:
    with pytest.raises(InputError, match=r"none\.zarr: no such store"):
        FeatureStore(url.with_name("none.zarr"))
    with pytest.raises(InputError, match="exists already"):
        FeatureStore.create(url, SETTINGS)
    url.objects.delete(["zarr.json"])
    with pytest.raises(InputError, match=rf"{url}: its zarr.json is missing .*not complete"):
        FeatureStore(url)


def test_what_is_replaced_while_it_is_read_is_not_called_damaged(
    url: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(url)
    real = store.place.using

    def replaced(*arguments: Any) -> Any:
        write_recording(FeatureStore(url), A, 3)
        return real(*arguments)

    monkeypatch.setattr(store.place, "using", replaced)
    with pytest.raises(ToptuneError, match=rf"{url}/{A}/spikes was replaced while it was read"):
        store.read_spikes(A)


def test_what_is_read_ahead_is_as_fresh_as_what_is_not(url: RemotePath) -> None:
    store, other = FeatureStore(url), FeatureStore(url)
    before = store.spikes_infos([A, B, "none"])
    assert before == {A: other.spikes_info(A), B: other.spikes_info(B), "none": None}
    write_recording(other, A, 3)
    assert store.spikes_infos([A, B])[A] == other.spikes_info(A) != before[A]
    other.place.remove(A)
    assert store.spikes_infos([A, B])[A] is None
    assert store.features_infos([A, B], SET.key)[A] is None


@pytest.mark.parametrize(
    ("devices", "noted"),
    [
        ("memory://b/study/devices.csv", "../devices.csv"),
        ("memory://b/devices.csv", "../../devices.csv"),
        ("memory://other/devices.csv", "memory://other/devices.csv"),
        ("s3://b/study/devices.csv", "s3://b/study/devices.csv"),
        ("/data/devices.csv", "/data/devices.csv"),
    ],
)
def test_the_devices_file_is_found_again(devices: str, noted: str) -> None:
    package("fsspec")
    url = as_path("memory://b/study/s.zarr")
    store = FeatureStore.create(url, SETTINGS, replace=True)
    store.list_recordings(LISTED, as_path(devices))
    assert store._attributes["devices_file"] == noted
    assert FeatureStore(url).devices_file == as_path(devices)


def test_a_store_in_a_folder_notes_a_devices_file_below_a_url(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "s.zarr", SETTINGS)
    store.list_recordings(LISTED, as_path("s3://b/devices.csv"))
    assert FeatureStore(store.path).devices_file == as_path("s3://b/devices.csv")


# --- the replica


def test_a_replica_is_bounded_and_goes_with_its_store(
    url: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "_MOST_BYTES", 2000)
    store = FeatureStore(url)
    place = store.place
    folder = place.folder
    for name in (A, B, A):
        assert len(store.read_spikes(name).spikes.sample) == 60
        store.read_features(name, SET.key)
        chunks = sum(path.stat().st_size for path in folder.rglob("c/*") if path.is_file())
        assert chunks <= 2000
    del store, place
    gc.collect()
    assert not folder.exists()


def test_replicas_of_processes_that_are_gone_are_removed(tmp_path: Path) -> None:
    program = "import os, sys; from pathlib import Path; from toptune.store import replica; "
    program += "home = replica._home(os.getpid()); (home / 'x').mkdir(); print(home, flush=True); "
    environment = {**os.environ, "TMPDIR": str(tmp_path)}

    def started(last: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program + last],
            env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    killed = Path(started("os.kill(os.getpid(), 9)").stdout.strip())
    assert killed.is_dir()
    ended = Path(started("print(*home.parent.iterdir())").stdout.split()[0])
    assert killed.parent == ended.parent
    assert list(ended.parent.iterdir()) == []


def test_stores_in_folders_load_nothing_of_urls(folder: Path) -> None:
    program = (
        "import sys; from toptune.store.feature_store import FeatureStore;"
        f"FeatureStore({str(folder)!r}).read_spikes({A!r});"
        "print({'obstore', 'toptune.store.replica'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "set()"


# --- killed at any request


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Requests:
    return Requests(monkeypatch)


def look(url: RemotePath, known: dict[str, list[str]]) -> None:
    """See that a store can be read, that nothing is damaged, and that all in it is known."""
    report = check_store(url)
    assert {f.kind for f in report.findings} <= {"missing", "note"}, report.findings
    store = FeatureStore(url)
    for name in (A, B):
        info = store.spikes_info(name)
        assert info is None or info["key"] in known[name]
        there = store.features_info(name, SET.key)
        assert there is None or info is not None, "features of spikes that are not there"


def test_a_store_is_whole_whenever_its_making_is_killed(folder: Path, requests: Requests) -> None:
    url = in_memory()
    keys = {n: [(FeatureStore(folder).spikes_info(n) or {})["key"]] for n in (A, B)}
    for _ in requests.dying(lambda: write_all(FeatureStore.create(url, SETTINGS, replace=True))):
        if url.objects.is_any():
            look(url, keys)
    assert requests.n > 60
    assert bytes_of(url) == content(folder)


def test_a_recording_is_old_or_new_or_absent_whenever_its_replacing_is_killed(
    folder: Path, requests: Requests
) -> None:
    url, other = in_memory(), make_store(in_memory())
    write_recording(other, A, 7)
    stores = FeatureStore(folder), other
    keys = {n: [(store.spikes_info(n) or {})["key"] for store in stores] for n in (A, B)}
    intact, expected = content(folder), bytes_of(as_remote(other))

    def restore() -> None:
        url.objects.delete(url.objects.list())
        url.objects.put_all(intact)

    restore()
    for _ in requests.dying(lambda: write_recording(FeatureStore(url), A, 7)):
        look(url, keys)
        write_recording(FeatureStore(url), A, 7)
        assert bytes_of(url) == expected
        restore()
    assert requests.n > 40
    assert bytes_of(url) == expected


def test_an_interrupt_does_not_wait_for_what_a_server_does_not_answer(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(threads, "_GRACE_S", 0.2)
    store = make_store(f"{bucket.url}/s.zarr")
    bucket.server.faults(rule("stall", "PUT", r".*/spikes/.*", seconds=60))
    began = time.monotonic()

    def interrupted() -> None:
        with threads.BackgroundWriter() as writer:
            writer.submit("a.h5", lambda: write_recording(store, A, 7))
            time.sleep(1.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - began < 10
    # Nor is it told of as an error.
    assert not caplog.records
    bucket.server.faults()
    assert FeatureStore(store.path).spikes_info(A) is None
    write_recording(FeatureStore(store.path), A, 1)
    assert check_store(store.path).is_sound


def test_a_put_that_reads_otherwise_publishes_nothing(
    url: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = objects._Root.put

    async def spoilt(root: objects._Root, place: str, data: bytes) -> None:
        await real(root, place, data[:-1] if place.endswith("sample/c/0") else data)

    monkeypatch.setattr(objects._Root, "put", spoilt)
    with pytest.raises(StorageError, match=r"sample/c/0 reads otherwise than it was written"):
        write_recording(FeatureStore(url), A, 7)
    assert FeatureStore(url).spikes_info(A) is None
