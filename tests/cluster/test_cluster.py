"""Work by Dask's workers gives what a single process makes, whatever dies meanwhile."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dask_processes import MARKS, PICTURES, TINY, WINDOWS, DaskProcesses, dask_processes
from needs import package
from results import Run
from small_data import write_data_set

from toptune import training
from toptune.api import fit
from toptune.backbones import loading
from toptune.cluster import Cluster, client, open_cluster
from toptune.errors import InputError, InputErrors, ToptuneError
from toptune.extraction import ExtractionResult, extract
from toptune.heads.mlp.head import MLPHead
from toptune.heads.rows import LabelledRows, group_rows
from toptune.params import Compute
from toptune.store.session import StoreSession, Ticket
from toptune.sweeps.grid import read_grid
from toptune.sweeps.results import SilentSweep, SweepResult
from toptune.sweeps.sweep import sweep

pytestmark = MARKS


class Progress:
    """Does something when a recording of some numbers is done."""

    def __init__(self, after: Collection[int], act: Callable[[], object]) -> None:
        self._after = after
        self._act = act

    def recording(self, number: int, total: int, name: str) -> None:
        del total, name
        if number in self._after:
            self._act()

    def stage(self, name: str, done: int, total: int) -> None: ...


@pytest.fixture(scope="module", autouse=True)
def _dask_is_there() -> None:
    package("distributed")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data_set(folder)
    assert extracted(folder, "alone.zarr").done == 6
    return folder


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskProcesses]:
    """A scheduler and two workers, whom no test harms."""
    with dask_processes(tmp_path_factory.mktemp("dask")) as processes:
        processes.scheduler()
        processes.worker()
        processes.worker()
        processes.wait_for_workers(2)
        yield processes


@pytest.fixture(scope="module")
def cluster(dask: DaskProcesses) -> Iterator[Cluster]:
    with open_cluster(dask.address) as opened:
        yield opened


def extracted(folder: Path, store: str, **options: Any) -> ExtractionResult:
    return extract(
        folder / "devices.csv", folder / store, windows=WINDOWS, picture=PICTURES, backbone=TINY,
        **options,
    )  # fmt: skip


def content(store: Path) -> dict[str, bytes]:
    return {
        path.relative_to(store).as_posix(): path.read_bytes() if path.is_file() else b"folder"
        for path in store.rglob("*")
    }


def same(folder: Path, store: str) -> bool:
    return content(folder / store) == content(folder / "alone.zarr")


def test_two_workers_make_the_store_of_a_single_process(data: Path, cluster: Cluster) -> None:
    result = extracted(data, "two.zarr", dask=cluster)
    assert same(data, "two.zarr")
    assert (result.done, result.reused, result.spikes_reused) == (6, 0, 0)
    assert result.n_windows == 6 * 7
    again = extracted(data, "two.zarr", dask=cluster)
    assert (again.done, again.reused) == (0, 6)
    locks = data / ".two.zarr.locks"
    assert [one.name for one in locks.iterdir()] == ["store.lock"]


def test_a_worker_that_is_killed_midway_changes_nothing(
    data: Path, dask: DaskProcesses, cluster: Cluster
) -> None:
    # In its first recording, whose spikes are published and whose features are written.
    victim = dask.worker(TOPTUNE_TEST_DIES="2")
    dask.wait_for_workers(3)
    seen: set[str] = set()

    def look() -> None:
        seen.update(one.name for one in (data / "killed.zarr").glob(".writing-*"))

    progress = Progress(range(1, 7), look)
    result = extracted(data, "killed.zarr", dask=cluster, progress=progress)
    assert victim.wait() == -signal.SIGKILL
    assert seen  # what it left unpublished
    assert same(data, "killed.zarr")
    assert result.n_windows == 6 * 7
    assert (result.done, result.reused) == (6, 0)


def test_what_was_interrupted_goes_on_alone(data: Path, cluster: Cluster) -> None:
    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)

    before = threading.active_count()
    # A shell lets what it starts in the background ignore Ctrl-C, and Python leaves that so.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            extracted(data, "interrupted.zarr", dask=cluster, progress=Progress([2], interrupt))
    finally:
        signal.signal(signal.SIGINT, handler)
    assert threading.active_count() <= before + 1
    extracted(data, "interrupted.zarr")
    assert same(data, "interrupted.zarr")


def test_a_recording_that_fails_is_listed_as_a_single_process_does(
    data: Path, cluster: Cluster, tmp_path: Path
) -> None:
    folder = shutil.copytree(data, tmp_path / "bad")
    with (folder / "r3.h5").open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) * 2 // 3)
    here = extracted(folder, "here.zarr", keep_going=True)
    there = extracted(folder, "there.zarr", keep_going=True, dask=cluster)
    assert [name for name, _ in here.failed] == ["r3.h5"]
    assert there.failed == here.failed
    assert content(folder / "there.zarr") == content(folder / "here.zarr")


def test_workers_of_another_version_and_with_another_clock_are_refused(tmp_path: Path) -> None:
    with dask_processes(tmp_path) as dask:
        dask.scheduler()
        dask.worker(TOPTUNE_TEST_VERSION="9.9")
        dask.worker(TOPTUNE_TEST_CLOCK_S="90")
        dask.wait_for_workers(2)
        with pytest.raises(InputErrors) as refused, open_cluster(dask.address):
            pass
    version, clock = sorted(refused.value.problems, key=lambda one: "clock" in one)
    assert "has toptune 9.9, and the caller " in version
    assert re.search("is (8|9)[0-9] s ahead: have both set by NTP", clock)


def test_work_for_gpus_goes_where_there_are_some_and_is_tried_again(tmp_path: Path) -> None:
    with dask_processes(tmp_path) as dask:
        dask.scheduler()
        dask.worker(TOPTUNE_TEST_CLOCK_S="0")
        with_gpu = dask.worker("--resources", "GPU=1", TOPTUNE_TEST_CLOCK_S="0")
        dask.wait_for_workers(2)
        with open_cluster(dask.address) as cluster:
            assert cluster.device("cpu") == "cpu"
            assert cluster.device("auto") == cluster.device("cuda") == "cuda"
            files = {str(n): tmp_path / f"{n}.txt" for n in range(6)}
            done = list(cluster.run("dask_processes:fail_once", "full", files, on_gpu=True))
            spoilt = cluster.run("dask_processes:fail_once", None, {"spoilt": None}, on_gpu=False)
            with pytest.raises(ToptuneError, match="spoilt: failed unexpectedly on a worker"):
                next(spoilt).value()
    assert sorted(one.name for one in done) == [*files]
    assert {one.value() for one in done} == {with_gpu.pid}
    assert all(path.read_text() == "full" for path in files.values())


def test_a_worker_with_other_weights_is_refused(
    data: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loading.load_backbone
    # As where the file differs; the workers have that of all other tests.
    monkeypatch.setattr(
        loading, "load_backbone", lambda params: replace(real(params), weights_sha256="f" * 64)
    )
    told = r"process \d+: the weights random of tiny are others .*, not ffffffff"
    with pytest.raises(InputError, match=told):
        extracted(data, "weights.zarr", dask=cluster, keep_going=True)


def test_a_worker_that_does_not_see_the_store_is_refused(
    data: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = property(lambda _: Ticket(Path("/elsewhere/s.zarr"), "s0", "0"))
    monkeypatch.setattr(StoreSession, "ticket", elsewhere)
    told = r"process \d+: /elsewhere/s.zarr: no such store.* must see the store under this path"
    with pytest.raises(InputError, match=told):
        extracted(data, "unseen.zarr", dask=cluster, keep_going=True)


def test_a_gpu_that_no_worker_offers_is_refused(data: Path, cluster: Cluster) -> None:
    with pytest.raises(InputError, match="no worker offers a GPU"):
        extracted(data, "gpu.zarr", dask=cluster, compute=Compute(device="cuda"))
    assert cluster.device("auto") == "cpu"


GRID = """
picture = ["histogram", "raster"]
window_s = 2
stride_s = 1
backbone = ["tiny", "tiny_too"]
weights = "random"
head = "mlp"
permutations = 0
[mlp]
epochs = 2
"""


def swept(folder: Path, out: str, **options: Any) -> SweepResult:
    (folder / "grid.toml").write_text(GRID, "utf-8")
    grid = read_grid(folder / "grid.toml", ())
    return sweep(folder / "devices.csv", grid, folder / out, watch=SilentSweep(), **options)


def test_a_sweep_on_workers_makes_the_store_and_runs_of_a_single_process(
    data: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Reports take most of the time and have tests of their own.
    monkeypatch.setattr(training, "write_report", lambda *_, **__: None)
    monkeypatch.setattr(training, "write_confusion", lambda *_: None)
    here, there = swept(data, "here"), swept(data, "there", dask=cluster)
    assert len(there.done) == 4
    assert there.failures == here.failures == ()
    assert content(data / "there" / "store.zarr") == content(data / "here" / "store.zarr")
    runs = [sorted(p.name for p in (one.path / "runs").iterdir()) for one in (here, there)]
    assert runs[0] == runs[1]  # nothing is left beside them
    for name in runs[0]:
        written = [content(one.path / "runs" / name) for one in (here, there)]
        for files in written:
            # They tell the time, and where the store is.
            assert {files.pop(f) for f in ("metrics.json", "params.json", "environment.json")}
            del files["model/model.json"]
        assert written[0] == written[1]
    by_view = {one.point.view: one for one in there.outcomes}
    for one in here.outcomes:
        other = by_view[one.point.view]
        assert other.facts is not None
        assert other.facts.throughput.pictures == 6 * 7
        assert one.metrics is not None
        assert other.metrics is not None
        assert {**other.metrics, "seconds": 0} == {**one.metrics, "seconds": 0}


def test_tuning_on_workers_scores_every_fold_as_a_single_process(
    cluster: Cluster, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(6), 9)
    X = rng.standard_normal((54, 20)).astype(np.float32) + group[:, None] % 2
    rows = LabelledRows(X, np.array(["a", "b"])[group % 2], group_rows(group), group)
    head, candidates = MLPHead(), ({"weight_decay": 0.0}, {"weight_decay": 0.1})
    labels = np.array([[1, 0, 0, 1, 0, 1]])
    estimator = head.make({"epochs": 3, "n_hidden": 5})
    steps: list[tuple[str, int, int]] = []

    def watch(*told: Any) -> None:
        steps.append(told)

    here = head.nested(estimator, rows, candidates, labels, None)
    there = head.on(cluster, tmp_path).nested(estimator, rows, candidates, labels, watch)
    for one, other in zip(here[0].__dict__.values(), there[0].__dict__.values(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert here[1] is not None
    assert there[1] is not None
    np.testing.assert_array_equal(here[1].predicted, there[1].predicted)
    assert ("models", 42, 42) in steps
    # Features once for both labellings; what workers wrote is taken.
    kinds = sorted(path.name.partition("-")[0] for path in tmp_path.iterdir())
    assert kinds == ["features", "labels", "labels"]


def test_the_command_tells_where_dask_is_and_shares_the_cores_out(data: Path, run: Run) -> None:
    # Spikes only, since processes of its own know no tiny backbone.
    words = ("extract", data / "devices.csv", "--picture", "none", "--store")
    ran = run(*words, data / "local.zarr", "--dask", "local:1")
    assert re.match(r"Dask: tcp://127\.0\.0\.1:\d+; (no dashboard|dashboard: http://)", ran.err)
    assert "INFO" not in ran.err
    assert "spikes of 6 recordings found" in ran.out
    run(*words, data / "here.zarr")
    assert content(data / "local.zarr") == content(data / "here.zarr")


def test_a_classifier_that_is_not_spread_is_refused(data: Path) -> None:
    with pytest.raises(InputError, match=r"falkon is trained by a single process.* of mlp can"):
        fit(data / "alone.zarr", data / "run", dask="local:1")


@pytest.mark.parametrize(
    ("dask", "told"),
    [
        ("local:0", "whole number of processes from 1"),
        ("local:two", "whole number of processes from 1"),
        ("scheduler", "is no address of a scheduler"),
        ("tcp://127.0.0.1:1", "no scheduler answers there"),
        ("tls://127.0.0.1:1", "names no certificates for TLS"),
        ("carrier-pigeon://1:1", "no scheduler answers there"),
    ],
)
def test_an_address_that_is_none_is_refused(
    data: Path, dask: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_CONNECT_S", 0.5)
    with pytest.raises(ToptuneError, match=told):
        extracted(data, "none.zarr", dask=dask)
    assert not (data / "none.zarr").exists()


# The last, since the workers end with their scheduler.
def test_a_scheduler_that_starts_again_is_waited_for(
    data: Path, dask: DaskProcesses, cluster: Cluster
) -> None:
    scheduler = dask.started[0]

    def restart() -> None:
        scheduler.kill()
        scheduler.wait()
        dask.scheduler()
        dask.worker()

    extracted(data, "restarted.zarr", dask=cluster, progress=Progress([2], restart))
    assert same(data, "restarted.zarr")
