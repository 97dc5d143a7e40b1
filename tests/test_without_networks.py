"""What needs no network needs no torch."""

from __future__ import annotations

import os
import re
import site
import subprocess
import sys
from pathlib import Path

import pytest

# With them go what they bring along, and CuPy, which is of use with torch only.
ABSENT = re.compile(
    r"(torch|torchvision|timm|openvino|cupy\w*|cupyx|triton|nvidia|functorch|torchgen|huggingface_hub)"
    r"(-.*|\..*)?"
)
TOP = Path(__file__).parents[1]


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder of packages without networks: links to those that are installed."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for place in site.getsitepackages():
        for entry in Path(place).iterdir():
            link = folder / entry.name
            if not ABSENT.fullmatch(entry.name) and not link.exists():
                link.symlink_to(entry)
    return folder


@pytest.mark.skipif(os.name == "nt", reason="Windows: links need a privilege")
@pytest.mark.thorough
def test_spikes_parameters_and_their_classifiers_work_without_torch(
    bare: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        # Without site-packages, and thereby without what an editable installation adds.
        [sys.executable, "-S", str(TOP / "tests" / "without_networks.py")],
        cwd=work,
        env={**os.environ, "PYTHONPATH": f"{TOP}{os.pathsep}{bare}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
