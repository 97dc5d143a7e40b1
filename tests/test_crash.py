"""Extractions and fits that are killed, interrupted or out of disk lose and spoil nothing.

`TOPTUNE_KILLS=500 pytest tests/test_crash.py` strikes as often as that; `TOPTUNE_SEED` elsewhere.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).parent / "crash_driver.py"
KILLS = int(os.environ.get("TOPTUNE_KILLS", "24"))
SEED = os.environ.get("TOPTUNE_SEED", "0")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


def drive(*arguments: str) -> dict[str, dict[str, int]]:
    paths = [str(DRIVER.parents[1]), str(DRIVER.parent)]
    done = subprocess.run(
        [sys.executable, str(DRIVER), *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    return report


def test_struck_processes_lose_and_spoil_nothing(tmp_path: Path) -> None:
    report = drive(str(tmp_path), str(KILLS), SEED)
    assert report["wrong"] is None, report["wrong"]
    assert sum(report["strikes"].values()) >= KILLS
