"""What a bucket's server does wrong is made good, or told in one line without a secret."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from needs import package
from s3 import SECRETS, Bucket, Fault, rule

import toptune
from toptune.errors import InputError, StorageError, ToptuneError
from toptune.machine import objects
from toptune.machine.objects import Objects, objects_at

PASSING: tuple[Fault, ...] = (
    "500", "503", "slow", "stall", "cut before", "cut within", "cut after",
)  # fmt: skip


@pytest.fixture
def below(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Objects:
    """Objects below a URL of an empty bucket; what is not answered is asked again soon."""
    package("obstore")
    monkeypatch.setattr(objects, "REQUEST_S", 0.3)
    monkeypatch.setattr(objects, "_BYTES_PER_S", 2**27)
    monkeypatch.setattr(objects, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(objects, "_LONGEST_PAUSE_S", 0.3)
    return objects_at(f"{bucket.url}/study")


def some_bytes(n: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(n)


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_changes_nothing(
    bucket: Bucket, below: Objects, fault: Fault, tmp_path: Path
) -> None:
    data = some_bytes(100_000)
    for key in ("get", "range", "old", "size", "one/fetched", "listed/x/y"):
        bucket.put(f"study/{key}", data)
    calls: dict[tuple[str, str], Callable[[], object]] = {
        ("GET", "study/get"): lambda: below.get("get") == data,
        ("GET", "study/range"): lambda: below.get_range("range", 10, 5_000) == data[10:5_010],
        ("GET", "study/one/fetched"): lambda: below.fetch(["one/fetched", "none"], tmp_path),
        ("HEAD", "study/size"): lambda: getattr(below.head("size"), "size", None),
        ("PUT", "study/put"): lambda: below.put("put", data),
        ("PUT", "study/created"): lambda: below.create("created", b"mine"),
        ("DELETE|POST", "(study/old|.*delete.*)"): lambda: below.delete(["old", "never"]),
        ("GET", ".*prefix=study(%2F|/)listed.*"): lambda: (
            below.list("listed"), below.folders("listed"),
        ),
    }  # fmt: skip
    # An answer that is slow within bounds is waited for: it is asked for once.
    n_times, seconds = (1, 0.1) if fault == "slow" else (2, 1.0)
    rules = [
        rule(fault, method, f"/{bucket.name}.?{path}", times=n_times, seconds=seconds)
        for method, path in calls
    ]
    bucket.server.faults(*rules)
    with ThreadPoolExecutor(len(calls)) as threads:
        got = list(threads.map(lambda call: call(), calls.values(), timeout=60))
    assert got == [
        True, True, ["none"], len(data), None, True, None, (["listed/x/y"], ["x"]),
    ]  # fmt: skip
    assert (tmp_path / "one" / "fetched").read_bytes() == data
    assert bucket.get("study/put") == data
    assert bucket.get("study/created") == b"mine"
    assert bucket.get("study/old") is None
    met = [one.path for one in bucket.server.requests() if one.fault == fault]
    assert len(met) == n_times * len(calls)


def test_one_of_many_makes_an_object_though_answers_are_lost(
    bucket: Bucket, below: Objects
) -> None:
    bucket.server.faults(
        rule("cut after", "PUT", share=0.4, seed=1), rule("cut before", "PUT", share=0.3, seed=2)
    )

    def create(k: int) -> bool:
        return below.create(f"claim-{k % 4}", f"owner {k}".encode())

    with ThreadPoolExecutor(16) as threads:
        made = list(threads.map(create, range(32), timeout=60))
    owners = [bucket.get(f"study/claim-{n}") for n in range(4)]
    assert [k for k in range(32) if made[k]] == sorted(
        k for k in range(32) if f"owner {k}".encode() in owners
    )
    assert sum(made) == 4


def test_many_threads_read_and_write_through_all_faults(
    bucket: Bucket, below: Objects, tmp_path: Path
) -> None:
    # What stalls takes most of the time.
    faults = [
        rule(one, share=0.03 if one == "stall" else 0.06, seed=k, seconds=0.1)
        for k, one in enumerate(PASSING)
    ]
    bucket.server.faults(*faults)
    content = {f"a/{k % 3}/{k}": some_bytes(1 + 700 * k, k) for k in range(45)}
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(below.put, content, content.values(), timeout=60))
        assert below.list() == sorted(content)
        assert below.folders("a") == ["0", "1", "2"]
        parts = threads.map(lambda key: below.get_range(key, 0, 1), content, timeout=60)
        assert list(parts) == [data[:1] for data in content.values()]
    assert below.fetch(content, tmp_path) == []
    assert {key: (tmp_path / key).read_bytes() for key in content} == content
    assert bucket.content("study/") == content
    seen = {one.fault for one in bucket.server.requests()}
    assert seen == {None, *PASSING}


def failure(call: Callable[[], object]) -> ToptuneError:
    with pytest.raises(ToptuneError) as failed:
        call()
    error = failed.value
    told = [str(one) for one in (error, error.__cause__) if one is not None]
    if not error.__suppress_context__ and error.__context__ is not None:
        told.append(str(error.__context__))
    assert not any(secret in text for secret in SECRETS for text in told)
    assert "\n" not in str(error)
    return error


def test_a_fault_that_stays_is_one_error_after_a_bounded_time(
    bucket: Bucket, below: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "TOTAL_S", 0.8)
    bucket.put("study/key", b"data")
    below.head("key")
    for fault, cause in (("503", "503 SlowDown"), ("cut before", "broke"), ("stall", "in time")):
        bucket.server.faults(rule(fault, seconds=3))  # type: ignore[arg-type]  # a Fault
        begin_s = time.monotonic()
        reading = failure(lambda: below.get("key"))
        writing = failure(lambda: below.put("key", b"new"))
        assert time.monotonic() - begin_s < 5.0
        assert len(bucket.server.requests()) >= 4
        assert isinstance(reading, InputError)
        assert isinstance(writing, StorageError)
        for error in (reading, writing):
            assert str(error).startswith(f"{bucket.url}/study/key cannot be ")
            assert cause in str(error)
            assert "try again later" in str(error)


def test_what_does_not_pass_is_said_at_once(
    bucket: Bucket, below: Objects, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nowhere = objects_at("s3://nobody-has-this/study")
    bucket.server.faults(rule("403", path=f"/{bucket.name}.*"))
    begin_s = time.monotonic()
    refused: list[Callable[[], object]] = [
        lambda: below.get("key"),
        lambda: below.put("key", b""),
        lambda: below.create("key", b""),
        lambda: below.fetch(["key"], tmp_path),
        below.list,
        lambda: below.delete(["key"]),
    ]
    for call in refused:
        error = failure(call)
        assert "access is refused, 403 AccessDenied" in str(error)
        assert "AWS_ACCESS_KEY_ID" in str(error)
    absent: list[Callable[[], object]] = [
        lambda: nowhere.get("key"),
        lambda: nowhere.head("key"),
        lambda: nowhere.put("key", b""),
        nowhere.list,
    ]
    for call in absent:
        assert "there is no such bucket" in str(failure(call))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    gone = failure(objects_at(f"{bucket.url}/study").list)
    assert "the server cannot be reached" in str(gone)
    assert "AWS_ENDPOINT_URL" in str(gone)
    assert time.monotonic() - begin_s < 5.0
    assert {one.fault for one in bucket.server.requests() if bucket.name in one.path} == {"403"}


WAITING = """
import sys
from toptune.machine.objects import objects_at
below = objects_at(sys.argv[1])
try:
    print("asks", flush=True)
    below.get("key")
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_ends_a_wait_at_once(bucket: Bucket, below: Objects) -> None:
    bucket.put("study/key", b"data" * 100)
    bucket.server.faults(rule("stall", seconds=60))
    child = subprocess.Popen(
        [sys.executable, "-c", WAITING, below.url], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(toptune.__file__).parents[1])},
    )  # fmt: skip
    with child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "asks\n"
            deadline_s = time.monotonic() + 20
            while not bucket.server.requests() and time.monotonic() < deadline_s:
                time.sleep(0.02)
            begin_s = time.monotonic()
            child.send_signal(signal.SIGINT)
            assert child.wait(20) == 0
            assert time.monotonic() - begin_s < 3.0
            assert child.stdout.read() == "interrupted\n"
        finally:
            child.kill()


