"""How long a cluster takes: measured with 1, 2 and 4 workers, and reckoned for thousands of wells.

    python benchmarks/cluster_size.py costs costs.json     # about a minute
    python benchmarks/cluster_size.py scaling costs.json   # a few minutes, on a quiet machine
    python benchmarks/cluster_size.py objects objects.json # five minutes; needs moto
    python benchmarks/cluster_size.py plan costs.json [objects.json]

`costs` simulates recordings and takes the time of every stage of a task: processor time where
something is computed, which other programs hardly change, and the least of several times on the
clock where something is waited for. `scaling` extracts alone and on 1, 2 and 4 workers with one
thread each, and compares that with the model. `plan` prints what the model says of 10,000 wells,
and what a simulation of every single task says of the same. `objects` counts what recordings and
a store in a bucket ask of an S3 server on the loopback interface, and how many requests wait for
each other, which a delay of every answer shows; with it, `plan` tells of an object store, too.
"""

from __future__ import annotations

import heapq
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from toptune.cluster import open_cluster
from toptune.extraction import StoredFeatures, StoredSpikes, check_listed, extract, list_devices
from toptune.features.extractor import unwatched
from toptune.features.picture_features import load_engine
from toptune.features.recordings import SpikeFinder
from toptune.machine.remote import as_path
from toptune.machine.threads import usable_cores
from toptune.params import Backbone, Compute, Picture, SpikeSettings, Windows
from toptune.recordings.devices import read_devices
from toptune.recordings.simulated import simulate
from toptune.store.feature_store import FeatureStore, recording_name
from toptune.store.session import joined_session, writing_session

