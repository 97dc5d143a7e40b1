"""The command that checks this machine, or a store: doctor.

Third-party modules are imported inside the checks, one by one, so that a broken one is a line of
the report and not the end of it. Nothing is installed, downloaded or changed.
"""

from __future__ import annotations

import contextlib
import importlib
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from toptune.cli.options import AsJson, command
from toptune.cli.paths import require_store
from toptune.cli.printing import print_json, tell
from toptune.errors import InputError, ToptuneError
from toptune.machine import assets
from toptune.machine.device import has_full_rate_float64
from toptune.machine.threads import usable_cores

if TYPE_CHECKING:
    from toptune.store.check import StoreReport

Part = Literal["cpu", "gpu", "weights", "extra"]
#: ``ok``: found; ``missing``: the CPU path needs it; ``absent``: not found, and not needed for it.
State = Literal["ok", "missing", "absent"]

_OLDEST_PYTHON = (3, 11)
_MODULES = {"scikit-learn": "sklearn", "mcspydatatools": "McsPy", "pillow": "PIL"}
_NEEDED_DISK_BYTES = 2**30
_GIB = 2**30
# Of the compute capabilities NVRTC knows, those toptune has kernels for.
_OLDEST_ARCHITECTURE = 75
_TORCH_FOR_CUDA = (
    "pip install --force-reinstall torch torchvision --index-url"
    " https://download.pytorch.org/whl/cu130"
)


