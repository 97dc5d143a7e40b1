"""Commands on this machine: doctor, which also verifies a store, and bench.

Doctor imports third-party modules inside the checks, one by one, so that a broken one is a line of
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
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from toptune.backbones.names import require_known
from toptune.cli.options import AsJson, Machine, command, require_store
from toptune.cli.printing import (
    command_line,
    print_json,
    print_table,
    say,
    tell,
    watch_count,
)
from toptune.errors import InputError, ToptuneError
from toptune.machine import installation
from toptune.machine.caches import give_pynwb_a_folder
from toptune.machine.device import FULL_RATE_FLOAT64
from toptune.machine.display import count
from toptune.machine.installation import NETWORKS
from toptune.machine.interruption import heed_interrupt
from toptune.machine.threads import usable_cores

if TYPE_CHECKING:
    from toptune.bench import BenchResult, Stage
    from toptune.store.check import StoreReport

Part = Literal["cpu", "gpu", "weights", "extra"]
#: ``ok``: found; ``missing``: the CPU path needs it; ``absent``: not found, and not needed for it.
State = Literal["ok", "missing", "absent"]

_OLDEST_PYTHON = (3, 11)
# Modules that are not called as the distribution that brings them. Of what is installed the
# metadata tell it; these are for packages that are there without metadata, or by another name
# (opencv-python-headless brings cv2 as well).
_MODULES = {
    "import-linter": "importlinter",
    "mcspydatatools": "McsPy",
    "opencv-python": "cv2",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "pytest-xdist": "xdist",
    "python-isal": "isal",
    "pyyaml": "yaml",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
}
# Extras that are not for users, and one that is looked at on the GPU path.
_OTHER_EXTRAS = {"test", "bench", "gpu"}
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
        Path | None,
        typer.Argument(help="Store to verify, or its URL; this machine is checked if not given."),
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
        raise InputError("--remove-damaged needs a store: toptune doctor STORE --remove-damaged")
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
        f"{count(report.n_recordings, 'recording')} listed, {count(report.n_groups, 'group')}"
        f" verified ({report.n_bytes / 1e6:.1f} MB)"
    )
    for finding in report.findings:
        tell(f"{finding.kind}: {finding.place}: {finding.cause}")
    if report.n_unsummed:
        tell(
            f"note: made by an earlier toptune: {count(report.n_unsummed, 'group')}, whose arrays"
            " have checksums and whose attributes have none"
        )
    for place in removed:
        tell(f"removed: {place}")
    if report.is_sound:
        tell("sound: everything that is listed is there, as it was written")
        return
    tell(f"to extract again: {', '.join(report.extract_again)}")
    commands = list(_extract_again(report.path))
    if not removed and any(f.kind == "damaged" for f in report.findings):
        commands.insert(0, command_line("toptune", "doctor", report.path, "--remove-damaged"))
    tell("next:")
    for line in commands:
        tell(f"  {line}")


def _extract_again(path: Path) -> Iterator[str]:
    """Give the commands that made a store, as far as it can be read; they make what is missing."""
    from toptune.reports.setup import extract_commands
    from toptune.store.feature_store import FeatureStore

    try:
        yield from extract_commands(FeatureStore(path))
    except ToptuneError:
        yield "# extract as before: it makes what is not there"


# --- this machine


@dataclass(frozen=True)
class Check:
    """One thing that was looked for."""

    part: Part
    name: str
    state: State
    found: str  # what is there, or what is wrong with it
    remedy: str | None = None  # the command, or the step, that fixes it


def _check(part: Part, name: str, ok: object, found: str, remedy: str | None = None) -> Check:
    """Make a check; only what is not ok has a remedy."""
    state: State = "ok" if ok else "missing" if part == "cpu" else "absent"
    return Check(part, name, state, found, None if ok else remedy)


@dataclass(frozen=True)
class Report:
    """All checks, in the order in which they were made."""

    checks: tuple[Check, ...]

    @property
    def cpu_complete(self) -> bool:
        """Whether everything the CPU path needs is there."""
        return all(check.state != "missing" for check in self.checks)

    @property
    def networks_complete(self) -> bool:
        """Whether pictures can be described by networks."""
        of_networks = [check.state for check in self.checks if check.name in NETWORKS]
        return self.cpu_complete and set(of_networks) <= {"ok"}

    @property
    def gpu_complete(self) -> bool:
        """Whether everything the GPU path needs is there too."""
        of_gpu = [check.state for check in self.checks if check.part == "gpu"]
        return self.networks_complete and set(of_gpu) <= {"ok"}

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        complete = {
            "cpu_complete": self.cpu_complete,
            "networks_complete": self.networks_complete,
            "gpu_complete": self.gpu_complete,
        }
        return {**complete, "checks": [asdict(check) for check in self.checks]}


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
        heed_interrupt(error)
        return None, " ".join(str(error).split()) or type(error).__name__


def examine() -> Report:
    """Look for everything; takes some seconds, for the imports."""
    found: list[Check] = []
    give_pynwb_a_folder()
    # Whatever a library prints while it is imported is no part of the report.
    with contextlib.redirect_stdout(sys.stderr):
        for look in LOOKS:
            found += look()
    return Report(tuple(found))


# --- the CPU path


def _python() -> Iterator[Check]:
    found = f"{platform.python_version()} on {platform.platform()}"
    remedy = f"install Python {'.'.join(map(str, _OLDEST_PYTHON))} or later"
    yield _check("cpu", "Python", sys.version_info >= _OLDEST_PYTHON, found, remedy)


def _toptune() -> Iterator[Check]:
    here = version_of("toptune")
    found = here or "not installed, only found on the path"
    yield _check("cpu", "toptune", here, found, "pip install -e .")


def _packages() -> Iterator[Check]:
    """Every package that toptune's own metadata ask for, its version, and whether it imports."""
    module, problem = imported("packaging.requirements")
    if module is None:
        found = f"{problem}; no other package was looked at"
        yield _check("cpu", "packaging", False, found, "pip install packaging")
        return
    for text in requirements():
        requirement = module.Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _package(requirement.name, requirement.specifier)


