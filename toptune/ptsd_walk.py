"""The walk of PTSD over stretches that may hold spikes, compiled.

float32 samples in microvolts enter, with the channel's mean and threshold; sample indices and
differential amplitudes leave. The definition is the sequential form of Precision Timing Spike
Detection (Maccione et al. 2009, J. Neurosci. Methods 177:241-249) with Ptsd's rules for ties.

A candidate is accepted only where two samples within its reach (lifetime plus overshoot) differ by
the threshold. So a span's samples are first marked, all at once and without branches: a peak, and
a sliding range that spans the threshold. Only marked samples, three a spike, are looked at one by
one. All of it is in integers that order as the floats do, since compilers vectorise minima of
integers and not those of floating-point numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from toptune.spikes_cpu import BLOCK, FINE, blocks_ahead, ordered, spans

_LARGEST = np.int32(0x7FFFFFFF)
_SMALLEST = np.int32(-0x80000000)

# Blocks fetched ahead of the one walked: they lie anywhere, and waiting for memory costs as much
# as a fifth of the walk.
_FETCH_AHEAD = 2
# Integers that a vectorised loop does at a time.
_STEP = 32
# float32 samples in one line of the cache.
_LINE = 16


class Rule(NamedTuple):
    """What decides on spikes in one channel: times in samples, mean and threshold in microvolts."""

    lifetime: int
    refractory: int
    overshoot: int
    negative: bool
    mean: np.float32
    threshold: np.float32


class Found(NamedTuple):
    """Where the walk stands and what it found.

    Attributes
    ----------
    state : (2,) int64
        Next sample to look at, and spikes found.
    sample : (k,) int64
        Room for the spikes' samples.
    uv : (k,) float32
        Room for their peak-to-peak amplitudes.
    """

    state: NDArray[np.int64]
    sample: NDArray[np.int64]
    uv: NDArray[np.float32]


class Scratch(NamedTuple):
    """Memory that spans of at most `BLOCK` samples are marked in.

    Attributes
    ----------
    values : (m,) float32
        Samples from one before the span, the mean taken off.
    keys : (m,) int32
        The same as integers that order alike.
    extremes : (4, m) int32
        Sliding minima, maxima, and what they are computed from.
    marks : (BLOCK,) uint8
        1 for a peak whose reach spans the threshold.
    """

    values: NDArray[np.float32]
    keys: NDArray[np.int32]
    extremes: NDArray[np.int32]
    marks: NDArray[np.uint8]

    @classmethod
    def for_reach(cls, reach: int) -> Scratch:
        """Make room for candidates that see `reach` samples ahead."""
        size = BLOCK + reach + 2 + _STEP
        return cls(
            np.empty(size, np.float32), np.empty(size, np.int32), np.empty((4, size), np.int32),
            np.empty(BLOCK, np.uint8),
        )  # fmt: skip


@intrinsic
def _fetch(_: Any, array: Any, index: Any) -> Any:  # noqa: ARG001  # numba matches the signature
    """Ask the processor to fetch array[index] into its cache, without waiting for it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        byte = ir.IntType(8).as_pointer()
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        name = "llvm.prefetch.p0"
        function = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]  # untyped there
        place = builder.bitcast(builder.gep(data, [args[1]]), byte)
        # For reading, into all caches, data.
        builder.call(function, [place, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@numba.njit(nogil=True, cache=True)
def _smaller(a: NDArray[np.int32], b: NDArray[np.int32], out: NDArray[np.int32]) -> None:
    # Slices, not offsets: an index that may be negative is not vectorised.
    for i in range(out.size):
        out[i] = np.int32(b[i] if b[i] < a[i] else a[i])


@numba.njit(nogil=True, cache=True)
def _larger(a: NDArray[np.int32], b: NDArray[np.int32], out: NDArray[np.int32]) -> None:
    for i in range(out.size):
        out[i] = np.int32(b[i] if b[i] > a[i] else a[i])


@numba.njit(nogil=True, cache=True)
def _first_smallest(keys: NDArray[np.int32]) -> int:
    low = _LARGEST
    for i in range(keys.size):
        low = np.int32(keys[i] if keys[i] < low else low)
    for i in range(keys.size):
        if keys[i] == low:
            return i
    return 0


@numba.njit(nogil=True, cache=True)
def _first_largest(keys: NDArray[np.int32]) -> int:
    high = _SMALLEST
    for i in range(keys.size):
        high = np.int32(keys[i] if keys[i] > high else high)
    for i in range(keys.size):
        if keys[i] == high:
            return i
    return 0


@numba.njit(nogil=True, cache=True)
def _centre(
    x: NDArray[np.float32], mean: np.float32, values: NDArray[np.float32], keys: NDArray[np.int32]
) -> None:
    """Take the mean off; the integers order as the floats do."""
    for i in range(x.size):
        # Adding 0 makes -0 to 0: as integers they would differ.
        values[i] = (x[i] - mean) + np.float32(0)
    bits = values.view(np.int32)
    for i in range(x.size):
        keys[i] = ordered(bits[i])


@numba.njit(nogil=True, cache=True)
def _slide(
    keys: NDArray[np.int32], width: int, count: int, scratch: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Minimum and maximum of keys[i : i + width] for i < count, by windows that double.

    keys : (count + width - 1 and `_STEP` spare,); scratch : (4, as many).
    """
    low, high = keys, keys
    spare_low, spare_high = scratch[0], scratch[1]
    other_low, other_high = scratch[2], scratch[3]
    known = 1
    size = count + width - 1
    while known < width:
        step = min(known, width - known)
        size -= step
        # Up to whole steps: what lies behind is never read, and the rest would go one by one.
        whole = -(-size // _STEP) * _STEP
        _smaller(low, low[step:], spare_low[:whole])
        _larger(high, high[step:], spare_high[:whole])
        low, high = spare_low, spare_high
        spare_low, spare_high, other_low, other_high = other_low, other_high, low, high
        known += step
    return low, high


@numba.njit(nogil=True, cache=True)
def _mark(
    bits: NDArray[np.int32],
    low: NDArray[np.int32],
    high: NDArray[np.int32],
    threshold: np.float32,
    marks: NDArray[np.uint8],
) -> None:
    """Mark peaks whose reach spans the threshold; `bits` are the values' from one before."""
    for i in range(marks.size):
        size = bits[i + 1] & _LARGEST
        peak = (size > (bits[i] & _LARGEST)) & (size >= (bits[i + 2] & _LARGEST))
        lo = np.int32(ordered(low[i])).view(np.float32)
        hi = np.int32(ordered(high[i])).view(np.float32)
        marks[i] = peak & (hi - lo >= threshold)


@numba.njit(nogil=True, cache=True)
def _peaks(
    keys: NDArray[np.int32], up: bool, left: int, lifetime: int, overshoot: int
) -> tuple[int, int]:
    """Offsets of start peak and opposite, from a peak at keys[0] with `left` samples behind it."""
    window = min(lifetime, left)
    # On the window's edge the opposite peak may go on; the start peak is not looked for again.
    longer = window + overshoot
    if up:
        e = _first_smallest(keys[: window + 1])
        s = _first_largest(keys[: e + 1])
        if e == window and longer <= left:
            e = _first_smallest(keys[: longer + 1])
    else:
        e = _first_largest(keys[: window + 1])
        s = _first_smallest(keys[: e + 1])
        if e == window and longer <= left:
            e = _first_largest(keys[: longer + 1])
    return s, e


@numba.njit(nogil=True, cache=True)
def walk_span(
    x: NDArray[np.float32],
    shift: int,
    n: int,
    begin: int,
    end: int,
    rule: Rule,
    found: Found,
    scratch: Scratch,
) -> bool:
    """Walk samples [begin, end) of a stretch of n samples, at most `BLOCK` of them.

    `x[i - shift]` is sample i; everything from begin-1 to end+reach must be in x. Returns False
    when the found arrays are full: make them larger and call again, nothing is lost.
    """
    first = max(found.state[0], begin)
    last = min(end, n - 1)
    if first >= last:
        return True
    count = last - first
    width = rule.lifetime + rule.overshoot + 1
    there = min(count + width - 1, n - first)
    values, keys = scratch.values, scratch.keys
    _centre(x[first - 1 - shift : first + there - shift], rule.mean, values, keys)
    # The record's end truncates windows: repeating its last sample adds no other extreme.
    keys[there + 1 : count + width] = keys[there]
    low, high = _slide(keys[1:], width, count, scratch.extremes)
    marks = scratch.marks
    _mark(values.view(np.int32), low, high, rule.threshold, marks[:count])
    whole = -(-count // 8)
    marks[count : whole * 8] = 0
    words = marks.view(np.int64)

    k = found.state[1]
    i = 0
    while i < count:
        if i & 7 == 0 and words[i >> 3] == 0:
            i = min(i + 8, count)
            continue
        if marks[i] == 0:
            i += 1
            continue
        if k == found.sample.size:
            found.state[0], found.state[1] = first + i, k
            return False
        left = n - 1 - first - i
        s, e = _peaks(keys[i + 1 :], values[i + 1] > 0, left, rule.lifetime, rule.overshoot)
        s, e = i + s, i + e
        xs, xe = values[s + 1], values[e + 1]
        d = abs(xs - xe)
        if d < rule.threshold:
            i += 1
            continue
        # A tie of absolute values goes to the later peak.
        start_dates = xs < xe if rule.negative else abs(xs) > abs(xe)
        ts = s if start_dates else e
        found.sample[k] = first + ts
        found.uv[k] = d
        k += 1
        after = ts + rule.refractory
        i = after if (after > e and first + after < n) else e + 1
    found.state[0], found.state[1] = first + i, k
    return True


@numba.njit(nogil=True, cache=True)
def _choose_blocks(
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    ahead: int,
    rule: Rule,
    chosen: NDArray[np.int64],
) -> int:
    """List the blocks that, with the `ahead` after them, span the threshold; tell how many."""
    lo, hi = low.copy(), high.copy()
    for k in range(1, min(ahead, low.size - 1) + 1):
        stop = low.size - k
        for b in range(stop):
            lo[b] = low[b + k] if low[b + k] < lo[b] else lo[b]
            hi[b] = high[b + k] if high[b + k] > hi[b] else hi[b]
    count = 0
    for b in range(low.size):
        chosen[count] = b
        count += spans(lo[b], hi[b], rule.mean, rule.threshold)
    return count


@numba.njit(nogil=True, cache=True)
def _reach_spans(bits: NDArray[np.int32], low: np.float32, high: np.float32, rule: Rule) -> bool:
    """Tell whether a block with extremes low and high, and the samples its reach enters, span."""
    lo, hi = _LARGEST, _SMALLEST
    for i in range(bits.size):
        key = ordered(bits[i])
        lo = np.int32(key if key < lo else lo)
        hi = np.int32(key if key > hi else hi)
    if bits.size:
        low = min(low, np.int32(ordered(lo)).view(np.float32))
        high = max(high, np.int32(ordered(hi)).view(np.float32))
    return spans(low, high, rule.mean, rule.threshold)


@numba.njit(nogil=True, cache=True)
def walk_row(
    x: NDArray[np.float32],
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    rule: Rule,
    found: Found,
    scratch: Scratch,
    chosen: NDArray[np.int64],
) -> bool:
    """Walk a whole stretch held in memory, skipping blocks that cannot hold a spike.

    low, high : (blocks,) extremes of `block_stats`; chosen : (blocks + 1,) scratch. Returns as
    `walk_span` does.
    """
    reach = rule.lifetime + rule.overshoot
    n = x.size
    bits = x.view(np.int32)
    count = _choose_blocks(
        low, high, blocks_ahead(rule.lifetime, rule.overshoot, BLOCK), rule, chosen
    )
    for j in range(count):
        if j + _FETCH_AHEAD < count:
            start = chosen[j + _FETCH_AHEAD] * BLOCK
            for i in range(start, min(start + BLOCK + reach, n), _LINE):
                _fetch(x, i)  # type: ignore[call-arg]  # numba gives the first
        b = chosen[j]
        end = (b + 1) * BLOCK
        if end <= found.state[0]:
            continue
        # Most blocks are here for a spike of the next one that their own reach does not enter.
        if not _reach_spans(bits[min(end, n) : min(end + reach, n)], low[b], high[b], rule):
            continue
        if not walk_span(x, 0, n, max(b * BLOCK, 1), end, rule, found, scratch):
            return False
    return True


@numba.njit(nogil=True, cache=True)
def walk_kept(
    ids: NDArray[np.int64],
    kept: NDArray[np.float32],
    stop: int,
    n: int,
    rule: Rule,
    found: Found,
    scratch: Scratch,
) -> bool:
    """Walk the fine blocks that `keep_blocks` kept of a stretch of n samples, up to block `stop`.

    ids : (k,) ascending block numbers; kept : (k * FINE,) their samples. A block is walked where
    its neighbours are there too: `keep_blocks` keeps those of every block that may hold a spike.
    Returns as `walk_span` does.
    """
    ahead = blocks_ahead(rule.lifetime, rule.overshoot, FINE)
    last_block = -(-n // FINE) - 1
    i = 0
    while i < ids.size and ids[i] < stop:
        # A run of blocks that may be walked, as many as make a span.
        run = 0
        while run < BLOCK // FINE and i + run < ids.size and ids[i + run] < stop:
            at = i + run
            b = ids[at]
            behind = min(ahead, last_block - b)
            alone = b > 0 and (at == 0 or ids[at - 1] != b - 1)
            if alone or at + behind >= ids.size or ids[at + behind] != b + behind:
                break
            run += 1
        if run == 0:
            i += 1
            continue
        b = ids[i]
        begin, end = max(b * FINE, 1), (b + run) * FINE
        if not walk_span(kept, (b - i) * FINE, n, begin, end, rule, found, scratch):
            return False
        i += run
    return True
