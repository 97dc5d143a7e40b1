"""Checks of the CPU path: Python, packages, the machine, and the files that come with toptune."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from toptune.cli.doctor_check import Check, Part, State, imported, requirements, version_of
from toptune.errors import ToptuneError
from toptune.machine import assets
from toptune.machine.threads import usable_cores

_OLDEST_PYTHON = (3, 11)
_MODULES = {"scikit-learn": "sklearn", "mcspydatatools": "McsPy", "pillow": "PIL"}
_NEEDED_DISK_BYTES = 2**30
_GIB = 2**30


def _python() -> Iterator[Check]:
    wanted = ".".join(map(str, _OLDEST_PYTHON))
    enough = sys.version_info >= _OLDEST_PYTHON
    yield Check(
        part="cpu",
        name="Python",
        state="ok" if enough else "missing",
        found=f"{platform.python_version()} on {platform.platform()}",
        remedy=None if enough else f"install Python {wanted} or later",
    )


def _toptune() -> Iterator[Check]:
    try:
        found, remedy = metadata.version("toptune"), None
    except metadata.PackageNotFoundError:
        found, remedy = "not installed, only found on the path", "pip install -e ."
    state: State = "ok" if remedy is None else "missing"
    yield Check(part="cpu", name="toptune", state=state, found=found, remedy=remedy)


def _packages() -> Iterator[Check]:
    """Every package that toptune's own metadata ask for, its version, and whether it imports."""
    module, problem = imported("packaging.requirements")
    if module is None:
        yield Check(
            part="cpu",
            name="packaging",
            state="missing",
            found=f"{problem}; no other package was looked at",
            remedy="pip install packaging",
        )
        return
    for text in requirements():
        requirement = module.Requirement(text)
        if requirement.marker is None:
            yield _package(requirement.name, str(requirement.specifier), part="cpu")


def _package(name: str, specifier: str, part: Part) -> Check:
    from packaging.specifiers import SpecifierSet

    here = version_of(name)
    problem = None
    if here is None:
        problem = "not installed"
    elif not SpecifierSet(specifier).contains(here, prereleases=True):
        problem = f"{here}, which is not {specifier}"
    else:
        _, problem = imported(_MODULES.get(name.lower(), name.lower()))
        problem = problem and f"{here}, but it cannot be imported: {problem}"
    if problem is None:
        return Check(part=part, name=name, state="ok", found=str(here))
    state: State = "missing" if part == "cpu" else "absent"
    command = f"pip install --upgrade '{name}{specifier}'"
    return Check(part=part, name=name, state=state, found=problem, remedy=command)


def _openvino() -> Iterator[Check]:
    module, problem = imported("openvino")
    if module is None:
        return
    try:
        devices = list(module.Core().available_devices)
    except RuntimeError as error:
        devices, problem = [], " ".join(str(error).split())
    there = "CPU" in devices
    yield Check(
        part="cpu",
        name="OpenVINO's devices",
        state="ok" if there else "missing",
        found=", ".join(devices) or problem or "none",
        remedy=None if there else "pip install --force-reinstall openvino",
    )


def _numba() -> Iterator[Check]:
    module, _ = imported("numba")
    if module is not None:
        found = f"{module.config.NUMBA_NUM_THREADS} (NUMBA_NUM_THREADS)"
        yield Check(part="cpu", name="Numba's threads", state="ok", found=found)


def _machine() -> Iterator[Check]:
    from toptune.heads.falkon.memory import available_memory

    yield Check(part="cpu", name="cores", state="ok", found=f"{usable_cores()} usable")
    free = available_memory()
    yield Check(part="cpu", name="memory", state="ok", found=f"{free / _GIB:.1f} GiB free")
    here = Path.cwd()
    disk = shutil.disk_usage(here).free
    enough = disk >= _NEEDED_DISK_BYTES
    yield Check(
        part="cpu",
        name="disk",
        state="ok" if enough else "absent",
        found=f"{disk / _GIB:.1f} GiB free at {here}",
        remedy=None if enough else "make room: a store of a study takes some hundred megabytes",
    )


def _assets() -> Iterator[Check]:
    for name, folder, wanted in (
        ("kernels/", assets.kernels, ("ptsd.cu",)),
        ("store/", assets.store_contract, ("LAYOUT.md", "schema.json", "golden.zarr")),
    ):
        try:
            path = folder()
            lacking = [file for file in wanted if not (path / file).exists()]
            found = f"{path}" + (f", but without {', '.join(lacking)}" if lacking else "")
        except ToptuneError as error:
            lacking, found = list(wanted), str(error)
        yield Check(
            part="cpu",
            name=name,
            state="missing" if lacking else "ok",
            found=found,
            remedy="pip install --force-reinstall --no-deps ." if lacking else None,
        )


def _falkon() -> Iterator[Check]:
    module, problem = imported("falkon")
    yield Check(
        part="extra",
        name="falkon library",
        state="ok" if module else "absent",
        found=str(version_of("falkon")) if module else f"{problem}",
        remedy=None if module else "only for --solver falkon: docs/falkon.md says how",
    )


LOOKS = (_python, _toptune, _machine, _packages, _openvino, _numba, _assets, _falkon)
