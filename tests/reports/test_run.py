"""The report of a run: it opens in a browser by itself, agrees with the run, can be repeated."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import browser, needs_chromium
from scipy.stats import binom
from small_data import write_data_set, write_mcs

import toptune
from toptune.errors import InputError
from toptune.extraction import extract
from toptune.features.table import join_tables
from toptune.params import Backbone, FitOptions, Picture, Windows
from toptune.reports.compare import Paired, compare, comparison_section, difference_text
from toptune.reports.devices import devices_section
from toptune.reports.page import Note, Text, Timeline
from toptune.reports.run import write_report
from toptune.reports.scores import headline, verdict_sentence, warnings_of
from toptune.reports.setup import changed_settings, commands
from toptune.runs.reading import ReadRun, read_run
from toptune.store.feature_store import FeatureStore
from toptune.store.tables import table_for
from toptune.training import fit

pytestmark = pytest.mark.usefixtures("one_torch_thread", "tiny_backbones")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make recordings, a store of two feature sets, and runs; tests do not change them."""
    folder = tmp_path_factory.mktemp("made")
    devices = write_data_set(folder)
    # A silent device, whose name must be escaped in HTML.
    write_mcs(folder / "r6.h5", seed=6, rate_hz=0)
    rows = [*devices.read_text().split(), "r6.h5,<b>&dev6,B,b0"]
    sites = ["site", "s0", "s1", "s2", "s1", "s2", "s0", "s0"]
    table = "".join(f"{row},{site}\n" for row, site in zip(rows, sites, strict=True))
    devices.write_text(table)
    for picture in (Picture(count_axis=4.0), Picture(kind="raster")):
        extract(
            devices,
            folder / "s.zarr",
            windows=Windows(width_s=2.0, stride_s=1.0),
            picture=picture,
            backbone=Backbone(name="tiny", weights="random", seed=3),
        )
    store = FeatureStore(folder / "s.zarr")
    tables = [store.table(store.choose(words)) for words in ("histogram", "raster")]
    joined = join_tables(tables)
    common: dict[str, Any] = {"permutations": 40, "seed": 5}
    fit(
        joined,
        FitOptions(
            head="falkon",
            tried={"penalty": (1e-4, 1e-3)},
            fixed={"width": 0.7, "tolerance": 1e-9},
            merge=("AC=A,C",),
            group_by="site",
            strata="batch",
            **common,
        ),
        folder / "fused",
        facts=store.training_facts(joined),
        store=store,
    )
    facts = store.training_facts(tables[1])
    untuned = FitOptions(head="falkon", tune=False, **common)
    fit(tables[1], untuned, folder / "raster", facts=facts, store=store)
    mlp = FitOptions(head="mlp", tune=False, fixed={"epochs": 3, "weight_decay": 0.05})
    facts = store.training_facts(tables[0])
    fit(tables[0], mlp, folder / "mlp", facts=facts, store=store)
    classic = table_for(store, "parameters")
    facts = store.training_facts(classic)
    of_bursts = FitOptions(head="parameters", **common)
    fit(classic, of_bursts, folder / "classic", facts=facts, store=store)
    return folder


def text_of(path: Path) -> str:
    """What a reader sees, without the tags."""
    content = path.read_text("utf-8")
    body = content[content.index("<body>") :]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


# --- in a browser


@needs_chromium
def test_report_opens_in_a_browser_without_a_request_or_a_complaint(
    made: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r.html"
    store = FeatureStore(made / "s.zarr")
    write_report(made / "raster", store=store, beside=[made / "fused"], out=out)
    with browser(tmp_path / "profile") as page:
        for width, phone in ((390, True), (1200, False)):
            visit = page.open(out, width=width, phone=phone)
            asked = [url for url in visit.requests if not url.startswith("data:")]
            assert asked == [out.as_uri()]
            assert visit.complaints == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            # It is really there, with its pictures.
            assert "devices were classified correctly" in page.evaluate("document.body.innerText")
            pictures = "[...document.images]"
            assert page.evaluate(f"{pictures}.length") >= 2 * 7 + 2
            assert page.evaluate(f"{pictures}.every(i => i.naturalWidth > 0 && i.alt)")
            ids = "[...document.querySelectorAll('[id]')].map(e => e.id)"
            assert page.evaluate(f"new Set({ids}).size === {ids}.length")


@needs_chromium
def test_browser_notices_what_a_page_asks_for_and_complains_of(tmp_path: Path) -> None:
    # Else the test above could not fail.
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!DOCTYPE html><p style='width:2000px'>x</p><img src='missing.png'>"
        "<script>console.error('no'); nonsense()</script>"
    )
    with browser(tmp_path / "profile") as page:
        visit = page.open(bad, width=390, phone=False)
        assert any(url.endswith("missing.png") for url in visit.requests)
        assert len(visit.complaints) >= 2
        assert page.evaluate("document.documentElement.scrollWidth") > 390


