"""Backbones computed by torch, batch by batch, without waiting for the device.

On CUDA the network's input stays at the same place in memory, so that a CUDA graph can be replayed
on it. Features are collected on the device and copied to main memory at once, while the next work
runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from toptune.backbones.folding import fold
from toptune.backbones.loading import LoadedBackbone
from toptune.errors import DeviceMemoryError
from toptune.pictures.drawer import Drawer
from toptune.pictures.drawer_cuda import InputChannels

_LOG = logging.getLogger(__name__)

# Batches are rounded up to one of these, so that recordings of any lengths share few CUDA graphs:
# to record one takes longer than to compute some pictures in vain. The last occupies a large GPU;
# more would only take memory.
_SIZES = (64, 128, 192, 256)
_MOST_PICTURES = _SIZES[-1]
# The most graphs kept, each with its own input; the least recently used one goes.
_MOST_GRAPHS = 4
_PROBE = 8
# On another device than CUDA, on which this is tested.
_ELSEWHERE = 16


class Source(Protocol):
    """Pictures that can be written into a network's input."""

    def __len__(self) -> int:
        """Return their number."""

    def render(self, first: int, last: int, out: torch.Tensor, channels: InputChannels) -> None:
        """Write pictures `first` up to `last` into `out`, (last - first, channels, S, S)."""


class GreyPictures:
    """Pictures that have been drawn: (n, S, S) float32 in [0, 1], 1 = white, on the device."""

    def __init__(self, grey: torch.Tensor) -> None:
        self._grey = grey

    def __len__(self) -> int:
        return len(self._grey)

    def render(self, first: int, last: int, out: torch.Tensor, channels: InputChannels) -> None:
        """Write pictures into a network's input."""
        darkness = 1 - self._grey[first:last, None]
        scale, shift = (values.view(1, -1, 1, 1) for values in channels)
        out.copy_(darkness * scale + shift)


class DrawnPictures:
    """Pictures that are drawn batch by batch, on the device."""

    def __init__(self, drawer: Drawer) -> None:
        self._drawer = drawer

    def __len__(self) -> int:
        return len(self._drawer)

    def render(self, first: int, last: int, out: torch.Tensor, channels: InputChannels) -> None:
        """Draw pictures into a network's input."""
        GreyPictures(self._drawer.draw(first, last)).render(0, last - first, out, channels)


@dataclass(eq=False)
class _Prepared:
    """A batch of one size: its input, and from the second use on a CUDA graph and its output."""

    batch: torch.Tensor
    used: bool = False
    graph: torch.cuda.CUDAGraph | None = None
    output: torch.Tensor | None = None


