"""The demonstration: what it finds, prints and leaves, its bar, and when it opens the report."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from results import Run
from safetensors.torch import save_file
from terminal import watch

from toptune.cli import demo
from toptune.cli.printing import remaining_s
from toptune.params import Windows
from toptune.recordings import simulated

TESTS = Path(__file__).parents[1]


@pytest.fixture
def small(tiny_backbones: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the demonstration be of 10 recordings of 4 s, in a folder of the test."""
    del tiny_backbones
    run = demo.run_demo
    monkeypatch.setattr(demo, "BACKBONE", "tiny")
    monkeypatch.setattr(demo, "WINDOWS", Windows(width_s=2, stride_s=1))
    monkeypatch.setattr(
        demo, "run_demo", lambda *given, **named: run(*given, **named, n_devices=10, seconds=4)
    )
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def true_spikes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the recordings be the true spikes of the cultures, without voltage, which takes long."""
    real: Callable[..., Path] = simulated.simulate

    def spikes_only(*given: Any, **named: Any) -> Path:
        table = real(*given, **named)
        table.write_text(table.read_text("utf-8").replace(".h5", ".truth.npz"), "utf-8")
        return table

    monkeypatch.setattr(simulated, "_write_recording", lambda *_: None)
    monkeypatch.setattr(simulated, "simulate", spikes_only)


@pytest.mark.usefixtures("true_spikes", "tiny_backbones", "one_torch_thread")
@pytest.mark.parametrize("seed", [0, 1])
def test_the_result_is_clearly_above_chance(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "BACKBONE", "tiny")
    # Reports take longer than the rest.
    monkeypatch.setattr("toptune.training.write_report", lambda *_, **__: None)
    result = demo.run_demo(tmp_path / "demo", seed=seed)
    m = result.metrics["falkon"]
    assert (m["n_devices"], m["chance"]) == (20, 0.2)
    assert m["device_accuracy"] >= 0.55
    assert m["device_accuracy_ci95"][0] > 0.3
    assert m["permutation_p"] <= 0.005


@pytest.mark.usefixtures("small")
def test_what_counts_is_on_top_and_the_report_comes_last(run: Run) -> None:
    ran = run("demo", "--n-jobs", 1)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0].startswith("10 simulated cultures of 5 kinds, 4 s each, ")
    places = [
        next(k for k, line in enumerate(lines) if text in line)
        for text in (
            "falkon on burst parameters: ",
            "always naming one kind: 2 of 10; 95 % interval",
            "for testing only, falkon on pictures: ",
            "RANDOM weights",
            "were deleted after use. The same again:",
            "MB are left in toptune-demo/",
        )
    ]
    assert places == sorted(places)
    assert lines[-2] == "report: toptune-demo/run-falkon/report.html"
    assert lines[-1].startswith("open it")
    assert max(map(len, [line for line in lines if "simulate toptune" not in line])) <= 85
    report = Path(lines[-2].removeprefix("report: ")).read_text("utf-8")
    assert "RANDOM" not in report
    assert "RANDOM weights" in Path("toptune-demo/run-pictures/report.html").read_text("utf-8")
    # Steps are told where there is no bar, and nothing else.
    assert [line[:4] for line in ran.err.splitlines()] == ["... "] * 5
    # A second of recordings takes 0.8 MB, so 40 take more.
    assert list(Path("toptune-demo").rglob("*.h5")) == []
    assert demo.folder_mb(Path("toptune-demo")) < 10
    said = json.loads(Path("toptune-demo/run-falkon/metrics.json").read_text("utf-8"))
    right = round(said["device_accuracy"] * 10)
    assert f"falkon on burst parameters: {right} of 10 cultures right" in lines


@pytest.mark.usefixtures("small")
def test_the_line_on_deleted_recordings_makes_the_same_again(run: Run) -> None:
    kept = run("demo", "--keep", "--out", "kept", "--n-jobs", 1, "--seed", 3, "--json")
    told = json.loads(kept.out)
    assert set(told) == {"folder", "seconds", "metrics", "report"}
    assert Path(told["report"]).is_file()
    assert set(told["metrics"]) == {"falkon", "pictures"}
    recordings = {path.name: path.read_bytes() for path in Path("kept/recordings").glob("*.h5")}
    assert len(recordings) == 10
    assert demo.folder_mb(Path("kept")) > 20
    assert not Path("kept/recordings/README.txt").exists()

    lines = run("demo", "--out", "a folder", "--n-jobs", 1, "--seed", 3).out.splitlines()
    place = Path("a folder/recordings")
    assert list(place.glob("*.h5")) == []
    (line,) = (line for line in lines if line.startswith("  toptune simulate"))
    assert line in (place / "README.txt").read_text("utf-8")
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {line.strip()}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert run(*words[1:]).code == 0
    assert {path.name: path.read_bytes() for path in place.glob("*.h5")} == recordings


@pytest.mark.usefixtures("small")
def test_pictures_join_where_weights_are_trained(run: Run, tmp_path: Path) -> None:
    # The tiny network does not read it.
    save_file({"weight": torch.zeros(1)}, tmp_path / "trained.safetensors")
    ran = run("demo", "--weights", tmp_path / "trained.safetensors", "--n-jobs", 1)
    assert ran.code == 0, ran.err
    assert "falkon on pictures and burst parameters: " in ran.out
    assert "beside it, falkon on burst parameters alone: " in ran.out
    assert "RANDOM" not in ran.out + ran.err
    params = json.loads(Path("toptune-demo/run-falkon/params.json").read_text("utf-8"))
    assert len(params["features"]["views"]) == 2
    assert Path("toptune-demo/run-parameters/report.html").is_file()


def test_the_time_left_is_the_expected_one_first_and_the_measured_one_soon() -> None:
    assert remaining_s(0, 0, 30) == 30
    # A machine of a third of the speed.
    assert remaining_s(9, 0.1, 30) == pytest.approx(0.9 * (10 + 60))
    assert remaining_s(18, 0.2, 30) == pytest.approx(72)
    assert remaining_s(90, 1, 30) == 1


WATCHED = """
import sys
import every_command
every_command.make_small()
sys.argv = ["toptune", "demo", "--n-jobs", "1"]
from toptune.cli.app import main
main()
"""


def test_the_bar_with_the_time_left_fits_a_terminal_of_80_columns(tmp_path: Path) -> None:
    code, written, printed = watch(WATCHED, tmp_path, columns=80, stdout_apart=True)
    shown = written.decode()
    assert code == 0, shown
    assert printed.decode().splitlines()[-2] == "report: toptune-demo/run-falkon/report.html"
    frames = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", part) for part in re.split(r"[\r\n]", shown)]
    frames = [frame for frame in frames if frame.strip()]
    # From the first one on, before the work begins.
    bar = re.compile("[\u2501\u2578\u257a]{24} about \\d+ (s|min) left *$")
    assert [frame for frame in frames if not bar.search(frame)] == []
    assert max(map(len, frames)) <= 80
    assert any(frame.startswith("simulating cultures ") for frame in frames)
    assert any(re.match(r"finding spikes, drawing \d+/10 ", frame) for frame in frames)
    assert any("leaving each culture out" in frame for frame in frames)


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({"DISPLAY": ":0"}, "linux", True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True),
        ({}, "linux", False),
        ({}, "darwin", True),
        ({}, "win32", True),
        ({"DISPLAY": ":0", "CI": "true"}, "linux", False),
        ({"DISPLAY": ":10", "SSH_CONNECTION": "1 2 3 4"}, "linux", False),
        ({"SSH_TTY": "/dev/pts/1"}, "darwin", False),
    ],
)
def test_there_is_a_screen_only_where_a_person_sees_it(
    environment: dict[str, str], platform: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert demo.has_screen(environment, platform) is expected
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert not demo.has_screen(environment, platform)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("options", [(), ("--no-open",), ("--json",)])
def test_the_report_is_opened_unless_told_otherwise(
    options: tuple[str, ...], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    class Browser:
        def open(self, address: str) -> bool:
            opened.append(address)
            return True

    monkeypatch.setattr("webbrowser.get", Browser)
    monkeypatch.setattr(demo, "has_screen", lambda *_: True)
    ran = run("demo", "--n-jobs", 1, *options)
    assert ran.code == 0
    report = Path("toptune-demo/run-falkon/report.html").resolve().as_uri()
    assert opened == ([] if options else [report])
    assert ("It is open in your browser." in ran.out) == (not options)


def test_how_to_open_is_said_for_each_system() -> None:
    path = Path("my demo/report.html")
    assert demo.how_to_open(path, {}, "darwin") == "open it: open 'my demo/report.html'"
    assert "xdg-open 'my demo" in demo.how_to_open(path, {"DISPLAY": ":0"}, "linux")
    assert "any browser" in demo.how_to_open(path, {}, "linux")
    assert demo.how_to_open(path, {}, "win32").startswith('open it: start "" "')
