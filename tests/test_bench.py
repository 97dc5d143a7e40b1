"""That what `toptune bench` says follows from work that was done; how fast it was is not tested."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from results import Run

from toptune import bench as module
from toptune.bench import STUDY, BenchResult, Sizes, Stage, Stages, _measure, _Plan, bench
from toptune.cli.machine import print_bench
from toptune.errors import InputError, ToptuneError
from toptune.params import Compute, PictureKind

SIZES = Sizes(recording_s=2, pictures=3, devices=5 * 2, windows_a_device=4, features=12, epochs=2)
pytestmark = pytest.mark.usefixtures("one_torch_thread", "tiny_backbones")

CPU = Compute(device="cpu")
MACHINE = {"device_name": None, "cpu": "Some CPU", "cpus": 2}


@pytest.fixture(scope="module")
def result() -> BenchResult:
    return bench(compute=CPU, backbones=("tiny", "tiny_too", "tiny"), quick=True, sizes=SIZES)


def named(result: BenchResult, name: str) -> Stage:
    (found,) = [stage for stage in result.stages if stage.name == name]
    return found


def test_every_stage_is_there_once_and_took_time(result: BenchResult) -> None:
    names = [stage.name for stage in result.stages]
    assert len(set(names)) == len(names)
    assert [n for n in names if n.startswith("tiny")] == ["tiny", "tiny_too"]
    for stage in result.stages:
        assert stage.device == "cpu"
        assert stage.seconds > 0
        assert stage.rounds >= 1
        assert stage.per_second == pytest.approx(stage.amount / stage.seconds)


def test_amounts_are_the_work_that_was_asked_for(result: BenchResult) -> None:
    # 60 electrodes, of which the reference is left out.
    samples = 59 * 2 * 10_000
    for name in ("reading an MCS file", "filter, in memory", "PTSD, in memory",
                 "merely reading that memory", "file to spikes"):  # fmt: skip
        assert named(result, name).amount == samples
    # Tiny backbones look at 32 x 32 pixels.
    for name in (*(f"drawing, {k}, 32 x 32" for k in get_args(PictureKind)), "tiny", "tiny_too"):
        assert named(result, name).amount == 3
    assert named(result, "Falkon, leave one device out").amount == 40
    # Ten folds of 36 training rows, twice.
    assert named(result, "MLP, leave one device out").amount == 2 * 10 * 36


def test_the_study_is_the_papers() -> None:
    assert STUDY.windows == 5024
    assert STUDY.samples == 32 * 60 * 15 * 60 * 10_000
    assert STUDY.trained_rows == 25 * 32 * 31 * 157


def test_the_study_follows_from_the_rates(result: BenchResult) -> None:
    work = {
        "file to spikes": STUDY.samples,
        "drawing, histogram, 32 x 32": STUDY.windows,
        "tiny": STUDY.windows,
        "MLP, leave one device out": STUDY.trained_rows,
    }
    for name, amount in work.items():
        stage = named(result, name)
        assert stage.study_seconds == pytest.approx(amount / stage.per_second)
    falkon = named(result, "Falkon, leave one device out")
    assert falkon.study_seconds == pytest.approx(falkon.seconds * (5024 / 40) ** 3)
    assert "windows^3" in falkon.note
    counted = [stage for stage in result.stages if result.share(stage) is not None]
    assert {stage.name for stage in counted} == {*work, falkon.name}
    assert sum(result.share(stage) or 0 for stage in counted) == pytest.approx(1)
    assert result.study_seconds == pytest.approx(sum(s.study_seconds or 0 for s in counted))


def test_random_weights_are_said(result: BenchResult) -> None:
    assert named(result, "tiny").note == "random weights"


def test_json_holds_everything(result: BenchResult) -> None:
    told = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert [stage["name"] for stage in told["stages"]] == [s.name for s in result.stages]
    assert told["study"]["seconds"] == pytest.approx(result.study_seconds)
    assert told["study"]["windows"] == 5024
    for stage in told["stages"]:
        assert stage["per_second"] > 0
        assert (stage["study_share"] is None) == (not stage["in_total"])


# --- how it is timed


class Clock:
    """Goes on by what the work says it takes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("toptune.bench.time.perf_counter", lambda: self.now)

    def work(self, seconds: list[float], amounts: list[float] | None = None) -> Any:
        left: Iterator[float] = iter(seconds)
        done = iter(amounts or [5.0] * len(seconds))

        def work() -> float:
            self.now += next(left)
            return next(done)

        return work


