"""A terminal is left as it was found, and is wide enough for what is shown in it."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from small_data import write_data_set
from terminal import watch

from toptune.cli import printing
from toptune.cli.printing import BarWidths, _count_text, shorten

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows: it has no pseudo-terminals")
INTERRUPTED = "interrupted; what was published is kept"
TINY = "--window-s 2 --stride-s 1 --backbone tiny --weights random"

PROGRAM = """
import every_command
every_command.make_small()
{slow}
sys.argv = ["toptune", *{words!r}]
from toptune.cli.app import main
main()
"""
# Work that lasts until it is interrupted, in the midst of each command.
SLOW_SPIKES = """
import time
from toptune.spikes import finding
real = finding.find_spikes
def slowly(*given, stage, **named):
    for k in range(3000):
        stage("spikes", k, 3000)
        time.sleep(0.01)
    return real(*given, stage=stage, **named)
finding.find_spikes = slowly
"""
SLOW_FIT = """
import time
from toptune.heads.falkon import head
def slowly(*given, progress=None, **named):
    for k in range(3000):
        progress("settings", k, 3000)
        time.sleep(0.01)
from toptune import training
real = training.fit
def fit(*given, **named):
    return slowly(progress=named["progress"])
training.fit = fit
"""
SLOW_SIMULATION = """
import time
from toptune.recordings import simulated
real = simulated._simulate_device
def slowly(*given):
    time.sleep(0.5)
    real(*given)
simulated._simulate_device = slowly
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, its store and a run; look, do not touch."""
    folder = tmp_path_factory.mktemp("made")
    write_data_set(folder)
    (folder / "grid.toml").write_text(
        'window_s = 2\nstride_s = 1\nbackbone = "tiny"\nweights = "random"\nhead = "falkon"\n'
    )
    extract = ["extract", "devices.csv", "--store", "s.zarr", *TINY.split()]
    fit = ["fit", "s.zarr", "-o", "run", "--no-tune", "--permutations", "0"]
    for words in (extract, fit):
        seen = watch(PROGRAM.format(slow="", words=words), folder)
        assert seen.code == 0, seen.written.decode()
    return folder


INTERRUPTED_WORK = {
    "extract": (SLOW_SPIKES, f"extract devices.csv --store new.zarr {TINY}", "spikes"),
    "fit": (SLOW_FIT, "fit s.zarr -o new", "settings"),
    "predict": (SLOW_SPIKES, "predict run/model r0.h5 r1.h5", "spikes"),
    "sweep": (SLOW_SPIKES, "sweep devices.csv grid.toml -o swept", "spikes"),
    "why": (SLOW_SPIKES, "why run/model r0.h5 -o why", "spikes"),
    "simulate": (SLOW_SIMULATION, "simulate sim --devices 9 --seconds 2 --n-jobs 1", "1/9"),
    "demo": (SLOW_SIMULATION, "demo --n-jobs 1", "simulating cultures 1/"),
}


@pytest.mark.parametrize("name", INTERRUPTED_WORK)
def test_an_interrupt_leaves_the_terminal_clean(name: str, folder: Path, tmp_path: Path) -> None:
    slow, line, shown = INTERRUPTED_WORK[name]
    work = tmp_path / "work"
    work.mkdir()
    for path in folder.iterdir():
        (work / path.name).symlink_to(path)
    program = PROGRAM.format(slow=slow, words=line.split())
    seen = watch(program, work, press_at=lambda text: shown in text)
    text = seen.written.decode()
    assert seen.code == 130, text
    assert "Traceback" not in text
    assert "\x1b[?25l" in text  # there was a bar, which hides the cursor
    screen = seen.screen()
    assert screen.cursor_shown
    # The message alone on its line, no part of a bar, and the prompt at the line's beginning.
    assert screen.lines[0] == INTERRUPTED
    assert not any(screen.lines[1:])
    assert (screen.row, screen.column) == (1, 0)


def test_the_second_interrupt_leaves_the_cursor_to_be_seen(folder: Path) -> None:
    stubborn = """
