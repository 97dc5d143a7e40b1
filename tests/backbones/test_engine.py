"""Features of the engine against the backbone run by torch, eagerly, picture by picture."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from needs import shared
from numpy.typing import NDArray
from small_data import half_of_this_processor, install_tiny_backbones, random_backbone
from torch import nn

from toptune.backbones import loading
from toptune.backbones.engine import FeatureEngine, OpenVinoNetwork
from toptune.backbones.loading import LoadedBackbone, load_backbone
from toptune.backbones.processor import openvino
from toptune.backbones.torch_engine import GreyPictures, TorchNetwork
from toptune.errors import InputError, ToptuneError
from toptune.params import Backbone, Picture, Windows
from toptune.pictures.drawer import Drawer
from toptune.recordings.trains import Segment, SpikeTrains, sort_spikes

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def make_trains(seconds: int = 30) -> SpikeTrains:
    """Bursts on 20 channels at 1 kHz."""
    rng = np.random.default_rng(3)
    sample = rng.choice(rng.integers(0, seconds * 1000 - 200, seconds), 100 * seconds)
    sample = sample + rng.integers(0, 200, len(sample))
    channel = rng.integers(0, 20, len(sample), dtype=np.int32)
    return SpikeTrains(
        spikes=sort_spikes(sample, channel, np.ones(len(sample), dtype=np.float32)),
        channel_labels=tuple(f"{i:02d}" for i in range(20)),
        sampling_rate_hz=1000,
        segments=(Segment(0, seconds * 1000, 0.0),),
        threshold_uv=np.full(20, np.nan, dtype=np.float32),
    )


def make_drawer(size: int, kind: str = "histogram") -> Drawer:
    picture = Picture.from_json({"kind": kind})
    return Drawer(make_trains(), Windows(width_s=10.0, stride_s=2.0), picture, size)


def eager(loaded: LoadedBackbone, pictures: torch.Tensor) -> NDArray[np.float32]:
    """The definition: three equal channels, normalised, through the module one by one."""
    rows = []
    for picture in pictures:
        channels = [(picture - m) / s for m, s in zip(loaded.mean, loaded.std, strict=True)]
        with torch.no_grad():
            rows.append(loaded.module(torch.stack(channels)[None])[0].numpy())
    return np.array(rows)


def assert_features_agree(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    norm = np.linalg.norm(expected, axis=1)
    assert (norm > 0.1).all()
    assert (np.linalg.norm(found - expected, axis=1) <= 1e-3 * norm).all()
    scale = np.abs(expected).max(axis=1, keepdims=True)
    assert (np.abs(found - expected) <= 1e-3 * scale).all()
    # Not one vector for all: the pictures differ, and so must what is said of them by far more
    # than the tolerance.
    assert (np.linalg.norm(expected - expected.mean(axis=0), axis=1) > 5e-3 * norm).all()


@pytest.fixture(scope="module")
def mobilenet() -> LoadedBackbone:
    return random_backbone("mobilenet_v2")


@pytest.fixture(scope="module")
def engine(mobilenet: LoadedBackbone) -> FeatureEngine:
    return FeatureEngine(mobilenet, n_threads=2)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("efficientnet_b0", "histogram"),
        ("efficientnet_b1", "raster"),
        ("densenet121", "histogram"),
        ("timm:resnet18", "raster"),
    ],
)
def test_openvino_gives_the_features_of_eager_torch(name: str, kind: str) -> None:
    loaded = random_backbone(name)
    pictures = make_drawer(loaded.input_size, kind).draw(0, 5)
    found = FeatureEngine(loaded, batch_size=3).features(pictures)
    assert found.dtype == np.float32
    assert found.shape == (5, loaded.n_features)
    assert_features_agree(found, eager(loaded, pictures))


def test_openvino_gives_the_features_of_eager_torch_with_trained_weights() -> None:
    weights = shared("weights", "mobilenet_v2.safetensors")
    loaded = load_backbone(Backbone(name="mobilenet_v2", weights=str(weights)))
    engine = FeatureEngine(loaded, batch_size=4)
    for kind in ("histogram", "raster"):
        pictures = make_drawer(224, kind).draw(0, 4)
        assert_features_agree(engine.features(pictures), eager(loaded, pictures))


@pytest.mark.parametrize("batch_size", [1, 3])  # the engine has 16
def test_batch_size_and_threads_do_not_change_features(
    mobilenet: LoadedBackbone, engine: FeatureEngine, batch_size: int
) -> None:
    pictures = make_drawer(224).draw(0, 7)
    other = FeatureEngine(mobilenet, batch_size=batch_size, n_threads=1)
    np.testing.assert_allclose(
        other.features(pictures), engine.features(pictures), rtol=0, atol=1e-5
    )


def test_a_pictures_features_depend_on_that_picture_alone(engine: FeatureEngine) -> None:
    pictures = make_drawer(224).draw(0, 11)
    whole = engine.features(pictures)
    np.testing.assert_array_equal(engine.features(pictures), whole)
    for part in (slice(0, 1), slice(3, 4), slice(2, 9)):
        np.testing.assert_array_equal(engine.features(pictures[part]), whole[part])
    np.testing.assert_array_equal(engine.features(pictures.flip(0)), whole[::-1])


def test_pictures_need_not_be_contiguous(engine: FeatureEngine) -> None:
    pictures = make_drawer(224).draw(0, 4)
    expected = engine.features(pictures.transpose(1, 2).contiguous())
    np.testing.assert_array_equal(engine.features(pictures.transpose(1, 2)), expected)


def test_no_pictures_give_no_rows(engine: FeatureEngine) -> None:
    assert engine.features(torch.empty(0, 224, 224)).shape == (0, 1280)


def test_torch_computes_the_same_batch_by_batch(mobilenet: LoadedBackbone) -> None:
    pictures = make_drawer(224).draw(0, 5)
    network = TorchNetwork(mobilenet, torch.device("cpu"), torch.float32, 2)
    found = network.start(GreyPictures(pictures))()
    np.testing.assert_allclose(found, eager(mobilenet, pictures), rtol=0, atol=1e-5)


def test_the_engine_leaves_the_backbone_as_it_is(mobilenet: LoadedBackbone) -> None:
    before = {k: v.clone() for k, v in mobilenet.module.state_dict().items()}
    FeatureEngine(mobilenet, batch_size=1).features(make_drawer(224).draw(0, 1))
    assert not mobilenet.module.training
    after = mobilenet.module.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_start_draws_and_describes_in_order(
    engine: FeatureEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toptune.backbones.engine._DRAWN_AT_ONCE", 4)
    drawer = make_drawer(224)
    done: list[int] = []
    found = engine.start(drawer, done.append)()
    assert done == [4, 4, 3]
    expected = engine.features(drawer.draw(0, 11))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_batches_are_filled_with_what_is_started_next(
    mobilenet: LoadedBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FeatureEngine(mobilenet, batch_size=4, n_threads=2)
    sizes: list[int] = []
    real = OpenVinoNetwork._send

    def send(self: OpenVinoNetwork) -> None:
        sizes.append(self._batch.n_pictures)
        real(self)

    monkeypatch.setattr(OpenVinoNetwork, "_send", send)
    drawer = make_drawer(224)
    expected = engine.features(drawer.draw(0, 11))
    assert sizes == [4, 4, 3]
    sizes.clear()
    waits = [engine.start(drawer) for _ in range(3)]
    assert sizes == [4] * 8
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda wait: wait(), reversed(waits)))
    assert sizes == [4] * 8 + [1]
    for one in found:
        np.testing.assert_array_equal(one, expected)


def test_pictures_that_were_lost_with_others_are_an_error_and_no_numbers(
    mobilenet: LoadedBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FeatureEngine(mobilenet, batch_size=4)
    pictures = make_drawer(224).draw(0, 5)
    network = engine._network
    assert isinstance(network, OpenVinoNetwork)
    wait = network.start([pictures[:3]], 3)

    class Broken:
        def start_async(self, *_: object, **__: object) -> None:
            raise RuntimeError("broken")

    with monkeypatch.context() as patched:
        patched.setattr(network, "_queue", Broken())
        with pytest.raises(RuntimeError, match="broken"):
            network.start([pictures[3:]], 2)
    with pytest.raises(ToptuneError, match="failed at pictures beside these"):
        wait()


def test_pictures_that_cannot_be_drawn_leave_the_others_as_they_are(
    mobilenet: LoadedBackbone,
) -> None:
    engine = FeatureEngine(mobilenet, batch_size=4)
    pictures = make_drawer(224).draw(0, 5)
    network = engine._network
    assert isinstance(network, OpenVinoNetwork)
    before = network.start([pictures], 5)

    def broken() -> Iterator[torch.Tensor]:
        yield pictures[:2]
        raise InputError("a spike lies outside the recording")

    with pytest.raises(InputError):
        network.start(broken(), 4)
    after = network.start([pictures], 5)
    for wait in (after, before):
        np.testing.assert_array_equal(wait(), engine.features(pictures))


def test_a_recording_without_windows_is_described_by_no_rows(engine: FeatureEngine) -> None:
    drawer = Drawer(make_trains(), Windows(), Picture(), 224)
    assert engine.start(drawer)().shape == (0, 1280)


def test_pictures_of_another_size_or_type_are_refused(engine: FeatureEngine) -> None:
    with pytest.raises(ValueError, match=r"takes float32 pictures \(n, 224, 224\), got .*225"):
        engine.features(torch.zeros(1, 225, 225))
    with pytest.raises(ValueError, match="float64"):
        engine.features(torch.zeros(1, 224, 224, dtype=torch.float64))
    with pytest.raises(ValueError, match="pictures are on meta, the engine on cpu"):
        engine.features(torch.zeros(1, 224, 224, device="meta"))
    elsewhere = Drawer(make_trains(), Windows(), Picture(kind="intervals"), 224, "meta")
    with pytest.raises(ValueError, match="pictures are on meta, the engine on cpu"):
        engine.start(elsewhere)
    with pytest.raises(ValueError, match="225 pixels wide, mobilenet_v2 takes 224"):
        engine.start(make_drawer(225))


def test_impossible_settings_are_refused(mobilenet: LoadedBackbone) -> None:
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        FeatureEngine(mobilenet, batch_size=0)
    with pytest.raises(ValueError, match="n_threads must be 1 or more, got 0"):
        FeatureEngine(mobilenet, n_threads=0)


class _Overflowing(nn.Module):
    """A network whose features are too large for float32 unless the picture is 2."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.exp(100 * (2 - x.mean((2, 3))))


