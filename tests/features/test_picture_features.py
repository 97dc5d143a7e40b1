"""Several views of a recording in one pass over its spikes: as each by itself."""

from __future__ import annotations

import numpy as np
import pytest
from pictures.test_drawer import make_trains
from small_data import install_tiny_backbones

from toptune.backbones import loading as backbones
from toptune.backbones.engine import FeatureEngine
from toptune.errors import ToptuneError
from toptune.features.extractor import FeatureRows, extract_features
from toptune.features.picture_features import PictureExtractor
from toptune.params import Backbone, Picture, Windows
from toptune.pictures import bins as binning
from toptune.pictures.drawer import Drawer
from toptune.recordings.trains import SpikeTrains

pytestmark = pytest.mark.usefixtures("one_torch_thread")
VIEWS = [
    (Windows(width_s=2.0, stride_s=1.0), Picture(), "tiny"),
    (Windows(width_s=1.0, stride_s=0.5), Picture(kind="raster"), "tiny_two"),
    (Windows(width_s=2.0, stride_s=1.0, bin_ms=20.0), Picture(kind="raster"), "tiny"),
    (Windows(width_s=60.0), Picture(), "tiny"),  # longer than the recording
]


@pytest.fixture(scope="module")
def trains() -> SpikeTrains:
    rng = np.random.default_rng(0)
    sample, channel = rng.integers(0, 8000, 900), rng.integers(0, 4, 900)
    return make_trains(
        sample.tolist(), channel.tolist(), n_channels=4, rate_hz=1000, lengths=[8000]
    )


@pytest.fixture
def extractors(monkeypatch: pytest.MonkeyPatch) -> list[PictureExtractor]:
    install_tiny_backbones(monkeypatch)
    engines = {
        name: FeatureEngine(backbones.load_backbone(Backbone(name=name, weights="random")), "cpu")
        for name in ("tiny", "tiny_two")
    }
    return [PictureExtractor(windows, picture, engines[name]) for windows, picture, name in VIEWS]


def test_views_together_are_bit_for_bit_what_each_is_alone(
    trains: SpikeTrains, extractors: list[PictureExtractor]
) -> None:
    together = extract_features(trains, extractors)
    assert [d.features.shape for d in together] == [(7, 12), (15, 16), (7, 12), (0, 12)]
    for extractor, described in zip(extractors, together, strict=True):
        (alone,) = extract_features(trains, [extractor])
        np.testing.assert_array_equal(described.features, alone.features)
        np.testing.assert_array_equal(described.start_s, alone.start_s)
    # By the stages one by one, with spikes of their own.
    loaded = extractors[0].engine.loaded
    drawer = Drawer(trains, extractors[0].windows, extractors[0].picture, loaded.input_size)
    expected = FeatureEngine(loaded).features(drawer.draw(0, 7))
    np.testing.assert_array_equal(together[0].features, expected)
    np.testing.assert_array_equal(together[0].start_s, np.arange(7.0))


def test_spikes_are_put_into_bins_once_for_each_length_of_bin(
    trains: SpikeTrains, extractors: list[PictureExtractor], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[float] = []

    class Counting(binning.BinnedSpikes):
        def __init__(self, trains: SpikeTrains, bin_ms: float, device: str) -> None:
            made.append(bin_ms)
            super().__init__(trains, bin_ms, device)

    monkeypatch.setattr(binning, "BinnedSpikes", Counting)
    extract_features(trains, extractors)
    assert made == [10.0, 20.0]


def test_progress_counts_the_windows_of_all_views(
    trains: SpikeTrains, extractors: list[PictureExtractor]
) -> None:
    told: list[tuple[str, int, int]] = []
    extract_features(trains, extractors, lambda *what: told.append(what))
    assert told == [("features", 7, 29), ("features", 22, 29), ("features", 29, 29)]


def test_engine_that_nothing_needs_is_not_compiled(
    trains: SpikeTrains, extractors: list[PictureExtractor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("a recording shorter than a window needs no backbone")

    monkeypatch.setattr("toptune.backbones.engine.OpenVinoNetwork", no_network)
    (described,) = extract_features(trains, [extractors[3]])
    assert isinstance(described, FeatureRows)
    assert described.features.shape == (0, 12)
    assert extractors[3].engine.computed.to_json() == {
        "device": "cpu", "precision": "float32", "engine": "openvino",
    }  # fmt: skip


def test_features_that_are_not_finite_are_refused_when_waited_for(
    trains: SpikeTrains, extractors: list[PictureExtractor]
) -> None:
    for p in extractors[0].engine.loaded.module.parameters():
        p.fill_(float("inf"))
    with pytest.raises(ToptuneError, match="not finite for 7 of 7 pictures"):
        extract_features(trains, [extractors[0]])
