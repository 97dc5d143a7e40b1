"""What doctor says of machines that lack one thing or the other."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from results import Run

from toptune.backbones.names import PAPER_BACKBONES
from toptune.backbones.processor import Half
from toptune.cli import machine as doctor
from toptune.cli.machine import Check, Report, print_report
from toptune.errors import ToptuneError
from toptune.machine import installation

REAL_IMPORT = importlib.import_module


@pytest.fixture(scope="module")
def here() -> Report:
    return doctor.examine()


def only(checks: Any, name: str) -> Check:
    (found,) = [check for check in checks if check.name == name]
    assert isinstance(found, Check)
    return found


def break_import(
    monkeypatch: pytest.MonkeyPatch, name: str, error: Exception | None = None
) -> None:
    def broken(wanted: str) -> ModuleType:
        if wanted == name:
            raise error or ModuleNotFoundError(f"No module named {name!r}")
        return REAL_IMPORT(wanted)

    monkeypatch.setattr(importlib, "import_module", broken)


def test_an_environment_that_runs_the_tests_is_complete_for_the_cpu(here: Report) -> None:
    assert here.cpu_complete
    assert [check for check in here.checks if check.state == "missing"] == []
    assert only(here.checks, "torch").found == torch.__version__.partition("+")[0]
    assert only(here.checks, "OpenVINO's devices").state == "ok"
    assert only(here.checks, "kernels/").found == str(installation.kernels())


def test_every_package_the_project_needs_is_looked_at(here: Report) -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    listed = project.partition("dependencies = [")[2].partition("\n]")[0]
    names = {line.split('"')[1].partition(">")[0].lower() for line in listed.splitlines()[1:]}
    assert len(names) > 12
    # What is installed may be older than the checkout's own list.
    required = [r for r in metadata.requires("toptune") or [] if "extra ==" not in r]
    installed = {r.partition(">")[0].lower() for r in required}
    assert {check.name.lower() for check in here.checks} >= names & installed


@pytest.mark.parametrize("name", ["isal", "numba", "McsPy"])
def test_a_package_that_cannot_be_imported_is_missing(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    break_import(monkeypatch, name, OSError("libfoo.so.3: cannot open\nshared object file"))
    found = {check.name.lower(): check for check in doctor._packages()}
    broken = found["mcspydatatools" if name == "McsPy" else name]
    assert broken.state == "missing"
    assert "it cannot be imported: libfoo.so.3: cannot open shared object file" in broken.found
    assert broken.remedy is not None
    assert broken.remedy.lower().startswith(f"pip install --upgrade '{broken.name.lower()}>=")
    assert not Report(tuple(found.values())).cpu_complete


def test_a_package_that_is_too_old_or_not_there_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"zarr": "3.1.2", "numba": "0.60"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    wanted = ["zarr>=3.1.3", "numba>=0.60", "no-such>=1.7", "cupy-cuda13x>=14; extra == 'gpu'"]
    monkeypatch.setattr(metadata, "requires", lambda _: wanted)
    found = list(doctor._packages())
    assert [check.state for check in found] == ["missing", "ok", "missing"]
    assert found[0].found == "3.1.2, which is not >=3.1.3"
    assert found[0].remedy == "pip install --upgrade 'zarr>=3.1.3'"
    assert found[2].found == "not installed"


# Of every package in pyproject.toml, extras included, the module that it brings.
BROUGHT = {
    "McsPyDataTools": "McsPy", "pillow": "PIL", "scikit-learn": "sklearn", "cupy-cuda13x": "cupy",
    "import-linter": "importlinter", "pytest-xdist": "xdist",
    "pytest-benchmark": "pytest_benchmark", "mkdocs-material": "material",
}  # fmt: skip


def listed_packages() -> list[str]:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    project = tomllib.loads(text)["project"]
    extras = project["optional-dependencies"].values()
    return [*project["dependencies"], *(one for extra in extras for one in extra)]


@pytest.mark.parametrize("text", sorted(set(listed_packages())))
def test_no_package_that_is_there_is_called_missing(text: str) -> None:
    wanted = Requirement(text)
    module = BROUGHT.get(wanted.name, wanted.name.replace("-", "_"))
    found = doctor._package(wanted.name, wanted.specifier)
    if importlib.util.find_spec(module) is None:
        assert found.state == "missing"
        return
    if doctor.version_of(wanted.name) is not None:
        assert doctor.module_of(wanted.name) == module
    assert (found.state, found.remedy) == ("ok", None), found.found


@pytest.mark.parametrize("text", sorted(set(listed_packages())))
@pytest.mark.parametrize("written", [str.upper, lambda name: name.replace("-", "_")])
def test_however_a_package_is_written_it_brings_the_same_module(text: str, written: Any) -> None:
    name = Requirement(text).name
    assert doctor.module_of(written(name)) == doctor.module_of(name)


@pytest.mark.parametrize(
    ("name", "module"),
    [("PyYAML", "yaml"), ("opencv_python", "cv2"), ("opencv-python-headless", "cv2"),
     ("Scikit.Learn", "sklearn"), ("my-package", "my_package")],
)  # fmt: skip
def test_modules_that_are_called_otherwise_are_known(name: str, module: str) -> None:
    assert doctor.module_of(name) == module


@pytest.mark.parametrize(
    ("version", "state", "found"),
    [
        ("4.2", "ok", "4.2"),
        (None, "ok", "installed, without metadata"),
        ("0.9", "missing", "0.9, which is not >=1.0"),
    ],
)
def test_a_package_without_metadata_is_found_by_its_module(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    version: str | None,
    state: str,
    found: str,
) -> None:
    text = "" if version is None else f"__version__ = {version!r}\n"
    (tmp_path / "copied_here.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "copied_here", raising=False)
    check = doctor._package("copied-here", Requirement("copied-here>=1.0").specifier)
    assert (check.state, check.found) == (state, found)


def test_packages_of_extras_are_optional_and_those_of_tests_no_news(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = ["numpy>=2.0; extra == 'formats'", 'no-such>=1; extra == "formats"',
              "pytest; extra == 'test'", "torch>=2.5", "tomli; python_version < '3'"]  # fmt: skip
    monkeypatch.setattr(metadata, "requires", lambda _: wanted)
    there, absent = doctor._extras()
    assert (there.part, there.name, there.state) == ("extra", "numpy", "ok")
    assert (absent.state, absent.remedy) == ("absent", "pip install 'toptune[formats]'")
    assert [check.name for check in doctor._packages()] == ["torch"]


def test_without_packaging_that_is_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    break_import(monkeypatch, "packaging.requirements")
    (check,) = doctor._packages()
    assert (check.name, check.state, check.remedy) == (
        "packaging",
        "missing",
        "pip install packaging",
    )


def test_files_that_lack_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "LAYOUT.md").touch()
    monkeypatch.setattr(installation, "store_contract", lambda: tmp_path)

    def lost() -> Path:
        raise ToptuneError("this installation of toptune lacks its kernels/ folder")

    monkeypatch.setattr(installation, "kernels", lost)
    checks = list(doctor._assets())
    assert only(checks, "store/").found.endswith("but without schema.json, golden.zarr")
    assert only(checks, "kernels/").found.endswith("lacks its kernels/ folder")
    assert {check.state for check in checks} == {"missing"}


@pytest.mark.parametrize(
    ("half", "expected"),
    [
        (
            Half("bfloat16", ("amx_bf16", "other")),
            "bfloat16 (amx_bf16, other): --precision half may be given; float32 is the default",
        ),
        (Half("float16", ()), "float16: --precision half may be given; float32 is the default"),
        (
            None,
            "no units for them (AMX, AVX512-FP16, AVX512-BF16): --precision half is for GPUs",
        ),
    ],
)
def test_units_for_16_bits_are_told_and_never_missing(
    half: Half | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toptune.backbones.processor.half_of_processor", lambda: half)
    found = only(doctor._openvino(), "16 bits")
    assert (found.state, found.found, found.remedy) == ("ok", expected, None)


# --- the GPU path


def fake_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    major, minor = capability
    properties = SimpleNamespace(name="Some GPU", major=major, minor=minor)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (60 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(doctor, "driver_version", lambda: "580.65.06")


@pytest.mark.parametrize(
    ("capability", "float64"),
    [((9, 0), "float64 at full rate"), ((8, 9), "a fraction of the rate")],
)
def test_a_gpu_is_described(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], float64: str
) -> None:
    fake_gpu(monkeypatch, capability)
    checks = list(doctor._torch_gpu())
    assert {check.state for check in checks} == {"ok"}
    described = only(checks, "GPU").found
    assert "Some GPU, compute capability" in described
    assert "60.0 of 80.0 GiB free" in described
    assert float64 in described


def test_torch_without_cuda_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(doctor, "driver_version", lambda: "580.65.06")
    checks = list(doctor._torch_gpu())
    remedy = only(checks, "torch for CUDA").remedy
    assert remedy is not None
    assert "--index-url https://download.pytorch.org/whl/cu" in remedy
    # A GPU that is not used is no fault of the CPU path.
    report = Report(tuple(checks))
    assert report.cpu_complete
    assert not report.gpu_complete


def test_cupy_that_is_not_there_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    break_import(monkeypatch, "cupy")
    (check,) = doctor._cupy()
    assert (check.state, check.found) == ("absent", "No module named 'cupy'")
    assert check.remedy is not None
    assert re.fullmatch(r"pip install 'cupy-cuda\d+x>=[\d.]+'", check.remedy)


def test_every_cuda_source_is_compiled_without_a_gpu() -> None:
    pytest.importorskip("cupy", reason="CuPy: not installed")
    checks = [c for c in doctor._cupy() if c.name.startswith("NVRTC: ")]
    sources = sorted(path.name for path in installation.kernels().glob("*.cu"))
    assert [c.name.removeprefix("NVRTC: ") for c in checks] == sources
    assert [c.found for c in checks if c.state != "ok"] == []


def test_a_source_that_does_not_compile_says_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("cupy", reason="CuPy: not installed")
    (tmp_path / "bad.cu").write_text('extern "C" __global__ void f() { int x = y; }')
    monkeypatch.setattr(installation, "kernels", lambda: tmp_path)
    (check,) = [c for c in doctor._cupy() if c.name == "NVRTC: bad.cu"]
    assert check.state == "absent"
    assert 'identifier "y" is undefined' in check.found


def test_the_driver_is_asked_of_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.driver_version() is None
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!{sys.executable}\nprint('580.65.06')\nprint('580.65.06')\n")
    program.chmod(0o755)
    assert doctor.driver_version() == "580.65.06"
    program.write_text(f"#!{sys.executable}\nprint('NVML: failed')\nraise SystemExit(9)\n")
    assert doctor.driver_version() is None


# --- weights


def test_weights_in_the_caches_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    checks = {check.name: check for check in doctor._weights()}
    assert set(PAPER_BACKBONES) < set(checks)
    assert checks["cache of torchvision"].found == str(tmp_path)
    assert checks["mobilenet_v2"].state == "absent"
    assert checks["mobilenet_v2"].remedy is not None
    # The file that torchvision itself would look for.
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "mobilenet_v2-b0353104.pth").touch()
    checks = {check.name: check for check in doctor._weights()}
    assert checks["mobilenet_v2"].state == "ok"
    assert checks["mobilenet_v2"].remedy is None


def test_the_command_that_fetches_weights_is_python_that_calls_the_product() -> None:
    command = doctor._fetch("mobilenet_v2")
    program = command.partition('"')[2].removesuffix('"')
    assert compile(program, "", "exec")
    # All but the download.
    imports = program.rpartition(";")[0]
    names: dict[str, Any] = {}
    exec(imports, names)
    assert {"Backbone", "load_backbone"} <= set(names)


# --- what is printed


def report_of(state: Any) -> Report:
    return Report(
        (
            Check(part="cpu", name="thing", state=state, found="[1.2] of it", remedy="pip [x]"),
            Check(part="gpu", name="GPU", state="absent", found="none"),
        )
    )


def test_the_table_shows_everything_as_it_is(
    capsys: pytest.CaptureFixture[str], here: Report
) -> None:
    print_report(report_of("missing"))
    out = capsys.readouterr().out
    assert "MISSING" in out
    assert "[1.2] of it" in out
    assert "thing: pip [x]" in out
    assert "CPU path: NOT complete" in out
    print_report(here)
    out = capsys.readouterr().out
    assert all(check.name in out for check in here.checks)


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("absent", 0), ("missing", 1)])
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_the_exit_code_says_whether_the_cpu_path_is_complete(
    monkeypatch: pytest.MonkeyPatch, run: Run, state: str, code: int, options: tuple[str, ...]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: report_of(state))
    ran = run("doctor", *options)
    assert ran.code == code
    if options:
        told = json.loads(ran.out)
        assert told["cpu_complete"] == (code == 0)
        assert told["checks"][0]["found"] == "[1.2] of it"


def test_json_is_pure_whatever_a_library_prints(tmp_path: Path) -> None:
    (tmp_path / "falkon.py").write_text("print('hello from a library')\n")
    program = (
        "import sys; from toptune.cli import app, machine as doctor\n"
        "doctor.LOOKS = (doctor._toptune, doctor._falkon)\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "sys.argv = ['toptune', 'doctor', '--json']\n"
        "app.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    told = json.loads(done.stdout)
    assert done.returncode == 0
    assert "hello from a library" in done.stderr
    assert {c["state"] for c in told["checks"] if c["name"] == "falkon library"} == {"ok"}


def test_nothing_of_the_report_is_a_surprise_to_its_schema(here: Report) -> None:
    told = here.to_json()
    assert json.loads(json.dumps(told)) == told
    assert {check["part"] for check in told["checks"]} <= {"cpu", "gpu", "weights", "extra"}
    assert [c for c in told["checks"] if c["state"] == "ok" and c["remedy"]] == []
    assert doctor.version_of("no-such-package") is None
