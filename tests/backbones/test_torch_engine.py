"""The network on a torch device: batches, memory that runs out, 16 bits, CUDA graphs."""

from __future__ import annotations

import dataclasses
import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from needs import shared
from numpy.typing import NDArray
from pictures.test_drawer import fifteen_minutes
from small_data import FIVE_PICTURES, random_backbone

from toptune.backbones.engine import HALF
from toptune.backbones.loading import LoadedBackbone, load_backbone
from toptune.backbones.torch_engine import (
    DrawnPictures,
    GreyPictures,
    TorchNetwork,
    even_batch,
    fitting_batch,
)
from toptune.errors import ToptuneError
from toptune.params import Backbone, Picture, Windows
from toptune.pictures.drawer import Drawer
from toptune.pictures.drawer_cuda import InputChannels
from toptune.pictures.drawers import Drawers

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def mobilenet() -> LoadedBackbone:
    return random_backbone("mobilenet_v2")


@pytest.fixture(scope="module")
def grey() -> torch.Tensor:
    """Seven pictures of both kinds."""
    trains, windows = fifteen_minutes(n_channels=20), Windows(width_s=10.0)
    drawn = [Drawer(trains, windows, p, 224) for p in (Picture(), Picture(kind="raster"))]
    return torch.cat([drawn[0].draw(0, 4), drawn[1].draw(0, 3)])


@pytest.fixture(scope="module")
def expected(mobilenet: LoadedBackbone, grey: torch.Tensor) -> NDArray[np.float32]:
    return eager(mobilenet, grey)


def eager(loaded: LoadedBackbone, grey: torch.Tensor) -> NDArray[np.float32]:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (loaded.mean, loaded.std))
    with torch.inference_mode():
        features: NDArray[np.float32] = loaded.module((grey[:, None] - mean) / std).numpy()
    return features


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a64, axis=1) * np.linalg.norm(b64, axis=1)
    result: NDArray[np.float64] = (a64 * b64).sum(1) / norms
    return result


class Recording(GreyPictures):
    """Notes which pictures were asked for, and in batches of which size."""

    def __init__(self, grey: torch.Tensor) -> None:
        super().__init__(grey)
        self.asked: list[tuple[int, int]] = []

    def render(self, first: int, last: int, out: torch.Tensor, channels: InputChannels) -> None:
        assert len(out) == last - first
        assert out.permute(0, 2, 3, 1).is_contiguous()
        self.asked.append((first, last))
        super().render(first, last, out, channels)


@pytest.mark.parametrize(("batch_size", "sizes"), [(None, [7]), (1, [1] * 7), (3, [3, 2, 2])])
def test_batches_of_any_size_give_the_features_of_eager_torch(
    mobilenet: LoadedBackbone,
    grey: torch.Tensor,
    expected: NDArray[np.float32],
    batch_size: int | None,
    sizes: list[int],
) -> None:
    network, source = TorchNetwork(mobilenet, CPU, torch.float32, batch_size), Recording(grey)
    told: list[int] = []
    found = network.start(source, told.append)()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert [b - a for a, b in source.asked] == told == sizes


def test_no_pictures_give_no_rows(mobilenet: LoadedBackbone) -> None:
    network = TorchNetwork(mobilenet, CPU, torch.float32)
    assert network.start(GreyPictures(torch.empty(0, 224, 224)))().shape == (0, 1280)


class LittleMemory(torch.nn.Module):
    """A network that takes no more than `most` pictures at a time."""

    def __init__(self, module: torch.nn.Module, most: int) -> None:
        super().__init__()
        self.module, self.most = module, most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        features: torch.Tensor = self.module(x)
        return features