def test_features_that_are_not_finite_are_refused(mobilenet: LoadedBackbone) -> None:
    broken = dataclasses.replace(
        mobilenet,
        module=_Overflowing(),
        n_features=3,
        input_size=8,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    pictures = torch.stack([torch.full((8, 8), 2.0), torch.ones(8, 8), torch.zeros(8, 8)])
    with pytest.raises(ToptuneError, match="not finite for 2 of 3 pictures"):
        FeatureEngine(broken).features(pictures)


_ALONE = """
import socket
def refuse(*args, **kwargs):
    raise SystemExit("something opened a connection")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
import torch
from toptune.backbones.loading import load_backbone
from toptune.backbones.engine import FeatureEngine
from toptune.params import Backbone
import logging
logging.disable(logging.CRITICAL)
loaded = load_backbone(Backbone(name="mobilenet_v3_small", weights="random"))
FeatureEngine(loaded, batch_size=1).features(torch.rand(1, 224, 224))
import sys, openvino.tools.ovc.telemetry_utils as t
assert "stub" in t.tm.__name__, t.tm
assert "openvino_telemetry" not in sys.modules
"""


def test_openvino_neither_prints_nor_warns_nor_calls_home(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _ALONE],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_half_precision_on_the_processor_gives_nearly_the_features_of_float32(
    mobilenet: LoadedBackbone, engine: FeatureEngine
) -> None:
    dtype = half_of_this_processor()
    half = FeatureEngine(mobilenet, n_threads=2, precision="half")
    assert half.computed == ("cpu", dtype, "openvino")
    assert FeatureEngine(mobilenet).computed.precision == "float32"
    pictures = make_drawer(224).draw(0, 11)
    expected, found = engine.features(pictures), half.features(pictures)
    assert found.dtype == np.float32
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((found * expected).sum(1) / norms).min() > (0.995 if dtype == "bfloat16" else 0.9995)
    # It is computed in another type, indeed.
    assert np.abs(found - expected).max() > 1e-4 * np.abs(expected).max()
    # Each picture's features are its own, to the last bit.
    for part in (slice(0, 1), slice(3, 4), slice(2, 9)):
        np.testing.assert_array_equal(half.features(pictures[part]), found[part])


def test_what_openvino_computes_in_another_type_is_refused(mobilenet: LoadedBackbone) -> None:
    capabilities = openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "FP16" in capabilities:
        pytest.skip("16 bits: this processor computes in float16, too")
    with pytest.raises(InputError, match=r"OpenVINO computes in (bf16|f32) on this processor"):
        OpenVinoNetwork(mobilenet, 1, 1, torch.float16)


@pytest.mark.gpu
def test_features_on_the_gpu_are_those_of_the_cpu(
    mobilenet: LoadedBackbone, engine: FeatureEngine
) -> None:
    pictures = make_drawer(224).draw(0, 11)
    expected = engine.features(pictures)
    exact = FeatureEngine(mobilenet, "cuda", precision="float32")
    assert_features_agree(exact.features(pictures.cuda()), expected)
    half = FeatureEngine(mobilenet, "cuda").features(pictures.cuda())
    norms = np.linalg.norm(half, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((half * expected).sum(1) / norms).min() > 0.9995


@pytest.mark.parametrize(("batch_size", "n"), [(1, 5), (4, 4), (4, 5), (4, 3), (64, 5)])
def test_every_picture_gets_its_own_row_whatever_the_batch(
    monkeypatch: pytest.MonkeyPatch, batch_size: int, n: int
) -> None:
    install_tiny_backbones(monkeypatch)
    loaded = loading.load_backbone(Backbone(name="tiny", weights="random"))
    grey = torch.rand(n, 32, 32, generator=torch.Generator().manual_seed(n))
    with torch.inference_mode():
        normalised = ((grey[:, None] - 0.5) / 0.25).expand(-1, 3, -1, -1)
        expected = loaded.module(normalised).numpy()
    found = OpenVinoNetwork(loaded, batch_size, 2)(grey)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
