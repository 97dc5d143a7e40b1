"""Extractions, fits and sweeps that are killed, out of disk or side by side lose and spoil nothing.

`TOPTUNE_KILLS=500 pytest tests/test_crash.py` strikes as often as that; `TOPTUNE_SEED` elsewhere.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).parent / "crash_driver.py"
KILLS = int(os.environ.get("TOPTUNE_KILLS", "10"))
SEED = os.environ.get("TOPTUNE_SEED", "0")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork: processes are forked")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one program found that forks all processes, since importing takes longer than a kill."""
    paths = [str(DRIVER.parents[1]), str(DRIVER.parent)]
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(tmp_path_factory.mktemp("crash")), str(KILLS), SEED],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] is None, found["wrong"]
    return found


def test_struck_processes_lose_and_spoil_nothing(report: dict[str, Any]) -> None:
    assert sum(report["kills"].values()) >= KILLS


def test_processes_share_a_store_and_readers_see_only_what_is_whole(report: dict[str, Any]) -> None:
    assert report["together"]["processes"] == 3
    assert report["together"]["reads"] > 0


def test_full_disks_end_in_one_line_and_nothing_is_lost(report: dict[str, Any]) -> None:
    if report["full disks"] is None:
        pytest.skip("root: mounting a small file system needs its rights")
    assert all(tries > 0 for tries in report["full disks"].values())
    assert len(report["full disks"]) == 3
