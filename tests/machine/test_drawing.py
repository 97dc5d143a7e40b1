"""Matplotlib in any environment: it loads, draws, and leaves the environment as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BACKENDS = (
    "module://matplotlib_inline.backend_inline",
    "module://no.such",
    "nonsense",
    "TkAgg",
    "",
)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pictures_are_drawn_whatever_shows_figures_elsewhere(backend: str, tmp_path: Path) -> None:
    program = (
        "import os\n"
        "from toptune.machine.drawing import Figure\n"
        "figure = Figure()\n"
        "figure.add_subplot().plot([1, 2])\n"
        "for name in ('a.png', 'a.svg'):\n"
        "    figure.savefig(name)\n"
        "import matplotlib\n"
        "print(os.environ['MPLBACKEND'], dict.__getitem__(matplotlib.rcParams, 'backend'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()
    # Where it can be used, what a notebook's own drawings are shown by is as it was.
    before, after = done.stdout.removesuffix("\n").split(" ", 1)
    assert before == backend
    if backend in ("module://no.such", "TkAgg"):
        assert after.casefold() == backend.casefold()
