"""Starting up loads nothing heavy, the library names no flags, and the public names are there.

import-linter holds the layers (pyproject.toml).
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import toptune

HEAVY = (
    "numpy", "torch", "torchvision", "openvino", "timm", "sklearn", "scipy", "h5py", "zarr",
    "matplotlib", "numba", "isal", "McsPy", "safetensors", "cupy", "jinja2",
    "neo", "pynwb",
)  # fmt: skip


def loaded_by(code: str) -> set[str]:
    """Modules in sys.modules of a fresh interpreter after some code."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return set(names)


@pytest.mark.parametrize(
    "code", ["import toptune", "import toptune.cli.app", "import toptune.params"]
)
def test_starting_up_loads_nothing_heavy(code: str) -> None:
    loaded = loaded_by(code)
    assert "toptune" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_help_loads_nothing_heavy() -> None:
    loaded = loaded_by(
        "import toptune.cli.app\ntry:\n    toptune.cli.app.app(['extract', '--help'])\n"
        "except SystemExit as e:\n    assert e.code == 0"
    )
    assert "toptune.cli.app" in loaded
    assert loaded.isdisjoint(HEAVY)


# --- the library does not speak for the command line

# These write options of a command line to be run again, and of another program.
WRITES_OPTIONS = {"params.py": "command_words", "machine/cuda.py": "NVIDIA's compiler"}


def strings_of(path: Path) -> list[str]:
    """All text in a module's code, documentation included."""
    tree = ast.parse(path.read_text("utf-8"))
    return [
        n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]


def test_the_library_names_parameters_and_no_flags() -> None:
    package = Path(toptune.__file__).parent
    modules = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    library = {n for n in modules if not n.startswith(("cli/", "_assets/"))} - {*WRITES_OPTIONS}
    assert len(library) > 50
    assert {*WRITES_OPTIONS} < {*modules}
    named = {
        name: [text for text in strings_of(modules[name]) if re.search(r"(?<![\w-])--[a-z]", text)]
        for name in library
    }
    assert {name: texts for name, texts in named.items() if texts} == {}


def imports_of(path: Path) -> set[str]:
    """All modules that a module imports, and what it takes from them, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{one.name}" for one in node.names)}
    return found


def test_matplotlib_is_imported_in_one_place_and_pyplot_for_who_draws_from_python() -> None:
    package = Path(toptune.__file__).parent
    drawing = {
        path.relative_to(package).as_posix(): names
        for path in package.rglob("*.py")
        if (names := {n for n in imports_of(path) if n.split(".")[0] == "matplotlib"})
    }
    assert set(drawing) == {"machine/drawing.py"}
    with_pyplot = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if any(call in path.read_text("utf-8") for call in ("import pyplot", "new_axes("))
    ]
    # It defines `new_axes`, and those figures are nobody's but the caller's.
    assert sorted(with_pyplot) == ["machine/drawing.py", "plot.py"]


# --- the public names


def test_all_public_names_are_there() -> None:
    names = (
        "Backbone Compute FalkonClassifier FeatureStore HighPass InputError MLPClassifier Picture"
        " Ptsd RECOMMENDED_PICTURES SpikeSettings SpikeTrains Spikes ToptuneError Windows"
        " __version__ detect_recording detect_spikes explain extract fit leave_one_group_out"
        " open_recording plot predict read_devices report simulate stream sweep"
    )
    assert sorted(toptune.__all__) == sorted(names.split())
    documented = (Path(__file__).parents[1] / "docs" / "api.md").read_text("utf-8")
    for name in toptune.__all__:
        assert getattr(toptune, name) is not None
        assert name in dir(toptune)
        assert name == "__version__" or f"::: toptune.{name}" in documented
    assert toptune.__version__.count(".") == 2


def test_names_that_are_not_there_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'toptune' has no attribute 'nonsense'"):
        _ = toptune.nonsense  # type: ignore[attr-defined]
