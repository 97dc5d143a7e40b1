"""A GPU for the stages before drawing: CuPy's arrays, the kernels of kernels/, pinned uploads.

What enters: the user's word (``auto``, ``cpu`` or ``cuda``). What leaves: an `Accelerator`, or None
for the CPU. The stages take array module, kernels and uploads from the accelerator they are given,
so that the same host code also runs on NumPy with the kernels built for the processor. CuPy takes
its memory from torch's pool and works on torch's stream: neither waits for, nor starves, the other.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType, TracebackType
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError, ToptuneError
from toptune.machine import assets

# numpy.ndarray or cupy.ndarray; CuPy has no types.
DeviceArray: TypeAlias = Any

INSTALL = "pip install toptune[gpu]"

# Exact kernels: as the CPU computes, products are rounded before they are added.
COMPILER_OPTIONS = ("--std=c++17", "--fmad=false")

# A block of threads; tiles of kernels that share memory are made for it.
THREADS = 128
# More blocks than any GPU holds at once; grid-stride loops do the rest.
_MOST_BLOCKS = 1 << 16

_LOG = logging.getLogger(__name__)


class Kernels(Protocol):
    """The kernels of one source, compiled for some shapes."""

    @property
    def shapes(self) -> Mapping[str, int]:
        """What was #defined."""

    def launch(self, name: str, threads: int, *arguments: DeviceArray | int) -> None:
        """Queue a kernel that has work for `threads` threads; ints pass as 64-bit values."""


class Uploads(Protocol):
    """Two buffers that take turns: one is filled while the other travels to the device."""

    def host(self, n_channels: int, n_samples: int) -> NDArray[np.float32]:
        """Give memory to fill, (channels, samples) float32; waits until it is free."""

    def send(self) -> DeviceArray:
        """Start to copy what `host` gave; the device's copy, for work queued from now on."""

    def used(self) -> None:
        """Tell that all work on what `send` gave is queued."""


class Accelerator(Protocol):
    """Where arrays live and kernels run."""

    @property
    def xp(self) -> ModuleType:
        """The array module: numpy or cupy."""

    def kernels(self, source: str, **shapes: int) -> Kernels:
        """Compile kernels/`source`.cu for some shapes, once."""

    def free_bytes(self) -> int:
        """Memory that can still be taken."""

    def uploads(self, n_values: int) -> AbstractContextManager[Uploads]:
        """Make upload buffers of `n_values` float32 values each."""

    def active(self) -> AbstractContextManager[None]:
        """Allocate and launch on this accelerator for a while."""


def accelerator(device: str) -> Accelerator | None:
    """Resolve the user's word; None is the CPU.

    Parameters
    ----------
    device
        ``auto`` takes a GPU if there is one, and says so where it cannot be used; ``cpu`` and
        ``cuda`` mean what they say.

    Raises
    ------
    InputError
        The device is unknown, or ``cuda`` is asked for and CuPy or a GPU is missing.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device must be auto, cpu or cuda, got {device!r}")
    if device == "cuda":
        return open_cuda()
    if device == "cpu" or not driver_sees_gpu():
        return None
    try:
        return open_cuda()
    except InputError as error:
        _LOG.warning("spikes are found on the CPU, although a GPU is here: %s", error)
        return None


def driver_sees_gpu() -> bool:
    """Ask NVIDIA's driver for a GPU, which takes no heavy import."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        count = ctypes.c_int()
        ok = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        return ok and count.value > 0
    return False


def open_cuda() -> CudaAccelerator:
    """Open the current GPU.

    Raises
    ------
    InputError
        CuPy is not installed or does not work, or there is no GPU that it and torch see.
    """
    try:
        import cupy
        import cupyx
    except ImportError as error:
        cause = " ".join(str(error).split())
        raise InputError(
            f"spikes on a GPU need CuPy ({cause}): {INSTALL}, or use --device cpu"
        ) from None
    import torch

    try:
        found = int(cupy.cuda.runtime.getDeviceCount())
        cause = "there is none"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        found, cause = 0, str(error)
    if found and not torch.cuda.is_available():
        found, cause = 0, "torch sees none: it may be a build without CUDA"
    if not found:
        raise InputError(
            f"spikes on a GPU need one that CuPy and torch see ({cause}): use --device cpu, or see"
            f" to the driver; {INSTALL} brings the rest"
        )
    return CudaAccelerator(cupy, cupyx, torch)


