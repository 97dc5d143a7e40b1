"""Kill real extractions and fits, at random, many times, and see what they leave.

A program of its own: `python tests/crash_driver.py FOLDER KILLS SEED` prints a JSON report. It
imports everything once and forks a process for each attempt, so that a kill costs no imports. It
starts no thread itself; what must be looked at is looked at in forked processes, too.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from small_data import CLASS_RATES_HZ, install_tiny_backbones, write_devices, write_mcs

from toptune import backbones, detection, durable, features, fit, simulate, windows  # noqa: F401
from toptune.cli import main
from toptune.errors import InputError
from toptune.finding import SpikeSettings, find_spikes
from toptune.store import FeatureStore

N_RECORDINGS = 4
EXTRACT = (
    *("--window-s", "1", "--stride-s", "0.5", "--backbone", "tiny", "--weights", "random"),
    *("--n-jobs", "2"),
)  # fmt: skip
FIT = ("--head", "falkon", "--permutations", "4", "--width", "0.5", "--penalty", "1e-5")
# Changes of the file system, as the interpreter announces them.
STEPS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate"}
WAYS = ("step", "step", "step", "time", "interrupts", "file size")


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


# --- one attempt


class Child(NamedTuple):
    """A forked process, and where its output can be read."""

    pid: int
    output: int


class Ended(NamedTuple):
    """How a process ended: its exit code or minus the signal, and what it printed."""

    code: int
    output: str


def fork(work: Callable[[], None]) -> Child:
    """Do something in a forked process; what it prints goes into a pipe, which is large enough."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return Child(pid, reading)
    code = 1
    try:
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001  # printed, and the parent looks for it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def toptune(arguments: tuple[str, ...], prepare: Callable[[], None]) -> Child:
    """Start `toptune ARGUMENTS`."""

    def work() -> None:
        prepare()
        sys.argv = ["toptune", *arguments]
        main()

    return fork(work)


def ended(child: Child) -> Ended:
    """Wait for a process."""
    code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
    with os.fdopen(child.output) as pipe:
        return Ended(code, pipe.read())


