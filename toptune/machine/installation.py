"""What is installed here: the files that are not Python, and what a result was computed with.

A wheel carries CUDA sources and the description of the store's layout inside the package, as
toptune/_assets; a checkout, or an editable installation of one, has them beside the package.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from toptune.errors import MissingPackagesError, ToptuneError

#: Packages of the extra ``networks``.
NETWORKS = ("torch", "torchvision", "timm", "openvino")
_PACKAGE = Path(__file__).resolve().parents[1]
_PACKAGES = (
    *("toptune", "numpy", "scipy", "scikit-learn", "torch", "torchvision", "timm", "openvino"),
    *("numba", "zarr", "h5py", "safetensors", "matplotlib"),
)


def require_networks(purpose: str) -> None:
    """Refuse what needs networks where they are not installed; `purpose` begins the message.

    Raises
    ------
    MissingPackagesError
        It names what is missing, and the command that installs it.
    """
    missing = [name for name in NETWORKS if find_spec(name) is None]
    if missing:
        raise MissingPackagesError(
            f"{purpose} needs {', '.join(missing)}, not installed here: pip install"
            " 'toptune[networks]' (from a checkout: pip install '.[networks]'); spikes, burst"
            " parameters and their classifiers work without"
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
    torch: Any = import_module("torch") if find_spec("torch") else None
    on_gpu = device.startswith("cuda")
    return {
        "python": platform.python_version(),
        "platform": _platform(),
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "torch_threads": None if torch is None else torch.get_num_threads(),
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if on_gpu else None,
        "packages": package_versions(),
    }


def package_versions() -> dict[str, str | None]:
    """Give the versions of toptune and of the packages that compute; None where one is missing."""
    return {name: _version(name) for name in _PACKAGES}


@cache
def code_digest() -> str:
    """Give the sha256 of this installation's own program files, which tells a changed one."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _platform() -> str:
    """Name the system as `platform.platform` does.

    On Linux that starts ``uname -p`` for a processor it then leaves out. A program that computes in
    threads should start no other one for a name: where it is killed meanwhile, that one may stay.
    """
    if sys.platform != "linux":
        return platform.platform()
    one, libc = platform.uname(), "".join(platform.libc_ver())
    return "-".join([one.system, one.release, one.machine, *(["with", libc] if libc else [])])


def _cpu_name() -> str:
    # On Linux platform.processor() is empty or only the architecture.
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
