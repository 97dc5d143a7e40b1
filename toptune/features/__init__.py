"""Features: rows of numbers that describe a recording's windows, or a whole recording.

The spikes of a recording enter, or the path of one, whose spikes are then found. Rows of features
leave, float32, each with the start of its window in seconds. There are two kinds, each with its
parameters and its extractor: pictures described by a frozen network
(`toptune.features.picture_features`) and burst parameters (`toptune.features.burst_features`).
What both have in common is in `toptune.features.extractor`.

`check_recordings`, `SpikeFinder` and `RecordingBatch` are the one way from recordings to spikes,
and `start_features` the one from spikes to features; extract, predict, why and sweep share them.
A `FeatureTable` puts the rows of many recordings together for a classifier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toptune.machine.lazy import lazy_names

if TYPE_CHECKING:
    from toptune.features.burst_features import BurstExtractor, BurstFeatureParams
    from toptune.features.extractor import extract_features, read_feature_params, start_features
    from toptune.features.picture_features import PictureExtractor, PictureFeatureParams
    from toptune.features.recordings import RecordingBatch, SpikeFinder, check_recordings
    from toptune.features.table import FeatureTable, join_tables
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "burst_features": ("BurstExtractor", "BurstFeatureParams"),
            "extractor": ("extract_features", "read_feature_params", "start_features"),
            "picture_features": ("PictureExtractor", "PictureFeatureParams"),
            "recordings": ("RecordingBatch", "SpikeFinder", "check_recordings"),
            "table": ("FeatureTable", "join_tables"),
        },
    )

__all__ = [
    "BurstExtractor", "BurstFeatureParams", "FeatureTable", "PictureExtractor",
    "PictureFeatureParams", "RecordingBatch", "SpikeFinder", "check_recordings", "extract_features",
    "join_tables", "read_feature_params", "start_features",
]  # fmt: skip
