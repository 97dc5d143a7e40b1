"""Folded backbones against the networks as their libraries made them."""

from __future__ import annotations

import copy
import dataclasses
from typing import Literal

import pytest
import torch
from small_data import random_backbone
from torch import nn

from toptune.backbones.folding import Channel, Folded, fold
from toptune.backbones.loading import LoadedBackbone, load_backbone
from toptune.backbones.names import PAPER_BACKBONES
from toptune.params import Backbone

DARKNESS, ONES = Channel(1, 0), Channel(0, 1)
pytestmark = pytest.mark.usefixtures("one_torch_thread")


def pictures(size: int) -> torch.Tensor:
    """Two pictures, mostly white, with a black and a white edge where padding would show."""
    grey = torch.rand(2, size, size, generator=torch.Generator().manual_seed(2)) ** 0.3
    grey[0, :3], grey[0, :, -3:] = 0, 1
    return grey


def normalised(loaded: LoadedBackbone, grey: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (loaded.mean, loaded.std))
    return (grey[:, None] - mean) / std


def planes(folded: Folded, grey: torch.Tensor) -> torch.Tensor:
    """What the folded network takes of grey pictures (n, S, S)."""
    return torch.stack([(1 - grey) * scale + shift for scale, shift in folded.channels], dim=1)


def norms(module: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())


def assert_same_features(
    loaded: LoadedBackbone, folded: Folded, relative: float, size: int | None = None
) -> None:
    grey = pictures(size or loaded.input_size)
    with torch.inference_mode():
        expected = loaded.module(normalised(loaded, grey))
        found = folded.module(planes(folded, grey))
    assert expected.norm() > 0.1
    assert (found - expected).norm() <= relative * expected.norm()


@pytest.mark.parametrize("name", PAPER_BACKBONES)
def test_folded_backbones_of_the_paper_give_the_same_features(name: str) -> None:
    loaded = random_backbone(name)
    before = copy.deepcopy(loaded.module.state_dict())
    folded = fold(loaded)
    # Features are pooled, so that small pictures, which have more border, do.
    assert_same_features(loaded, folded, 1e-5, size=160)
    # DenseNet normalises before some activations: those have no convolution before them.
    left = {"densenet121": 62, "densenet201": 102}
    assert norms(loaded.module) > 30
    assert norms(folded.module) == left.get(name, 0)
    # Xception's first convolution does not pad, so the plane of ones becomes its bias.
    assert folded.channels == ((DARKNESS,) if name == "xception" else (DARKNESS, ONES))
    assert before.keys() == loaded.module.state_dict().keys()
    assert all(torch.equal(v, before[k]) for k, v in loaded.module.state_dict().items())


def test_convolution_in_patches_is_folded_too() -> None:
    loaded = load_backbone(Backbone(name="timm:convnext_atto", weights="random"))
    folded = fold(loaded)
    assert folded.channels == (DARKNESS,)
    assert_same_features(loaded, folded, 1e-5)


def backbone_of(module: nn.Module) -> LoadedBackbone:
    """Make a backbone of a small network, with a mean and an SD that differ a lot."""
    return LoadedBackbone(
        name="small", input_size=9, n_features=4, mean=(0.1, 0.5, 0.9), std=(0.2, 0.7, 0.3),
        module=module.eval().requires_grad_(False), weights="random", weights_sha256="0" * 64,
        n_parameters=1,
    )  # fmt: skip


def trained(module: nn.Module) -> nn.Module:
    """Give batch norms statistics of some pictures."""
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(3):
            module.train()(torch.randn(4, 3, 9, 9) * 2 + 1)
    return module


class _Pooled(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = self.layers(x).mean((2, 3))
        return pooled


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("padding", [0, 1, (2, 0), "same", "valid"])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_folding_is_exact_at_the_borders_whatever_the_padding(
    bias: bool, padding: int | tuple[int, int] | str, mode: Literal["zeros", "reflect"]
) -> None:
    first = nn.Conv2d(3, 4, 3, padding=padding, bias=bias, padding_mode=mode)
    loaded = backbone_of(trained(_Pooled(first, nn.BatchNorm2d(4))))
    folded = fold(loaded)
    assert_same_features(loaded, folded, 1e-6)
    assert norms(folded.module) == 0
    assert len(folded.channels) == (1 if padding in (0, "valid") else 2)


class _Shared(nn.Module):
    """One convolution with two norms after it, and one whose output is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.twice = nn.Conv2d(4, 4, 1)
        self.one, self.two, self.three = (nn.BatchNorm2d(4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = self.one(x) + x
        x = self.two(self.twice(x)) + self.three(self.twice(x.relu()))
        return x.mean((2, 3))


def test_layers_that_feed_more_than_their_norm_are_left() -> None:
    loaded = backbone_of(trained(_Shared()))
    folded = fold(loaded)
    assert norms(folded.module) == 3
    assert_same_features(loaded, folded, 1e-6)


class _TwoBeginnings(nn.Module):
    """Uses its input twice, as networks do that change the normalisation or take shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = (self.norm(self.conv(x)) + x).mean((2, 3))
        return pooled


def test_network_that_does_not_begin_with_one_convolution_takes_three_channels() -> None:
    loaded = dataclasses.replace(backbone_of(trained(_TwoBeginnings())), n_features=3)
    folded = fold(loaded)
    assert len(folded.channels) == 3
    assert norms(folded.module) == 0
    assert_same_features(loaded, folded, 1e-6)


class _Branching(nn.Module):
    """Looks at values, so that it cannot be traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else -x.mean((2, 3))


def test_network_that_cannot_be_traced_is_run_as_it_is() -> None:
    loaded = dataclasses.replace(backbone_of(_Branching()), n_features=3)
    folded = fold(loaded)
    assert len(folded.channels) == 3
    assert_same_features(loaded, folded, 1e-6)
