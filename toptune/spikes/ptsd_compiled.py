"""PTSD, compiled: statistics of blocks, the exact prune, and the walk over what it leaves.

The definition is the sequential form of Precision Timing Spike Detection (Maccione et al. 2009,
J. Neurosci. Methods 177:241-249) with the rules of `toptune.params.Ptsd` for ties.

Exact prune. A candidate at sample c reads nothing beyond c + reach (lifetime plus overshoot) and is
accepted only if two of the samples it reads differ by the threshold. So a block of samples whose
maximum and minimum, taken over the block and its reach, differ by less holds no spike and is
skipped. Rejected candidates do not change the walk's only state, the next sample to look at.

The walk. A span's samples are first marked, all at once and without branches: a peak, and a sliding
range that reaches the threshold. Only marked samples, about three per spike, are looked at one by
one. All of it is done in integers that order as the floats do, since compilers vectorise minima of
integers but not those of floating-point numbers.

Indices are unsigned and arrays are passed whole: an index that might be negative is not vectorised,
and making a slice of a few dozen samples takes Numba longer than looking at them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from toptune.machine.threads import compiled

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]
Keys = NDArray[np.int32]  # floats as integers that order alike

# Samples per block: long enough that the statistics run at memory speed, short enough that a spike
# costs little more than its own neighbourhood (measured: 64 is 40 % slower, 256 no faster).
BLOCK = 128

# Inside a block that may hold a spike, the same prune is applied to fine blocks, so that little
# more than the spikes themselves is walked, or kept by streaming.
FINE = 16

# Relative slack of the prune, which compares float32 samples before the mean is subtracted.
_SLACK = np.float32(4e-7)

_MAGNITUDE = np.int32(0x7FFFFFFF)
_SMALLEST = np.int32(-0x80000000)

# Blocks prefetched ahead of the one walked: they are far apart, and waiting for memory would take a
# fifth of the walk's time.
_FETCH_AHEAD = 2
# Integers per step of a vectorised loop.
_STEP = np.uint64(32)
_ONE = np.uint64(1)
# float32 samples per cache line.
_LINE = 16


@compiled()
def blocks_ahead(lifetime: int, overshoot: int, size: int) -> int:
    """Return how many blocks of `size` a candidate reads after its own; 1 or more."""
    return max(1, -(-(lifetime + overshoot) // size))


@numba.njit(nogil=True, inline="always")
def ordered(bits: np.int32) -> np.int32:
    """Map a float's bits to an int32 that orders as the float does; the map is its own inverse."""
    return np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & _MAGNITUDE))


@numba.njit(nogil=True, inline="always")
def _extremes(bits: Keys, start: int, count: int) -> tuple[np.float32, np.float32]:
    """Minimum and maximum of `count` floats whose bits begin at bits[start]; none may be NaN."""
    lo = _MAGNITUDE
    hi = np.int32(-0x80000000)
    for i in range(count):
        key = ordered(bits[start + i])
        lo = np.int32(key if key < lo else lo)
        hi = np.int32(key if key > hi else hi)
    return np.int32(ordered(lo)).view(np.float32), np.int32(ordered(hi)).view(np.float32)


@compiled(fastmath={"reassoc"})
def block_stats(x: Float32, low: Float32, high: Float32, total: Float64) -> None:
    """Minimum, maximum and sum of each block of `BLOCK` samples; the last block may be short.

    NaN and infinity show up in `total`. It is the same for every chunking, because blocks start at
    multiples of `BLOCK` and only this function adds up their samples.
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


@compiled()
def _fine_extremes(x: Float32, first: int, last: int, low: Float32, high: Float32) -> int:
    """Find the extremes of the fine blocks [first, last) of x that exist; return their number."""
    bits = x.view(np.int32)
    last = min(last, -(-x.size // FINE))
    for f in range(first, last):
        start = f * FINE
        if start + FINE <= x.size:
            low[f - first], high[f - first] = _extremes(bits, start, FINE)
        else:
            low[f - first], high[f - first] = _extremes(bits, start, x.size - start)
    return last - first


@compiled()
def may_hold_spike(
    low: Float32, high: Float32, b: int, reach_blocks: int, mean: np.float32, threshold: np.float32
) -> bool:
    """Tell whether a block and its reach span the threshold; if not, it holds no spike."""
    lo, hi = low[b], high[b]
    for k in range(b + 1, min(b + reach_blocks + 1, low.size)):
        lo = min(lo, low[k])
        hi = max(hi, high[k])
    return spans(lo, hi, mean, threshold)


@compiled()
def spans(lo: np.float32, hi: np.float32, mean: np.float32, threshold: np.float32) -> bool:
    """Tell whether samples in [lo, hi], less the mean, may differ by the threshold."""
    slack = _SLACK * (abs(lo) + abs(hi) + abs(mean))
    return bool(hi - lo + slack >= threshold)


@compiled()
def keep_blocks(
    x: Float32,
    low: Float32,
    high: Float32,
    first_fine: int,
    begin: int,
    end: int,
    lifetime: int,
    overshoot: int,
    mean: np.float32,
    threshold: np.float32,
    ids: Ints,
    kept: Float32,
) -> int:
    """Copy out the fine blocks of x that a walk may need; return their number.

    x starts with fine block `first_fine` of the segment; low and high are its blocks' extremes.
    The blocks [begin, end) are decided; the others are context. A fine block that may hold a spike
    at `threshold` is kept together with the one before it and those that its reach enters.
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


