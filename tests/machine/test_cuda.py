"""Opening a GPU, its refusals, and the order that uploads keep, without a GPU."""

from __future__ import annotations

import ast
import builtins
import ctypes
import inspect
import logging
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toptune.errors import InputError, ToptuneError
from toptune.machine import cuda
from toptune.machine.cuda import CudaAccelerator, CudaUploads, accelerator, open_cuda, to_host

PACKAGE = Path(__file__).parents[2] / "toptune"
ON_DEVICE = (
    "spikes/preparing_cuda",
    "spikes/ptsd_cuda",
    "spikes/streaming_cuda",
)

# --- what the user's word means


def test_cpu_is_no_accelerator() -> None:
    assert accelerator("cpu") is None


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(InputError, match="device must be auto, cpu or cuda, got 'gpu'"):
        accelerator("gpu")


@pytest.fixture
def _no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> ModuleType:
        if name.partition(".")[0] in ("cupy", "cupyx"):
            raise ImportError("No module named 'cupy'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.mark.usefixtures("_no_cupy")
def test_cuda_without_cupy_says_what_to_install() -> None:
    with pytest.raises(InputError) as caught:
        accelerator("cuda")
    assert str(caught.value) == (
        "detecting spikes on a GPU needs CuPy (No module named 'cupy'): pip install toptune[gpu],"
        " or use `device='cpu'`"
    )


@pytest.mark.usefixtures("_no_cupy")
def test_auto_says_that_a_gpu_is_left_idle(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cuda, "driver_sees_gpu", lambda: True)
    with caplog.at_level(logging.WARNING):
        assert accelerator("auto") is None
    assert "on the CPU, although there is a GPU: detecting spikes on a GPU needs" in caplog.text


def test_auto_is_silent_where_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cuda, "driver_sees_gpu", lambda: False)
    assert accelerator("auto") is None
    assert caplog.text == ""


class NoDriverError(RuntimeError):
    """Stands for cupy.cuda.runtime.CUDARuntimeError."""


@pytest.mark.parametrize(
    ("cupy_sees", "torch_sees", "cause"),
    [(None, True, "no driver"), (0, True, "CuPy finds none"), (1, False, "torch finds none")],
)
def test_cuda_without_a_gpu_says_who_misses_it(
    monkeypatch: pytest.MonkeyPatch, cupy_sees: int | None, torch_sees: bool, cause: str
) -> None:
    def count() -> int:
        if cupy_sees is None:
            raise NoDriverError("no driver")
        return cupy_sees

    runtime = SimpleNamespace(getDeviceCount=count, CUDARuntimeError=NoDriverError)
    fake = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))
    for name in ("cupy", "cupyx"):
        monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.setattr("torch.cuda.is_available", lambda: torch_sees)
    with pytest.raises(InputError, match=rf"{cause}.* `device='cpu'`.*pip install toptune\[gpu\]"):
        open_cuda()


def test_asking_the_driver_does_no_harm_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(_name: str) -> None:
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert cuda.driver_sees_gpu() is False


# --- what is asked of CuPy is there


@pytest.fixture(scope="module")
def cupy() -> ModuleType:
    module: ModuleType = pytest.importorskip("cupy", reason="CuPy: not installed")
    return module


