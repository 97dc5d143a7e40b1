"""Extractions, fits and sweeps to strike at, and how to see what a strike left of them."""

from __future__ import annotations

import hashlib
import importlib
import json
import mmap
import pkgutil
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from forked import ended, fork, on_each_step, run_toptune
from small_data import CLASS_RATES_HZ, write_devices, write_mcs

import toptune
from toptune.errors import InputError
from toptune.params import SpikeSettings
from toptune.spikes.finding import find_spikes
from toptune.store.feature_store import FeatureStore

N_RECORDINGS = 4
EXTRACT = (
    *("--window-s", "1", "--stride-s", "0.5", "--backbone", "tiny", "--weights", "random"),
    *("--n-jobs", "2"),
)  # fmt: skip
# Of a sweep's files, those that tell how fast or how long.
TIMED = ("measured/", "runs.csv", "sweep.json")
IMPORTED_LATE = (
    *("jinja2.bccache", "matplotlib.backends.backend_svg", "McsPy.McsData", "PIL.JpegImagePlugin"),
    *("openvino.frontend.pytorch.ts_decoder", "openvino.tools.ovc", "pydantic.type_adapter"),
    *("rich._emoji_codes", "tracemalloc", "typer._adapters"),
)
GRID = """
picture = ["histogram", "raster"]
window_s = 1
stride_s = 0.5
backbone = "tiny"
weights = "random"
head = "falkon"
width = 0.5
penalty = 1e-5
permutations = 0
"""
FIT = ("--head", "falkon", "--permutations", "4", "--width", "0.5", "--penalty", "1e-5")


class Job(NamedTuple):
    """A command, what it makes, and how to tell that a kill left it in order."""

    name: str
    arguments: tuple[str, ...]
    made: Path
    expected: Path
    before: Path | None  # a copy of what stood at `made`, where it replaces something


class Cost(NamedTuple):
    """Of a whole run: changes of the file system, and time."""

    n_steps: int
    seconds: float


# --- what is left


