"""The S3 server of the tests does what S3 does, and what it is told to do wrong."""

from __future__ import annotations

import http.client
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from s3 import KEY_ID, SIGNED, Bucket, Fault, Server, rule


def ask(
    server: Server, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request(method, path, body, {**SIGNED, **headers})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_objects_are_put_listed_read_in_part_and_deleted(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x y+é.h5").write_bytes(b"0123456789")
    bucket.upload(tmp_path, "deep/")
    bucket.put("z", b"")
    assert bucket.keys() == ["deep/a/x y+é.h5", "z"]
    assert bucket.content("deep/") == {"a/x y+é.h5": b"0123456789"}
    path = f"/{bucket.name}/deep/a/x%20y%2B%C3%A9.h5"
    assert ask(bucket.server, "GET", path, Range="bytes=2-4") == (206, b"234")
    assert ask(bucket.server, "HEAD", path) == (200, b"")
    bucket.delete("z", "never")
    assert bucket.get("z") is None
    seen = bucket.server.requests()
    assert [(one.method, one.status, one.range) for one in seen] == [
        ("GET", 206, "bytes=2-4"), ("HEAD", 200, ""),
    ]  # fmt: skip


def test_one_of_many_conditional_puts_is_the_first(bucket: Bucket) -> None:
    statuses: list[int] = []

    def put(k: int) -> None:
        header = {"If-None-Match": "*"}
        statuses.append(ask(bucket.server, "PUT", f"/{bucket.name}/one", b"%d" % k, **header)[0])

    threads = [threading.Thread(target=put, args=(k,)) for k in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(20)
    assert sorted(statuses) == [200, *[412] * 7]


@pytest.mark.parametrize(
    ("fault", "happens"),
    [("cut before", False), ("cut within", True), ("cut after", True), ("stall", True)],
)
def test_an_answer_is_lost_before_or_after_the_work_is_done(
    bucket: Bucket, fault: Fault, happens: bool
) -> None:
    bucket.server.faults(rule(fault, "PUT", times=1, seconds=0.1))
    with pytest.raises((ConnectionError, http.client.HTTPException, TimeoutError)):
        ask(bucket.server, "PUT", f"/{bucket.name}/key", b"data")
    assert (bucket.get("key") is not None) == happens
    assert ask(bucket.server, "PUT", f"/{bucket.name}/key", b"data")[0] == 200
    assert [one.fault for one in bucket.server.requests()] == [fault, None]


def test_an_answer_of_data_is_cut_slow_refused_or_spoilt(bucket: Bucket) -> None:
    bucket.put("key", b"data" * 100)
    path = f"/{bucket.name}/key"
    bucket.server.faults(
        rule("500", skip=1, times=1),
        rule("slow", "GET", times=2, seconds=0.3),
        rule("cut within", "GET", times=1),
        rule("flip", "GET", times=1),
        rule("403"),
    )
    begin_s = time.monotonic()
    assert ask(bucket.server, "GET", path) == (200, b"data" * 100)
    assert time.monotonic() - begin_s >= 0.3
    status, body = ask(bucket.server, "GET", path)
    assert status == 500
    assert b"InternalError" in body
    assert ask(bucket.server, "GET", path)[0] == 200
    with pytest.raises(http.client.IncompleteRead):
        ask(bucket.server, "GET", path)
    spoilt = ask(bucket.server, "GET", path)[1]
    assert sum(a != b for a, b in zip(spoilt, b"data" * 100, strict=True)) == 1
    status, body = ask(bucket.server, "GET", path)
    assert status == 403
    assert KEY_ID.encode() in body
    bucket.server.faults()
    assert ask(bucket.server, "GET", path)[0] == 200


def test_a_share_of_requests_fails_in_the_same_order_each_time(bucket: Bucket) -> None:
    def statuses() -> list[int]:
        bucket.server.faults(rule("503", share=0.5, seed=3))
        return [ask(bucket.server, "GET", f"/{bucket.name}")[0] for _ in range(12)]

    assert statuses() == statuses()
    assert set(statuses()) == {200, 503}


def test_a_fault_may_be_of_one_process_only(bucket: Bucket) -> None:
    bucket.server.faults(rule("403", key_id="SOMEBODY"))
    other = SIGNED["Authorization"].replace(KEY_ID, "SOMEBODY")
    assert ask(bucket.server, "GET", f"/{bucket.name}")[0] == 200
    assert ask(bucket.server, "GET", f"/{bucket.name}", Authorization=other)[0] == 403
    assert [one.key_id for one in bucket.server.requests()] == [KEY_ID, "SOMEBODY"]


@pytest.mark.parametrize(("when", "happens"), [("before", False), ("after", True)])
def test_a_process_dies_at_a_request(bucket: Bucket, when: str, happens: bool) -> None:
    program = (
        "import http.client, sys; sys.stdin.readline();"
        f" http.client.HTTPConnection('127.0.0.1', {bucket.server.port}, timeout=20)"
        f".request('PUT', '/{bucket.name}/key', b'data'); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as child:
        fault: Fault = "kill before" if when == "before" else "kill after"
        bucket.server.faults(rule(fault, process=child.pid))
        assert child.stdin is not None
        child.stdin.write(b"go\n")
        child.stdin.flush()
        assert child.wait(30) == -signal.SIGKILL
    assert (bucket.get("key") is not None) == happens