@command("toptune doctor study.zarr")
def doctor(
    store: Annotated[
        Path | None, typer.Argument(help="Store to verify; this machine is checked if not given.")
    ] = None,
    remove: Annotated[
        bool,
        typer.Option(
            "--remove-damaged", help="Remove damaged parts, so that extract makes them again."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check this machine and say how to fix what is missing, or verify a store byte by byte."""
    if store is not None:
        _verify_store(store, remove, as_json)
        return
    if remove:
        raise InputError("--remove-damaged needs a store: toptune doctor S.zarr --remove-damaged")
    report = examine()
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report)
    if not report.cpu_complete:
        raise typer.Exit(1)


# --- a store


def _verify_store(path: Path, remove: bool, as_json: bool) -> None:
    require_store(path)
    from toptune.store.feature_store import FeatureStore

    n_recordings = len(FeatureStore(path).recordings)
    from toptune.cli.progress import watch_count
    from toptune.store.check import check_store, remove_damaged

    with watch_count("verifying", n_recordings) as advance:
        report = check_store(path, progress=lambda *_: advance(None))
    removed = remove_damaged(report) if remove else ()
    if as_json:
        print_json({**report.to_json(), "removed": list(removed)})
    else:
        _print_store(report, removed)
    if not report.is_sound:
        raise typer.Exit(3)


def _print_store(report: StoreReport, removed: tuple[str, ...]) -> None:
    """Print what verifying a store found, and what to do."""
    tell(
        f"{report.n_recordings} recordings listed, {report.n_groups} groups verified"
        f" ({report.n_bytes / 1e6:.1f} MB)"
    )
    for finding in report.findings:
        tell(f"{finding.kind}: {finding.place}: {finding.cause}")
    if report.n_unsummed:
        tell(
            f"note: {report.n_unsummed} groups were made by an earlier toptune: their arrays have"
            " checksums, their attributes have none"
        )
    for place in removed:
        tell(f"removed: {place}")
    if report.is_sound:
        tell("sound: everything that is listed is there, as it was written")
        return
    tell(f"to extract again: {', '.join(report.extract_again)}")
    if not removed and any(f.kind == "damaged" for f in report.findings):
        tell(f"next: toptune doctor {report.path} --remove-damaged, then toptune extract as before")
    else:
        tell("next: toptune extract as before; it makes what is not there")


# --- this machine


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked for.

    Parameters
    ----------
    part
        What it belongs to: the CPU path, the GPU path, ImageNet weights, or what only some need.
    name
        What it is.
    state
        See `State`.
    found
        What is there, or what is wrong with it.
    remedy
        The command, or the step, that fixes it; None where nothing needs fixing.
    """

    part: Part
    name: str
    state: State
    found: str
    remedy: str | None = None


@dataclass(frozen=True)
class Report:
    """All checks, in the order in which they were made."""

    checks: tuple[Check, ...]

    @property
    def cpu_complete(self) -> bool:
        """Whether everything the CPU path needs is there."""
        return all(check.state != "missing" for check in self.checks)

    @property
    def gpu_complete(self) -> bool:
        """Whether everything the GPU path needs is there too."""
        return self.cpu_complete and all(
            check.state == "ok" for check in self.checks if check.part == "gpu"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "cpu_complete": self.cpu_complete,
            "gpu_complete": self.gpu_complete,
            "checks": [asdict(check) for check in self.checks],
        }


def requirements() -> list[str]:
    """Give what toptune's own metadata ask for, extras included."""
    try:
        return metadata.requires("toptune") or []
    except metadata.PackageNotFoundError:
        return []


def version_of(name: str) -> str | None:
    """Version of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def imported(name: str) -> tuple[ModuleType | None, str | None]:
    """Import a module; or say in one line why that cannot be done."""
    try:
        return importlib.import_module(name), None
    except Exception as error:  # noqa: BLE001  # a broken package may raise anything
        return None, " ".join(str(error).split()) or type(error).__name__


def examine() -> Report:
    """Look for everything; takes some seconds, for the imports."""
    found: list[Check] = []
    # Whatever a library prints while it is imported is no part of the report.
    with contextlib.redirect_stdout(sys.stderr):
        for look in LOOKS:
            found += look()
    return Report(tuple(found))


# --- the CPU path


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
    from toptune.machine.memory import available_memory

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


# --- the GPU path: torch for CUDA, driver, CuPy, and whether the CUDA sources compile


def _torch_gpu() -> Iterator[Check]:
    torch, _ = imported("torch")
    if torch is None:
        return
    driver = driver_version()
    built = torch.version.cuda
    yield Check(
        part="gpu",
        name="torch for CUDA",
        state="ok" if built else "absent",
        found=f"{torch.__version__}, built for CUDA {built}" if built else torch.__version__,
        remedy=None if built else _TORCH_FOR_CUDA,
    )
    yield Check(
        part="gpu",
        name="NVIDIA driver",
        state="ok" if driver else "absent",
        found=driver or "none found",
        remedy=None if driver else "install NVIDIA's driver; then nvidia-smi lists the GPU",
    )
    names = [_gpu(torch, index) for index in range(torch.cuda.device_count())]
    yield Check(
        part="gpu",
        name="GPU",
        state="ok" if names else "absent",
        found="; ".join(names) or "torch sees none",
        remedy=None if names else "the CPU path needs none; otherwise see the lines above",
    )


def _gpu(torch: Any, index: int) -> str:
    gpu = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    full = has_full_rate_float64((gpu.major, gpu.minor))
    float64 = "at full rate" if full else "at a fraction of the rate (docs/falkon.md)"
    return (
        f"{gpu.name}, compute capability {gpu.major}.{gpu.minor},"
        f" {free / _GIB:.1f} of {total / _GIB:.1f} GiB free, float64 {float64}"
    )


def driver_version() -> str | None:
    """Version of NVIDIA's driver, by nvidia-smi; None where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = said.stdout.split() if said.returncode == 0 else []
    return lines[0] if lines else None


def _cupy() -> Iterator[Check]:
    listed = [text.partition(";")[0].strip() for text in requirements()]
    wanted = [text for text in listed if text.startswith("cupy")]
    package, bound, version = (wanted or ["cupy-cuda13x"])[0].partition(">=")
    cupy, problem = imported("cupy")
    yield Check(
        part="gpu",
        name="CuPy",
        state="absent" if cupy is None else "ok",
        found=f"{problem}" if cupy is None else cupy.__version__,
        remedy=f"pip install '{package}{bound}{version}'" if cupy is None else None,
    )
    if cupy is None:
        return
    try:
        n_gpus, problem = cupy.cuda.runtime.getDeviceCount(), "no GPU"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        n_gpus, problem = 0, str(error)
    yield Check(
        part="gpu",
        name="CuPy's GPUs",
        state="ok" if n_gpus else "absent",
        found=str(n_gpus) if n_gpus else problem,
        remedy=None if n_gpus else "needs a GPU and its driver, as above",
    )
    yield from _kernels(f"pip install '{package}[ctk]{bound}{version}'")


def _kernels(remedy: str) -> Iterator[Check]:
    """Compile every CUDA source by NVRTC, which needs neither GPU nor driver."""
    from cupy.cuda import nvrtc

    with contextlib.suppress(ToptuneError):
        for source in sorted(assets.kernels().glob("*.cu")):
            problem = None
            try:
                size = _compiled(nvrtc, source)
            except (RuntimeError, OSError, nvrtc.NVRTCError) as error:
                problem = " ".join(str(getattr(error, "log", "") or error).split())[:200]
            yield Check(
                part="gpu",
                name=f"NVRTC: {source.name}",
                state="absent" if problem else "ok",
                found=problem or f"compiled, {size} bytes of PTX",
                remedy=remedy if problem else None,
            )


def _compiled(nvrtc: Any, source: Path) -> int:
    newest = max(a for a in nvrtc.getSupportedArchs() if a >= _OLDEST_ARCHITECTURE)
    program = nvrtc.createProgram(source.read_text("utf-8"), source.name, [], [])
    try:
        options = [f"--gpu-architecture=compute_{newest}", "--std=c++17"]
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError:
            raise RuntimeError(nvrtc.getProgramLog(program)) from None
        return len(nvrtc.getPTX(program))
    finally:
        nvrtc.destroyProgram(program)


# --- weights: which of the paper's backbones need no download, and where the caches are


def _weights() -> Iterator[Check]:
    """ImageNet weights of the paper's backbones that need no download."""
    needed = [imported(name) for name in ("torch", "torchvision", "timm", "huggingface_hub")]
    if any(module is None for module, _ in needed):
        return
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    from toptune.backbones.networks import PAPER_BACKBONES, canonical_name

    for library, folder in (("torchvision", torch.hub.get_dir()), ("timm", HF_HUB_CACHE)):
        yield Check(part="weights", name=f"cache of {library}", state="ok", found=str(folder))
    for name in PAPER_BACKBONES:
        canonical = canonical_name(name)
        timm_name = canonical.removeprefix("timm:") if canonical.startswith("timm:") else None
        path = _timm_file(timm_name) if timm_name else _torchvision_file(canonical)
        yield Check(
            part="weights",
            name=name,
            state="ok" if path.exists() else "absent",
            found=str(path) if path.exists() else "would be fetched once, when first used",
            remedy=None if path.exists() else _fetch(name),
        )


def _fetch(name: str) -> str:
    load = f"load_backbone(Backbone(name='{name}'))"
    return (
        f'python -c "from toptune.params import Backbone; from toptune.backbones.loading import'
        f' load_backbone; {load}"'
    )


def _torchvision_file(name: str) -> Path:
    import torch

    from toptune.backbones.networks import torchvision_weights

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(torchvision_weights(name).url).name


def _timm_file(name: str) -> Path:
    """Where timm's weights lie, or would: the hub's cache, or torch's for those from elsewhere."""
    import timm
    import torch
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        url = "" if config is None else str(config.url)
        return Path(torch.hub.get_dir()) / "checkpoints" / re.sub(r".*/", "", url)
    for file in ("model.safetensors", "pytorch_model.bin"):
        path = try_to_load_from_cache(config.hf_hub_id, file)
        if isinstance(path, str):
            return Path(path)
    folder = Path(HF_HUB_CACHE) / f"models--{config.hf_hub_id.replace('/', '--')}"
    return folder / "model.safetensors"


LOOKS = (
    *(_python, _toptune, _machine, _packages, _openvino, _numba, _assets, _falkon),
    *(_torch_gpu, _cupy, _weights),
)


# --- what is printed

_PARTS = {
    "cpu": "the CPU path",
    "gpu": "the GPU path",
    "weights": "ImageNet weights (fetched when first used)",
    "extra": "optional",
}
_STATES = {"ok": "[green]ok[/]", "missing": "[red]MISSING[/]", "absent": "[yellow]-[/]"}


def print_report(report: Report) -> None:
    """Print a table per part, then how to fix what is missing, then the verdict."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for part, title in _PARTS.items():
        checks = [check for check in report.checks if check.part == part]
        if not checks:
            continue
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for check in checks:
            table.add_row(check.name, _STATES[check.state], escape(check.found))
        console.print(table)
    # Outside the tables, so that a command can be copied whole.
    missing = [check for check in report.checks if check.remedy]
    if missing:
        tell("how to fix or add what is missing:")
    for check in missing:
        tell(f"  {check.name}: {check.remedy}")
    complete = {True: "complete", False: "NOT complete"}
    tell(f"CPU path: {complete[report.cpu_complete]}; GPU path: {complete[report.gpu_complete]}")