def test_batches_are_halved_where_memory_runs_out_and_nothing_is_done_twice_or_lost(
    mobilenet: LoadedBackbone,
    grey: torch.Tensor,
    expected: NDArray[np.float32],
    caplog: pytest.LogCaptureFixture,
) -> None:
    network, source = TorchNetwork(mobilenet, CPU, torch.float32, 8), Recording(grey)
    network._module = LittleMemory(network._module, 2)
    told: list[int] = []
    with caplog.at_level(logging.WARNING):
        found = network.start(source, told.append)()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert network.batch_size == 2
    assert sum(told) == 7
    assert [r.getMessage() for r in caplog.records] == [
        "mobilenet_v2 ran out of memory on cpu with 8 pictures a batch: going on with 4",
        "mobilenet_v2 ran out of memory on cpu with 4 pictures a batch: going on with 2",
    ]
    # The next recording begins with what has proved to fit.
    caplog.clear()
    network.start(source)
    assert not caplog.records


def test_memory_for_no_picture_at_all_is_an_error_with_a_way_out(
    mobilenet: LoadedBackbone, grey: torch.Tensor
) -> None:
    network = TorchNetwork(mobilenet, CPU, torch.float32, 3)
    network._module = LittleMemory(network._module, 0)
    with pytest.raises(ToptuneError, match="with a single picture: close other programs"):
        network.start(GreyPictures(grey))


@given(st.integers(1, 5000), st.integers(1, 256))
def test_batches_are_even_few_and_not_too_large(n: int, most: int) -> None:
    sizes, left = [], n
    while left:
        sizes.append(even_batch(left, most))
        left -= sizes[-1]
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-n // most)


@pytest.mark.parametrize(
    ("free", "picture", "size"),
    [(80e9, 30e6, 256), (6e9, 30e6, 64), (1e9, 30e6, 8), (90e6, 30e6, 1), (0, 30e6, 1), (9, 0, 2)],
)
def test_batch_is_a_power_of_two_that_fits_thrice(free: float, picture: float, size: int) -> None:
    assert fitting_batch(free, picture) == size


def test_the_16_bits_that_are_used_stay_near_float32_and_the_others_do_not(
    mobilenet: LoadedBackbone, grey: torch.Tensor, expected: NDArray[np.float32]
) -> None:
    near, far = (
        TorchNetwork(mobilenet, CPU, dtype).start(GreyPictures(grey[3:4]))()
        for dtype in (HALF, torch.bfloat16)
    )
    assert near.dtype == np.float32
    assert cosines(near, expected[3:4]).min() > 0.9995
    assert cosines(far, expected[3:4]).max() < 0.9995


def test_trained_weights_in_half_precision_stay_near_float32(grey: torch.Tensor) -> None:
    weights = shared("weights", "mobilenet_v2.safetensors")
    loaded = load_backbone(Backbone(name="mobilenet_v2", weights=str(weights)))
    found = TorchNetwork(loaded, CPU, HALF).start(GreyPictures(grey[4:5]))()
    assert cosines(found, eager(loaded, grey[4:5])).min() > 0.9995


