"""Features of pictures, computed by a backbone on any device.

The device decides what computes them: on the CPU OpenVINO in float32, on CUDA torch in 16 bits.
float32 may be asked for on CUDA, and 16 bits on processors that have units for them.
"""

from __future__ import annotations

import copy
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from toptune.backbones.loading import LoadedBackbone
from toptune.backbones.processor import half_of_processor, openvino, openvino_core
from toptune.backbones.torch_engine import DrawnPictures, GreyPictures, TorchNetwork
from toptune.errors import InputError, ToptuneError
from toptune.machine.threads import usable_cores
from toptune.params import Precision
from toptune.pictures.drawer import Drawer
from toptune.pictures.drawer_cuda import CudaDrawer

# Pictures per inference on the CPU, where a small batch stays in cache: with one stream per thread,
# 2 and 4 were the fastest of 1, 2, 4, 8 and 16 for EfficientNetB0 and DenseNet121.
_CPU_BATCH = 4
# Pictures drawn at a time: 13 MB at 224 x 224, whatever the recording's length.
_DRAWN_AT_ONCE = 64
# A stream holds the activations of a batch (tens of megabytes), so many cores share few streams.
_MAX_STREAMS = 8

# The 16-bit type of GPUs; a processor may have bfloat16 alone. For the paper's six backbones with
# random weights and MobileNetV2 with trained ones, on four to twelve pictures of real cultures
# each, the cosine of float16 features to float32 features was 0.99992 or more. That of bfloat16,
# with 8 bits of precision instead of 11, was as low as 0.9956 (MobileNetV2) and 0.9970
# (DenseNet121).
HALF = torch.float16
# What OpenVINO calls the types in which it computes.
_HINTS = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


class Computed(NamedTuple):
    """What computed features. It is no part of their key: any device may compute them."""

    device: str  # cpu, or cuda: and the GPU's name
    precision: str  # float32, float16 or bfloat16
    engine: str  # openvino or torch

    def to_json(self) -> dict[str, str]:
        """Plain values."""
        return self._asdict()


def resolve_precision(precision: Precision, device: torch.device | str) -> torch.dtype:
    """Return the type in which a backbone computes: ``auto`` is 16 bits on CUDA, else float32.

    ``half`` is float16 on CUDA, and on the CPU float16 or bfloat16, by what the processor has units
    for. An unknown precision, or half on a processor without such units, is an `InputError`.
    """
    if precision not in get_args(Precision):
        choices = ", ".join(get_args(Precision))
        raise InputError(f"precision must be one of {choices}, got {precision!r}")
    if torch.device(device).type == "cuda":
        return torch.float32 if precision == "float32" else HALF
    return _half_of_cpu() if precision == "half" else torch.float32


def _half_of_cpu() -> torch.dtype:
    half = half_of_processor()
    if half is None:
        raise InputError(
            '`precision="half"`: this processor has no units for 16 bits (AMX, AVX512-FP16 or'
            " AVX512-BF16), so it would be slower than float32; leave `precision` out, or use"
            ' `device="cuda"`'
        )
    return torch.float16 if half.dtype == "float16" else torch.bfloat16


