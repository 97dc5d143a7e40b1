"""Pieces come late, twice, swapped or never; blocks are in order, and notes tell what was lost."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from toptune.live.blocks import Block, Note
from toptune.live.ordering import Ordering, Piece

RATE_HZ = 1000.0


def numbered(first: int, n: int) -> NDArray[np.float32]:
    """Samples that say their own number on the first channel."""
    return np.stack([np.arange(first, first + n), np.zeros(n)]).astype(np.float32)


def piece(first: int, n: int, at_s: float = 0.0) -> Piece:
    return Piece(first, numbered(first, n), at_s)


def order(patience_s: float = 0.25) -> Ordering:
    return Ordering(RATE_HZ, patience_s=patience_s)


def blocks(found: list[Block | Note]) -> list[Block]:
    return [one for one in found if isinstance(one, Block)]


def notes(found: list[Block | Note]) -> list[tuple[str, int]]:
    return [(one.kind, one.n_samples) for one in found if isinstance(one, Note)]


def places(found: list[Block | Note]) -> list[int]:
    """The places of all samples; each must be its own number, counted from the first piece's."""
    all_places: list[int] = []
    for block in blocks(found):
        all_places += range(block.first_sample, block.stop_sample)
    return all_places


def test_pieces_in_order_are_given_at_once_and_counted_from_0() -> None:
    ordering = order()
    first = ordering.put(piece(7_000, 10))
    assert [(b.first_sample, b.stop_sample) for b in blocks(first)] == [(0, 10)]
    second = ordering.put(piece(7_010, 5))
    assert [(b.first_sample, b.stop_sample) for b in blocks(second)] == [(10, 15)]
    assert ordering.finish() == []


def test_swapped_pieces_are_put_in_their_place() -> None:
    ordering = order()
    ordering.put(piece(0, 10))
    assert blocks(ordering.put(piece(20, 10, 0.1))) == []
    found = ordering.put(piece(10, 10, 0.11))
    assert places(found) == list(range(10, 30))
    assert notes(found) == [("out of order", 0)]


def test_what_does_not_come_is_a_gap_after_a_while_by_the_clock() -> None:
    ordering = order()
    ordering.put(piece(0, 10, 1.0))
    assert ordering.put(piece(110, 10, 1.1)) == []
    assert ordering.waited(1.3) == []
    found = ordering.waited(1.36)
    assert notes(found) == [("gap", 100)]
    assert places(found) == list(range(110, 120))


def test_what_does_not_come_is_a_gap_after_enough_later_samples() -> None:
    ordering = order()
    ordering.put(piece(0, 10))
    found = [ordering.put(piece(110 + 50 * k, 50)) for k in range(5)]
    assert found[:4] == [[], [], [], []]
    assert notes(found[4]) == [("gap", 100)]
    assert places(found[4]) == list(range(110, 360))


def test_late_samples_are_dropped_and_told_from_doubled_ones() -> None:
    ordering = order(patience_s=0.05)
    ordering.put(piece(0, 10, 0.0))
    ordering.put(piece(60, 60, 0.0))
    late = ordering.put(piece(5, 55, 5.0))
    assert blocks(late) == []
    assert notes(late) == [("late", 50), ("doubled", 5)]


def test_doubled_samples_are_told_once_a_second_and_none_is_forgotten() -> None:
    ordering = order()
    told = []
    for k in range(30):
        told += notes(ordering.put(piece(10 * k, 10, 0.1 * k)))
        told += notes(ordering.put(piece(10 * k, 10, 0.1 * k)))
    assert 2 < len(told) < 6
    told += notes(ordering.finish())
    assert sum(n for _, n in told) == 300


def test_samples_without_a_value_are_a_gap() -> None:
    ordering = order()
    bad = piece(0, 1000)
    bad.samples[1, 100:120] = np.nan
    bad.samples[0, 500] = np.inf
    found = ordering.put(bad)
    gaps = [one for one in found if isinstance(one, Note)]
    assert [(one.kind, one.n_samples) for one in gaps] == [("gap", 20), ("gap", 1)]
    assert "no value" in gaps[0].text
    assert places(found) == [*range(100), *range(120, 500), *range(501, 1000)]


@pytest.mark.parametrize("number", [0, 10**12])
def test_numbers_that_were_set_anew_go_on_after_the_time_that_passed(number: int) -> None:
    ordering = order()
    ordering.put(piece(500_000_000, 20_000, 10.0))
    found = ordering.put(piece(number, 10, 12.5))
    assert notes(found) == [("clock", 2500)]
    assert [b.first_sample for b in blocks(found)] == [22_500]
    assert [b.first_sample for b in blocks(ordering.put(piece(number + 10, 10, 12.6)))] == [22_510]


@given(
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=40),
    data=st.data(),
)
def test_each_sample_is_given_once_in_order_or_told_as_lost(
    cuts: list[int], data: st.DataObject
) -> None:
    """Pieces are dropped, doubled and moved a little; sums of notes and samples must agree."""
    edges = np.cumsum([0, *cuts])
    pieces = [piece(int(a), int(b - a)) for a, b in pairwise(edges)]
    fates = data.draw(
        st.lists(st.sampled_from((0, 1, 1, 1, 2)), min_size=len(cuts), max_size=len(cuts))
    )
    sent = [p for p, fate in zip(pieces, fates, strict=True) for _ in range(fate)]
    delays = data.draw(st.lists(st.integers(0, 4), min_size=len(sent), max_size=len(sent)))
    sent = [p for _, p in sorted(enumerate(sent), key=lambda one: one[0] + delays[one[0]])]
    if not sent:
        return
    ordering = order(patience_s=data.draw(st.sampled_from((0.001, 0.04, 10.0))))
    found = [one for k, p in enumerate(sent) for one in ordering.put(p._replace(received_s=k / 50))]
    found += ordering.finish()
    origin = sent[0].first
    given_places = places(found)
    assert given_places == sorted(set(given_places))
    for block in blocks(found):
        np.testing.assert_array_equal(
            block.samples[0], np.arange(block.first_sample, block.stop_sample) + origin
        )
    told = dict.fromkeys(("gap", "late", "doubled"), 0)
    for kind, n in notes(found):
        if kind in told:
            told[kind] += n
    n_sent = sum(p.samples.shape[1] for p in sent)
    assert len(given_places) + told["late"] + told["doubled"] == n_sent
    # Between the first and the last sample given, what is not given is told as a gap.
    assert told["gap"] == given_places[-1] + 1 - len(given_places)