def test_who_is_given_up_on_is_interrupted_too(bucket: Bucket, below: Objects) -> None:
    bucket.server.faults(rule("stall", seconds=60))
    with ThreadPoolExecutor(1) as pool:
        got = pool.submit(below.get, "key")
        deadline_s = time.monotonic() + 20
        while not bucket.server.requests() and time.monotonic() < deadline_s:
            time.sleep(0.02)
        objects.give_up()
        assert isinstance(got.exception(20), KeyboardInterrupt)


def test_large_objects_come_in_pieces_and_whole(
    bucket: Bucket, below: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "PIECE_BYTES", 100_000)
    data = some_bytes(1_234_567)
    bucket.put("study/large", data)
    bucket.server.faults(*(rule(one, "GET", share=0.1, seed=3, seconds=0.4) for one in PASSING))
    assert below.get("large") == data
    assert below.get_range("large", 250_000, 700_001) == data[250_000:950_001]
    with pytest.raises(InputError, match="large"):
        below.get_range("large", len(data) - 5, 6)


@contextlib.contextmanager
def everything_logged() -> Iterator[list[str]]:
    lines: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler, root = Keeper(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def test_no_log_tells_a_secret(bucket: Bucket, below: Objects) -> None:
    bucket.server.faults(rule("500", times=2), rule("403", skip=1))
    with everything_logged() as lines:
        below.put("key", b"data")
        for call in (lambda: below.get("key"), lambda: below.put("key", b"")):
            failure(call)
    assert not any(secret in line for secret in SECRETS for line in lines)
    assert threading.active_count() < 40
