"""CUDA sources without a GPU: NVRTC takes them, alone and through CuPy, and what g++ runs is them.

What the kernels compute is held against the CPU path in test_spikes_cuda.py, test_filters_cuda.py
and test_noise_cuda.py, which run them through their own host code.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from cuda_on_cpu import DECLARED, KERNELS, HostKernels, Launch, build, check_argument
from sass import Instruction, Kind, instructions, most_at_once

from toptune.errors import ToptuneError
from toptune.machine.cuda import COMPILER_OPTIONS, CudaAccelerator, compile_source
from toptune.spikes.preparing_cuda import HIGHPASS_SHAPES, NOISE_SHAPES, SUM_SHAPES
from toptune.spikes.ptsd_cuda import PTSD_SHAPES

SOURCES = sorted(KERNELS.glob("*.cu"))
OWN = [KERNELS / f"{name}.cu" for name in ("highpass", "noise", "ptsd", "sums")]
HEADERS = sorted(KERNELS.glob("*.cuh"))
# Fused, flushed or approximate: what the CPU does not do.
INEXACT = re.compile(r"\bfma\b|\.ftz|\.approx")


def kernel_names(source: Path) -> set[str]:
    return {name for name, _ in DECLARED.findall(source.read_text("utf-8"))}


class Nvrtc:
    """NVIDIA's run-time compiler, by its C interface; it needs neither GPU nor driver."""

    def __init__(self, path: Path) -> None:
        # NVRTC opens its builtins by name only: loaded from beside it, they are found.
        for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(builtins))
        self._c = ctypes.CDLL(str(path))
        self._c.nvrtcGetErrorString.restype = ctypes.c_char_p

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._c, name)(*arguments)
        assert code == 0, f"{name}: {self._c.nvrtcGetErrorString(code).decode()}"

    def architectures(self) -> list[int]:
        """Compute capabilities it knows, such as 90, from 75 on: it warns of those before."""
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        found = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", found)
        return sorted(a for a in found if a >= 75)

    def compile(self, source: Path, *options: str) -> tuple[str, str, int]:
        """Compile; returns the log, the PTX and the size of the machine code in bytes."""
        program = ctypes.c_void_p()
        text = source.read_bytes()
        name = source.name.encode()
        strings = ctypes.c_char_p * len(HEADERS)
        contents = strings(*(h.read_bytes() for h in HEADERS))
        names = strings(*(h.name.encode() for h in HEADERS))
        self._call(
            "nvrtcCreateProgram", ctypes.byref(program), text, name, len(HEADERS), contents, names
        )
        flags = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        code = self._c.nvrtcCompileProgram(program, len(options), flags)
        log = self._text(program, "ProgramLog")
        assert code == 0, log
        ptx = self._text(program, "PTX")
        size = ctypes.c_size_t()
        self._call("nvrtcGetCUBINSize", program, ctypes.byref(size))
        self._call("nvrtcDestroyProgram", ctypes.byref(program))
        return log, ptx, size.value

    def _text(self, program: ctypes.c_void_p, what: str) -> str:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, text)
        return text.value.decode()


@pytest.fixture(scope="module")
def nvrtc() -> Nvrtc:
    """The compiler of NVIDIA's wheels, which torch for CUDA and cupy's extras bring along."""
    spec = importlib.util.find_spec("nvidia")
    roots = (spec.submodule_search_locations or []) if spec else []
    found = sorted(
        path
        for root in roots
        for path in Path(root).glob("*/lib/libnvrtc.so.*")
        if ".alt." not in path.name
    )
    if not found:
        pytest.skip("NVRTC: neither torch for CUDA nor the nvidia-cuda-nvrtc wheel is installed")
    return Nvrtc(found[-1])


@pytest.fixture(scope="module")
def cupys_nvrtc() -> ModuleType:
    cuda = pytest.importorskip("cupy.cuda", reason="CuPy: not installed")
    found: ModuleType = cuda.nvrtc
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
@pytest.mark.parametrize("which", [0, -1], ids=["oldest", "newest"])
def test_nvrtc_compiles_the_source_without_a_word(nvrtc: Nvrtc, source: Path, which: int) -> None:
    architecture = nvrtc.architectures()[which]
    log, ptx, machine_code_bytes = nvrtc.compile(
        source, f"--gpu-architecture=sm_{architecture}", "--std=c++17"
    )
    assert log.strip() == ""
    assert machine_code_bytes > 1000
    assert kernel_names(source) == set(re.findall(r"\.entry (\w+)\(", ptx))


