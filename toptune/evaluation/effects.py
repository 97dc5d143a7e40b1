"""By which parameters classes differ: effect sizes over devices, with intervals and p-values.

A device counts once for each of its labels, with the mean of its recordings: recordings of one
culture are no independent samples. Each class is compared with all others together; two classes are
compared once. Nothing here is used to train or to score a classifier.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import false_discovery_control, mannwhitneyu, rankdata, wilcoxon

Floats = NDArray[np.float64]

#: Share of false discoveries among the parameters that are said to differ.
ALPHA = 0.05
# Of a class, or of those against it: fewer values say nothing.
_FEWEST = 2
# Exact as long as there are no more ways to shuffle; otherwise so many random shuffles.
_N_SHUFFLES = 20_000
_SEED = 0
# Above so many pairs of values the normal approximation of Mann and Whitney's test is exact enough.
_EXACT_PAIRS = 10_000
_EXACT_DIFFERENCES = 50


@dataclass(frozen=True, eq=False, kw_only=True)
class ParameterValues:
    """Parameters of recordings, or of devices, one row each."""

    names: tuple[str, ...]  # (p,): of the parameters
    values: Floats  # (n, p): in the parameters' units; NaN where one is not defined
    device: NDArray[Any]  # (n,) str
    label: NDArray[Any]  # (n,) str: the class of each row
    classes: tuple[str, ...]  # in the order in which they are shown
    # Further columns of the devices file, (n,) str each; empty where a row has no value.
    columns: Mapping[str, NDArray[Any]]

    def per_device(self) -> ParameterValues:
        """Average the rows of each device and label, in the order of their first appearance.

        A parameter is the mean of the rows in which it is defined. A column's value is kept where
        all rows of the device and label agree.
        """
        units = list(zip(self.device.tolist(), self.label.tolist(), strict=True))
        rows_of: dict[tuple[str, str], list[int]] = {}
        for row, unit in enumerate(units):
            rows_of.setdefault(unit, []).append(row)
        first = [rows[0] for rows in rows_of.values()]
        means = [_mean_of_known(self.values[rows]) for rows in rows_of.values()]
        columns = {
            name: np.array([_same(column[rows]) for rows in rows_of.values()], dtype=str)
            for name, column in self.columns.items()
        }
        return replace(
            self,
            values=np.array(means).reshape(len(first), len(self.names)),
            device=self.device[first],
            label=self.label[first],
            columns=columns,
        )

    def by(self, column: str) -> ParameterValues:
        """Take a further column as the classes; rows without a value are left out."""
        labels = self.columns[column]
        kept = labels != ""
        return replace(
            self,
            values=self.values[kept],
            device=self.device[kept],
            label=labels[kept],
            classes=tuple(dict.fromkeys(labels[kept].tolist())),
            columns={name: values[kept] for name, values in self.columns.items()},
        )

    def column(self, parameter: str) -> Floats:
        """Values of one parameter, (n,)."""
        return self.values[:, self.names.index(parameter)]


class Effect(NamedTuple):
    """By how much one parameter differs between a class and what it is compared with."""

    parameter: str
    # Cliff's delta, -1 to 1: how much more often a value of the class is the larger one of a pair
    # than the smaller one. NaN where fewer than two values are known on a side.
    delta: float
    low: float  # its confidence interval, which allows for the number of parameters
    high: float
    p: float  # of a test of this parameter alone
    p_adjusted: float  # allowing for the number of parameters and comparisons
    n: tuple[int, int]  # devices with a value: of the class, of the others
    median: tuple[float, float]  # of the class, of the others

    @property
    def detectable(self) -> bool:
        """Whether a difference is shown, at a false discovery rate of 5 %."""
        return self.p_adjusted <= ALPHA


class Contrast(NamedTuple):
    """A class beside the others."""

    label: str
    against: str  # the first class where there are two; otherwise "the others"
    paired: bool  # every device has both labels, and is compared with itself
    effects: tuple[Effect, ...]  # one a parameter, in the order of the parameters

    def ranked(self) -> tuple[Effect, ...]:
        """Those that are defined, the largest difference first, of equals the smaller p first."""
        known = [one for one in self.effects if not math.isnan(one.delta)]
        return tuple(sorted(known, key=lambda one: (-abs(one.delta), one.p)))


@dataclass(frozen=True, eq=False, kw_only=True)
class Effects:
    """All comparisons between the classes of some devices."""

    devices: ParameterValues  # a row a device and label
    contrasts: tuple[Contrast, ...]  # one for two classes, otherwise one a class
    confidence: float  # of each interval, 0.95 to just below 1; see `effect_sizes`

    @property
    def n_tests(self) -> int:
        """How many tests were adjusted for each other."""
        return sum(not math.isnan(e.p) for one in self.contrasts for e in one.effects)

    @property
    def detectable(self) -> tuple[str, ...]:
        """Parameters in which a difference is shown in some comparison, largest effect first."""
        shown = {e.parameter for one in self.contrasts for e in one.effects if e.detectable}
        return tuple(name for name in self.ranked() if name in shown)

    def ranked(self) -> tuple[str, ...]:
        """Parameters by the largest effect in any comparison; those without one are left out."""
        best: dict[str, tuple[float, float]] = {}
        for effect in (e for one in self.contrasts for e in one.ranked()):
            key = (-abs(effect.delta), effect.p)
            best[effect.parameter] = min(best.get(effect.parameter, key), key)
        return tuple(sorted(best, key=lambda name: best[name]))

    def largest(self, parameter: str) -> tuple[Contrast, Effect]:
        """Find the comparison in which a parameter differs most."""
        row = self.devices.names.index(parameter)
        known = [one for one in self.contrasts if not math.isnan(one.effects[row].delta)]
        best = max(known, key=lambda one: abs(one.effects[row].delta))
        return best, best.effects[row]


def effect_sizes(values: ParameterValues) -> Effects:
    """Compare each class with all others, or the second of two with the first, in each parameter.

    - Effect: Cliff's delta (Cliff 1993, Psychol. Bull. 114:494-509), the share of pairs of a
      device of the class and another one in which the first has the larger value, minus the share
      in which it has the smaller one. It equals the rank-biserial correlation (Wendt 1972, Eur. J.
      Soc. Psychol. 2:463-465), ``2 U / (m n) - 1`` of Mann and Whitney's U.
    - Interval: method 5 of Newcombe 2006 (Stat. Med. 25:559-573), the values of theta = (delta + 1)
      / 2 that solve ``(theta - estimate)^2 = z^2 V(theta)`` with ``V = theta (1 - theta) (1 + N
      ((1 - theta) / (2 - theta) + theta / (1 + theta))) / (m n)`` and ``N = (m + n) / 2 - 1``.
    - p-value: Mann and Whitney's exact test; where values are tied, a permutation test of the sum
      of mid-ranks, exact up to 20,000 shuffles and otherwise with as many random ones.
    - Where every device has both labels, as before and after a drug, it is compared with itself:
      delta is the share of devices with the larger value under the label minus the share with the
      smaller one (Cliff's within-device delta), its interval Wilson's, and the p-value that of
      Wilcoxon's signed-rank test. Devices that have both labels where others do not count as if
      they were independent, which is conservative where a device's values resemble each other.
    - Many parameters: p-values of all parameters and comparisons together are adjusted after
      Benjamini and Hochberg (1995, J. R. Stat. Soc. B 57:289-300), which holds for parameters that
      rise and fall together (Benjamini & Yekutieli 2001). The intervals have the confidence ``1 -
      0.05 max(R, 1) / t``, where R of the t tests stay below 0.05 after that (Benjamini &
      Yekutieli 2005, J. Am. Stat. Assoc. 100:71-81): of the intervals of parameters that are said
      to differ, at most 5 % are expected to miss.

    Parameters
    ----------
    values : ParameterValues
        Of recordings; the rows of a device and label are averaged first.

    Returns
    -------
    Effects
        Without a comparison where there are fewer than two classes.
    """
    devices = values.per_device()
    classes = [name for name in devices.classes if np.any(devices.label == name)]
    # The first of two is as a rule what the second is to be compared with, such as a control.
    compared = classes if len(classes) > 2 else classes[1:]
    against = classes[0] if len(classes) == 2 else "the others"
    sides = [_sides(devices, name) for name in compared]
    tests = [_tests(side) for side in sides]
    p = np.array([[one.p for one in mine] for mine in tests], dtype=np.float64)
    known = ~np.isnan(p)
    adjusted = np.full(p.shape, math.nan)
    if known.any():
        adjusted[known] = false_discovery_control(p[known], method="bh")
    n_tests, n_shown = int(known.sum()), int((adjusted[known] <= ALPHA).sum())
    confidence = 1 - ALPHA * max(n_shown, 1) / max(n_tests, 1)
    contrasts = tuple(
        Contrast(
            name,
            against,
            side.paired,
            tuple(
                one.effect(parameter, float(q), confidence)
                for parameter, one, q in zip(devices.names, mine, qs, strict=True)
            ),
        )
        for name, side, mine, qs in zip(compared, sides, tests, adjusted, strict=True)
    )
    return Effects(devices=devices, contrasts=contrasts, confidence=confidence)


def cliffs_delta(first: Floats, second: Floats) -> float:
    """Share of pairs in which the first value is larger, minus the share in which it is smaller.

    Cliff 1993, Psychol. Bull. 114:494-509. NaN where a side has no value.

    Parameters
    ----------
    first, second : (m,) and (n,) float64
        Without NaN.
    """
    if not len(first) or not len(second):
        return math.nan
    return float(np.sign(first[:, None] - second[None, :]).mean())


def delta_interval(delta: float, n: tuple[int, int], confidence: float) -> tuple[float, float]:
    """Confidence interval of Cliff's delta of independent values; see `effect_sizes`.

    Parameters
    ----------
    delta : float
        -1 to 1.
    n : tuple of int
        How many values there are on both sides.
    confidence : float
        Such as 0.95.
    """
    z, estimate = _z(confidence), (delta + 1) / 2
    pairs, mean = n[0] * n[1], (n[0] + n[1]) / 2 - 1

    def excess(theta: float) -> float:
        skew = (1 - theta) / (2 - theta) + theta / (1 + theta)
        variance = theta * (1 - theta) * (1 + mean * skew) / pairs
        return (theta - estimate) ** 2 - z**2 * variance

    low, high = _root(excess, estimate, 0.0), _root(excess, estimate, 1.0)
    return 2 * low - 1, 2 * high - 1


def _root(excess: Any, inside: float, outside: float) -> float:
    """Where a function that is at most 0 at `inside` and at least 0 at `outside` crosses 0."""
    if inside == outside:
        return outside
    for _ in range(60):
        middle = (inside + outside) / 2
        if excess(middle) < 0:
            inside = middle
        else:
            outside = middle
    return outside


def _z(confidence: float) -> float:
    return float(ndtri(0.5 + confidence / 2))


# --- one class against the others


class _Sides(NamedTuple):
    """Values of a class and of the others, (m, p) and (n, p); paired, row by row of a device."""

    first: Floats
    second: Floats
    paired: bool


def _sides(devices: ParameterValues, name: str) -> _Sides:
    mine = devices.label == name
    first, second = set(devices.device[mine].tolist()), set(devices.device[~mine].tolist())
    if first == second:
        order = sorted(first)
        parts = [
            np.array([_mean_of_known(devices.values[side & (devices.device == d)]) for d in order])
            for side in (mine, ~mine)
        ]
        return _Sides(parts[0], parts[1], True)
    # A device with several other labels counts once.
    others = replace(
        devices,
        values=devices.values[~mine],
        device=devices.device[~mine],
        label=np.full(int((~mine).sum()), "others"),
        columns={},
    ).per_device()
    return _Sides(devices.values[mine], others.values, False)


class _Test(NamedTuple):
    """What is known of one parameter before others are taken into account."""

    delta: float
    p: float
    n: tuple[int, int]
    median: tuple[float, float]
    paired: bool

    def effect(self, parameter: str, p_adjusted: float, confidence: float) -> Effect:
        low = high = math.nan
        if not math.isnan(self.delta) and self.paired:
            low, high = _paired_interval(self.delta, self.n[0], confidence)
        elif not math.isnan(self.delta):
            low, high = delta_interval(self.delta, self.n, confidence)
        return Effect(parameter, self.delta, low, high, self.p, p_adjusted, self.n, self.median)


def _tests(sides: _Sides) -> list[_Test]:
    return [
        _paired_test(first, second) if sides.paired else _unpaired_test(first, second)
        for first, second in zip(sides.first.T, sides.second.T, strict=True)
    ]


def _unpaired_test(first: Floats, second: Floats) -> _Test:
    first, second = first[~np.isnan(first)], second[~np.isnan(second)]
    n, medians = (len(first), len(second)), (_median(first), _median(second))
    if min(n) < _FEWEST:
        return _Test(math.nan, math.nan, n, medians, False)
    return _Test(cliffs_delta(first, second), mann_whitney_p(first, second), n, medians, False)


def mann_whitney_p(first: Floats, second: Floats) -> float:
    """Two-sided p-value of Mann and Whitney's test; see `effect_sizes`.

    Parameters
    ----------
    first, second : (m,) and (n,) float64
        Without NaN, at least one each.
    """
    both = np.concatenate([first, second])
    if len(np.unique(both)) == len(both):
        method = "exact" if len(first) * len(second) <= _EXACT_PAIRS else "asymptotic"
        return float(mannwhitneyu(first, second, method=method).pvalue)
    ranks = rankdata(both)
    m, total = len(first), len(both)
    expected = ranks.mean() * m
    seen = abs(ranks[:m].sum() - expected)
    away = np.abs(ranks[_shuffles(total, m)].sum(axis=1) - expected)
    return _share(away, seen, exact=math.comb(total, m) <= _N_SHUFFLES)


@lru_cache(maxsize=4)  # the same for all parameters without missing values
def _shuffles(total: int, m: int) -> NDArray[np.int64]:
    """Choose which m of all ranks are on one side: every way, or (20,000, m) at random."""
    if math.comb(total, m) <= _N_SHUFFLES:
        return np.array(list(itertools.combinations(range(total), m)))
    random = np.random.default_rng(_SEED)
    return random.permuted(np.tile(np.arange(total), (_N_SHUFFLES, 1)), axis=1)[:, :m].copy()


def _paired_test(first: Floats, second: Floats) -> _Test:
    known = ~(np.isnan(first) | np.isnan(second))
    first, second = first[known], second[known]
    n, medians = (len(first), len(second)), (_median(first), _median(second))
    if len(first) < _FEWEST:
        return _Test(math.nan, math.nan, n, medians, True)
    difference = first - second
    return _Test(float(np.sign(difference).mean()), signed_rank_p(difference), n, medians, True)


def signed_rank_p(difference: Floats) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test, without differences of 0.

    Parameters
    ----------
    difference : (n,) float64
        Within each device.
    """
    difference = difference[difference != 0]
    n = len(difference)
    if not n:
        return 1.0
    size = np.abs(difference)
    if len(np.unique(size)) == n:
        method = "exact" if n <= _EXACT_DIFFERENCES else "approx"
        return float(wilcoxon(difference, method=method).pvalue)
    ranks = rankdata(size)
    seen = abs(float(np.sign(difference) @ ranks))
    exact = 2**n <= _N_SHUFFLES
    if exact:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=n)))
    else:
        signs = np.random.default_rng(_SEED).choice((-1.0, 1.0), (_N_SHUFFLES, n))
    return _share(np.abs(signs @ ranks), seen, exact=exact)


def _share(shuffled: Floats, seen: float, *, exact: bool) -> float:
    """Share of shuffles that are at least as far away; what was seen is one of random ones."""
    far = int(np.count_nonzero(shuffled >= seen - 1e-9))
    return far / len(shuffled) if exact else (far + 1) / (len(shuffled) + 1)


def _paired_interval(delta: float, n: int, confidence: float) -> tuple[float, float]:
    """Wilson's interval of the share of devices that rise, as a delta; a tie counts half."""
    z, share = _z(confidence), (delta + 1) / 2
    middle = share + z**2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = ((middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    return max(-1.0, 2 * low - 1), min(1.0, 2 * high - 1)


def _median(values: Floats) -> float:
    return float(np.median(values)) if len(values) else math.nan


def _mean_of_known(rows: Floats) -> Floats:
    """Mean of each column's values that are not NaN, (p,); NaN of none."""
    known = ~np.isnan(rows)
    n = known.sum(axis=0)
    sums: Floats = np.where(known, rows, 0.0).sum(axis=0)
    return np.where(n > 0, sums / np.maximum(n, 1), math.nan)


def _same(values: Sequence[str] | NDArray[Any]) -> str:
    several = set(map(str, values))
    return several.pop() if len(several) == 1 else ""