def _extras() -> Iterator[Check]:
    """Every package of the extras that add something for users."""
    module, _ = imported("packaging.requirements")
    if module is None:
        return
    for text in requirements():
        named = re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", text.partition(";")[2])
        if named is not None and named[1] not in _OTHER_EXTRAS:
            requirement = module.Requirement(text)
            if requirement.marker.evaluate({"extra": named[1]}):
                yield _package(requirement.name, requirement.specifier, named[1])


def _package(name: str, specifier: Any, extra: str | None = None) -> Check:
    """Look for a distribution's version and module; a module that is there is never missing."""
    here = version_of(name)
    module: ModuleType | None = None
    problem: str | None = "not installed"
    if here is not None or find_spec(module_of(name)) is not None:
        module, cause = imported(module_of(name))
        problem = cause and f"{here or 'there'}, but it cannot be imported: {cause}"
    # What says nothing of its version may be any.
    here = here or getattr(module, "__version__", None)
    if problem is None and here and not specifier.contains(here, prereleases=True):
        problem = f"{here}, which is not {specifier}"
    upgrade = f"pip install --upgrade '{name}{specifier}'"
    remedy = upgrade if extra is None else f"pip install 'toptune[{extra}]'"
    found = problem or str(here or "installed, without metadata")
    return _check("cpu" if extra is None else "extra", name, problem is None, found, remedy)


def module_of(name: str) -> str:
    """Name the module that a distribution brings: pillow brings PIL."""
    canonical = _canonical(name)
    if canonical in _MODULES:
        return _MODULES[canonical]
    guess = canonical.replace("-", "_")
    brought = [module for module, by in _brought().items() if canonical in by]
    if guess in brought or not brought:
        return guess
    return min(brought, key=lambda module: (module.startswith("_"), module))


@cache
def _brought() -> dict[str, set[str]]:
    """Top-level modules, and the distributions that bring them."""
    by_module = metadata.packages_distributions()
    return {module: set(map(_canonical, names)) for module, names in by_module.items()}


