"""Networks of torchvision and timm without their classifiers, before weights are loaded.

`toptune.backbones.names` says what they are called. A network turns normalised pictures
(n, 3, S, S) into the globally pooled output below its classifier, (n, d), with the S, mean and SD
that its ImageNet weights were trained with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from toptune.backbones.names import PAPER_BACKBONES, refuse_name, require_known
from toptune.backbones.weights import Triple
from toptune.errors import InputError
from toptune.machine.caches import usable_or_private

#: Networks that a weights file is compared with if it does not fit the one it was given for.
WELL_KNOWN = (
    *PAPER_BACKBONES,
    *(f"resnet{n}" for n in (18, 34, 50, 101, 152)),
    *(f"efficientnet_b{n}" for n in range(2, 8)),
    *("densenet161", "densenet169", "mobilenet_v3_small", "mobilenet_v3_large", "inception_v3"),
    *("googlenet", "vgg16", "vgg19", "convnext_tiny", "vit_b_16"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A network without its classifier, and what its weights expect."""

    module: nn.Module  # in evaluation mode, without gradients
    # Names of the classifier's tensors in a weights file; a name ending in a dot stands for all
    # that begin with it.
    classifier: tuple[str, ...]
    input_size: int  # side S of the pictures, in pixels
    mean: Triple  # with std the normalisation of the three colour channels, of pictures in [0, 1]
    std: Triple


def canonical_name(name: str) -> str:
    """Return the full name of a network.

    Raises
    ------
    InputError
        Neither torchvision nor timm has such a network; the message suggests similar names.
    """
    import timm

    name = require_known(name)
    architecture, _, tag = name.removeprefix("timm:").partition(".")
    if name.startswith("timm:") and tag:
        known = {p.partition(".")[2] for p in timm.list_pretrained(f"{architecture}.*")}
        if tag not in known:
            refuse_name(name)
    return name


def build_network(name: str) -> Network:
    """Build a network by its canonical name, with initial weights drawn by its library.

    One that does not take square pictures of three channels is an `InputError`.
    """
    if name.startswith("timm:"):
        return build_timm(name.removeprefix("timm:"), pretrained=False)
    import torchvision

    # These two warn without the option. Their auxiliary classifiers are removed below.
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **options)
    everything = set(model.state_dict())
    _take_off_classifier(model)
    preset = torchvision_weights(name).transforms()
    return Network(
        module=_frozen(model),
        classifier=tuple(sorted(everything - set(model.state_dict()))),
        input_size=preset.crop_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def build_timm(name: str, *, pretrained: bool) -> Network:
    """Build a timm network by its name without ``timm:``; `pretrained` downloads its weights."""
    import timm

    known = timm.get_pretrained_cfg(name)  # checked before a large network is built in vain
    size = known.input_size if known is not None else (3, 0, 0)
    if size[0] != 3 or size[1] != size[2]:
        raise InputError(
            f"timm:{name} takes {size[0]} x {size[1]} x {size[2]} values; toptune draws square "
            "pictures of three channels only"
        )
    place = _timm_place() if pretrained else {}
    model = timm.create_model(name, pretrained=pretrained, num_classes=0, **place)
    config: dict[str, Any] = dict(model.pretrained_cfg)  # type: ignore[arg-type]  # typed as a Module
    classifier = config.get("classifier") or ()
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return Network(
        module=_frozen(model),
        classifier=tuple(f"{n}." for n in names),
        input_size=config["input_size"][1],
        mean=config["mean"],
        std=config["std"],
    )


def _timm_place() -> dict[str, Any]:
    """Name a folder for weights where the hub has none and cannot make one."""
    from huggingface_hub.constants import HF_HUB_CACHE

    usual = Path(HF_HUB_CACHE)
    place = usual if usual.is_dir() else usable_or_private(usual, "huggingface")
    return {} if place == usual else {"cache_dir": str(place)}


def _take_off_classifier(model: nn.Module) -> None:
    """Cut a torchvision network to its globally pooled output.

    Its head is cut at the first layer that mixes features (linear or convolution), which keeps a
    norm between pool and classifier (ConvNeXt, MaxViT) and removes hidden layers of a classifier
    (VGG, MobileNetV3).
    """
    head_name = next(n for n in ("classifier", "fc", "head", "heads") if hasattr(model, n))
    head = getattr(model, head_name)
    layers = list(head.children()) if isinstance(head, nn.Sequential) else [head]
    cut = next(i for i, m in enumerate(layers) if isinstance(m, nn.Linear | nn.Conv2d))
    kept = layers[:cut]
    if isinstance(layers[cut], nn.Conv2d):  # SqueezeNet pools after classifying
        kept.append(nn.AdaptiveAvgPool2d(1))
    setattr(model, head_name, nn.Sequential(*kept) if kept else nn.Identity())
    pool = getattr(model, "avgpool", None)
    if isinstance(pool, nn.AdaptiveAvgPool2d):  # VGG and AlexNet keep a map of 7 x 7 or 6 x 6
        pool.output_size = 1
    for auxiliary in ("AuxLogits", "aux1", "aux2"):
        if hasattr(model, auxiliary):
            setattr(model, auxiliary, None)
    if hasattr(model, "transform_input"):
        # What torchvision itself sets when it loads the published weights of these two.
        model.transform_input = True  # type: ignore[assignment]  # nn.Module types every attribute


def _frozen(module: nn.Module) -> nn.Module:
    return module.float().eval().requires_grad_(False)


def torchvision_weights(name: str) -> Any:
    """Return torchvision's weights of a network, with their size, mean, SD and URL.

    If there are several, IMAGENET1K_V1, the first published: V2 (EfficientNetB1, MobileNetV2,
    ResNets) was trained with label smoothing and mixed classes, which raise the accuracy on
    ImageNet but give features that transfer less well (Kornblith et al. 2021, NeurIPS 34).
    """
    import torchvision

    entries = torchvision.models.get_model_weights(name)
    return entries.__members__.get("IMAGENET1K_V1", entries.DEFAULT)


@contextlib.contextmanager
def private_random_numbers(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator inside the context, and restore its state afterwards."""
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)
