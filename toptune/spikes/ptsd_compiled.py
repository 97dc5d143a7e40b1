"""The walk of PTSD over stretches that may hold spikes, compiled.

float32 samples in microvolts enter, with the channel's mean and threshold; sample indices and
differential amplitudes leave. The definition is the sequential form of Precision Timing Spike
Detection (Maccione et al. 2009, J. Neurosci. Methods 177:241-249) with Ptsd's rules for ties.

A candidate is accepted only where two samples within its reach (lifetime plus overshoot) differ by
the threshold. So a span's samples are first marked, all at once and without branches: a peak, and
a sliding range that spans the threshold. Only marked samples, three a spike, are looked at one by
one. All of it is in integers that order as the floats do, since compilers vectorise minima of
integers and not those of floating-point numbers.

Places are unsigned and arrays are whole: an index that might be negative is not vectorised, and
making a slice of a few dozen samples takes Numba longer than looking at them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from toptune.spikes.ptsd_blocks import BLOCK, FINE, blocks_ahead, ordered, spans

_LARGEST = np.int32(0x7FFFFFFF)
_SMALLEST = np.int32(-0x80000000)

# Blocks fetched ahead of the one walked: they lie anywhere, and waiting for memory costs as much
# as a fifth of the walk.
_FETCH_AHEAD = 2
# Integers that a vectorised loop does at a time.
_STEP = np.uint64(32)
_ONE = np.uint64(1)
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
    keys : (5 m,) int32
        The same as integers that order alike, then sliding minima and maxima, twice.
    marks : (BLOCK + 8,) uint8
        1 for a peak whose reach spans the threshold.
    words : (BLOCK / 8 + 1,) int64
        The same memory, eight marks at a time.
    """

    values: NDArray[np.float32]
    keys: NDArray[np.int32]
    marks: NDArray[np.uint8]
    words: NDArray[np.int64]

    @classmethod
    def for_reach(cls, reach: int) -> Scratch:
        """Make room for candidates that see `reach` samples ahead."""
        size = BLOCK + reach + 2 + int(_STEP)
        marks = np.empty(BLOCK + 8, np.uint8)
        return cls(
            np.empty(size, np.float32), np.empty(5 * size, np.int32), marks, marks.view(np.int64)
        )


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
def _first_smallest(keys: NDArray[np.int32], start: np.uint64, last: np.uint64) -> np.uint64:
    """First place of the smallest among keys[start .. last]."""
    low, place = keys[start], start
    for i in range(start + _ONE, last + _ONE):
        if keys[i] < low:
            low, place = keys[i], np.uint64(i)
    return place


@numba.njit(nogil=True, cache=True)
def _first_largest(keys: NDArray[np.int32], start: np.uint64, last: np.uint64) -> np.uint64:
    """First place of the largest among keys[start .. last]."""
    high, place = keys[start], start
    for i in range(start + _ONE, last + _ONE):
        if keys[i] > high:
            high, place = keys[i], np.uint64(i)
    return place


@numba.njit(nogil=True, cache=True)
def _centre(
    x: NDArray[np.float32], start: np.uint64, count: np.uint64, mean: np.float32, scratch: Scratch
) -> None:
    """Take the mean off x[start : start + count]; the integers order as the floats do."""
    values, keys = scratch.values, scratch.keys
    for i in range(count):
        # Adding 0 makes -0 to 0: as integers they would differ.
        v = np.float32((x[start + i] - mean) + np.float32(0))
        values[i] = v
        keys[i] = ordered(np.float32(v).view(np.int32))


@numba.njit(nogil=True, cache=True)
def _slide(
    keys: NDArray[np.int32], row: np.uint64, width: np.uint64, count: np.uint64
) -> tuple[np.uint64, np.uint64]:
    """Minimum and maximum of keys[1 + i : 1 + i + width] for i < count.

    Windows grow fourfold from pass to pass. `keys` are rows of `row` integers: the keys, then room
    for two pairs of minima and maxima. Returns where the minima and the maxima begin.
    """
    low, high = _ONE, _ONE
    low_out = row
    known, size = _ONE, count + width - _ONE
    while known < width:
        third = min(np.uint64(3) * known, width - known)
        second = min(np.uint64(2) * known, third)
        first = min(known, second)
        high_out = low_out + row
        size -= third
        # Up to whole steps: what lies behind is never read, and the rest would go one by one.
        whole = (size + _STEP - _ONE) // _STEP * _STEP
        for i in range(whole):
            a, b = low + i, high + i
            keys[low_out + i] = min(keys[a], keys[a + first], keys[a + second], keys[a + third])
            keys[high_out + i] = max(keys[b], keys[b + first], keys[b + second], keys[b + third])
        low, high = low_out, high_out
        low_out = np.uint64(3) * row if low == row else row
        known += third
    return low, high