class Rule(NamedTuple):
    """The rule for spikes of one channel: times in samples, mean and threshold in microvolts."""

    lifetime: int
    refractory: int
    overshoot: int
    negative: bool
    mean: np.float32
    threshold: np.float32


class Found(NamedTuple):
    """State of the walk over a channel, and the spikes it found, with room for more."""

    state: Ints  # the next sample to look at, and the number of spikes found
    sample: Ints
    uv: Float32  # peak to peak, in microvolts


class Scratch(NamedTuple):
    """Working memory for marking a span of at most `BLOCK` samples."""

    values: Float32  # (m,), from the sample before the span on, less the mean
    # (5 m,): the same as integers that order alike, then two pairs of sliding minima and maxima
    keys: Keys
    marks: NDArray[np.uint8]  # (BLOCK + 8,), 1 for a peak whose reach spans the threshold
    words: Ints  # the same memory, eight marks at a time

    @classmethod
    def for_reach(cls, reach: int) -> Scratch:
        """Make memory for candidates that read `reach` samples ahead."""
        size = BLOCK + reach + 2 + int(_STEP)
        marks = np.empty(BLOCK + 8, np.uint8)
        return cls(
            np.empty(size, np.float32), np.empty(5 * size, np.int32), marks, marks.view(np.int64)
        )


@intrinsic
def _fetch(_: Any, array: Any, index: Any) -> Any:  # noqa: ARG001  # numba matches the signature
    """Prefetch array[index] into the processor's cache, without waiting for it."""

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


@compiled()
def _first_smallest(keys: Keys, start: np.uint64, last: np.uint64) -> np.uint64:
    """Return the first index of the smallest of keys[start .. last]."""
    low, place = keys[start], start
    for i in range(start + _ONE, last + _ONE):
        if keys[i] < low:
            low, place = keys[i], np.uint64(i)
    return place


@compiled()
def _first_largest(keys: Keys, start: np.uint64, last: np.uint64) -> np.uint64:
    """Return the first index of the largest of keys[start .. last]."""
    high, place = keys[start], start
    for i in range(start + _ONE, last + _ONE):
        if keys[i] > high:
            high, place = keys[i], np.uint64(i)
    return place


@compiled()
def _centre(
    x: Float32, start: np.uint64, count: np.uint64, mean: np.float32, scratch: Scratch
) -> None:
    """Subtract the mean from x[start : start + count]; make integers that order as the result."""
    values, keys = scratch.values, scratch.keys
    for i in range(count):
        # Adding 0 turns -0 into 0, from which it would differ as an integer.
        v = np.float32((x[start + i] - mean) + np.float32(0))
        values[i] = v
        keys[i] = ordered(np.float32(v).view(np.int32))


