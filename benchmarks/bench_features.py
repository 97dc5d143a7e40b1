"""Features of 64 pictures by EfficientNetB0 (random weights) on the CPU, 2 threads.

Peers: the same network in torchvision, eager float32, batch 64, plain and channels-last. The
pictures are (64, 224, 224) in grey; the peers' normalised input is made beforehand.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from toptune.backbones.engine import FeatureEngine
from toptune.backbones.loading import LoadedBackbone, load_backbone
from toptune.backbones.processor import half_of_processor
from toptune.params import Backbone, Precision

N = 64


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@cache
def backbone(name: str = "efficientnet_b0") -> LoadedBackbone:
    logging.disable(logging.WARNING)
    try:
        return load_backbone(Backbone(name=name, weights="random"))
    finally:
        logging.disable(logging.NOTSET)


def pictures() -> torch.Tensor:
    return torch.rand(N, 224, 224, generator=torch.Generator().manual_seed(0))


def normalised() -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (backbone().mean, backbone().std))
    return (pictures()[:, None] - mean) / std


def pictures_a_second(benchmark: Any) -> None:
    if benchmark.stats:  # none where benchmarks only run as tests
        benchmark.extra_info["pictures_per_s"] = N / benchmark.stats.stats.min


@pytest.mark.benchmark(group="EfficientNetB0, 64 pictures, 2 threads")
def test_toptune_openvino(benchmark: Any) -> None:
    engine = FeatureEngine(backbone(), n_threads=2)
    found = benchmark.pedantic(engine.features, (pictures(),), rounds=5, warmup_rounds=1)
    with torch.inference_mode():
        expected = backbone().module(normalised()[:2]).numpy()
    assert abs(found[:2] - expected).max() <= 1e-3 * abs(expected).max()
    pictures_a_second(benchmark)


@pytest.mark.benchmark(group="float32 and 16 bits on the processor, 64 pictures, 2 threads")
@pytest.mark.parametrize("precision", ["float32", "half"])
@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenet_v2", "densenet121"])
def test_precision(benchmark: Any, name: str, precision: Precision) -> None:
    if precision == "half" and half_of_processor() is None:
        pytest.skip("the processor has no units for 16 bits")
    if not benchmark.enabled and name != "mobilenet_v2":
        pytest.skip("a test does with one network")
    engine = FeatureEngine(backbone(name), n_threads=2, precision=precision)
    found = benchmark.pedantic(engine.features, (pictures(),), rounds=5, warmup_rounds=1)
    exact = FeatureEngine(backbone(name), n_threads=2).features(pictures())
    cosine = (found * exact).sum(axis=1) / np.sqrt((found**2).sum(axis=1) * (exact**2).sum(axis=1))
    assert cosine.min() > 0.99
    benchmark.extra_info["least_cosine_to_float32"] = float(cosine.min())
    pictures_a_second(benchmark)


@pytest.mark.benchmark(group="EfficientNetB0, 64 pictures, 2 threads")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_torchvision_eager(benchmark: Any, layout: str) -> None:
    memory_format = getattr(torch, f"{layout}_format" if layout == "contiguous" else layout)
    module = load_backbone(Backbone(name="efficientnet_b0", weights="random")).module
    module = module.to(memory_format=memory_format)
    batch = normalised().contiguous(memory_format=memory_format)

    @torch.inference_mode()
    def run() -> torch.Tensor:
        result: torch.Tensor = module(batch)
        return result

    assert benchmark.pedantic(run, rounds=3, warmup_rounds=1).shape == (N, 1280)
    pictures_a_second(benchmark)
