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

# Samples a block: a multiple of the SIMD width, and short enough that a spike costs little more
# than its own neighbourhood.
BLOCK = 64

# Relative slack of the prune: it compares samples before the mean is taken off, in float32.
_SLACK = np.float32(4e-7)


@numba.njit(nogil=True, cache=True)
def blocks_ahead(lifetime: int, overshoot: int) -> int:
    """Blocks behind a candidate's own that its decision reads; at least the next sample's."""
    return max(1, -(-(lifetime + overshoot) // BLOCK))


@numba.njit(nogil=True, cache=True)
def block_stats(
    x: NDArray[np.float32],
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    total: NDArray[np.float64],
) -> None:
    """Minimum, maximum and sum of each block of `BLOCK` samples; the last block may be short.

    The sum has four lanes in a fixed order, so that chunks and the whole give the same bits. NaN
    and infinity end up in `total` (a minimum would lose NaN).
    """
    n = x.size
    for b in range(low.size):
        start = b * BLOCK
        stop = min(start + BLOCK, n)
        lo = x[start]
        hi = x[start]
        if stop - start == BLOCK:
            s0 = s1 = s2 = s3 = 0.0
            for i in range(start, stop, 4):
                s0 += x[i]
                s1 += x[i + 1]
                s2 += x[i + 2]
                s3 += x[i + 3]
            for i in range(start, stop):
                lo = min(lo, x[i])
                hi = max(hi, x[i])
            total[b] = (s0 + s1) + (s2 + s3)
        else:
            rest = 0.0
            for i in range(start, stop):
                rest += x[i]
                lo = min(lo, x[i])
                hi = max(hi, x[i])
            total[b] = rest
        low[b] = lo
        high[b] = hi


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
) -> bool:
    """Walk samples [begin, end) of one block of a stretch of n samples.

    `x[i - shift]` is sample i; everything from begin-1 to end+reach must be in x. ``state`` is
    (next sample to look at, spikes found). Returns False when the found arrays are full: make them
    larger and call again, nothing is lost.
    """
    c = max(state[0], begin)
    k = state[1]
    last = min(end, n - 1)
    while c < last:
        p = c - shift
        v = x[p] - mean
        size = abs(v)
        if not (size > abs(x[p - 1] - mean) and size >= abs(x[p + 1] - mean)):
            c += 1
            continue
        if k == found_sample.size:
            state[0], state[1] = c, k
            return False
        window = min(lifetime, n - 1 - c)
        up = np.float32(1.0) if v > 0 else np.float32(-1.0)
        e = _first_extreme(x, p, window, mean, -up)
        s = _first_extreme(x, p, e, mean, up)
        if e == window and c + window + overshoot < n:
            e = _first_extreme(x, p, window + overshoot, mean, -up)
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
    n = x.size
    reach_blocks = blocks_ahead(lifetime, overshoot)
    for b in range(state[0] // BLOCK, low.size):
        if (b + 1) * BLOCK <= state[0]:
            continue
        if not may_hold_spike(low, high, b, reach_blocks, mean, threshold):
            continue
        begin = max(b * BLOCK, 1)
        end = (b + 1) * BLOCK
        if not walk_block(
            x, 0, n, begin, end, mean, threshold, lifetime, refractory, overshoot, negative,
            state, found_sample, found_uv,
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
    """Walk the blocks that `keep_blocks` kept of a stretch of n samples, up to block `stop`.

    ids : (k,) ascending block numbers; kept : (k * BLOCK,) their samples. A block is walked where
    its neighbours are there too: `keep_blocks` keeps those of every block that may hold a spike.
    """
    reach_blocks = blocks_ahead(lifetime, overshoot)
    n_blocks = -(-n // BLOCK)
    for i in range(ids.size):
        b = ids[i]
        if b >= stop:
            break
        if (b + 1) * BLOCK <= state[0]:
            continue
        if b > 0 and (i == 0 or ids[i - 1] != b - 1):
            continue
        ahead = min(reach_blocks, n_blocks - 1 - b)
        if i + ahead >= ids.size or ids[i + ahead] != b + ahead:
            continue
        begin = max(b * BLOCK, 1)
        end = (b + 1) * BLOCK
        if not walk_block(
            kept, (b - i) * BLOCK, n, begin, end, mean, threshold, lifetime, refractory, overshoot,
            negative, state, found_sample, found_uv,
        ):  # fmt: skip
            return False
    return True


@numba.njit(nogil=True, cache=True)
def keep_blocks(
    x: NDArray[np.float32],
    first_block: int,
    begin: int,
    end: int,
    reach_blocks: int,
    mean: np.float32,
    threshold: np.float32,
    ids: NDArray[np.int64],
    kept: NDArray[np.float32],
    total: NDArray[np.float64],
) -> int:
    """Copy out the blocks of x that a walk may need; returns how many, and adds to the sum.

    x starts with block `first_block` of the stretch. Decided are its blocks [begin, end): kept is
    what may hold a spike at `threshold` or above, with the block before it and `reach_blocks`
    behind. Blocks before `begin` are context. total : (1,) running sum of the decided samples.
    """
    n_blocks = -(-x.size // BLOCK)
    low = np.empty(n_blocks, np.float32)
    high = np.empty(n_blocks, np.float32)
    sums = np.empty(n_blocks, np.float64)
    block_stats(x, low, high, sums)
    wanted = np.zeros(n_blocks + reach_blocks + 1, np.bool_)
    for b in range(n_blocks):
        if may_hold_spike(low, high, b, reach_blocks, mean, threshold):
            for k in range(max(b - 1, 0), b + reach_blocks + 1):
                wanted[k] = True
    count = 0
    for b in range(begin, end):
        total[0] += sums[b]
        if wanted[b]:
            ids[count] = first_block + b
            size = min(BLOCK, x.size - b * BLOCK)
            kept[count * BLOCK : count * BLOCK + size] = x[b * BLOCK : b * BLOCK + size]
            count += 1
    return count
