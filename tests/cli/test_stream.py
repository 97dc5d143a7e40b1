"""The command that gives verdicts live: in a terminal, as JSON, as a page, on a disk."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from browser import Browser, browser, needs_chromium
from live_made import files_no_longer_than
from needs import package
from results import Run, read_csv, read_json
from small_data import train_small_run, write_mcs
from terminal import TESTS, watch

from toptune.cli import live
from toptune.live.detection import Calibration
from toptune.params import Compute, Picture
from toptune.prediction import predict
from toptune.runs.verdicts import Predictions

pytestmark = pytest.mark.usefixtures("one_torch_thread", "tiny_backbones")
unix = pytest.mark.skipif(os.name == "nt", reason="Windows: it sends no signals")

PROGRAM = """
import every_command
every_command.make_small()
import sys
sys.argv = ["toptune", *{words!r}]
from toptune.cli.app import main
main()
"""
N_WINDOWS = 7  # of 2 s every second, in 8 s


class Made(NamedTuple):
    folder: Path  # with new.h5 (8 s), long.h5 (60 s), the run and thresholds.json of new.h5
    predictions: Predictions

    def words(self, *more: object, recording: str = "new.h5") -> list[str]:
        """Words of a command that learns its thresholds in a second."""
        return ["stream", "run", recording, "--calibration-s", "1", *map(str, more)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_backbones: None) -> Made:
    """Make a run and a recording; tests do not change them."""
    del tiny_backbones
    folder = tmp_path_factory.mktemp("made")
    run = train_small_run(folder, Picture(kind="histogram"))
    write_mcs(folder / "new.h5", seed=70, rate_hz=10.0)
    write_mcs(folder / "long.h5", seed=71, rate_hz=10.0, seconds=60.0)
    compute = Compute(device="cpu", n_jobs=1)
    found = predict(run, folder / "new.h5", out=folder / "predicted", compute=compute)
    Calibration.of_recording(folder / "new.h5", n_jobs=1).write(folder / "thresholds.json")
    return Made(folder, found)


@pytest.fixture(autouse=True)
def _in_its_folder(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made.folder)


def start(made: Made, words: list[str]) -> subprocess.Popen[str]:
    """Start a program; what it prints comes by pipes."""
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(words=words)],
        cwd=made.folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.fixture
def started(made: Made) -> Iterator[list[subprocess.Popen[str]]]:
    """Programs that are ended with the test."""
    del made
    programs: list[subprocess.Popen[str]] = []
    yield programs
    for one in programs:
        one.kill()
        one.communicate()


def test_with_the_recordings_own_thresholds_the_tables_are_those_of_predict(
    made: Made, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "out"
    ran = run(
        *("stream", "run", "new.h5", "--speed", "max", "--thresholds", "thresholds.json"),
        *("-o", out, "--device", "cpu"),
    )
    assert (ran.code, ran.err) == (0, "")
    recording = str(made.folder / "new.h5")
    for name in ("windows.csv", "verdicts.csv"):
        predicted = (made.folder / "predicted" / name).read_text("utf-8")
        assert (out / name).read_text("utf-8") == predicted.replace(recording, "new.h5")
    *lines, report = ran.out.splitlines()
    assert report == f"report: {out / 'report.html'}"
    assert len([line for line in lines if "latency" in line]) == N_WINDOWS
    assert (out / "report.html").read_text("utf-8").count("<article") == 1
    (verdict,) = made.predictions.recordings
    assert f"new.h5: {verdict.prediction} (probability {verdict.probability:.2f})" in ran.out
    again = tmp_path / "again"
    ran = run(
        *("stream", "run", "new.h5", "--speed", "max", "--thresholds", out / "thresholds.json"),
        *("-o", again, "--device", "cpu"),
    )
    assert (again / "windows.csv").read_bytes() == (out / "windows.csv").read_bytes()


def test_json_is_a_line_a_verdict(made: Made, run: Run) -> None:
    ran = run(*made.words("--speed", "max", "--json", "--stride-s", "2"))
    assert (ran.code, ran.err) == (0, "")
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert [line["stop_s"] for line in lines] == [2.0, 4.0, 6.0, 8.0]
    for n, line in enumerate(lines, 1):
        assert line["probabilities"][line["prediction"]] == line["probability"]
        assert sum(line["probabilities"].values()) == pytest.approx(1)
        assert line["so_far"]["n_windows"] == sum(line["so_far"]["windows"].values()) == n
        assert 0 <= line["latency_s"] < 60
        assert (line["n_samples_lost"], line["notes"]) == (0, [])


def test_refusals_name_the_options_of_the_command(run: Run) -> None:
    ran = run("stream", "run", "new.h5", "--calibration-s", "1e7")
    assert (ran.code, ran.out) == (2, "")
    assert "let --calibration-s be" in ran.err
    assert "give thresholds by --thresholds" in ran.err
    ran = run("stream", "run", "new.h5", "--header", "thresholds.json")
    assert (ran.code, ran.out) == (2, "")
    assert "thresholds.json: is not TOML" in ran.err
    ran = run("stream", "run", "-")
    assert (ran.code, ran.err) == (
        2,
        "error: standard input: say by --header how its samples are laid out\n",
    )
    ran = run("stream", "run", "new.h5", "--thresholds", "devices.csv")
    assert (ran.code, ran.out) == (2, "")
    assert "devices.csv holds no thresholds of toptune" in ran.err


def test_a_recording_shorter_than_a_window_has_no_verdict_but_a_report(
    tmp_path: Path, run: Run
) -> None:
    write_mcs(tmp_path / "short.h5", seed=1, seconds=1.5)
    ran = run(
        *("stream", "run", tmp_path / "short.h5", "--speed", "max", "--calibration-s", "1"),
        *("-o", tmp_path / "out"),
    )
    assert ran.code == 1
    assert "error: there is no verdict: it ended before a window of 2 s was full" in ran.err
    assert "No recording could be judged" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_verdicts_go_on_where_the_disk_is_full(made: Made, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    # Room for the other files at the beginning, and for the first windows.
    words = made.words("--speed", "max", "--stride-s", "0.2", recording="long.h5")
    with files_no_longer_than(5000):
        ran = run(*words, "-o", out, "--json")
    assert len(ran.out.splitlines()) == 291
    assert (ran.code, ran.err.count("verdicts go on")) == (1, 1)
    assert ran.err.splitlines()[-1].startswith("error: ")
    assert "make room" in ran.err
    rows = read_csv(out / "windows.csv")
    assert 10 < len(rows) < 291
    assert {len(row) for row in rows} == {8}


def test_verdicts_go_on_where_what_is_printed_cannot_be_written(
    made: Made, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full: not on this system")
    out = tmp_path / "out"
    full = Path("/dev/full").open("w")  # noqa: SIM115  # closing it fails as well
    monkeypatch.setattr("sys.stdout", full)
    monkeypatch.setattr(live, "let_go", lambda: None)  # it is for the stdout of the process
    ran = run(*made.words("--speed", "max", "-o", out, "--json"))
    with pytest.raises(OSError, match="No space"):
        full.close()
    assert ran.code == 1
    assert ran.err.count("cannot be written (No space left on device): verdicts go on") == 1
    assert "not all verdicts could be printed" in ran.err.splitlines()[-1]
    assert len(read_csv(out / "windows.csv")) == N_WINDOWS
    assert [row["kind"] for row in read_csv(out / "notes.csv")] == ["disk"]


def test_lines_are_whole_and_in_order_when_there_is_room_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = [f"{k} {'x' * 60}" for k in range(20)]
    told = []
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr("sys.stdout", out)
        printed = live._Lines()
        with files_no_longer_than(300):
            told += [printed.put(line) for line in lines[:10]]
        told += [printed.put(line) for line in lines[10:]]
        monkeypatch.undo()
    assert (tmp_path / "out").read_text().splitlines() == lines
    assert [cause for cause in told if cause is not None] == ["File too large"]


@unix
def test_an_interrupt_waits_until_a_verdict_was_recorded_and_shown() -> None:
    before = signal.getsignal(signal.SIGINT)
    given: list[int] = []
    ending = live._Ending()
    with ending:
        for event in ending.events(range(1, 9)):
            if event == 3:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
            given.append(event)
    assert given == [1, 2, 3]
    assert signal.getsignal(signal.SIGINT) is before


@unix
def test_an_interrupt_ends_the_waiting_at_once() -> None:
    def slowly() -> Iterator[int]:
        yield 1
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
        yield 2

    ending = live._Ending()
    began = time.monotonic()
    with ending:
        assert list(ending.events(slowly())) == [1]
    assert time.monotonic() - began < 30


@unix
def test_ctrl_c_in_a_terminal_ends_it_with_a_report_and_a_clean_screen(
    made: Made, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    program = PROGRAM.format(words=made.words("-o", out, recording="long.h5"))
    seen = watch(program, made.folder, press_at=lambda text: "of 2 windows" in text)
    assert seen.code == 0, seen.written.decode()
    text = seen.written.decode()
    assert "Learning thresholds" in text
    assert "Traceback" not in text
    assert "interrupted" not in text
    screen = seen.screen()
    assert screen.cursor_shown
    # What was drawn has gone; what it came to stands there.
    assert screen.lines[0].startswith("long.h5: ")
    assert "report: " in "".join(screen.lines)
    n = len(read_csv(out / "windows.csv"))
    assert 2 <= n < 59
    assert read_json(out / "predictions.json")["recordings"][0]["n_windows"] == n
    assert read_json(out / "live.json")["ended"]
    assert (out / "report.html").exists()


@unix
def test_what_was_given_before_a_kill_is_on_the_disk(
    made: Made, tmp_path: Path, run: Run, started: list[subprocess.Popen[str]]
) -> None:
    out = tmp_path / "out"
    program = start(made, made.words("-o", out, "--json"))
    started.append(program)
    assert program.stdout is not None
    given = [json.loads(program.stdout.readline()) for _ in range(3)]
    program.kill()
    rows = read_csv(out / "windows.csv")
    assert [(float(r["start_s"]), r["prediction"]) for r in rows[:3]] == [
        (line["start_s"], line["prediction"]) for line in given
    ]
    assert read_json(out / "predictions.json")["kind"] == "toptune predictions"
    assert read_json(out / "live.json")["ended"] is False
    assert (out / "thresholds.json").exists()
    assert not (out / "report.html").exists()
    ran = run(*made.words("--speed", "max", "-o", out, "--overwrite"))
    assert ran.code == 0
    assert len(read_csv(out / "windows.csv")) == N_WINDOWS


STATE = "document.documentElement.dataset.state"


def wait_for(chromium: Browser, expression: str) -> None:
    until = time.monotonic() + 60
    while not chromium.evaluate(expression):
        assert time.monotonic() < until, expression
        time.sleep(0.05)


@unix
@needs_chromium
def test_a_page_shows_the_same_while_it_goes_on(
    made: Made, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    for name in ("starlette", "uvicorn"):
        package(name)
    words = made.words("--serve", "127.0.0.1:0", "--json", "-o", tmp_path / "out")
    program = start(made, words)
    started.append(program)
    assert program.stderr is not None
    assert program.stdout is not None
    said = program.stderr.readline()
    found = re.fullmatch(r"page: (http://127\.0\.0\.1:\d+/[\w-]{32}/)\n", said)
    assert found, said
    with browser(tmp_path / "profile") as chromium:
        visit = chromium.open(found[1], width=1000)
        wait_for(chromium, f"{STATE} == 'running'")
        # As a service manager does, and as Ctrl-C: the page shows the end, too.
        program.send_signal(signal.SIGTERM)
        wait_for(chromium, f"{STATE} == 'ended'")
        lines = [json.loads(line) for line in program.stdout]
        last = lines[-1]["so_far"]
        votes = last["windows"][last["prediction"]]
        lead = chromium.evaluate("document.getElementById('lead').textContent")
        assert lead.startswith(f"It was {last['prediction']}, in {votes} of {len(lines)} window")
        assert visit.complaints == []
    assert program.stderr.read() == f"report: {tmp_path / 'out' / 'report.html'}\n"
    assert program.wait(60) == 0