def plan(work: Any, **more: Any) -> _Plan:
    return _Plan("thing", "cpu", "pieces", work, **more)


def test_the_best_round_counts_and_the_first_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Clock(monkeypatch).work([0.5, 3.0, 2.0, 4.0])
    found = _measure(plan(work, study_amount=10), budget_s=100, most=3)
    assert (found.amount, found.seconds, found.rounds) == (5, 2.0, 3)
    assert found.study_seconds == 4.0


def test_rounds_end_when_the_budget_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Clock(monkeypatch).work([1.0] * 9)
    assert _measure(plan(work), budget_s=2.5, most=8).rounds == 3
    work = Clock(monkeypatch).work([60.0] * 2)
    assert _measure(plan(work), budget_s=2.5, most=8).rounds == 1


def test_work_that_differs_from_round_to_round_is_no_measurement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = Clock(monkeypatch).work([1.0] * 3, [5.0, 5.0, 4.0])
    with pytest.raises(ToptuneError, match="thing did 4 pieces, and 5 before"):
        _measure(plan(work), budget_s=100, most=3)


# --- what is refused, where it runs, what is printed


def test_bad_input_is_refused_before_anything_is_measured() -> None:
    steps: list[str] = []
    with pytest.raises(InputError, match="name at least one backbone"):
        bench(backbones=(), step=steps.append)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="torch finds no GPU"):
            bench(compute=Compute(device="cuda"), step=steps.append)
    assert steps == []
    with pytest.raises(InputError, match=r"Sizes\.pictures must be above 0, got 0"):
        Sizes(pictures=0)
    with pytest.raises(InputError, match=r"Sizes\.recording_s must be above 0, got nan"):
        Sizes(recording_s=math.nan)


def test_an_unknown_backbone_is_refused_before_the_recording_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a recording was simulated for nothing")

    monkeypatch.setattr("toptune.recordings.simulated.simulate", never)
    with pytest.raises(InputError, match="there is no backbone 'efficientnet_b99'"):
        bench(compute=CPU, backbones=("efficientnet_b99",), sizes=SIZES)


def test_the_temporary_folder_is_gone_afterwards(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    bench(compute=CPU, backbones=("tiny",), quick=True, sizes=SIZES)
    assert list(tmp_path.iterdir()) == []


def test_a_recording_is_simulated_once(tmp_path: Path) -> None:
    stages = Stages(tmp_path, SIZES, "cpu", 1)
    assert stages.recording is stages.recording
    assert stages.read() == stages.filter() == stages.memory()


def test_the_table_tells_rates_shares_and_the_total(
    result: BenchResult, capsys: pytest.CaptureFixture[str]
) -> None:
    print_bench(result, MACHINE)
    out = capsys.readouterr().out
    assert all(stage.name in out for stage in result.stages)
    assert "study: 32 devices x 15 min, 60 channels at 10 kHz, 5024 windows" in out
    assert "in all" in out
    assert "Some CPU, 2 cores; quick, so only roughly measured" in out
    assert "tiny: random weights" in out


def test_the_command_prints_pure_json_on_stdout(
    result: BenchResult, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    def canned(**options: Any) -> BenchResult:
        assert options["backbones"] == ["tiny", "tiny_too"]
        assert options["quick"]
        options["step"]("PTSD, in memory")
        return result

    monkeypatch.setattr(module, "bench", canned)
    arguments = ["bench", "--quick", "--backbone", "tiny", "--backbone", "tiny_too", "--json"]
    ran = run(*arguments)
    assert ran.code == 0
    told = json.loads(ran.out)
    assert told["machine"]["packages"]["torch"]
    assert len(told["stages"]) == len(result.stages)
    assert "... PTSD, in memory" in ran.err


@pytest.mark.gpu
def test_a_gpu_does_what_it_can() -> None:
    found = bench(compute=Compute(device="cuda"), backbones=("tiny",), quick=True, sizes=SIZES)
    assert {s.name for s in found.stages if s.device == "cuda"} == {
        *(f"drawing, {kind}, 32 x 32" for kind in get_args(PictureKind)),
        "tiny",
        "Falkon, leave one device out",
        "MLP, leave one device out",
    }