class Stopwatch:
    """Measures the work that is done on the CPU, or queued on a GPU, between start and stop.

    What a GPU does is timed by events in its own queue, so that nobody waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._marks = [self._mark()]

    def stop(self) -> None:
        """Mark the end of the work."""
        self._marks.append(self._mark())

    def seconds(self) -> float:
        """Seconds from start to stop; waits for a GPU to come that far."""
        begin, end = self._marks
        if not self._on_cuda:
            return float(end - begin)
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000

    def _mark(self) -> Any:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


class FeatureEngine:
    """A backbone on a device, compiled when first needed.

    Parameters
    ----------
    loaded
        The backbone; its module is not changed.
    device
        Where the pictures are: OpenVINO computes on ``cpu``, torch on any other device.
    batch_size
        Pictures per inference; if None, a measured default on the CPU and what fits into the memory
        of a GPU. It changes features by rounding only.
    n_threads
        CPU threads of OpenVINO; all that this process may use if None.
    precision
        See `resolve_precision`.

    Raises
    ------
    ValueError
        `batch_size` or `n_threads` is below 1.
    InputError
        The device cannot compute in that precision.
    """

    def __init__(
        self,
        loaded: LoadedBackbone,
        device: torch.device | str = "cpu",
        batch_size: int | None = None,
        n_threads: int | None = None,
        precision: Precision = "auto",
    ) -> None:
        for name, value in (("batch_size", batch_size), ("n_threads", n_threads)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        self.loaded = loaded
        self.device = torch.device(device)
        self.precision: Precision = precision
        self.name = loaded.name
        self.input_size = loaded.input_size
        self.n_features = loaded.n_features
        self._dtype = resolve_precision(precision, self.device)
        self._batch_size = batch_size
        self._n_threads = n_threads

    @property
    def computed(self) -> Computed:
        """Where and how precisely features are computed, for the store."""
        dtype = str(self._dtype).removeprefix("torch.")
        if self.device.type == "cpu":
            return Computed("cpu", dtype, "openvino")
        name = f"{self.device.type}:{torch.cuda.get_device_name(self.device)}"
        return Computed(name, dtype, "torch")

    def compile(self) -> None:
        """Compile the network now, so that the first picture does not wait for it."""
        _ = self._network

    def release(self) -> None:
        """Give back what `compile` took; the network is compiled again when it is next needed."""
        self.__dict__.pop("_network", None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def stopwatch(self) -> Stopwatch:
        """Measure the engine's work from now on."""
        return Stopwatch(self.device)

    @cached_property
    def _network(self) -> OpenVinoNetwork | TorchNetwork:
        if self.device.type == "cpu":
            threads = self._n_threads or usable_cores()
            batch = self._batch_size or _CPU_BATCH
            return OpenVinoNetwork(self.loaded, batch, threads, self._dtype)
        return TorchNetwork(self.loaded, self.device, self._dtype, self._batch_size)

    def features(self, pictures: torch.Tensor) -> NDArray[np.float32]:
        """Compute the features of pictures, (n, d), one row a picture.

        Parameters
        ----------
        pictures : (n, S, S) float32
            Grey values in [0, 1], 1 = white, on the engine's device. They become three equal
            channels, normalised with the backbone's mean and SD.

        Raises
        ------
        ValueError
            The pictures have another size, type or device.
        ToptuneError
            A feature is not finite.
        """
        size = (self.input_size, self.input_size)
        if pictures.ndim != 3 or pictures.shape[1:] != size or pictures.dtype != torch.float32:
            raise ValueError(
                f"{self.name} takes float32 pictures (n, {size[0]}, {size[1]}), got "
                f"{pictures.dtype} {tuple(pictures.shape)}"
            )
        if pictures.device.type != self.device.type:
            raise ValueError(f"pictures are on {pictures.device}, the engine on {self.device}")
        if len(pictures) == 0:
            return np.empty((0, self.n_features), dtype=np.float32)
        network = self._network
        if isinstance(network, TorchNetwork):
            return self._finite(network.start(GreyPictures(pictures))())
        return self._finite(network(pictures))

    def start(
        self, drawer: Drawer | CudaDrawer, progress: Callable[[int], object] | None = None
    ) -> Callable[[], NDArray[np.float32]]:
        """Draw all windows of a recording and compute their features, few at a time.

        The work may only be queued when this returns, so that more can be queued behind it: on the
        CPU the last pictures, which may then share a batch with those that follow.

        Parameters
        ----------
        drawer
            Draws at the engine's input size, on its device; a `CudaDrawer` only on CUDA.
        progress
            Called after each batch with the number of windows it held.

        Returns
        -------
        callable
            Waits for the features, in any thread, and gives them, (windows, d) float32. It raises a
            `ToptuneError` where one of them is not finite.

        Raises
        ------
        ValueError
            Drawer and engine differ in size or device.
        ToptuneError
            A GPU has no memory for a single picture.
        """
        if drawer.device.type != self.device.type:
            raise ValueError(f"pictures are on {drawer.device}, the engine on {self.device}")
        if drawer.size != self.input_size:
            raise ValueError(
                f"pictures are {drawer.size} pixels wide, {self.name} takes {self.input_size}"
            )
        network = self._network
        if isinstance(network, TorchNetwork):
            source = drawer if isinstance(drawer, CudaDrawer) else DrawnPictures(drawer)
            wait = network.start(source, progress)
            return lambda: self._finite(wait())
        wait = network.start(_drawn(drawer, progress), len(drawer))
        return lambda: self._finite(wait())

    def _finite(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            raise ToptuneError(
                f"{self.name} gave features that are not finite for {np.count_nonzero(~finite)} of"
                f" {len(features)} pictures; its weights or the pictures are broken, or too large"
                ' for 16 bits, where `precision="float32"` helps'
            )
        return features


def _drawn(
    drawer: Drawer | CudaDrawer, progress: Callable[[int], object] | None
) -> Iterator[torch.Tensor]:
    """Draw all windows, some at a time; `progress` is told when more are wanted."""
    for first in range(0, len(drawer), _DRAWN_AT_ONCE):
        last = min(first + _DRAWN_AT_ONCE, len(drawer))
        yield drawer.draw(first, last)
        if progress is not None:
            progress(last - first)


class _Normalised(nn.Module):
    """A backbone that takes grey pictures (n, 1, S, S) and normalises them itself."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, loaded: LoadedBackbone) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(loaded.module)
        self.register_buffer("mean", torch.tensor(loaded.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(loaded.std).view(1, 3, 1, 1))
        self.eval()

    def forward(self, grey: torch.Tensor) -> Any:
        # One channel is broadcast to three equal ones.
        return self.backbone((grey - self.mean) / self.std)


class OpenVinoNetwork:
    """A backbone compiled for the CPU; parallel streams each compute batches of a fixed size.

    Pictures are drawn while others are described, and a batch is filled with pictures of whatever
    is started next, so that streams have work and batches are full between one start and another. A
    picture's features do not depend on those beside it, bit for bit.

    Pictures and features are float32, whatever the type in which the network computes between them.
    Raises `InputError` where OpenVINO does not compute in the type that was asked for.
    """

    def __init__(
        self,
        loaded: LoadedBackbone,
        batch_size: int,
        n_threads: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        ov = openvino()
        size = loaded.input_size
        self._shape = (batch_size, 1, size, size)
        self._n_features = loaded.n_features
        example = torch.zeros(self._shape)
        with warnings.catch_warnings(), torch.no_grad():
            # OpenVINO would trace in the same way, but twice, as a check that takes seconds. The
            # warnings say that tracing is deprecated and that it fixes shapes, which is intended.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(  # type: ignore[no-untyped-call]  # untyped in torch
                _Normalised(loaded), example, check_trace=False, strict=False
            )
            model = ov.convert_model(traced, example_input=example)
        model.reshape(list(self._shape))
        streams = min(n_threads, _MAX_STREAMS)
        compiled = openvino_core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINTS[dtype],
                "INFERENCE_NUM_THREADS": n_threads,
                "NUM_STREAMS": str(streams),
                # With pinning, two processes would share the same cores while others are idle.
                "ENABLE_CPU_PINNING": False,
            },
        )
        # Of a type that it does not have, OpenVINO takes another without a word.
        taken = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if taken != _HINTS[dtype]:
            raise InputError(
                f"OpenVINO computes in {taken} on this processor, not in {_HINTS[dtype]}: leave"
                " `precision` out"
            )
        # Two batches a stream, so that one waits while the next pictures are drawn.
        self._queue = ov.AsyncInferQueue(compiled, 2 * streams)
        self._queue.set_callback(_keep)
        self._lock = threading.Lock()
        self._batch = _Batch(self._shape)

    def __call__(self, pictures: torch.Tensor) -> NDArray[np.float32]:
        """Turn grey pictures (n, S, S), float32 in [0, 1], into features (n, d)."""
        return self.start([pictures], len(pictures))()

    def start(
        self, blocks: Iterable[torch.Tensor], n_pictures: int
    ) -> Callable[[], NDArray[np.float32]]:
        """Queue grey pictures, which come in blocks (n, S, S), float32 in [0, 1].

        What is returned waits for their features, (n_pictures, d), in any thread.
        """
        wanted = _Wanted(np.empty((n_pictures, self._n_features), np.float32))
        first = 0
        for block in blocks:
            grey = block[:, None].contiguous().numpy()
            with self._lock:
                for picture in grey:
                    if self._batch.add(picture, wanted, first):
                        self._send()
                    first += 1
        return partial(self._wait, wanted)

    def _wait(self, wanted: _Wanted) -> NDArray[np.float32]:
        if not wanted.all_there:
            with self._lock:
                # Nobody may come who fills the batch.
                if self._batch.n_pictures:
                    self._send()
                self._queue.wait_all()
            if not wanted.all_there:
                raise ToptuneError("OpenVINO failed at pictures beside these: start again")
        return wanted.features

    def _send(self) -> None:
        """Give the batch to a stream, as soon as one is free, and begin another."""
        batch, self._batch = self._batch, _Batch(self._shape)
        self._queue.start_async([batch.pictures], batch, share_inputs=True)


class _Wanted:
    """Features that are being computed."""

    def __init__(self, features: NDArray[np.float32]) -> None:
        self.features = features  # (n, d)
        self._left = len(features)
        self._lock = threading.Lock()  # streams end at the same time

    @property
    def all_there(self) -> bool:
        """Whether every row is computed."""
        return self._left == 0

    def keep(self, row: int, values: NDArray[np.float32]) -> None:
        """Keep the features of one picture."""
        self.features[row] = values
        with self._lock:
            self._left -= 1


class _Batch:
    """The pictures of one inference, and whose they are.

    The compiled shape is fixed: what is not filled is 0 everywhere, and its rows are discarded.
    """

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        self.pictures = np.zeros(shape, np.float32)
        self._owners: list[tuple[_Wanted, int]] = []

    @property
    def n_pictures(self) -> int:
        """How many pictures are in it."""
        return len(self._owners)

    def add(self, picture: NDArray[np.float32], wanted: _Wanted, row: int) -> bool:
        """Put a picture (1, S, S) in, and say whether the batch is full."""
        self.pictures[len(self._owners)] = picture
        self._owners.append((wanted, row))
        return len(self._owners) == len(self.pictures)

    def keep(self, features: NDArray[np.float32]) -> None:
        """Hand out the features, (batch, d)."""
        for (wanted, row), values in zip(self._owners, features, strict=False):
            wanted.keep(row, values)


def _keep(request: Any, batch: _Batch) -> None:
    batch.keep(request.get_output_tensor(0).data)
