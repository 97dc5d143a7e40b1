"""What a worker refuses and tells, without Dask."""

from __future__ import annotations

import logging
import os
import pickle
import time
from dataclasses import replace
from pathlib import Path

import pytest

from toptune.cluster import worker
from toptune.cluster.worker import Answer, clock_problem, identity, kept, refuse_clock, work
from toptune.errors import InputError, InputErrors, StorageError, ToptuneError


def call(shared: str, own: str) -> str:
    """Stand for a function of toptune."""
    if own == "warn":
        logging.getLogger("toptune.somewhere").warning("%s is dead", shared)
    if own == "several":
        raise InputErrors([f"{shared} is wrong", "that, too"])
    if own == "unread":
        try:
            raise OSError(5, "no answer")
        except OSError as error:
            raise InputError(f"{shared}: cannot be read") from error
    if own == "full":
        raise StorageError(f"{shared} is full")
    return f"{shared} {own}"


def ask(own: str, caller: worker.Identity | None = None) -> Answer:
    function = f"{__name__}:{call.__name__}"
    return work(caller or identity(), function, pickle.dumps("it"), pickle.dumps(own))


@pytest.fixture(autouse=True)
def _to_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or __import__(__name__))


def test_results_warnings_and_errors_come_back_as_plain_values() -> None:
    assert pickle.loads(pickle.dumps(ask("well"))).value() == "it well"
    assert ask("warn").warnings == ("it is dead",)
    with pytest.raises(InputErrors) as raised:
        pickle.loads(pickle.dumps(ask("several"))).value()
    assert raised.value.problems == ("it is wrong", "that, too")


@pytest.mark.parametrize("own", ["unread", "full"])
def test_what_may_pass_is_raised_for_dask_to_try_again(own: str) -> None:
    with pytest.raises(ToptuneError, match="it"):
        ask(own)


def test_another_toptune_is_refused_before_anything_is_read() -> None:
    old = replace(identity(), version="0.0")
    other = replace(identity(), code="0" * 64)
    for caller, told in ((old, f"process {os.getpid()} has toptune"), (other, "of other files")):
        answer = work(caller, "nowhere:nothing", b"no pickle", b"")
        with pytest.raises(InputError, match=told):
            answer.value()


def test_other_packages_are_told() -> None:
    mine = identity()
    numpy = dict(mine.packages)["numpy"]
    theirs = replace(mine, packages=(*mine.packages[1:], ("numpy", "1.0")))
    assert mine.packages_of(theirs) == [f"numpy 1.0 (caller: {numpy})"]
    assert mine.packages_of(mine) == []


def test_a_clock_is_compared_with_the_file_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_clock(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert clock_problem("it", 29.0) is None
    assert clock_problem("it", -31.0) == "the clock of it is 31 s behind: have both set by NTP"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 60)
    with pytest.raises(InputError, match="s ahead: have both set by NTP"):
        refuse_clock(tmp_path)


def test_what_is_kept_goes_with_its_job() -> None:
    made: list[str] = []
    for job in ("a", "a", "b", "a"):
        assert kept(job, "engine", lambda job=job: made.append(job) or job) == job  # type: ignore[misc,func-returns-value]  # a lambda with a default
    assert made == ["a", "b", "a"]
