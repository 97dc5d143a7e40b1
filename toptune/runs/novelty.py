"""Whether a recording is unlike those of training, so that its verdict is an extrapolation.

A window is as near to training as the largest value of the model's kernel between it and
reference rows of the training windows (1 at the same place, towards 0 far away). How near windows
of a new device usually come is learnt by leaving devices out: each training window is compared with
the reference rows of all other devices, never with those of its own. 99 in 100 of them come nearer
than the limit. This is the distance to the nearest neighbour as a score of novelty (Knorr, Ng &
Tucakov 2000, VLDB J. 8:237-253), in the kernel's feature space, where the squared distance of two
points is 2 - 2 k (Schoelkopf 2000, NIPS 13). Mean firing rate, number of electrodes and sampling
rate are compared as well.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.errors import ToptuneError
from toptune.heads.falkon.kernel import Nearness
from toptune.heads.rows import in_equal_blocks
from toptune.machine.display import count, one_or
from toptune.recordings.trains import RecordingFacts

# At 1,280 features 10 MB in float32, and a second for all windows of a usual data set.
MAX_REFERENCE = 2_000
# Windows of a left-out device that may lie further away than the limit.
SHARE_BEYOND = 0.01
# A recording is unlike training where more than this share of its windows is.
SHARE_OF_WINDOWS = 0.5
# How far beyond the range of training a recording's mean firing rate may lie.
RATE_FACTOR = 1.5


class Range(NamedTuple):
    """The smallest and the largest value in training."""

    low: float
    high: float


@dataclass(frozen=True, eq=False, kw_only=True)
class NoveltyLimits:
    """What the training recordings of a model have in common."""

    nearness: Nearness  # the kernel
    reference: NDArray[np.float32]  # (m, d): training windows, as the backbone gave them
    least_nearness: float  # a window is unlike training below it
    electrode_rate_hz: Range  # spikes/s per electrode, means of whole recordings
    n_electrodes: Range
    sampling_rates_hz: tuple[float, ...]  # all that occurred in training, ascending

    @cached_property
    def _nearness_of(self) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
        return self.nearness.to_rows(self.reference)

    def nearness_of(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """How near each window, (n, d), is to those of training, (n,)."""
        return in_equal_blocks(self._nearness_of, features)

    def to_json(self) -> dict[str, Any]:
        """Plain values of all but the reference rows."""
        return {
            "nearness": self.nearness.to_json(),
            "least_nearness": self.least_nearness,
            "electrode_rate_hz": list(self.electrode_rate_hz),
            "n_electrodes": list(self.n_electrodes),
            "sampling_rates_hz": list(self.sampling_rates_hz),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any], reference: NDArray[np.float32]) -> NoveltyLimits:
        """Build from what `to_json` gave and the reference rows; what does not fit is an error."""
        parts = {
            "nearness": Nearness.from_json(values["nearness"]),
            "electrode_rate_hz": Range(*map(float, values["electrode_rate_hz"])),
            "n_electrodes": Range(*values["n_electrodes"]),
            "sampling_rates_hz": tuple(map(float, values["sampling_rates_hz"])),
        }
        if not isinstance(values["least_nearness"], int | float):
            raise ValueError(f"least_nearness is {values['least_nearness']!r:.80}, no number")
        limits = cls(reference=reference, **{**values, **parts})
        if reference.ndim != 2 or reference.shape[1] != sum(limits.nearness.kernel.view_sizes):
            raise ValueError(f"reference rows of shape {reference.shape} do not fit the kernel")
        return limits


@dataclass(frozen=True, eq=False)
class Novelty:
    """How far a recording lies outside training."""

    nearness: NDArray[np.float64]  # (n,): of each window
    unlike: NDArray[np.bool_]  # (n,): windows further away than the limit
    unlike_training: bool  # the recording as a whole is: by its windows or by its rate
    warnings: tuple[str, ...]  # one line each, all that is out of the ordinary


def training_limits(
    features: NDArray[np.float32],
    device: NDArray[Any],
    recordings: Sequence[RecordingFacts],
    nearness: Nearness,
    *,
    max_reference: int = MAX_REFERENCE,
) -> NoveltyLimits:
    """Learn from the training data what its recordings have in common.

    `features`, (n, d), are those of all training windows. `device`, (n,) str or int, is where each
    was recorded: what is compared with other devices' rows only, or the batch where batches of
    devices are left out together. At most `max_reference` rows are kept, spread evenly over the
    devices. It is a ToptuneError if there are fewer than two devices, or no recordings.
    """
    names, codes = np.unique(device, return_inverse=True)
    if len(names) < 2 or not recordings:
        raise ToptuneError(
            f"limits of novelty need two devices and their recordings, got {len(names)} and"
            f" {len(recordings)}"
        )
    rows = reference_rows(codes, max_reference)
    nearest = nearness.largest(features, features[rows], (codes, codes[rows]))
    rates = [r.electrode_rate_hz for r in recordings]
    electrodes = [r.n_electrodes for r in recordings]
    return NoveltyLimits(
        nearness=nearness,
        reference=np.ascontiguousarray(features[rows], np.float32),
        least_nearness=float(np.quantile(nearest, SHARE_BEYOND)),
        electrode_rate_hz=Range(min(rates), max(rates)),
        n_electrodes=Range(min(electrodes), max(electrodes)),
        sampling_rates_hz=tuple(sorted({r.sampling_rate_hz for r in recordings})),
    )


def reference_rows(codes: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Choose at most `limit` rows that stand for all: as many of each device, evenly spread.

    `codes`, (n,): device of each row, numbered from 0 without gaps. `limit` is two or more. Gives
    (m,) row numbers, ascending. A device with fewer rows than its share gives all of them, and the
    others more. With more devices than `limit`, one row each of devices spread evenly.
    """
    sizes = np.bincount(codes)
    # The largest share for which the sizes, none above it, do not add up to more than the limit.
    shares = range(int(sizes.max()) + 1)
    share = bisect_right(shares, limit, key=lambda most: int(np.minimum(sizes, most).sum())) - 1
    chosen = np.arange(len(sizes))
    if share == 0:
        chosen, share = _spread(len(sizes), limit), 1
    parts = [np.flatnonzero(codes == code) for code in chosen]
    return np.sort(np.concatenate([part[_spread(len(part), share)] for part in parts]))


