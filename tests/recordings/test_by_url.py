"""Recordings and devices files by URL: read in ranges or through a copy, and told of by the URL."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np
import pytest
from foreign_files import (
    counts,
    read_whole,
    write_continuous,
    write_intan,
    write_intan_folder,
    write_maxwell,
    write_nsx,
    write_nwb,
    write_openephys,
)
from needs import package
from results import Run
from s3 import SECRETS, Bucket, rule
from small_data import write_data_set, write_devices, write_mcs

import toptune
from toptune.errors import InputError, InputErrors, StorageError
from toptune.machine import objects, remote
from toptune.machine.fingerprint import file_sha256, quick_digest, stamp_of
from toptune.machine.remote import as_path
from toptune.params import SpikeSettings
from toptune.recordings.devices import read_devices, same_content
from toptune.recordings.opening import SpikeRecording, open_recording
from toptune.recordings.spike_npz import write_npz
from toptune.spikes.finding import check_recording, find_spikes

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows: URLs are not read there")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for copies."""
    package("obstore")
    monkeypatch.setenv("TOPTUNE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_mcs_file_is_read_in_ranges(bucket: Bucket, tmp_path: Path, cache: Path) -> None:
    file = write_mcs(tmp_path / "a.h5", seed=1, seconds=60)
    bucket.put("raw/a.h5", file.read_bytes())
    url = f"{bucket.url}/raw/a.h5"
    assert check_recording(as_path(url), SpikeSettings()) is not None
    with open_recording(url) as there, open_recording(file) as here:  # type: ignore[union-attr]
        assert str(there.path) == url
        assert np.array_equal(there.read(2_000, 3_000), here.read(2_000, 3_000))
        with pytest.raises(InputError, match=f"{url}: samples"):
            there.read(0, there.n_samples + 1)
    asked = bucket.server.requests()
    assert {one.method for one in asked} == {"HEAD", "GET"}
    assert all(one.range for one in asked if one.method == "GET")
    assert sum(one.n_received for one in asked) < file.stat().st_size / 8
    assert len(asked) < 10
    assert not cache.exists()


def test_a_long_recording_is_opened_by_as_few_requests_as_a_short_one(
    bucket: Bucket, tmp_path: Path
) -> None:
    counts = []
    for seconds in (8, 60):
        file = write_mcs(tmp_path / f"{seconds}.h5", seed=1, seconds=seconds)
        with h5py.File(file, "r+") as opened:
            stream = opened["Data/Recording_0/AnalogStream/Stream_0"]
            samples = stream["ChannelData"][...]
            del stream["ChannelData"]
            # Of the many chunks the file's index lies all over it.
            stream.create_dataset("ChannelData", data=samples, chunks=(1, 400), compression=4)
        bucket.put(f"raw/{file.name}", file.read_bytes())
        bucket.server.faults()
        assert check_recording(as_path(f"{bucket.url}/raw/{file.name}"), SpikeSettings())
        counts.append(len(bucket.server.requests()))
    assert counts[1] <= counts[0] < 8


@pytest.mark.parametrize("kind", [InputError, StorageError, KeyboardInterrupt])
def test_what_ends_a_read_of_an_mcs_file_is_never_taken_for_its_damage(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    bucket.put("raw/a.h5", write_mcs(tmp_path / "a.h5", seed=1, seconds=2.5).read_bytes())
    url = f"{bucket.url}/raw/a.h5"
    real = remote.Blocks.pread
    left = 0

    def pread(blocks: remote.Blocks, n_bytes: int, at: int) -> bytes:
        nonlocal left
        left -= 1
        if left == 0:
            raise kind("the server said so")
        return real(blocks, n_bytes, at)

    def opened() -> str:
        try:
            with open_recording(url):  # type: ignore[union-attr]
                return "opened"
        except kind as error:
            return str(error)

    monkeypatch.setattr(remote.Blocks, "pread", pread)
    for number in itertools.count(1):
        left = number
        told = opened()
        if left > 0:  # opening takes fewer reads
            break
        assert told == "the server said so", f"at read {number}"
    assert told == "opened"
    assert number > 40


def test_spikes_are_found_in_one_copy(bucket: Bucket, tmp_path: Path, cache: Path) -> None:
    file = write_mcs(tmp_path / "a.h5", seed=1)
    bucket.put("raw/a.h5", file.read_bytes())
    path = as_path(f"{bucket.url}/raw/a.h5")
    assert file_sha256(path) == file_sha256(file)
    there = find_spikes(path, SpikeSettings(), stage=lambda *_: None)
    here = find_spikes(file, SpikeSettings(), stage=lambda *_: None)
    assert np.array_equal(there.trains.spikes.sample, here.trains.spikes.sample)
    assert len([one for one in bucket.server.requests() if one.method == "GET"]) == 1
    assert [one.name for one in cache.glob("*.*/*")] == ["a.h5"]


def spikes_csv(folder: Path) -> Path:
    path = folder / "spikes.csv"
    path.write_text("time_s,channel\n0.5,A\n1.25,B\n1.5,A\n")
    return path


def spikes_npz(folder: Path) -> Path:
    recording = open_recording(spikes_csv(folder))
    assert isinstance(recording, SpikeRecording)
    write_npz(recording.trains(), folder / "spikes.npz")
    return folder / "spikes.npz"


def peak_trains(folder: Path) -> Path:
    path = folder / "peaks"
    path.mkdir()
    for name, at in (("e1", 40), ("e2", 900)):
        (path / f"{name}.txt").write_text(f"20000 0\n{at} 31.5\n{at + 700} 40.25\n")
    return path


@pytest.mark.parametrize("make", [spikes_csv, spikes_npz, peak_trains])
def test_every_other_format_is_read_through_a_copy(
    bucket: Bucket, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    made = make(tmp_path)
    if made.is_dir():
        bucket.upload(made, f"raw/{made.name}/")
    else:
        bucket.put(f"raw/{made.name}", made.read_bytes())
    there, here = open_recording(f"{bucket.url}/raw/{made.name}"), open_recording(made)
    assert isinstance(there, SpikeRecording)
    assert isinstance(here, SpikeRecording)
    assert there.kind == here.kind
    assert str(there.path) == f"{bucket.url}/raw/{made.name}"
    mine, its = there.trains(), here.trains()
    assert np.array_equal(mine.spikes.sample, its.spikes.sample)
    assert mine.channel_labels == its.channel_labels
    assert file_sha256(there.path) == file_sha256(made)


FOREIGN: dict[str, Callable[[Path], Path]] = {
    "a.rhd": lambda path: write_intan(path, counts(2560, 3)),
    "intan": lambda path: write_intan_folder(path, counts(2560, 3)),
    "a.ns5": lambda path: write_nsx(path, [(0, counts(3000, 2))]),
    "openephys": lambda path: write_openephys(path, {"Acquisition_Board": counts(3000, 2)}),
    "continuous": lambda path: write_continuous(path, counts(4096, 2)),
    "a.raw.h5": lambda path: write_maxwell(path, {"well000": counts(2000, 3)}),
    "a.nwb": lambda path: write_nwb(path, {"Raw": counts(2000, 2)}),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_recordings_of_other_programs_are_read_through_a_copy(
    bucket: Bucket, tmp_path: Path, name: str
) -> None:
    package("neo")
    package("pynwb")
    path = FOREIGN[name](tmp_path / name)
    made = tmp_path / name
    if made.is_dir():
        bucket.upload(made, f"raw/{name}/")
    else:
        bucket.put(f"raw/{name}", made.read_bytes())
    there = as_path(f"{bucket.url}/raw") / path.relative_to(tmp_path)
    assert check_recording(there, SpikeSettings()) is not None
    recording, microvolts = read_whole(there)
    assert str(recording.path) == str(there)
    np.testing.assert_array_equal(microvolts, read_whole(path)[1])


def test_what_is_wrong_with_one_is_told_by_its_url(bucket: Bucket, tmp_path: Path) -> None:
    whole = write_mcs(tmp_path / "a.h5", seed=1).read_bytes()
    bucket.put("cut.h5", whole[: len(whole) // 2])
    with pytest.raises(InputError, match=f"^{bucket.url}/cut.h5: the file is cut off"):
        check_recording(as_path(f"{bucket.url}/cut.h5"), SpikeSettings())
    bucket.put("empty.h5", b"")
    bucket.put("text.csv", b"time_s,channel\nnever,A\n")
    bucket.put("what.bin", b"\x01\x02\x03" * 1000)
    bucket.put("peaks/e1.txt", b"20000 0\n40 x\n")
    for key in ("cut.h5", "empty.h5", "text.csv", "what.bin", "peaks", "none.h5"):
        path = as_path(f"{bucket.url}/{key}")
        with pytest.raises(InputError, match=f"^{path}"):
            find_spikes(path, SpikeSettings(), stage=lambda *_: None)


def test_a_devices_file_by_url_lists_what_is_beside_it_and_elsewhere(
    bucket: Bucket, tmp_path: Path
) -> None:
    local = write_mcs(tmp_path / "local.h5", seed=1)
    for key in ("study/a.h5", "raw/b.h5", "study/set/x"):
        bucket.put(key, key.encode())
    rows = ("a.h5", "../raw/b.h5", f"{bucket.url}/raw/b.h5", "set", str(local))
    written = [(name, f"dev{k}", "AB"[k % 2]) for k, name in enumerate(rows)]
    text = write_devices(tmp_path, written).read_bytes()
    bucket.put("study/devices.csv", text)
    with pytest.raises(InputErrors, match=r"devices.csv, line 4: .*two labels") as refused:
        read_devices(as_path(f"{bucket.url}/study/devices.csv"))
    assert str(refused.value).startswith(f"{bucket.url}/study/devices.csv, line 4")
    bucket.put("study/devices.csv", text.replace(f"{bucket.url}/raw/b.h5".encode(), b"none.h5"))
    with pytest.raises(InputErrors, match=r"line 4: no such recording: none\.h5"):
        read_devices(as_path(f"{bucket.url}/study/devices.csv"))
    del written[2]
    bucket.put("study/devices.csv", write_devices(tmp_path, written).read_bytes())
    devices = read_devices(as_path(f"{bucket.url}/study/devices.csv"))
    assert [str(row.recording) for row in devices.rows] == [
        f"{bucket.url}/study/a.h5",
        f"{bucket.url}/raw/b.h5",
        f"{bucket.url}/study/set",
        str(local),
    ]
    assert same_content(devices) == ()
    assert stamp_of(devices.rows[0].recording)[0][:2] == ["a.h5", 10]
    assert [one[0] for one in stamp_of(devices.rows[2].recording)] == ["x"]


def test_a_local_devices_file_may_list_urls(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("raw/a.h5", b"first")
    bucket.put("raw/b.h5", b"first")
    rows = [(f"{bucket.url}/raw/{name}.h5", f"dev {name}", name) for name in "ab"]
    devices = read_devices(write_devices(tmp_path, rows))
    assert [str(row.recording) for row in devices.rows] == [name for name, _, _ in rows]
    assert quick_digest(devices.rows[0].recording) == quick_digest(devices.rows[1].recording)
    (warning,) = same_content(devices)
    assert "hold the same bytes" in warning
    rows.append(("s3://me:hunter2@bucket/c.h5", "dev c", "a"))
    with pytest.raises(InputErrors, match="line 4: the s3:// URL holds a user") as refused:
        read_devices(write_devices(tmp_path, rows))
    assert "hunter2" not in str(refused.value)


def test_extraction_by_url_gives_the_spikes_of_local_files(
    bucket: Bucket, tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "set").mkdir()
    local = write_data_set(tmp_path / "set")
    bucket.upload(local.parent, "study/")
    size = max(one.stat().st_size for one in local.parent.glob("*.h5"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        # So that copies must go while the work goes on.
        monkeypatch.setenv("TOPTUNE_CACHE_BYTES", str(round(size * 1.5)))
        there = toptune.extract(
            f"{bucket.url}/study/devices.csv", tmp_path / "there.zarr", picture=()
        )
    here = toptune.extract(local, tmp_path / "here.zarr", picture=())
    assert there.done == here.done == 6
    for name in ("r0.h5", "r5.h5"):
        group = next(one for one in (tmp_path / "here.zarr").iterdir() if one.name.startswith(name))
        for file in (one for one in group.rglob("*") if one.is_file() and "/c/" in str(one)):
            other = tmp_path / "there.zarr" / file.relative_to(tmp_path / "here.zarr")
            assert other.read_bytes() == file.read_bytes()
    assert sum(one.stat().st_size for one in cache.glob("*.*/*")) <= size * 1.5
    again = toptune.extract(f"{bucket.url}/study/devices.csv", tmp_path / "there.zarr", picture=())
    assert (again.done, again.reused) == (0, 6)


def test_a_recording_that_changes_meanwhile_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    file = write_mcs(tmp_path / "a.h5", seed=1)
    bucket.put("a.h5", file.read_bytes())
    with open_recording(f"{bucket.url}/a.h5") as recording:  # type: ignore[union-attr]
        bucket.put("a.h5", write_mcs(tmp_path / "b.h5", seed=2).read_bytes())
        file_sha256(as_path(f"{bucket.url}/a.h5"))  # leaves a copy of what is there now
        with pytest.raises(InputError, match="changed while it was read"):
            recording.read(0, recording.n_samples)


class _Web(BaseHTTPRequestHandler):
    """Gives a file in ranges, or whole as simple servers do."""

    content: ClassVar[bytes]
    in_ranges: ClassVar[bool]

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, *, with_body: bool) -> None:
        if self.path != "/raw/a%20b.h5":
            self.send_error(404)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and self.in_ranges:
            first, last = int(asked[1]), min(int(asked[2]), len(self.content) - 1)
            body = self.content[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(self.content)}")
        else:
            body = self.content
            self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.mark.parametrize("in_ranges", [True, False])
def test_a_recording_on_the_web_is_read(
    tmp_path: Path, in_ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    file = write_mcs(tmp_path / "a b.h5", seed=1)
    kind = type("Web", (_Web,), {"content": file.read_bytes(), "in_ranges": in_ranges})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_port}/raw"
            url = f"{address}/a%20b.h5"
            with open_recording(url) as there, open_recording(file) as here:  # type: ignore[union-attr]
                assert np.array_equal(there.read(0, 500), here.read(0, 500))
            assert file_sha256(as_path(url)) == file_sha256(file)
            with pytest.raises(InputError, match=f"{address}/none.h5: no such file"):
                open_recording(f"{address}/none.h5")
        finally:
            server.shutdown()
            thread.join(10)


def test_credentials_may_be_of_a_profile(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package("boto3")
    bucket.put("a.csv", b"time_s,channel\n0.5,A\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"):
        monkeypatch.delenv(name)
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    (tmp_path / "credentials").write_text(
        "[laboratory]\naws_access_key_id = AKIAPROFILE\naws_secret_access_key = hidden\n"
    )
    (tmp_path / "config").write_text(
        f"[profile laboratory]\nregion = eu-central-1\nendpoint_url = {endpoint}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "laboratory")
    recording = open_recording(f"{bucket.url}/a.csv")
    assert isinstance(recording, SpikeRecording)
    assert recording.trains().channel_labels == ("A",)
    assert {one.key_id for one in bucket.server.requests()} == {"AKIAPROFILE"}
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(InputError, match="AWS configuration cannot be used, ProfileNotFound"):
        open_recording(f"{bucket.url}/a.csv")


def test_faults_on_the_way_change_nothing(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_FIRST_PAUSE_S", 0.02)
    file = write_mcs(tmp_path / "a.h5", seed=1)
    bucket.put("a.h5", file.read_bytes())
    bucket.server.faults(
        rule("500", "GET", times=2), rule("cut within", "GET", times=2), rule("503", times=3)
    )
    with open_recording(f"{bucket.url}/a.h5") as there, open_recording(file) as here:  # type: ignore[union-attr]
        assert np.array_equal(there.read(0, 5_000), here.read(0, 5_000))
    assert file_sha256(as_path(f"{bucket.url}/a.h5")) == file_sha256(file)


def test_commands_take_urls_and_tell_no_secret(bucket: Bucket, tmp_path: Path, run: Run) -> None:
    (tmp_path / "set").mkdir()
    local = write_data_set(tmp_path / "set")
    bucket.upload(local.parent, "study/")
    shutil.rmtree(local.parent)
    url = f"{bucket.url}/study"
    told: list[str] = []
    for arguments in (
        ("inspect", f"{url}/r0.h5"),
        ("inspect", f"{url}/r0.h5", "--json"),
        ("detect", f"{url}/r1.h5", "-o", tmp_path / "r1.npz"),
        ("extract", f"{url}/devices.csv", "--store", tmp_path / "s.zarr", "--picture", "none"),
    ):
        ran = run(*arguments)
        assert ran.code == 0, ran.err
        told += [ran.out, ran.err]
    assert f"{url}/r0.h5" in told[0]
    bucket.server.faults(rule("403"))
    for arguments in (("inspect", f"{url}/r0.h5"), ("inspect", f"{url}/r9.h5")):
        ran = run(*arguments)
        assert ran.code == 2
        assert "access is refused" in ran.err
        assert "AWS_ACCESS_KEY_ID" in ran.err
        told.append(ran.err)
    for path in tmp_path.rglob("*"):
        told.append(str(path))
        if path.is_file():
            told.append(path.read_bytes().decode("latin-1"))
    for secret in SECRETS:
        assert not any(secret in text for text in told)


@pytest.mark.parametrize(
    "arguments",
    [
        ("simulate", "{url}/set"),
        ("detect", "{here}/a.h5", "-o", "{url}/a.npz"),
        ("inspect", "{here}/a.h5", "--png", "{url}/a.png"),
        ("predict", "{here}", "{here}/a.h5", "-o", "{url}/out"),
        ("report", "{here}", "-o", "{url}/report.html"),
        ("why", "{here}", "{here}/a.h5", "-o", "{url}/out"),
        ("sweep", "{here}/devices.csv", "table1", "-o", "{url}/out"),
        ("fit", "{here}/s.zarr", "-o", "{url}/run"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_results_are_never_written_to_a_url(
    bucket: Bucket, tmp_path: Path, run: Run, arguments: tuple[str, ...]
) -> None:
    write_mcs(tmp_path / "a.h5", seed=1, seconds=1)
    write_devices(tmp_path, [("a.h5", "dev", "A")])
    (tmp_path / "s.zarr").mkdir()
    (tmp_path / "model.json").write_text("{}")
    (tmp_path / "params.json").write_text('{"kind": "toptune run"}')
    ran = run(*(word.format(url=bucket.url, here=tmp_path) for word in arguments))
    assert ran.code == 2
    assert "are written to a local path" in ran.err
    assert bucket.url in ran.err
    assert bucket.keys() == []
    assert not Path("s3:").exists()
