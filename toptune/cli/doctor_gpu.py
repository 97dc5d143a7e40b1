"""Checks of the GPU path: torch for CUDA, driver, CuPy, and whether the CUDA sources compile."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toptune.cli.doctor_check import Check, imported, requirements
from toptune.errors import ToptuneError
from toptune.machine import assets
from toptune.machine.device import has_full_rate_float64

# Of the compute capabilities NVRTC knows, those toptune has kernels for.
_OLDEST_ARCHITECTURE = 75
_GIB = 2**30
_TORCH_FOR_CUDA = (
    "pip install --force-reinstall torch torchvision --index-url"
    " https://download.pytorch.org/whl/cu130"
)


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


LOOKS = (_torch_gpu, _cupy)
