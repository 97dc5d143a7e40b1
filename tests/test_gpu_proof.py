"""benchmarks/gpu_proof.py: all its steps on the CPU, and that it goes on whatever happens."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from gpu_proof import FAULT, STEPS
from gpu_steps import Job, gpu_tests, read_junit, watching
from needs import missing, package
from results import read_json

pytestmark = pytest.mark.thorough

TOP = Path(__file__).parents[1]
PROGRAM = TOP / "benchmarks" / "gpu_proof.py"

#: What each step measures, on the CPU, too.
PARTS = {
    "versions": {"installed", "gpu", *(f"kernels of {k}" for k in ("highpass", "ptsd", "sums"))},
    "ceilings": {"copy on the device, read and written", "product float16", "launch"},
    "spikes": {"filter", "means", "noise", "noise by MAD", "PTSD", "PTSD at 1 SD",
               "subnormal numbers", "empty arrays through DLPack", "memory that runs out"},
    "network": {"toptune half", "toptune float32", "torchvision eager, float32",
                "torchvision eager, float16", "depthwise convolutions", "top kernels"},
    "tests": {"tests/test_gpu_spikes.py", "tests/machine/test_torch_kernels.py"},
    "pass": {"one device, tiny", "one device, tiny_too", "all views"},
    "heads": {"Falkon", "MLP, 2 epochs", "float64", "Falkon tuned"},
    "commands": {"simulate", "extract", "sweep"},
    "sanitizer": {"none"},
}  # fmt: skip


class Proof(NamedTuple):
    """What a run printed and wrote."""

    code: int
    printed: str
    folder: Path

    @property
    def table(self) -> str:
        return (self.folder / "table.md").read_text("utf-8")


def prove(folder: Path, *options: str, faults: str = "") -> Proof:
    command = [sys.executable, str(PROGRAM), "--out", str(folder), "--dry", *options]
    environment = {**os.environ, FAULT: faults}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=folder.parent
    )
    assert done.stderr == ""
    return Proof(done.returncode, done.stdout, folder)


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Proof:
    if shutil.which("g++") is None:
        missing("g++", "builds the kernels for the processor")
    package("cupy")  # whose NVRTC compiles the kernels
    # On busy cores it takes longer than a minute.
    return prove(tmp_path_factory.mktemp("proof"), "--limit", "900", "--step-limit", "300")


@pytest.mark.parametrize("name", STEPS)
def test_every_step_writes_what_it_measured(proof: Proof, name: str) -> None:
    # Refuses NaN and infinities.
    found = read_json(proof.folder / f"{name}.json")
    assert found["problems"] == {}
    assert (found["step"], found["dry"], found["complete"]) == (name, True, True)
    assert found["parts"].keys() >= PARTS[name]
    assert found["rows"]
    # No figure of a dry run is judged.
    assert {row["met"] for row in found["rows"]} == {None}
    assert all(row.keys() == {"what", "value", "unit", "wanted", "met"} for row in found["rows"])


def test_the_table_comes_last_and_says_that_nothing_is_of_a_gpu(proof: Proof) -> None:
    assert proof.code == 0
    head, _, table = proof.printed.partition("\n\n")
    assert table.startswith("DRY RUN on the CPU")
    assert proof.table.splitlines()[:-1] == table.splitlines()[:-1]  # the last one is the time
    assert "FAILED" not in table
    assert all(f"{name}: done" in head and f"| {name} " in table for name in STEPS)
    whole = read_json(proof.folder / "proof.json")
    assert whole["dry"] is True
    for name in STEPS:
        assert whole["steps"][name]["result"] == read_json(proof.folder / f"{name}.json")


def test_kernels_are_timed_each_and_equal_the_cpu(proof: Proof) -> None:
    parts = read_json(proof.folder / "spikes.json")["parts"]
    for name in ("PTSD", "PTSD at 1 SD", "noise", "noise by MAD"):
        assert parts[name]["n_different"] == 0 < parts[name]["n_compared"], name
    assert parts["PTSD at 1 SD"]["n_spikes"] > 1000
    for name, prefix in (("filter", "highpass_"), ("means", "sum_"), ("PTSD", "ptsd_")):
        kernels = parts[name]["kernels"]
        assert kernels
        assert all(kernel.startswith(prefix) for kernel in kernels)
        assert all(k["ms"] > 0 for k in kernels.values())
        assert any(k.get("bytes", 0) > 0 and k["share_of_copy"] > 0 for k in kernels.values())
    assert parts["subnormal numbers"]["n_kept"] == parts["subnormal numbers"]["n_subnormal"] > 1000
    assert parts["empty arrays through DLPack"]["holds"]


def test_features_and_classifiers_equal_the_cpus(proof: Proof) -> None:
    network, heads = (read_json(proof.folder / f"{n}.json")["parts"] for n in ("network", "heads"))
    for name in ("toptune half", "toptune float32", "torchvision eager, float16"):
        assert network[name]["cosine_to_float32"] > 0.9995, name
        assert network[name]["pictures_per_s"] > 0
    assert heads["Falkon"]["same_predictions"] == 1
    assert network["top kernels"]["top"][0]["ms"] > 0


def test_tests_and_commands_really_ran(proof: Proof) -> None:
    tests, commands = (
        read_json(proof.folder / f"{n}.json")["parts"] for n in ("tests", "commands")
    )
    assert tests["tests/machine/test_torch_kernels.py"]["passed"] > 0
    marked = tests["tests/test_gpu_spikes.py"]
    assert (marked["passed"], marked["failed"]) == (0, 0)
    assert marked["skipped"] > 10
    assert commands["sweep"]["runs"] == 4
    assert commands["extract"]["study_s"] > commands["extract"]["device_s"] > 0


# --- whatever happens


def alive(process: int) -> bool:
    """Whether a process runs: one that is dead may wait for its parent to ask."""
    try:
        text = Path(f"/proc/{process}/stat").read_text("utf-8")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def ends(process: int) -> bool:
    """Whether a process that was killed is gone: on a busy machine that takes a moment."""
    deadline = time.monotonic() + 10
    while alive(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(process)


def test_steps_that_crash_or_hang_do_not_stop_the_others(tmp_path: Path) -> None:
    faults = "versions=crash,ceilings=hang,heads=crash"
    steps = ("--steps", "versions,ceilings,heads", "--step-limit", "3")
    proof = prove(tmp_path / "out", *steps, faults=faults)
    assert proof.code == 1
    _, _, table = proof.printed.partition("\n\n")
    rows = [[cell.strip() for cell in row.split("|")[1:3]] for row in table.splitlines()[4:-2]]
    assert rows == [
        ["versions", "died of SIGSEGV"], ["versions", "its last words"],
        ["ceilings", "killed at its limit of 3 s"], ["ceilings", "its last words"],
        ["heads", "died of SIGSEGV"], ["heads", "its last words"],
    ]  # fmt: skip
    assert "versions crashes on purpose" in table
    told = read_json(proof.folder / "proof.json")["steps"]["ceilings"]
    assert told["result"] is None
    child = int(told["tail"][-1].rpartition(" ")[2])
    assert ends(child)


def test_what_the_limit_for_all_leaves_no_time_for_is_said(tmp_path: Path) -> None:
    begin = time.monotonic()
    proof = prove(tmp_path / "out", "--limit", "1")
    assert time.monotonic() - begin < 20
    assert proof.code == 1
    assert proof.table.count("no time left") == len(STEPS)


def test_a_run_that_is_terminated_prints_its_table(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), "--out", str(tmp_path), "--dry"]
    environment = {**os.environ, FAULT: "versions=hang"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    log, deadline = tmp_path / "versions.log", time.monotonic() + 60
    while not (log.exists() and "on purpose" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert printed.count("not run") == len(STEPS)
    assert ends(int(log.read_text().split()[-1]))


def test_the_program_needs_nothing_but_python() -> None:
    tree = ast.parse(PROGRAM.read_text("utf-8"))
    imported = {
        name.partition(".")[0]
        for node in tree.body
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    assert imported <= sys.stdlib_module_names
    bare = [sys.executable, "-I", "-S", str(PROGRAM), "--help"]
    done = subprocess.run(bare, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--dry" in done.stdout


def test_an_unknown_step_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), "--out", str(tmp_path), "--steps", "spikes,speed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--steps takes versions, ceilings, spikes" in done.stderr
    assert "got speed" in done.stderr


def test_a_part_that_fails_is_written_and_the_others_go_on(tmp_path: Path) -> None:
    job = Job("spikes", tmp_path, tmp_path, True, 100.0)

    def broken() -> dict[str, Any]:
        raise ValueError("no such kernel")

    assert job.part("first", lambda: {"seconds": 1.0}) == {"seconds": 1.0}
    assert job.part("second", broken) is None
    assert job.part("third", lambda: {"seconds": float("nan")}) is None
    written = read_json(tmp_path / "spikes.json")
    assert written["complete"] is False
    assert written["parts"].keys() == {"first"}
    assert written["problems"]["second"].endswith("ValueError: no such kernel")
    assert "not JSON compliant" in written["problems"]["third"]
    assert [path.name for path in tmp_path.iterdir()] == ["spikes.json"]


def test_what_is_wanted_is_judged_on_a_gpu_only(tmp_path: Path) -> None:
    for dry, met in ((True, None), (False, False)):
        job = Job("spikes", tmp_path, tmp_path, dry, 100.0)
        job.row("PTSD", 0.25, "", ">= 0.5", False)
        assert job.rows[0]["met"] is met


def test_the_gpu_is_watched_while_a_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 40\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    job = Job("commands", tmp_path, tmp_path, False, 100.0)
    with watching(job) as busy:
        deadline = time.monotonic() + 30
        while len(busy) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert set(busy) == {40.0}
    n = len(busy)
    time.sleep(0.5)
    assert len(busy) == n >= 3


def test_failures_of_tests_are_named_with_their_last_words(tmp_path: Path) -> None:
    (tmp_path / "test_three.py").write_text(
        "import pytest\ndef test_good():\n    pass\ndef test_bad():\n    assert 1 == 2, 'not so'\n"
        "def test_not_here():\n    pytest.skip('no GPU')\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=x.xml"]
    # Options of this run are none of a project without their plugins.
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 1
    found = read_junit(tmp_path / "x.xml")
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    (failure,) = found["failures"]
    assert failure["test"] == "test_bad"
    assert "not so" in failure["last"]
    json.dumps(found, allow_nan=False)


def test_all_files_with_tests_for_a_gpu_are_found() -> None:
    found = set(gpu_tests())
    assert {"tests/test_gpu_spikes.py", "tests/backbones/test_torch_engine.py"} <= found
    assert "tests/test_gpu_proof.py" not in found
    assert len(found) >= 8