def tree(folder: Path) -> dict[str, str]:
    """sha256 of all files; of those that tell how long a run took, without that."""
    sums = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.name == "metrics.json":
            metrics = json.loads(content)
            del metrics["seconds"]
            content = json.dumps(metrics).encode()
        if path.name == "report.html":
            content = re.sub(rb"took [\d.]+ s", b"", content)
        sums[path.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return sums


def differences(a: dict[str, str], b: dict[str, str]) -> list[str]:
    """List the files that are not the same in two trees."""
    return [path for path in sorted({*a, *b}) if a.get(path) != b.get(path)]


def look_at_store(job: Job) -> None:
    """Everything a store offers can be read and is what an uninterrupted extraction made."""
    if not job.made.exists():
        assert job.before is None, "the store is gone"
        return
    store = FeatureStore(job.made)
    known = [FeatureStore(p) for p in (job.expected, job.before) if p is not None]
    for recording in store.recordings:
        name = recording.name
        info = store.spikes_info(name)
        if info is not None:
            same = next(k for k in known if (k.spikes_info(name) or {})["key"] == info["key"])
            assert_equal(store.read_spikes(name).spikes, same.read_spikes(name).spikes)
            for key in (p.name for p in (job.made / name / "features").glob("[0-9a-f]*")):
                assert_equal(store.read_features(name, key), same.read_features(name, key))
    try:
        for feature_set in store.feature_sets():
            store.table(feature_set)
    except InputError as error:
        assert "have no features" in str(error)  # noqa: PT017


def assert_equal(a: Any, b: Any) -> None:
    for x, y in zip(a, b, strict=True):
        assert x.tobytes() == y.tobytes()


def look_at_run(job: Job) -> None:
    """A run is the old one, the new one, or not there."""
    if not job.made.exists():
        assert job.before is None, "the run is gone"
        return
    made = tree(job.made)
    known = [tree(p) for p in (job.expected, job.before) if p is not None]
    differing = [differences(made, other) for other in known]
    assert [] in differing, f"the run is neither the old nor the new one: {differing} differ"


def look_at_sweep(job: Job) -> None:
    """Every run of a sweep is the one it is to be, or not there; its store can be read."""
    store = job.made / "store.zarr"
    if store.exists():
        look_at_store(Job("", (), store, job.expected / "store.zarr", None))
    for run in (job.made / "runs").glob("[!.]*"):
        assert tree(run) == tree(job.expected / "runs" / run.name), f"{run.name} is another one"


def look(job: Job) -> str | None:
    """Look in a forked process, since reading starts threads; gives what is wrong."""
    looks = look_at_store if job.made.suffix == ".zarr" else look_at_run
    if job.name == "sweep":
        looks = look_at_sweep
    found = ended(fork(lambda: looks(job)))
    return None if found.code == 0 else found.output


def leftovers(folder: Path) -> list[str]:
    """Names of what should not be there after a job has ended well."""
    named = [p.name for p in folder.iterdir() if p.name.startswith(".") and p.is_file()]
    named += [p.name for p in folder.rglob("*") if ".writing-" in p.name or ".partial" in p.name]
    locks = [p.name for p in folder.glob(".*.locks/*")]
    return named + [name for name in locks if name != "store.lock"]


# --- jobs


def write_data(folder: Path) -> Path:
    rows = []
    for k in range(N_RECORDINGS):
        label = "AC"[k % 2]
        write_mcs(folder / f"r{k}.h5", seed=k, seconds=2.5, rate_hz=CLASS_RATES_HZ[label])
        rows.append((f"r{k}.h5", f"dev{k}", label))
    return write_devices(folder, rows)


def uninterrupted(arguments: tuple[str, ...]) -> Cost:
    """Run a command; gives its changes of the file system and its seconds."""
    steps = np.frombuffer(mmap.mmap(-1, 8), np.int64)  # shared with the forked process

    def step() -> None:
        steps[0] += 1

    start = time.perf_counter()
    end = ended(run_toptune(arguments, lambda: on_each_step(step)))
    assert end.code == 0, end.output
    return Cost(int(steps[0]), time.perf_counter() - start)


def import_all() -> None:
    """Import what commands import when they first need it, so that forked processes inherit it."""
    for module in pkgutil.walk_packages(toptune.__path__, "toptune."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in IMPORTED_LATE:
        importlib.import_module(name)


def make_jobs(folder: Path) -> list[tuple[Job, Cost]]:
    """Make the data, and everything without interruption."""
    data = folder / "data"
    data.mkdir()
    devices = str(write_data(data))
    import_all()
    # Compiled code is loaded once, here, and inherited.
    find_spikes(data / "r0.h5", SpikeSettings(), n_jobs=1, stage=lambda *_: None)
    extract = ("extract", devices, *EXTRACT, "--store")
    expected, work = folder / "expected", folder / "work"
    expected.mkdir()
    work.mkdir()
    old_store, store = expected / "old.zarr", expected / "s.zarr"
    uninterrupted((*extract, str(old_store), "--threshold-sd", "7"))
    # The same bytes but one recording, as when a file was copied again.
    write_mcs(data / "other.h5", seed=77, seconds=2.5)
    r1 = (data / "r1.h5").rename(data / "r1.old")
    (data / "other.h5").rename(data / "r1.h5")
    changed = expected / "changed.zarr"
    uninterrupted((*extract, str(changed)))
    (data / "r1.h5").rename(data / "other.h5")
    r1.rename(data / "r1.h5")
    cost = uninterrupted((*extract, str(store)))
    old_run, run = expected / "old-run", expected / "run"
    uninterrupted(("fit", str(store), *FIT, "--seed", "5", "-o", str(old_run)))
    fit_cost = uninterrupted(("fit", str(store), *FIT, "-o", str(run)))
    (data / "grid.toml").write_text(GRID)
    sweeping = ("sweep", devices, str(data / "grid.toml"), "--n-jobs", "2", "-o")
    # Made where it will be made again: its runs say where their store is.
    swept, sweep = work / "sweep", expected / "sweep"
    sweep_cost = uninterrupted((*sweeping, str(swept)))
    swept.rename(sweep)
    made, fitted = work / "s.zarr", work / "run"
    fitting = ("fit", str(store), *FIT, "-o", str(fitted))
    return [
        (Job("extract", (*extract, str(made)), made, store, None), cost),
        (Job("extract what changed", (*extract, str(made)), made, store, changed), cost),
        (Job("extract anew", (*extract, str(made), "--overwrite"), made, store, old_store), cost),
        (Job("fit", fitting, fitted, run, None), fit_cost),
        (Job("fit anew", (*fitting, "--overwrite"), fitted, run, old_run), fit_cost),
        (Job("sweep", (*sweeping, str(swept)), swept, sweep, None), sweep_cost),
    ]


def spoilt(job: Job) -> str | None:
    """Say what differs from an uninterrupted run, after all."""
    made, expected = tree(job.made), tree(job.expected)
    if job.name == "sweep":
        # Its own report draws throughput and tells the time.
        made, expected = (
            {p: s for p, s in t.items() if p != "report.html" and not p.startswith(TIMED)}
            for t in (made, expected)
        )
    if differing := differences(made, expected):
        return f"not as in an uninterrupted run: {differing}"
    left = leftovers(job.made.parent)
    return f"left behind: {left}" if left else None
