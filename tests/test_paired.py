"""Devices with several labels: verdicts and devices are told apart wherever scores are shown."""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from needs import shared
from results import Run, read_csv, read_json
from small_data import make_facts, make_provenance, make_view

from toptune.evaluation.scores import wilson_interval
from toptune.features.table import FeatureTable, RecordingInfo
from toptune.params import FitOptions
from toptune.reports.compare import compare, comparison_section
from toptune.reports.page import Note, Table, Text
from toptune.reports.run import write_report
from toptune.reports.scores import verdict_sentence
from toptune.runs.reading import ReadRun, read_run
from toptune.training import RunResult, fit

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def make_table(n_devices: int = 4, *, odd: tuple[int, ...] = ()) -> FeatureTable:
    """Two recordings of each device, basal and drug; those of `odd` devices look basal."""
    rng = np.random.default_rng(0)
    infos = tuple(
        RecordingInfo(f"{label}{k}", f"dev{k}", label, {})
        for k in range(n_devices)
        for label in ("basal", "drug")
    )
    recording = np.repeat(np.arange(len(infos)), 4)
    kind = np.array([info.label == "drug" and k // 2 not in odd for k, info in enumerate(infos)])
    centres = np.abs(rng.standard_normal((2, 20)))
    features = centres[kind[recording].astype(int)] + 0.02 * rng.random((len(recording), 20))
    views = (make_view(20),)
    starts = np.tile(np.arange(4.0), len(infos))
    return FeatureTable(
        features.astype(np.float32), starts, recording, infos, make_provenance(*views), views
    )


def fit_table(table: FeatureTable, out: Path) -> RunResult:
    options = FitOptions(head="falkon", tune=False, permutations=0)
    return fit(table, options, out, facts=make_facts(table))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on four devices: ``all`` right, and ``one`` verdict wrong."""
    folder = tmp_path_factory.mktemp("paired")
    fit_table(make_table(), folder / "all")
    fit_table(make_table(odd=(3,)), folder / "one")
    return folder


def test_metrics_tell_verdicts_and_devices_apart(made: Path) -> None:
    right, one = (read_json(made / name / "metrics.json") for name in ("all", "one"))
    assert (right["n_devices"], right["n_verdicts"], right["n_groups"]) == (4, 8, 4)
    assert (right["device_accuracy"], one["device_accuracy"]) == (1.0, 7 / 8)
    # 4 / (4 + 1.96 ** 2): what four units show, all right.
    assert right["device_accuracy_ci95"] == pytest.approx([0.5101, 1.0], abs=5e-5)
    assert one["device_accuracy_ci95"] == pytest.approx([0.5101, 1.0], abs=5e-5)
    assert len(read_csv(made / "one" / "devices.csv")) == 8


def test_the_report_says_it_in_a_sentence_and_in_its_tables(made: Path) -> None:
    said = verdict_sentence(read_run(made / "one"))
    assert said.startswith("7 of 8 verdicts on 4 devices are correct")
    assert "51 to 100\u202f% with devices, not verdicts, as independent units" in said
    text = (made / "one" / "report.html").read_text("utf-8")
    assert "Verdicts that are correct" in text
    assert "1 of 8 verdicts on 4 devices is wrong" in text
    assert "Table of all 8 verdicts on 4 devices" in text
    assert "32 windows of 4 devices" in text
    assert "interval with devices as units (bootstrap) 0.510 to 1.000" in text
    for wrong in ("of 8 devices", "8 devices", "Wilson"):
        assert wrong not in text


def test_one_verdict_a_device_is_told_as_before(tmp_path: Path) -> None:
    table = make_table(6)
    label = "ABABAB"
    infos = [replace(r, label=label[k // 2]) for k, r in enumerate(table.recordings)]
    # Both recordings of a device look alike, and make one verdict.
    features = table.features.copy()
    for k in range(6):
        rows = np.isin(table.recording, (2 * k, 2 * k + 1))
        features[rows] = table.features[table.recording == (label[k] == "B")].repeat(2, axis=0)
    run = fit_table(replace(table, recordings=tuple(infos), features=features), tmp_path / "run")
    m = run.metrics
    assert (m["n_devices"], m["n_verdicts"]) == (6, 6)
    n_right = round(6 * m["device_accuracy"])
    assert m["device_accuracy_ci95"] == pytest.approx(wilson_interval(n_right / 6, 6))
    text = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert f"{n_right} of 6 devices were classified correctly" in text
    assert "95 % Wilson interval" in text
    assert "verdicts" not in text


def as_before(run: Path, out: Path) -> Path:
    """Let a run be as one of an earlier toptune, which counted eight devices."""
    shutil.copytree(run, out)
    metrics = read_json(out / "metrics.json")
    del metrics["n_verdicts"]
    low_and_high = wilson_interval(metrics["device_accuracy"], 8)
    metrics |= {"n_devices": 8, "device_accuracy_ci95": list(low_and_high)}
    (out / "metrics.json").write_text(json.dumps(metrics))
    return out


def test_runs_of_before_are_read_and_counted_anew(made: Path, tmp_path: Path) -> None:
    old = as_before(made / "one", tmp_path / "old")
    assert read_run(old).metrics == read_run(made / "one").metrics
    text = write_report(old).read_text("utf-8")
    assert "7 of 8 verdicts on 4 devices are correct" in text


def test_commands_print_it(made: Path, tmp_path: Path, run: Run) -> None:
    old = as_before(made / "one", tmp_path / "old")
    assert run("report", old).code == 0
    from toptune.cli.printing import print_scores

    print_scores({"falkon": read_run(made / "one").metrics})


def test_the_table_of_scores_has_verdicts(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from toptune.cli.printing import print_scores

    print_scores({"falkon": read_json(made / "one" / "metrics.json")})
    out = " ".join(capsys.readouterr().out.split())
    assert "classifier verdicts 95 % CI" in out
    assert "7/8 = 0.88 0.51-1.00" in out
    assert "7 of 8 verdicts on 4 devices are right" in out


# --- beside another run


def with_verdicts(run: ReadRun, right: str) -> ReadRun:
    """Let verdicts, in their order, be right where there is a plus sign."""
    other = {"basal": "drug", "drug": "basal"}
    verdicts = tuple(
        v._replace(prediction=v.label if sign == "+" else other[v.label])
        for v, sign in zip(run.verdicts, right, strict=True)
    )
    return replace(run, verdicts=verdicts)


def test_runs_are_compared_by_devices_and_not_by_verdicts(made: Path) -> None:
    run = read_run(made / "all")
    first, second = with_verdicts(run, "++++++++"), with_verdicts(run, "+--+----")
    pair = compare(first, second)
    assert (pair.n_shared, pair.only_first, pair.only_second) == (8, 4, 0)
    # Four devices on one side: 2 / 2 ** 4. Six verdicts would have given 2 / 2 ** 6.
    assert pair.p == pytest.approx(2 / 16)
    # One verdict more and one fewer on a device is no difference.
    swapped = compare(with_verdicts(run, "+-++++++"), with_verdicts(run, "-+++++++"))
    assert (swapped.only_first, swapped.only_second, swapped.p) == (0, 0, 1.0)
    blocks = comparison_section([first, second]).blocks
    assert "sign test over devices, p = 0.12" in "".join(
        block.text for block in blocks if isinstance(block, Text)
    )
    (table,) = [block for block in blocks if isinstance(block, Table)]
    assert "verdicts correct" in table.header
    assert not [block for block in blocks if isinstance(block, Note)]


# --- a real study


def test_a_real_study_before_and_after_a_drug(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tiny_backbones: None
) -> None:
    del tiny_backbones
    archive = shared("data", "mk801", "mk801.tar.gz")
    monkeypatch.chdir(tmp_path)
    with tarfile.open(archive) as whole:
        # Of every culture five electrodes, which is quick and enough to count.
        seen: dict[str, int] = {}
        wanted = []
        for member in whole.getmembers():
            folder = member.name.rpartition("/")[0]
            seen[folder] = seen.get(folder, 0) + member.isfile()
            if member.name.endswith("devices.csv") or (member.isfile() and seen[folder] <= 5):
                wanted.append(member)
        whole.extractall(tmp_path, wanted, filter="data")
    tiny = ["--window-s", "120", "--stride-s", "60", "--backbone", "tiny", "--weights", "random"]
    ran = run("extract", "mk801/devices.csv", "--store", "s.zarr", *tiny)
    assert ran.code == 0, ran.err
    ran = run("fit", "s.zarr", "--head", "parameters", "-o", "run", "--permutations", "0")
    assert ran.code == 0, ran.err
    metrics = read_json(Path("run/metrics.json"))
    assert (metrics["n_devices"], metrics["n_verdicts"]) == (11, 22)
    low, high = metrics["device_accuracy_ci95"]
    assert low <= metrics["device_accuracy"] <= high
    of_22: Any = wilson_interval(metrics["device_accuracy"], 22)
    assert (low, high) != pytest.approx(of_22)
    assert high - low >= of_22[1] - of_22[0] - 1e-9
    assert "22 verdicts on 11 devices" in ran.out
    ran = run("predict", "run/model", "mk801/basal-1-ptrain_29012024_05_01_nbasal_TXT")
    assert "cross-validated on 22 verdicts on 11 left-out devices" in ran.out