BACKBONE = Backbone(name="efficientnet_b0", weights="random")
WINDOWS = Windows(width_s=30.0)
N_RECORDINGS, N_MEASURED, SECONDS = 12, 4, 120.0
ONE_THREAD = Compute(device="cpu", n_jobs=1)
# What the plan is of: wells, each a recording of 60 electrodes at 10 kHz, of so many minutes.
N_WELLS, MINUTES = 10_000, 15
# A disk, or the system's cache of it.
LOCAL_MB_S = 2000.0
# What file servers give all workers together, in MB/s: one of 10 Gbit/s, and a parallel one.
SERVERS_MB_S = (1000.0, 20_000.0)
# What S3 says that it answers for one prefix, in requests a second, before it asks to slow down.
WRITES_S, READS_S = 3500.0, 5500.0
# Assumed of an object store: the time until it answers, and what a worker is given, in MB/s.
ANSWER_S, WORKER_MB_S = 0.03, 100.0
# By how much answers are delayed to see how many wait for each other.
DELAY_S = 0.2
# So many recordings are opened in a bucket, and listed there under this name.
N_CHECKED, _LISTED = 64, "/devices.csv"


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


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Of an object store, for one recording and its groups in a store."""

    writes: float  # requests that put or delete
    reads: float  # and those that get or list
    read_bytes: float
    written_bytes: float
    rounds: float  # requests that wait for each other
    check_rounds: float = 0.0  # the same of the caller, before any work

    def longer(self, shorter: Asked, times: float) -> Asked:
        """Go on from a recording of half the length to one of `times` the length, in a line."""
        both = zip(asdict(shorter).items(), asdict(self).values(), strict=True)
        on = {name: b + (b - a) * 2 * (times - 1) for (name, a), b in both}
        # What is asked for more of is asked for at once.
        return Asked(**on | {name: getattr(self, name) for name in ("rounds", "check_rounds")})


# --- the model, and every task by itself


def over_objects(costs: Costs, asked: Asked) -> Costs:
    """Let a task wait for an object store: it reads, then works, then writes."""
    moved_s = (asked.read_bytes + asked.written_bytes) / (WORKER_MB_S * 1e6)
    return replace(
        costs,
        check_s=costs.check_s + asked.check_rounds * ANSWER_S,
        spikes_s=costs.spikes_s + asked.rounds * ANSWER_S + moved_s,
        # Claims are objects of their own: what all wait for is how many requests are answered.
        lock_s=max(asked.writes / WRITES_S, asked.reads / READS_S),
    )


def model_s(costs: Costs, n_tasks: int, n_workers: int, server_mb_s: float) -> float:
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


def narrowest(costs: Costs, server_mb_s: float) -> tuple[float, ...]:
    """Say from how many workers on each shared part is what they wait for.

    The scheduler, what only one worker can do at a time, and the file server.
    """
    of_one = (costs.schedule_s, costs.lock_s, costs.recording_bytes / (server_mb_s * 1e6))
    return tuple(costs.task_s / one if one else np.inf for one in of_one)


def simulated_s(
    costs: Costs, n_tasks: int, n_workers: int, server_mb_s: float, seed: int = 0
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


def took(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    begin = clock()
    work()
    return clock() - begin


def stage_costs(folder: Path) -> Costs:
    """Take the time of every stage in this process, with one thread."""
    listed = read_devices(folder / "devices.csv")
    settings = SpikeSettings()
    store = folder / "costs.zarr"
    check_listed(listed, settings)  # imports
    check_s = took(lambda: check_listed(listed, settings)) / len(listed.rows)
    finder = SpikeFinder(settings, ONE_THREAD, voltage=True)
    engine = load_engine(BACKBONE, ONE_THREAD)
    times: dict[str, list[float]] = {"spikes": [], "features": [], "join": [], "lock": []}
    rows = listed.rows[:N_MEASURED]
    with writing_session(store, settings.to_json(), list_devices(listed)) as host:
        features = StoredFeatures(host.store, WINDOWS, Picture(), BACKBONE, engine, unwatched)
        spikes_of = StoredSpikes(host.store, finder, unwatched)
        opened = FeatureStore(store)
        n_windows = 0
        for row in rows:
            name = recording_name(row.name)

            def join(name: str = name) -> None:
                with joined_session(host.ticket) as guest, guest.claim(name, wait=True):
                    pass

            def lock() -> None:
                with joined_session(host.ticket, opened):
                    pass

            times["join"].append(took(join))
            times["lock"].append(took(lock))
            begin = time.process_time()
            spikes = spikes_of.update(row)
            middle = time.process_time()
            made = features.start(spikes).result()
            features.write(spikes, made)
            times["spikes"].append(middle - begin)
            times["features"].append(time.process_time() - middle)
            n_windows = len(made.start_s)
    # The first of each imports, compiles and fills caches.
    both = np.add(times["spikes"], times["features"])[1:]
    size = sum(p.stat().st_size for p in store.rglob("*") if p.is_file())
    recordings = [row.recording.stat().st_size for row in rows]
    return Costs(
        check_s=check_s,
        spikes_s=float(np.median(times["spikes"][1:])),
        features_s=float(np.median(times["features"][1:])),
        join_s=min(times["join"]),
        lock_s=min(times["lock"]),
        schedule_s=0.0,
        warm_s=0.0,
        recording_bytes=float(np.mean(recordings)),
        store_bytes=size / len(rows),
        n_windows=n_windows,
        spread=float(both.std() / both.mean()),
    )


def worker_costs(folder: Path, costs: Costs) -> Costs:
    """Take the time that Dask and a worker's start take, beside the work."""
    few = folder / "few.csv"
    few.write_text("".join((folder / "devices.csv").read_text().splitlines(keepends=True)[:2]))
    empty = {str(k): k for k in range(2000)}
    with open_cluster("local:1") as cluster:

        def run() -> None:
            # Does nothing, with two arguments, as all tasks have.
            with closing(cluster.run("operator:is_", None, empty, on_gpu=False)) as ended:
                assert sum(1 for _ in ended) == len(empty)

        extracted(few, folder / "few.zarr", dask=cluster)
        (used_s,) = cluster._client.run(time.process_time).values()
        schedule_s = min(took(run) for _ in range(3)) / len(empty)
    return replace(costs, schedule_s=schedule_s, warm_s=max(0.0, used_s - costs.task_s))


def extracted(devices: Path, store: Path, **options: Any) -> None:
    extract(
        devices, store, windows=WINDOWS, backbone=BACKBONE, compute=ONE_THREAD, **options
    )  # fmt: skip


