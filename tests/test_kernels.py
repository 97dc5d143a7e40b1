"""CUDA sources without a GPU: built by g++ they give the CPU's spikes, and NVRTC takes them."""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toptune import spikes_cpu
from toptune.params import Ptsd
from toptune.spikes import PtsdSamples, channel_mean, detect_spikes, sequential_sum
from toptune.spiketrains import Spikes, sort_spikes

RATE_HZ = 10_000.0
KERNELS = Path(__file__).parents[1] / "kernels"
SHIM = Path(__file__).parent / "cuda_shim"
SOURCES = sorted(KERNELS.glob("*.cu"))
DECLARED = re.compile(r'extern "C" __global__ void (\w+)\(')
# Around the samples of a chunk: a kernel that reads outside finds its largest peaks here.
OUTSIDE = 40


class Launch(NamedTuple):
    """How the grid is cut, and in which order its threads run."""

    grid: int
    block: int
    backwards: bool


class Kernels:
    """The kernels of one source, built for some shapes, launched as the CUDA driver would."""

    def __init__(self, library: ctypes.CDLL, shapes: dict[str, int]) -> None:
        self._library = library
        self.shapes = shapes

    def run(self, name: str, launch: Launch, *arguments: int | NDArray[np.generic]) -> None:
        """Arrays pass as pointers, ints as 64-bit values, as CuPy passes them."""
        ctypes.c_int.in_dll(self._library, "shim_backwards").value = launch.backwards
        values = [
            ctypes.c_int64(a) if isinstance(a, int) else ctypes.c_void_p(a.ctypes.data)
            for a in arguments
        ]
        params = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        getattr(self._library, f"launch_{name}")(launch.grid, launch.block, params)