def _canonical(name: str) -> str:
    """Write a distribution's name as PyPI does: scikit_learn is scikit-learn."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _openvino() -> Iterator[Check]:
    module, problem = imported("openvino")
    if module is None:
        return
    from toptune.backbones.processor import openvino_core

    try:
        devices = list(openvino_core().available_devices)
    except RuntimeError as error:
        devices, problem = [], " ".join(str(error).split())
    found = ", ".join(devices) or problem or "none"
    remedy = "pip install --force-reinstall openvino"
    yield _check("cpu", "OpenVINO's devices", "CPU" in devices, found, remedy)
    if "CPU" in devices:
        yield _check("cpu", "16 bits", True, _half())


def _half() -> str:
    """Say whether the processor has units for 16 bits."""
    from toptune.backbones.processor import half_of_processor

    half = half_of_processor()
    if half is None:
        return "no units for them (AMX, AVX512-FP16, AVX512-BF16): --precision half is for GPUs"
    units = f" ({', '.join(half.units)})" if half.units else ""
    return f"{half.dtype}{units}: --precision half may be given; float32 is the default"


def _numba() -> Iterator[Check]:
    module, _ = imported("numba")
    if module is not None:
        found = f"{module.config.NUMBA_NUM_THREADS} (NUMBA_NUM_THREADS)"
        yield _check("cpu", "Numba's threads", True, found)


def _machine() -> Iterator[Check]:
    from toptune.machine.device import available_memory

    yield _check("cpu", "cores", True, f"{usable_cores()} usable")
    yield _check("cpu", "memory", True, f"{available_memory() / _GIB:.1f} GiB free")
    here = Path.cwd()
    disk = shutil.disk_usage(here).free
    found = f"{disk / _GIB:.1f} GiB free at {here}"
    if disk >= _NEEDED_DISK_BYTES:
        yield _check("cpu", "disk", True, found)
    else:
        remedy = "make room: a store of a study takes some hundred megabytes"
        yield Check("cpu", "disk", "absent", found, remedy)


def _assets() -> Iterator[Check]:
    for name, folder, wanted in (
        ("kernels/", installation.kernels, ("ptsd.cu",)),
        ("store/", installation.store_contract, ("LAYOUT.md", "schema.json", "golden.zarr")),
    ):
        try:
            path = folder()
            lacking = [file for file in wanted if not (path / file).exists()]
            found = f"{path}" + (f", but without {', '.join(lacking)}" if lacking else "")
        except ToptuneError as error:
            lacking, found = list(wanted), str(error)
        remedy = "pip install --force-reinstall --no-deps ."
        yield _check("cpu", name, not lacking, found, remedy)


def _falkon() -> Iterator[Check]:
    module, problem = imported("falkon")
    found = str(version_of("falkon") if module else problem)
    remedy = "only for --solver falkon: docs/falkon.md says how"
    yield _check("extra", "falkon library", module, found, remedy)


# --- the GPU path: torch for CUDA, driver, CuPy, and whether the CUDA sources compile


def _torch_gpu() -> Iterator[Check]:
    torch, _ = imported("torch")
    if torch is None:
        return
    built = torch.version.cuda
    found = torch.__version__ + (f", built for CUDA {built}" if built else "")
    yield _check("gpu", "torch for CUDA", built, found, _TORCH_FOR_CUDA)
    driver = driver_version()
    remedy = "install NVIDIA's driver; then nvidia-smi lists the GPU"
    yield _check("gpu", "NVIDIA driver", driver, driver or "none found", remedy)
    names = [_gpu(torch, index) for index in range(torch.cuda.device_count())]
    remedy = "the CPU path needs none; otherwise see the lines above"
    yield _check("gpu", "GPU", names, "; ".join(names) or "torch sees none", remedy)


def _gpu(torch: Any, index: int) -> str:
    gpu = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    full = (gpu.major, gpu.minor) in FULL_RATE_FLOAT64
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
    remedy = f"pip install '{package}{bound}{version}'"
    yield _check("gpu", "CuPy", cupy, f"{problem}" if cupy is None else cupy.__version__, remedy)
    if cupy is None:
        return
    try:
        n_gpus, problem = cupy.cuda.runtime.getDeviceCount(), "no GPU"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        n_gpus, problem = 0, str(error)
    found = str(n_gpus or problem)
    yield _check("gpu", "CuPy's GPUs", n_gpus, found, "needs a GPU and its driver, as above")
    yield from _kernels(f"pip install '{package}[ctk]{bound}{version}'")


def _kernels(remedy: str) -> Iterator[Check]:
    """Compile every CUDA source by NVRTC, which needs neither GPU nor driver."""
    from cupy.cuda import nvrtc

    with contextlib.suppress(ToptuneError):
        for source in sorted(installation.kernels().glob("*.cu")):
            problem = ""
            try:
                found = f"compiled, {_compiled(nvrtc, source)} bytes of PTX"
            except (RuntimeError, OSError, nvrtc.NVRTCError) as error:
                problem = " ".join(str(getattr(error, "log", "") or error).split())[:200]
            yield _check("gpu", f"NVRTC: {source.name}", not problem, problem or found, remedy)


def _compiled(nvrtc: Any, source: Path) -> int:
    from toptune.machine.cuda import program_of

    newest = max(a for a in nvrtc.getSupportedArchs() if a >= _OLDEST_ARCHITECTURE)
    program = program_of(nvrtc, source)
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

    from toptune.backbones.names import PAPER_BACKBONES
    from toptune.backbones.networks import canonical_name

    for library, folder in (("torchvision", torch.hub.get_dir()), ("timm", HF_HUB_CACHE)):
        yield _check("weights", f"cache of {library}", True, str(folder))
    for name in PAPER_BACKBONES:
        canonical = canonical_name(name)
        timm_name = canonical.removeprefix("timm:") if canonical.startswith("timm:") else None
        path = _timm_file(timm_name) if timm_name else _torchvision_file(canonical)
        there = path.exists()
        found = str(path) if there else "would be fetched once, when first used"
        yield _check("weights", name, there, found, _fetch(name))


def _fetch(name: str) -> str:
    load = f"load_backbone(Backbone(name='{name}'))"
    return (
        f'python -c "from toptune.params import Backbone; from toptune.backbones.loading import'
        f' load_backbone; {load}"'
    )


def _torchvision_file(name: str) -> Path:
    from toptune.backbones.loading import torchvision_folder
    from toptune.backbones.networks import torchvision_weights

    file = Path(torchvision_weights(name).url).name
    return torchvision_folder(file) / file


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
    *(_python, _toptune, _machine, _packages, _openvino, _numba, _assets, _falkon, _extras),
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
    cpu = complete[report.cpu_complete]
    if report.cpu_complete and not report.networks_complete:
        cpu = "complete for spikes and burst parameters, not for networks"
    tell(f"CPU path: {cpu}; GPU path: {complete[report.gpu_complete]}")


# --- the speed of every stage


@command("toptune bench --quick")
def bench(
    machine: Machine,
    backbone: Annotated[
        list[str] | None,
        typer.Option(help="Network to measure; may be repeated.", show_default="efficientnet_b0"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure for some seconds only, less precisely.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure every stage on this machine, and how long a study of 32 devices would take."""
    names = backbone or ["efficientnet_b0"]
    for name in names:
        require_known(name)
    from toptune.bench import bench as run
    from toptune.machine.installation import describe_environment

    result = run(
        compute=machine, backbones=names, quick=quick, step=lambda name: say(f"... {name}")
    )
    here = describe_environment(next(s.device for s in result.stages if s.name == names[0]))
    if as_json:
        print_json({"machine": here, **result.to_json()})
    else:
        print_bench(result, here)