class TorchNetwork:
    """A backbone, which is not changed, on a torch device in float32, float16 or bfloat16.

    `batch_size` is the most pictures per batch; None, until the first picture, for what fits into
    the free memory, up to 256. It is halved if memory runs out.
    """

    def __init__(
        self,
        loaded: LoadedBackbone,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int | None = None,
    ) -> None:
        self._on_cuda = device.type == "cuda"
        if self._on_cuda and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        folded = fold(loaded)
        module = folded.module.to(device, dtype).to(memory_format=torch.channels_last)
        for norm in module.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.float()  # what is not folded keeps its statistics, as in mixed training
        self.batch_size = batch_size
        self._module: nn.Module = module
        self._name, self._n_features = loaded.name, loaded.n_features
        self._device, self._dtype = device, dtype
        self._channels = InputChannels.of(folded.channels, device)
        self._picture = (len(folded.channels), loaded.input_size, loaded.input_size)
        self._prepared: dict[int, _Prepared] = {}  # the most recently used one last
        self._graphs_work = True
        if self._on_cuda:
            self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def start(
        self, source: Source, progress: Callable[[int], object] | None = None
    ) -> Callable[[], NDArray[np.float32]]:
        """Queue the work on all pictures of a source.

        `progress` is called after each batch, on CUDA once it is queued, with the number of its
        pictures. Returns what waits for the features and gives them, (n, d) float32 in main
        memory. If not even one picture fits into the device's memory, that is a `ToptuneError`.
        """
        n, first = len(source), 0
        features = torch.empty((n, self._n_features), dtype=torch.float32, device=self._device)
        with _reproducible(self._on_cuda):
            while first < n:
                if self.batch_size is None:
                    self.batch_size = self._fitting()
                last = first + even_batch(n - first, self.batch_size)
                if not self._fits(source, first, last, features[first:last]):
                    self._halve()
                    continue
                if progress is not None:
                    progress(last - first)
                first = last
        return self._download(features)

    def _fits(self, source: Source, first: int, last: int, out: torch.Tensor) -> bool:
        """Queue a batch; return False, and hold none of it, if memory does not suffice."""
        try:
            prepared = self._prepare(last - first)
            source.render(first, last, prepared.batch[: last - first], self._channels)
            out.copy_(self._run(prepared)[: last - first])
        except torch.OutOfMemoryError:
            return False
        return True

    def _prepare(self, n: int) -> _Prepared:
        assert self.batch_size is not None
        size = min(next((size for size in _SIZES if size >= n), n), self.batch_size)
        prepared = self._prepared.pop(size, None)
        if prepared is None:
            while len(self._prepared) >= _MOST_GRAPHS:
                self._prepared.pop(next(iter(self._prepared)))
            prepared = _Prepared(self._zeros(size))
        self._prepared[size] = prepared
        return prepared

    def _zeros(self, n: int) -> torch.Tensor:
        empty = torch.empty(
            (n, *self._picture),
            dtype=self._dtype,
            device=self._device,
            memory_format=torch.channels_last,
        )
        return empty.zero_()

    def _run(self, prepared: _Prepared) -> torch.Tensor:
        """Compute the features of a batch; they overwrite those of the last call."""
        if prepared.graph is None and prepared.used and self._on_cuda and self._graphs_work:
            self._capture(prepared)
        if prepared.graph is None:
            # The first time without a graph, which would not pay for a size that occurs only once.
            prepared.used = True
            eager: torch.Tensor = self._module(prepared.batch)
            return eager
        assert prepared.output is not None
        prepared.graph.replay()
        return prepared.output

    def _capture(self, prepared: _Prepared) -> None:
        """Record the network's launches on this batch in a graph, to be replayed in one call.

        Where that fails, for another reason than memory, there are no graphs from then on: the same
        launches are made one by one, which gives the same features and is slower.
        """
        torch.cuda.empty_cache()  # a graph's own pool cannot use memory cached by eager runs
        stream = torch.cuda.current_stream(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may use the device meanwhile.
            pool = self._graph_pool()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                prepared.output = self._module(prepared.batch)
        except RuntimeError as error:
            # A capture that cannot be ended leaves its own stream behind as the current one.
            torch.cuda.set_stream(stream)
            prepared.output = None
            # Ending an interrupted capture may itself fail, and hide the cause.
            causes = (error, error.__context__)
            full = next((c for c in causes if isinstance(c, torch.OutOfMemoryError)), None)
            if full is not None:
                raise full from None
            self._graphs_work = False
            _LOG.warning(
                "%s: its work cannot be recorded in a CUDA graph (%s): going on without, slower",
                self._name, " ".join(str(error).split()),
            )  # fmt: skip
            return
        prepared.graph = graph

    def _graph_pool(self) -> Any:
        """Give the memory pool that graphs share; a new one where no graph holds the last one.

        A pool that nobody uses any longer is gone: torch refuses to capture into it.
        """
        if all(one.graph is None for one in self._prepared.values()):
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool

    def _halve(self) -> None:
        assert self.batch_size is not None
        self._prepared.clear()
        if self._on_cuda:
            torch.cuda.empty_cache()
        if self.batch_size == 1:
            raise DeviceMemoryError(
                f"{self._name} runs out of memory on {self._device} with a single picture: close"
                " other programs that use it, or use `device='cpu'`"
            )
        _LOG.warning(
            "%s ran out of memory on %s with %d pictures a batch: going on with %d",
            self._name, self._device, self.batch_size, self.batch_size // 2,
        )  # fmt: skip
        self.batch_size //= 2

    def _fitting(self) -> int:
        """Estimate how many pictures fit into the free memory, by the memory that a few take."""
        if not self._on_cuda:
            return _ELSEWHERE
        try:
            self._module(self._zeros(1))  # loads libraries, which keep memory of their own
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            before = torch.cuda.memory_allocated(self._device)
            self._module(self._zeros(_PROBE))
        except torch.OutOfMemoryError:
            return _PROBE  # to be halved
        taken = torch.cuda.max_memory_allocated(self._device) - before
        held = torch.cuda.memory_reserved(self._device) - before
        size = fitting_batch(torch.cuda.mem_get_info(self._device)[0] + held, taken / _PROBE)
        _LOG.info("%s: %.0f MB a picture, %d a batch", self._name, taken / _PROBE / 1e6, size)
        return size

    def _download(self, features: torch.Tensor) -> Callable[[], NDArray[np.float32]]:
        if not self._on_cuda:
            return features.numpy
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            # Pinned, since a copy to other memory would make the host wait.
            host = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
            host.copy_(features, non_blocking=True)
            features.record_stream(self._side)
            arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            arrived.record(self._side)

        def wait() -> NDArray[np.float32]:
            arrived.synchronize()
            # Pinned memory is scarce, and the next download needs it.
            copied: NDArray[np.float32] = host.numpy().copy()
            return copied

        return wait


def even_batch(n: int, most: int) -> int:
    """Return the next batch's size, so that `n` pictures make about equal batches up to `most`.

    157 pictures in batches of 64 are 53, 52, 52: all of one size once rounded up, and so one CUDA
    graph; 64, 64, 29 would be two.
    """
    return -(-n // -(-n // most))


def fitting_batch(free_bytes: float, picture_bytes: float) -> int:
    """Return how many pictures per batch fit into some memory: a power of two up to 256.

    `picture_bytes` is the most that a picture of a batch takes while the network runs.
    """
    # A third, since the first run and the graph's capture each have a pool, and others need some.
    fitting = free_bytes / 3 / max(picture_bytes, 1.0)
    return 1 << (int(min(max(fitting, 1), _MOST_PICTURES)).bit_length() - 1)


@contextmanager
def _reproducible(on_cuda: bool) -> Iterator[None]:
    """Let cuDNN choose by rule, not by timing, and compute float32 in float32."""
    if not on_cuda:
        yield
        return
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    ):
        yield
