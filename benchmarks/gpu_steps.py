"""The steps of gpu_proof.py: each measures some parts of the GPU path, and writes what it found.

On a GPU the figures are the GPU's. In a dry run the same code does small work on the CPU: kernels
built by g++ (tests/cuda_on_cpu.py), networks by OpenVINO and torch.
"""

from __future__ import annotations

import copy
import csv
import importlib.util
import json
import logging
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
from cuda_on_cpu import DECLARED, HostAccelerator, build, decaying
from cuda_on_cpu import Launch as HowLaunched
from gpu_proof import SMALL, TOP, environment, one_line, write_whole
from known_traces import simulate_traces
from numpy.typing import NDArray

from toptune.backbones.engine import HALF, FeatureEngine, Stopwatch
from toptune.backbones.loading import LoadedBackbone, load_backbone
from toptune.backbones.names import PAPER_BACKBONES
from toptune.backbones.torch_engine import GreyPictures, TorchNetwork
from toptune.bench import Sizes, Stages
from toptune.errors import ToptuneError
from toptune.features.extractor import PendingFeatures, start_features, unwatched
from toptune.features.picture_features import PictureExtractor
from toptune.machine.cuda import (
    COMPILER_OPTIONS,
    Accelerator,
    DeviceArray,
    KernelArgument,
    Kernels,
    Uploads,
    compile_source,
    open_cuda,
    to_host,
)
from toptune.machine.device import float64_device
from toptune.machine.installation import describe_environment, kernels
from toptune.params import Backbone, HighPass, Noise, Picture, Precision, Ptsd, Windows
from toptune.pictures.drawers import Drawers
from toptune.recordings.trains import Segment, Spikes, SpikeTrains, sort_spikes
from toptune.spikes.filters import HighPassFilter
from toptune.spikes.noise import noise_thresholds
from toptune.spikes.preparing_cuda import (
    HIGHPASS_BLOCK,
    DeviceHighPass,
    channel_means,
    noise_thresholds_on,
)
from toptune.spikes.ptsd import PtsdSamples, detect_spikes
from toptune.spikes.ptsd_cuda import DeviceSpikes, sort_device_spikes, walk_segments
from toptune.spikes.streaming_cuda import detect_recording_on

Figures = dict[str, Any]

RATE_HZ = 10_000.0
STUDY_DEVICES, STUDY_S = 32, 900.0
# Of samples at least this share of the speed of a copy, and so many pictures a second.
WANTED_SHARE_OF_COPY = 0.5
WANTED_PICTURES_PER_S = 10_000
LEAST_COSINE = 0.9995


def run(name: str, out: Path, *, dry: bool, limit_s: float) -> int:
    """Run a step and write its file."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    os.environ.update(environment(dry))
    if name == SMALL:
        with tempfile.TemporaryDirectory() as folder:
            small_case(accelerator(dry, Path(folder)))
        return 0
    with tempfile.TemporaryDirectory(prefix="gpu-proof-") as folder:
        job = Job(name, out, Path(folder), dry, limit_s)
        job.save(complete=False)
        STEPS[name](job)
        job.save(complete=True)
    return 0


class Job:
    """A step at work: its sizes, what it has found, and the time that it has left."""

    def __init__(self, name: str, out: Path, folder: Path, dry: bool, limit_s: float) -> None:
        self.name, self.folder, self.dry = name, folder, dry
        self._out, self._limit_s = out, limit_s
        self._begin = time.monotonic()
        self.parts: dict[str, Figures] = {}
        self.rows: list[Figures] = []
        self.problems: dict[str, str] = {}

    @cached_property
    def device(self) -> torch.device:
        """Where torch computes."""
        return torch.device("cpu") if self.dry else torch.device("cuda", 0)

    def size(self, real: int, dry: int) -> int:
        """Choose how much is done."""
        return dry if self.dry else real

    def left_s(self) -> float:
        """Seconds until this process is killed, less what it takes to end."""
        return self._limit_s - (time.monotonic() - self._begin) - 2.0

    def part(self, name: str, work: Callable[[], Figures]) -> Figures | None:
        """Do a part of the step, and write what is known by then; None where it failed."""
        begin = time.monotonic()
        found: Figures | None = None
        try:
            found = plain(work())
        except Exception:  # noqa: BLE001  # whatever it was, the other parts are still worth doing
            traceback.print_exc()
            self.problems[name] = "\n".join(traceback.format_exc().splitlines()[-6:])
        else:
            self.parts[name] = {**found, "part_seconds": time.monotonic() - begin}
        self.save(complete=False)
        return found

    def row(
        self,
        what: str,
        value: float | str | bool | None,
        unit: str = "",
        wanted: str = "",
        met: bool | None = None,
    ) -> None:
        """Add a line to the table; whether what is wanted is met is not judged in a dry run."""
        value = plain({"": value})[""]
        met = None if self.dry or met is None else bool(met)
        self.rows.append({"what": what, "value": value, "unit": unit, "wanted": wanted, "met": met})

    def save(self, *, complete: bool) -> None:
        """Write all so far, whole or not at all."""
        facts = {
            "step": self.name,
            "dry": self.dry,
            "complete": complete,
            "seconds": time.monotonic() - self._begin,
            "rows": self.rows,
            "parts": self.parts,
            "problems": self.problems,
        }
        write_whole(self._out / f"{self.name}.json", json.dumps(facts, allow_nan=False) + "\n")


def plain(figures: Mapping[str, Any]) -> Figures:
    """Turn figures into JSON's own values; NaN and infinity are a ValueError."""

    def value_of(value: Any) -> Any:
        return value.item() if isinstance(value, np.generic) else str(value)

    made: Figures = json.loads(json.dumps(figures, default=value_of, allow_nan=False))
    return made


def accelerator(dry: bool, folder: Path) -> Accelerator:
    """Open the GPU; in a dry run, NumPy with the kernels built by g++."""
    if not dry:
        return open_cuda()
    if shutil.which("g++") is None:
        raise RuntimeError("g++, which builds the kernels for the processor, is not installed")
    made = HostAccelerator(folder)
    made.how = HowLaunched(4, 32)
    return made


def best_s(device: torch.device, work: Callable[[], object], rounds: int = 5) -> float:
    """Give the seconds of the fastest of some rounds after one to warm up."""
    work()
    took = []
    for _ in range(rounds):
        watch = Stopwatch(device)
        work()
        watch.stop()
        took.append(watch.seconds())
    return min(took)


def wall_s(device: torch.device, work: Callable[[], object], rounds: int = 5) -> float:
    """The same by the clock on the wall, with all that the host does."""
    took = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - begin)
    return min(took[1:])


# --- versions


def versions(job: Job) -> None:
    """Say what is installed, compile every source for this GPU and load it."""
    job.part("installed", lambda: describe_environment(str(job.device)))
    job.part("gpu", lambda: gpu_facts(job))
    for source in sorted(path.stem for path in kernels().glob("*.cu")):
        made = job.part(f"kernels of {source}", partial(compiled, job, source))
        if made is not None:
            job.row(f"{source}.cu compiled", made["seconds"], "s")
            job.row(f"{source}.cu loaded, kernels", made["n_loaded"])
            if source != "render":  # which need not be exact to the last bit
                kept = made["n_ftz"] == 0
                job.row(f"{source}.cu keeps subnormals", kept, "", "yes", kept)