# --- what it says


def test_fit_writes_a_report_with_the_activity_of_every_device(made: Path) -> None:
    path = made / "raster" / "report.html"
    content = path.read_text("utf-8")
    assert content.count("<article") == 7
    assert content.count("data:image/png;base64,") == 2 * 7
    assert path.stat().st_size < 1_000_000
    shown = text_of(path)
    metrics = json.loads((made / "raster" / "metrics.json").read_text())
    n_right = round(metrics["device_accuracy"] * 7)
    assert f"{n_right} of 7 devices were classified correctly" in shown
    assert "RANDOM weights" in shown
    assert "<b>&dev6" in shown
    assert "<b>&dev6" not in content


def test_misclassified_devices_come_first_most_confident_errors_first(made: Path) -> None:
    run = read_run(made / "raster")
    timelines = [b for b in devices_section(run, {}).blocks if isinstance(b, Timeline)]
    tones = [b.tone for b in timelines]
    assert tones == sorted(tones)  # bad before good
    assert {"bad", "good"} == set(tones)
    wrong = [v for v in run.verdicts if v.prediction != v.label]
    sure = {v.device: v.probabilities[run.classes.index(v.prediction)] for v in wrong}
    named = [b.name for b in timelines if b.tone == "bad"]
    assert named == sorted(sure, key=lambda device: -sure[device])


def test_lines_of_a_device_are_the_probabilities_of_its_windows(made: Path) -> None:
    run = read_run(made / "raster")
    for block in devices_section(run, {}).blocks:
        if not isinstance(block, Timeline):
            continue
        mine = run.windows.device == block.name
        (label,) = set(run.windows.label[mine])
        line = block.tracks[0].lines[0]
        expected = run.windows.probabilities[mine, run.classes.index(label)]
        np.testing.assert_allclose([y for _, y in line.points], expected)
        # Of 8 s and windows of 2 s every second; the axis ends with the last window.
        np.testing.assert_allclose([8 * x for x, _ in line.points], np.arange(7) + 1.0)


def test_read_back_run_is_what_fit_gave(made: Path) -> None:
    run = read_run(made / "fused")
    assert run.metrics == json.loads((made / "fused" / "metrics.json").read_text())
    assert run.scores.device_accuracy == run.metrics["device_accuracy"]
    assert run.scores.window_ece == pytest.approx(run.metrics["window_ece"], abs=1e-4)
    assert [v.prediction for v in run.verdicts] == [v.prediction for v in run.scores.verdicts]
    assert [len(view["params"]) for view in run.views] == [3, 3]


@pytest.mark.parametrize(
    ("p", "said", "tone"),
    [
        (0.0005, "very strong evidence", "good"),
        (0.009, "strong evidence", "good"),
        (0.049, "moderate evidence", "good"),
        (0.051, "weak evidence that the classes can be told apart", "plain"),
        (0.11, "cannot be told from chance with these 7 devices", "plain"),
    ],
)
def test_evidence_is_graded_and_says_how_many_devices_it_is_of(
    made: Path, p: float, said: str, tone: str
) -> None:
    run = read_run(made / "raster")
    run.metrics.update(device_accuracy_ci95=[0.3, 0.9], chance=0.4, permutation_p=p)
    run.metrics["permutations"]["note"] = None
    sentence = verdict_sentence(run)
    assert f"{said}" in sentence
    assert "7 devices" in sentence
    assert f"permutation test, p\u00a0=\u00a0{p:.{3 if p < 0.1 else 2}f}" in sentence
    assert headline(run).facts[0].tone == tone


