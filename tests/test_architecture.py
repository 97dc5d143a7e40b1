"""The one-way flow: a stage imports only earlier stages, and starting up loads nothing heavy."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import toptune

PACKAGE = Path(__file__).parents[1] / "toptune"

# Every module, from the first to the last; within a line, too, only to the left.
STAGES = (
    "errors params",
    "threads background hardware assets cuda progress fingerprint hdf5_guard durable locks",
    "html_page",
    "spiketrains facts",
    "devices peak_text mat_elements peak_mat peak_trains spike_csv spike_npz spikefiles",
    "mcs_chunks mcs_checks mcs mcs_format recording",
    "filters spikes_cpu ptsd_walk spikes detection",
    "filters_cuda noise_cuda spikes_cuda detection_cuda finding",
    "binning windows cuda_launch rendering drawings thumbnails",
    "electrode_trains interval_valley bursts network_bursts variability synchrony burst_parameters",
    "weights networks backbones",
    "folding torch_network openvino_network features describing parameter_views",
    "featuretable zarr_guard zarr_groups provenance store store_session store_check",
    "parameter_tables extraction_job extraction",
    "heads heads.checks heads.selection heads.calibration",
    "heads.memory heads.kernel heads.views heads.nystrom heads.closed_form heads.direct",
    "heads.pairs heads.nested",
    "heads.torch_kernel heads.torch_algebra heads.torch_folds heads.torch_direct",
    "heads.conjugate_gradients heads.iterative heads.library heads.solvers",
    "heads.falkon heads.falkon_tuning",
    "heads.logistic heads.logistic_folds heads.logistic_tuning",
    "heads.mlp_network heads.mlp_cpu heads.mlp_folds heads.mlp heads.mlp_tuning",
    "folds reliability scores permutations task evaluation",
    "run_folder novelty model environment confusion_plot metrics run_tables",
    "run_reading report_setup report_scores report_devices report_beside report",
    "fit",
    "model_backbones predictions predict_tables prediction why why_page",
    "mcs_writer simulate_network simulate_traces simulate",
    "electrode_map overview overview_plot",
    "demo",
    "bench_stages bench",
    "doctor_check doctor_machine doctor_gpu doctor_weights doctor check_tables",
    "grid_options grid_source grid sweep_plan sweep_features sweep_results sweep",
    "paper_figures sweep_tables sweep_plots sweep_report",
    "printing sweep_printing",
    "commands commands.options commands.recordings commands.extracting commands.training",
    "commands.sweeping commands.reporting commands.checking",
    "cli",
)
ORDER = " ".join(STAGES).split()

# The package looks its public names up in all stages when they are used; and heads/__init__ its
# classes, which tests and callers name by the head.
LOOKS_UP = {"", "heads"}

HEAVY = (
    "numpy", "torch", "torchvision", "openvino", "timm", "sklearn", "scipy", "h5py", "zarr",
    "matplotlib", "numba", "isal", "McsPy", "safetensors", "cupy", "jinja2",
)  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path: Path) -> Iterator[str]:
    """Names of toptune's modules that a file imports anywhere, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: a relative import"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            full = [name for name in inside if name.removeprefix("toptune.") in MODULES]
            full = full or [node.module or ""]
        else:
            continue
        for name in full:
            if name == "toptune" or name.startswith("toptune."):
                yield name.removeprefix("toptune").removeprefix(".")


def test_every_module_has_its_place() -> None:
    assert sorted({*MODULES} - {""}) == sorted(ORDER)


@pytest.mark.parametrize("name", sorted({*MODULES} - LOOKS_UP))
def test_a_stage_imports_only_earlier_stages(name: str) -> None:
    before = set(ORDER[: ORDER.index(name)])
    later = sorted(set(imported(MODULES[name])) - before)
    assert not later, f"toptune.{name} imports later stages: {', '.join(later)}"


def test_the_check_sees_imports_of_every_form(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "import numpy\nimport toptune.cli.app\nfrom toptune import spikes_cpu\n"
        "def f():\n    from toptune.heads.mlp import MLPClassifier\n"
        "from toptune.errors import InputError\nfrom toptune import __version__\n"
    )
    assert sorted(imported(file)) == ["", "cli", "errors", "heads.mlp", "spikes_cpu"]


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


# --- the public names


def test_all_public_names_are_there() -> None:
    names = (
        "Backbone FalkonClassifier FeatureStore HighPass MLPClassifier Picture Ptsd Spikes Windows"
        " __version__ detect_spikes extract leave_one_group_out open_recording predict"
    )
    assert sorted(toptune.__all__) == sorted(names.split())
    for name in toptune.__all__:
        assert getattr(toptune, name) is not None
        assert name in dir(toptune)
    assert toptune.__version__.count(".") == 2


def test_names_that_are_not_there_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'toptune' has no attribute 'nonsense'"):
        toptune.nonsense  # noqa: B018  # the look-up is what is tested
