"""How long a cluster takes: measured with 1, 2 and 4 workers, and reckoned for thousands of wells.

    python benchmarks/cluster_size.py measure costs.json   # a few minutes on a quiet machine
    python benchmarks/cluster_size.py plan costs.json

`measure` simulates recordings, takes the time of every stage of a task in this process, extracts
them alone and on 1, 2 and 4 workers with one thread each, and compares that with the model. `plan`
prints what the model says of 10,000 wells, and of it what a simulation of every single task says.
"""

from __future__ import annotations

import heapq
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from toptune.cluster import open_cluster
from toptune.extraction import StoredFeatures, StoredSpikes, check_listed, extract, list_devices
from toptune.features.extractor import unwatched
from toptune.features.picture_features import load_engine
from toptune.features.recordings import SpikeFinder
from toptune.machine.threads import usable_cores
from toptune.params import Backbone, Compute, Picture, SpikeSettings, Windows
from toptune.recordings.devices import read_devices
from toptune.recordings.simulated import simulate
from toptune.store.feature_store import recording_name
from toptune.store.session import joined_session, writing_session

BACKBONE = Backbone(name="efficientnet_b0", weights="random")
WINDOWS = Windows(width_s=30.0)
N_RECORDINGS, SECONDS = 12, 120.0
ONE_THREAD = Compute(device="cpu", n_jobs=1)
# What the plan is of: wells, each a recording of 60 electrodes at 10 kHz, of so many minutes.
N_WELLS, MINUTES = 10_000, 15
# What a file server gives all workers together, in MB/s: 10 Gbit/s, as a rule of thumb.
SERVER_MB_S = 1000.0


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Of one recording, in seconds of one thread and in bytes."""

    check_s: float  # opening it before any work, by the caller
    spikes_s: float  # hash, reading, detection and publication
    features_s: float  # drawing, describing and publication of all windows
    join_s: float  # joining the session and claiming: of it `lock_s` no other worker can do so
    lock_s: float
    schedule_s: float  # of Dask's scheduler and the caller, for a task
    warm_s: float  # from a worker's first task to its work: imports, the network compiled
    recording_bytes: float
    store_bytes: float
    n_windows: int
    spread: float = 0.1  # standard deviation of a task's time, as a share of it

    @property
    def task_s(self) -> float:
        return self.join_s + self.spikes_s + self.features_s

    def longer(self, minutes: float) -> Costs:
        """Scale to longer recordings; windows begin every 5 s."""
        times = minutes * 60 / SECONDS
        n_windows = int((minutes * 60 - WINDOWS.width_s) // WINDOWS.stride_s) + 1
        return replace(
            self,
            spikes_s=self.spikes_s * times,
            features_s=self.features_s * n_windows / self.n_windows,
            recording_bytes=self.recording_bytes * times,
            store_bytes=self.store_bytes * times,
            n_windows=n_windows,
        )


# --- the model, and every task by itself


def model_s(costs: Costs, n_tasks: int, n_workers: int, server_mb_s: float = SERVER_MB_S) -> float:
    """Reckon how long it takes: the caller's checks, then whatever is the narrowest."""
    rounds = n_tasks / n_workers
    narrow = max(
        costs.task_s * max(rounds, 1.0),
        costs.schedule_s * n_tasks,
        costs.lock_s * n_tasks,
        n_tasks * costs.recording_bytes / (server_mb_s * 1e6),
    )
    # The last task is half over when all others are.
    tail = costs.task_s / 2 if rounds > 1 else 0.0
    return costs.check_s * n_tasks + costs.warm_s + narrow + tail


def narrowest(costs: Costs, server_mb_s: float = SERVER_MB_S) -> dict[str, float]:
    """Say from how many workers on each shared part is what they wait for."""
    return {
        "scheduler": costs.task_s / costs.schedule_s,
        "store's lock": costs.task_s / costs.lock_s,
        "file server": costs.task_s / (costs.recording_bytes / (server_mb_s * 1e6)),
    }


def simulated_s(
    costs: Costs, n_tasks: int, n_workers: int, server_mb_s: float = SERVER_MB_S, seed: int = 0
) -> float:
    """Let every task queue for the scheduler, the lock and the file server, one after the other."""
    rng = np.random.default_rng(seed)
    factor = rng.lognormal(-(costs.spread**2) / 2, costs.spread, n_tasks)
    begin = costs.check_s * n_tasks
    scheduler = lock = server = begin
    read_s = costs.recording_bytes / (server_mb_s * 1e6)
    free = [begin + costs.warm_s * (0.8 + 0.4 * share) for share in rng.random(n_workers)]
    heapq.heapify(free)
    end = begin
    for one in factor:
        at = heapq.heappop(free)
        scheduler = at = max(at, scheduler) + costs.schedule_s
        lock = at = max(at, lock) + costs.lock_s
        # The file is read while it is worked on: whichever takes longer.
        server = max(at, server) + read_s
        at = max(at + (costs.task_s - costs.lock_s) * float(one), server)
        heapq.heappush(free, at)
        end = max(end, at)
    return end


# --- measured


