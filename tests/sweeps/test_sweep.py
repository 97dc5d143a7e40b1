"""Sweeps: runs are what extract and fit give, nothing is done twice, failures stop only theirs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from results import read_csv, read_json
from small_data import write_data_set, write_devices

from toptune import extraction
from toptune import training as fit_module
from toptune.backbones import engine as features
from toptune.backbones.engine import OpenVinoNetwork
from toptune.errors import DeviceMemoryError, InputError, InputErrors, ToptuneError
from toptune.extraction import extract
from toptune.features.extractor import start_features
from toptune.params import Backbone, FitOptions, Picture, SpikeSettings, Windows
from toptune.recordings.mcs import McsRecording
from toptune.reports.page import render
from toptune.spikes import streaming as detection
from toptune.spikes.finding import find_spikes
from toptune.spikes.streaming import detect_recording
from toptune.store.feature_store import FeatureStore
from toptune.store.tables import table_for
from toptune.sweeps import report as sweep_report
from toptune.sweeps import sweep as sweep_module
from toptune.sweeps import tables as sweep_tables
from toptune.sweeps.grid import Grid, read_grid
from toptune.sweeps.plan import Forecast
from toptune.sweeps.results import Outcome, SweepResult, picture_outcomes
from toptune.sweeps.sweep import sweep

pytestmark = pytest.mark.usefixtures("one_torch_thread", "tiny_backbones")

GRID = """
picture = ["histogram", "raster"]
window_s = 2
stride_s = 1
backbone = "tiny"
weights = "random"
head = ["mlp", "falkon"]
permutations = 0
[mlp]
epochs = 2
tune = false
[falkon]
width = 1.0
penalty = 1e-5
"""


class Watch:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.n_pictures = 0
        self.described_pictures = 0

    def begin(self, n_pictures: int, n_runs: int) -> None:
        self.n_pictures, self.n_runs = n_pictures, n_runs

    def doing(self, text: str) -> None: ...

    def recording(self, number: int, total: int, name: str) -> None: ...

    def stage(self, name: str, done: int, total: int) -> None: ...

    def described(self, n_pictures: int) -> None:
        self.described_pictures += n_pictures

    def ran(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def left(self, seconds: float, whole: bool) -> None: ...


def grid_of(folder: Path, text: str = GRID, *settings: str) -> Grid:
    path = folder / "grid.toml"
    path.write_text(text, "utf-8")
    return read_grid(path, settings)


def run(folder: Path, grid: Grid, **options: Any) -> SweepResult:
    return sweep(folder / "devices.csv", grid, folder / "out", watch=Watch(), **options)


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    # Pictures of each run take most of the time and have tests of their own.
    monkeypatch.setattr(fit_module, "write_report", lambda *_, **__: None)
    monkeypatch.setattr(fit_module, "write_confusion", lambda *_: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set; look, do not touch."""
    folder = tmp_path_factory.mktemp("data")
    write_data_set(folder)
    return folder


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """The data set after an uninterrupted sweep; look, do not touch."""
    folder = shutil.copytree(data, tmp_path_factory.mktemp("whole") / "work")
    made = run(folder, grid_of(folder))
    sweep_tables.write_result_tables(made)
    sweep_report.write_report(made)
    return made


@pytest.fixture
def fresh(data: Path, tmp_path: Path) -> Path:
    return shutil.copytree(data, tmp_path / "work")


