"""From spikes to leave-one-device-out scores: 32 devices x 15 min, 5024 pictures, EfficientNetB0.

The peer is what the paper states for an RTX 3060 laptop: 40 s for the features and 15 s for each of
32 folds. Here it is a 2-core CPU, histograms of 120 s at 224 x 224, random weights, both heads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from toptune.backbones.engine import FeatureEngine
from toptune.backbones.loading import load_backbone
from toptune.evaluation.folds import leave_one_group_out
from toptune.heads import head_of
from toptune.params import Backbone, Picture, Windows
from toptune.pictures.drawer import Drawer
from toptune.recordings.trains import Segment, SpikeTrains, sort_spikes

RATE_HZ = 10_000.0
PAPER_SECONDS = 40 + 32 * 15


def bursting(device: int, seconds: float) -> SpikeTrains:
    """60 channels at 5 Hz, half of it in network bursts whose number is the class's."""
    rng = np.random.default_rng(device)
    n = int(seconds * RATE_HZ)
    starts = rng.uniform(0, seconds, max(1, int(seconds * (1 + device % 5) / 20)))
    half = int(60 * 5 * seconds / 2)
    in_bursts = rng.choice(starts, half) + rng.exponential(0.15, half)
    times = np.concatenate([in_bursts, rng.uniform(0, seconds, half)])
    sample = (times[times < seconds] * RATE_HZ).astype(np.int64)
    sample = sample[sample < n]
    channel = rng.integers(0, 60, sample.size).astype(np.int32)
    return SpikeTrains(
        spikes=sort_spikes(sample, channel, np.full(sample.size, 50, np.float32)),
        channel_labels=tuple(str(k) for k in range(60)),
        sampling_rate_hz=RATE_HZ,
        segments=(Segment(0, n, 0.0),),
        threshold_uv=np.full(60, 40, np.float32),
    )


@pytest.mark.benchmark(group="spikes to scores")
@pytest.mark.filterwarnings("ignore")  # random weights say so, loudly
@pytest.mark.parametrize("head", ["falkon", "mlp"])
def test_spikes_to_scores(benchmark: Any, head: str, request: pytest.FixtureRequest) -> None:
    full = request.config.getoption("benchmark_enable")
    n_devices, seconds = (32, 900.0) if full else (10, 125.0)
    recordings = [bursting(device, seconds) for device in range(n_devices)]
    engine = FeatureEngine(load_backbone(Backbone(name="efficientnet_b0", weights="random")))

    def run() -> float:
        features = [
            engine.start(Drawer(trains, Windows(), Picture(), engine.input_size))()
            for trains in recordings
        ]
        groups = np.repeat(np.arange(n_devices), [len(x) for x in features])
        made = head_of(head).make({"random_state": 0})
        found = leave_one_group_out(made, np.concatenate(features), groups % 5, groups)
        return float(np.mean(found.predictions == groups % 5))

    accuracy = benchmark.pedantic(run, rounds=1, warmup_rounds=0)
    assert 0 <= accuracy <= 1
    if benchmark.stats:
        benchmark.extra_info["times_the_paper"] = PAPER_SECONDS / benchmark.stats.stats.min
        benchmark.extra_info["window_accuracy"] = accuracy