@numba.njit(nogil=True, cache=True)
def _mark(
    scratch: Scratch, low: np.uint64, high: np.uint64, count: np.uint64, threshold: np.float32
) -> None:
    """Mark peaks whose reach spans the threshold; eight marks behind the last are 0."""
    values, keys, marks = scratch.values, scratch.keys, scratch.marks
    for i in range(count):
        # Without its sign a float's bits order as its absolute value does.
        before = np.float32(values[i]).view(np.int32) & _LARGEST
        size = np.float32(values[i + _ONE]).view(np.int32) & _LARGEST
        after = np.float32(values[i + np.uint64(2)]).view(np.int32) & _LARGEST
        lo = np.int32(ordered(keys[low + i])).view(np.float32)
        hi = np.int32(ordered(keys[high + i])).view(np.float32)
        marks[i] = (size > before) & (size >= after) & (hi - lo >= threshold)
    for i in range(count, count + np.uint64(8)):
        marks[i] = 0


@numba.njit(nogil=True, cache=True)
def _peaks(
    keys: NDArray[np.int32],
    c: np.uint64,
    up: bool,
    left: np.uint64,
    lifetime: np.uint64,
    overshoot: np.uint64,
) -> tuple[np.uint64, np.uint64]:
    """Places of start peak and opposite, from a peak at keys[c] with `left` samples behind it."""
    window = min(lifetime, left)
    edge = c + window
    # On the window's edge the opposite peak may go on; the start peak is not looked for again.
    longer = window + overshoot
    if up:
        e = _first_smallest(keys, c, edge)
        s = _first_largest(keys, c, e)
        if e == edge and longer <= left:
            e = _first_smallest(keys, c, c + longer)
    else:
        e = _first_largest(keys, c, edge)
        s = _first_smallest(keys, c, e)
        if e == edge and longer <= left:
            e = _first_largest(keys, c, c + longer)
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
    values, keys, words = scratch.values, scratch.keys, scratch.words
    _centre(x, np.uint64(first - 1 - shift), np.uint64(there + 1), rule.mean, scratch)
    # The record's end truncates windows: repeating its last sample adds no other extreme.
    for i in range(there + 1, count + width):
        keys[i] = keys[there]
    low, high = _slide(keys, np.uint64(values.size), np.uint64(width), np.uint64(count))
    _mark(scratch, low, high, np.uint64(count), rule.threshold)

    k = found.state[1]
    i = 0
    while i < count:
        if i & 7 == 0 and words[i >> 3] == 0:
            i = min(i + 8, count)
            continue
        if scratch.marks[i] == 0:
            i += 1
            continue
        if k == found.sample.size:
            found.state[0], found.state[1] = first + i, k
            return False
        left = np.uint64(n - 1 - first - i)
        # Sample i of the span has the key i + 1.
        c = np.uint64(i + 1)
        s, e = _peaks(
            keys, c, values[c] > 0, left, np.uint64(rule.lifetime), np.uint64(rule.overshoot)
        )
        xs, xe = values[s], values[e]
        d = abs(xs - xe)
        if d < rule.threshold:
            i += 1
            continue
        # A tie of absolute values goes to the later peak.
        start_dates = xs < xe if rule.negative else abs(xs) > abs(xe)
        opposite = np.int64(e) - 1
        ts = np.int64(s if start_dates else e) - 1
        found.sample[k] = first + ts
        found.uv[k] = d
        k += 1
        after = ts + rule.refractory
        i = int(after if (after > opposite and first + after < n) else opposite + 1)
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
def _reach_spans(
    x: NDArray[np.float32], start: int, stop: int, low: np.float32, high: np.float32, rule: Rule
) -> bool:
    """Tell whether a block with extremes low and high, and x[start : stop] of its reach, span."""
    lo, hi = _LARGEST, _SMALLEST
    for i in range(np.uint64(start), np.uint64(stop)):
        key = ordered(np.float32(x[i]).view(np.int32))
        lo = np.int32(key if key < lo else lo)
        hi = np.int32(key if key > hi else hi)
    if start < stop:
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
        if not _reach_spans(x, min(end, n), min(end + reach, n), low[b], high[b], rule):
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
