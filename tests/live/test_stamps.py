"""Samples are placed by their time stamps: trembling is none, what is missing is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toptune.live.blocks import Block, Note
from toptune.live.stamps import Stamped, StampedOrdering

RATE_HZ = 10_000.0
N = 200  # samples of a piece


def numbered(first: int, n: int = N) -> NDArray[np.float32]:
    return np.arange(first, first + n, dtype=np.float32)[None]


def piece(first: int, *, late_s: float = 0.0, n: int = N, rate: float = RATE_HZ) -> Stamped:
    """Samples from this number on, stamped as they should be or later."""
    stamps = 5000.0 + first / rate + np.arange(n) / RATE_HZ + late_s
    return Stamped(numbered(first, n), stamps, 100.0 + (first + n) / rate + late_s)


def read(pieces: list[Stamped], *, patience_s: float = 0.25) -> tuple[dict[int, int], list[Note]]:
    """Give each place's number, and the notes."""
    ordering = StampedOrdering(RATE_HZ, patience_s=patience_s)
    found = [one for p in pieces for one in ordering.put(p)] + ordering.finish()
    numbers: dict[int, int] = {}
    for block in found:
        if isinstance(block, Block):
            places = range(block.first_sample, block.stop_sample)
            numbers |= dict(zip(places, block.samples[0].astype(int).tolist(), strict=True))
    return numbers, [one for one in found if isinstance(one, Note)]


def kinds(notes: list[Note]) -> list[tuple[str, int]]:
    return [(note.kind, note.n_samples) for note in notes]


@settings(max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 2000), min_size=1, max_size=60),
    seed=st.integers(0, 1000),
    drift=st.floats(-3e-4, 3e-4),
)
def test_stamps_may_tremble_and_drift(sizes: list[int], seed: int, drift: float) -> None:
    rng = np.random.default_rng(seed)
    firsts = np.cumsum([0, *sizes])
    pieces = [
        piece(int(first), n=n, late_s=float(rng.uniform(0, 0.009)), rate=RATE_HZ * (1 + drift))
        for first, n in zip(firsts[:-1], sizes, strict=True)
    ]
    numbers, notes = read(pieces)
    assert numbers == {k: k for k in range(firsts[-1])}
    assert notes == []


@settings(max_examples=30)
@given(
    stalls=st.lists(st.tuples(st.integers(0, 199), st.floats(0.0, 0.9)), max_size=2),
    size=st.integers(50, 1000),
)
def test_a_sender_on_a_busy_machine_loses_nothing(
    stalls: list[tuple[int, float]], size: int
) -> None:
    """It sends late where it was kept from it, then all at once; stamps are when it sends."""
    sent_s, k = 0.0, 0
    pieces = []
    # On until it has caught up, and for a while.
    while k < 300 or sent_s > k * size / RATE_HZ + 1e-3:
        free_s = max([sent_s, *(k * size / RATE_HZ + s for at, s in stalls if at == k)])
        sent_s = max(free_s + 1e-4, (k + 1) * size / RATE_HZ)
        stamps = 5000.0 + sent_s - np.arange(size)[::-1] / RATE_HZ
        pieces.append(Stamped(numbered(k * size, size), stamps, 100.0 + sent_s))
        k += 1
    numbers, notes = read(pieces, patience_s=2.0)
    assert numbers == {k: k for k in range(k * size)}
    assert notes == []


def test_a_sender_that_needs_long_to_catch_up_loses_nothing() -> None:
    pieces = [piece(k * N) for k in range(50)]
    for k in range(50, 1200):  # 20 s of it were kept, and take 2 s to send
        sent_s = max(21.0 + (k - 50) * 0.002, (k + 1) * N / RATE_HZ)
        pieces.append(piece(k * N, late_s=sent_s - (k + 1) * N / RATE_HZ))
    numbers, notes = read(pieces)
    assert numbers == {k: k for k in range(1200 * N)}
    assert notes == []


@pytest.mark.parametrize("late_s", [0.03, 0.2, 0.7])
def test_a_delay_after_which_all_comes_on_time_is_no_gap(late_s: float) -> None:
    held = round(late_s * RATE_HZ) // N
    pieces = [piece(k * N) for k in range(50)]
    # The program stood still, and then sent all that it had.
    stuck = [piece(k * N, late_s=(50 + held - k) * N / RATE_HZ) for k in range(50, 50 + held)]
    numbers, notes = read([*pieces, *stuck, *(piece(k * N) for k in range(50 + held, 120))])
    assert numbers == {k: k for k in range(120 * N)}
    assert notes == []


