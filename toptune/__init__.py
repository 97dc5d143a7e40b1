"""toptune tells from MEA recordings which kind of neuronal network made them.

The public names; each is imported when it is first used, so that importing toptune costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toptune.machine.lazy import lazy_names

if TYPE_CHECKING:
    from toptune.evaluation.folds import leave_one_group_out
    from toptune.extraction import extract
    from toptune.heads.falkon.classifier import FalkonClassifier
    from toptune.heads.mlp.classifier import MLPClassifier
    from toptune.params import Backbone, HighPass, Picture, Ptsd, Windows
    from toptune.prediction import predict
    from toptune.recordings.opening import open_recording
    from toptune.recordings.trains import Spikes, SpikeTrains
    from toptune.spikes.ptsd import detect_spikes
    from toptune.store.feature_store import FeatureStore

    __version__: str

__all__ = [
    "Backbone", "FalkonClassifier", "FeatureStore", "HighPass", "MLPClassifier", "Picture", "Ptsd",
    "SpikeTrains", "Spikes", "Windows", "__version__", "detect_spikes", "extract",
    "leave_one_group_out", "open_recording", "predict",
]  # fmt: skip

_LOOK_UP = lazy_names(
    __name__,
    {
        "evaluation.folds": ("leave_one_group_out",),
        "extraction": ("extract",),
        "heads.falkon.classifier": ("FalkonClassifier",),
        "heads.mlp.classifier": ("MLPClassifier",),
        "params": ("Backbone", "HighPass", "Picture", "Ptsd", "Windows"),
        "prediction": ("predict",),
        "recordings.opening": ("open_recording",),
        "recordings.trains": ("SpikeTrains", "Spikes"),
        "spikes.ptsd": ("detect_spikes",),
        "store.feature_store": ("FeatureStore",),
    },
)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("toptune")
    return _LOOK_UP(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