def array_module_calls() -> Iterator[tuple[str, ast.Attribute, ast.Call | None]]:
    """Every xp.NAME of the modules that run on either array module, with its call."""
    for name in ON_DEVICE:
        tree = ast.parse((PACKAGE / f"{name}.py").read_text("utf-8"))
        calls = {id(n.func): n for n in ast.walk(tree) if isinstance(n, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                owner = node.value
                owned = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
                if owned in ("xp", "_xp"):
                    yield f"{name}, line {node.lineno}", node, calls.get(id(node))


def test_cupy_has_all_that_is_used_of_the_array_module(cupy: ModuleType) -> None:
    seen = set()
    for where, node, call in array_module_calls():
        function = getattr(cupy, node.attr, None)
        assert function is not None, f"{where}: cupy has no {node.attr}"
        seen.add(node.attr)
        if call is not None and isinstance(function, cupy.ufunc):
            assert not call.keywords, where
        elif call is not None:
            accepted = inspect.signature(function).parameters
            for keyword in call.keywords:
                assert keyword.arg in accepted, f"{where}: cupy.{node.attr} has no {keyword.arg}"
            assert len(call.args) <= len(accepted)
    # No arithmetic of samples: CuPy flushes subnormal numbers. Integers are summed and sorted.
    assert seen == {
        "argsort", "asarray", "concatenate", "cumsum", "empty", "empty_like", "ones", "zeros",
    }  # fmt: skip


@pytest.mark.parametrize("method", ["astype", "copy", "fill", "reshape", "get", "__dlpack__"])
def test_cupy_arrays_have_the_methods_that_are_used(cupy: ModuleType, method: str) -> None:
    assert callable(getattr(cupy.ndarray, method))


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("cuda.PythonFunctionAllocator", "malloc_func, free_func"),
        ("cuda.PythonFunctionAllocator.malloc", "size"),
        ("cuda.using_allocator", "allocator"),
        ("cuda.get_current_stream", ""),
        ("cuda.Stream.from_external", "obj"),
        ("cuda.Stream", "non_blocking"),
        ("cuda.Device", "device"),
        ("cuda.Device.__enter__", ""),
        ("cuda.Stream.__enter__", ""),
        ("cuda.Stream.wait_event", "event"),
        ("cuda.Stream.synchronize", ""),
        ("cuda.Event", "block disable_timing"),
        ("cuda.Event.record", "stream"),
        ("cuda.Event.synchronize", ""),
        ("cuda.MemoryPointer.copy_from_host_async", "mem size stream"),
        ("cuda.runtime.getDeviceCount", ""),
        ("cuda.runtime.CUDARuntimeError", ""),
        ("cuda.Device.compute_capability", ""),
        ("cuda.Module", ""),
        ("cuda.Module.load", "cubin"),
        ("cuda.Module.get_function", "name"),
        ("cuda.Function.__call__", ""),
        ("cuda.nvrtc.createProgram", "src name headers include_names"),
        ("cuda.nvrtc.compileProgram", "prog options"),
        ("cuda.nvrtc.getCUBIN", "prog"),
        ("cuda.nvrtc.getPTX", "prog"),
        ("cuda.nvrtc.getProgramLog", "prog"),
        ("cuda.nvrtc.destroyProgram", "prog"),
        ("cuda.nvrtc.getSupportedArchs", ""),
    ],
)
def test_cupy_has_the_rest_that_is_used(cupy: ModuleType, path: str, parameters: str) -> None:
    found: Any = cupy
    for part in path.split("."):
        found = getattr(found, part)
    # Compiled classes tell their parameters in their first lines only.
    documented = f"{found.__doc__} {getattr(found, '__init__', found).__doc__}"
    for parameter in parameters.replace(",", "").split():
        assert parameter in documented, f"{path} does not document {parameter}"


def test_cupyx_makes_pinned_arrays_of_a_dtype(cupy: ModuleType) -> None:
    assert cupy.__version__
    import cupyx

    assert list(inspect.signature(cupyx.empty_pinned).parameters)[:2] == ["shape", "dtype"]


def test_cupys_memory_comes_from_torch_by_cupys_own_allocator(cupy: ModuleType) -> None:
    taken: list[tuple[int, int, int]] = []
    given: list[int] = []

    def take(size: int, device: int, stream: int) -> int:
        taken.append((size, device, stream))
        return 4096

    torch = SimpleNamespace(
        cuda=SimpleNamespace(caching_allocator_alloc=take, caching_allocator_delete=given.append)
    )
    stream = SimpleNamespace(ptr=77)
    parts = SimpleNamespace(
        PythonFunctionAllocator=cupy.cuda.PythonFunctionAllocator, get_current_stream=lambda: stream
    )
    fake = SimpleNamespace(cuda=parts)
    made = CudaAccelerator(fake, fake, torch)  # type: ignore[arg-type]  # what stands for modules
    assert made._take(512, 1) == 4096
    made._give_back(4096, 1)
    assert (taken, given) == ([(512, 1, 77)], [4096])


def test_a_full_gpu_is_one_clear_error(cupy: ModuleType) -> None:
    class FullError(RuntimeError):
        pass

    def refuse(*_: int) -> int:
        raise FullError("CUDA out of memory, with much else")

    memory = SimpleNamespace(caching_allocator_alloc=refuse, OutOfMemoryError=FullError)
    parts = SimpleNamespace(
        PythonFunctionAllocator=cupy.cuda.PythonFunctionAllocator,
        get_current_stream=lambda: SimpleNamespace(ptr=0),
    )
    fake = SimpleNamespace(cuda=parts)
    made = CudaAccelerator(fake, fake, SimpleNamespace(cuda=memory))  # type: ignore[arg-type]  # what stands for modules
    with pytest.raises(ToptuneError, match=r"no 300 MiB left .* `device='cpu'`"):
        made._take(300 * 2**20, 0)


@pytest.mark.parametrize("pointer", [0, 12_345])
def test_cupy_works_on_a_stream_of_torchs(cupy: ModuleType, pointer: int) -> None:
    assert cupy.cuda.Stream.from_external(cuda._Stream(pointer)).ptr == pointer


