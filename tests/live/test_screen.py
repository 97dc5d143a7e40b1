"""What a terminal shows of a live recording: it fits, and says what came."""

from __future__ import annotations

import io

import pytest
from live_made import CLASSES, make_board, make_verdicts
from rich.console import Console

from toptune.live.blocks import Note
from toptune.live.board import Board
from toptune.live.engine import CalibrationProgress
from toptune.live.screen import Screen, draw, note_line, verdict_line


def lines_of(board: Board, width: int = 80, *, ascii_only: bool = False) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    console.print(draw(board, width, ascii_only=ascii_only))
    return out.getvalue().rstrip("\n").split("\n")


def full_board(n_classes: int = 3) -> Board:
    classes = [f"a class whose name is much too long to be shown, {k}" for k in range(n_classes)]
    board = make_board(classes=classes, name="n" * 200, model="m" * 200)
    for verdict in make_verdicts([0] * 200, classes=classes, unlike=range(200), n_dropped=10**9):
        board.take(verdict)
    for k in range(30):
        board.take(Note(at_s=k, kind="gap", text=f"{k} " + "gap " * 60, n_samples=1))
    return board


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("n_classes", [2, 12])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_the_fullest_screen_fits(width: int, n_classes: int, ascii_only: bool) -> None:
    lines = lines_of(full_board(n_classes), width, ascii_only=ascii_only)
    assert len(lines) < 24
    assert max(map(len, lines)) < width
    assert "".join(lines).isascii() == ascii_only


def test_before_the_first_verdict_it_says_what_is_waited_for() -> None:
    board = make_board()
    assert "Waiting for the first samples" in lines_of(board)[1]
    board.take(CalibrationProgress(done_s=12.0, span_s=30.0))
    assert "12 of 30 s" in lines_of(board)[1]
    board.take(CalibrationProgress(done_s=30.0, span_s=30.0))
    assert "a window of 2 s is full" in lines_of(board)[1]
    board.take(Note(at_s=31.0, kind="stopped", text="nothing came"))
    assert "has stopped" in lines_of(board)[1]


def test_each_class_has_its_course_with_a_blank_for_a_gap() -> None:
    board = make_board()
    for verdict in (*make_verdicts([0, 0, 1]), *make_verdicts([1], begin_s=50.0)):
        board.take(verdict)
    rows = {line.split()[0]: line for line in lines_of(board)}
    assert rows["100E0I"] == "100E0I 0.10 \u2586\u2586\u2581 \u2581"
    assert rows["75E25I"] == "75E25I 0.80 \u2581\u2581\u2586 \u2586"


def test_the_histogram_is_as_high_as_the_spikes_are_many() -> None:
    board = make_board()
    *_, verdict = make_verdicts([0, 0])  # from 1 to 3 s: a spike in each bin, then two
    board.take(verdict)
    lines = lines_of(board)
    top = next(k for k, line in enumerate(lines) if "up to 6 in 0.03 s" in line) + 1
    half, whole = lines[top + 1 : top + 3]
    assert len(half.split()[0]) == pytest.approx(len(whole.rstrip()) / 2, abs=1)
    assert half.startswith(" ")
    assert lines[top + 3].strip("\u2588") == ""


def test_a_window_unlike_training_and_the_last_notes_are_shown() -> None:
    board = full_board()
    shown = "\n".join(lines_of(board))
    assert "UNLIKE" in shown
    assert "30 notes" in shown
    assert [f"0:{k} gap" in shown for k in (25, 26, 29)] == [False, True, True]


def test_what_a_source_says_cannot_steer_the_terminal() -> None:
    board = make_board(name="\x1b[2Jname [bold]x[/bold]")
    board.take(Note(at_s=0.0, kind="changed", text="\x1b]0;title\x07 [red]"))
    shown = "\n".join(lines_of(board))
    assert "\x1b" not in shown
    assert "[bold]x[/bold]" in shown
    assert "[red]" in shown


def test_lines_say_all_of_a_verdict() -> None:
    *_, verdict = make_verdicts([1, 0, 0], unlike=[2], n_dropped=1234)
    line = verdict_line(verdict)
    assert line == (
        "0:02 - 0:04: 100E0I (probability 0.80), a window UNLIKE those of training; so far 100E0I"
        " in 2 of 3 windows (mean probability 0.57); latency 50 ms; 1,234 samples lost"
    )
    note = Note(at_s=65.0, kind="gap", text="12 samples never came")
    assert note_line(note) == "1:05 gap: 12 samples never came"


def test_the_screen_is_drawn_in_place_and_leaves_nothing() -> None:
    out = io.StringIO()
    out.isatty = lambda: True  # type: ignore[method-assign]  # as a terminal
    console = Console(file=out, width=80, height=24, force_terminal=True, color_system=None)
    board = make_board()
    with Screen(board, console) as screen:
        for verdict in make_verdicts([0] * 5):
            board.take(verdict)
            screen.show()
    from terminal import Screen as Terminal

    terminal = Terminal()
    terminal.write(out.getvalue().replace("\n", "\r\n").encode())
    assert CLASSES[0] in out.getvalue()
    assert not any(line.strip() for line in terminal.lines)
    assert terminal.cursor_shown