def on_each_step(step: Callable[[], None]) -> None:
    """Call before each change of the file system, and on both sides of an exchange of names."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        if event in STEPS or (event == "open" and arguments[2] & writes):
            step()

    real = durable.exchange

    def exchange(a: Path, b: Path) -> bool:
        step()
        done = real(a, b)
        step()
        return done

    durable.exchange = exchange
    sys.addaudithook(hook)


def die_at_step(number: int) -> Callable[[], None]:
    """Make a process kill itself before its change `number` of the file system."""
    left = number

    def step() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda: on_each_step(step)


def limit_files(n_bytes: int) -> Callable[[], None]:
    """Let writes beyond a length fail, which cuts files off in the middle of a write."""

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.RLIM_INFINITY))

    return prepare


def nothing() -> None:
    """Prepare nothing."""


def strike(job: Job, way: str, rng: random.Random, cost: Cost) -> Ended:
    """Run a job and end it in one of the ways."""
    if way == "step":
        return ended(toptune(job.arguments, die_at_step(rng.randint(1, cost.n_steps))))
    if way == "file size":
        return ended(toptune(job.arguments, limit_files(rng.choice((0, 50, 500, 1000, 4000)))))
    child = toptune(job.arguments, nothing)
    time.sleep(rng.uniform(0, cost.seconds))
    if way == "time":
        os.kill(child.pid, signal.SIGKILL)
    else:
        os.kill(child.pid, signal.SIGINT)
        time.sleep(rng.choice((0, 0.001, 0.01, 0.05)))
        os.kill(child.pid, signal.SIGINT)
    return ended(child)


# --- what is left


def tree(folder: Path) -> dict[str, str]:
    """sha256 of all files; of JSON with a run's time, without that."""
    sums = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.name == "metrics.json":
            metrics = json.loads(content)
            del metrics["seconds"]
            content = json.dumps(metrics).encode()
        sums[path.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return sums


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
        store.table(store.choose())
    except InputError as error:
        assert "have no features" in str(error) or "holds no features" in str(error)  # noqa: PT017


def assert_equal(a: Any, b: Any) -> None:
    for x, y in zip(a, b, strict=True):
        assert x.tobytes() == y.tobytes()


def look_at_run(job: Job) -> None:
    """A run is the old one, the new one, or not there."""
    if not job.made.exists():
        assert job.before is None, "the run is gone"
        return
    known = [tree(p) for p in (job.expected, job.before) if p is not None]
    assert tree(job.made) in known, "the run is neither the old nor the new one"


def look(job: Job) -> str | None:
    """Look in a forked process, since reading starts threads; gives what is wrong."""
    looks = look_at_store if job.made.suffix == ".zarr" else look_at_run
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
    end = ended(toptune(arguments, lambda: on_each_step(step)))
    assert end.code == 0, end.output
    return Cost(int(steps[0]), time.perf_counter() - start)


def jobs(folder: Path) -> list[tuple[Job, Cost]]:
    """Make the data, and everything without interruption."""
    data = folder / "data"
    data.mkdir()
    devices = str(write_data(data))
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
    made, fitted = work / "s.zarr", work / "run"
    fitting = ("fit", str(store), *FIT, "-o", str(fitted))
    return [
        (Job("extract", (*extract, str(made)), made, store, None), cost),
        (Job("extract what changed", (*extract, str(made)), made, store, changed), cost),
        (
            Job("extract anew", (*extract, str(made), "--overwrite"), made, store, old_store),
            cost,
        ),
        (Job("fit", fitting, fitted, run, None), fit_cost),
        (Job("fit anew", (*fitting, "--overwrite"), fitted, run, old_run), fit_cost),
    ]


class WrongError(Exception):
    """Something was lost, spoilt or left behind."""


def play(job: Job, cost: Cost, rng: random.Random, budget: int) -> Counter[str]:
    """Interrupt a job again and again, then let it end; gives how often and how it was ended."""
    work = job.made.parent
    shutil.rmtree(work)
    work.mkdir()
    if job.before is not None:
        shutil.copytree(job.before, job.made)
    strikes: Counter[str] = Counter()
    for _ in range(min(budget, rng.randint(1, 4))):
        way = rng.choice(WAYS)
        end = strike(job, way, rng, cost)
        if end.code == 0 or is_there(job, end):  # it was faster, now or the last time
            break
        strikes[f"{job.name}: {way}"] += 1
        foreseen = way != "file size" or "cannot be written" in end.output
        if "Traceback" in end.output or not foreseen:
            raise WrongError(f"{strikes}: exit code {end.code}, {end.output}")
        if (wrong := look(job)) is not None:
            raise WrongError(f"{strikes}: {wrong}")
    end = ended(toptune(job.arguments, nothing))
    if end.code != 0 and not is_there(job, end):
        raise WrongError(f"{strikes}, then exit code {end.code}: {end.output}")
    if (wrong := look(job) or spoilt(job)) is not None:
        raise WrongError(f"{strikes}, then let through: {wrong}")
    return strikes


def is_there(job: Job, end: Ended) -> bool:
    """Whether a run had been published before the process that should make it was struck."""
    return job.name == "fit" and end.code == 2 and "exists" in end.output


def spoilt(job: Job) -> str | None:
    """Say what differs from an uninterrupted run, after all."""
    made, expected = tree(job.made), tree(job.expected)
    differing = [p for p in sorted({*made, *expected}) if made.get(p) != expected.get(p)]
    if differing:
        return f"not as in an uninterrupted run: {differing}"
    left = leftovers(job.made.parent)
    return f"left behind: {left}" if left else None


def drive(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Strike until as many processes have been struck as asked for, or something is wrong."""
    rng = random.Random(seed)
    total: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as monkeypatch:
        install_tiny_backbones(monkeypatch)
        known = jobs(folder)
        while total.total() < kills:
            job, cost = rng.choice(known)
            try:
                total += play(job, cost, rng, kills - total.total())
            except WrongError as error:
                return {"strikes": total, "wrong": f"{job.name}: {error}"}
    return {"strikes": total, "wrong": None}


if __name__ == "__main__":
    print(json.dumps(drive(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))  # noqa: T201
