"""Backbones: what they are, that they see, and what is refused."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from needs import shared
from PIL import Image
from safetensors.torch import save_file
from small_data import random_backbone as shared_backbone

from toptune.backbones.loading import LoadedBackbone, load_backbone
from toptune.backbones.names import PAPER_BACKBONES, registered
from toptune.backbones.networks import build_network, canonical_name
from toptune.backbones.weights import read_weights
from toptune.errors import InputError, ToptuneError
from toptune.params import Backbone

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def random_backbone(name: str, seed: int = 0) -> LoadedBackbone:
    return load_backbone(Backbone(name=name, weights="random", seed=seed))


# --- what a backbone is ---

# Input size, features, and the published number of parameters with the classifier of 1000 classes.
PAPERS = {
    "efficientnet_b0": (224, 1280, 5_288_548),
    "efficientnet_b1": (240, 1280, 7_794_184),
    "densenet121": (224, 1024, 7_978_856),
    "densenet201": (224, 1920, 20_013_928),
    "xception": (299, 2048, 22_855_952),
    "mobilenet_v2": (224, 1280, 3_504_872),
}


def test_names_are_those_that_the_libraries_list() -> None:
    vision = torchvision.models.list_models(module=torchvision.models)
    assert registered("torchvision") == set(vision)
    assert registered("timm") == set(timm.list_models())
    assert registered("no_such_package") == frozenset()


@pytest.mark.parametrize("name", PAPER_BACKBONES)
def test_the_papers_backbones_have_their_sizes(name: str) -> None:
    loaded = shared_backbone(name)
    size, n_features, n_parameters = PAPERS[name]
    assert (loaded.input_size, loaded.n_features) == (size, n_features)
    assert loaded.n_parameters == n_parameters - (n_features + 1) * 1000
    half = name == "xception"
    assert loaded.mean == ((0.5, 0.5, 0.5) if half else (0.485, 0.456, 0.406))
    assert loaded.std == ((0.5, 0.5, 0.5) if half else (0.229, 0.224, 0.225))
    assert loaded.name == name
    assert not any(m.training for m in loaded.module.modules())
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in loaded.module.parameters())


@pytest.mark.parametrize(
    ("name", "n_features"),
    [
        ("resnet18", 512),
        ("vgg11", 512),
        ("alexnet", 256),
        ("squeezenet1_1", 512),
        ("mobilenet_v3_small", 576),
        ("googlenet", 1024),
        ("shufflenet_v2_x0_5", 1024),
        ("mnasnet0_5", 1280),
        ("convnext_tiny", 768),
        ("swin_t", 768),
        ("vit_b_32", 768),
        ("maxvit_t", 512),
        ("regnet_x_400mf", 400),
        ("timm:resnet18.a1_in1k", 512),
        ("timm:mobilenetv3_small_050", 1024),
    ],
)
def test_every_family_gives_one_row_of_pooled_features(name: str, n_features: int) -> None:
    network = build_network(canonical_name(name))
    size = network.input_size
    with torch.no_grad():
        assert network.module(torch.zeros(1, 3, size, size)).shape == (1, n_features)


@pytest.mark.parametrize("name", ["efficientnet_b0", "densenet121", "mobilenet_v2", "resnet18"])
def test_features_are_the_pooled_map_that_the_classifier_sees(name: str) -> None:
    torch.manual_seed(4)
    full = torchvision.models.get_model(name).eval()
    classifier = full.fc if name == "resnet18" else full.classifier
    linear = classifier if isinstance(classifier, torch.nn.Linear) else classifier[-1]
    seen: list[torch.Tensor] = []
    linear.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    network = build_network(name)
    network.module.load_state_dict(
        {k: v for k, v in full.state_dict().items() if k not in network.classifier}
    )
    picture = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        full(picture)
        torch.testing.assert_close(network.module(picture), seen[0], rtol=0, atol=0)


# --- that it sees ---

PHOTOS = {
    "parrot.jpg": "macaw",
    "resized_cat.bmp": "Egyptian cat",
    "grace_hopper.bmp": "military uniform",
    "bird.bmp": "chickadee",
    "dragonfly.bmp": "dragonfly",
    "hot_dog.jpg": "hotdog",
}


def test_trained_weights_see_what_the_photos_show() -> None:
    weights = shared("weights", "mobilenet_v2.safetensors")
    loaded = load_backbone(Backbone(name="mobilenet_v2", weights=str(weights)))
    file = read_weights(weights)
    assert loaded.mean == loaded.std == (0.5, 0.5, 0.5)
    assert loaded.weights_sha256.startswith("f41a8507")
    assert loaded.weights_sha256.endswith("5f01")
    labels = shared("photos", "imagenet_labels.txt").read_text().splitlines()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (loaded.mean, loaded.std))
    for photo, expected in PHOTOS.items():
        image = Image.open(shared("photos", photo)).convert("RGB")
        image = image.resize((224, 224), Image.Resampling.BILINEAR)
        pixels = torch.tensor(np.asarray(image), dtype=torch.float32).permute(2, 0, 1) / 255
        with torch.no_grad():
            features = loaded.module(((pixels - mean) / std)[None])[0]
        scores = file.state["classifier.1.weight"] @ features + file.state["classifier.1.bias"]
        assert labels[int(scores.argmax())].startswith(expected), photo


# --- random weights ---


def test_random_weights_follow_their_seed_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again = random_backbone("mobilenet_v2", 7), random_backbone("mobilenet_v2", 7)
    other = random_backbone("mobilenet_v2", 8)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert first.weights == "random (seed 7)"
    state = again.module.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in first.module.state_dict().items())


def test_random_weights_are_the_same_in_another_process_with_other_threads() -> None:
    code = (
        "import torch; torch.set_num_threads(2); torch.rand(9)\n"
        "from toptune.backbones.loading import *; from toptune.params import Backbone\n"
        "loaded = load_backbone(Backbone(name='mobilenet_v3_small', weights='random', seed=7))\n"
        "assert torch.get_num_threads() == 2\n"
        "print(loaded.weights_sha256)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == random_backbone("mobilenet_v3_small", 7).weights_sha256


def test_random_weights_are_announced(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        random_backbone("timm:resnet18")
    assert "timm:resnet18 has RANDOM weights (seed 0)" in caplog.text
    assert "use `weights='imagenet'` or a file" in caplog.text


def test_random_features_of_efficientnet_are_of_use() -> None:
    # A fresh EfficientNet, its batch norms not set from data, gives less than 1e-14.
    loaded = shared_backbone("efficientnet_b0")
    heights = torch.tensor([0.1, 0.5, 0.9])[:, None, None]
    bars = (torch.arange(224)[:, None] / 224 < 1 - heights).float().expand(3, 224, 224)
    pictures = (bars[:, None].expand(3, 3, 224, 224) - 0.45) / 0.225
    with torch.no_grad():
        features = loaded.module(pictures)
    assert features.abs().mean() > 1e-2
    apart = torch.pdist(features) / features.norm(dim=1).mean()
    assert apart.min() > 0.02


# --- weights from files ---


def full_state(name: str) -> dict[str, torch.Tensor]:
    """A whole network's state with its classifier, as training would save it."""
    torch.manual_seed(1)
    state: dict[str, torch.Tensor] = torchvision.models.get_model(name).state_dict()
    return {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in state.items()}


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b1", "densenet121", "googlenet"])
def test_a_file_with_classifier_is_loaded_value_for_value(tmp_path: Path, name: str) -> None:
    if name == "googlenet":
        state = torchvision.models.googlenet(init_weights=False).state_dict()
    else:
        state = full_state(name)
    path = tmp_path / "w.pth"
    torch.save(state, path)
    loaded = load_backbone(Backbone(name=name, weights=str(path)))
    for key, value in loaded.module.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert loaded.weights == "file w.pth"
    assert loaded.weights_sha256 == read_weights(path).sha256
    assert loaded.mean == (0.485, 0.456, 0.406)


