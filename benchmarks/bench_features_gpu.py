"""Drawing and describing on a GPU: random weights, busy recordings of 15 minutes and 60 channels.

Peers: the same network in torchvision, eager, batch 64, float32 as torch runs it by default (with
TF32 in convolutions), and in float16 with channels last; their normalised input is made beforehand.
Drawing stands beside the same pictures by torch's operations. All functions end by waiting for the
device, and what is compiled, chosen or recorded once has happened in a round before the timed ones.
Marked `gpu`: without one all of it is skipped, and with TOPTUNE_GPU=1 it fails.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from toptune.backbones.engine import FeatureEngine
from toptune.backbones.loading import LoadedBackbone, load_backbone
from toptune.backbones.names import PAPER_BACKBONES
from toptune.features.extractor import FeatureRows, PendingFeatures, start_features, unwatched
from toptune.features.picture_features import PictureExtractor
from toptune.machine.cuda import torch_kernels
from toptune.params import Backbone, Picture, Precision, Windows
from toptune.pictures.drawer import Drawer
from toptune.pictures.drawer_cuda import CudaBinnedSpikes, CudaDrawer, InputChannels
from toptune.pictures.drawers import Drawers
from toptune.recordings.trains import Segment, SpikeTrains, sort_spikes

pytestmark = pytest.mark.gpu
N = 1024
N_DEVICES = 32
PICTURES = {"histogram": Picture(), "raster": Picture(kind="raster")}
WIDTHS_S = (120.0, 60.0, 30.0, 10.0)


@pytest.fixture(scope="module")
def device() -> torch.device:
    if not torch.cuda.is_available():
        assert os.environ.get("TOPTUNE_GPU") != "1", "TOPTUNE_GPU=1 but there is no CUDA device"
        pytest.skip("no CUDA device")
    return torch.device("cuda", torch.cuda.current_device())


@cache
def backbone(name: str = "efficientnet_b0") -> LoadedBackbone:
    logging.disable(logging.WARNING)
    try:
        return load_backbone(Backbone(name=name, weights="random"))
    finally:
        logging.disable(logging.NOTSET)


@cache
def recording(seed: int = 0) -> SpikeTrains:
    """5 Hz a channel on average, most of it in network bursts."""
    rng = np.random.default_rng(seed)
    n = 5 * 60 * 900
    rate = np.repeat(np.exp(rng.normal(0, 1.3, 900)), 1000)
    millisecond = rng.choice(900_000, n, p=rate / rate.sum())
    sample = (millisecond * 10 + rng.integers(0, 10, n)).astype(np.int64)
    return SpikeTrains(
        spikes=sort_spikes(
            sample, rng.integers(0, 60, n).astype(np.int32), np.ones(n, dtype=np.float32)
        ),
        channel_labels=tuple(f"{i:02d}" for i in range(60)),
        sampling_rate_hz=10_000,
        segments=(Segment(0, 9_000_000, 0.0),),
        threshold_uv=np.full(60, np.nan, dtype=np.float32),
    )


def timed(benchmark: Any, pictures: int, run: Callable[[], Any], rounds: int = 5) -> Any:
    def synchronised() -> Any:
        result = run()
        torch.cuda.synchronize()
        return result

    result = benchmark.pedantic(synchronised, rounds=rounds, warmup_rounds=3)
    benchmark.extra_info["pictures"] = pictures
    benchmark.extra_info["gpu"] = torch.cuda.get_device_name()
    if benchmark.stats:  # none where benchmarks only run as tests
        benchmark.extra_info["pictures_per_s"] = pictures / benchmark.stats.stats.min
    return result


# --- describing pictures that are drawn


def grey(device: torch.device) -> torch.Tensor:
    return torch.rand(N, 224, 224, generator=torch.Generator(device).manual_seed(0), device=device)


@pytest.mark.benchmark(group="EfficientNetB0, 1024 pictures on the GPU")
@pytest.mark.parametrize("precision", ["half", "float32"])
def test_toptune(benchmark: Any, device: torch.device, precision: Precision) -> None:
    engine = FeatureEngine(backbone(), device, precision=precision)
    pictures = grey(device)
    found = timed(benchmark, N, lambda: engine.features(pictures))
    expected = FeatureEngine(backbone()).features(pictures[:4].cpu())
    norms = np.linalg.norm(found[:4], axis=1) * np.linalg.norm(expected, axis=1)
    assert ((found[:4] * expected).sum(1) / norms).min() > 0.9995


@pytest.mark.benchmark(group="EfficientNetB0, 1024 pictures on the GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_torchvision_eager(benchmark: Any, device: torch.device, dtype: torch.dtype) -> None:
    module = load_backbone(Backbone(name="efficientnet_b0", weights="random")).module
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in mean_and_std())
    layout = torch.contiguous_format if dtype == torch.float32 else torch.channels_last
    module = module.to(device, dtype).to(memory_format=layout)
    batches = [
        ((part[:, None] - mean) / std).to(dtype, memory_format=layout)
        for part in torch.split(grey(device), 64)
    ]

    @torch.inference_mode()
    def run() -> torch.Tensor:
        return torch.cat([module(batch) for batch in batches]).float().cpu()

    assert timed(benchmark, N, run).shape == (N, 1280)


def mean_and_std() -> tuple[Sequence[float], Sequence[float]]:
    return backbone().mean, backbone().std


# --- drawing


@pytest.mark.benchmark(group="157 windows of 120 s on the GPU")
@pytest.mark.parametrize("kind", ["histogram", "raster"])
@pytest.mark.parametrize("placing", [False, True], ids=["drawing alone", "from spikes"])
def test_kernels(benchmark: Any, device: torch.device, kind: str, placing: bool) -> None:
    launch = torch_kernels("render", device.index).launch
    channels = InputChannels.of(((1.0, 0.0), (0.0, 1.0)), device)
    batch = torch.zeros(157, 2, 224, 224, dtype=torch.float16, device=device)
    batch = batch.contiguous(memory_format=torch.channels_last)

    def made() -> CudaDrawer:
        placed = CudaBinnedSpikes(recording(), 10.0, device, launch)
        return CudaDrawer(placed, Windows(), PICTURES[kind], 224)

    once = made()

    def run() -> None:
        (made() if placing else once).render(0, 157, batch, channels)

    timed(benchmark, 157, run)
    expected = 1 - Drawer(recording(), Windows(), PICTURES[kind], 224).draw(0, 3)
    assert (batch[:3, 0].float().cpu() - expected).abs().max() < 1e-3


@pytest.mark.benchmark(group="157 windows of 120 s on the GPU")
@pytest.mark.parametrize("kind", ["histogram", "raster"])
def test_torch_operations(benchmark: Any, device: torch.device, kind: str) -> None:
    drawer = Drawer(recording(), Windows(), PICTURES[kind], 224, device)
    assert timed(benchmark, 157, lambda: drawer.draw(0, 157)).shape == (157, 224, 224)


# --- from spikes to features


def extract_all(views: Sequence[PictureExtractor]) -> list[list[FeatureRows]]:
    """Start each recording before the one before it is waited for, as extraction does."""
    before: list[PendingFeatures] = []
    found = []
    for seed in range(N_DEVICES):
        started = start_features(Drawers(recording(seed)), views, unwatched)
        if before:
            found.append([pending.result() for pending in before])
        before = started
    return [*found, [pending.result() for pending in before]]


@pytest.mark.benchmark(group="from spikes of 32 devices to features on the GPU")
def test_5024_pictures_by_efficientnet_b0(benchmark: Any, device: torch.device) -> None:
    views = [PictureExtractor(Windows(), Picture(), FeatureEngine(backbone(), str(device)))]
    found = timed(benchmark, 5024, lambda: extract_all(views))
    assert sum(len(view.features) for views in found for view in views) == 5024


@pytest.mark.benchmark(group="from spikes of 32 devices to features on the GPU")
def test_six_backbones_two_pictures_four_windows(benchmark: Any, device: torch.device) -> None:
    engines = [FeatureEngine(backbone(name), str(device)) for name in PAPER_BACKBONES]
    views = [
        PictureExtractor(Windows(width_s=width_s), picture, engine)
        for engine in engines
        for picture in PICTURES.values()
        for width_s in WIDTHS_S
    ]
    per_device = sum(round((900 - width_s) / 5) + 1 for width_s in WIDTHS_S)
    pictures = N_DEVICES * per_device * len(PICTURES) * len(engines)
    found = timed(benchmark, pictures, lambda: extract_all(views), rounds=1)
    assert sum(len(view.features) for views in found for view in views) == pictures
