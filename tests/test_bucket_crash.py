"""Extractions into a bucket that are killed at any request lose and spoil nothing.

`TOPTUNE_KILLS=200 pytest tests/test_bucket_crash.py` kills so often; `TOPTUNE_SEED` elsewhere.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from needs import package

DRIVER = Path(__file__).with_name("bucket_driver.py")
KILLS = int(os.environ.get("TOPTUNE_KILLS", "5"))
SEED = os.environ.get("TOPTUNE_SEED", "0")


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork: processes are forked")
def test_killed_extractions_leave_whole_groups_and_end_as_if_never_killed(tmp_path: Path) -> None:
    for name in ("moto", "obstore"):
        package(name)
    paths = os.pathsep.join([str(DRIVER.parents[1]), str(DRIVER.parent)])
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(tmp_path), str(KILLS), SEED],
        check=False, capture_output=True, text=True, timeout=300 + 60 * KILLS,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["wrong"] is None, report["wrong"]
    for job in ("extract", "extract anew"):
        # One that ends early may end before its turn.
        assert KILLS * 0.6 <= report[job]["killed"] <= KILLS
        assert report[job]["requests"] > 50