@pytest.mark.parametrize("source", OWN, ids=lambda path: path.name)
def test_kernels_of_detection_have_no_fused_or_flushed_arithmetic(
    nvrtc: Nvrtc, source: Path
) -> None:
    oldest = nvrtc.architectures()[0]
    _, ptx, _ = nvrtc.compile(source, f"--gpu-architecture=sm_{oldest}", *COMPILER_OPTIONS)
    assert re.search(r"(sub|add)(\.rn)?\.f(32|64)", ptx)
    assert INEXACT.findall(ptx) == []


@pytest.mark.parametrize("source", OWN, ids=lambda path: path.name)
def test_no_kernel_spills_its_registers(nvrtc: Nvrtc, source: Path) -> None:
    newest = nvrtc.architectures()[-1]
    options = (*COMPILER_OPTIONS, "-DHIGHPASS_SECTIONS=4", "--ptxas-options=--verbose")
    log, _, _ = nvrtc.compile(source, f"--gpu-architecture=sm_{newest}", *options)
    assert log.count(" 0 bytes stack frame, 0 bytes spill stores") == len(kernel_names(source))


# --- instructions of the machine code for Hopper


class Learnt(NamedTuple):
    """What loads from global memory look like in machine code."""

    of_float: Kind
    of_double: Kind


def some_loads(value: str, n: int) -> str:
    """Write a kernel that loads n values before it uses any."""
    loaded = "".join(f"  const {value} v{k} = x[i + {1000 * k}];\n" for k in range(n))
    used = " + ".join(f"v{k}" for k in range(n))
    return (
        f'extern "C" __global__ void loads(const {value} *__restrict__ x, {value} *y) {{\n'
        f"  const int i = blockIdx.x * 128 + threadIdx.x;\n{loaded}  y[i] = {used};\n}}\n"
    )


# Each address is loaded: only one load can be on its way.
CHASE = """
extern "C" __global__ void loads(const float *x, float *y) {
  const float *at = x + threadIdx.x;
  for (int k = 0; k < 4; ++k) {
    at = x + (int)*at;
  }
  y[threadIdx.x] = *at;
}
"""
# The number of threads is known only when it runs, and a barrier follows: the loop stays a loop.
ROLLED = """
extern "C" __global__ void loads(const float *__restrict__ x, float *y, int n) {
  __shared__ float tile[4096];
  for (int k = threadIdx.x; k < n; k += blockDim.x) {
    tile[k / 32 * 33 + k % 32] = x[k];
  }
  __syncthreads();
  y[threadIdx.x] = tile[n - 1 - threadIdx.x];
}
"""


def hopper_code(nvrtc: ModuleType, text: str) -> list[Instruction]:
    """Compile a source with the one kernel `loads`."""
    program = nvrtc.createProgram(text, "loads.cu", [], [])
    nvrtc.compileProgram(program, ["--gpu-architecture=sm_90", *COMPILER_OPTIONS])
    cubin: bytes = nvrtc.getCUBIN(program)
    nvrtc.destroyProgram(program)
    return instructions(cubin, "loads")


@pytest.fixture(scope="module")
def learnt(cupys_nvrtc: ModuleType) -> Learnt:
    """Find the instruction of which kernels with 2, 5 and 9 loads have 2, 5 and 9."""
    found = []
    for value in ("float", "double"):
        codes = {n: hopper_code(cupys_nvrtc, some_loads(value, n)) for n in (2, 5, 9)}
        kinds = {one.kind for one in codes[9]}
        fitting = [
            kind
            for kind in kinds
            if all(sum(one.kind == kind for one in code) == n for n, code in codes.items())
        ]
        assert len(fitting) == 1, f"what a load of {value} is, cannot be told"
        found += fitting
    assert found[0] != found[1]
    return Learnt(*found)


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("value", ["float", "double"])
def test_loads_before_the_first_use_are_counted(
    cupys_nvrtc: ModuleType, learnt: Learnt, value: str, n: int
) -> None:
    load = learnt.of_float if value == "float" else learnt.of_double
    assert most_at_once(hopper_code(cupys_nvrtc, some_loads(value, n)), load) == n


@pytest.mark.parametrize("source", [CHASE, ROLLED], ids=["chase", "rolled"])
def test_loads_that_wait_for_each_other_are_counted_as_one(
    cupys_nvrtc: ModuleType, learnt: Learnt, source: str
) -> None:
    code = hopper_code(cupys_nvrtc, source)
    assert sum(one.kind == learnt.of_float for one in code) >= 1
    assert most_at_once(code, learnt.of_float) == 1


SHAPES = {
    "highpass": {**HIGHPASS_SHAPES, "HIGHPASS_SECTIONS": 1},
    "noise": NOISE_SHAPES,
    "ptsd": PTSD_SHAPES,
    "sums": SUM_SHAPES,
}