def test_a_timm_file_is_loaded_value_for_value(tmp_path: Path) -> None:
    state = timm.create_model("legacy_xception").state_dict()
    save_file(state, tmp_path / "x.safetensors", {"backbone": "timm:legacy_xception"})
    loaded = load_backbone(Backbone(name="xception", weights=str(tmp_path / "x.safetensors")))
    for key, value in loaded.module.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_the_old_names_of_published_densenets_are_understood(tmp_path: Path) -> None:
    state = full_state("densenet121")
    old = {k: v for k, v in state.items() if "denselayer" not in k}
    for key, value in state.items():
        if "denselayer" in key:
            head, layer, kind = key.rsplit(".", 2)
            old[f"{head}.{layer[:-1]}.{layer[-1]}.{kind}"] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "densenet121-a639ec97.pth")
    params = Backbone(name="densenet121", weights=str(tmp_path / "densenet121-a639ec97.pth"))
    for key, value in load_backbone(params).module.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_metadata_overrides_the_normalisation(tmp_path: Path) -> None:
    metadata = {"mean": "[0.1, 0.2, 0.3]", "std": "[1, 2, 3]"}
    save_file(full_state("mobilenet_v2"), tmp_path / "w.safetensors", metadata)
    params = Backbone(name="mobilenet_v2", weights=str(tmp_path / "w.safetensors"))
    loaded = load_backbone(params)
    assert (loaded.mean, loaded.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))


