"""Compiled functions and the cache of their machine code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