@pytest.fixture
def swept(whole: SweepResult, tmp_path: Path) -> Path:
    """A folder in which the sweep was made already."""
    return shutil.copytree(whole.path.parent, tmp_path / "work")


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What is detected, described, compiled and fitted from here on."""
    seen: dict[str, list[str]] = {"detected": [], "described": [], "compiled": [], "fitted": []}
    real_start, real_network = start_features, OpenVinoNetwork
    real_fit = fit_module.fit

    def detect(recording: McsRecording, *args: Any, **kwargs: Any) -> Any:
        seen["detected"].append(recording.path.name)
        return detect_recording(recording, *args, **kwargs)

    def describe(*args: Any, **kwargs: Any) -> Any:
        seen["described"].append("")
        return real_start(*args, **kwargs)

    def network(loaded: Any, *args: Any, **kwargs: Any) -> Any:
        seen["compiled"].append(loaded.name)
        return real_network(loaded, *args, **kwargs)

    def fit(table: Any, options: FitOptions, out: Path, **kwargs: Any) -> Any:
        seen["fitted"].append(out.name)
        return real_fit(table, options, out, **kwargs)

    monkeypatch.setattr(detection, "detect_recording", detect)
    monkeypatch.setattr(extraction, "start_features", describe)
    monkeypatch.setattr(features, "OpenVinoNetwork", network)
    monkeypatch.setattr(sweep_module, "fit", fit)
    return seen


def contents(folder: Path) -> dict[str, Any]:
    """What the runs of a sweep say, the time they took left out."""
    said: dict[str, Any] = {}
    for one in sorted((folder / "runs").iterdir()):
        metrics = read_json(one / "metrics.json")
        del metrics["seconds"]
        said[one.name] = (
            metrics,
            (one / "windows.csv").read_text(),
            (one / "devices.csv").read_text(),
        )
    return said


# --- the work


def test_every_run_is_what_extract_and_fit_give(whole: SweepResult, tmp_path: Path) -> None:
    assert len(whole.done) == 4
    assert whole.failures == ()
    devices = whole.path.parent / "devices.csv"
    # One of each head and picture.
    for view, _, options, outcome in picture_outcomes(whole.done)[
        1:3
    ]:  # one of each head and picture
        found = extract(
            devices, tmp_path / "s.zarr", windows=view.windows, picture=view.picture,
            backbone=Backbone(name="tiny", weights="random"),
        )  # fmt: skip
        store = FeatureStore(tmp_path / "s.zarr")
        table = store.table(found.feature_set)
        params = {"epochs": 2} if options.head == "mlp" else {"width": 1.0, "penalty": 1e-5}
        expected = fit_module.fit(
            table, FitOptions(head=options.head, fixed=params, tune=False, permutations=0),
            tmp_path / outcome.name, facts=store.training_facts(table),
        )  # fmt: skip
        got = dict(read_json(whole.path / "runs" / outcome.name / "metrics.json"))
        assert {**got, "seconds": 0} == {**expected.metrics, "seconds": 0}
        assert got == outcome.metrics


def test_spikes_once_a_backbone_compiled_once_features_once_a_view(
    fresh: Path, done: dict[str, list[str]]
) -> None:
    settings = ('backbone=["tiny","tiny_two"]', "head=falkon", "window_s=[4,2]")
    grid = grid_of(fresh, GRID, *settings)
    watch = Watch()
    made = sweep(fresh / "devices.csv", grid, fresh / "out", watch=watch)
    assert len(made.done) == 8
    assert sorted(done["detected"]) == [f"r{k}.h5" for k in range(6)]
    assert done["compiled"] == ["tiny", "tiny_two"]
    assert len(done["described"]) == 6 * 4 * 2
    # 8 s: 5 windows of 4 s and 7 of 2 s, drawn in two ways, by two backbones, of 6 recordings.
    assert watch.n_pictures == watch.described_pictures == (5 + 7) * 2 * 2 * 6
    assert watch.outcomes == list(made.outcomes)
    # Backbone by backbone.
    shown = picture_outcomes(made.outcomes)
    assert [one.view.backbone.name for one in shown] == ["tiny"] * 4 + ["tiny_two"] * 4
    for one in shown:
        assert one.facts.throughput.pictures == (30 if one.view.windows.width_s == 4 else 42)
        assert one.facts.throughput.pictures_per_s is not None


def test_spikes_found_in_a_sweep_serve_all_of_its_backbones_from_memory(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reading(*_: object) -> None:
        raise AssertionError("the spikes are in memory")

    monkeypatch.setattr(FeatureStore, "read_spikes", reading)
    settings = ('backbone=["tiny","tiny_two"]', "head=falkon", "picture=raster")
    assert len(run(fresh, grid_of(fresh, GRID, *settings)).done) == 2


def test_spikes_that_were_there_are_read_once_for_all_views_of_a_backbone(
    swept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = FeatureStore.read_spikes

    def counting(self: FeatureStore, name: str) -> Any:
        read.append(name)
        return real(self, name)

    monkeypatch.setattr(FeatureStore, "read_spikes", counting)
    run(swept, grid_of(swept, GRID, "window_s=[1,0.5]", "head=falkon"))
    # Once to count the windows of the views that are missing, and once to draw them.
    assert len(read) == 2 * len(set(read)) == 12


def test_what_is_there_is_not_done_again(
    whole: SweepResult, swept: Path, done: dict[str, list[str]]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in (swept / "out" / "runs").rglob("*")}
    again = run(swept, grid_of(swept))
    assert done == {"detected": [], "described": [], "compiled": [], "fitted": []}
    assert all(o.reused for o in again.outcomes)
    assert before == {p: p.stat().st_mtime_ns for p in (swept / "out" / "runs").rglob("*")}
    # What was measured when the features were made is not lost.
    assert [o.facts for o in again.done] == [o.facts for o in whole.done]
    assert [o.metrics for o in again.done] == [o.metrics for o in whole.done]


@pytest.mark.parametrize(("place", "number"), [("fit", 0), ("fit", 3), ("start_features", 7)])
def test_a_killed_sweep_goes_on_and_ends_like_an_uninterrupted_one(
    fresh: Path,
    whole: SweepResult,
    done: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    number: int,
) -> None:
    module, seen = (sweep_module, "fitted") if place == "fit" else (extraction, "described")
    real = getattr(module, place)

    def killed(*args: Any, **kwargs: Any) -> Any:
        if len(done[seen]) == number:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, place, killed)
        with pytest.raises(KeyboardInterrupt):
            run(fresh, grid_of(fresh))
    run(fresh, grid_of(fresh))
    assert contents(fresh / "out") == contents(whole.path)
    # Nothing twice: the killed call itself never came to be counted.
    assert len(done["detected"]) == 6
    assert len(done["described"]) == 12
    assert len(done["fitted"]) == len(set(done["fitted"])) == 4


def test_changed_settings_are_noticed_by_key(swept: Path, done: dict[str, list[str]]) -> None:
    made = run(swept, grid_of(swept, GRID, "falkon.width=2.0"))
    assert [o.reused for o in made.outcomes] == [True, False] * 2
    assert (done["described"], len(done["fitted"])) == ([], 2)
    assert run(swept, grid_of(swept), seed=3).done[0].reused is False


def test_changed_labels_make_all_runs_anew_and_no_features(
    swept: Path, done: dict[str, list[str]]
) -> None:
    devices = swept / "devices.csv"
    devices.write_text(devices.read_text().replace("dev1,B", "dev1,A").replace("dev3,A", "dev3,B"))
    made = run(swept, grid_of(swept))
    assert (done["detected"], done["described"]) == ([], [])
    assert len(done["fitted"]) == len(made.done) == 4


def test_another_grid_goes_on_in_the_same_folder(swept: Path, done: dict[str, list[str]]) -> None:
    made = run(swept, grid_of(swept, GRID, "window_s=[2,1]", "head=falkon"))
    assert [o.reused for o in made.outcomes] == [True, False] * 2
    assert (done["detected"], len(done["described"])) == ([], 12)


def test_the_tables_say_what_the_runs_metrics_say(whole: SweepResult) -> None:
    of_run = {
        p.parent.name: (read_json(p), read_json(p.parent / "params.json"))
        for p in (whole.path / "runs").glob("*/metrics.json")
    }
    long = read_csv(whole.path / "runs.csv")
    assert sorted(row["run"] for row in long) == sorted(of_run)
    (table,) = whole.path.glob("table*.csv")
    wide = {row["picture"]: row for row in read_csv(table)}
    for row in long:
        metrics, params = of_run[row["run"]]
        assert (row["head"], row["picture"]) == (
            params["head"],
            params["features"]["features"]["picture"]["kind"],
        )
        for name in ("window_accuracy_mean", "window_accuracy_sd", "device_accuracy", "chance"):
            assert float(row[name]) == pytest.approx(metrics[name], rel=1e-5)
        low, high = metrics["device_accuracy_ci95"]
        assert float(row["device_accuracy_low"]) == pytest.approx(low, rel=1e-5)
        assert float(row["device_accuracy_high"]) == pytest.approx(high, rel=1e-5)
        mean, sd = metrics["window_accuracy_mean"], metrics["window_accuracy_sd"]
        cells = wide[row["picture"]]
        assert cells[f"{row['head']}: per picture"] == f"{mean:.3f} ± {sd:.3f}"
        assert cells[f"{row['head']}: per device"] == f"{metrics['device_accuracy']:.3f}"
        assert "RANDOM" in cells["of all rows"]
        assert f"{mean:.3f} ± {sd:.3f}" in (whole.path / "table.md").read_text("utf-8")
        assert f"{mean:.3f} ± {sd:.3f}" in (whole.path / "report.html").read_text("utf-8")


# --- failures


def test_a_run_that_fails_stops_no_other_and_is_tried_again(
    fresh: Path, whole: SweepResult, done: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fit_module.fit
    calls = iter(range(100))

    def failing(*args: Any, **kwargs: Any) -> Any:
        number = next(calls)
        if number == 1:
            raise ToptuneError("it cannot\nbe")
        if number == 2:
            raise MemoryError("600 GB")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(sweep_module, "fit", failing)
        made = run(fresh, grid_of(fresh))
    assert [o.metrics is None for o in made.outcomes] == [False, True, True, False]
    rows = read_csv(fresh / "out" / "failures.csv")
    assert [(r["what"], r["cause"]) for r in rows] == [
        ("run", "it cannot be"),
        ("run", "MemoryError: 600 GB"),
    ]
    assert [r["name"] for r in rows] == [made.outcomes[1].name, made.outcomes[2].name]
    done["fitted"].clear()
    again = run(fresh, grid_of(fresh))
    assert done["fitted"] == [made.outcomes[1].name, made.outcomes[2].name]
    assert again.failures == ()
    assert not (fresh / "out" / "failures.csv").exists()
    assert contents(fresh / "out") == contents(whole.path)


def test_a_sweep_killed_before_its_folder_was_marked_goes_on(fresh: Path) -> None:
    left = fresh / "out" / ".sweep.json.0a1b2c3d.partial"
    left.parent.mkdir()
    left.write_text('{"kind": "toptu')
    made = run(fresh, grid_of(fresh))
    assert not made.failures
    assert not left.exists()


def test_features_that_fail_stop_only_their_runs(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = start_features

    def failing(drawers: Any, extractors: Any, *rest: Any) -> Any:
        if extractors[0].picture.kind == "raster":
            raise ToptuneError("a picture is broken")
        return real(drawers, extractors, *rest)

    monkeypatch.setattr(extraction, "start_features", failing)
    made = run(fresh, grid_of(fresh))
    kinds = [
        (one.view.picture.kind, one.outcome.metrics is None)
        for one in picture_outcomes(made.outcomes)
    ]
    assert kinds == [("histogram", False)] * 2 + [("raster", True)] * 2
    assert [f.what for f in made.failures] == ["features"] * 6 + ["run"] * 2
    assert made.failures[-1].cause.startswith("its features could not be made for r0.h5, r1.h5")


def test_a_recording_that_fails_is_told_before_any_feature_is_made(
    fresh: Path, done: dict[str, list[str]]
) -> None:
    rows = [(f"r{k}.h5", f"dev{k}", "ABC"[k % 3]) for k in range(6)]
    (fresh / "bad.csv").write_text("time_s,channel\n0.5,E1\nnan,E1\n")
    write_devices(fresh, [*rows, ("bad.csv", "dev9", "A")])
    made = run(fresh, grid_of(fresh))
    (failure,) = made.failures
    assert (failure.what, failure.name) == ("recording", "bad.csv")
    assert "bad.csv, line 3" in failure.cause
    assert made.outcomes == ()
    assert any("Nothing was fitted" in note for note in made.notes)
    assert (done["described"], len(done["detected"])) == ([], 6)
    write_devices(fresh, rows)
    assert len(run(fresh, grid_of(fresh)).done) == 4
    assert len(done["detected"]) == 6


# --- refusals


def test_everything_wrong_with_the_data_is_told_before_any_work(fresh: Path) -> None:
    devices = fresh / "devices.csv"
    devices.write_text(devices.read_text().replace("dev1,B", "dev1,D"))
    (fresh / "r3.h5").write_text("no recording")
    (fresh / "out").mkdir()
    (fresh / "out" / "thesis.txt").write_text("mine")
    # What is wrong with the grid itself is told first.
    with pytest.raises(InputErrors, match="no backbone 'efficientnet_b00'"):
        grid_of(fresh, GRID, 'backbone=["tiny","efficientnet_b00"]')
    grid = grid_of(fresh, GRID, "group_by=dish")
    with pytest.raises(InputErrors) as refused:
        run(fresh, grid)
    text = "\n".join(refused.value.problems)
    for part in (
        f"{fresh / 'out'} is not a sweep of toptune",
        "devices.csv, line 5: ",
        "recording r0.h5",
        "has no dish",
    ):
        assert part in text
    assert len(refused.value.problems) == len(set(refused.value.problems))
    assert [p.name for p in (fresh / "out").iterdir()] == ["thesis.txt"]


def test_a_thin_class_is_refused_unless_every_combination_merges_it(fresh: Path) -> None:
    devices = fresh / "devices.csv"
    devices.write_text(devices.read_text().replace("dev1,B", "dev1,D"))
    few = ("window_s=2", "picture=raster", "head=falkon")
    for merge in ('["none", "BD=B,D"]', '"AC=A,C"'):
        with pytest.raises(InputErrors, match="class D has one group, dev1"):
            run(fresh, grid_of(fresh, GRID, *few, f"merge={merge}"))
    assert not (fresh / "out").exists()
    (outcome,) = run(fresh, grid_of(fresh, GRID, *few, "merge='BD=B,D'")).done
    assert outcome.metrics is not None
    assert outcome.metrics["classes"] == ["A", "BD", "C"]


def test_other_spikes_need_another_folder(swept: Path) -> None:
    with pytest.raises(InputError, match=r"found with ptsd\.threshold_sd = 8\.0, not 7"):
        run(swept, grid_of(swept, "threshold_sd = 7\n" + GRID))
    with pytest.raises(InputError, match=r"order = 1, not 2: give `highpass_order=1` to go on"):
        run(swept, grid_of(swept, "highpass_order = 2\n" + GRID))


# --- merges, groups and warnings


def test_merges_and_groups_are_tasks_of_their_own(swept: Path, tmp_path: Path) -> None:
    devices = swept / "devices.csv"
    lines = devices.read_text().splitlines()
    # Three batches of two devices; class C lies in the last one only.
    batches = ["b0", "b1", "b2", "b1", "b0", "b2"]
    devices.write_text(
        "\n".join(
            [lines[0], *(f"{row[:-2]}{b}" for row, b in zip(lines[1:], batches, strict=True))]
        )
    )
    few = ("window_s=2", "picture=raster", "head=falkon")
    grid = grid_of(swept, GRID, *few, 'merge=["none","BC=B,C"]', 'group_by=["device","batch"]')
    with pytest.raises(InputErrors, match="class C has one group, b2"):
        run(swept, grid)
    made = run(swept, grid_of(swept, GRID, *few, 'merge=["none","BC=B,C"]'))
    plain, merged = (o.metrics for o in made.done)
    assert plain is not None
    assert merged is not None
    assert (plain["classes"], merged["classes"]) == (["A", "B", "C"], ["A", "BC"])
    assert [w.partition(":")[0] for w in plain["warnings"]] == [
        "class C lies in one batch only, b2"
    ]
    assert merged["warnings"] == []
    (grouped,) = run(swept, grid_of(swept, GRID, *few, "merge='BC=B,C'", "group_by=batch")).done
    assert grouped.metrics is not None
    assert grouped.metrics["n_groups"] == 3
    # The same as fit gives from the same store.
    store = FeatureStore(swept / "out" / "store.zarr")
    table = store.table(store.choose("raster 2 s every"))
    fitting = FitOptions(
        head="falkon", merge=("BC=B,C",), fixed={"width": 1.0, "penalty": 1e-5}, tune=False,
        permutations=0,
    )  # fmt: skip
    facts = store.training_facts(table)
    expected = fit_module.fit(table, fitting, tmp_path / "run", facts=facts).metrics
    assert {**merged, "seconds": 0} == {**expected, "seconds": 0}
    html = render(sweep_report.sweep_page(made))
    assert "class C lies in one batch only, b2" in html
    assert "BC=B,C merged" in html


# --- how long the rest takes


def test_the_rest_is_reckoned_by_backbone_and_head() -> None:
    forecast = Forecast()

    def left(seconds: float) -> bool:
        found, whole = forecast.seconds_left()
        assert found == pytest.approx(seconds)
        return whole

    forecast.pictures["fast"].left += 100
    forecast.pictures["slow"].left += 10
    forecast.runs["falkon"].left += 1
    forecast.runs["mlp"].left += 2
    assert not left(0.0)
    forecast.pictures["fast"].measure(50, 5.0)
    # 50 more at 0.1 s; the other backbone counts like the slowest so far; of runs nothing is known.
    assert not left(6.0)
    forecast.pictures["slow"].measure(5, 10.0)
    assert not left(50 * 0.1 + 5 * 2.0)
    forecast.runs["mlp"].measure(1, 30.0)
    forecast.pictures["slow"].left = 0
    assert left(5.0 + 30.0 + 30.0)
    forecast.runs["falkon"].left -= 1
    assert left(35.0)


def test_spikes_found_differ_with_the_grids_detection(fresh: Path) -> None:
    grid = grid_of(
        fresh, "threshold_sd = 12\n" + GRID, "head=falkon", "picture=raster", "window_s=2"
    )
    run(fresh, grid)
    store = FeatureStore(fresh / "out" / "store.zarr")
    trains = store.read_spikes(store.recordings[0].name)
    settings = SpikeSettings(ptsd=grid.spikes.ptsd)
    expected = find_spikes(fresh / "r0.h5", settings, stage=lambda *_: None).trains
    assert grid.spikes.ptsd.threshold_sd == 12
    assert (trains.spikes.sample == expected.spikes.sample).all()


def test_windows_and_pictures_of_the_grid_reach_the_store(whole: SweepResult) -> None:
    store = FeatureStore(whole.path / "store.zarr")
    views = {(view.windows, view.picture) for view in whole.grid.views}
    kept = {
        (Windows.from_json(s.params["windows"]), Picture.from_json(s.params["picture"]))
        for s in store.feature_sets()
    }
    assert kept == views
    assert len(views) == 2


def test_burst_parameters_are_fitted_once_beside_all_pictures(
    swept: Path, done: dict[str, list[str]], tmp_path: Path
) -> None:
    grid = grid_of(swept, GRID, 'head=["falkon","parameters"]', "merge='AB=A,B'", "C=1.0")
    assert any("the head parameters uses no pictures" in note for note in grid.notes)
    made = run(swept, grid)
    assert [o.point.view is None for o in made.outcomes] == [True, False, False]
    store = FeatureStore(swept / "out" / "store.zarr")
    table = table_for(store, "parameters")
    plain = FitOptions(head="parameters", merge=("AB=A,B",), fixed={"C": 1.0}, permutations=0)
    facts = store.training_facts(table)
    expected = fit_module.fit(table, plain, tmp_path / "run", facts=facts).metrics
    got = made.outcomes[0].metrics
    assert got is not None
    assert {**got, "seconds": 0} == {**expected, "seconds": 0}
    (rows,) = (t.rows for t in sweep_tables.result_tables(made))
    assert rows[-1][0] == "burst parameters"
    assert rows[-1][-1] == f"{got['device_accuracy']:.3f}"
    html = render(sweep_report.sweep_page(made))
    assert "burst parameters" in html
    done["fitted"].clear()
    assert all(o.reused for o in run(swept, grid).outcomes)
    assert done["fitted"] == []


def test_features_that_cannot_be_written_are_the_failure_of_their_view_alone(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FeatureStore.write_features

    def failing(self: FeatureStore, name: str, *args: Any, **kwargs: Any) -> None:
        if name.startswith("r2.h5") and args[2].params["picture"]["kind"] == "raster":
            raise ToptuneError("broken on purpose")
        real(self, name, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "write_features", failing)
        made = run(fresh, grid_of(fresh, GRID, "head=falkon"))
    assert [(f.what, f.cause) for f in made.failures] == [
        ("features", "broken on purpose"),
        ("run", "its features could not be made for r2.h5"),
    ]
    assert len(made.done) == 1
    assert len(run(fresh, grid_of(fresh, GRID, "head=falkon")).done) == 2


def test_backbones_are_released_where_memory_is_short_and_the_view_is_made_again(
    fresh: Path, done: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = features.FeatureEngine.start
    short = iter([False, True] + 100 * [False])

    def start(self: features.FeatureEngine, *args: Any, **kwargs: Any) -> Any:
        if next(short):
            raise DeviceMemoryError("full")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(features.FeatureEngine, "start", start)
    made = run(fresh, grid_of(fresh, GRID, "head=falkon"))
    assert (len(made.done), made.failures) == (2, ())
    assert done["compiled"] == ["tiny", "tiny"]


def test_a_view_that_never_fits_into_memory_fails_alone(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = features.FeatureEngine.start

    def start(self: features.FeatureEngine, *args: Any, **kwargs: Any) -> Any:
        if self.name == "tiny_two":
            raise DeviceMemoryError("full")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(features.FeatureEngine, "start", start)
    settings = ('backbone=["tiny","tiny_two"]', "head=falkon", "picture=raster")
    made = run(fresh, grid_of(fresh, GRID, *settings))
    assert len(made.done) == 1
    assert {f.cause for f in made.failures if f.what == "features"} == {"full"}