def _spread(n: int, wanted: int) -> NDArray[np.int64]:
    """All of n where no more are wanted, else the middles of equal stretches of them."""
    if n <= wanted:
        return np.arange(n)
    return ((2 * np.arange(wanted) + 1) * n) // (2 * wanted)


def judge(features: NDArray[np.float32], facts: RecordingFacts, limits: NoveltyLimits) -> Novelty:
    """Compare a recording, by its windows' features (n, d), with those of training.

    Unlike training is a recording of which more than half the windows are, or whose mean firing
    rate lies outside 1 / 1.5 of the lowest to 1.5 of the highest in training. Another sampling rate
    or number of electrodes is warned of by name alone: windows are cut in seconds, so pictures stay
    comparable, but the filter's effect, a raster's bands and a histogram's sums are not the same.
    """
    return judge_nearness(limits.nearness_of(features), facts, limits)


def judge_nearness(
    nearness: NDArray[np.float64], facts: RecordingFacts, limits: NoveltyLimits
) -> Novelty:
    """Do what `judge` does, given how near to training each window is, (n,)."""
    unlike = nearness < limits.least_nearness
    warnings = []
    far = unlike.mean() > SHARE_OF_WINDOWS
    if far:
        warnings.append(
            f"{np.count_nonzero(unlike)} of {count(len(unlike), 'window')}"
            f" {one_or(len(unlike), 'is', 'are')} unlike any window of the training devices: the"
            " verdict is an extrapolation"
        )
    rate = _rate_warning(facts, limits.electrode_rate_hz)
    warnings += [text for text in (rate, *_setup_warnings(facts, limits)) if text]
    return Novelty(nearness, unlike, bool(far or rate), tuple(warnings))


def _rate_warning(facts: RecordingFacts, seen: Range) -> str | None:
    rate = facts.electrode_rate_hz
    if seen.low / RATE_FACTOR <= rate <= seen.high * RATE_FACTOR:
        return None
    return (
        f"mean firing rate {rate:.3g} spikes/s per electrode, training had {seen.low:.3g} to"
        f" {seen.high:.3g}: more than a factor {RATE_FACTOR:g} outside"
    )


def _setup_warnings(facts: RecordingFacts, limits: NoveltyLimits) -> list[str]:
    warnings = []
    low, high = limits.n_electrodes
    if not low <= facts.n_electrodes <= high:
        seen = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        warnings.append(f"{count(facts.n_electrodes, 'electrode')}, training had {seen}")
    if facts.sampling_rate_hz not in limits.sampling_rates_hz:
        seen = " and ".join(f"{rate:g}" for rate in limits.sampling_rates_hz)
        warnings.append(
            f"sampled at {facts.sampling_rate_hz:g} Hz, training at {seen} Hz: windows are cut in"
            " seconds and comparable, the filter and the detector's times are so only nearly"
        )
    return warnings