def build(source: Path, folder: Path, **shapes: int) -> Kernels:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to build the kernels with")
    names = DECLARED.findall(source.read_text("utf-8"))
    unit = folder / f"{source.stem}.cpp"
    lines = ['#include "cuda_shim.h"', f'#include "{source}"', *(f"LAUNCHER({k})" for k in names)]
    unit.write_text("\n".join(lines) + "\n", "utf-8")
    out = unit.with_suffix(".so")
    command = [
        compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
        f"-I{SHIM}", *(f"-D{k}={v}" for k, v in shapes.items()), str(unit), "-o", str(out),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Kernels(ctypes.CDLL(str(out)), shapes)


# A block of 3 puts many of its edges into short recordings.
@pytest.fixture(scope="module", params=[32, 3])
def ptsd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    size: int = request.param
    folder = tmp_path_factory.mktemp(f"ptsd_{size}")
    return build(KERNELS / "ptsd.cu", folder, PTSD_BLOCK=size)


class Chunk(NamedTuple):
    """Candidates [begin, end) and what they read, with samples of nobody around them."""

    padded: NDArray[np.float32]
    first: int
    begin: int
    end: int

    @classmethod
    def of(cls, x: NDArray[np.float32], begin: int, end: int, reach: int) -> Chunk:
        first, stop = max(begin - 1, 0), min(end + reach, x.shape[1])
        padded = np.empty((x.shape[0], stop - first + 2 * OUTSIDE), np.float32)
        padded[:, ::2], padded[:, 1::2] = 1e30, -1e30
        padded[:, OUTSIDE:-OUTSIDE] = x[:, first:stop]
        return cls(padded, first, begin, end)

    @property
    def samples(self) -> NDArray[np.float32]:
        """The view whose address is that of sample `first` of the first channel."""
        return self.padded[:, OUTSIDE:]


class Candidates(NamedTuple):
    sample: NDArray[np.int64]
    channel: NDArray[np.int32]
    next: NDArray[np.int64]
    dated: NDArray[np.int64]
    amplitude_uv: NDArray[np.float32]


class Detector(NamedTuple):
    """The host's side of PTSD's parallel form, as small as it can be."""

    kernels: Kernels
    times: PtsdSamples
    mean: NDArray[np.float32]
    threshold: NDArray[np.float32]
    launch: Launch
    doubling: bool

    def spikes(self, x: NDArray[np.float32], cuts: list[int]) -> Spikes:
        """Detect in chunks that end at `cuts`."""
        n = x.shape[1]
        resume = np.ones(x.shape[0], np.int64)
        found = []
        for begin, end in itertools.pairwise([0, *cuts, n]):
            chunk = Chunk.of(x, begin, end, self.times.lifetime + self.times.overshoot)
            made = self.candidates(chunk, n, resume)
            chosen = self.select(made, self.heads(made), resume).astype(bool)
            found.append((made.dated[chosen], made.channel[chosen], made.amplitude_uv[chosen]))
        sample, channel, uv = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return sort_spikes(sample, channel, uv)

    def candidates(self, chunk: Chunk, n: int, resume: NDArray[np.int64]) -> Candidates:
        channels, pitch = chunk.padded.shape
        words = channels * -(-(chunk.end - chunk.begin) // self.kernels.shapes["PTSD_BLOCK"])
        accepted, count = np.full(words, 0xDEAD, np.uint32), np.full(words, -1, np.int32)
        stretch = (chunk.samples, pitch, channels, chunk.first, n, chunk.begin, chunk.end)
        lifetime, refractory, overshoot, negative = self.times
        self.kernels.run(
            "ptsd_evaluate", self.launch, *stretch, self.mean, self.threshold, resume,
            lifetime, overshoot, accepted, count,
        )  # fmt: skip
        m = int(count.sum())
        offset = np.cumsum(count, dtype=np.int64) - count
        made = Candidates(
            np.full(m, -1, np.int64), np.full(m, -1, np.int32), np.full(m, -1, np.int64),
            np.full(m, -1, np.int64), np.full(m, -1, np.float32),
        )  # fmt: skip
        self.kernels.run(
            "ptsd_scatter", self.launch, *stretch, self.mean, lifetime, refractory, overshoot,
            int(negative), accepted, offset, *made,
        )  # fmt: skip
        return made

    def heads(self, made: Candidates) -> NDArray[np.uint8]:
        head = np.full(made.sample.size, 9, np.uint8)
        lifetime, refractory, overshoot, _ = self.times
        self.kernels.run(
            "ptsd_heads", self.launch, head.size, made.sample, made.channel, made.next,
            lifetime, refractory, overshoot, head,
        )  # fmt: skip
        return head

    def select(
        self, made: Candidates, head: NDArray[np.uint8], resume: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        m, selected = head.size, np.full(head.size, 9, np.uint8)
        if self.doubling:
            jump, doubled = np.full(m, -1, np.int64), np.full(m, -1, np.int64)
            self.kernels.run(
                "ptsd_link", self.launch, m, made.sample, made.channel, made.next, head,
                jump, selected,
            )  # fmt: skip
            longest = int(np.diff(np.append(np.flatnonzero(head), m)).max(initial=1))
            for _ in range((longest - 1).bit_length()):
                self.kernels.run("ptsd_double", self.launch, m, jump, doubled, selected)
                jump, doubled = doubled, jump
        else:
            self.kernels.run(
                "ptsd_walk", self.launch, m, made.sample, made.next, head, selected
            )  # fmt: skip
        self.kernels.run(
            "ptsd_resume", self.launch, m, made.sample, made.channel, made.next, selected, resume
        )
        return selected


def means(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each channel's mean as `detect_spikes` takes it off: the kernels get it from the host."""
    out = np.empty(x.shape[0], np.float32)
    for row, samples in enumerate(x):
        blocks = -(-samples.size // spikes_cpu.BLOCK)
        low, high, total = np.empty(blocks, "f4"), np.empty(blocks, "f4"), np.empty(blocks)
        spikes_cpu.block_stats(samples, low, high, total)
        out[row] = channel_mean(sequential_sum(total), samples.size, f"channel {row}")
    return out


def assert_same_bits(got: Spikes, expected: Spikes) -> None:
    np.testing.assert_array_equal(got.sample, expected.sample)
    np.testing.assert_array_equal(got.channel, expected.channel)
    bits, expected_bits = (s.peak_to_peak_uv.view(np.uint32) for s in (got, expected))
    np.testing.assert_array_equal(bits, expected_bits)


@st.composite
def voltages(draw: st.DrawFn) -> NDArray[np.float32]:
    """Few distinct values, so that ties and plateaus happen; quiet stretches; fractional means."""
    channels, n = draw(st.integers(1, 3)), draw(st.integers(1, 400))
    levels, loud = draw(st.integers(1, 6)), draw(st.floats(0.02, 1.0))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.integers(-levels, levels + 1, (channels, n)) * np.float32(draw(st.floats(0.1, 3)))
    runs = np.repeat(rng.random((channels, n // 8 + 1)) < loud, 8, axis=1)[:, :n]
    held = rng.random((channels, n)) < draw(st.floats(0, 0.5))
    held[:, 0] = False
    since = np.maximum.accumulate(np.where(held, 0, np.arange(n)), axis=1)
    plateaus = np.take_along_axis(np.where(runs, x, 0), since, axis=1)
    offset = np.float32(draw(st.sampled_from([0, 0.3, -1000])))
    return np.asarray(plateaus + offset, np.float32)


milliseconds = st.tuples(st.integers(1, 60), st.integers(0, 50), st.integers(0, 40))
launches = st.builds(Launch, st.integers(1, 5), st.integers(1, 33), st.booleans())


@settings(max_examples=250, deadline=None)
@given(
    x=voltages(),
    thresholds=st.lists(st.sampled_from([0.5, 1.0, 2.5, 4.0, 9.0, np.inf]), min_size=3),
    times=milliseconds,
    negative=st.booleans(),
    launch=launches,
    cuts=st.lists(st.floats(0, 1), max_size=4),
    doubling=st.booleans(),
)
def test_kernels_find_the_spikes_of_the_cpu_bit_for_bit_however_chunked(
    ptsd: Kernels,
    x: NDArray[np.float32],
    thresholds: list[float],
    times: tuple[int, int, int],
    negative: bool,
    launch: Launch,
    cuts: list[float],
    doubling: bool,
) -> None:
    threshold = np.array(thresholds[: x.shape[0]], np.float32)
    lifetime, refractory, overshoot = times
    params = Ptsd(
        lifetime_ms=lifetime / 10,
        refractory_ms=refractory / 10,
        overshoot_ms=overshoot / 10,
        alignment="negative" if negative else "largest",
    )
    detector = Detector(
        ptsd, PtsdSamples(*times, negative), means(x), threshold, launch, doubling,
    )  # fmt: skip
    got = detector.spikes(x, sorted(int(cut * x.shape[1]) for cut in cuts))
    assert_same_bits(got, detect_spikes(x, RATE_HZ, params, threshold, n_jobs=1))


@pytest.mark.parametrize("doubling", [False, True])
def test_kernels_equal_the_cpu_on_coloured_noise_with_offsets_and_spikes(
    ptsd: Kernels, doubling: bool
) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((5, 30_000)).cumsum(axis=1) * 0.2 + rng.standard_normal((5, 30_000))
    x = (x + np.array([[0], [1000], [-3000], [5], [0]])).astype(np.float32)
    threshold = np.array([0.5, 5, 4, 6.5, np.inf], np.float32)
    expected = detect_spikes(x, RATE_HZ, Ptsd(), threshold, n_jobs=1)
    assert expected.sample.size > 1000
    detector = Detector(
        ptsd, PtsdSamples.at(Ptsd(), RATE_HZ), means(x), threshold, Launch(3, 64, False), doubling,
    )  # fmt: skip
    assert_same_bits(detector.spikes(x, []), expected)
    assert_same_bits(detector.spikes(x, [999, 1000, 9_987, 20_001]), expected)


@settings(max_examples=60, deadline=None)
@given(x=voltages(), times=milliseconds, launch=launches)
def test_heads_are_the_candidates_no_earlier_one_can_pass(
    ptsd: Kernels,
    x: NDArray[np.float32],
    times: tuple[int, int, int],
    launch: Launch,
) -> None:
    channels, n = x.shape
    detector = Detector(
        ptsd, PtsdSamples(*times, False), means(x), np.full(channels, 1.5, np.float32),
        launch, False,
    )  # fmt: skip
    reach = detector.times.lifetime + detector.times.overshoot
    made = detector.candidates(Chunk.of(x, 0, n, reach), n, np.ones(channels, np.int64))
    head = detector.heads(made)
    for i, (sample, channel) in enumerate(zip(made.sample, made.channel, strict=True)):
        earlier = made.next[:i][made.channel[:i] == channel]
        assert head[i] == (earlier.max(initial=0) <= sample)


def test_amplitude_equal_to_the_threshold_is_a_spike(ptsd: Kernels) -> None:
    x = np.random.default_rng(8).integers(-3, 4, (2, 3000)).astype(np.float32)
    low = np.full(2, 0.5, np.float32)
    amplitudes = detect_spikes(x, RATE_HZ, Ptsd(), low, n_jobs=1).peak_to_peak_uv
    threshold = np.full(2, amplitudes.max(), np.float32)
    detector = Detector(
        ptsd, PtsdSamples.at(Ptsd(), RATE_HZ), means(x), threshold, Launch(1, 8, False), False
    )
    got = detector.spikes(x, [1500])
    assert got.sample.size > 0
    assert_same_bits(got, detect_spikes(x, RATE_HZ, Ptsd(), threshold, n_jobs=1))


def test_quiet_stretch_gives_no_candidate_and_leaves_the_state(ptsd: Kernels) -> None:
    x = np.random.default_rng(1).uniform(-1, 1, (2, 500)).astype(np.float32)
    detector = Detector(
        ptsd, PtsdSamples(20, 10, 5, False), means(x), np.full(2, 3, np.float32),
        Launch(1, 8, False), False,
    )  # fmt: skip
    resume = np.array([7, 1], np.int64)
    made = detector.candidates(Chunk.of(x, 0, 500, 25), 500, resume)
    assert made.sample.size == 0
    assert detector.select(made, detector.heads(made), resume).size == 0
    assert resume.tolist() == [7, 1]


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
        pytest.skip("no NVRTC: neither torch for CUDA nor the nvidia-cuda-nvrtc wheel is installed")
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
    assert set(DECLARED.findall(source.read_text("utf-8"))) == set(
        re.findall(r"\.entry (\w+)\(", ptx)
    )


def test_ptsd_on_the_gpu_has_no_fused_or_flushed_arithmetic(nvrtc: Nvrtc) -> None:
    oldest = nvrtc.architectures()[0]
    _, ptx, _ = nvrtc.compile(KERNELS / "ptsd.cu", f"--gpu-architecture=sm_{oldest}")
    assert "sub.f32" in ptx
    assert re.findall(r"\bfma\b|\.ftz|\.approx", ptx) == []


def test_render_keeps_a_strips_sums_in_registers(nvrtc: Nvrtc) -> None:
    newest = nvrtc.architectures()[-1]
    _, ptx, _ = nvrtc.compile(KERNELS / "render.cu", f"--gpu-architecture=sm_{newest}")
    assert ".local" not in ptx
