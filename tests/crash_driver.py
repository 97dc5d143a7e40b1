"""Strike at real extractions, fits and sweeps, many times, and see what they leave.

A program of its own: `python tests/crash_driver.py FOLDER KILLS SEED` prints a JSON report. It
imports everything once and forks a process for each attempt, so that a kill costs no imports. It
starts no thread itself; what must be looked at is looked at in forked processes, too.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from crash_jobs import N_RECORDINGS, Cost, Job, look, make_jobs, spoilt
from forked import Ended, die_at_step, ended, limit_files, nothing, run_toptune
from small_data import install_tiny_backbones

# A file system in memory keeps whole pages.
PAGE = 4096
# Making a store anew never needs more than the one before.
DISK_FILLING = ("extract", "extract what changed", "fit anew")
WAYS = ("step", "step", "step", "time", "interrupts", "file size")


class WrongError(Exception):
    """Something was lost, spoilt or left behind."""


# --- killed


def kills(jobs: list[tuple[Job, Cost]], n: int, seed: int) -> Counter[str]:
    """Strike until as many processes have been struck as asked for."""
    rng = random.Random(seed)
    total: Counter[str] = Counter()
    while total.total() < n:
        job, cost = rng.choice(jobs)
        total += play(job, cost, rng, n - total.total())
    return total


def strike(job: Job, way: str, rng: random.Random, cost: Cost) -> Ended:
    """Run a job and end it in one of the ways."""
    if way == "step":
        return ended(run_toptune(job.arguments, die_at_step(rng.randint(1, cost.n_steps))))
    if way == "file size":
        return ended(run_toptune(job.arguments, limit_files(rng.choice((0, 50, 500, 1000, 4000)))))
    child = run_toptune(job.arguments, nothing)
    time.sleep(rng.uniform(0, cost.seconds))
    if way == "time":
        os.kill(child.pid, signal.SIGKILL)
    else:
        os.kill(child.pid, signal.SIGINT)
        time.sleep(rng.choice((0, 0.001, 0.01, 0.05)))
        os.kill(child.pid, signal.SIGINT)
    return ended(child)


def play(job: Job, cost: Cost, rng: random.Random, budget: int) -> Counter[str]:
    """Interrupt a job again and again, then let it end; gives how often and how it was ended."""
    fresh(job)
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
    end = ended(run_toptune(job.arguments, nothing))
    if end.code != 0 and not is_there(job, end):
        raise WrongError(f"{strikes}, then exit code {end.code}: {end.output}")
    if (wrong := look(job) or spoilt(job)) is not None:
        raise WrongError(f"{strikes}, then let through: {wrong}")
    return strikes


def is_there(job: Job, end: Ended) -> bool:
    """Whether a run had been published before the process that should make it was struck."""
    return job.name == "fit" and end.code == 2 and "exists" in end.output


def fresh(job: Job) -> Path:
    """Empty the folder a job works in, but for what it is to replace."""
    work = job.made.parent
    shutil.rmtree(work)
    work.mkdir()
    if job.before is not None:
        shutil.copytree(job.before, job.made)
    return work


# --- several at once


def together(job: Job, n: int) -> dict[str, int]:
    """Let processes extract into one store at once, and read it all the while."""
    fresh(job)
    children = [run_toptune((*job.arguments, "--json"), nothing) for _ in range(n)]
    reads = 0
    while not all(has_ended(child.pid) for child in children):
        if (wrong := look(job)) is not None:
            raise WrongError(f"read while {n} write: {wrong}")
        reads += 1
    ends = [ended(child) for child in children]
    if any(end.code for end in ends):
        raise WrongError(f"{n} at once: {ends}")
    reports = [json.loads(end.output[end.output.index("{") :]) for end in ends]
    done = sum(report["done"] for report in reports)
    if done != N_RECORDINGS or any(r["done"] + r["reused"] != N_RECORDINGS for r in reports):
        raise WrongError(f"{n} at once did {reports}")
    if (wrong := spoilt(job)) is not None:
        raise WrongError(f"{n} at once: {wrong}")
    return {"processes": n, "reads": reads, "shared": sum(report["done"] > 0 for report in reports)}


def has_ended(pid: int) -> bool:
    """Whether a process has ended; it can still be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


# --- a full disk


def full_disks(jobs: list[Job], seed: int) -> dict[str, int] | None:
    """Run jobs on a disk that is too small and grows from try to try; None without the rights."""
    rng = random.Random(seed)
    found = {}
    for job in jobs:
        work = fresh(job)
        pages = [-(-f.stat().st_size // PAGE) for f in work.rglob("*") if f.is_file()]
        size = (sum(pages) + 3) * PAGE
        try:
            with small_disk(work, size):
                if job.before is not None:
                    shutil.copytree(job.before, job.made)
                found[job.name] = fill(job, work, size, rng)
        except PermissionError:
            return None
    return found


def fill(job: Job, work: Path, size: int, rng: random.Random) -> int:
    """Try and enlarge until the job gets through; gives how often the disk was full."""
    tries = 0
    while True:
        end = ended(run_toptune(job.arguments, nothing))
        if (wrong := look(job)) is not None:
            raise WrongError(f"{job.name} on a full disk: {wrong}")
        if end.code == 0:
            break
        if end.code != 1 or "make room and run" not in end.output or "Traceback" in end.output:
            raise WrongError(f"{job.name} on a full disk: exit code {end.code}, {end.output}")
        tries += 1
        size += rng.randint(1, 40) * PAGE
        subprocess.run(["mount", "-o", f"remount,size={size}", str(work)], check=True)
    if (wrong := spoilt(job)) is not None:
        raise WrongError(f"{job.name} after {tries} full disks: {wrong}")
    return tries


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[None]:
    """Mount a file system in memory for a while."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        raise PermissionError
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def drive(folder: Path, n_kills: int, seed: int) -> dict[str, Any]:
    """Do it all; ``wrong`` tells what was not as it should be."""
    report: dict[str, Any] = {"wrong": None}
    with pytest.MonkeyPatch.context() as monkeypatch:
        install_tiny_backbones(monkeypatch)
        jobs = make_jobs(folder)
        # For looking at some jobs alone: TOPTUNE_JOBS=sweep.
        wanted = os.environ.get("TOPTUNE_JOBS", "").split()
        struck = [(job, cost) for job, cost in jobs if not wanted or job.name in wanted]
        try:
            report["together"] = together(jobs[0][0], 3)
            report["full disks"] = full_disks(
                [job for job, _ in jobs if job.name in DISK_FILLING], seed
            )
            report["kills"] = kills(struck, n_kills, seed)
        except WrongError as error:
            report["wrong"] = str(error)
    return report


if __name__ == "__main__":
    print(json.dumps(drive(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))  # noqa: T201
