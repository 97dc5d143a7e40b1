"""A store of two recordings, whatever it lies in, and how to read and to spoil it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np
from needs import package
from numpy.typing import NDArray
from small_data import make_set

from toptune.features.table import RecordingInfo
from toptune.machine.remote import RemotePath, as_path
from toptune.params import SpikeSettings, content_key
from toptune.recordings.trains import Segment, Spikes, SpikeTrains
from toptune.store.feature_store import VERSION, FeatureStore, recording_name

FLIPS = os.environ.get("TOPTUNE_FLIPS", "4")
A, B = recording_name("a.h5"), recording_name("b.h5")
LISTED = tuple(RecordingInfo(n, f"dev-{n[0]}", "A", {"batch": "1"}) for n in (A, B))
SET = make_set()


def write_recording(store: FeatureStore, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    trains = SpikeTrains(
        spikes=Spikes(
            np.sort(rng.integers(0, 50_000, 60)),
            rng.integers(0, 2, 60, dtype=np.int32),
            rng.uniform(20, 90, 60).astype(np.float32),
        ),
        channel_labels=("11", "Ü 12"),
        sampling_rate_hz=10_000.0,
        segments=(Segment(0, 50_000, 0.0),),
        threshold_uv=np.array([20.5, 21.5], np.float32),
    )
    source = {"recording": f"{name[0]}.h5", "sha256": f"{seed:x}" * 64}
    key = content_key({"input": source["sha256"], "settings": store.settings, "version": VERSION})
    stamp = [[source["recording"], 1, 2]]
    store.write_spikes(name, trains, {"key": key, "stamp": stamp, "kind": "mcs", "input": source})
    x = rng.standard_normal((5, 12)).astype(np.float32)
    info = {
        "key": content_key({"spikes": key, "features": SET.key}),
        "n_windows": 5,
        "input": source,
        "versions": {"toptune": "0"},
        "weights": {"path": None, "seed": 0},
    }
    store.write_features(name, x, np.arange(5.0), SET, info)


def read_all(path: Path | str) -> list[Any]:
    """Everything the store offers of recording A, as plain values."""
    store = FeatureStore(path)
    trains = store.read_spikes(A)
    values: list[NDArray[Any]] = [
        *trains.spikes,
        trains.threshold_uv,
        *store.read_features(A, SET.key),
    ]
    facts = (trains.channel_labels, trains.segments, trains.sampling_rate_hz)
    infos = (store.spikes_info(A), store.features_info(A, SET.key))
    plain = [v.tobytes() for v in values]
    return [*plain, facts, infos, store.recording_facts(A), store.recordings, store.settings]


def flips(n_bytes: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """(byte, bit) to flip: one bit of every byte, or a sample with the first and the last byte."""
    if FLIPS == "all":
        return [(byte, int(rng.integers(8))) for byte in range(n_bytes)]
    some = rng.integers(n_bytes, size=int(FLIPS)).tolist()
    return [(byte, int(rng.integers(8))) for byte in (0, n_bytes - 1, *some)]


def write_all(store: FeatureStore) -> None:
    """List and write both recordings."""
    store.list_recordings(LISTED)
    for seed, name in enumerate((A, B), 1):
        write_recording(store, name, seed)


def in_memory() -> RemotePath:
    """Give the URL of a store that is not there yet, in this process's memory."""
    package("fsspec")
    url = as_path(f"memory://{secrets.token_hex(4)}/study/s.zarr")
    assert isinstance(url, RemotePath)
    return url


def make_store(path: Path | str) -> FeatureStore:
    store = FeatureStore.create(path, SpikeSettings().to_json())
    write_all(store)
    return store


def content(folder: Path) -> dict[str, bytes]:
    """Give all files of a folder, by their paths."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
