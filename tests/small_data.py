"""A data set and a backbone small enough for tests that run the whole chain."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from toptune.backbones import loading as backbones
from toptune.backbones import names
from toptune.backbones.loading import LoadedBackbone
from toptune.backbones.processor import half_of_processor
from toptune.features.table import FeatureTable, View
from toptune.machine.installation import store_contract
from toptune.params import Backbone, FitOptions, Picture, SpikeSettings, Windows
from toptune.recordings.mcs_writer import McsChannel, McsStream, McsWriter
from toptune.recordings.trains import RecordingFacts, TrainingFacts, WeightsSource
from toptune.store.feature_store import FeatureSet

RATE_HZ = 10_000
RAW = "Data Acquisition (1) Electrode Raw Data"
# Every way to draw, but for where an electrode's band lies in a raster.
FIVE_PICTURES = (
    Picture(kind="histogram"),
    Picture(kind="raster"),
    Picture(kind="intervals"),
    Picture(kind="correlation"),
    Picture(kind="histogram", count_axis="log"),
)
# Spikes a second on each electrode; what tells the classes apart.
CLASS_RATES_HZ = {"A": 2.0, "B": 10.0, "C": 40.0}


def write_mcs(
    path: Path, *, seed: int, seconds: float = 8.0, rate_hz: float = 10.0, streams: int = 1
) -> Path:
    """Write noise with spikes on four electrodes, as MCS's program would."""
    rng = np.random.default_rng(seed)
    n = round(seconds * RATE_HZ)
    microvolts = rng.normal(0, 5, (4, n))
    for row in microvolts:
        for at in rng.integers(20, n - 20, round(rate_hz * seconds)):
            row[at : at + 4] += (-90, -40, 60, 30)
    channels = tuple(McsChannel(label=f"E{k}", channel_id=k) for k in range(4))
    with McsWriter(path, identity=path.name) as writer:
        recording = writer.add_recording()
        for k in range(streams):
            label = RAW if k == 0 else RAW.replace("(1)", f"({k + 1})")
            stream = recording.add_stream(McsStream(label=label, channels=channels, tick_us=100))
            stream.write(np.rint(microvolts / 59605e-6).astype(np.int32))
    return path


def write_devices(folder: Path, rows: Iterable[tuple[str, str, str]]) -> Path:
    """Write devices.csv of (recording, device, label)."""
    path = folder / "devices.csv"
    lines = ["recording,device,label,batch"]
    lines += [f"{r},{d},{c},b{k % 2}" for k, (r, d, c) in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_data_set(folder: Path) -> Path:
    """Six devices of three classes, 8 s each; returns the devices file."""
    rows = []
    for k in range(6):
        label = "ABC"[k % 3]
        write_mcs(folder / f"r{k}.h5", seed=k, rate_hz=CLASS_RATES_HZ[label])
        rows.append((f"r{k}.h5", f"dev{k}", label))
    return write_devices(folder, rows)


class _Tiny(nn.Module):
    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, n_features, 4, stride=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x)).mean((2, 3))


def train_small_run(folder: Path, picture: Picture) -> Path:
    """Simulate cultures of two kinds, and train on their windows; names beginning with tiny."""
    from toptune.extraction import extract
    from toptune.store.feature_store import FeatureStore
    from toptune.store.tables import table_for
    from toptune.training import fit

    tiny = Backbone(name="tiny", weights="random", seed=3)
    windows = Windows(width_s=2.0, stride_s=1.0)
    devices = write_data_set(folder)
    extract(devices, folder / "s.zarr", windows=windows, picture=picture, backbone=tiny)
    store = FeatureStore(folder / "s.zarr")
    table = table_for(store, "falkon", (picture.kind,))
    options = FitOptions(head="falkon", permutations=0, tune=False)
    fit(table, options, folder / "run", facts=store.training_facts(table), store=store)
    return folder / "run"


