"""Locks between processes: held by one at a time, and gone with the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from toptune.machine.locks import held, is_held

HOLD = """
import sys, time
from pathlib import Path
from toptune.machine.locks import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_seen_from_another_process_and_gone_when_that_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "deep" / "x.lock"
    assert not is_held(lock)
    code = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(code, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_held(lock)
        with held(lock, wait=False) as ours:
            assert not ours
        holder.kill()
    assert not is_held(lock)
    with held(lock) as ours:
        assert ours
        assert is_held(lock)
    assert not is_held(lock)
