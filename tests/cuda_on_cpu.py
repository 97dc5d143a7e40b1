"""The kernels built by g++ and launched on NumPy arrays, in place of CuPy's."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

KERNELS = Path(__file__).parents[1] / "kernels"
SHIM = Path(__file__).parent / "cuda_shim"
DECLARED = re.compile(r'extern "C" __global__ void (\w+)\(([^)]*)\)')
DTYPES = {
    "u8": np.uint8, "u32": np.uint32, "u64": np.uint64, "i32": np.int32, "i64": np.int64,
    "float": np.float32, "double": np.float64,
}  # fmt: skip


class Launch(NamedTuple):
    """How the grid is cut, and in which order its threads run.

    Kernels whose THREADS are known to the compiler have blocks of that many.
    """

    grid: int = 3
    block: int = 32
    backwards: bool = False


class HostKernels:
    """The kernels of one source, built for some shapes, launched as the CUDA driver would."""

    def __init__(self, library: ctypes.CDLL, source: str, shapes: Mapping[str, int]) -> None:
        self._library = library
        self._parameters = {
            name: [" ".join(p.split()) for p in parameters.split(",")]
            for name, parameters in DECLARED.findall(source)
        }
        self.shapes = dict(shapes)
        self.how = Launch()
        self.launched: list[str] = []
        # Of the last launch of each kernel, to be looked at.
        self.arguments: dict[str, tuple[int | NDArray[np.generic], ...]] = {}

    def launch(self, name: str, threads: int, *arguments: int | NDArray[np.generic]) -> None:
        """Arrays pass as pointers, ints as 64-bit values, as CuPy passes them."""
        assert threads > 0
        parameters = self._parameters[name]
        assert len(arguments) == len(parameters), name
        for value, parameter in zip(arguments, parameters, strict=True):
            check_argument(name, parameter, value)
        self.launched.append(name)
        self.arguments[name] = arguments
        self.run(name, self.how, *(a if isinstance(a, int) else a.ctypes.data for a in arguments))

    def run(self, name: str, how: Launch, *eight_bytes: int) -> None:
        """Launch with arguments of eight bytes each: addresses, integers, the bits of doubles."""
        ctypes.c_int.in_dll(self._library, "shim_backwards").value = how.backwards
        values = [ctypes.c_int64(a) for a in eight_bytes]
        params = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        block = self.shapes.get("THREADS", how.block)
        getattr(self._library, f"launch_{name}")(how.grid, block, params)


def check_argument(kernel: str, parameter: str, value: int | NDArray[np.generic]) -> None:
    """See that a kernel gets what it declares: a raw kernel would take anything."""
    words = parameter.replace("*", " * ").replace("const ", "").split()
    if "*" not in words:
        assert words[0] == "i64", f"{kernel}: a scalar must be 64 bits wide, not {parameter}"
        assert isinstance(value, int), f"{kernel}: {parameter} got {value!r}"
        return
    assert isinstance(value, np.ndarray), f"{kernel}: {parameter} got {value!r}"
    assert value.dtype == DTYPES[words[0]], f"{kernel}: {parameter} got {value.dtype}"
    # Samples are passed with their pitch; all else must be contiguous.
    assert value.flags.c_contiguous or words[-1] in ("samples", "out"), f"{kernel}: {parameter}"


class HostUploads:
    """Uploads that copy at once; what is sent is poisoned once its turn comes again."""

    def __init__(self, n_values: int) -> None:
        self._n_values = n_values
        self._host = np.empty(0, np.float32)
        self._sent: list[NDArray[np.float32]] = []

    def host(self, n_channels: int, n_samples: int) -> NDArray[np.float32]:
        assert n_channels * n_samples <= self._n_values
        self._host = np.full((n_channels, n_samples), np.nan, np.float32)
        return self._host

    def send(self) -> NDArray[np.float32]:
        if len(self._sent) == 2:
            self._sent.pop(0)[...] = np.nan
        self._sent.append(self._host.copy())
        self._host[...] = np.nan
        return self._sent[-1]

    def used(self) -> None:
        """Nothing is queued here."""


class HostAccelerator:
    """NumPy and the kernels built for the processor, as one `Accelerator`.

    Parameters
    ----------
    folder
        Where to build.
    memory_bytes
        What it says that it has.
    shapes
        #defines that replace the caller's, and THREADS, which are few by default, as a processor
        runs them one after the other.
    """

    def __init__(
        self, folder: Path, memory_bytes: int = 2**30, shapes: Mapping[str, int] | None = None
    ) -> None:
        self._folder = folder
        self._built: dict[tuple[str, tuple[tuple[str, int], ...]], HostKernels] = {}
        self._shapes = dict(shapes or {})
        self.memory_bytes = memory_bytes
        self.how = Launch()

    @property
    def xp(self) -> ModuleType:
        return np

    def kernels(self, source: str, **shapes: int) -> HostKernels:
        shapes["THREADS"] = 32
        shapes |= {k: v for k, v in self._shapes.items() if k in shapes}
        key = (source, tuple(sorted(shapes.items())))
        if key not in self._built:
            self._built[key] = build(KERNELS / f"{source}.cu", self._folder, **shapes)
        self._built[key].how = self.how
        return self._built[key]

    def free_bytes(self) -> int:
        return self.memory_bytes

    @contextmanager
    def uploads(self, n_values: int) -> Iterator[HostUploads]:
        yield HostUploads(n_values)

    @contextmanager
    def active(self) -> Iterator[None]:
        yield

    def to_torch(self, arrays: Iterable[NDArray[np.generic]]) -> list[torch.Tensor]:
        return [from_dlpack(array).clone() for array in arrays]

    @property
    def launched(self) -> set[str]:
        """Names of the kernels that have run."""
        return {name for kernels in self._built.values() for name in kernels.launched}


def build(source: Path, folder: Path, **shapes: int) -> HostKernels:
    """Compile a source with g++ and the shim; skips where there is no g++."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++: builds the kernels for the processor")
    text = source.read_text("utf-8")
    declared = list(DECLARED.finditer(text))
    ends = [*(d.start() for d in declared[1:]), len(text)]
    bodies = [text[d.end() : end] for d, end in zip(declared, ends, strict=True)]
    launchers = [
        f"LAUNCHER({d[1]}, {int('__syncthreads' in body)})"
        for d, body in zip(declared, bodies, strict=True)
    ]
    stem = "_".join([source.stem, *(str(v) for v in shapes.values())])
    unit = folder / f"{stem}.cpp"
    lines = ['#include "cuda_shim.h"', f'#include "{source}"', *launchers]
    unit.write_text("\n".join(lines) + "\n", "utf-8")
    out = unit.with_suffix(".so")
    command = [
        compiler, "-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror",
        "-shared", "-fPIC", f"-I{SHIM}", *(f"-D{k}={v}" for k, v in shapes.items()), str(unit),
        "-o", str(out),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return HostKernels(ctypes.CDLL(str(out)), text, shapes)


def decaying() -> NDArray[np.float32]:
    """Channels that fade into subnormal numbers, as of an amplifier that was switched off."""
    faded = 1e-30 * np.exp(-np.arange(4000) / 100.0)
    return np.array([faded, -faded, faded[::-1]], np.float64).astype(np.float32)
