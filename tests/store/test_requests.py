"""A store in a bucket asks for what is there, not for all that is listed."""

from __future__ import annotations

import numpy as np
from needs import package
from s3 import Bucket
from small_data import make_set

from toptune.features.table import RecordingInfo
from toptune.params import SpikeSettings
from toptune.recordings.trains import Segment, Spikes, SpikeTrains
from toptune.store.feature_store import FeatureStore

N_LISTED = 300


def silent() -> SpikeTrains:
    none = Spikes(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    return SpikeTrains(
        spikes=none,
        channel_labels=("E1",),
        sampling_rate_hz=1e4,
        segments=(Segment(0, 100_000, 0.0),),
        threshold_uv=np.ones(1, np.float32),
    )


def test_whether_features_would_mix_takes_few_requests(bucket: Bucket) -> None:
    package("obstore")
    url = f"{bucket.url}/study.zarr"
    store = FeatureStore.create(url, SpikeSettings().to_json())
    names = [f"r{k}.h5-{k:08x}" for k in range(N_LISTED)]
    store.list_recordings(tuple(RecordingInfo(name, name, "a", {}) for name in names))
    feature_set = make_set()
    info = {"key": "0" * 16, "input": {"recording": "r", "sha256": "0" * 64}}

    def n_requests() -> int:
        bucket.server.faults()
        store.refuse_mixture(feature_set, info)
        return len(bucket.server.requests())

    assert n_requests() < 5
    store.write_spikes(names[-1], silent(), info)
    assert n_requests() < 8
    features = np.ones((2, 3), np.float32)
    store.write_features(names[-1], features, np.arange(2.0), feature_set, info)
    assert n_requests() <= 2