@cache
def random_backbone(name: str) -> LoadedBackbone:
    """Load a real network with random weights, once for all tests: look, do not touch."""
    return backbones.load_backbone(Backbone(name=name, weights="random", seed=1))


def half_of_this_processor() -> str:
    """Name the 16-bit type of the processor; a test is skipped where it has none."""
    half = half_of_processor()
    if half is None:
        pytest.skip("16 bits: this processor has no units for them")
    return half.dtype


def install_tiny_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let names that begin with ``tiny`` be networks of a few weights; others are as ever."""
    real = backbones.load_backbone

    def load(params: Backbone) -> LoadedBackbone:
        if not params.name.startswith("tiny"):
            return real(params)
        n_features = 8 + len(params.name)
        module = _Tiny(n_features)
        generator = torch.Generator().manual_seed(params.seed)
        for p in module.parameters():
            nn.init.uniform_(p, -1, 1, generator=generator)
            p.requires_grad_(False)
        module.eval()
        return LoadedBackbone(
            name=params.name,
            input_size=32,
            n_features=n_features,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            module=module,
            weights=f"random (seed {params.seed})",
            weights_sha256=f"{params.seed:x}{n_features:x}".ljust(64, "0"),
            n_parameters=sum(p.numel() for p in module.parameters()),
        )

    monkeypatch.setattr(backbones, "load_backbone", load)
    known = names.registered

    def registered(package: str) -> frozenset[str]:
        return known(package) | ({"tiny", "tiny_too", "tiny_two"})

    monkeypatch.setattr(names, "registered", registered)


def make_set(
    *, width_s: float = 2.0, stride_s: float = 1.0, kind: Any = "histogram", backbone: str = "net"
) -> FeatureSet:
    """Features of a backbone with random weights."""
    return FeatureSet.of(
        {
            "windows": Windows(width_s=width_s, stride_s=stride_s).to_json(),
            "picture": Picture(kind=kind).to_json(),
            "backbone": {
                "name": backbone,
                "weights": "random",
                "sha256": "f" * 64,
                "mean": [0.5, 0.5, 0.5],
                "std": [0.25, 0.25, 0.25],
                "input_size": 32,
            },
        }
    )


def make_view(
    n_columns: int, *, width_s: float = 2.0, kind: Any = "histogram", backbone: str = "tiny"
) -> View:
    """Say that columns are features of a tiny backbone, as a store says it."""
    feature_set = make_set(width_s=width_s, kind=kind, backbone=backbone)
    return View(feature_set.description, feature_set.key, n_columns, feature_set.params)


def make_provenance(*views: View) -> dict[str, Any]:
    """Say of a table with these views what a store would say."""
    return {
        "format_version": 1,
        "settings": SpikeSettings().to_json(),
        "inputs": {},
        "too_short": [],
        "views": [view.to_json() for view in views],
    }


def make_facts(table: FeatureTable) -> TrainingFacts:
    """Say of a table's recordings what a store could say: all alike."""
    recordings = tuple(
        RecordingFacts(
            name=r.name, sampling_rate_hz=1e4, n_electrodes=4, n_spikes=800, duration_s=20.0
        )
        for r in table.recordings
    )
    return TrainingFacts(
        recordings=recordings, weights=tuple(WeightsSource(seed=0) for _ in table.views)
    )


def check_store(path: Path, names: list[str], key: str) -> None:
    """Validate the attributes of a store against store/schema.json."""
    check_attributes("root", path)
    for name in names:
        check_attributes("spikes", path / name / "spikes")
        check_attributes("features", path / name / "features" / key)


def check_attributes(kind: str, folder: Path) -> None:
    """Validate one group: ``root``, ``spikes`` or ``features``."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema: not installed")
    schema = json.loads((store_contract() / "schema.json").read_text("utf-8"))
    narrowed = {**schema, "oneOf": [{"$ref": f"#/$defs/{kind}"}]}
    attributes = json.loads((folder / "zarr.json").read_text("utf-8"))["attributes"]
    jsonschema.Draft202012Validator(narrowed).validate(attributes)