import time
from toptune.spikes import finding
def never(*given, stage, **named):
    stage("spikes", 0, 9)
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            stage("spikes", 1, 9)
finding.find_spikes = never
"""
    words = ["extract", "devices.csv", "--store", "no.zarr", *TINY.split()]
    waits = iter(["0/9", "1/9"])
    wanted = [next(waits)]

    def now(text: str) -> bool:
        if wanted[0] not in text:
            return False
        wanted[0] = next(waits, "never")
        return True

    program = PROGRAM.format(slow=stubborn, words=words)
    seen = watch(program, folder, press_at=now, presses=2)
    assert seen.code == -2, seen.written.decode()
    assert seen.screen().cursor_shown


# --- bars


@given(st.integers(30, 300), st.booleans(), st.booleans())
def test_columns_are_shared_so_that_no_line_breaks(
    columns: int, counted: bool, extra: bool
) -> None:
    widths = BarWidths.of(columns, counted=counted, extra=extra)
    n_columns = 4 if counted else 3
    used = sum(widths) + (9 if counted else 0) + n_columns - 1
    assert widths.bar >= 8
    assert used < columns or columns < 50
    if columns >= 60:
        assert widths.bar >= 18
        assert widths.description >= 6


@given(st.text(st.characters(codec="ascii"), max_size=60), st.integers(1, 70))
def test_long_names_lose_their_middle(text: str, width: int) -> None:
    short = shorten(text, width)
    assert len(short) <= width
    if len(text) <= width:
        assert short == text
        return
    begin, end = short.split("\u2026")
    assert text.startswith(begin)
    assert text.endswith(end)
    assert len(end) >= len(begin)


LONG = "2024-03-17 culture of a name that is much too long for any bar, div 21, basal_0001.h5"


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_bars_keep_their_width_beside_long_names(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    out.isatty = lambda: True  # type: ignore[method-assign]  # as a terminal
    real = Console

    def console(**_: object) -> Console:
        return real(file=out, width=columns, force_terminal=True, color_system="standard")

    monkeypatch.setattr("rich.console.Console", console)
    with printing.watch_recordings() as watching:
        watching.recording(3, 217, LONG)
        watching.stage("spikes", 123_456_789, 987_654_321)
    with printing.watch_sweep() as sweeping:
        sweeping.begin(1234, 96)
        sweeping.doing("features of efficientnet_b0, histogram axis window, 120 s every 5 s")
        sweeping.recording(3, 217, LONG)
        sweeping.left(3000, False)
    with printing.watch_recording_steps(2, {"gaps": 1.0}, 30) as explaining:
        explaining.recording(1, 2, LONG)
        explaining.stage("gaps", 1, 4)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    lines = [line for line in re.split(r"[\r\n]", shown) if line.strip()]
    assert len(lines) >= 6
    assert max(map(len, lines)) < columns + 1
    for line in lines:
        drawn = max(re.findall("[\u2501\u2578\u257a]+", line), key=len, default="")
        assert len(drawn) >= min(18, columns // 3 - 2), line
    assert any("\u2026" in line and "basal_0001.h5" in line for line in lines)
    assert any("left" in line for line in lines)


def test_very_many_samples_are_told_in_per_cent() -> None:
    assert _count_text(3, 217) == "3/217"
    assert _count_text(123_456_789, 987_654_321) == "12%"
    assert _count_text(0, None) == ""


def test_the_time_left_of_an_explanation_is_there_from_the_start(folder: Path) -> None:
    words = ["why", "run/model", "r0.h5", "r1.h5", "-o", "why"]
    seen = watch(PROGRAM.format(slow="", words=words), folder)
    text = seen.written.decode()
    assert seen.code == 0, text
    frames = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", part) for part in re.split(r"[\r\n]", text)]
    bars = [frame for frame in frames if "\u2501" in frame]
    assert bars
    assert [bar for bar in bars if not re.search(r" about \d+ (s|min) left *$", bar)] == []
    assert any("[2/2] r1.h5" in bar for bar in bars)
    lines = [line for line in seen.screen().lines if line]
    assert lines[-1] == "report: why/why.html"
    assert [line.split(":")[0] for line in lines if line.startswith("r")] == [
        "r0.h5",
        "r1.h5",
        "report",
    ]
