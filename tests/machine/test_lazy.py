"""The public names of packages, which are imported when they are first used."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

PACKAGES = (
    "toptune.machine",
    "toptune.recordings",
    "toptune.spikes",
    "toptune.pictures",
    "toptune.backbones",
)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_gives_every_name_it_promises_and_no_other(name: str) -> None:
    package = import_module(name)
    for public in package.__all__:
        assert getattr(package, public) is not None
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing'"):
        _ = package.nothing


def test_importing_the_packages_loads_no_library() -> None:
    code = f"import sys, {', '.join(PACKAGES)}; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