def test_without_a_permutation_test_an_exact_test_speaks_and_below_chance_is_said(
    made: Path,
) -> None:
    run = read_run(made / "raster")
    n_right = run.n_correct
    run.metrics.update(permutations=None, permutation_p=None, chance=0.4)
    run.metrics.update(device_accuracy_ci95=[0.3, 0.9])
    p = float(binom.sf(n_right - 1, 7, 0.4))
    assert f"exact binomial test, p\u00a0=\u00a0{p:.{3 if p < 0.1 else 2}f}" in verdict_sentence(
        run
    )
    run.metrics.update(chance=0.95)
    assert "BELOW chance" in verdict_sentence(run)
    assert headline(run).facts[0].tone == "bad"


def test_of_devices_with_several_verdicts_the_interval_speaks(made: Path) -> None:
    run = read_run(made / "raster")
    run.metrics.update(permutations=None, permutation_p=None, n_devices=5)
    run.metrics.update(chance=0.2, device_accuracy_ci95=[0.3, 0.9])
    assert "above chance" in verdict_sentence(run)
    run.metrics.update(chance=0.35)
    assert "cannot be told from chance with these 5 devices" in verdict_sentence(run)


def test_what_speaks_against_a_run_is_said(made: Path) -> None:
    fused = " ".join(note.text for note in warnings_of(read_run(made / "fused")))
    assert "RANDOM" in fused
    assert "A, C were merged into AC" in fused
    run = read_run(made / "raster")
    run.views[0]["params"]["backbone"]["weights"] = "imagenet"
    run.metrics["permutations"] = {"note": None, "smallest_p": 0.2}
    run.metrics["warnings"] = ["class A lies in one batch only"]
    run.params["features"]["too_short"] = ["r9"]
    run.metrics["n_windows_without_partner"] = 3
    said = [note.text for note in warnings_of(run)]
    assert "RANDOM" not in " ".join(said)
    for part in (
        "p-value is 0.20",
        "Class A lies in one batch only.",
        "r9",
        "3 windows were left out",
    ):
        assert any(part in text for text in said)


def test_run_of_burst_parameters_is_reported_and_can_stand_beside_pictures(made: Path) -> None:
    content = (made / "classic" / "report.html").read_text("utf-8")
    assert content.count("<article") == 7
    assert "Recordings classified correctly" in content
    assert "RANDOM" not in content  # it has no backbone
    runs = [read_run(made / "raster"), read_run(made / "classic")]
    (said,) = (
        b.text for b in comparison_section(runs).blocks if isinstance(b, Text) and not b.quiet
    )
    assert said.startswith(("No ", "raster classifies more", "classic classifies more"))
    bare = devices_section(runs[1], {}).blocks
    assert all(not b.tracks for b in bare if isinstance(b, Timeline))


# --- how to repeat it


