"""Figures for a journal: their data are what is drawn and what the run holds; methods are cited."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from matplotlib.layout_engine import ConstrainedLayoutEngine
from results import Run, read_csv, read_json
from small_data import CLASS_RATES_HZ, write_devices, write_mcs

import toptune
from toptune.errors import InputError
from toptune.extraction import extract
from toptune.machine.drawing import Figure, FigureCanvasAgg
from toptune.params import Backbone, FitOptions, Picture, Windows
from toptune.recordings.trains import spike_times_s
from toptune.reports.figures import Drawn, draw_figures, write_figures
from toptune.reports.methods import Sample, describe_methods
from toptune.runs.parameters import run_parameters
from toptune.runs.reading import ReadRun, read_run
from toptune.store.feature_store import FeatureStore
from toptune.store.tables import table_for
from toptune.training import fit

pytestmark = pytest.mark.usefixtures("one_torch_thread", "tiny_backbones")

CLASSES = {"A": "control_before_the_washout", "B": "bicuculline", "C": "TTX"}
HEADS = ("falkon", "mlp", "parameters", "recordings")


class Made(NamedTuple):
    folder: Path
    run: ReadRun
    store: FeatureStore
    drawn: dict[str, Drawn]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_backbones: None) -> Made:
    """Make a store, a run of each classifier, and the figures of one; look, do not touch."""
    del tiny_backbones
    folder = tmp_path_factory.mktemp("made")
    rows = []
    for k in range(6):
        label = "ABC"[k % 3]
        # The fifth culture is like those of another class.
        rate = CLASS_RATES_HZ["A" if k == 4 else label]
        write_mcs(folder / f"r{k}.h5", seed=k, rate_hz=rate)
        rows.append((f"r{k}.h5", f"device_{k}_of_batch_2024-11-03", CLASSES[label]))
    devices = write_devices(folder, rows)
    extract(
        devices,
        folder / "s.zarr",
        windows=Windows(width_s=2.0, stride_s=1.0),
        picture=Picture(kind="raster"),
        backbone=Backbone(name="tiny", weights="random", seed=3),
    )
    store = FeatureStore(folder / "s.zarr")
    for head in HEADS:
        table = table_for(store, head, () if head == "parameters" else ("raster",))
        fixed = {"epochs": 3} if head == "mlp" else {}
        tune = head == "falkon"
        options = FitOptions(head=head, fixed=fixed, tune=tune, permutations=20 * tune)
        fit(table, options, folder / head, facts=store.training_facts(table), store=store)
    run = read_run(folder / "falkon")
    drawn = {one.name: one for one in draw_figures(run, store).drawn}
    return Made(folder, run, store, drawn)


def column(data: Any, name: str, **where: str) -> list[Any]:
    """Give a column of a figure's data, of the rows that have these values."""
    at = {key: data.header.index(key) for key in where}
    rows = [row for row in data.rows if all(row[at[k]] == v for k, v in where.items())]
    return [row[data.header.index(name)] for row in rows]


# --- data are what is drawn, and what the run holds


def test_every_figure_of_the_report_is_drawn(made: Made) -> None:
    names = ["confusion", "scores", "calibration", "parameters", "typical", "courses"]
    assert list(made.drawn) == names


def test_confusion_matrix_is_that_of_the_run(made: Made) -> None:
    (data,) = made.drawn["confusion"].data
    counted = read_csv(made.folder / "falkon" / "confusion.csv")
    known = {(f"{c['unit']}s", c["label"], c["prediction"]): int(c["count"]) for c in counted}
    assert {tuple(row[:3]): row[3] for row in data.rows} == known
    assert len(data.rows) == len(known) == 18
    for axes, unit in zip(made.drawn["confusion"].figure.axes, ("devices", "windows"), strict=True):
        texts = [text.get_text().split("\n")[0] for text in axes.texts]
        assert texts == [str(n) for n in column(data, "count", unit=unit)]
        totals = np.array(column(data, "count", unit=unit)).reshape(3, 3).sum(axis=1)
        shares = np.array(column(data, "share_of_true_class", unit=unit)).reshape(3, 3)
        np.testing.assert_allclose(shares.sum(axis=1), totals > 0)
        np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), shares)


