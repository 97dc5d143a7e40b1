"""CUDA sources without a GPU: NVRTC takes them, alone and through CuPy, and what g++ runs is them.

What the kernels compute is held against the CPU path in test_spikes_cuda.py, test_filters_cuda.py
and test_noise_cuda.py, which run them through their own host code.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from cuda_on_cpu import DECLARED, KERNELS, HostKernels, Launch, build, check_argument

from toptune.errors import ToptuneError
from toptune.machine.cuda import COMPILER_OPTIONS, compile_source

SOURCES = sorted(KERNELS.glob("*.cu"))
OWN = [KERNELS / f"{name}.cu" for name in ("highpass", "ptsd", "sums")]
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
        self._call("nvrtcCreateProgram", ctypes.byref(program), text, name, 0, None, None)
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


@pytest.fixture(scope="module")
def cupys_nvrtc() -> ModuleType:
    cuda = pytest.importorskip("cupy.cuda", reason="CuPy: not installed")
    found: ModuleType = cuda.nvrtc
    return found


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