@pytest.fixture
def shell(tmp_path: Path) -> Callable[[list[str]], None]:
    """Run command lines in a shell, in an empty folder; `toptune` knows the tiny backbones."""
    program = tmp_path / "bin" / "toptune"
    program.parent.mkdir()
    places = [str(Path(toptune.__file__).parents[1]), str(Path(__file__).parents[1])]
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path[:0] = {places}\nimport pytest\n"
        "from small_data import install_tiny_backbones\nfrom toptune.cli.app import main\n"
        "install_tiny_backbones(pytest.MonkeyPatch())\nmain()\n"
    )
    program.chmod(0o755)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    environment = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}

    def run(lines: list[str]) -> None:
        script = "\n".join(dict.fromkeys(lines))
        done = subprocess.run(
            ["bash", "-euc", script], cwd=folder, env=environment, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{script}\n{done.stderr}"

    return run


def metrics_of(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    # A sweep compares each run with the others, not with simple classifiers.
    return {**metrics, "seconds": 0, "compared_with": None}


@pytest.mark.thorough
def test_commands_of_a_report_give_the_same_scores_in_another_folder(
    made: Path, tmp_path: Path, shell: Callable[[list[str]], None]
) -> None:
    # At another path, since the commands name the run's own files.
    work = tmp_path / "a folder"
    work.mkdir()
    for path in [*made.glob("*.h5"), made / "devices.csv"]:
        shutil.copy(path, work)
    names = ["fused", "mlp", "classic"]
    runs = [with_paths(shutil.copytree(made / name, work / name), work) for name in names]
    store = FeatureStore(shutil.copytree(made / "s.zarr", work / "s.zarr"))
    lines = [line for run in runs for line in commands(run, store)]
    assert [line for line in lines if line.startswith("#")] == [
        "# classifier falkon: tolerance = 1e-09 cannot be set on the command line, but from Python"
    ]
    shutil.rmtree(store.path)
    shell(lines)
    for name in names:
        assert metrics_of(tmp_path / "elsewhere" / f"{name}-again") == metrics_of(made / name)


def with_paths(folder: Path, work: Path) -> ReadRun:
    """Read a run that was moved along with its store and devices file."""
    path = folder / "params.json"
    params = json.loads(path.read_text())
    params |= {"store": str(work / "s.zarr"), "devices": str(work / "devices.csv")}
    path.write_text(json.dumps(params))
    return read_run(folder)


@pytest.mark.thorough
def test_commands_of_a_sweeps_run_give_the_same_scores_in_another_folder(
    made: Path, tmp_path: Path, shell: Callable[[list[str]], None]
) -> None:
    grid = tmp_path / "grid.toml"
    grid.write_text(
        'picture = "raster"\nwindow_s = 2\nstride_s = 2\nbackbone = "tiny"\nweights = "random"\n'
        'head = "falkon"\npermutations = 7\nthreshold_sd = 7\n[falkon]\nwidth = [[0.5, 2.0]]\n'
    )
    out = tmp_path / "sweep"
    words = ["toptune", "sweep", str(made / "devices.csv"), str(grid), "-o", str(out)]
    shell([shlex.join([*words, "--seed", "2"])])
    (folder,) = (out / "runs").iterdir()
    run = read_run(folder)
    shutil.rmtree(out / "store.zarr")
    shell(commands(run))
    again = tmp_path / "elsewhere" / f"{run.name}-again"
    assert metrics_of(again) == metrics_of(folder)


def test_a_run_that_knows_too_little_says_what_is_missing(made: Path) -> None:
    run = read_run(made / "raster")
    del run.params["requested"], run.params["devices"], run.params["store"]
    extract_line, fit_line, *comments = commands(run)
    assert "toptune extract devices.csv --store store.zarr --window-s 2" in extract_line
    assert "--permutations 40 --seed 5" in fit_line
    assert [c.split(":")[0] for c in comments] == ["# devices.csv", "# options of the classifier"]


def test_values_of_a_run_cannot_become_commands_of_their_own(made: Path) -> None:
    run = read_run(made / "raster")
    run.params["devices"] = "x\nrm -rf ~; $(y)"
    run.params["requested"]["fixed"] = {"hidden": "1\nrm -rf ~"}
    text = "\n".join(commands(run))
    words = shlex.split(text, comments=True)
    assert "x\nrm -rf ~; $(y)" in words
    assert "rm" not in words


def test_only_what_differs_from_the_defaults_is_listed(made: Path) -> None:
    listed = {(s.part, s.name): s.value for s in changed_settings(read_run(made / "raster"))}
    assert listed == {
        ("features", "window_s"): 2.0,
        ("features", "stride_s"): 1.0,
        ("features", "picture"): "raster",
        ("features", "backbone"): "tiny",
        ("features", "weights"): "random",
        ("fit", "seed"): 5,
        ("fit", "tune"): False,
        ("fit", "permutations"): 40,
    }
    fused = {s.name: s.value for s in changed_settings(read_run(made / "fused"))}
    assert fused["penalty, values to choose from"] == [1e-4, 1e-3]
    assert fused["width"] == 0.7
    assert fused["merge"] == ("AC=A,C",)
    assert (fused["group_by"], fused["strata"]) == ("site", "batch")


# --- beside other runs


def test_runs_are_compared_device_by_device(made: Path) -> None:
    first, second = read_run(made / "raster"), read_run(made / "raster")
    wrong = [v._replace(prediction="C" if v.label != "C" else "A") for v in second.verdicts]
    object.__setattr__(second, "verdicts", tuple(wrong))
    pair = compare(first, second)
    assert (pair.n_shared, pair.only_first, pair.only_second) == (7, first.n_correct, 0)
    # Two-sided, of n devices that all fall to one side.
    assert pair.p == pytest.approx(min(1, 2 * binom.pmf(0, first.n_correct, 0.5)))
    same = compare(first, first)
    assert (same.only_first, same.only_second, same.p) == (0, 0, 1.0)


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (
            Paired(12, (8, 7), 2, 1, False, 1.0),
            "No detectable difference between a and b: 8 against 7 of 12 devices classified"
            " correctly (2 devices correct only in a, 1 in b; exact McNemar test, p = 1.00).",
        ),
        (
            Paired(1, (1, 0), 1, 0, False, 1.0),
            "No detectable difference between a and b: 1 against 0 of 1 device classified",
        ),
        (
            Paired(30, (12, 25), 0, 13, False, 0.0002),
            "b classifies more devices correctly than a: 25 against 12 of 30 devices (0 devices",
        ),
        (Paired(9, (5, 5), 0, 0, False, 1.0), "No difference between a and b: both classify"),
        (
            Paired(22, (20, 11), 8, 0, True, 0.008),
            "a classifies more verdicts correctly than b: 20 against 11 of 22 verdicts (8 devices"
            " with more correct verdicts in a, 0 in b; sign test over devices, p = 0.008)",
        ),
    ],
)
def test_a_run_is_called_better_only_where_chance_is_unlikely(pair: Paired, said: str) -> None:
    text = difference_text(pair, "a", "b")
    assert said in text
    if pair.p > 0.05:
        assert not re.search("better|higher|more devices correctly|worse", text)