def test_scores_are_those_of_the_run_and_of_each_class(made: Made) -> None:
    (data,) = made.drawn["scores"].data
    metrics = made.run.metrics
    devices = read_csv(made.folder / "falkon" / "devices.csv")
    first = dict(zip(data.header, data.rows[0], strict=True))
    assert first["share"] == metrics["device_accuracy"]
    assert [first["ci95_low"], first["ci95_high"]] == metrics["device_accuracy_ci95"]
    for label in made.run.classes:
        mine = [row for row in devices if row["label"] == label]
        n_correct = sum(int(row["correct"]) for row in mine)
        assert column(data, "n_correct", score=label) == [n_correct]
        assert column(data, "n", score=label) == [len(mine)] == [2]
    for one, row in zip(metrics["compared_with"], data.rows[4:], strict=True):
        assert row[1:4] == [one["n_right"], one["n_verdicts"], one["device_accuracy"]]
    lines = made.drawn["scores"].figure.axes[0].lines
    dots = [np.asarray(line.get_xdata()) for line in lines if line.get_marker() == "o"]
    assert np.ravel(dots).tolist() == column(data, "share")
    bars = [np.asarray(line.get_xdata()).tolist() for line in lines if line.get_linewidth() == 1.4]
    ends = zip(column(data, "ci95_low"), column(data, "ci95_high"), strict=True)
    assert bars == [list(one) for one in ends]


def test_calibration_is_that_of_the_windows(made: Made) -> None:
    (data,) = made.drawn["calibration"].data
    windows = read_csv(made.folder / "falkon" / "windows.csv")
    confidence = np.array([float(w[f"probability_{w['prediction']}"]) for w in windows])
    correct = np.array([float(w["correct"]) for w in windows])
    # Each device has as many windows, so all weigh the same.
    assert sum(column(data, "n")) == len(windows) == 42
    for above, up_to, n, share, mean, right in data.rows:
        inside = (confidence > above) & (confidence <= up_to)
        assert n == inside.sum()
        assert share == pytest.approx(n / 42)
        if n:
            assert mean == pytest.approx(confidence[inside].mean(), abs=1e-5)
            assert right == pytest.approx(correct[inside].mean(), abs=1e-5)
    (dots,) = made.drawn["calibration"].figure.axes[0].collections
    known = [row[4:] for row in data.rows if row[2]]
    np.testing.assert_allclose(np.asarray(dots.get_offsets()), known)


def test_parameters_are_those_of_the_devices(made: Made) -> None:
    dots, effects = made.drawn["parameters"].data
    devices = run_parameters(made.run, made.store).per_device()
    names = list(dict.fromkeys(column(dots, "parameter")))
    assert 1 <= len(names) <= 8
    axes = made.drawn["parameters"].figure.axes[0]
    drawn = sorted(
        x
        for line in axes.lines
        if line.get_marker() not in ("None", "")
        for x in np.atleast_1d(line.get_xdata()).tolist()
    )
    shown = [z for z in column(dots, "sd_from_mean") if z != ""]
    np.testing.assert_allclose(drawn, sorted(shown))
    for name in names:
        values = column(dots, "value", parameter=name)
        expected = devices.column(name)
        for value, device in zip(values, expected.tolist(), strict=True):
            assert value == "" if np.isnan(device) else value == device
    assert len(effects.rows) == 3 * len(devices.names)
    known = [abs(delta) for delta in column(effects, "cliffs_delta") if delta != ""]
    best = column(effects, "cliffs_delta", parameter=names[0])
    assert max(abs(delta) for delta in best) == max(known)


