"""Backbones: frozen networks that turn pictures into features.

A network's name and the source of its weights enter `load_backbone`. Pictures, or what draws them,
enter a `FeatureEngine` of the loaded backbone; features (n, d), float32, leave it. `networks` and
`weights` build networks and fill them, `folding` removes operations, and OpenVINO on the CPU or
torch on a GPU compute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toptune.machine.lazy import lazy_names

if TYPE_CHECKING:
    from toptune.backbones.engine import Computed, FeatureEngine
    from toptune.backbones.loading import LoadedBackbone, load_backbone
    from toptune.backbones.names import PAPER_BACKBONES
    from toptune.backbones.networks import canonical_name
    from toptune.backbones.weights import WeightsFile, read_weights
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "engine": ("Computed", "FeatureEngine"),
            "loading": ("LoadedBackbone", "load_backbone"),
            "names": ("PAPER_BACKBONES",),
            "networks": ("canonical_name",),
            "weights": ("WeightsFile", "read_weights"),
        },
    )

__all__ = [
    "PAPER_BACKBONES", "Computed", "FeatureEngine", "LoadedBackbone", "WeightsFile",
    "canonical_name", "load_backbone", "read_weights",
]  # fmt: skip
