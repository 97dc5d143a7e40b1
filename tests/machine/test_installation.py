"""Files that are no Python are found in a checkout and in an installed wheel alike."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from toptune.errors import ToptuneError
from toptune.machine import installation

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without a network."""
    pytest.importorskip("hatchling", reason="hatchling: not installed")
    out = tmp_path_factory.mktemp("wheel")
    # Straight from the backend: pip would want a network or the build requirements' exact versions.
    program = f"from hatchling.build import build_wheel; build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def relative(folder: Path, pattern: str = "*") -> set[str]:
    return {
        p.relative_to(folder).as_posix()
        for p in folder.rglob(pattern)
        if p.is_file() and "__pycache__" not in p.parts
    }


def test_checkout_has_them_beside_the_package() -> None:
    assert installation.store_contract() == ROOT / "store"
    assert (installation.store_contract() / "schema.json").is_file()
    assert installation.kernels() == ROOT / "kernels"
    assert list(installation.kernels().glob("*.cu"))


def test_wheel_carries_every_kernel_and_the_whole_contract(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("kernels", "store"):
        wanted = {f"toptune/_assets/{folder}/{name}" for name in relative(ROOT / folder)}
        assert wanted
        assert wanted <= names
    assert "toptune/_assets/store/golden.zarr/zarr.json" in names
    assert any(n.startswith("toptune/_assets/kernels/") and n.endswith(".cu") for n in names)
    assert {
        "toptune/py.typed",
        "toptune/reports/templates/page.html",
        "toptune/reports/templates/page.css",
    } <= {*names}
    assert {"toptune/sweeps/grids/table1.toml", "toptune/sweeps/grids/table2.toml"} <= names
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/", "kernels/", "store/"))]
    # Nothing that ran here travels along.
    assert not [n for n in names if "__pycache__" in n or n.endswith((".nbi", ".nbc", ".pyc"))]


def test_installed_wheel_finds_them_inside_the_package(wheel: Path, tmp_path: Path) -> None:
    install = ("pip", "install", "--no-deps", "--no-index", "--target", str(tmp_path), str(wheel))
    subprocess.run([sys.executable, "-m", *install], check=True, capture_output=True)
    program = (
        "import toptune, toptune.machine.installation as a\n"
        "assert a.kernels().parts[-3:] == ('toptune', '_assets', 'kernels'), a.kernels()\n"
        "assert list(a.kernels().glob('*.cu'))\n"
        "print(toptune.__file__, a.kernels(), a.store_contract(), toptune.__version__, sep='\\n')\n"
    )
    # -I, and first in the path, so that it is not the checkout that answers.
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{program}",
        ],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    module, kernels, contract, version = done.stdout.splitlines()
    assert Path(module) == tmp_path / "toptune" / "__init__.py"
    assert relative(Path(kernels), "*.cu") == relative(ROOT / "kernels", "*.cu")
    assert relative(Path(contract)) == relative(ROOT / "store")
    assert wheel.name.startswith(f"toptune-{version}-")


def test_installation_without_them_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "_PACKAGE", tmp_path / "toptune")
    with pytest.raises(ToptuneError, match="lacks its kernels/ folder: install it again"):
        installation.kernels()


# --- what a result was computed with

DESCRIBED = """
import platform, sys
import torch

started = []
sys.addaudithook(lambda event, given: event == "subprocess.Popen" and started.append(given))
from toptune.machine.installation import describe_environment

told = describe_environment("cpu")["platform"]
assert not started, started
assert told == platform.platform(), (told, platform.platform())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux: the system is named otherwise")
def test_the_system_is_named_without_starting_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DESCRIBED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
