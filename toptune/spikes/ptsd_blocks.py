"""PTSD's block statistics and exact prune, compiled.

float32 samples in microvolts enter, with a mean and a threshold a channel; extremes and sums of
blocks leave, and the stretches that may hold a spike. `toptune.spikes.ptsd_compiled` finds the
spikes in them.

Exact prune: a candidate at sample c sees nothing beyond c + reach (lifetime plus overshoot) and is
accepted only if two samples there differ by the threshold. So a block of samples whose maximum and
minimum, taken over the block and its reach, differ by less holds no spike, and is skipped. Rejected
candidates do not change the walk's only state, the next sample to look at.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

# Samples a block: long enough that the statistics run at memory speed, short enough that a spike
# costs little more than its own neighbourhood (measured: 64 is 40 % slower, 256 no faster).
BLOCK = 128

# Inside a block that may hold a spike the same prune works again on fine blocks: what is walked,
# and what streaming keeps, is then little more than the spikes themselves.
FINE = 16

# Relative slack of the prune: it compares samples before the mean is taken off, in float32.
_SLACK = np.float32(4e-7)

_MAGNITUDE = np.int32(0x7FFFFFFF)


@numba.njit(nogil=True, cache=True)
def blocks_ahead(lifetime: int, overshoot: int, size: int) -> int:
    """Blocks of `size` behind a candidate's own that it reads; at least the next sample's."""
    return max(1, -(-(lifetime + overshoot) // size))


@numba.njit(nogil=True, inline="always")
def ordered(bits: np.int32) -> np.int32:
    """Map a float's bits to an int32 that orders as the float does; its own inverse."""
    return np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & _MAGNITUDE))


@numba.njit(nogil=True, inline="always")
def _extremes(bits: NDArray[np.int32], start: int, count: int) -> tuple[np.float32, np.float32]:
    """Minimum and maximum of `count` floats whose bits begin at bits[start], none of them NaN.

    Compilers vectorise minima of integers, and not those of floating-point numbers.
    """
    lo = _MAGNITUDE
    hi = np.int32(-0x80000000)
    for i in range(count):
        key = ordered(bits[start + i])
        lo = np.int32(key if key < lo else lo)
        hi = np.int32(key if key > hi else hi)
    return np.int32(ordered(lo)).view(np.float32), np.int32(ordered(hi)).view(np.float32)


@numba.njit(nogil=True, cache=True, fastmath={"reassoc"})
def block_stats(
    x: NDArray[np.float32],
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    total: NDArray[np.float64],
) -> None:
    """Minimum, maximum and sum of each block of `BLOCK` samples; the last block may be short.

    NaN and infinity end up in `total`, which is the same for every chunking: blocks start at
    multiples of `BLOCK`, and this one function adds them up.
    """
    bits = x.view(np.int32)
    full = x.size // BLOCK
    for b in range(full):
        start = b * BLOCK
        low[b], high[b] = _extremes(bits, start, BLOCK)
        added = 0.0
        for i in range(BLOCK):
            added += np.float64(x[start + i])
        total[b] = added
    if full < low.size:
        low[full], high[full] = _extremes(bits, full * BLOCK, x.size - full * BLOCK)
        added = 0.0
        for i in range(full * BLOCK, x.size):
            added += np.float64(x[i])
        total[full] = added


@numba.njit(nogil=True, cache=True)
def _fine_extremes(
    x: NDArray[np.float32],
    first: int,
    last: int,
    low: NDArray[np.float32],
    high: NDArray[np.float32],
) -> int:
    """Extremes of the fine blocks [first, last) of x, as far as there are any; returns how many."""
    bits = x.view(np.int32)
    last = min(last, -(-x.size // FINE))
    for f in range(first, last):
        start = f * FINE
        if start + FINE <= x.size:
            low[f - first], high[f - first] = _extremes(bits, start, FINE)
        else:
            low[f - first], high[f - first] = _extremes(bits, start, x.size - start)
    return last - first


@numba.njit(nogil=True, cache=True)
def may_hold_spike(
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    b: int,
    reach_blocks: int,
    mean: np.float32,
    threshold: np.float32,
) -> bool:
    """Tell whether the block and its reach span the threshold; False is proof of no spike."""
    lo, hi = low[b], high[b]
    for k in range(b + 1, min(b + reach_blocks + 1, low.size)):
        lo = min(lo, low[k])
        hi = max(hi, high[k])
    return spans(lo, hi, mean, threshold)


@numba.njit(nogil=True, cache=True)
def spans(lo: np.float32, hi: np.float32, mean: np.float32, threshold: np.float32) -> bool:
    """Tell whether two samples in [lo, hi] may differ by the threshold once the mean is off."""
    slack = _SLACK * (abs(lo) + abs(hi) + abs(mean))
    return bool(hi - lo + slack >= threshold)


@numba.njit(nogil=True, cache=True)
def keep_blocks(
    x: NDArray[np.float32],
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    first_fine: int,
    begin: int,
    end: int,
    lifetime: int,
    overshoot: int,
    mean: np.float32,
    threshold: np.float32,
    ids: NDArray[np.int64],
    kept: NDArray[np.float32],
) -> int:
    """Copy out the fine blocks of x that a walk may need; returns how many.

    x starts with fine block `first_fine` of the stretch, and low and high are its blocks' extremes.
    Decided are its blocks [begin, end); the others are context. Kept is every fine block that may
    hold a spike at `threshold` or above, with the one before it and those that its reach enters.
    """
    ahead = blocks_ahead(lifetime, overshoot, BLOCK)
    fine_ahead = blocks_ahead(lifetime, overshoot, FINE)
    n_fine = -(-x.size // FINE)
    per_block = BLOCK // FINE
    fine_low = np.empty(per_block + fine_ahead, np.float32)
    fine_high = np.empty_like(fine_low)
    wanted = np.zeros(n_fine + per_block + fine_ahead, np.bool_)
    for b in range(low.size):
        if not may_hold_spike(low, high, b, ahead, mean, threshold):
            continue
        first = b * per_block
        known = _fine_extremes(x, first, first + fine_low.size, fine_low, fine_high)
        for f in range(min(per_block, known)):
            if may_hold_spike(fine_low[:known], fine_high[:known], f, fine_ahead, mean, threshold):
                wanted[max(first + f - 1, 0) : first + f + fine_ahead + 1] = True
    count = 0
    for f in range(begin * per_block, min(end * per_block, n_fine)):
        if wanted[f]:
            ids[count] = first_fine + f
            size = min(FINE, x.size - f * FINE)
            kept[count * FINE : count * FINE + size] = x[f * FINE : f * FINE + size]
            count += 1
    return count
