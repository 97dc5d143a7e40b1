"""Kill real extractions into a bucket at any of their requests, and see what they leave.

A program of its own: `python tests/bucket_driver.py FOLDER KILLS SEED` prints a JSON report. It
imports everything once and forks a process for each attempt; the server kills it when its request
comes, or when that is done. The program itself asks the server for nothing by toptune, since
connections do not outlive a fork.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from crash_jobs import EXTRACT
from forked import Ended, ended, nothing, run_toptune
from s3 import SECRETS, Bucket, Fault, found_in_environment, rule, serving
from small_data import install_tiny_backbones, write_mcs

JOBS = ("extract", "extract anew")


class WrongError(Exception):
    """Something was lost, spoilt or left behind."""


def expected_of(folder: Path) -> dict[str, bytes]:
    """Write two recordings and a list of them, and extract into a store here."""
    lines = ["recording,device,label"]
    for k in range(2):
        file = write_mcs(folder / f"r{k}.h5", seed=k, seconds=2.0)
        lines.append(f"{file},d{k},{'ab'[k]}")
    (folder / "devices.csv").write_text("\n".join(lines) + "\n")
    end = ended(run_toptune(arguments(str(folder)), nothing))
    if end.code:
        raise WrongError(f"on disk: exit code {end.code}, {end.output}")
    store = folder / "s.zarr"
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file()
    }


def arguments(place: str, *more: str) -> tuple[str, ...]:
    return ("extract", f"{place}/devices.csv", "--store", f"{place}/s.zarr", *EXTRACT, *more)


class Attempt:
    """A job in a place of its own in the bucket."""

    def __init__(self, bucket: Bucket, job: str, expected: dict[str, bytes], name: str) -> None:
        self._bucket, self._prefix, self._expected = bucket, f"{name}/", expected
        more = ("--overwrite",) if job == "extract anew" else ()
        self._arguments = arguments(f"{bucket.url}/{name}", *more)
        bucket.put(f"{name}/devices.csv", self.devices)
        if more:
            for key, data in expected.items():
                bucket.put(f"{name}/s.zarr/{key}", data)

    devices = b""

    def run(self, fault: Fault | None = None, skip: int = 0) -> Ended:
        """Let the job run, or until it is killed at a request."""
        reading, writing = os.pipe()

        def wait() -> None:
            os.read(reading, 1)

        child = run_toptune(self._arguments, wait)
        rules = [] if fault is None else [rule(fault, skip=skip, times=1, process=child.pid)]
        self._bucket.server.faults(*rules)
        os.write(writing, b"x")
        end = ended(child)
        os.close(reading)
        os.close(writing)
        if "Traceback" in end.output or any(secret in end.output for secret in SECRETS):
            raise WrongError(f"{self._prefix}: {end}")
        return end

    def look(self) -> None:
        """See that every published group is whole."""
        found = self._bucket.content(f"{self._prefix}s.zarr/")
        for key, data in found.items():
            attributes = json.loads(data).get("attributes", {}) if key.endswith("zarr.json") else {}
            if not attributes.get("published"):
                continue
            group = key.removesuffix("zarr.json")
            for file, its_sum in attributes["files"].items():
                there = found.get(group + file)
                if there is None or hashlib.sha256(there).hexdigest() != its_sum:
                    raise WrongError(f"{self._prefix}: {group} is published without {file}")

    def finish(self) -> None:
        """Let the job through, and see that nothing is left of what was killed."""
        end = self.run()
        if end.code:
            raise WrongError(f"{self._prefix}, then let through: {end}")
        if self._bucket.content(f"{self._prefix}s.zarr/") != self._expected:
            raise WrongError(f"{self._prefix}: not the store of one that was never killed")
        if left := self._bucket.keys(f"{self._prefix}."):
            raise WrongError(f"{self._prefix}: {left} are left")


def kills(bucket: Bucket, expected: dict[str, bytes], n: int, rng: random.Random) -> dict[str, Any]:
    """Kill at so many requests of each job; gives how many requests a whole one takes."""
    report: dict[str, Any] = {}
    for job in JOBS:
        whole = Attempt(bucket, job, expected, f"{job}-whole".replace(" ", "-"))
        whole.finish()
        n_requests = len(bucket.server.requests())
        ways: list[tuple[Fault, int]] = [
            (fault, at) for at in range(n_requests) for fault in ("kill before", "kill after")
        ]
        n_killed = 0
        for fault, at in rng.sample(ways, min(n, len(ways))):
            attempt = Attempt(bucket, job, expected, f"{job}-{fault}-{at}".replace(" ", "-"))
            n_killed += attempt.run(fault, at).code < 0
            attempt.look()
            attempt.finish()
        report[job] = {"requests": n_requests, "killed": n_killed}
    return report


def drive(folder: Path, n: int, seed: int) -> dict[str, Any]:
    """Do it all; ``wrong`` tells what was not as it should be."""
    report: dict[str, Any] = {"wrong": None}
    with pytest.MonkeyPatch.context() as monkeypatch:
        install_tiny_backbones(monkeypatch)
        try:
            expected = expected_of(folder)
            Attempt.devices = (folder / "devices.csv").read_bytes()
            with serving() as server, found_in_environment(server):
                report |= kills(server.bucket(), expected, n, random.Random(seed))
        except WrongError as error:
            report["wrong"] = str(error)
    return report


if __name__ == "__main__":
    print(json.dumps(drive(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))  # noqa: T201
