"""Checks of the weights: which of the paper's backbones need no download, and the caches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from toptune.cli.doctor_check import Check, imported


def _weights() -> Iterator[Check]:
    """ImageNet weights of the paper's backbones that need no download."""
    needed = [imported(name) for name in ("torch", "torchvision", "timm", "huggingface_hub")]
    if any(module is None for module, _ in needed):
        return
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    from toptune.backbones.networks import PAPER_BACKBONES, canonical_name

    for library, folder in (("torchvision", torch.hub.get_dir()), ("timm", HF_HUB_CACHE)):
        yield Check(part="weights", name=f"cache of {library}", state="ok", found=str(folder))
    for name in PAPER_BACKBONES:
        canonical = canonical_name(name)
        timm_name = canonical.removeprefix("timm:") if canonical.startswith("timm:") else None
        path = _timm_file(timm_name) if timm_name else _torchvision_file(canonical)
        yield Check(
            part="weights",
            name=name,
            state="ok" if path.exists() else "absent",
            found=str(path) if path.exists() else "would be fetched once, when first used",
            remedy=None if path.exists() else _fetch(name),
        )


def _fetch(name: str) -> str:
    load = f"load_backbone(Backbone(name='{name}'))"
    return (
        f'python -c "from toptune.params import Backbone; from toptune.backbones.loading import'
        f' load_backbone; {load}"'
    )


def _torchvision_file(name: str) -> Path:
    import torch

    from toptune.backbones.networks import torchvision_weights

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(torchvision_weights(name).url).name


def _timm_file(name: str) -> Path:
    """Where timm's weights lie, or would: the hub's cache, or torch's for those from elsewhere."""
    import timm
    import torch
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        url = "" if config is None else str(config.url)
        return Path(torch.hub.get_dir()) / "checkpoints" / re.sub(r".*/", "", url)
    for file in ("model.safetensors", "pytorch_model.bin"):
        path = try_to_load_from_cache(config.hf_hub_id, file)
        if isinstance(path, str):
            return Path(path)
    folder = Path(HF_HUB_CACHE) / f"models--{config.hf_hub_id.replace('/', '--')}"
    return folder / "model.safetensors"


LOOKS = (_weights,)