def test_weights_of_another_network_are_refused_and_recognised(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(full_state("mobilenet_v2"), path)
    with pytest.raises(InputError) as caught:
        load_backbone(Backbone(name="efficientnet_b0", weights=str(path)))
    message = str(caught.value)
    assert message.startswith(f"{path} does not fit efficientnet_b0: ")
    assert "missing (features." in message
    assert message.endswith("; it fits mobilenet_v2")
    torch.save({"mine": torch.ones(2)}, path)
    with pytest.raises(InputError, match=r"1 unexpected \(mine\)$"):
        load_backbone(Backbone(name="efficientnet_b0", weights=str(path)))


def test_a_file_that_names_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(full_state("mobilenet_v2"), path, {"backbone": "mobilenet_v3_large"})
    with pytest.raises(InputError, match="weights of 'mobilenet_v3_large', not"):
        load_backbone(Backbone(name="mobilenet_v2", weights=str(path)))


def test_the_shared_weights_are_refused_by_another_network() -> None:
    weights = str(shared("weights", "mobilenet_v2.safetensors"))
    with pytest.raises(InputError, match="weights of 'mobilenet_v2', not of"):
        load_backbone(Backbone(name="efficientnet_b0", weights=weights))


# --- ImageNet weights ---


def no_network(*_: Any, **__: Any) -> Any:
    raise urllib.error.URLError("no network here")


def test_imagenet_weights_that_cannot_be_fetched_are_an_error_with_ways_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(ToptuneError) as caught:
        load_backbone(Backbone(name="efficientnet_b0"))
    message = str(caught.value)
    assert not isinstance(caught.value, InputError)
    assert "could not download the ImageNet weights of efficientnet_b0" in message
    assert "https://download.pytorch.org/models/efficientnet_b0" in message
    assert str(tmp_path) in message
    assert "no network here" in message
    assert "file by `weights`, or use `weights='random'`" in message


def test_timm_weights_that_cannot_be_fetched_are_an_error_with_ways_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(ToptuneError, match=r"timm:legacy_xception from .*`weights='random'`"):
        load_backbone(Backbone(name="xception"))


def test_a_timm_model_without_trained_weights_says_so() -> None:
    with pytest.raises(InputError, match="timm has no trained weights of beit3_giant_patch14_224"):
        load_backbone(Backbone(name="timm:beit3_giant_patch14_224"))


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("efficientnet_b1", "EfficientNet_B1_Weights.IMAGENET1K_V1"),
        ("mobilenet_v2", "MobileNet_V2_Weights.IMAGENET1K_V1"),
        ("inception_v3", "Inception_V3_Weights.IMAGENET1K_V1"),
    ],
)
def test_imagenet_weights_are_the_first_published(
    monkeypatch: pytest.MonkeyPatch, name: str, entry: str
) -> None:
    options = {"init_weights": False} if name == "inception_v3" else {}
    state = torchvision.models.get_model(name, **options).state_dict()
    asked: list[tuple[str, bool]] = []

    def fetch(url: str, *, check_hash: bool, **_: Any) -> dict[str, torch.Tensor]:
        asked.append((url, check_hash))
        return dict(state)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    loaded = load_backbone(Backbone(name=name))
    expected = torchvision.models.get_weight(entry)
    assert asked == [(expected.url, True)]
    assert loaded.weights == f"torchvision {entry}"
    assert loaded.input_size == expected.transforms().crop_size[0]
    for key, value in loaded.module.state_dict().items():
        assert torch.equal(value, state[key]), key


# --- names ---


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("efficientnet_bo", "'efficientnet_bo'; did you mean efficientnet_b0"),
        ("Xception", "did you mean xception"),
        ("legacy_xception", "timm:legacy_xception"),
        ("timm:resnet-18", "did you mean timm:resnet18"),
        ("timm:resnet18.nonsense", "there is no backbone 'timm:resnet18.nonsense'"),
        ("timm:hf-hub:someone/something", "there is no backbone"),
        ("zzz", "there is no backbone 'zzz'; classification models of torchvision go by"),
    ],
)
def test_unknown_names_are_refused_with_close_ones(name: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        load_backbone(Backbone(name=name, weights="random"))
    assert "timm:NAME" in str(caught.value)


def test_timm_models_for_pictures_that_are_not_square_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = timm.get_pretrained_cfg("resnet18")
    assert known is not None
    portrait = dataclasses.replace(known, input_size=(3, 1024, 768))
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: portrait)
    with pytest.raises(InputError, match="takes 3 x 1024 x 768 values; toptune draws square"):
        build_network("timm:resnet18")
