"""Permutation test: shuffled labels, accuracies per device under them, and the p-value of a score.

Labels of whole units (a device, or a device and label) are shuffled, never those of windows:
windows of one culture are not independent. Where each device has one label, labels are shuffled
over devices. Where devices have several (a dose series), a device's labels are shuffled among its
own units, since units of one device resemble each other whatever their labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import factorial, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats.contingency import crosstab

from toptune.errors import InputError, ToptuneError

# The usual level of significance; what cannot reach it is said beforehand.
_LEVEL = 0.05

# Statistics nearer than this, relative to 1 or to themselves, are equal: a share that is added up
# in another order must not count as a smaller one.
_TIE = 1e-9


@dataclass(frozen=True)
class Permutations:
    """Shuffled labels, and how many ways there are to shuffle."""

    labels: NDArray[np.int64]  # (n, u): a row a shuffle, a column a unit
    n_arrangements: int  # distinct ways in which the labels may fall, the observed one included
    # Of these, ways that only rename classes, the observed one included: whatever holds classes
    # apart gets the same accuracy on them
    n_renamings: int
    # `labels` are all arrangements but the observed one, each once, and not random draws
    exact: bool

    @property
    def smallest_p(self) -> float:
        """No p-value below this can be expected, however well the classes are told apart."""
        return max(1 / (1 + len(self.labels)), self.n_renamings / self.n_arrangements)

    @property
    def problem(self) -> str | None:
        """What a user should know of a test that cannot become significant; None of others."""
        if self.smallest_p <= _LEVEL:
            return None
        if self.n_renamings / self.n_arrangements <= _LEVEL:
            return (
                f"{len(self.labels)} permutations cannot give a p-value below"
                f" {self.smallest_p:.2g}: ask for more"
            )
        return (
            f"labels can fall in {self.n_arrangements} ways only, of which {self.n_renamings}"
            f" just rename classes, so no p-value below {self.smallest_p:.2g} can be reached: it"
            " needs more devices, or fewer and larger strata"
        )


def strata_of_units(
    unit: NDArray[np.int64], values: NDArray[Any], devices: NDArray[Any]
) -> NDArray[Any]:
    """Give each unit the stratum, (u,) str, that its windows have; two are an InputError.

    `unit` and `values`, (n,), are unit and stratum of each window, `devices`, (u,), of each unit.
    """
    _, first = np.unique(unit, return_index=True)
    strata: NDArray[Any] = values[first]
    other = np.flatnonzero(values != strata[unit])
    if len(other):
        row = other[0]
        raise InputError(
            f"device {devices[unit[row]]} is in the strata {strata[unit[row]]} and {values[row]}:"
            " all recordings of a device and label must be in one"
        )
    return strata


def exchangeable_blocks(
    devices: NDArray[Any], strata: NDArray[Any] | None = None
) -> NDArray[np.int64]:
    """Find which units may exchange their labels.

    Units of devices that have one unit each form one block, or one a stratum. The units of a device
    that has several form a block of their own, or one a stratum. Both are those of each unit, (u,)
    str; where labels and, say, batches are not independent by design, strata must be the batches.

    It is an InputError if some devices have several labels, some one, and there are no strata.
    Within and between devices are different questions; naming strata, if only one for all, says
    that both are meant to be asked at once.
    """
    names, code, sizes = np.unique(devices, return_inverse=True, return_counts=True)
    if strata is None:
        if sizes.min() == 1 and sizes.max() > 1:
            several, one = names[sizes > 1][0], names[sizes == 1][0]
            raise InputError(
                f"cannot shuffle labels: device {several} has several labels and device {one} one;"
                " fit the two kinds of devices apart, or name a column of the devices file as"
                " strata within which labels may be shuffled"
            )
        strata = np.zeros(len(devices), dtype=np.int64)
    stratum = np.unique(strata, return_inverse=True)[1]
    # -1 stands for all devices of one unit.
    own = np.where(sizes[code] > 1, code, -1)
    pairs = (own + 1) * (stratum.max() + 1) + stratum
    return np.unique(pairs, return_inverse=True)[1].astype(np.int64)


def permuted_labels(
    unit_codes: NDArray[np.int64], blocks: NDArray[np.int64] | None, n: int, seed: int
) -> Permutations:
    """Shuffle the labels of units within blocks.

    Where there are no more than `n` distinct arrangements besides the observed one, those are
    given, each once, and the p-value is exact; else `n` independent uniform draws, among which the
    observed one and repetitions may be, as the +1 of `p_value` asks (Phipson & Smyth 2010).
    `unit_codes`, (u,), are the units' classes; without blocks, (u,), all may exchange labels.
    """
    if n < 1:
        raise InputError(f"permutations must be 1 or more, got {n}")
    blocks = np.zeros(len(unit_codes), dtype=np.int64) if blocks is None else blocks
    counts = crosstab(blocks, unit_codes).count  # units of each class in each block
    n_arrangements = prod(
        factorial(sum(row)) // prod(factorial(count) for count in row) for row in counts.tolist()
    )
    _, alike = np.unique(counts, axis=1, return_counts=True)
    n_renamings = prod(factorial(count) for count in alike.tolist())
    exact = n_arrangements - 1 <= n
    draw = _all_but_observed(unit_codes, blocks) if exact else _draws(unit_codes, blocks, n, seed)
    return Permutations(draw, n_arrangements, n_renamings, exact)


def _draws(
    codes: NDArray[np.int64], blocks: NDArray[np.int64], n: int, seed: int
) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    drawn = np.tile(codes, (n, 1))
    for block in np.unique(blocks):
        columns = np.flatnonzero(blocks == block)
        drawn[:, columns] = rng.permuted(drawn[:, columns], axis=1)
    return drawn


def _all_but_observed(codes: NDArray[np.int64], blocks: NDArray[np.int64]) -> NDArray[np.int64]:
    columns = [np.flatnonzero(blocks == block) for block in np.unique(blocks)]
    ways = [list(_arrangements(codes[own].tolist())) for own in columns]
    rows = [[code for part in parts for code in part] for parts in product(*ways)]
    every = np.empty((len(rows), len(codes)), dtype=np.int64)
    every[:, np.concatenate(columns)] = rows
    others: NDArray[np.int64] = every[(every != codes).any(axis=1)]
    return others


def _arrangements(values: list[int]) -> Iterator[tuple[int, ...]]:
    """Every distinct order of values, the next in the dictionary's order after the other."""
    a = sorted(values)
    while True:
        yield tuple(a)
        rising = [i for i in range(len(a) - 1) if a[i] < a[i + 1]]
        if not rising:
            return
        i = rising[-1]
        j = max(j for j in range(i + 1, len(a)) if a[j] > a[i])
        a[i], a[j] = a[j], a[i]
        a[i + 1 :] = a[:i:-1]