@compiled()
def _slide(
    keys: Keys, row: np.uint64, width: np.uint64, count: np.uint64
) -> tuple[np.uint64, np.uint64]:
    """Find the minimum and maximum of keys[1 + i : 1 + i + width] for i < count.

    Windows grow fourfold from pass to pass. `keys` has five rows of `row` integers: the keys, then
    two pairs of minima and maxima. Returns where the final minima and maxima begin.
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
        # Up to whole steps, since a remainder would be computed one by one; the excess is not read.
        whole = (size + _STEP - _ONE) // _STEP * _STEP
        for i in range(whole):
            a, b = low + i, high + i
            keys[low_out + i] = min(keys[a], keys[a + first], keys[a + second], keys[a + third])
            keys[high_out + i] = max(keys[b], keys[b + first], keys[b + second], keys[b + third])
        low, high = low_out, high_out
        low_out = np.uint64(3) * row if low == row else row
        known += third
    return low, high


@compiled()
def _mark(
    scratch: Scratch, low: np.uint64, high: np.uint64, count: np.uint64, threshold: np.float32
) -> None:
    """Mark peaks whose reach spans the threshold; the eight marks after the last are 0."""
    values, keys, marks = scratch.values, scratch.keys, scratch.marks
    for i in range(count):
        # Without the sign bit, a float's bits order as its absolute value does.
        before = np.float32(values[i]).view(np.int32) & _MAGNITUDE
        size = np.float32(values[i + _ONE]).view(np.int32) & _MAGNITUDE
        after = np.float32(values[i + np.uint64(2)]).view(np.int32) & _MAGNITUDE
        lo = np.int32(ordered(keys[low + i])).view(np.float32)
        hi = np.int32(ordered(keys[high + i])).view(np.float32)
        marks[i] = (size > before) & (size >= after) & (hi - lo >= threshold)
    for i in range(count, count + np.uint64(8)):
        marks[i] = 0


@compiled()
def _peaks(
    keys: Keys, c: np.uint64, up: bool, left: np.uint64, lifetime: np.uint64, overshoot: np.uint64
) -> tuple[np.uint64, np.uint64]:
    """Find start and opposite peak, by index, of the peak at keys[c] that `left` samples follow."""
    window = min(lifetime, left)
    edge = c + window
    # An opposite peak on the window's edge may lie beyond it; the start peak is not searched again.
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


@compiled()
def walk_span(
    x: Float32, shift: int, n: int, begin: int, end: int, rule: Rule, found: Found, scratch: Scratch
) -> bool:
    """Walk samples [begin, end), at most `BLOCK`, of a segment of n samples.

    `x[i - shift]` is sample i; x must hold all samples from begin - 1 to end + reach. Returns False
    when the arrays of `found` are full: enlarge them and call again, nothing is lost.
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
    # The segment's end truncates windows: repeating its last sample adds no new extreme.
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
        # Of two equal absolute values, the later peak counts.
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


@compiled()
def _choose_blocks(low: Float32, high: Float32, ahead: int, rule: Rule, chosen: Ints) -> int:
    """List the blocks that, with the `ahead` after them, span the threshold; return how many."""
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


@compiled()
def reach_spans(
    x: Float32, start: int, stop: int, low: np.float32, high: np.float32, rule: Rule
) -> bool:
    """Tell whether a block's extremes and x[start : stop], its reach, span the threshold."""
    lo, hi = _MAGNITUDE, _SMALLEST
    for i in range(np.uint64(start), np.uint64(stop)):
        key = ordered(np.float32(x[i]).view(np.int32))
        lo = np.int32(key if key < lo else lo)
        hi = np.int32(key if key > hi else hi)
    if start < stop:
        low = min(low, np.int32(ordered(lo)).view(np.float32))
        high = max(high, np.int32(ordered(hi)).view(np.float32))
    return spans(low, high, rule.mean, rule.threshold)


@compiled()
def walk_row(
    x: Float32,
    low: Float32,
    high: Float32,
    rule: Rule,
    found: Found,
    scratch: Scratch,
    chosen: Ints,
) -> bool:
    """Walk a whole segment in memory, skipping blocks that cannot hold a spike.

    `low` and `high` (blocks,) are the extremes of `block_stats`; `chosen` (blocks + 1,) is working
    memory. Returns as `walk_span` does.
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
        # Most of these blocks were chosen for a spike in the next block beyond their own reach.
        if not reach_spans(x, min(end, n), min(end + reach, n), low[b], high[b], rule):
            continue
        if not walk_span(x, 0, n, max(b * BLOCK, 1), end, rule, found, scratch):
            return False
    return True


@compiled()
def walk_kept(ids: Ints, kept: Float32, n: int, rule: Rule, found: Found, scratch: Scratch) -> bool:
    """Walk the fine blocks that `keep_blocks` kept of a segment of n samples.

    `ids` (k,) are ascending block numbers, `kept` (k * FINE,) their samples. A block is walked only
    if its neighbours were kept too, as `keep_blocks` does for every block that may hold a spike.
    Returns as `walk_span` does.
    """
    ahead = blocks_ahead(rule.lifetime, rule.overshoot, FINE)
    last_block = -(-n // FINE) - 1
    i = 0
    while i < ids.size:
        # A run of blocks that can be walked, at most one span.
        run = 0
        while run < BLOCK // FINE and i + run < ids.size:
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