def test_a_host_array_stays_where_it_is() -> None:
    x = np.arange(3)
    assert to_host(x) is x


# --- uploads, on streams that run as late and in as odd an order as their events allow


class Simulation:
    """Streams whose work is queued, and run by chance."""

    def __init__(self, seed: int, *, heed_waits: bool = True) -> None:
        self.random = random.Random(seed)
        self.streams: list[SimulatedStream] = []
        self.heed_waits = heed_waits
        self.current = self.stream()

    def stream(self, **_: bool) -> SimulatedStream:
        self.streams.append(SimulatedStream(self))
        return self.streams[-1]

    def event(self, **_: bool) -> SimulatedEvent:
        return SimulatedEvent(self)

    def step(self) -> None:
        ready = [s for s in self.streams if s.queue and s.queue[0][0]()]
        assert ready, "deadlock"
        self.random.choice(ready).queue.popleft()[1]()

    def some_steps(self) -> None:
        for _ in range(self.random.randrange(4)):
            if any(s.queue for s in self.streams):
                self.step()

    def until(self, done: Callable[[], bool]) -> None:
        while not done():
            self.step()

    def module(self) -> Any:
        parts = SimpleNamespace(
            Stream=self.stream, Event=self.event, get_current_stream=lambda: self.current
        )
        return SimpleNamespace(cuda=parts, empty=lambda n, kind: np.empty(n, kind).view(OnDevice))


class SimulatedStream:
    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self.queue: deque[tuple[Callable[[], bool], Callable[[], object]]] = deque()

    def add(self, act: Callable[[], object]) -> None:
        self.queue.append((lambda: True, act))

    def wait_event(self, event: SimulatedEvent) -> None:
        wanted = event.recorded
        if self._simulation.heed_waits:
            self.queue.append((lambda: event.reached >= wanted, lambda: None))

    def synchronize(self) -> None:
        self._simulation.until(lambda: not self.queue)


class SimulatedEvent:
    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self.recorded = self.reached = 0

    def record(self, stream: SimulatedStream) -> None:
        self.recorded += 1
        number = self.recorded
        stream.add(lambda: setattr(self, "reached", number))

    def synchronize(self) -> None:
        wanted = self.recorded
        self._simulation.until(lambda: self.reached >= wanted)


class OnDevice(np.ndarray[Any, Any]):
    """An array whose memory is copied to when the copying stream comes to it."""

    @property
    def data(self) -> Any:
        def copy(source: int, size: int, stream: SimulatedStream) -> None:
            stream.add(lambda: ctypes.memmove(self.ctypes.data, source, size))

        return SimpleNamespace(copy_from_host_async=copy)


def uploaded(simulation: Simulation, sizes: list[int]) -> list[NDArray[np.float32]]:
    """Send chunks filled with their numbers; what queued work sees of them."""
    seen: list[NDArray[np.float32]] = []

    def see(raw: NDArray[np.float32]) -> None:
        seen.append(np.array(raw))

    with CudaUploads(simulation.module(), np.empty, 2 * 50) as uploads:
        for number, size in enumerate(sizes):
            host = uploads.host(2, size)
            simulation.some_steps()
            host[...] = number
            raw = uploads.send()
            simulation.some_steps()
            assert raw.shape == (2, size)
            simulation.current.add(partial(see, raw))
            uploads.used()
            simulation.some_steps()
    simulation.until(lambda: not simulation.current.queue)
    return seen


def is_right(seen: list[NDArray[np.float32]], sizes: list[int]) -> bool:
    return all(
        (chunk == number).all() and chunk.shape == (2, size)
        for number, (chunk, size) in enumerate(zip(seen, sizes, strict=True))
    )


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), sizes=st.lists(st.integers(0, 50), max_size=9))
def test_queued_work_sees_the_chunk_it_was_queued_for(seed: int, sizes: list[int]) -> None:
    assert is_right(uploaded(Simulation(seed), sizes), sizes)


def test_the_simulation_notices_when_streams_do_not_wait() -> None:
    sizes = [50] * 6
    wrong = [
        seed
        for seed in range(30)
        if not is_right(uploaded(Simulation(seed, heed_waits=False), sizes), sizes)
    ]
    assert len(wrong) > 20


def test_reading_the_next_chunk_does_not_wait_for_the_last_to_be_copied() -> None:
    simulation = Simulation(0)
    with CudaUploads(simulation.module(), np.empty, 2 * 50) as uploads:
        for _ in range(2):
            uploads.host(2, 50)
            uploads.send()
            uploads.used()
        # Nothing has run on any stream yet: the host has filled both buffers without waiting.
        assert all(stream.queue for stream in simulation.streams)


