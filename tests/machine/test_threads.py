"""Compiled functions and the cache of their machine code; the thread that writes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from toptune.machine.threads import BackgroundWriter

SCRIPT = """
from toptune.machine.threads import compiled

@compiled()
def plus(a, b):
    return a + b

print(plus(1, 2), len(plus.nopython_signatures), sum(plus.stats.cache_hits.values()))
"""


def run(script: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, script], env={**os.environ, **environment}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_second_process_finds_the_machine_code_of_the_first(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert [run(script, **cache) for _ in range(2)] == ["3 1 0", "3 1 1"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no folder that nobody can write into")
def test_without_a_place_for_the_cache_functions_are_compiled_in_every_process(
    tmp_path: Path,
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # A file system in which nobody, not even root, can make folders.
    nowhere = {"HOME": "/proc/self/fdinfo", "XDG_CACHE_HOME": "/proc/self/fdinfo"}
    locators = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserWideCacheLocator"}
    assert [run(script, **nowhere, **locators) for _ in range(2)] == ["3 1 0", "3 1 0"]


# --- the thread that writes: in order, one piece at a time, and no error gets lost


def fail(error: BaseException) -> None:
    raise error


def test_writing_goes_on_beside_other_work_in_order_and_one_piece_at_a_time() -> None:
    done: list[int] = []
    at_once = threading.Semaphore(1)
    go = threading.Event()

    def write(number: int) -> None:
        assert at_once.acquire(blocking=False)
        assert go.wait(30)
        done.append(number)
        at_once.release()

    with BackgroundWriter() as writer:
        writer.submit("a", partial(write, 0))
        assert done == []  # the caller goes on before it is written
        go.set()
        for number in range(1, 5):
            writer.submit("b", partial(write, number))
            assert done[:number] == list(range(number))  # all before it are through
        writer.wait()
        assert done == [0, 1, 2, 3, 4]
        assert writer.take_failures() == []


def test_errors_are_told_once_with_their_owner_and_stop_nothing() -> None:
    written: list[str] = []
    error = OSError("disk full")
    with BackgroundWriter() as writer:
        writer.submit("first", partial(fail, error))
        writer.submit("second", partial(written.append, "second"))
        (failed,) = writer.take_failures()
        assert (failed.owner, failed.error) == ("first", error)
        writer.wait()
        assert writer.take_failures() == []
    assert written == ["second"]


def test_leaving_by_an_error_waits_for_what_is_being_written(
    caplog: pytest.LogCaptureFixture,
) -> None:
    written: list[str] = []

    def slow(name: str) -> None:
        time.sleep(0.05)
        written.append(name)

    def interrupted(write: partial[None]) -> None:
        with BackgroundWriter() as writer:
            writer.submit("slow", write)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(partial(slow, "slow"))
    assert written == ["slow"]
    assert not caplog.records
    # An error of the writing does not hide the one that led out, and is not lost.
    with caplog.at_level(logging.ERROR), pytest.raises(KeyboardInterrupt):
        interrupted(partial(fail, OSError("disk full")))
    assert [r.getMessage() for r in caplog.records] == ["slow failed: disk full"]


def test_a_deeper_writer_lets_so_many_wait_and_keeps_their_order() -> None:
    go = threading.Event()
    done: list[int] = []

    def piece(number: int) -> None:
        go.wait()
        done.append(number)
        if number == 1:
            raise OSError("disk")

    with BackgroundWriter(3) as writer:
        for number in range(3):
            writer.submit(f"owner {number}", partial(piece, number))
        assert done == []  # none of the three was waited for
        threading.Timer(0.05, go.set).start()
        writer.submit("owner 3", partial(piece, 3))
        assert done  # there was no room for a fourth before the first was done
        writer.wait()
        assert done == [0, 1, 2, 3]
        assert [(f.owner, str(f.error)) for f in writer.take_failures()] == [("owner 1", "disk")]