@contextmanager
def buckets() -> Iterator[Any]:
    """Give a bucket of an S3 server on this machine, which the environment names."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from s3 import found_in_environment, serving

    with serving() as server, found_in_environment(server):
        yield server.bucket()


def seconds_of(bucket: Any, work: Callable[[], object], delay_s: float) -> tuple[float, list[Any]]:
    """Take the time of work with answers that are late, and list what was asked for."""
    bucket.server.faults(*([{"fault": "slow", "seconds": delay_s}] if delay_s else []))
    seconds = took(work)
    requests = bucket.server.requests()
    bucket.server.faults()
    return seconds, requests


def asked_by_tasks(folder: Path, n: int) -> Asked:
    """Extract from a bucket into a bucket by a worker of its own, and see what was asked for."""
    with buckets() as bucket, open_cluster("local:1") as cluster:

        def extraction(name: str, delay_s: float = 0.0) -> tuple[float, list[Any]]:
            # Of another URL the worker has no copy.
            bucket.upload(folder, f"{name}/")
            devices, store = (as_path(f"{bucket.url}/{name}{end}") for end in (_LISTED, ".zarr"))
            return seconds_of(bucket, lambda: extracted(devices, store, dask=cluster), delay_s)

        extraction("warm")  # imports
        plain_s, requests = extraction("plain")
        delayed_s, _ = extraction("delayed", DELAY_S)
    files = [row.recording.name for row in read_devices(folder / "devices.csv").rows]
    names = (*files, *map(recording_name, files))
    its = [one for one in requests if any(name in one.path for name in names)]
    tell(f"requests of {n} recordings: {len(its)}, of the session: {len(requests) - len(its)}")
    writes = sum(one.method in ("PUT", "POST", "DELETE") for one in its)
    return Asked(
        writes=writes / n,
        reads=(len(its) - writes) / n,
        read_bytes=sum(one.n_received for one in its) / n,
        written_bytes=sum(one.n_sent for one in its) / n,
        rounds=(delayed_s - plain_s) / n / DELAY_S,
    )


def asked_by_checks(folder: Path) -> tuple[float, float]:
    """Open many recordings in a bucket before any work: requests of one, and those in a row."""
    with buckets() as bucket:
        (data,) = (path.read_bytes() for path in folder.glob("*.h5"))
        times = []
        for delay_s in (0.0, DELAY_S):
            place = f"{delay_s:g}"
            names = [f"r{k}.h5" for k in range(N_CHECKED)]
            lines = ["recording,device,label", *(f"{n},{n},{'ab'[len(n) % 2]}" for n in names)]
            bucket.put(f"{place}{_LISTED}", "\n".join(lines).encode())
            for name in names:
                bucket.put(f"{place}/{name}", data)
            listed = read_devices(as_path(f"{bucket.url}/{place}{_LISTED}"))
            seconds, requests = seconds_of(
                bucket, partial(check_listed, listed, SpikeSettings()), delay_s
            )
            times.append(seconds)
    return len(requests) / N_CHECKED, (times[1] - times[0]) / N_CHECKED / DELAY_S


def files_of(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


@contextmanager
def recordings(n: int, seconds: float = SECONDS) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="cluster-"))
    try:
        simulate(folder, n_devices=n, seconds=seconds, seed=0, n_jobs=usable_cores())
        yield folder
    finally:
        shutil.rmtree(folder)


def measure_costs(path: Path) -> None:
    with recordings(N_MEASURED) as folder:
        costs = worker_costs(folder, stage_costs(folder))
    path.write_text(json.dumps(asdict(costs), indent=1))
    for name, value in asdict(costs).items():
        tell(f"{name}: {value:.4g}")


def measure_objects(path: Path) -> None:
    with recordings(1, 2.0) as folder:
        n_requests, check_rounds = asked_by_checks(folder)
    tell(f"opened by {n_requests:.1f} requests, {check_rounds:.2f} in a row")
    found = []
    for seconds in (SECONDS / 2, SECONDS):
        with recordings(N_MEASURED, seconds) as folder:
            one = replace(asked_by_tasks(folder, N_MEASURED), check_rounds=check_rounds)
        found.append(asdict(one))
        for name, value in found[-1].items():
            tell(f"{seconds:g} s: {name}: {value:.4g}")
    path.write_text(json.dumps(found, indent=1))


def measure_scaling(path: Path) -> None:
    costs = Costs(**json.loads(path.read_text()))
    with recordings(N_RECORDINGS) as folder:
        devices = folder / "devices.csv"
        alone_s = took(lambda: extracted(devices, folder / "alone.zarr"))
        expected = files_of(folder / "alone.zarr")
        tell(f"{N_RECORDINGS} recordings of {SECONDS:g} s, {costs.n_windows} windows each")
        tell("| workers | measured | speed by worker | model |")
        tell("|---|---|---|---|")
        tell(f"| no Dask, one thread | {alone_s:.1f} s | | |")
        first_s = None
        for n in (1, 2, 4):
            store = folder / f"{n}.zarr"
            with open_cluster(f"local:{n}") as cluster:
                begin = time.perf_counter()
                extracted(devices, store, dask=cluster)
                seconds = time.perf_counter() - begin
            assert files_of(store) == expected, "not the store of a single process"
            first_s = first_s or seconds
            # More workers than cores share these.
            cores = min(n, usable_cores())
            model = model_s(
                replace(costs, warm_s=costs.warm_s * n / cores), N_RECORDINGS, cores, LOCAL_MB_S
            )
            tell(f"| {n} | {seconds:.1f} s | {first_s / seconds / n:.2f} | {model:.1f} s |")


# --- told


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def plan(path: Path, objects: Path | None = None) -> None:
    costs = Costs(**json.loads(path.read_text())).longer(MINUTES)
    tell(f"a task of {MINUTES} min: {costs.task_s:.0f} s of one thread, {costs.n_windows} windows")
    tell(f"read: {N_WELLS * costs.recording_bytes / 1e12:.2f} TB")
    tell(f"store: {N_WELLS * costs.store_bytes / 1e9:.0f} GB")
    for server_mb_s in SERVERS_MB_S:
        tell(f"\na file server of {server_mb_s / 1000:g} GB/s")
        tell_plan(costs, server_mb_s, ("scheduler", "store's lock", "file server"))
    if objects is not None:
        shorter, measured = (Asked(**one) for one in json.loads(objects.read_text()))
        asked = measured.longer(shorter, MINUTES * 60 / SECONDS)
        tell(
            f"\nan object store that answers after {ANSWER_S * 1000:g} ms and gives a worker"
            f" {WORKER_MB_S:g} MB/s; of one recording: {asked.reads:.0f} reads, {asked.writes:.0f}"
            f" writes, {asked.rounds:.0f} one after the other, {asked.check_rounds:.1f} of them"
            f" before any work; {N_WELLS * asked.read_bytes / 1e12:.2f} TB read"
        )
        tell_plan(over_objects(costs, asked), np.inf, ("scheduler", "requests a second"))


def tell_plan(costs: Costs, server_mb_s: float, parts: Sequence[str]) -> None:
    tell(f"a task: {costs.task_s:.1f} s; checks before any work: {costs.check_s * N_WELLS:.0f} s")
    for part, n in zip(parts, narrowest(costs, server_mb_s), strict=False):
        tell(f"narrow from {n:.0f} workers on: {part}")
    tell("| workers | model | every task simulated | workers busy |")
    tell("|---|---|---|---|")
    for n_workers in (1, 10, 100, 1000):
        model = model_s(costs, N_WELLS, n_workers, server_mb_s)
        single = simulated_s(costs, N_WELLS, n_workers, server_mb_s)
        busy = N_WELLS * costs.task_s / (n_workers * single)
        tell(f"| {n_workers} | {model / 3600:.2f} h | {single / 3600:.2f} h | {busy:.0%} |")


if __name__ == "__main__":
    steps: dict[str, Callable[..., None]] = {
        "costs": measure_costs, "scaling": measure_scaling, "objects": measure_objects,
        "plan": plan,
    }  # fmt: skip
    steps[sys.argv[1]](*map(Path, sys.argv[2:]))