# --- detection on a stream of its own


class Gpu:
    """CuPy and torch on simulated streams; `torch_stream` is the one that torch works on."""

    def __init__(self, seed: int) -> None:
        self.simulation = Simulation(seed)
        self.torch_stream = self.simulation.current
        self.handed: list[tuple[object, object]] = []
        self._by_number: dict[int, SimulatedStream] = {}
        torch_cuda = SimpleNamespace(
            Stream=self._new_stream, current_stream=lambda: self._as_torchs(self.torch_stream),
            current_device=lambda: 0, stream=lambda _: nullcontext(),
        )  # fmt: skip
        torch = SimpleNamespace(cuda=torch_cuda, from_dlpack=self._shared)
        cupy_cuda = SimpleNamespace(
            Stream=SimpleNamespace(from_external=self._current), Device=lambda _: nullcontext(),
            Event=self.simulation.event, using_allocator=lambda _: nullcontext(),
            get_current_stream=lambda: self.simulation.current,
            PythonFunctionAllocator=lambda *_: SimpleNamespace(malloc=None),
        )  # fmt: skip
        self.accelerator = CudaAccelerator(SimpleNamespace(cuda=cupy_cuda), None, torch)  # type: ignore[arg-type]  # what stands for modules

    def _new_stream(self, *, priority: int) -> Any:
        assert priority < 0
        return self._as_torchs(self.simulation.stream())

    def _as_torchs(self, stream: SimulatedStream) -> Any:
        self._by_number[id(stream)] = stream

        def wait_stream(other: Any) -> None:
            event = self.simulation.event()
            event.record(self._by_number[other.cuda_stream])
            stream.wait_event(event)

        return SimpleNamespace(cuda_stream=id(stream), wait_stream=wait_stream)

    @contextmanager
    def _current(self, stream: Any) -> Iterator[None]:
        _, number = stream.__cuda_stream__()
        before, self.simulation.current = self.simulation.current, self._by_number[number]
        yield
        self.simulation.current = before

    def _shared(self, array: NDArray[np.float32]) -> Any:
        """Give a tensor whose copy is made when the current stream comes to it."""

        def clone() -> Any:
            copy = np.zeros_like(array)
            self.simulation.current.add(lambda: np.copyto(copy, array))

            def note(stream: Any) -> None:
                self.handed.append((stream.cuda_stream, copy))

            return SimpleNamespace(copied=copy, record_stream=note)

        return SimpleNamespace(clone=clone)

    def keep_torch_busy(self) -> list[bool]:
        """Queue work on torch's stream that ends when True is put into the list."""
        ended: list[bool] = []
        self.torch_stream.queue.append((lambda: bool(ended), lambda: None))
        return ended


@pytest.mark.parametrize("seed", range(20))
def test_reading_and_detecting_wait_for_nothing_that_torch_has_queued(seed: int) -> None:
    gpu = Gpu(seed)
    ended = gpu.keep_torch_busy()
    seen: list[float] = []
    with gpu.accelerator.active():
        # A simulation that waits for work which cannot run fails.
        module = gpu.simulation.module()
        with CudaUploads(module, np.empty, 8) as uploads:
            for number in range(5):
                uploads.host(2, 4)[...] = number
                raw = uploads.send()
                gpu.simulation.current.add(partial(lambda raw: seen.append(raw.max()), raw))
                uploads.used()
        gpu.simulation.current.synchronize()
    assert seen == [0, 1, 2, 3, 4]
    assert len(gpu.torch_stream.queue) > 0
    ended.append(True)
    gpu.torch_stream.synchronize()


@pytest.mark.parametrize("seed", range(20))
def test_what_torch_queues_next_sees_what_was_detected(seed: int) -> None:
    gpu = Gpu(seed)
    found = np.zeros(3, np.float32)
    seen: list[list[float]] = []
    with gpu.accelerator.active():
        gpu.simulation.current.add(lambda: found.fill(7))
    (tensor,) = gpu.accelerator.to_torch([found])
    # CuPy's memory is free now, and detection of the next recording overwrites it.
    with gpu.accelerator.active():
        gpu.simulation.current.add(lambda: found.fill(-1))
    gpu.torch_stream.add(lambda: seen.append(tensor.copied.tolist()))  # type: ignore[attr-defined]  # of the simulation
    gpu.torch_stream.synchronize()
    assert seen == [[7, 7, 7]]
    # Torch is told who uses its copy, or would give its memory away too early.
    ((user, copy),) = gpu.handed
    assert user == id(gpu.torch_stream)
    assert copy is tensor.copied  # type: ignore[attr-defined]  # of the simulation
