"""Workers bring recordings from a bucket into a store in a bucket, whatever goes wrong there."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dask_processes import MARKS, PICTURES, TINY, WINDOWS, DaskProcesses, dask_processes
from needs import package
from results import Run
from s3 import KEY_ID, SECRETS, Bucket, Fault, Server, found_in_environment, rule
from s3_server import Request
from small_data import write_data_set

from toptune.cluster import Cluster, open_cluster
from toptune.extraction import ExtractionResult, extract

pytestmark = MARKS
VICTIM = f"{KEY_ID[:-6]}VICTIM"
SHARES: dict[Fault, float] = {
    "500": 0.01, "503": 0.01, "slow": 0.01,
    "cut before": 0.01, "cut within": 0.01, "cut after": 0.01,
}  # fmt: skip
FAULTS = tuple(
    rule(fault, share=share, seed=k, seconds=0.2) for k, (fault, share) in enumerate(SHARES.items())
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings, and the store that one process makes of them here."""
    for name in ("distributed", "obstore"):
        package(name)
    folder = tmp_path_factory.mktemp("data")
    listed = write_data_set(folder).read_text()
    # Where the recordings are, wherever the list of them is.
    (folder / "here.csv").write_text(re.sub(r"^(r\d)", rf"{folder}/\1", listed, flags=re.M))
    assert extracted(folder / "here.csv", folder / "here.zarr").done == 6
    return folder


@pytest.fixture(scope="module")
def study(data: Path, s3_server: Server) -> Iterator[Bucket]:
    """A bucket with the same recordings and lists of them, which this process and workers find."""
    s3_server.faults()
    with found_in_environment(s3_server):
        bucket = s3_server.bucket()
        for path in data.iterdir():
            if path.is_file():
                bucket.put(f"raw/{path.name}", path.read_bytes())
        yield bucket
    s3_server.faults()


@pytest.fixture(scope="module")
def dask(study: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskProcesses]:
    """A scheduler and three workers, of whom the last is known to the server by another name."""
    del study  # its environment is theirs
    with dask_processes(tmp_path_factory.mktemp("dask")) as processes:
        processes.scheduler()
        processes.worker()
        processes.worker()
        processes.worker(AWS_ACCESS_KEY_ID=VICTIM)
        processes.wait_for_workers(3)
        yield processes


@pytest.fixture(scope="module")
def cluster(dask: DaskProcesses) -> Iterator[Cluster]:
    with open_cluster(dask.address) as opened:
        yield opened


def extracted(devices: Path | str, store: Path | str, **options: Any) -> ExtractionResult:
    return extract(
        devices, store, windows=WINDOWS, picture=PICTURES, backbone=TINY, **options
    )  # fmt: skip


def here(data: Path) -> dict[str, bytes]:
    store = data / "here.zarr"
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file()
    }


def without_place(content: dict[str, bytes]) -> dict[str, Any]:
    """Leave out where recordings are and when their files were written."""
    found: dict[str, Any] = {}
    for name, data in content.items():
        key = re.sub(r"^[^/]*(r\d\.h5)-\w{8}/", r"\1/", name)
        if not name.endswith("zarr.json"):
            found[key] = data
            continue
        metadata = json.loads(re.sub(rb'"[^"]*(r\d\.h5)(-\w{8})?"', rb'"\1"', data))
        for one in ("stamp", "devices_file", "attributes_sha256"):
            metadata.get("attributes", {}).pop(one, None)
        found[key] = metadata
    return found


def secrets_in(dask: DaskProcesses) -> list[str]:
    """List the logs of Dask's processes that hold a secret."""
    return [
        path.name
        for path in dask.folder.glob("*.log")
        if any(secret in path.read_text("utf-8", "replace") for secret in (*SECRETS, VICTIM))
    ]


def faults_of(requests: list[Request]) -> set[str | None]:
    return {one.fault for one in requests}


def test_two_workers_of_whom_one_dies_make_the_store_of_a_single_process(
    data: Path, study: Bucket, dask: DaskProcesses, cluster: Cluster
) -> None:
    victim = dask.started[-1]
    # In its first recording, whose spikes are published and whose features are on their way.
    died = rule(
        "kill before", "PUT", f"/{study.name}/raw/here.zarr/.*/features/.*/c/.*",
        key_id=VICTIM, skip=1, process=victim.pid,
    )  # fmt: skip
    study.server.faults(died, *FAULTS)
    result = extracted(
        f"{study.url}/raw/here.csv", f"{study.url}/raw/here.zarr", dask=cluster
    )  # fmt: skip
    met = faults_of(study.server.requests())
    study.server.faults()
    assert victim.wait(30) == -signal.SIGKILL
    assert met == {None, died["fault"], *(one["fault"] for one in FAULTS)}
    assert study.content("raw/here.zarr/") == here(data)
    assert (result.done, result.reused, result.n_windows) == (6, 0, 6 * 7)
    assert str(result.store) == f"{study.url}/raw/here.zarr"
    assert study.keys("raw/.") == []
    assert secrets_in(dask) == []


def test_commands_work_from_bucket_to_bucket_and_keep_every_secret(
    data: Path, study: Bucket, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Each once, a few requests apart.
    rules = (rule(one, path=".*[.]h5", skip=4 * k, times=1) for k, one in enumerate(SHARES))
    study.server.faults(*rules)
    devices, store = f"{study.url}/raw/devices.csv", f"{study.url}/there.zarr"
    words = ("--window-s", 2, "--stride-s", 1, "--backbone", "tiny", "--weights", "random")
    pictures = ("--picture", PICTURES[0].kind, "--picture", PICTURES[1].kind)
    printed = [run("extract", devices, "--store", store, *words, *pictures)]
    assert printed[0].code == 0, printed
    assert faults_of(study.server.requests()) == {None, *SHARES}
    study.server.faults()
    assert without_place(study.content("there.zarr/")) == without_place(here(data))
    printed += [
        run("fit", store, "-o", "run", "--head", "parameters", "--permutations", 0),
        run("predict", "run", f"{study.url}/raw/r0.h5", "-o", "predicted"),
        run("doctor", store),
    ]
    assert [one.code for one in printed] == [0] * len(printed), printed
    study.server.faults(rule("403"))
    refused = [
        run("extract", devices, "--store", f"{study.url}/x.zarr"),
        run("inspect", f"{study.url}/raw/r1.h5"),
        run("fit", store, "-o", "other"),
    ]
    study.server.faults()
    for one in refused:
        assert one.code == 2
        assert "access is refused, 403" in one.err
        assert one.err.count("\n") == 1
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 5
    everything = [
        *(text.encode() for one in (*printed, *refused) for text in (one.out, one.err)),
        *(path.read_bytes() for path in written),
        *study.content().values(),
    ]
    for secret in SECRETS:
        assert not any(secret.encode() in one for one in everything)
