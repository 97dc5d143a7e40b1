"""The GPU: kernels of kernels/ for CuPy's arrays and torch's tensors, arrays, pinned uploads.

Spike detection takes the array module, kernels and uploads from the `Accelerator` that it is given,
so that the same host code also runs on NumPy with kernels built for the processor. CuPy allocates
from torch's memory pool, so that neither takes the other's memory. It works on a stream of its own:
reading a recording and detecting its spikes does not wait for what torch still computes of the one
before.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError, ToptuneError
from toptune.machine import caches, installation

if TYPE_CHECKING:
    import torch

# numpy.ndarray or cupy.ndarray; CuPy has no types.
DeviceArray: TypeAlias = Any
# An array of either kind, a torch tensor, an int or a float.
KernelArgument: TypeAlias = Any

INSTALL = "pip install toptune[gpu]"

# Subnormal numbers stay what they are, as on the CPU. CuPy's own way to compile appends the
# opposite (its issue 9576), and the last one counts, so kernels are compiled here and loaded as
# machine code.
_LANGUAGE = ("--std=c++17", "--ftz=false")
# As on the CPU, products are rounded before they are added, so that results are equal.
COMPILER_OPTIONS = (*_LANGUAGE, "--fmad=false")

# Threads per block of spike detection, for which its shared memory is laid out; and of drawing.
THREADS = 128
_DRAWING_THREADS = 256
# More blocks than any GPU runs at once; the kernels' grid-stride loops do the rest.
_MOST_BLOCKS = 1 << 16
_MOST_DRAWING_BLOCKS = 1 << 20

_LOG = logging.getLogger(__name__)


class Launch(Protocol):
    """Queues kernels of one source."""

    def __call__(self, name: str, threads: int, /, *arguments: KernelArgument) -> None:
        """Queue a kernel for work of `threads` threads; it does all of it with any number.

        Arguments are passed as the kernel declares them: arrays and contiguous tensors as pointers,
        int as 64-bit integers, float as doubles.
        """


class Kernels(Protocol):
    """The kernels of one source, compiled for some shapes."""

    @property
    def shapes(self) -> Mapping[str, int]:
        """The values that were #defined."""

    @property
    def launch(self) -> Launch:
        """Queues a kernel."""


class Uploads(Protocol):
    """Two buffers that take turns: one is filled while the other is copied to the device."""

    def host(self, n_channels: int, n_samples: int) -> NDArray[np.float32]:
        """Return memory to fill, (channels, samples) float32, once it is free."""

    def send(self) -> DeviceArray:
        """Start to copy the memory; return the copy on the device, for work queued from now on."""

    def used(self) -> None:
        """Declare that all work on the copy is queued."""


class Accelerator(Protocol):
    """A device that holds arrays and runs kernels."""

    @property
    def xp(self) -> ModuleType:
        """The array module: numpy or cupy."""

    def kernels(self, source: str, **shapes: int) -> Kernels:
        """Compile kernels/`source`.cu for some shapes, once."""

    def free_bytes(self) -> int:
        """Return the bytes of memory that can still be allocated."""

    def uploads(self, n_values: int) -> AbstractContextManager[Uploads]:
        """Make upload buffers of `n_values` float32 values each."""

    def active(self) -> AbstractContextManager[None]:
        """Allocate and launch on this device inside the context.

        Arrays made inside are used inside of this context only, or of another of the same device.
        """

    def to_torch(self, arrays: Iterable[DeviceArray]) -> list[torch.Tensor]:
        """Copy arrays made inside `active` for torch's current stream, without waiting for it."""


