"""toptune tells from MEA recordings which kind of neuronal network made them.

The public names; each is imported when it is first used, so that importing toptune costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toptune.machine.lazy import lazy_names

if TYPE_CHECKING:
    from toptune import plot
    from toptune.api import fit, report, sweep
    from toptune.errors import InputError, ToptuneError
    from toptune.evaluation.folds import leave_one_group_out
    from toptune.explanation import explain
    from toptune.extraction import extract
    from toptune.heads.falkon.classifier import FalkonClassifier
    from toptune.heads.mlp.classifier import MLPClassifier
    from toptune.live.engine import stream
    from toptune.params import (
        RECOMMENDED_PICTURES,
        Backbone,
        Compute,
        HighPass,
        Picture,
        Ptsd,
        SpikeSettings,
        Windows,
    )
    from toptune.prediction import predict
    from toptune.recordings.devices import read_devices
    from toptune.recordings.opening import open_recording
    from toptune.recordings.simulated import simulate
    from toptune.recordings.trains import Spikes, SpikeTrains
    from toptune.spikes.ptsd import detect_spikes
    from toptune.spikes.streaming import detect_recording
    from toptune.store.feature_store import FeatureStore

    __version__: str

__all__ = [
    "RECOMMENDED_PICTURES", "Backbone", "Compute", "FalkonClassifier", "FeatureStore", "HighPass",
    "InputError", "MLPClassifier", "Picture", "Ptsd", "SpikeSettings", "SpikeTrains", "Spikes",
    "ToptuneError", "Windows", "__version__", "detect_recording", "detect_spikes", "explain",
    "extract", "fit", "leave_one_group_out", "open_recording", "plot", "predict", "read_devices",
    "report", "simulate", "stream", "sweep",
]  # fmt: skip

_LOOK_UP = lazy_names(
    __name__,
    {
        "api": ("fit", "report", "sweep"),
        "errors": ("InputError", "ToptuneError"),
        "evaluation.folds": ("leave_one_group_out",),
        "explanation": ("explain",),
        "extraction": ("extract",),
        "heads.falkon.classifier": ("FalkonClassifier",),
        "heads.mlp.classifier": ("MLPClassifier",),
        "live.engine": ("stream",),
        "params": (
            *("RECOMMENDED_PICTURES", "Backbone", "Compute", "HighPass", "Picture", "Ptsd"),
            *("SpikeSettings", "Windows"),
        ),
        "prediction": ("predict",),
        "recordings.devices": ("read_devices",),
        "recordings.opening": ("open_recording",),
        "recordings.simulated": ("simulate",),
        "recordings.trains": ("SpikeTrains", "Spikes"),
        "spikes.ptsd": ("detect_spikes",),
        "spikes.streaming": ("detect_recording",),
        "store.feature_store": ("FeatureStore",),
    },
)


if not TYPE_CHECKING:  # where every name that is not public is an error

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("toptune")
        if name == "plot":
            from importlib import import_module

            return import_module("toptune.plot")
        return _LOOK_UP(name)


def __dir__() -> list[str]:
    return sorted(__all__)
