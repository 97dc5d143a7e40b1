"""toptune tells from MEA recordings which kind of neuronal network made them.

The public names; each is imported when it is first used, so that importing toptune costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toptune.evaluation.folds import leave_one_group_out
    from toptune.extraction import extract
    from toptune.heads.falkon.classifier import FalkonClassifier
    from toptune.heads.mlp.classifier import MLPClassifier
    from toptune.params import Backbone, HighPass, Picture, Ptsd, Windows
    from toptune.prediction import predict
    from toptune.recordings.opening import open_recording
    from toptune.recordings.trains import Spikes
    from toptune.spikes.ptsd import detect_spikes
    from toptune.store.feature_store import FeatureStore

    __version__: str

__all__ = [
    "Backbone",
    "FalkonClassifier",
    "FeatureStore",
    "HighPass",
    "MLPClassifier",
    "Picture",
    "Ptsd",
    "Spikes",
    "Windows",
    "__version__",
    "detect_spikes",
    "extract",
    "leave_one_group_out",
    "open_recording",
    "predict",
]

_HOMES = {
    "Backbone": "toptune.params",
    "FalkonClassifier": "toptune.heads.falkon.classifier",
    "FeatureStore": "toptune.store.feature_store",
    "HighPass": "toptune.params",
    "MLPClassifier": "toptune.heads.mlp.classifier",
    "Picture": "toptune.params",
    "Ptsd": "toptune.params",
    "Spikes": "toptune.recordings.trains",
    "Windows": "toptune.params",
    "detect_spikes": "toptune.spikes.ptsd",
    "extract": "toptune.extraction",
    "leave_one_group_out": "toptune.evaluation.folds",
    "open_recording": "toptune.recordings.opening",
    "predict": "toptune.prediction",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("toptune")
    if name not in _HOMES:
        raise AttributeError(f"module 'toptune' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