def accelerator(device: str) -> Accelerator | None:
    """Open the device on which spikes are detected; None is the CPU.

    Parameters
    ----------
    device
        ``cpu``; ``cuda``; or ``auto``, which takes a GPU if there is one, and warns if that GPU
        cannot be used.

    Raises
    ------
    InputError
        The device is unknown, or ``cuda`` is given and CuPy or a GPU is missing.
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
        _LOG.warning("spikes are detected on the CPU, although there is a GPU: %s", error)
        return None


def driver_sees_gpu() -> bool:
    """Ask NVIDIA's driver whether there is a GPU, without importing CuPy or torch."""
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
        CuPy is not installed or does not work, or CuPy and torch do not both find a GPU.
    """
    try:
        caches.give_cupy_a_folder()
        import cupy
        import cupyx
    except ImportError as error:
        cause = " ".join(str(error).split())
        raise InputError(
            f"detecting spikes on a GPU needs CuPy ({cause}): {INSTALL}, or use `device='cpu'`"
        ) from None
    import torch

    try:
        found = int(cupy.cuda.runtime.getDeviceCount())
        cause = "CuPy finds none"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        found, cause = 0, str(error)
    if found and not torch.cuda.is_available():
        found, cause = 0, "torch finds none: it may be a build without CUDA"
    if not found:
        raise InputError(
            f"detecting spikes on a GPU needs one that CuPy and torch find ({cause}): use"
            f" `device='cpu'`, or check NVIDIA's driver; {INSTALL} installs the rest"
        )
    return CudaAccelerator(cupy, cupyx, torch)


class CudaAccelerator:
    """The current GPU, used by CuPy in torch's memory and on a stream of its own."""

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
        """Return the free bytes: those of the driver, and those that torch holds unused."""
        free, _ = self._torch.cuda.mem_get_info()
        cached = self._torch.cuda.memory_reserved() - self._torch.cuda.memory_allocated()
        return int(free + cached)

    def uploads(self, n_values: int) -> CudaUploads:
        """Make pinned upload buffers of `n_values` float32 values each."""
        return CudaUploads(self._cupy, self._cupyx.empty_pinned, n_values)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Work in torch's memory and on a stream of its own inside the context.

        What torch queues after the context waits for the work inside. That itself waits for nothing
        that torch has queued: it takes its input from the host.
        """
        cuda, torch_cuda = self._cupy.cuda, self._torch.cuda
        own, caller = self._stream, torch_cuda.current_stream()
        device = cuda.Device(torch_cuda.current_device())
        stream = cuda.Stream.from_external(_Stream(own.cuda_stream))
        try:
            with device, stream, cuda.using_allocator(self._allocator.malloc):
                yield
        finally:
            caller.wait_stream(own)

    @cached_property
    def _stream(self) -> Any:
        # Of high priority: the host waits for detection's short kernels, and would else wait for
        # the networks' long ones to make room for each.
        return self._torch.cuda.Stream(priority=-1)

    def to_torch(self, arrays: Iterable[DeviceArray]) -> list[torch.Tensor]:
        """Copy arrays made inside `active` for torch's current stream, without waiting for it.

        The stream waits for the copies. They are torch's own memory, which knows who uses it: that
        of CuPy's arrays, once freed, would be written to again by the next detection, however much
        torch has still to do with it.
        """
        caller = self._torch.cuda.current_stream()
        with self.active(), self._torch.cuda.stream(self._stream):
            copies = [self._torch.from_dlpack(array).clone() for array in arrays]
        for copy in copies:
            copy.record_stream(caller)
        return copies

    def _take(self, n_bytes: int, device: int) -> int:
        stream = int(self._cupy.cuda.get_current_stream().ptr)
        try:
            return int(self._torch.cuda.caching_allocator_alloc(n_bytes, device, stream))
        except self._torch.cuda.OutOfMemoryError:
            raise ToptuneError(
                f"the GPU has no {n_bytes / 2**20:.0f} MiB left to detect spikes: free some of its"
                " memory, or use `device='cpu'`"
            ) from None

    def _give_back(self, pointer: int, _device: int) -> None:
        self._torch.cuda.caching_allocator_delete(pointer)


class _Stream:
    """A stream by CUDA's stream protocol, which the streams of older torch versions lack."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._pointer


class MachineCode(NamedTuple):
    """A source compiled for one kind of GPU."""

    code: bytes  # for a GPU that is newer than the compiler PTX, which its driver compiles
    ptx: str  # the same in readable form
    options: tuple[str, ...]


def compile_source(
    nvrtc: ModuleType, source: str, options: tuple[str, ...], capability: int
) -> MachineCode:
    """Compile kernels/`source`.cu by NVRTC, which needs no GPU.

    Parameters
    ----------
    nvrtc
        `cupy.cuda.nvrtc`.
    source
        Name of the source, without its ending.
    options
        Of the compiler. Nothing is added to them but what to compile for.
    capability
        The GPU's compute capability, such as 90.

    Raises
    ------
    ToptuneError
        The compiler refuses the source; the message has its words.
    """
    known = [one for one in nvrtc.getSupportedArchs() if one <= capability]
    if not known:
        raise ToptuneError(
            f"this GPU has compute capability {capability / 10:g}, too old for the compiler that is"
            " installed: use `device='cpu'`"
        )
    exact = known[-1] == capability
    target = f"--gpu-architecture={'sm' if exact else 'compute'}_{max(known)}"
    path = installation.kernels() / f"{source}.cu"
    program = program_of(nvrtc, path)
    try:
        nvrtc.compileProgram(program, [target, *options])
        ptx: bytes = nvrtc.getPTX(program)
        code = nvrtc.getCUBIN(program) if exact else ptx
    except nvrtc.NVRTCError as error:
        log = " ".join(str(nvrtc.getProgramLog(program)).split()) or str(error)
        raise ToptuneError(f"{path} cannot be compiled: {log}") from None
    finally:
        nvrtc.destroyProgram(program)
    return MachineCode(code, ptx.decode("ascii", "replace"), (target, *options))


def program_of(nvrtc: Any, source: Path) -> Any:
    """Give a source to the compiler, `cupy.cuda.nvrtc`, with the headers beside it."""
    headers = sorted(source.parent.glob("*.cuh"))
    contents, names = [h.read_bytes() for h in headers], [h.name.encode() for h in headers]
    return nvrtc.createProgram(source.read_text("utf-8"), source.name, contents, names)


