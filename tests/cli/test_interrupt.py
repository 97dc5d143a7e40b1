"""Ctrl-C ends the work wherever it is pressed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows: it sends no signals")
# Python drops what is raised in a weak reference's callback and in a finaliser.
PLACES = {
    "callback": "one = Thing(); kept = weakref.ref(one, lambda _: press()); del one",
    "finaliser": "Thing.__del__ = lambda _: press(); Thing()",
    "loop": "press()",
}
PROGRAM = """
import os, signal, time, weakref
from toptune.cli import app

class Thing: pass

def press():
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000): pass

def work():
    {place}
    time.sleep(60)
    print("went on")

app.app = work
app.main()
"""


@pytest.mark.parametrize("place", PLACES)
def test_the_first_one_ends_the_work_wherever_it_falls(place: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(place=PLACES[place])],
        capture_output=True,
        text=True,
        timeout=30,  # half of what the work would take
        check=False,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "interrupted; what was published is kept\n"