def took(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def stage_costs(folder: Path) -> Costs:
    """Take the time of every stage in this process, with one thread."""
    listed = read_devices(folder / "devices.csv")
    settings = SpikeSettings()
    check_s = took(lambda: check_listed(listed, settings)) / len(listed.rows)
    store = folder / "costs.zarr"
    finder = SpikeFinder(settings, ONE_THREAD, voltage=True)
    engine = load_engine(BACKBONE, ONE_THREAD)
    times: dict[str, list[float]] = {"spikes": [], "features": [], "join": [], "lock": []}
    with writing_session(store, settings.to_json(), list_devices(listed)) as host:
        features = StoredFeatures(host.store, WINDOWS, Picture(), BACKBONE, engine, unwatched)
        spikes_of = StoredSpikes(host.store, finder, unwatched)
        n_windows = 0
        for row in listed.rows[:5]:
            name = recording_name(row.name)

            def join(name: str = name) -> None:
                with joined_session(host.ticket) as guest, guest.claim(name, wait=True):
                    pass

            def lock() -> None:
                with joined_session(host.ticket):
                    pass

            times["join"].append(took(join))
            times["lock"].append(took(lock))
            begin = time.perf_counter()
            spikes = spikes_of.update(row)
            times["spikes"].append(time.perf_counter() - begin)
            begin = time.perf_counter()
            rows = features.start(spikes).result()
            features.write(spikes, rows)
            times["features"].append(time.perf_counter() - begin)
            n_windows = len(rows.start_s)
    # The first of each imports, compiles and fills caches.
    of = {name: float(np.median(values[1:])) for name, values in times.items()}
    both = np.add(times["spikes"], times["features"])[1:]
    size = sum(p.stat().st_size for p in store.rglob("*") if p.is_file())
    recordings = [row.recording.stat().st_size for row in listed.rows]
    return Costs(
        check_s=check_s,
        spikes_s=of["spikes"],
        features_s=of["features"],
        join_s=of["join"],
        lock_s=of["lock"],
        schedule_s=0.0,
        warm_s=0.0,
        recording_bytes=float(np.mean(recordings)),
        store_bytes=size / 5,
        n_windows=n_windows,
        spread=float(both.std() / both.mean()),
    )


def extracted(folder: Path, name: str, **options: Any) -> None:
    extract(
        folder / "devices.csv", folder / name, windows=WINDOWS, backbone=BACKBONE,
        compute=ONE_THREAD, **options,
    )  # fmt: skip


def files_of(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def measure(path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="cluster-"))
    try:
        simulate(folder, n_devices=N_RECORDINGS, seconds=SECONDS, seed=0, n_jobs=usable_cores())
        costs = stage_costs(folder)
        measured = {"alone": took(lambda: extracted(folder, "alone.zarr"))}
        expected = files_of(folder / "alone.zarr")
        for n in (1, 2, 4):
            name = f"{n}.zarr"
            with open_cluster(f"local:{n}") as cluster:
                if n == 1:
                    empty = {str(k): k for k in range(2000)}

                    def run(tasks: dict[str, int] = empty) -> None:
                        with closing(
                            cluster.run("operator:is_", None, tasks, on_gpu=False)
                        ) as ended:
                            assert sum(1 for _ in ended) == len(tasks)

                    costs = replace(costs, schedule_s=took(run) / len(empty))
                measured[str(n)] = took(lambda: extracted(folder, name, dask=cluster))  # noqa: B023
            assert files_of(folder / name) == expected, "not the store of a single process"
        # What one worker takes beside its tasks: the caller's checks and the start of the work.
        rest_s = measured["1"] - N_RECORDINGS * (costs.task_s + costs.check_s)
        costs = replace(costs, warm_s=max(0.0, rest_s))
        path.write_text(json.dumps({"costs": asdict(costs), "measured": measured}, indent=1))
        show_measured(costs, measured)
    finally:
        shutil.rmtree(folder)


# --- told


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def show_measured(costs: Costs, measured: dict[str, float]) -> None:
    for name, value in asdict(costs).items():
        tell(f"{name}: {value:.4g}")
    tell("| workers | measured | a worker's share | model |")
    tell("|---|---|---|---|")
    tell(f"| alone, one thread | {measured['alone']:.1f} s | | |")
    for n in (1, 2, 4):
        # More workers than cores share these.
        at_once = min(n, usable_cores())
        model = model_s(replace(costs, warm_s=costs.warm_s * n / at_once), N_RECORDINGS, at_once)
        seconds = measured[str(n)]
        speed = measured["1"] / seconds
        tell(f"| {n} | {seconds:.1f} s | {speed / n:.2f} | {model:.1f} s |")


def plan(path: Path) -> None:
    costs = Costs(**json.loads(path.read_text())["costs"]).longer(MINUTES)
    tell(f"a task of {MINUTES} min: {costs.task_s:.0f} s of one thread, {costs.n_windows} windows")
    tell(f"read: {N_WELLS * costs.recording_bytes / 1e12:.2f} TB")
    tell(f"store: {N_WELLS * costs.store_bytes / 1e9:.0f} GB")
    for part, n in narrowest(costs).items():
        tell(f"narrow from {n:.0f} workers on: {part}")
    tell("| workers | model | every task simulated | workers busy |")
    tell("|---|---|---|---|")
    for n in (1, 10, 100, 1000, 3000):
        model, single = model_s(costs, N_WELLS, n), simulated_s(costs, N_WELLS, n)
        busy = N_WELLS * costs.task_s / (n * single)
        tell(f"| {n} | {model / 3600:.2f} h | {single / 3600:.2f} h | {busy:.0%} |")


if __name__ == "__main__":
    {"measure": measure, "plan": plan}[sys.argv[1]](Path(sys.argv[2]))