class CudaKernels:
    """Kernels compiled by NVRTC and loaded on the current GPU, each looked up once.

    `context` makes the context in which kernels are launched; by default it is the caller's.
    """

    def __init__(
        self,
        cupy: ModuleType,
        source: str,
        shapes: Mapping[str, int],
        *,
        options: tuple[str, ...] = COMPILER_OPTIONS,
        threads_per_block: int = THREADS,
        most_blocks: int = _MOST_BLOCKS,
        context: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.shapes = {"THREADS": threads_per_block, **shapes}
        self._threads_per_block = threads_per_block
        self._most_blocks = most_blocks
        self._context = context
        defines = tuple(f"-D{name}={value}" for name, value in self.shapes.items())
        capability = int(cupy.cuda.Device().compute_capability)
        self.compiled = compile_source(cupy.cuda.nvrtc, source, options + defines, capability)
        self._module = cupy.cuda.Module()
        self._module.load(self.compiled.code)
        self._functions: dict[str, Any] = {}

    def launch(self, name: str, threads: int, /, *arguments: KernelArgument) -> None:
        """Queue a kernel; see `Launch`."""
        blocks = min(max(1, -(-threads // self._threads_per_block)), self._most_blocks)
        values = tuple(map(_kernel_argument, arguments))
        with self._context():
            if name not in self._functions:
                self._functions[name] = self._module.get_function(name)
            self._functions[name]((blocks,), (self._threads_per_block,), values)


def _kernel_argument(argument: KernelArgument) -> Any:
    """Give an argument the width that kernels declare; CuPy takes its own arrays as they are."""
    if isinstance(argument, int):
        return np.int64(argument)
    if isinstance(argument, float):
        return np.float64(argument)
    return np.uint64(argument.data_ptr()) if hasattr(argument, "data_ptr") else argument


@cache
def torch_kernels(source: str, device_index: int) -> CudaKernels:
    """Compile the kernels that draw, in kernels/`source`.cu, for torch's tensors on a GPU.

    They run in torch's current stream on that GPU, and so keep their order with torch's own work
    without waiting for it.
    """
    try:
        import cupy
    except ImportError as error:
        raise ToptuneError(
            "drawing on a GPU needs CuPy: pip install 'toptune[gpu]', or use `device='cpu'`"
        ) from error
    import torch

    @contextmanager
    def on_torchs_stream() -> Iterator[None]:
        pointer = torch.cuda.current_stream(device_index).cuda_stream
        with cupy.cuda.Device(device_index), cupy.cuda.Stream.from_external(_Stream(pointer)):
            yield

    with cupy.cuda.Device(device_index):
        return CudaKernels(
            cupy,
            source,
            {},
            options=_LANGUAGE,
            threads_per_block=_DRAWING_THREADS,
            most_blocks=_MOST_DRAWING_BLOCKS,
            context=on_torchs_stream,
        )


class CudaUploads:
    """Two pinned buffers and their copies on the device, with a stream that only copies.

    Events keep the order: a pinned buffer is refilled only after it has been copied, and the copy
    on the device is overwritten only after the work queued on it has run.
    """

    def __init__(self, cupy: ModuleType, empty_pinned: Any, n_values: int) -> None:
        self._cupy = cupy
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._pinned = [empty_pinned((n_values,), np.float32) for _ in range(2)]
        self._device = [cupy.empty((n_values,), np.float32) for _ in range(2)]
        # With blocking events, the processor's core inflates chunks while the host waits.
        self._copied, self._used = (
            [cupy.cuda.Event(block=True, disable_timing=True) for _ in range(2)] for _ in range(2)
        )
        # Work queued before may still read memory that the pool has given out again.
        for event in self._used:
            event.record(self._now())
        self._turn = 0
        self._shape = (0, 0)

    def host(self, n_channels: int, n_samples: int) -> NDArray[np.float32]:
        """Return pinned memory to fill, once it has been copied."""
        self._copied[self._turn].synchronize()
        self._shape = (n_channels, n_samples)
        filled: NDArray[np.float32] = self._pinned[self._turn][: n_channels * n_samples]
        return filled.reshape(self._shape)

    def send(self) -> DeviceArray:
        """Copy on a separate stream, for which the current stream waits but not the host."""
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
        """Let the next copy into this buffer wait for the work queued now."""
        self._used[self._turn].record(self._now())
        self._turn = 1 - self._turn

    def _now(self) -> Any:
        return self._cupy.cuda.get_current_stream()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Pinned memory goes back to its pool, which takes no account of streams.
        self._stream.synchronize()


def to_host(array: DeviceArray) -> NDArray[Any]:
    """Copy an array of either array module to the host; a NumPy array is returned as it is."""
    copied: NDArray[Any] = array if isinstance(array, np.ndarray) else array.get()
    return copied
