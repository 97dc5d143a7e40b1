"""What the heads are trained on: windows' features, and which recording each window came from.

What enters: arrays and names, as the store reads them. What leaves: a frozen table; features are
float32 as the backbone pooled them, times in seconds since the recording's start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RecordingInfo:
    """One line of the devices file.

    Attributes
    ----------
    name : str
        The recording's name in the store.
    device : str
        The device (culture) it was recorded from.
    label : str
        Its class.
    columns : dict of str to str
        The further columns of the devices file, such as ``batch`` or ``div``.
    """

    name: str
    device: str
    label: str
    columns: dict[str, str]


@dataclass(frozen=True)
class FeatureTable:
    """All windows of a data set.

    Attributes
    ----------
    features : (n_windows, d) float32
        Pooled output of the backbone.
    start_s : (n_windows,) float64
        When each window starts, in seconds since its recording's start.
    recording : (n_windows,) int64
        Row of `recordings`.
    recordings : tuple of RecordingInfo
        Where the windows come from.
    provenance : dict
        JSON-able: the parameters, the weights' sha256 and the format version that made `features`.
    """

    features: NDArray[np.float32]
    start_s: NDArray[np.float64]
    recording: NDArray[np.int64]
    recordings: tuple[RecordingInfo, ...]
    provenance: dict[str, Any]
