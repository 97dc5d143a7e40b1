"""What is shown of a live recording: bounded, however long it lasts, and true to what came."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_made import CLASSES, make_board, make_verdicts

from toptune.live.blocks import Note
from toptune.live.board import SHOWN_NOTES, SHOWN_WINDOWS, clock, columns_s, in_columns
from toptune.live.engine import CalibrationProgress, LiveEvent


def test_the_state_goes_from_learning_to_running_to_the_end() -> None:
    board = make_board()
    states = [board.state]
    events: tuple[LiveEvent, ...] = (
        CalibrationProgress(done_s=1.0, span_s=30.0),
        CalibrationProgress(done_s=30.0, span_s=30.0),
        *make_verdicts([0]),
        Note(at_s=3.0, kind="stopped", text="nothing came for 2 s"),
        Note(at_s=3.0, kind="resumed", text="samples come again"),
    )
    for event in events:
        board.take(event)
        states.append(board.state)
    board.end()
    assert states == ["calibrating", "calibrating", "filling", "running", "stopped", "running"]
    assert board.state == "ended"


def test_it_holds_no_more_however_long_the_recording() -> None:
    board = make_board()
    verdicts = list(make_verdicts([0, 1, 0]))
    for k in range(3000):
        board.take(verdicts[k % 3])
        board.take(Note(at_s=k, kind="gap", text="gap", n_samples=10))
    assert len(board.moments) == SHOWN_WINDOWS
    assert len(board.notes) == SHOWN_NOTES
    assert (board.n_windows, board.n_notes, board.n_dropped) == (3000, 3000, 30_000)
    # An hour of five classes is what a browser gets again and again.
    assert len(json.dumps(board.to_json())) < 100_000


def test_lost_samples_are_counted_once() -> None:
    board = make_board()
    board.take(Note(at_s=1.0, kind="gap", text="", n_samples=100))
    assert board.n_dropped == 100
    # They were given up as a gap before.
    board.take(Note(at_s=1.0, kind="late", text="", n_samples=60))
    assert board.n_dropped == 100
    for verdict in make_verdicts([0], n_dropped=130):
        board.take(verdict)
    assert board.n_dropped == 130


def test_the_verdict_so_far_is_the_class_of_most_windows() -> None:
    board = make_board()
    assert board.code is None
    for verdict in make_verdicts([0, 2, 2]):
        board.take(verdict)
    shown = board.to_json()
    assert board.code == 2
    assert shown["verdict"]["so_far"]["prediction"] == CLASSES[2]
    assert shown["verdict"]["so_far"]["windows"] == {"100E0I": 1, "75E25I": 0, "0E100I": 2}
    assert shown["verdict"]["so_far"]["n_windows"] == 3
    assert shown["history"]["stop_s"] == [2.0, 3.0, 4.0]


def test_windows_after_a_gap_do_not_follow_those_before() -> None:
    board = make_board()
    for verdict in (*make_verdicts([0, 0]), *make_verdicts([0, 0], begin_s=9.0)):
        board.take(verdict)
    assert [m.follows for m in board.moments] == [False, True, False, True]


def test_latencies_are_summed_up() -> None:
    board = make_board()
    assert board.latency is None
    (verdict,) = make_verdicts([0], latency_s=0.3)
    (slow,) = make_verdicts([0], latency_s=2.0)
    board.take(slow)
    for _ in range(99):
        board.take(verdict)
    assert board.latency == pytest.approx((0.3, 0.3, 2.0))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=300), st.integers(1, 50))
def test_columns_hold_all_spikes_in_bins_of_one_width(counts: list[int], n: int) -> None:
    (verdict,) = make_verdicts([0])
    given_counts = np.array(counts)
    columns = in_columns(given_counts, n)
    assert columns.sum() == given_counts.sum()
    assert len(columns) <= max(n, 1)
    object.__setattr__(verdict, "counts", given_counts)
    per = round(columns_s(verdict, len(columns)) / verdict.bin_s)
    parts = [given_counts[k : k + per].sum() for k in range(0, len(counts), per)]
    np.testing.assert_array_equal(columns, parts)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754.2, "12:34"), (3661, "1:01:01")]
)
def test_times_are_written_as_clocks_do(seconds: float, text: str) -> None:
    assert clock(seconds) == text
