"""PTSD on the CPU, compiled: block statistics, exact prune and the sequential walk.

float32 samples in microvolts enter, with a mean and a threshold a channel; sample indices and
differential amplitudes leave. The definition is the sequential form of Precision Timing Spike
Detection (Maccione et al. 2009, J. Neurosci. Methods 177:241-249) with Ptsd's rules for ties.

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
def _ordered(bits: np.int32) -> np.int32:
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
        key = _ordered(bits[start + i])
        lo = np.int32(key if key < lo else lo)
        hi = np.int32(key if key > hi else hi)
    return np.int32(_ordered(lo)).view(np.float32), np.int32(_ordered(hi)).view(np.float32)


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
    return _spans(lo, hi, mean, threshold)


@numba.njit(nogil=True, cache=True)
def _spans(lo: np.float32, hi: np.float32, mean: np.float32, threshold: np.float32) -> bool:
    """Tell whether two samples in [lo, hi] may differ by the threshold once the mean is off."""
    slack = _SLACK * (abs(lo) + abs(hi) + abs(mean))
    return bool(hi - lo + slack >= threshold)


@numba.njit(nogil=True, cache=True)
def _first_extreme(
    x: NDArray[np.float32], p: int, last: int, mean: np.float32, sign: np.float32
) -> int:
    """Offset of the first largest ``sign * (x - mean)`` among p .. p+last."""
    best = 0
    top = sign * (x[p] - mean)
    for k in range(1, last + 1):
        v = sign * (x[p + k] - mean)
        if v > top:  # strict: of equal samples the first wins
            top = v
            best = k
    return best


@numba.njit(nogil=True, cache=True)
def _peaks(
    x: NDArray[np.float32], p: int, left: int, mean: np.float32, lifetime: int, overshoot: int
) -> tuple[int, int]:
    """Offsets of start peak and opposite, from a peak at x[p] with `left` samples behind it."""
    window = min(lifetime, left)
    up = np.float32(1.0) if x[p] - mean > 0 else np.float32(-1.0)
    e = _first_extreme(x, p, window, mean, -up)
    s = _first_extreme(x, p, e, mean, up)
    # On the window's edge the opposite peak may go on; the start peak is not looked for again.
    if e == window and window + overshoot <= left:
        e = _first_extreme(x, p, window + overshoot, mean, -up)
    return s, e


@numba.njit(nogil=True, cache=True)
def _tails(
    x: NDArray[np.float32], tail_low: NDArray[np.float32], tail_high: NDArray[np.float32]
) -> None:
    """Minimum and maximum of x[i:] for every i."""
    last = x.size - 1
    tail_low[last] = tail_high[last] = x[last]
    for i in range(last - 1, -1, -1):
        tail_low[i] = min(tail_low[i + 1], x[i])
        tail_high[i] = max(tail_high[i + 1], x[i])


@numba.njit(nogil=True, cache=True)
def walk_block(
    x: NDArray[np.float32],
    shift: int,
    n: int,
    begin: int,
    end: int,
    mean: np.float32,
    threshold: np.float32,
    lifetime: int,
    refractory: int,
    overshoot: int,
    negative: bool,
    state: NDArray[np.int64],
    found_sample: NDArray[np.int64],
    found_uv: NDArray[np.float32],
    tail_low: NDArray[np.float32],
    tail_high: NDArray[np.float32],
) -> bool:
    """Walk samples [begin, end) of a stretch of n samples, at most `FINE` of them.

    `x[i - shift]` is sample i; everything from begin-1 to end+reach must be in x. ``state`` is
    (next sample to look at, spikes found). tail_low, tail_high : (FINE,) scratch. Returns False
    when the found arrays are full: make them larger and call again, nothing is lost.
    """
    c = max(state[0], begin)
    k = state[1]
    last = min(end, n - 1)
    if c >= last:
        return True
    beyond = min(end, n)
    _tails(x[begin - shift : beyond - shift], tail_low, tail_high)
    beyond_low = beyond_high = x[beyond - 1 - shift]
    while c < last:
        p = c - shift
        size = abs(x[p] - mean)
        if not (size > abs(x[p - 1] - mean) and size >= abs(x[p + 1] - mean)):
            c += 1
            continue
        # The prune once more, for this candidate: most peaks are noise, and running extremes settle
        # them faster than the search for first extremes, whose branches nobody can predict.
        while beyond <= min(c + lifetime + overshoot, n - 1):
            beyond_low = min(beyond_low, x[beyond - shift])
            beyond_high = max(beyond_high, x[beyond - shift])
            beyond += 1
        lo = min(tail_low[c - begin], beyond_low)
        hi = max(tail_high[c - begin], beyond_high)
        if not _spans(lo, hi, mean, threshold):
            c += 1
            continue
        if k == found_sample.size:
            state[0], state[1] = c, k
            return False
        s, e = _peaks(x, p, n - 1 - c, mean, lifetime, overshoot)
        xs = x[p + s] - mean
        xe = x[p + e] - mean
        d = abs(xs - xe)
        if d < threshold:
            c += 1
            continue
        # A tie of absolute values goes to the later peak.
        start_dates = xs < xe if negative else abs(xs) > abs(xe)
        ts = c + s if start_dates else c + e
        found_sample[k] = ts
        found_uv[k] = d
        k += 1
        c = ts + refractory if (ts + refractory > c + e and ts + refractory < n) else c + e + 1
    state[0], state[1] = max(c, state[0]), k
    return True


@numba.njit(nogil=True, cache=True)
def walk_row(
    x: NDArray[np.float32],
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    mean: np.float32,
    threshold: np.float32,
    lifetime: int,
    refractory: int,
    overshoot: int,
    negative: bool,
    state: NDArray[np.int64],
    found_sample: NDArray[np.int64],
    found_uv: NDArray[np.float32],
) -> bool:
    """Walk a whole stretch held in memory, skipping blocks that cannot hold a spike."""
    ahead = blocks_ahead(lifetime, overshoot, BLOCK)
    fine_ahead = blocks_ahead(lifetime, overshoot, FINE)
    fine_low = np.empty(BLOCK // FINE + fine_ahead, np.float32)
    fine_high = np.empty_like(fine_low)
    tail_low, tail_high = np.empty(FINE, np.float32), np.empty(FINE, np.float32)
    for b in range(state[0] // BLOCK, low.size):
        if (b + 1) * BLOCK <= state[0]:
            continue
        if not may_hold_spike(low, high, b, ahead, mean, threshold):
            continue
        first = b * (BLOCK // FINE)
        known = _fine_extremes(x, first, first + fine_low.size, fine_low, fine_high)
        for f in range(min(BLOCK // FINE, known)):
            if not may_hold_spike(
                fine_low[:known], fine_high[:known], f, fine_ahead, mean, threshold
            ):
                continue
            begin = max((first + f) * FINE, 1)
            end = (first + f + 1) * FINE
            if not walk_block(
                x, 0, x.size, begin, end, mean, threshold, lifetime, refractory, overshoot,
                negative, state, found_sample, found_uv, tail_low, tail_high,
            ):  # fmt: skip
                return False
    return True


@numba.njit(nogil=True, cache=True)
def walk_kept(
    ids: NDArray[np.int64],
    kept: NDArray[np.float32],
    stop: int,
    n: int,
    mean: np.float32,
    threshold: np.float32,
    lifetime: int,
    refractory: int,
    overshoot: int,
    negative: bool,
    state: NDArray[np.int64],
    found_sample: NDArray[np.int64],
    found_uv: NDArray[np.float32],
) -> bool:
    """Walk the fine blocks that `keep_blocks` kept of a stretch of n samples, up to block `stop`.

    ids : (k,) ascending block numbers; kept : (k * FINE,) their samples. A block is walked where
    its neighbours are there too: `keep_blocks` keeps those of every block that may hold a spike.
    """
    ahead = blocks_ahead(lifetime, overshoot, FINE)
    last_block = -(-n // FINE) - 1
    tail_low, tail_high = np.empty(FINE, np.float32), np.empty(FINE, np.float32)
    for i in range(ids.size):
        b = ids[i]
        if b >= stop:
            break
        if (b + 1) * FINE <= state[0]:
            continue
        if b > 0 and (i == 0 or ids[i - 1] != b - 1):
            continue
        behind = min(ahead, last_block - b)
        if i + behind >= ids.size or ids[i + behind] != b + behind:
            continue
        begin = max(b * FINE, 1)
        end = (b + 1) * FINE
        if not walk_block(
            kept, (b - i) * FINE, n, begin, end, mean, threshold, lifetime, refractory, overshoot,
            negative, state, found_sample, found_uv, tail_low, tail_high,
        ):  # fmt: skip
            return False
    return True


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