def test_typical_recordings_are_drawn_spike_by_spike(made: Made) -> None:
    raster, histogram, array = made.drawn["typical"].data
    grid = np.array(made.drawn["typical"].figure.axes[:9]).reshape(3, 3)
    by_device = {}
    for info in made.store.recordings:
        by_device[info.name] = made.store.read_spikes(info.name)
    for label, row in zip(made.run.classes, grid, strict=True):
        (name,) = set(column(array, "recording", **{"class": label}))
        trains = by_device[name]
        times = column(raster, "time_s", **{"class": label})
        # 8 s are shorter than an excerpt, so all of it is shown.
        np.testing.assert_allclose(list(map(float, times)), spike_times_s(trains), atol=1e-4)
        np.testing.assert_allclose(row[0].lines[0].get_xdata(), spike_times_s(trains))
        counts = column(histogram, "spikes", **{"class": label})
        assert sum(counts) == len(times)
        assert row[1].patches[0].get_data().values.tolist() == counts
        rates = column(array, "rate_hz", **{"class": label})
        expected = np.bincount(trains.spikes.channel, minlength=4) / 8.0
        np.testing.assert_allclose(rates, expected)


def test_courses_are_the_probabilities_of_the_windows(made: Made) -> None:
    (data,) = made.drawn["courses"].data
    windows = {
        (w["recording"], float(w["start_s"])): w
        for w in read_csv(made.folder / "falkon" / "windows.csv")
    }
    rows = [dict(zip(data.header, row, strict=True)) for row in data.rows]
    for row in rows:
        known = windows[row["recording"], row["start_s"]]
        assert row["probability"] == float(known[f"probability_{row['class']}"])
        assert row["centre_min"] == pytest.approx((row["start_s"] + 1) / 60)
    wrong = [v for v in made.run.verdicts if v.prediction != v.label]
    assert wrong  # else nothing dashed is tested
    assert len(rows) == 42 + sum(v.n_windows for v in wrong)
    drawn = [
        y
        for axes in made.drawn["courses"].figure.axes
        for line in axes.lines
        if line.get_color() != "#8a939c"
        for y in np.asarray(line.get_ydata()).tolist()
    ]
    assert drawn == [row["probability"] for row in rows]


# --- files


