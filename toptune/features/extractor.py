"""What every kind of features has in common: parameters, an extractor, and rows that it gives.

A kind is a class of parameters (`FeatureParams`), which is what a store and a model keep of it, and
an extractor (`FeatureExtractor`), which computes its rows from a recording's spikes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from toptune.params import Picture, Windows
from toptune.recordings.trains import SpikeTrains

if TYPE_CHECKING:
    from toptune.backbones.engine import FeatureEngine
    from toptune.features.picture_features import BackboneIdentity
    from toptune.pictures.drawers import Drawers

#: Called with what is being done, how much of it is done, and how much there is.
StageReporter = Callable[[str, int, int], None]


def unwatched(_name: str, _done: int, _total: int) -> None:
    """Report to nobody."""


class FeatureRows(NamedTuple):
    """Features of one kind of a recording's windows, or of the whole recording."""

    features: NDArray[np.float32]  # (rows, d)
    start_s: NDArray[np.float64]  # (rows,), of each window in seconds since the recording's start


class PendingFeatures(NamedTuple):
    """Features that are being computed."""

    start_s: NDArray[np.float64]  # (rows,), of each row's window
    wait: Callable[[], NDArray[np.float32]]  # waits for the features, (rows, d)

    def result(self) -> FeatureRows:
        """Wait for the rows."""
        return FeatureRows(self.wait(), self.start_s)


class FeatureExtractor(Protocol):
    """Computes features of one kind from a recording's spikes."""

    @property
    def windows(self) -> Windows | None:
        """What a row is of; None for whole recordings."""

    @property
    def n_columns(self) -> int:
        """Columns of a row."""

    @property
    def stage(self) -> str:
        """What is being done, for whoever watches."""

    def n_steps(self, trains: SpikeTrains) -> int:
        """How many steps of work a recording is."""

    def start(self, drawers: Drawers, count: Callable[[int], object]) -> PendingFeatures:
        """Start to compute all rows of a recording; `count` is called with steps that are done."""

    def extract_variants(
        self,
        trains: SpikeTrains,
        variants: Iterable[tuple[SpikeTrains, Sequence[int]]],
        n_rows: int,
    ) -> Iterator[NDArray[np.float32]]:
        """Compute some rows of variants of a recording.

        `trains` is the recording itself, which says what is the same for all variants; `variants`
        are its spikes with changes, and which rows are wanted, `n_rows` of all together. Yields
        (n, d) rows in the order in which they were wanted, some at a time.
        """

    def picture_of(
        self, trains: SpikeTrains, row: int
    ) -> tuple[Picture, NDArray[np.float32]] | None:
        """Draw a row as the network sees it, (S, S) in [0, 1]; None without a picture."""


class FeatureParams(Protocol):
    """All that decides the features of one kind, given a recording's spikes."""

    @property
    def windows(self) -> Windows | None:
        """What a row is of; None for whole recordings."""

    @property
    def backbone(self) -> BackboneIdentity | None:
        """The network that describes pictures; None where there are none."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, which `read_feature_params` reads back."""

    def with_windows(self, windows: Windows) -> FeatureParams:
        """Describe other windows in the same way."""

    def extractor(self, engine_of: Callable[[BackboneIdentity], FeatureEngine]) -> FeatureExtractor:
        """Make what computes these features; `engine_of` gives the network if there is one."""


def read_feature_params(values: dict[str, Any]) -> FeatureParams:
    """Build a kind's parameters from its plain values, whichever kind it is."""
    from toptune.features.burst_features import KIND, BurstFeatureParams
    from toptune.features.picture_features import PictureFeatureParams

    if values.get("kind") == KIND:
        return BurstFeatureParams.from_json(values)
    return PictureFeatureParams.from_json(values)


def start_features(
    drawers: Drawers, extractors: Sequence[FeatureExtractor], stage: StageReporter
) -> list[PendingFeatures]:
    """Start to compute several kinds of features of a recording, in one pass over its spikes.

    The spikes are put into bins once for each device and length of bin. On CUDA all work is only
    queued, one kind behind the other: each kind's features come down while the next is computed,
    and another recording may be started before the results are asked for. On the CPU nearly all is
    done when this returns; pictures of several kinds that share an engine share its batches.

    Parameters
    ----------
    drawers
        The recording's spikes.
    extractors
        Of each kind; they may share engines.
    stage
        Told now and then what is done and how much of it, over all kinds; on CUDA windows count as
        done when their work is queued.

    Returns
    -------
    list of PendingFeatures
        In the order of `extractors`.
    """
    total: Counter[str] = Counter()
    for extractor in extractors:
        total[extractor.stage] += extractor.n_steps(drawers.trains)
    done: Counter[str] = Counter()

    def count(name: str, more: int) -> None:
        done[name] += more
        stage(name, done[name], total[name])

    return [extractor.start(drawers, partial(count, extractor.stage)) for extractor in extractors]


def extract_features(
    trains: SpikeTrains, extractors: Sequence[FeatureExtractor], stage: StageReporter = unwatched
) -> list[FeatureRows]:
    """Compute several kinds of features of a recording, and wait: see `start_features`."""
    from toptune.pictures.drawers import Drawers

    return [pending.result() for pending in start_features(Drawers(trains), extractors, stage)]