class CudaAccelerator:
    """The current GPU, by CuPy, in torch's memory and on torch's stream.

    Parameters
    ----------
    cupy, cupyx, torch
        The modules.
    """

    def __init__(self, cupy: ModuleType, cupyx: ModuleType, torch: ModuleType) -> None:
        self._cupy = cupy
        self._cupyx = cupyx
        self._torch = torch
        self._allocator = cupy.cuda.PythonFunctionAllocator(self._take, self._give_back)
        self._compiled: dict[tuple[str, tuple[tuple[str, int], ...]], CudaKernels] = {}

    @property
    def xp(self) -> ModuleType:
        """CuPy."""
        return self._cupy

    def kernels(self, source: str, **shapes: int) -> CudaKernels:
        """Compile kernels/`source`.cu for some shapes, once."""
        key = (source, tuple(sorted(shapes.items())))
        if key not in self._compiled:
            self._compiled[key] = CudaKernels(self._cupy, source, shapes)
        return self._compiled[key]

    def free_bytes(self) -> int:
        """Memory that the driver has left, and that torch holds and does not use."""
        free, _ = self._torch.cuda.mem_get_info()
        cached = self._torch.cuda.memory_reserved() - self._torch.cuda.memory_allocated()
        return int(free + cached)

    def uploads(self, n_values: int) -> CudaUploads:
        """Make pinned upload buffers of `n_values` float32 values each."""
        return CudaUploads(self._cupy, self._cupyx.empty_pinned, n_values)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Work in torch's memory and on torch's stream for a while."""
        cuda, torch_cuda = self._cupy.cuda, self._torch.cuda
        stream = cuda.Stream.from_external(_Stream(torch_cuda.current_stream().cuda_stream))
        device = cuda.Device(torch_cuda.current_device())
        with device, stream, cuda.using_allocator(self._allocator.malloc):
            yield

    def _take(self, n_bytes: int, device: int) -> int:
        stream = int(self._cupy.cuda.get_current_stream().ptr)
        try:
            return int(self._torch.cuda.caching_allocator_alloc(n_bytes, device, stream))
        except self._torch.cuda.OutOfMemoryError:
            raise ToptuneError(
                f"the GPU has no {n_bytes / 2**20:.0f} MiB left to find spikes with: free some of"
                " its memory, or use --device cpu"
            ) from None

    def _give_back(self, pointer: int, _device: int) -> None:
        self._torch.cuda.caching_allocator_delete(pointer)


class _Stream:
    """A stream as CUDA's stream protocol hands it over; older torch streams do not speak it."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._pointer


class CudaKernels:
    """Kernels compiled by NVRTC when the first is launched; CuPy caches the machine code.

    Parameters
    ----------
    cupy
        The module.
    source
        Name of the file in kernels/, without ``.cu``.
    shapes
        What to #define.
    """

    def __init__(self, cupy: ModuleType, source: str, shapes: Mapping[str, int]) -> None:
        self.shapes = dict(shapes)
        code = (assets.kernels() / f"{source}.cu").read_text("utf-8")
        defines = tuple(f"-D{name}={value}" for name, value in self.shapes.items())
        self._module = cupy.RawModule(code=code, options=COMPILER_OPTIONS + defines)

    def launch(self, name: str, threads: int, *arguments: DeviceArray | int) -> None:
        """Queue a kernel on the current stream."""
        blocks = min(max(1, -(-threads // THREADS)), _MOST_BLOCKS)
        values = tuple(np.int64(a) if isinstance(a, int) else a for a in arguments)
        self._module.get_function(name)((blocks,), (THREADS,), values)


class CudaUploads:
    """Two pinned buffers and their copies on the device, with a stream that only copies.

    Events keep the order: a pinned buffer is filled again only after its copy has been made, and
    the copy on the device is overwritten only after what was queued on it has run.

    Parameters
    ----------
    cupy
        The module.
    empty_pinned
        `cupyx.empty_pinned`.
    n_values
        float32 values a buffer.
    """

    def __init__(self, cupy: ModuleType, empty_pinned: Any, n_values: int) -> None:
        self._cupy = cupy
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._pinned = [empty_pinned((n_values,), np.float32) for _ in range(2)]
        self._device = [cupy.empty((n_values,), np.float32) for _ in range(2)]
        # Blocking ones let the processor's core inflate chunks while the host waits.
        self._copied, self._used = (
            [cupy.cuda.Event(block=True, disable_timing=True) for _ in range(2)] for _ in range(2)
        )
        # Memory from the pool may still be read by what was queued before.
        for event in self._used:
            event.record(self._now())
        self._turn = 0
        self._shape = (0, 0)

    def host(self, n_channels: int, n_samples: int) -> NDArray[np.float32]:
        """Give pinned memory to fill; waits until its last copy has been made."""
        self._copied[self._turn].synchronize()
        self._shape = (n_channels, n_samples)
        filled: NDArray[np.float32] = self._pinned[self._turn][: n_channels * n_samples]
        return filled.reshape(self._shape)

    def send(self) -> DeviceArray:
        """Copy on the stream of its own; the current stream waits for it, the host does not."""
        k = self._turn
        size = self._shape[0] * self._shape[1]
        self._stream.wait_event(self._used[k])
        copy = self._device[k][:size]
        if size:
            copy.data.copy_from_host_async(self._pinned[k].ctypes.data, 4 * size, self._stream)
        self._copied[k].record(self._stream)
        self._now().wait_event(self._copied[k])
        return copy.reshape(self._shape)

    def used(self) -> None:
        """Let the next turn's copy wait for what is queued now."""
        self._used[self._turn].record(self._now())
        self._turn = 1 - self._turn

    def _now(self) -> Any:
        return self._cupy.cuda.get_current_stream()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Pinned memory goes back to its pool, which knows nothing of streams.
        self._stream.synchronize()


def to_host(array: DeviceArray) -> NDArray[Any]:
    """Copy an array of any array module to the host; one that is there stays as it is."""
    copied: NDArray[Any] = array if isinstance(array, np.ndarray) else array.get()
    return copied