def loaded_code(nvrtc: ModuleType, source: str) -> bytes:
    """Give what spike detection loads on a Hopper GPU, by its own way to compile."""
    loaded: list[bytes] = []
    cuda = SimpleNamespace(
        nvrtc=nvrtc,
        Device=lambda: SimpleNamespace(compute_capability="90"),
        Module=lambda: SimpleNamespace(load=loaded.append),
        PythonFunctionAllocator=lambda *_: None,
    )
    accelerator = CudaAccelerator(SimpleNamespace(cuda=cuda), None, None)  # type: ignore[arg-type]  # what stands for modules
    kernels = accelerator.kernels(source, **SHAPES[source])
    assert INEXACT.findall(kernels.compiled.ptx) == []
    assert [o for o in kernels.compiled.options if "ftz" in o] == ["--ftz=false"]
    (code,) = loaded
    return code


@pytest.mark.parametrize("source", sorted(SHAPES))
def test_what_detection_loads_is_exact(cupys_nvrtc: ModuleType, source: str) -> None:
    code = loaded_code(cupys_nvrtc, source)
    assert code.startswith(b"\x7fELF")
    assert {f"{source}.cu" for source in SHAPES} == {path.name for path in OWN}


STREAMING = [
    ("ptsd", "ptsd_extremes", "float"),
    ("sums", "sum_blocks", "float"),
    ("sums", "sum_totals", "double"),
    ("highpass", "highpass_probe", "float"),
    ("highpass", "highpass_chain", "double"),
    ("highpass", "highpass_run", "float"),
    ("noise", "noise_leaves", "float"),
    ("noise", "rank_count", "float"),
]


@pytest.mark.parametrize(("source", "kernel", "value"), STREAMING)
def test_kernels_that_read_all_samples_have_eight_loads_under_way(
    cupys_nvrtc: ModuleType, learnt: Learnt, source: str, kernel: str, value: str
) -> None:
    code = loaded_code(cupys_nvrtc, source)
    load = learnt.of_float if value == "float" else learnt.of_double
    assert most_at_once(instructions(code, kernel), load) >= 8


def resources(log: str) -> dict[str, tuple[int, int]]:
    """Read registers of a thread and bytes of shared memory of a block from the compiler's log."""
    found = {}
    for text in log.split("Compiling entry function '")[1:]:
        registers = re.search(r"Used (\d+) registers", text)
        shared = re.search(r"(\d+) bytes smem", text)
        assert registers is not None
        found[text.split("'")[0]] = (int(registers[1]), int(shared[1]) if shared else 0)
    return found