@given(
    sent=st.lists(
        st.tuples(st.integers(1, 3000), st.floats(-12.0, 12.0), st.floats(0.0, 3.0)), max_size=40
    )
)
def test_whatever_the_stamps_are_each_sample_is_given_or_told(
    sent: list[tuple[int, float, float]],
) -> None:
    pieces, now_s, number = [], 100.0, 0
    for n, stamp_s, pause_s in sent:
        now_s += pause_s
        stamps = 5000.0 + stamp_s + np.arange(n) / RATE_HZ
        pieces.append(Stamped(numbered(number, n), stamps, now_s))
        number += n
    numbers, notes = read(pieces)
    dropped = sum(note.n_samples for note in notes if note.kind in ("late", "doubled"))
    assert len(numbers) + dropped == number
    assert len(set(numbers.values())) == len(numbers)


@pytest.mark.parametrize("lost", [300, 1_000, 123_456])
def test_what_is_missing_is_a_gap_to_within_the_tolerance(lost: int) -> None:
    first = [piece(k * N) for k in range(50)]
    rest = [piece(50 * N + lost + k * N) for k in range(50)]
    numbers, notes = read([*first, *rest])
    assert numbers == {k: k for k in [*range(50 * N), *range(50 * N + lost, 100 * N + lost)]}
    assert kinds(notes) == [("gap", lost)]


def test_a_gap_whose_first_samples_are_delayed_too_is_as_long_as_it_was() -> None:
    first = [piece(k * N) for k in range(50)]
    rest = [piece(50 * N + 5000 + k * N, late_s=max(0.0, 0.1 - k * 0.02)) for k in range(50)]
    numbers, notes = read([*first, *rest])
    assert kinds(notes) == [("gap", 5000)]
    assert numbers[50 * N + 5000] == 50 * N + 5000
    assert len(numbers) == 100 * N


def test_a_gap_shows_while_nothing_more_comes() -> None:
    ordering = StampedOrdering(RATE_HZ, patience_s=0.25)
    for k in range(10):
        ordering.put(piece(k * N))
    ahead = piece(10 * N + 4000)
    assert ordering.put(ahead) == []
    assert ordering.waited(ahead.received_s + 0.1) == []
    note, block = ordering.waited(ahead.received_s + 0.3)
    assert isinstance(note, Note)
    assert isinstance(block, Block)
    assert (note.kind, note.n_samples, block.first_sample) == ("gap", 4000, 10 * N + 4000)


def test_pieces_that_come_twice_are_dropped() -> None:
    pieces = [piece(k * 1000, n=1000) for k in range(30)]
    numbers, notes = read([*pieces[:20], pieces[19], pieces[18], *pieces[20:]])
    assert numbers == {k: k for k in range(30_000)}
    assert sum(note.n_samples for note in notes if note.kind == "doubled") == 2000
    assert {note.kind for note in notes} == {"doubled"}


def test_swapped_pieces_are_put_in_their_place() -> None:
    pieces = [piece(k * 1000, n=1000) for k in range(12)]
    swapped = [*pieces[:5], pieces[7], pieces[6], pieces[5], *pieces[8:]]
    numbers, notes = read(swapped)
    assert numbers == {k: k for k in range(12_000)}
    assert {note.kind for note in notes} == {"out of order"}


def test_a_clock_that_was_set_back_begins_a_new_stretch() -> None:
    before = [piece(k * N) for k in range(100)]
    after = [p._replace(stamps_s=p.stamps_s - 4000.0) for p in map(piece, range(40_000, 60_000, N))]
    numbers, notes = read([*before, *after])
    assert {note.kind for note in notes} == {"clock", "gap"}
    # By the clock here, 20,000 samples were not sent.
    assert numbers == {k: k for k in [*range(20_000), *range(40_000, 60_000)]}


@pytest.mark.parametrize(
    ("factor", "kind"),
    [(1.005, "clock"), (0.995, "clock"), (0.5, "changed"), (2.0, "changed")],
)
def test_a_rate_that_is_not_what_it_says_is_told(factor: float, kind: str) -> None:
    pieces = [
        piece(k * 100, n=100, rate=RATE_HZ * factor) for k in range(round(3000 * max(1.0, factor)))
    ]
    numbers, notes = read(pieces)
    assert notes
    assert {note.kind for note in notes} == {kind}
    assert numbers == {k: k for k in range(len(pieces) * 100)}
    shown = notes[0].text.split(" samples come")[0].split()[-1].replace(",", "")
    assert float(shown) == pytest.approx(RATE_HZ * factor, rel=1e-3)