def device_accuracies(
    predicted: NDArray[np.integer[Any]],
    labels: NDArray[np.int64],
    unit: NDArray[np.int64],
    n_classes: int,
    mean_scores: NDArray[np.floating[Any]] | None = None,
) -> NDArray[np.float64]:
    """Share of units that are classified correctly by most of their windows, for each shuffle.

    `predicted`, (r, n), are classes of windows by classifiers trained on each of r sets of labels,
    (r, u); `unit`, (n,), is the unit of each window, 0 to u - 1. Of classes with equally many
    windows the one with the larger mean score, (r, u, k), is named, as in `device_verdicts`, and of
    those still equal, or without means, the first. The observed labels' accuracy must come from
    here too, with or without means like the others.
    """
    n_units = labels.shape[1]
    if predicted.shape != (len(labels), len(unit)):
        raise ToptuneError(
            f"predictions of shape {predicted.shape} are not those of {len(labels)} sets of labels"
            f" and {len(unit)} windows"
        )
    votes = np.empty((len(labels), n_units, n_classes), dtype=np.int32)
    place = unit * n_classes
    # A row at a time: its votes stay in the cache, and no array of r x n places is made.
    for row, of_set in enumerate(predicted):
        counts = np.bincount(place + of_set, minlength=n_units * n_classes)
        votes[row] = counts.reshape(n_units, n_classes)
    most = votes == votes.max(axis=2, keepdims=True)
    means = 0.0 if mean_scores is None else mean_scores
    named = np.where(most, means, -np.inf).argmax(axis=2)
    accuracies: NDArray[np.float64] = (named == labels).mean(axis=1)
    return accuracies


def p_value(statistic: float, permuted: NDArray[np.float64]) -> float:
    """Share of shuffles that score as well, the observed labels counted as one of them.

    ``(1 + number of permuted >= statistic) / (1 + number of permuted)`` (Phipson & Smyth 2010,
    Permutation p-values should never be zero, Stat. Appl. Genet. Mol. Biol. 9:39). It is valid
    where everything that used labels, tuning too, was done anew with each set of shuffled labels.
    """
    if not (np.isfinite(statistic) and np.isfinite(permuted).all()):
        raise ToptuneError("a permutation's score is NaN or infinite")
    tie = _TIE * max(1.0, abs(statistic))
    as_good = int(np.count_nonzero(permuted >= statistic - tie))
    return (1 + as_good) / (1 + len(permuted))