def test_section_beside_compares_device_by_device(made: Path) -> None:
    first, second = read_run(made / "raster"), read_run(made / "raster")
    blocks = comparison_section([first, second]).blocks
    (said,) = (b.text for b in blocks if isinstance(b, Text) and not b.quiet)
    # Both lie in folders of one name, so the paths tell them apart.
    n = first.n_correct
    assert said == (
        f"No difference between {first.path} and {second.path}: both classify the same devices"
        f" correctly ({n} of 7 devices)."
    )


def test_runs_of_other_classes_are_said_not_to_be_comparable(made: Path) -> None:
    runs = [read_run(made / "raster"), read_run(made / "fused")]
    notes = [b for b in comparison_section(runs).blocks if isinstance(b, Note)]
    assert "not scored on the same devices and classes" in notes[0].text


# --- what is refused


def test_store_of_another_run_is_refused_and_a_changed_one_left_out(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work = shutil.copytree(made, tmp_path / "work")
    (work / "r0.h5").unlink()
    write_mcs(work / "r0.h5", seed=99)
    tiny = Backbone(name="tiny", weights="random")
    windows = Windows(width_s=2.0, stride_s=1.0)
    extract(work / "devices.csv", work / "s.zarr", windows=windows, backbone=tiny)
    with pytest.raises(InputError, match=r"holds another recording under the name r0\.h5"):
        write_report(work / "raster", store=FeatureStore(work / "s.zarr"))
    params = json.loads((work / "raster" / "params.json").read_text())
    params["store"] = str(work / "s.zarr")
    (work / "raster" / "params.json").write_text(json.dumps(params))
    from toptune.reports.run import find_store

    assert find_store(work / "raster") is None
    assert "the report does not show the activity" in caplog.text


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("metrics.json", None, None, "is not a whole run: metrics.json"),
        ("windows.csv", None, None, "is not a whole run: windows.csv"),
        ("metrics.json", "{", "", "metrics.json is damaged"),
        ("metrics.json", '"classes"', '"klasses"', "there is no 'classes'"),
        ("devices.csv", ",A,", ",X,", "is damaged: there is no class X"),
        ("params.json", "toptune run", "other", "is not a run of toptune"),
        ("windows.csv", "0.", "nought.", "is damaged"),
    ],
)
def test_folder_that_is_no_whole_run_is_refused(
    made: Path, tmp_path: Path, file: str, old: str | None, new: str | None, message: str
) -> None:
    run = shutil.copytree(made / "raster", tmp_path / "run")
    if old is None or new is None:
        (run / file).unlink()
    else:
        text = (run / file).read_text()
        assert old in text
        (run / file).write_text(text.replace(old, new))
    with pytest.raises(InputError, match=re.escape(message)):
        read_run(run)


def test_no_folder_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a whole run"):
        read_run(tmp_path / "nothing")
