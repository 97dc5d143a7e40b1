"""What is installed here: the files that are not Python, and what a result was computed with.

A wheel carries CUDA sources and the description of the store's layout inside the package, as
toptune/_assets; a checkout, or an editable installation of one, has them beside the package.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from toptune.errors import ToptuneError

_PACKAGE = Path(__file__).resolve().parents[1]
_PACKAGES = (
    *("toptune", "numpy", "scipy", "scikit-learn", "torch", "torchvision", "timm", "openvino"),
    *("numba", "zarr", "h5py", "safetensors", "matplotlib"),
)


def kernels() -> Path:
    """Return the folder of the CUDA C sources (``*.cu``)."""
    return _folder("kernels")


def store_contract() -> Path:
    """Return the folder with ``LAYOUT.md``, ``schema.json`` and ``golden.zarr``."""
    return _folder("store")


def _folder(name: str) -> Path:
    for folder in (_PACKAGE / "_assets" / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise ToptuneError(f"this installation of toptune lacks its {name}/ folder: install it again")


def describe_environment(device: str) -> dict[str, Any]:
    """Describe the machine, the torch device and the packages, as plain values without times."""
    import torch

    on_gpu = torch.device(device).type == "cuda"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if on_gpu else None,
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    # On Linux platform.processor() is empty or only the architecture.
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