class _NormFirst(torch.nn.Module):
    """Normalises before it convolves, with a variance that 16 bits cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3, eps=1e-12)
        assert self.norm.running_var is not None
        self.norm.running_var.fill_(2e-9)
        self.conv = torch.nn.Conv2d(3, 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.relu(self.conv(self.norm(x * 1e-4))).mean((2, 3))


def test_norms_that_are_not_folded_keep_float32(mobilenet: LoadedBackbone) -> None:
    torch.manual_seed(0)
    module = _NormFirst().eval().requires_grad_(False)
    loaded = dataclasses.replace(mobilenet, module=module, n_features=5, input_size=9)
    grey = torch.rand(4, 9, 9)
    found = TorchNetwork(loaded, CPU, HALF).start(GreyPictures(grey))()
    assert cosines(found, eager(loaded, grey)).min() > 0.999


# --- on a GPU


def cuda() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 1 - 1e-6), (HALF, 0.9995)])
def test_graphs_replay_what_eager_runs_gave(
    mobilenet: LoadedBackbone,
    grey: torch.Tensor,
    expected: NDArray[np.float32],
    dtype: torch.dtype,
    least: float,
) -> None:
    device = cuda()
    network = TorchNetwork(mobilenet, device, dtype, 64)
    source = GreyPictures(grey.to(device))
    first = network.start(source)()
    assert all(p.graph is None for p in network._prepared.values())
    replayed = [network.start(source)() for _ in range(3)]
    assert all(p.graph is not None for p in network._prepared.values())
    for features in (first, *replayed):
        assert cosines(features, expected).min() > least
    np.testing.assert_array_equal(replayed[1], replayed[0])
    # Another source in the same buffers, of another length, and then the first again.
    flipped = network.start(GreyPictures(grey.flip(0)[:5].to(device)))()
    assert cosines(flipped, expected[::-1][:5]).min() > least
    np.testing.assert_array_equal(network.start(source)(), replayed[0])


@pytest.mark.gpu
def test_several_networks_queue_behind_one_another(
    mobilenet: LoadedBackbone, grey: torch.Tensor, expected: NDArray[np.float32]
) -> None:
    device = cuda()
    networks = [TorchNetwork(mobilenet, device, HALF, size) for size in (2, 3, 64)]
    source = GreyPictures(grey.to(device))
    for _ in range(3):
        begun = [network.start(source) for network in networks]
        for wait in begun:
            assert cosines(wait(), expected).min() > 0.9995


def test_pictures_that_are_drawn_batch_by_batch_are_those_that_were_drawn(
    mobilenet: LoadedBackbone,
) -> None:
    trains, windows = fifteen_minutes(n_channels=20), Windows(width_s=10.0, stride_s=130.0)
    for kind in ("intervals", "correlation"):
        drawer = Drawer(trains, windows, Picture.from_json({"kind": kind}), 224)
        network = TorchNetwork(mobilenet, CPU, torch.float32, 4)
        progress: list[int] = []
        found = network.start(DrawnPictures(drawer), progress.append)()
        assert progress == [4, 3]
        assert cosines(found, eager(mobilenet, drawer.draw(0, 7))).min() > 1 - 1e-6


@pytest.mark.gpu
def test_windows_go_from_spikes_to_features_without_leaving_the_gpu(
    mobilenet: LoadedBackbone,
) -> None:
    device, trains, windows = cuda(), fifteen_minutes(), Windows()
    network = TorchNetwork(mobilenet, device, HALF)
    drawers = Drawers(trains)
    for picture in (*FIVE_PICTURES, Picture(kind="sorted_raster")):
        drawer = drawers.drawer(windows, picture, 224, str(device))
        assert isinstance(drawer, Drawer) == (picture.kind in ("intervals", "correlation"))
        found = network.start(DrawnPictures(drawer) if isinstance(drawer, Drawer) else drawer)()
        assert found.shape == (157, 1280)
        grey = Drawer(trains, windows, picture, 224).draw(60, 66)
        assert cosines(found[60:66], eager(mobilenet, grey)).min() > 0.9995


@pytest.mark.gpu
def test_real_memory_that_runs_out_halves_the_batch(
    mobilenet: LoadedBackbone, grey: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    device = cuda()
    total = torch.cuda.get_device_properties(device).total_memory
    many = grey.repeat(40, 1, 1)[:256].to(device)
    gc.collect()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved(device)
    torch.cuda.set_per_process_memory_fraction((held + 1.5e9) / total, device)
    try:
        network = TorchNetwork(mobilenet, device, torch.float32, 256)
        found = network.start(GreyPictures(many))()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert network.batch_size is not None
    assert network.batch_size < 256
    assert "ran out of memory" in caplog.text
    assert cosines(found[:7], eager(mobilenet, grey)).min() > 1 - 1e-6


# --- graphs, as far as they can be seen without a GPU


class Graphs:
    """What of torch.cuda a capture uses, failing where it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails: Exception | None = None
        self.pools: list[object] = []  # in which graphs were captured
        self.stream: object = "the caller's"
        made = iter(range(100))
        for name, value in {
            "empty_cache": lambda: None,
            "current_stream": lambda _: self.stream,
            "set_stream": lambda stream: setattr(self, "stream", stream),
            "graph_pool_handle": lambda: next(made),
            "CUDAGraph": Graph,
            "graph": self.capture,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    @contextmanager
    def capture(self, graph: Graph, pool: object, capture_error_mode: str) -> Iterator[None]:
        assert (graph.replayed, capture_error_mode) == (0, "thread_local")
        self.pools.append(pool)
        before, self.stream = self.stream, "the capture's"
        yield
        if self.fails is not None:
            raise self.fails  # as torch does: its stream stays
        self.stream = before


class Graph:
    """A graph that replays nothing."""

    replayed = 0

    def replay(self) -> None:
        self.replayed += 1


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    return Graphs(monkeypatch)


def tiny_network(mobilenet: LoadedBackbone, batch_size: int) -> TorchNetwork:
    """A network on the CPU that captures as on CUDA."""
    network = TorchNetwork(mobilenet, torch.device("cpu"), torch.float32, batch_size)
    network._module = torch.nn.Flatten()
    network._picture = (1, 2, 2)
    network._on_cuda = True
    return network


def run(network: TorchNetwork, n: int) -> torch.Tensor:
    prepared = network._prepare(n)
    prepared.batch.fill_(n)
    return network._run(prepared)


def test_a_graph_that_cannot_be_captured_is_one_warning_and_eager_work_from_then_on(
    mobilenet: LoadedBackbone, graphs: Graphs, caplog: pytest.LogCaptureFixture
) -> None:
    network = tiny_network(mobilenet, 256)
    graphs.fails = RuntimeError("operation not permitted when stream is capturing")
    for n in (10, 10, 10, 100, 100, 100):
        np.testing.assert_array_equal(run(network, n).numpy()[:n], n)
        assert graphs.stream == "the caller's"
    assert len(graphs.pools) == 1
    (message,) = caplog.messages
    assert "cannot be recorded in a CUDA graph (operation not permitted" in message


def test_memory_that_is_short_while_capturing_is_told_as_such(
    mobilenet: LoadedBackbone, graphs: Graphs
) -> None:
    network = tiny_network(mobilenet, 64)
    run(network, 10)
    graphs.fails = torch.OutOfMemoryError("full")
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        run(network, 10)
    assert graphs.stream == "the caller's"
    graphs.fails = RuntimeError("the capture could not be ended")
    graphs.fails.__context__ = torch.OutOfMemoryError("full behind it")
    with pytest.raises(torch.OutOfMemoryError, match="full behind it"):
        run(network, 10)
    graphs.fails = None
    run(network, 10)
    assert network._prepared[64].graph is not None


def test_graphs_share_a_pool_as_long_as_there_is_one(
    mobilenet: LoadedBackbone, graphs: Graphs
) -> None:
    network = tiny_network(mobilenet, 256)
    for n in (10, 10, 100, 100):
        run(network, n)
    assert graphs.pools == [0, 0]
    network._halve()  # gives all graphs back, and their pool with them
    run(network, 10)
    run(network, 10)
    assert graphs.pools == [0, 0, 1]


def test_batches_have_few_sizes_and_the_least_recently_used_graph_goes(
    mobilenet: LoadedBackbone, graphs: Graphs
) -> None:
    del graphs
    network = tiny_network(mobilenet, 256)
    sizes = {n: len(network._prepare(n).batch) for n in (1, 63, 64, 65, 157, 200, 256)}
    assert sizes == {1: 64, 63: 64, 64: 64, 65: 128, 157: 192, 200: 256, 256: 256}
    first = network._prepare(64)
    network.batch_size = 100  # as a user may ask for: one more size
    assert len(network._prepare(99).batch) == 100
    assert network._prepare(64) is first
    assert 128 not in network._prepared
    network.batch_size = 32
    assert len(network._prepare(17).batch) == 32