@pytest.fixture(scope="module", params=["svg", "pdf"])
def written(
    request: pytest.FixtureRequest, made: Made, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("written") / "figures"
    write_figures(made.run, out, request.param, store=made.store)
    return request.param, out


def test_folder_has_a_file_and_data_for_each_figure(written: tuple[str, Path], made: Made) -> None:
    suffix, out = written
    index = read_json(out / "figures.json")
    assert [one["file"] for one in index["figures"]] == [f"{name}.{suffix}" for name in made.drawn]
    files = {one["file"] for one in index["figures"]} | {"legends.md", "methods.md", "figures.json"}
    files |= {name for one in index["figures"] for name in one["data"]}
    assert {path.name for path in out.iterdir()} == files
    legends = (out / "legends.md").read_text("utf-8")
    assert legends.count("**Figure ") == len(made.drawn)
    for row, drawn in zip(read_csv(out / "scores.csv"), made.drawn["scores"].data[0].rows,
                          strict=True):  # fmt: skip
        assert row["score"] == drawn[0]
        assert float(row["share"]) == pytest.approx(drawn[3], rel=1e-5)


def test_equal_runs_give_equal_bytes(written: tuple[str, Path], made: Made, tmp_path: Path) -> None:
    suffix, out = written
    write_figures(made.folder / "falkon", tmp_path / "again", suffix, store=made.store)  # type: ignore[arg-type]
    for path in sorted(out.iterdir()):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_bytes_do_not_rest_on_the_last_bit_of_the_layout(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Matplotlib's solver gives sums in another order from one time to the next.
    written = []
    execute = ConstrainedLayoutEngine.execute
    for n_ulp in (-1, 1):

        def off_by_a_bit(engine: Any, fig: Figure, n_ulp: int = n_ulp) -> None:
            execute(engine, fig)
            for axes in fig.axes:
                bounds = np.array(axes.get_position(original=True).bounds)
                axes.set_position((bounds + n_ulp * np.spacing(bounds)).tolist())

        monkeypatch.setattr(ConstrainedLayoutEngine, "execute", off_by_a_bit)
        written.append(tmp_path / str(n_ulp))
        write_figures(made.folder / "falkon", written[-1], "svg", store=made.store)
    names = sorted(path.name for path in written[0].glob("*.svg"))
    assert "typical.svg" in names
    for name in names:
        assert (written[0] / name).read_bytes() == (written[1] / name).read_bytes(), name


def test_text_can_be_edited_and_figures_are_as_wide_as_columns(
    written: tuple[str, Path],
) -> None:
    suffix, out = written
    for path in out.glob(f"*.{suffix}"):
        content = path.read_bytes()
        if suffix == "svg":
            assert content.count(b"<text") > 5
            found = re.search(rb'width="([\d.]+)pt"', content)
        else:
            assert b"FontFile2" in content  # TrueType, whole letters
            assert b"/Type3" not in content
            found = re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", content)
        assert found is not None
        assert float(found[1]) / 72 * 25.4 in (pytest.approx(88, abs=1), pytest.approx(180, abs=1))


def test_no_text_is_cut_off(made: Made) -> None:
    for one in made.drawn.values():
        canvas: Any = FigureCanvasAgg(one.figure)
        canvas.draw()
        width, height = one.figure.bbox.size
        for axes in one.figure.axes:
            box = axes.get_tightbbox()  # with its labels, legends and texts
            assert box is not None
            assert min(box.x0, box.y0) >= -1, one.name
            assert box.x1 <= width + 1, one.name
            assert box.y1 <= height + 1, one.name


def test_without_the_store_what_needs_it_is_left_out_and_said(made: Made, tmp_path: Path) -> None:
    run = shutil.copytree(made.folder / "falkon", tmp_path / "run")
    params = json.loads((run / "params.json").read_text())
    params["store"] = str(tmp_path / "gone.zarr")
    (run / "params.json").write_text(json.dumps(params))
    for name in ("parameters.csv",):
        (run / name).unlink(missing_ok=True)
    out = write_figures(run)
    assert out == run / "figures"
    legends = (out / "legends.md").read_text("utf-8")
    assert "Not drawn: parameters" in legends
    assert "Not drawn: typical" in legends
    assert not (out / "typical.svg").exists()
    assert (out / "courses.svg").exists()
    # The run is still whole, and the figures can be replaced.
    assert read_run(run).metrics == made.run.metrics
    assert write_figures(run, format="pdf") == out
    assert not (out / "courses.svg").exists()


def test_folder_that_is_no_set_of_figures_is_not_replaced(made: Made, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.md").write_text("years of work")
    with pytest.raises(InputError, match="mine"):
        write_figures(made.run, mine)
    assert (mine / "thesis.md").read_text() == "years of work"
    with pytest.raises(InputError, match=r"`format` must be 'svg' or 'pdf', got 'png'"):
        write_figures(made.run, tmp_path / "new", "png")  # type: ignore[arg-type]


def test_command_writes_figures_beside_the_report(made: Made, tmp_path: Path, run: Run) -> None:
    ran = run("report", made.folder / "mlp", "--figures", "svg", "-o", tmp_path / "r.html")
    assert ran.code == 0
    figures = tmp_path / "r-figures"
    *_, report, last = ran.out.splitlines()
    assert report == f"report: {tmp_path / 'r.html'}"
    assert last == f"figures and methods.md: {figures}"
    assert (figures / "courses.svg").exists()
    (tmp_path / "x-figures").mkdir()
    ran = run("report", made.folder / "mlp", "--figures", "svg", "-o", tmp_path / "x.html")
    assert ran.code == 2
    assert not (tmp_path / "x.html").exists()


def test_figures_can_be_written_from_python(made: Made, tmp_path: Path) -> None:
    path = toptune.report(made.folder / "mlp", out=tmp_path / "r.html", figures="pdf")
    assert path == tmp_path / "r.html"
    assert (tmp_path / "r-figures" / "courses.pdf").exists()


# --- methods


def methods_of(made: Made, head: str) -> str:
    run = read_run(made.folder / head)
    return describe_methods(run, Sample.of(run, made.store))


def test_references_are_numbered_as_they_are_cited(made: Made) -> None:
    set_of = draw_figures(made.run, made.store)
    sample = Sample.of(made.run, made.store)
    text = describe_methods(made.run, sample, set_of.effects)
    body, _, listed = text.partition("## References")
    cited = [int(n) for found in re.findall(r"\[([\d, ]+)\]", body) for n in found.split(", ")]
    numbers = list(dict.fromkeys(cited))
    assert numbers == list(range(1, len(numbers) + 1))
    assert re.findall(r"^(\d+)\. ", listed, flags=re.MULTILINE) == [str(n) for n in numbers]
    for name in ("Maccione", "Pastore", "Rudi", "Wilson", "Guo", "Phipson", "Cliff", "Newcombe"):
        assert name in listed
    assert "Wilcoxon" not in listed
    assert "Sandler" not in listed  # the tiny backbone is no MobileNet


def test_methods_say_what_was_done_and_with_what(made: Made) -> None:
    text = methods_of(made, "falkon")
    for part in (
        "6 recordings of 6 devices of 3 classes",
        "from 4 electrodes each, sampled at 10 kHz",
        "high-pass filtered (causal Butterworth filter of order 1, 300 Hz)",
        "exceeds 8 standard deviations of the noise",
        "in windows of 2 s every 1 s, described by tiny: raster plots",
        "RANDOM weights",
        "Each device was left out once with all its recordings (6 folds)",
        "20 random shuffles",
        "| all | 6 | 6 | 42 |",
        f"{made.run.counts.right} were classified correctly",
    ):
        assert part in text
    for name, number in made.run.environment["packages"].items():
        assert number is None or f"{name} {number}" in text
    for name in made.run.params["head_params"]:
        assert f"| classifier falkon | {name} | " in text


def test_each_classifier_is_described_and_only_what_it_used(made: Made) -> None:
    texts = {head: methods_of(made, head) for head in HEADS}
    assert "one hidden layer of 64 units" in texts["mlp"]
    assert "multinomial logistic regression" in texts["parameters"]
    assert re.search(r"Width.* were chosen from \d+ settings inside", texts["falkon"])
    assert "trained, tuned and calibrated without it" in texts["falkon"]
    assert "trained and calibrated without it" in texts["recordings"]
    assert "kernel mean embeddings" in texts["recordings"]
    assert [head for head in HEADS if "Rudi A" in texts[head]] == ["falkon"]
    assert [head for head in HEADS if "Muandet" in texts[head]] == ["recordings"]
    assert "No permutation test was made" in texts["mlp"]
    # Burst parameters need no networks, whose packages are then left out.
    assert "torchvision" not in texts["parameters"]
    assert "Pasquale" in texts["parameters"]
    assert "Pasquale" not in texts["mlp"]


def test_given_spikes_are_not_said_to_be_detected(made: Made) -> None:
    run = made.run
    sample = Sample.of(run, made.store)
    assert sample.n_detected == 6
    given = describe_methods(run, Sample(**{**vars(sample), "n_detected": 0}))
    assert "Maccione" not in given
    assert "ptsd.threshold_sd" not in given
    assert "spike times, which were used as they were" in given
    mixed = describe_methods(run, Sample(**{**vars(sample), "n_detected": 2}))
    assert "Spikes in recordings with voltage were found" in mixed