def print_bench(result: BenchResult, machine: dict[str, Any]) -> None:
    """Print a row per stage, and how long the study would take."""
    from toptune.bench import STUDY

    rows = []
    for stage in result.stages:
        share = result.share(stage)
        study = "" if stage.study_seconds is None else _seconds(stage.study_seconds)
        percent = "" if share is None else f"{share:.0%}"
        rows.append((stage.name, stage.device, _rate(stage), study, percent))
    header = ("stage", "on", "per second", "study", "share")
    print_table(header, rows, n_names=2, padding=(0, 1))
    for stage in result.stages:
        if stage.note:
            tell(f"{stage.name}: {stage.note}")
    tell(
        f"study: {STUDY.devices} devices x {STUDY.seconds / 60:g} min, {STUDY.channels} channels at"
        f" {STUDY.sampling_rate_hz / 1000:g} kHz, {STUDY.windows} windows, one backbone, both"
        f" classifiers: {_seconds(result.study_seconds)} in all"
    )
    tell(
        f"best of up to {count(max(s.rounds for s in result.stages), 'round')} on"
        f" {machine['device_name'] or machine['cpu']}, {count(machine['cpus'], 'core')}"
        f"{'; quick, so only roughly measured' if result.quick else ''}"
    )


def _rate(stage: Stage) -> str:
    for factor, sign in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if stage.per_second >= factor:
            return f"{stage.per_second / factor:.3g}{sign} {stage.unit}"
    return f"{stage.per_second:.3g} {stage.unit}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 600 else f"{seconds / 60:.3g} min"