@pytest.mark.parametrize("source", OWN, ids=lambda path: path.name)
def test_enough_threads_run_at_once_to_keep_memory_busy(nvrtc: Nvrtc, source: Path) -> None:
    options = (*COMPILER_OPTIONS, "-DTHREADS=128", "--ptxas-options=--verbose")
    log, _, _ = nvrtc.compile(source, "--gpu-architecture=sm_90", *options)
    found = resources(log)
    assert set(found) == kernel_names(source)
    for kernel, (registers, shared) in found.items():
        # A multiprocessor of Hopper: 64 Ki registers, given to a warp in steps of 8 a thread, 228
        # KB of shared memory, of which each block takes 1 KB more than it asks for, 2048 threads.
        blocks = min(65536 // (-(-registers // 8) * 8 * 128), 228 // (1 + shared / 1024), 16)
        assert blocks >= 9, f"{kernel}: {registers} registers, {shared} bytes"
        if (source.stem, kernel, "float") in STREAMING:
            # 4.8 TB/s at a latency of 0.7 us, over 132 multiprocessors, are 25 KB under way in
            # each; half as much again, since some blocks compute while others load.
            assert blocks * 128 * 8 * 4 >= 1.5 * 25_500, kernel


def test_ptsd_needs_no_option_to_be_exact(nvrtc: Nvrtc) -> None:
    oldest = nvrtc.architectures()[0]
    _, ptx, _ = nvrtc.compile(KERNELS / "ptsd.cu", f"--gpu-architecture=sm_{oldest}")
    assert INEXACT.findall(ptx) == []


def test_render_keeps_a_strips_sums_in_registers(nvrtc: Nvrtc) -> None:
    source, newest = KERNELS / "render.cu", nvrtc.architectures()[-1]
    options = ("--std=c++17", "--ptxas-options=--verbose")
    log, ptx, _ = nvrtc.compile(source, f"--gpu-architecture=sm_{newest}", *options)
    assert ".local" not in ptx
    assert log.count(" 0 bytes stack frame, 0 bytes spill stores") == len(kernel_names(source))


@pytest.mark.parametrize("source", OWN, ids=lambda path: path.name)
@pytest.mark.parametrize("capability", [80, 90])
def test_what_is_loaded_on_a_gpu_is_exact_and_whole(
    cupys_nvrtc: ModuleType, source: Path, capability: int
) -> None:
    made = compile_source(cupys_nvrtc, source.stem, COMPILER_OPTIONS, capability)
    assert made.code.startswith(b"\x7fELF")  # machine code, not PTX
    assert f".target sm_{capability}" in made.ptx
    assert INEXACT.findall(made.ptx) == []
    # The last of several would count.
    assert [o for o in made.options if "ftz" in o or "fmad" in o] == ["--ftz=false", "--fmad=false"]
    for name in kernel_names(source):
        assert name.encode() in made.code


def test_subnormals_are_flushed_as_cupy_itself_compiles(cupys_nvrtc: ModuleType) -> None:
    # Were it not so, kernels could be compiled by CuPy again.
    made = compile_source(cupys_nvrtc, "ptsd", (*COMPILER_OPTIONS, "-ftz=true"), 90)
    assert ".ftz" in made.ptx


def test_a_gpu_newer_than_the_compiler_gets_ptx_and_an_old_one_a_clear_error(
    cupys_nvrtc: ModuleType,
) -> None:
    newest = max(cupys_nvrtc.getSupportedArchs())
    made = compile_source(cupys_nvrtc, "sums", COMPILER_OPTIONS, newest + 10)
    assert made.options[0] == f"--gpu-architecture=compute_{newest}"
    assert made.code.startswith(b"//")
    with pytest.raises(ToptuneError, match=r"compute capability 3\.5, too old .* `device='cpu'`"):
        compile_source(cupys_nvrtc, "sums", COMPILER_OPTIONS, 35)


def test_what_the_compiler_says_reaches_the_user(cupys_nvrtc: ModuleType) -> None:
    with pytest.raises(ToptuneError, match=r"ptsd\.cu cannot be compiled: .*bits of a u32"):
        compile_source(cupys_nvrtc, "ptsd", (*COMPILER_OPTIONS, "-DPTSD_BLOCK=33"), 90)


# --- the shim: what it must not hide

TURNS = """
typedef long long i64;
typedef int i32;
extern "C" __global__ void rotate(i64 n, const i32 *__restrict__ x, i32 *__restrict__ out) {
  __shared__ i32 tile[64];
  for (i64 start = blockIdx.x * (i64)blockDim.x; start < n; start += (i64)gridDim.x * blockDim.x) {
    tile[threadIdx.x] = x[start + threadIdx.x];
    __syncthreads();
    out[start + threadIdx.x] = tile[(threadIdx.x + 1) % blockDim.x];
    __syncthreads();
  }
}
extern "C" __global__ void forgets(i64 n, i32 *__restrict__ out) {
  __shared__ i32 total;
  if (threadIdx.x == 0 && blockIdx.x == 0) {
    total = 0;
  }
  __syncthreads();
  atomicAdd(&total, 1);
  __syncthreads();
  for (i64 i = blockIdx.x; i < n; i += gridDim.x) {
    out[i] = total;
  }
}
"""


@pytest.fixture(scope="module")
def turns(tmp_path_factory: pytest.TempPathFactory) -> HostKernels:
    folder = tmp_path_factory.mktemp("turns")
    source = folder / "turns.cu"
    source.write_text(TURNS)
    return build(source, folder)


@pytest.mark.parametrize("backwards", [False, True])
def test_threads_of_a_block_wait_for_each_other_at_barriers(
    turns: HostKernels, backwards: bool
) -> None:
    x = np.arange(96, dtype=np.int32)
    out = np.empty_like(x)
    turns.how = Launch(2, 16, backwards)
    turns.launch("rotate", x.size, x.size, x, out)
    np.testing.assert_array_equal(out.reshape(-1, 16), np.roll(x.reshape(-1, 16), -1, axis=1))


def test_shared_memory_does_not_outlive_its_block(turns: HostKernels) -> None:
    out = np.empty(2, np.int32)
    turns.how = Launch(2, 8, False)
    turns.launch("forgets", 16, 2, out)
    assert out[0] == 8
    assert out[1] > 1_000_000


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("i64 n", np.zeros(1)),
        ("i32 n", 3),
        ("const float *__restrict__ x", np.zeros(3)),
        ("i64 *__restrict__ x", np.zeros(3, np.int32)),
        ("i64 *__restrict__ x", np.zeros((3, 4), np.int64)[:, :2]),
        ("u8 *__restrict__ x", 7),
    ],
)
def test_arguments_that_a_kernel_does_not_declare_are_noticed(
    parameter: str, value: int | np.ndarray
) -> None:
    with pytest.raises(AssertionError, match="some_kernel"):
        check_argument("some_kernel", parameter, value)