def gpu_facts(job: Job) -> Figures:
    """Give the versions of the driver and libraries, and what the GPU is."""
    facts: Figures = {"torch": torch.__version__, "cuda_of_torch": torch.version.cuda}
    facts["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]  # in torch
    if importlib.util.find_spec("cupy") is not None:
        import cupy

        facts["cupy"] = cupy.__version__
        facts["nvrtc"] = list(cupy.cuda.nvrtc.getVersion())
        if not job.dry:
            facts["driver_api"] = cupy.cuda.runtime.driverGetVersion()
    if job.dry:
        job.row("GPU", "none: dry run")
        return facts
    torch.zeros(1, device=job.device)  # from now on the GPU has a context to load kernels into
    about = torch.cuda.get_device_properties(job.device)
    facts |= {
        "name": about.name,
        "capability": f"{about.major}.{about.minor}",
        "multiprocessors": about.multi_processor_count,
        "memory_bytes": about.total_memory,
        "nvidia_smi": nvidia_smi("name,driver_version,clocks.max.sm,clocks.max.mem,power.limit"),
    }
    job.row("GPU", f"{about.name}, {about.major}.{about.minor}")
    job.row("torch, CuPy", f"{facts['torch']}, {facts.get('cupy')}")
    job.row("driver", facts["nvidia_smi"])
    return facts


def nvidia_smi(query: str, more_format: str = "") -> str:
    """Ask nvidia-smi about the first GPU; say why where it does not answer."""
    if shutil.which("nvidia-smi") is None:
        return "nvidia-smi not found"
    command = [
        "nvidia-smi",
        "-i",
        "0",
        f"--query-gpu={query}",
        f"--format=csv,noheader{more_format}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    return one_line(done.stdout or done.stderr)


def compiled(job: Job, source: str) -> Figures:
    """Compile a source as the product does, and load it."""
    import cupy

    exact = source != "render"
    options = tuple(o for o in COMPILER_OPTIONS if exact or "fmad" not in o)
    capability = 90 if job.dry else int(cupy.cuda.Device().compute_capability)
    begin = time.perf_counter()
    made = compile_source(cupy.cuda.nvrtc, source, options, capability)
    seconds = time.perf_counter() - begin
    names = [name for name, _ in DECLARED.findall((kernels() / f"{source}.cu").read_text("utf-8"))]
    loaded = built(job, source, names) if job.dry else on_gpu(cupy, made.code, names)
    return {
        "options": made.options,
        "seconds": seconds,
        "code_bytes": len(made.code),
        "n_ftz": made.ptx.count(".ftz"),
        "n_fma": len(re.findall(r"\bfma\b", made.ptx)),
        "n_loaded": len(loaded),
        "loaded": loaded,
    }


def built(job: Job, source: str, names: Sequence[str]) -> Figures:
    """Build a source for the processor."""
    if shutil.which("g++") is None:
        return {}
    begin = time.perf_counter()
    made = build(kernels() / f"{source}.cu", job.folder)
    assert set(names) == set(made._parameters)
    return {name: {"seconds": time.perf_counter() - begin} for name in names}


def on_gpu(cupy: ModuleType, code: bytes, names: Sequence[str]) -> Figures:
    """Load machine code and look its kernels up: registers, and bytes per thread and block."""
    driver = cupy.cuda.driver
    module = cupy.cuda.Module()
    module.load(code)
    wanted = {
        "registers": driver.CU_FUNC_ATTRIBUTE_NUM_REGS,
        "local_bytes": driver.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES,
        "shared_bytes": driver.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
    }
    return {
        name: {
            what: int(driver.funcGetAttribute(attribute, module.get_function(name).ptr))
            for what, attribute in wanted.items()
        }
        for name in names
    }


# --- ceilings


def ceilings(job: Job) -> None:
    """Measure what the GPU can do at most."""
    n = job.size(2**29, 2**21)  # float32 values
    moved(job, "copy on the device, read and written", 8 * n, partial(copying, job, n))
    if not job.dry:
        moved(job, "upload from pinned memory", n, partial(uploading, job, n // 4, pinned=True))
        moved(job, "download to pinned memory", n, partial(downloading, job, n // 4))
    moved(job, "upload from other memory", n, partial(uploading, job, n // 4, pinned=False))
    for name, dtype in (("float16", torch.float16), ("float32", torch.float32)):
        found = job.part(f"product {name}", partial(product, job, dtype))
        if found is not None:
            job.row(f"matrix product in {name}", found["tflop_per_s"], "TFLOP/s")
    found = job.part("launch", partial(launching, job))
    if found is not None:
        job.row("launch of an operation of torch", found["us"], "us")


def moved(job: Job, name: str, n_bytes: int, work: Callable[[], float]) -> None:
    """Measure how fast bytes are moved by work that gives its seconds."""

    def measured() -> Figures:
        seconds = work()
        return {"bytes": n_bytes, "seconds": seconds, "gb_per_s": n_bytes / seconds / 1e9}

    found = job.part(name, measured)
    if found is not None:
        job.row(name, found["gb_per_s"], "GB/s")


def copying(job: Job, n: int) -> float:
    held = torch.zeros(n, device=job.device)
    other = torch.empty_like(held)
    return best_s(job.device, lambda: other.copy_(held))


def uploading(job: Job, n: int, *, pinned: bool) -> float:
    host = torch.ones(n)
    host = host.pin_memory() if pinned else host
    held = torch.empty(n, device=job.device)
    return best_s(job.device, lambda: held.copy_(host, non_blocking=pinned))


def downloading(job: Job, n: int) -> float:
    held, host = torch.ones(n, device=job.device), torch.empty(n).pin_memory()
    return best_s(job.device, lambda: host.copy_(held, non_blocking=True))


def product(job: Job, dtype: torch.dtype) -> Figures:
    side = job.size(8192, 192)
    generator = torch.Generator(job.device).manual_seed(0)
    a, b = (
        torch.rand(side, side, generator=generator, device=job.device).to(dtype) for _ in range(2)
    )
    seconds = best_s(job.device, lambda: a @ b, job.size(10, 2))
    return {"side": side, "seconds": seconds, "tflop_per_s": 2 * side**3 / seconds / 1e12}


def launching(job: Job) -> Figures:
    n, tiny = 1000, torch.zeros(1, device=job.device)

    def work() -> None:
        for _ in range(n):
            tiny.add_(1)

    return {"us": wall_s(job.device, work, 3) / n * 1e6}


# --- spikes


class Launched(NamedTuple):
    """A kernel between two marks."""

    name: str
    argument_bytes: int
    begin: Any
    end: Any


# Kernels that read, and may write, all samples once.
OF_ALL_SAMPLES = {"highpass_probe", "highpass_run", "sum_blocks", "rank_count", "ptsd_extremes"}


class Marks:
    """Marks in time: CUDA events in the current stream of CuPy, or the CPU's clock."""

    def __init__(self, device: Accelerator) -> None:
        self._cuda = None if device.xp is np else device.xp.cuda

    def now(self) -> Any:
        if self._cuda is None:
            return time.perf_counter()
        event = self._cuda.Event()
        event.record()
        return event

    def seconds(self, begin: Any, end: Any) -> float:
        if self._cuda is None:
            return float(end - begin)
        end.synchronize()
        return float(self._cuda.get_elapsed_time(begin, end)) / 1000

    def best_s(self, work: Callable[[], object], rounds: int) -> float:
        """Give the seconds of the fastest round after one to warm up."""
        took = []
        for _ in range(rounds + 1):
            begin = self.now()
            work()
            took.append(self.seconds(begin, self.now()))
        return min(took[1:])


class WatchedKernels:
    """Kernels that note when each launch begins and ends, while their accelerator is watched."""

    def __init__(self, kernels_: Kernels, owner: Watched) -> None:
        self._kernels, self._owner = kernels_, owner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernels, name)

    @property
    def shapes(self) -> Mapping[str, int]:
        return self._kernels.shapes

    def launch(self, name: str, threads: int, /, *arguments: KernelArgument) -> None:
        if not self._owner.on:
            self._kernels.launch(name, threads, *arguments)
            return
        n_bytes = sum(int(getattr(a, "nbytes", 0)) for a in arguments)
        marks = self._owner.marks
        begin = marks.now()
        self._kernels.launch(name, threads, *arguments)
        self._owner.log.append(Launched(name, n_bytes, begin, marks.now()))


class Watched:
    """An accelerator whose kernels are timed while it is `on`: to mark each launch takes time."""

    def __init__(self, device: Accelerator) -> None:
        self._device = device
        self.on = False
        self.marks = Marks(device)
        self.log: list[Launched] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    @property
    def xp(self) -> ModuleType:
        return self._device.xp

    def kernels(self, source: str, **shapes: int) -> Kernels:
        return WatchedKernels(self._device.kernels(source, **shapes), self)

    def free_bytes(self) -> int:
        return self._device.free_bytes()

    def uploads(self, n_values: int) -> AbstractContextManager[Uploads]:
        return self._device.uploads(n_values)

    def active(self) -> AbstractContextManager[None]:
        return self._device.active()

    def to_torch(self, arrays: Iterable[DeviceArray]) -> list[torch.Tensor]:
        return self._device.to_torch(arrays)

    def by_kernel(self, copy_bytes_per_s: float) -> dict[str, Figures]:
        """Sum what was launched since the last call, by kernel.

        Of kernels that go through all samples, the bytes of all arrays that they are given, each
        once, are what they move. Others look at some of an array only.
        """
        seconds: dict[str, float] = defaultdict(float)
        n_bytes: dict[str, int] = defaultdict(int)
        count: dict[str, int] = defaultdict(int)
        for one in self.log:
            seconds[one.name] += self.marks.seconds(one.begin, one.end)
            n_bytes[one.name] += one.argument_bytes
            count[one.name] += 1
        self.log.clear()
        found: dict[str, Figures] = {}
        for name, took in seconds.items():
            found[name] = {"launches": count[name], "ms": 1000 * took}
            if name in OF_ALL_SAMPLES:
                share = n_bytes[name] / max(took, 1e-9) / copy_bytes_per_s
                found[name] |= {"bytes": n_bytes[name], "share_of_copy": share}
        return found


class Bench:
    """Voltage on the device, and the same for the CPU to compare with."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.device = Watched(accelerator(job.dry, job.folder))
        self.host = simulate_traces(
            n_channels=job.size(60, 3), seconds=job.size(30, 2), seed=0, peak_sd=8.0,
        ).samples_uv  # fmt: skip
        self.channels = len(self.host)
        self.names = [str(k) for k in range(self.channels)]
        self.rounds = job.size(10, 1)
        with self.device.active():
            xp = self.device.xp
            self.short: DeviceArray = xp.asarray(self.host)
            self.long: DeviceArray = xp.tile(self.short, (1, job.size(30, 1)))
            out = xp.empty_like(self.long)

            def copy() -> None:
                out[...] = self.long

            self.copy_s = self.device.marks.best_s(copy, self.rounds)
        self.copy_bytes_per_s = 2 * self.long.nbytes / self.copy_s

    def timed(self, work: Callable[[], object]) -> Figures:
        """Time work on the long recording: in all, then kernel by kernel."""
        with self.device.active():
            seconds = self.device.marks.best_s(work, self.rounds)
            self.device.on = True
            try:
                work()
            finally:
                self.device.on = False
            by_kernel = self.device.by_kernel(self.copy_bytes_per_s)
        return {
            "seconds": seconds,
            "m_samples_per_s": self.long.size / seconds / 1e6,
            "share_of_copy": self.copy_s / seconds,  # of the same samples, from memory to memory
            "kernels": by_kernel,
        }


def spikes(job: Job) -> None:
    """Time filter, means, noise and PTSD, and compare them with the CPU."""
    benches: list[Bench] = []

    def ready() -> Figures:
        benches.append(Bench(job))
        (bench,) = benches
        return {"samples": bench.long.size, "gb_per_s": bench.copy_bytes_per_s / 1e9}

    copied = job.part("copy of the samples", ready)
    if copied is None:
        return
    (bench,) = benches
    job.row("copy of the samples, read and written", copied["gb_per_s"], "GB/s")
    parts: dict[str, Callable[[Bench], Figures]] = {
        "filter": filtering, "means": averaging, "noise": noise, "noise by MAD": noise_mad,
        "PTSD": ptsd, "PTSD at 1 SD": ptsd_worst, "subnormal numbers": subnormals,
        "empty arrays through DLPack": empty_arrays, "memory that runs out": no_memory,
        "detection does not wait for torch": beside_torch,
    }  # fmt: skip
    for name, work in parts.items():
        found = job.part(name, partial(work, bench))
        if found is not None:
            rows_of_spikes(job, name, found)


def rows_of_spikes(job: Job, name: str, found: Figures) -> None:
    if "share_of_copy" in found:
        least = WANTED_SHARE_OF_COPY if name == "PTSD" else None
        share = found["share_of_copy"]
        wanted, met = ("", None) if least is None else (f">= {least:g}", share >= least)
        job.row(f"{name}: share of the speed of a copy", share, "", wanted, met)
        for kernel, facts in found["kernels"].items():
            told = f"{facts['ms']:.4g} ms"
            if "share_of_copy" in facts:
                told += f", {facts['share_of_copy']:.2g} of a copy's bytes/s"
            job.row(f"{name}: {kernel}, launched {facts['launches']} x", told)
    if "n_different" in found:
        n = found["n_different"]
        what = f"{name}: of {found['n_compared']:,}, different from the CPU"
        job.row(what, n, "", found["wanted"], None if not found["wanted"] else n == 0)
    if "holds" in found:
        job.row(name, found["holds"], "", "yes", found["holds"])


def different(got: NDArray[Any], expected: NDArray[Any], *, wanted: str = "0") -> Figures:
    """Count values whose bits differ."""
    n = max(got.size, expected.size)
    if got.shape != expected.shape:
        return {"n_compared": n, "n_different": n, "wanted": wanted}
    same = got.view(np.uint8).reshape(n, -1) == expected.view(np.uint8).reshape(n, -1)
    return {"n_compared": n, "n_different": int((~same.all(axis=1)).sum()), "wanted": wanted}


def filter_in_chunks(
    device: Accelerator, samples: DeviceArray, out: DeviceArray, order: int = 1
) -> None:
    """Filter in chunks, as uploads bring them."""
    n = samples.shape[1]
    step = 4_000_000 // samples.shape[0] // HIGHPASS_BLOCK * HIGHPASS_BLOCK
    made = DeviceHighPass(device, HighPass(order=order), RATE_HZ)
    for start in range(0, n, step):
        made.apply(samples[:, start : start + step], out[:, start : start + step])


def filtering(bench: Bench) -> Figures:
    """The scan's rounding may change the last bit of some samples."""
    with bench.device.active():
        out = bench.device.xp.empty_like(bench.long)
        short = bench.device.xp.empty_like(bench.short)
        filter_in_chunks(bench.device, bench.short, short)
        got = to_host(short)
    expected = HighPassFilter(HighPass(), RATE_HZ, bench.channels).apply(bench.host)
    found = bench.timed(lambda: filter_in_chunks(bench.device, bench.long, out))
    largest = float(np.abs(got - expected).max())
    return {**found, **different(got, expected, wanted=""), "largest_difference_uv": largest}


def averaging(bench: Bench) -> Figures:
    """Inside blocks the CPU adds in another order."""
    from ptsd_cases import means

    def on(samples: DeviceArray) -> NDArray[np.float32]:
        whole = (Segment(0, samples.shape[1], 0.0),)
        return channel_means(bench.device, samples, whole, bench.names)

    with bench.device.active():
        got = on(bench.short)
    found = bench.timed(lambda: on(bench.long))
    return {**found, **different(got, means(bench.host), wanted="")}


def noise(bench: Bench, params: Ptsd | None = None) -> Figures:
    params = params or Ptsd()
    with bench.device.active():
        got = noise_thresholds_on(bench.device, bench.short, RATE_HZ, params)
    expected = noise_thresholds(bench.host, RATE_HZ, params)
    found = bench.timed(lambda: noise_thresholds_on(bench.device, bench.long, RATE_HZ, params))
    return {**found, **different(got.noise_sd_uv, expected.noise_sd_uv)}


def noise_mad(bench: Bench) -> Figures:
    return noise(bench, Ptsd(noise="mad"))


def ptsd(bench: Bench, params: Ptsd | None = None) -> Figures:
    """Samples, channels and amplitudes of all spikes, bit by bit."""
    params = params or Ptsd()
    thresholds = noise_thresholds(bench.host, RATE_HZ, params).threshold_uv
    times = PtsdSamples.at(params, RATE_HZ)
    with bench.device.active():
        segments = (Segment(0, bench.short.shape[1], 0.0),)
        means = channel_means(bench.device, bench.short, segments, bench.names)

    def on(samples: DeviceArray) -> DeviceSpikes:
        whole = (Segment(0, samples.shape[1], 0.0),)
        walked = walk_segments(bench.device, samples, whole, times, means, thresholds)
        return sort_device_spikes(bench.device, walked, bench.channels)

    with bench.device.active():
        got = on(bench.short).to_host()
    expected = detect_spikes(bench.host, RATE_HZ, params, thresholds)
    found = bench.timed(lambda: on(bench.long))
    return {**found, **different(packed(got), packed(expected)), "n_spikes": expected.sample.size}


def packed(found: Spikes) -> NDArray[np.int64]:
    """Put the bits of each spike into a row."""
    uv = found.peak_to_peak_uv.view(np.int32).astype(np.int64)
    return np.ascontiguousarray(np.stack([found.sample, found.channel.astype(np.int64), uv], 1))


def ptsd_worst(bench: Bench) -> Figures:
    """At a threshold of one SD, every block may hold spikes."""
    return ptsd(bench, Ptsd(threshold_sd=1.0))


def subnormals(bench: Bench) -> Figures:
    """Filter channels that fade into subnormal numbers."""
    x = decaying()
    with bench.device.active():
        out = bench.device.xp.empty(x.shape, np.float32)
        DeviceHighPass(bench.device, HighPass(), RATE_HZ).apply(bench.device.xp.asarray(x), out)
        got = to_host(out)
    expected = HighPassFilter(HighPass(), RATE_HZ, len(x)).apply(x)
    # The scan may round the smallest ones of all to 0.
    size = np.abs(expected)
    subnormal = (size < np.finfo(np.float32).tiny) & (size > 1e-43)
    kept, n = int(((got != 0) & subnormal).sum()), int(subnormal.sum())
    return {
        **different(got, expected, wanted=""),
        "n_subnormal": n,
        "n_kept": kept,
        "holds": 0 < n == kept,
    }


def empty_arrays(bench: Bench) -> Figures:
    """Hand no spikes to torch."""
    with bench.device.active():
        xp = bench.device.xp
        none = (xp.empty(0, kind) for kind in (np.int64, np.int32, np.float32))
        tensors = DeviceSpikes(*none).to_torch(bench.device)
    kinds = (torch.int64, torch.int32, torch.float32)
    holds = all(t.shape == (0,) and t.dtype == k for t, k in zip(tensors, kinds, strict=True))
    return {"holds": holds, "devices": [str(t.device) for t in tensors]}


def no_memory(bench: Bench) -> Figures:
    """Ask for more memory than there is, inside CuPy's call back for memory, and go on."""
    if bench.job.dry:
        return {"raised": "not asked: the CPU has no such call back"}
    raised = "nothing"
    with bench.device.active():
        try:
            bench.device.xp.empty(1 << 44, np.uint8)
        except ToptuneError as error:
            raised = f"ToptuneError: {error}"
        except Exception as error:  # noqa: BLE001  # which one it is, is the question
            raised = f"{type(error).__name__}: {error}"
        after = float(bench.device.xp.ones(1000, np.float32).sum())
    return {"raised": raised, "holds": raised.startswith("ToptuneError") and after == 1000.0}


def beside_torch(bench: Bench) -> Figures:
    """Detect while torch has a second of work left, and see whether it is done first."""
    from array_recording import ArrayRecording

    recording = ArrayRecording(bench.host, RATE_HZ)

    def detect() -> None:
        detect_recording_on(bench.device, recording)

    alone_s = wall_s(bench.job.device, detect, rounds=2)
    if bench.job.dry:
        return {"alone_seconds": alone_s, "holds": True}
    a = torch.rand(4096, 4096, device=bench.job.device)
    product_s = best_s(bench.job.device, lambda: a @ a, 2)
    # Above a thousand kernels the host would wait to queue more.
    n = min(900, int((1 + 4 * alone_s) / product_s))
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # in torch
    for _ in range(n):
        a @ a
    done.record()
    begin = time.perf_counter()
    detect()
    seconds = time.perf_counter() - begin
    holds = not done.query()  # type: ignore[no-untyped-call]  # in torch
    torch.cuda.synchronize()
    return {"alone_seconds": alone_s, "seconds": seconds, "holds": holds}


def small_case(device: Accelerator) -> None:
    """Launch every kernel on little, for compute-sanitizer to watch."""
    x = simulate_traces(n_channels=3, seconds=0.5, seed=1, peak_sd=8.0, rate_hz=40.0).samples_uv
    whole, names = (Segment(0, x.shape[1], 0.0),), [str(k) for k in range(len(x))]
    times = PtsdSamples.at(Ptsd(), RATE_HZ)
    with device.active():
        raw = device.xp.asarray(x)
        held = device.xp.empty_like(raw)
        DeviceHighPass(device, HighPass(order=2), RATE_HZ).apply(raw, held)
        means = channel_means(device, held, whole, names)
        cases: tuple[tuple[float, Noise], ...] = ((8.0, "smallest_sd"), (0.05, "mad"))
        for threshold_sd, estimate in cases:
            params = Ptsd(threshold_sd=threshold_sd, noise=estimate)
            limits = noise_thresholds_on(device, held, RATE_HZ, params).threshold_uv
            walked = walk_segments(device, held, whole, times, means, limits)
            found = sort_device_spikes(device, walked, len(x)).to_host()
            sys.stdout.write(f"{found.sample.size} spikes\n")
    on_cuda = device.xp is not np
    for picture in (Picture(), Picture(kind="raster"), Picture(kind="sorted_raster")):
        drawers = Drawers(random_trains(0, 20.0))
        where = "cuda" if on_cuda else "cpu"
        drawer = drawers.drawer(Windows(width_s=10.0), picture, 64, where)
        sys.stdout.write(
            f"mean grey of {len(drawer)}: {float(drawer.draw(0, len(drawer)).mean())}\n"
        )


# --- networks


def loaded(name: str) -> LoadedBackbone:
    logging.disable(logging.WARNING)  # that random weights are for testing only
    try:
        return load_backbone(Backbone(name=name, weights="random"))
    finally:
        logging.disable(logging.NOTSET)


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Give the smallest cosine of a row and its fellow."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / norms).min())


def network(job: Job) -> None:
    """Time EfficientNetB0 by toptune beside the same network by torchvision, eager."""
    subject = Subject(job)
    found = {
        "toptune, 16 bits": job.part("toptune half", partial(by_toptune, subject, "half")),
        "toptune, float32": job.part("toptune float32", partial(by_toptune, subject, "float32")),
    }
    for dtype in (torch.float32, torch.float16):
        name = f"torchvision eager, {str(dtype).removeprefix('torch.')}"
        found[name] = job.part(name, partial(eager, subject, dtype))
    rows_of_network(subject, found)
    depth = job.part("depthwise convolutions", partial(depthwise, job))
    if depth is not None:
        ratio = depth["float32_by_float16"]
        what = "depthwise convolutions: float32 by 16 bits, seconds"
        job.row(what, ratio, "", ">= 1", ratio >= 1)
    told = job.part("top kernels", partial(top_kernels, subject))
    for kernel in told["top"][:8] if told is not None else ():
        job.row(f"{kernel['share']:.0%} of the device's time", kernel["name"][:60])


class Subject:
    """A network, pictures, and what the CPU makes of the first of them."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.backbone = loaded("mobilenet_v2" if job.dry else "efficientnet_b0")
        generator = torch.Generator(job.device).manual_seed(0)
        shape = (job.size(2048, 1), 224, 224)
        self.grey = torch.rand(shape, generator=generator, device=job.device)
        self.expected = self._expected(self.grey[:4].cpu())

    @torch.inference_mode()
    def _expected(self, grey: torch.Tensor) -> NDArray[np.float32]:
        mean, std = (
            torch.tensor(v).view(1, 3, 1, 1) for v in (self.backbone.mean, self.backbone.std)
        )
        features: NDArray[np.float32] = self.backbone.module((grey[:, None] - mean) / std).numpy()
        return features

    def figures(self, work: Callable[[], NDArray[np.float32]]) -> Figures:
        """Time work on all pictures."""
        close = cosine(work()[: len(self.expected)], self.expected)
        seconds = wall_s(self.job.device, work, self.job.size(5, 1))
        return {"pictures_per_s": len(self.grey) / seconds, "cosine_to_float32": close}


def by_toptune(subject: Subject, precision: Precision) -> Figures:
    """Describe the pictures by toptune; in a dry run 16 bits are torch's on the CPU."""
    if subject.job.dry and precision == "half":
        network_ = TorchNetwork(subject.backbone, subject.job.device, HALF, 2)
        pictures = GreyPictures(subject.grey)

        def describe() -> NDArray[np.float32]:
            return network_.start(pictures)()

        return subject.figures(describe)
    engine = FeatureEngine(subject.backbone, subject.job.device, precision=precision)
    found = subject.figures(lambda: engine.features(subject.grey))
    inner = engine._network
    graphs = [one.graph is not None for one in getattr(inner, "_prepared", {}).values()]
    return {**found, "batch_size": getattr(inner, "batch_size", None), "graphs": sum(graphs)}


def rows_of_network(subject: Subject, found: Mapping[str, Figures | None]) -> None:
    job, network_ = subject.job, subject.backbone.name
    measured = {name: figures for name, figures in found.items() if figures is not None}
    for name, figures in measured.items():
        per_s, close = figures["pictures_per_s"], figures["cosine_to_float32"]
        wanted, met = "", None
        if name == "toptune, 16 bits":
            wanted, met = f">= {WANTED_PICTURES_PER_S:,}", per_s >= WANTED_PICTURES_PER_S
        job.row(f"{network_}, {name}", per_s, "pictures/s", wanted, met)
        what = f"{network_}, {name}: smallest cosine to the CPU"
        job.row(what, close, "", f">= {LEAST_COSINE}", close >= LEAST_COSINE)
    ours = measured.get("toptune, 16 bits")
    for name, figures in measured.items():
        if ours is not None and name.startswith("torchvision"):
            ratio = ours["pictures_per_s"] / figures["pictures_per_s"]
            wanted, met = (">= 4", ratio >= 4) if name.endswith("float32") else ("", None)
            job.row(f"{network_}, toptune, 16 bits, by {name}", ratio, "", wanted, met)


@torch.inference_mode()
def eager(subject: Subject, dtype: torch.dtype) -> Figures:
    """Run the network as torchvision has it, batch 64, on input that is normalised before."""
    device, backbone = subject.job.device, subject.backbone
    layout = torch.contiguous_format if dtype == torch.float32 else torch.channels_last
    module = copy.deepcopy(backbone.module).to(device, dtype).to(memory_format=layout)
    mean, std = (
        torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (backbone.mean, backbone.std)
    )
    batches = [
        ((part[:, None] - mean) / std).to(dtype, memory_format=layout)
        for part in torch.split(subject.grey, 64)
    ]

    def work() -> NDArray[np.float32]:
        found = torch.cat([module(batch) for batch in batches]).float().cpu()
        features: NDArray[np.float32] = found.numpy()
        return features

    return subject.figures(work)


# Channels, side, kernel and stride of EfficientNetB0's depthwise convolutions, each kind once.
DEPTHWISE = (
    (32, 112, 3, 1), (96, 112, 3, 2), (144, 56, 3, 1), (144, 56, 5, 2), (240, 28, 5, 1),
    (240, 28, 3, 2), (480, 14, 3, 1), (480, 14, 5, 1), (672, 14, 5, 1), (672, 14, 5, 2),
    (1152, 7, 5, 1), (1152, 7, 3, 1),
)  # fmt: skip


@torch.inference_mode()
def depthwise(job: Job) -> Figures:
    """Time cuDNN's depthwise convolutions in 16 bits and float32, channels last, chosen by rule."""
    shapes = DEPTHWISE[-2:] if job.dry else DEPTHWISE
    ms: dict[str, list[float]] = {}
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    ):
        for dtype in (torch.float16, torch.float32):
            name = str(dtype).removeprefix("torch.")
            ms[name] = [1000 * convolution_s(job, dtype, *shape) for shape in shapes]
    ratio = sum(ms["float32"]) / sum(ms["float16"])
    return {"shapes": shapes, "ms": ms, "float32_by_float16": ratio}


def convolution_s(
    job: Job, dtype: torch.dtype, channels: int, side: int, kernel: int, stride: int
) -> float:
    layer = torch.nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels)
    layer = layer.to(job.device, dtype).to(memory_format=torch.channels_last)
    x = torch.ones(job.size(256, 1), channels, side, side, dtype=dtype, device=job.device)
    x = x.contiguous(memory_format=torch.channels_last)
    return best_s(job.device, lambda: layer(x), job.size(5, 1))


def top_kernels(subject: Subject) -> Figures:
    """Say on what the device spends its time."""
    from torch.profiler import ProfilerActivity, profile

    job = subject.job
    network_ = TorchNetwork(subject.backbone, job.device, torch.float32 if job.dry else HALF)
    source = GreyPictures(subject.grey)
    for _ in range(job.size(3, 0)):  # until the work is recorded in a graph
        network_.start(source)()
    on_cuda = job.device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as watched:
        network_.start(source)()
        if on_cuda:
            torch.cuda.synchronize()
    time_of = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    spent = [(float(getattr(e, time_of)), int(e.count), str(e.key)) for e in watched.key_averages()]
    total = sum(us for us, _, _ in spent)
    if not total:
        raise RuntimeError("the profiler saw no work on the device")
    top = sorted(spent, reverse=True)[:25]
    return {
        "total_ms": total / 1000,
        "top": [{"name": k, "ms": us / 1000, "calls": n, "share": us / total} for us, n, k in top],
    }


# --- tests


def gpu_tests() -> dict[str, str]:
    """Give the files with tests that are marked `gpu`, and what is selected of each."""
    files = (p for p in sorted((TOP / "tests").rglob("test_*.py")) if p.name != "test_gpu_proof.py")
    marked = (p for p in files if "mark.gpu" in p.read_text("utf-8"))
    return {p.relative_to(TOP).as_posix(): "gpu" for p in marked}


def tests(job: Job) -> None:
    """Run every file of tests that need a GPU in a process of its own, some at a time."""
    files = gpu_tests()
    if job.dry:  # which are skipped there; and one that needs none
        files = {
            "tests/test_gpu_spikes.py": "gpu",
            "tests/machine/test_torch_kernels.py": "not gpu",
        }
    # Tests that look at the GPU's free memory would see what others take of it.
    alone = [name for name in files if "free_bytes()" in (TOP / name).read_text("utf-8")]
    with ThreadPoolExecutor(job.size(4, 2)) as pool:
        started = {
            name: pool.submit(tested, job, name, files[name]) for name in files if name not in alone
        }
        for name, future in started.items():
            row_of_tests(job, name, job.part(name, future.result))
    for name in alone:
        row_of_tests(job, name, job.part(name, partial(tested, job, name, files[name])))


def row_of_tests(job: Job, name: str, found: Figures | None) -> None:
    if found is None:
        return
    n = {k: found[k] for k in ("passed", "failed", "skipped")}
    good = n["failed"] == 0 and found["ended"] == "done" and n["passed"] > 0
    words = ", ".join(f"{count} {what}" for what, count in n.items() if count)
    job.row(name, f"{words or 'none'}; {found['ended']}", "", "all pass", good)
    for failure in found["failures"][:3]:
        job.row(f"  {failure['test']}"[:70], failure["last"])


def tested(job: Job, name: str, selected: str) -> Figures:
    """Run a file's tests, and read how each ended."""
    xml = job.folder / f"{Path(name).stem}.xml"
    command = [
        sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "--tb=short",
        "-m", selected, f"--junitxml={xml}", name,
    ]  # fmt: skip
    env = environment(job.dry) | ({} if job.dry else {"TOPTUNE_GPU": "1"})
    ended, output, code = "done", "", 0
    try:
        done = subprocess.run(
            command, cwd=TOP, env=env, capture_output=True, text=True, check=False,
            timeout=max(1.0, job.left_s()),
        )  # fmt: skip
        output, code = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired as error:
        ended = "stopped at the limit"
        output = (error.stdout or b"").decode("utf-8", "replace")
    sys.stdout.write(output[-6000:])
    if not xml.exists():
        return {
            "passed": 0, "failed": 0, "skipped": 0, "failures": [],
            "ended": ended if ended != "done" else f"code {code}: {one_line(output)}",
        }  # fmt: skip
    return {**read_junit(xml), "ended": ended}


def read_junit(xml: Path) -> Figures:
    """Count tests, and keep the last line of each failure."""
    counted: dict[str, int] = {"passed": 0, "failed": 0, "skipped": 0}
    failures = []
    cases = list(ElementTree.parse(xml).iter("testcase"))
    for case in cases:
        wrong = [*case.findall("failure"), *case.findall("error")]
        if wrong:
            counted["failed"] += 1
            lines = (wrong[0].text or wrong[0].get("message") or "?").strip().splitlines()
            message = wrong[0].get("message") or ""
            failures.append(
                {"test": case.get("name") or "?", "last": one_line(message or lines[-1]),
                 "lines": lines[-15:]}
            )  # fmt: skip
        else:
            counted["skipped" if case.findall("skipped") else "passed"] += 1
    seconds = sum(float(case.get("time") or 0) for case in cases)
    return {**counted, "failures": failures, "seconds": seconds}


# --- from stored spikes to features


def random_trains(seed: int, seconds: float) -> SpikeTrains:
    """Give 60 electrodes 5 spikes/s each on average, most of them in bursts of the network."""
    rng = np.random.default_rng(seed)
    whole = round(seconds)
    n = 5 * 60 * whole
    rate = np.repeat(np.exp(rng.normal(0, 1.3, whole)), 1000)
    millisecond = rng.choice(1000 * whole, n, p=rate / rate.sum())
    sample = (millisecond * 10 + rng.integers(0, 10, n)).astype(np.int64)
    channel = rng.integers(0, 60, n).astype(np.int32)
    return SpikeTrains(
        spikes=sort_spikes(sample, channel, np.ones(n, dtype=np.float32)),
        channel_labels=tuple(f"{i:02d}" for i in range(60)),
        sampling_rate_hz=RATE_HZ,
        segments=(Segment(0, 10_000 * whole, 0.0),),
        threshold_uv=np.full(60, np.nan, dtype=np.float32),
    )


def views_of(engine: FeatureEngine) -> list[PictureExtractor]:
    return [
        PictureExtractor(Windows(width_s=width_s), picture, engine)
        for picture in (Picture(), Picture(kind="raster"))
        for width_s in (120.0, 60.0, 30.0, 10.0)
    ]


def whole_pass(job: Job) -> None:
    """Describe 32 devices by 48 views in one pass over their spikes, or as many as time allows."""
    names: Sequence[str] = PAPER_BACKBONES
    with tiny_networks(job) as tiny:
        names = tiny or names
        seconds = float(job.size(int(STUDY_S), 130))
        views: list[PictureExtractor] = []
        for name in names:
            found = job.part(
                f"one device, {name}", partial(one_backbone, job, name, seconds, views)
            )
            if found is not None:
                job.row(f"one device x 8 views, {name}", found["pictures_per_s"], "pictures/s")
        found = job.part("all views", lambda: all_views(job, views, seconds))
    if found is None:
        return
    what = "extrapolated from" if found["sampled"] else "all of"
    job.row(f"32 devices x {len(views)} views, {what} {found['devices']}", found["study_s"], "s")
    job.row(f"one pass over {len(views)} views", found["pictures_per_s"], "pictures/s")


@contextmanager
def tiny_networks(job: Job) -> Iterator[tuple[str, ...]]:
    """In a dry run, let names stand for networks of a few weights."""
    if not job.dry:
        yield ()
        return
    from pytest import MonkeyPatch  # noqa: PT013  # of pytest only this, and only here
    from small_data import install_tiny_backbones

    with MonkeyPatch.context() as patch:
        install_tiny_backbones(patch)
        from toptune.backbones import loading

        patch.setattr(sys.modules[__name__], "load_backbone", loading.load_backbone)
        yield ("tiny", "tiny_too")


def one_backbone(job: Job, name: str, seconds: float, views: list[PictureExtractor]) -> Figures:
    """Load and warm up a network, then describe one device."""
    begin = time.perf_counter()
    engine = FeatureEngine(loaded(name), str(job.device))
    loaded_s = time.perf_counter() - begin
    own = views_of(engine)
    trains = random_trains(0, seconds)

    def work() -> int:
        started = start_features(Drawers(trains), own, unwatched)
        return sum(len(one.result().features) for one in started)

    begin = time.perf_counter()
    n = work()
    first_s = time.perf_counter() - begin
    work()  # a graph is recorded when a size is used for the second time
    best = wall_s(job.device, work, 1)
    views += own
    return {
        "load_s": loaded_s, "first_s": first_s, "seconds": best, "pictures": n,
        "pictures_per_s": n / best,
    }  # fmt: skip


def all_views(job: Job, views: Sequence[PictureExtractor], seconds: float) -> Figures:
    """Start each device before the one before it is waited for, as extraction does."""
    if not views:
        raise RuntimeError("no network could be used")
    most = job.size(STUDY_DEVICES, 2)
    trains = [random_trains(seed, seconds) for seed in range(most)]
    budget_s = 0.8 * job.left_s()
    before: list[PendingFeatures] = []
    pictures = devices = 0
    begin = time.perf_counter()
    for one in trains:
        started = start_features(Drawers(one), views, unwatched)
        pictures += sum(len(pending.result().features) for pending in before)
        before, devices = started, devices + 1
        if time.perf_counter() - begin > budget_s:
            break
    pictures += sum(len(pending.result().features) for pending in before)
    took = time.perf_counter() - begin
    return {
        "devices": devices,
        "sampled": devices < STUDY_DEVICES,
        "pictures": pictures,
        "seconds": took,
        "pictures_per_s": pictures / took,
        "study_s": took / devices * STUDY_DEVICES * (STUDY_S / seconds),
    }


# --- heads


def heads(job: Job) -> None:
    """Score 32 devices of 157 windows x 1280 by leaving each out, on the GPU and on the CPU."""
    # Not before: scikit-learn takes longer to import than other steps take.
    from toptune.evaluation.folds import leave_one_group_out
    from toptune.heads.falkon.classifier import FalkonClassifier
    from toptune.heads.mlp.classifier import MLPClassifier

    sizes = Sizes(
        devices=job.size(32, 10), windows_a_device=job.size(157, 4), features=job.size(1280, 32)
    )
    rows = Stages(job.folder, sizes, job.device.type, None).rows
    epochs = job.size(5, 2)
    made: dict[str, Callable[[str], Any]] = {
        "Falkon": lambda device: FalkonClassifier(device=device),
        f"MLP, {epochs} epochs": lambda device: MLPClassifier(epochs=epochs, device=device),
    }

    def compared(make: Callable[[str], Any]) -> Figures:
        first = leave_one_group_out(make(job.device.type), *rows)
        seconds = wall_s(
            job.device, lambda: leave_one_group_out(make(job.device.type), *rows), job.size(3, 1)
        )
        begin = time.perf_counter()
        expected = leave_one_group_out(make("cpu"), *rows)
        cpu_s = time.perf_counter() - begin
        return {
            "seconds": seconds,
            "cpu_seconds": cpu_s,
            "largest_difference": float(np.abs(first.scores - expected.scores).max()),
            "same_predictions": float((first.predictions == expected.predictions).mean()),
        }

    for name, make in made.items():
        found = job.part(name, partial(compared, make))
        if found is not None:
            job.row(f"{name}, {sizes.devices} folds", found["seconds"], "s")
            job.row(f"{name}, {sizes.devices} folds on the CPU", found["cpu_seconds"], "s")
            job.row(f"{name}: largest difference of scores", found["largest_difference"])
    job.part("float64", lambda: {"auto": float64_device("auto")})
    found = job.part("Falkon tuned", lambda: tuned(job, rows))
    if found is not None:
        what = f"Falkon tuned over {found['settings']} settings, {found['shuffles']} permutations"
        job.row(what, found["seconds"], "s")


def tuned(job: Job, rows: Any) -> Figures:
    """Choose among settings inside every fold, for the labels and for shuffles of them."""
    from toptune.evaluation.evaluate import Units, shuffles
    from toptune.heads.falkon.classifier import FalkonClassifier
    from toptune.heads.falkon.head import falkon_candidates
    from toptune.heads.falkon.tuning import tune_falkon
    from toptune.heads.rows import LabelledRows, group_rows

    head = FalkonClassifier(device=job.device.type)
    widths = (0.5, 1.0) if job.dry else (0.25, 0.5, 1.0, 2.0, 4.0)
    penalties = (1e-4, 1e-3) if job.dry else (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
    candidates = falkon_candidates(1, widths=widths, penalties=penalties)
    units = Units.of(rows.device, rows.label)
    shuffled = shuffles(units, job.size(1000, 20), 0)
    assert shuffled is not None
    labelled = LabelledRows(rows.X, rows.label, group_rows(rows.device), units.of_row)
    begin = time.perf_counter()
    tune_falkon(head, labelled, candidates, shuffled=shuffled.labels)
    seconds = time.perf_counter() - begin
    return {"settings": len(candidates), "shuffles": len(shuffled.labels), "seconds": seconds}


# --- the commands


class Command(NamedTuple):
    """What a command took."""

    seconds: float
    cpu_s: float
    busy: list[float]  # percent, every 0.2 s; empty where nothing tells
    output: str

    def figures(self) -> Figures:
        return {
            "seconds": self.seconds,
            "cpu_cores_busy": self.cpu_s / self.seconds,
            "gpu_busy_samples": len(self.busy),
            "gpu_busy_share": float(np.mean(self.busy)) / 100 if self.busy else None,
            # From the first to the last sign of work, as the program starts and compiles before.
            "gpu_busy_share_at_work": at_work(self.busy),
        }


def at_work(busy: Sequence[float]) -> float | None:
    signs = [k for k, percent in enumerate(busy) if percent > 0]
    return float(np.mean(busy[signs[0] : signs[-1] + 1])) / 100 if signs else None


def toptune(job: Job, *arguments: str | Path) -> Command:
    """Run the command line, and watch the GPU meanwhile."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    with watching(job) as busy:
        done = subprocess.run(
            [sys.executable, "-m", "toptune", *map(str, arguments)], cwd=job.folder,
            env=environment(job.dry), capture_output=True, text=True, check=False,
            timeout=max(1.0, job.left_s()),
        )  # fmt: skip
    seconds = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"toptune {arguments[0]}: {one_line(done.stderr)}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Command(seconds, cpu_s, busy, done.stdout)


@contextmanager
def watching(job: Job) -> Iterator[list[float]]:
    """Fill a list with how busy the GPU is, in percent, by nvidia-smi every 0.2 s."""
    busy: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            told = nvidia_smi("utilization.gpu", ",nounits")
            if told.isdigit():
                busy.append(float(told))

    watcher = threading.Thread(target=watch)
    if not job.dry:
        watcher.start()
    try:
        yield busy
    finally:
        ended.set()
        if not job.dry:
            watcher.join()


def commands(job: Job) -> None:
    """Run what users run, on simulated recordings, and say what 32 devices would take."""
    seconds = job.size(300, 20)
    device = ("--device", job.device.type)
    ready = job.part("simulate", lambda: recordings(job, seconds))
    if ready is None:
        return
    drawn = [
        *("--weights", "random", "--window-s", str(job.size(60, 10))),
        *("--backbone", "mobilenet_v2" if job.dry else "efficientnet_b0"),
    ]

    def extract() -> Figures:
        alone = ("--picture", "none") if job.dry else drawn
        one = toptune(job, "extract", "one.csv", "--store", "one.zarr", *alone, *device)
        four = toptune(job, "extract", "four.csv", "--store", "four.zarr", *drawn, *device)
        each = (four.seconds - one.seconds) / 3
        if each <= 0:  # nothing but noise: an upper limit
            each = four.seconds / 4
        start_s = max(one.seconds - each, 0.0)
        return {
            **four.figures(), "one_device_s": one.seconds, "start_s": start_s, "device_s": each,
            "study_s": start_s + STUDY_DEVICES * each * STUDY_S / seconds,
        }  # fmt: skip

    extracted = job.part("extract", extract)
    if extracted is not None:
        rows_of_command(job, "extract", extracted)

    def sweep() -> Figures:
        found = toptune(job, "sweep", "four.csv", "grid.toml", "-o", "swept", *device, "--json")
        told = json.loads(found.output)
        if told["failed"]:
            raise RuntimeError(f"the sweep failed in {len(told['failed'])}: {told['failed'][:2]}")
        start_s = min(extracted["start_s"] if extracted else 0.0, found.seconds)
        ratio = STUDY_DEVICES / 4 * STUDY_S / seconds
        return {
            **found.figures(), "runs": len(told["runs"]), "start_s": start_s,
            "study_s": start_s + (found.seconds - start_s) * ratio,
        }  # fmt: skip

    swept = job.part("sweep", sweep)
    if swept is not None:
        rows_of_command(job, f"sweep of {swept['runs']} views", swept)


def rows_of_command(job: Job, name: str, found: Figures) -> None:
    job.row(f"{name}, 4 devices", found["seconds"], "s")
    job.row(f"{name}, 4 devices: GPU busy once at work", found["gpu_busy_share_at_work"])
    job.row(f"{name}, 4 devices: cores busy", found["cpu_cores_busy"])
    study, wanted, met = found["study_s"], "", None
    if name.startswith("sweep"):
        wanted, met = "<= 180", study <= 180
    job.row(f"{name}, extrapolated to 32 devices of 15 min", study, "s", wanted, met)


def recordings(job: Job, seconds: int) -> Figures:
    """Simulate four devices, call them two classes, and write the grid of 48 views."""
    made = toptune(job, "simulate", ".", "--devices", "4", "--seconds", str(seconds))
    with (job.folder / "devices.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for k, row in enumerate(rows):
        row["label"] = "ab"[k % 2]
    for name, some in (("one", rows[:1]), ("four", rows)):
        with (job.folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(some)
    grid = {
        "title": "proof", "picture": ["histogram", "raster"], "stride_s": 5,
        "window_s": [10, 5] if job.dry else [120, 60, 30, 10],
        "backbone": ["mobilenet_v2"] if job.dry else list(PAPER_BACKBONES),
        "weights": "random", "head": "falkon", "tune": False, "permutations": 0,
    }  # fmt: skip
    # Of these values JSON and TOML have the same notation.
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in grid.items())
    (job.folder / "grid.toml").write_text(text, "utf-8")
    n_bytes = sum(path.stat().st_size for path in job.folder.glob("*.h5"))
    return {"seconds": made.seconds, "recording_s": seconds, "bytes": n_bytes}


# --- compute-sanitizer

SANITIZER = "compute-sanitizer"
KERNELS_WATCHED = ("highpass_", "noise_", "ptsd_", "rank_", "render_", "sum_")


def sanitizer(job: Job) -> None:
    """Let compute-sanitizer watch our kernels, its tools at the same time."""
    found = shutil.which(SANITIZER) or shutil.which(SANITIZER, path="/usr/local/cuda/bin")
    tools: dict[str, list[str]] = {"none": []}
    if found is not None and not job.dry:
        watched = [x for name in KERNELS_WATCHED for x in ("--kernel-name", f"kns={name}")]
        base = [found, "--error-exitcode", "9", *watched, "--report-api-errors", "no"]
        tools |= {tool: [*base, "--tool", tool] for tool in ("memcheck", "racecheck")}
    else:
        job.row(SANITIZER, "dry run" if job.dry else "not found")
    with ThreadPoolExecutor(len(tools)) as pool:
        started = {tool: pool.submit(sanitized, job, words) for tool, words in tools.items()}
        for tool, future in started.items():
            told = job.part(tool, future.result)
            if told is not None:
                good = told["code"] == 0
                job.row(f"small cases, watched by {tool}", told["summary"], "", "no errors", good)


def sanitized(job: Job, tool: Sequence[str]) -> Figures:
    command = [*tool, sys.executable, str(TOP / "benchmarks" / "gpu_proof.py"), "--step", SMALL]
    command += ["--out", str(job.folder), *(["--dry"] if job.dry else [])]
    # Each array from the driver, so that its ends are seen.
    env = environment(job.dry) | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    begin = time.perf_counter()
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, check=False,
        timeout=max(1.0, job.left_s()),
    )  # fmt: skip
    output = done.stdout + done.stderr
    sys.stdout.write(output[-6000:])
    lines = [line for line in output.splitlines() if "ERROR SUMMARY" in line or "RACECHECK" in line]
    words = lines[-1].lstrip("= ") if lines else one_line(output) if done.returncode else "ran"
    seconds = time.perf_counter() - begin
    return {"code": done.returncode, "seconds": seconds, "summary": words, "tail": output[-2000:]}


STEPS: dict[str, Callable[[Job], None]] = {
    "versions": versions,
    "ceilings": ceilings,
    "spikes": spikes,
    "network": network,
    "tests": tests,
    "pass": whole_pass,
    "heads": heads,
    "commands": commands,
    "sanitizer": sanitizer,
}
