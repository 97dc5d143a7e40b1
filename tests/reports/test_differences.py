"""The report says what differs, in words that the p-values allow, and shows every class."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_data import write_data_set, write_mcs

from toptune.errors import InputErrors
from toptune.evaluation.effects import ParameterValues, effect_sizes
from toptune.extraction import extract
from toptune.features.burst_features import NAMES, TITLES
from toptune.machine.display import named_electrodes
from toptune.params import Backbone, FitOptions, Windows
from toptune.reports.differences import (
    Differences,
    difference_sections,
    distinct,
    p_words,
    read_coefficients,
    typical_recordings,
)
from toptune.reports.page import Block, Columns, Details, Note, Picture, Section, Table, Text
from toptune.reports.run import find_differences, write_report
from toptune.reports.scores import confusion_section
from toptune.reports.setup import commands
from toptune.runs.reading import ReadRun, read_run
from toptune.store.feature_store import FeatureStore
from toptune.store.tables import table_for
from toptune.training import RunResult, fit

pytestmark = pytest.mark.usefixtures("one_torch_thread", "tiny_backbones")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Seven devices, the last silent, listed so that no order is that of the alphabet."""
    folder = tmp_path_factory.mktemp("made")
    devices = write_data_set(folder)
    write_mcs(folder / "r6.h5", seed=6, rate_hz=0)
    header, *rows = [*devices.read_text().split(), "r6.h5,dev6,B,b0"]
    rows = [f"{row},{7 * (k % 3 + 1)}" for k, row in enumerate(rows)]
    devices.write_text("\n".join([f"{header},DIV", *(rows[k] for k in (2, 0, 1, 3, 4, 5, 6))]))
    windows, backbone = Windows(width_s=2.0, stride_s=2.0), Backbone(name="tiny", weights="random")
    extract(devices, folder / "s.zarr", windows=windows, backbone=backbone)
    return FeatureStore(folder / "s.zarr")


FitInto = Callable[..., RunResult]


@pytest.fixture(scope="module")
def fit_into(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> FitInto:
    def into(head: str = "parameters", *, compare: bool = True, **options: Any) -> RunResult:
        table = table_for(store, head)
        out = tmp_path_factory.mktemp("runs") / "run"
        how = FitOptions(head=head, permutations=0, tune=False, **options)
        facts = store.training_facts(table)
        return fit(table, how, out, facts=facts, store=store, compare=compare)

    return into


@pytest.fixture(scope="module")
def of_bursts(fit_into: FitInto) -> Path:
    return fit_into().path


@pytest.fixture(scope="module")
def of_windows(fit_into: FitInto) -> Path:
    return fit_into("falkon").path


def blocks_of(sections: tuple[Section, ...] | tuple[Block, ...], kind: type[Any]) -> list[Any]:
    found: list[Any] = []
    for one in sections:
        if isinstance(one, kind):
            found.append(one)
        if isinstance(one, Section | Columns | Details):
            found += blocks_of(one.blocks, kind)
    return found


def sections_of(folder: Path, store: FeatureStore | None) -> dict[str, Section]:
    run = read_run(folder)
    found = find_differences(run, store)
    assert found is not None
    return {one.title: one for one in difference_sections(run, found)}


# --- in the report


def test_every_run_with_spikes_says_what_differs(
    of_bursts: Path, of_windows: Path, store: FeatureStore
) -> None:
    common = [
        "What differs between the classes",
        "A typical recording of each class",
        "Course over the days in vitro",
        "What differs by batch",
    ]
    for folder, more in ((of_windows, []), (of_bursts, ["What the classifier weighs"])):
        assert sorted(sections_of(folder, store)) == sorted(common + more)
        content = (folder / "report.html").read_text("utf-8")
        for title in common + more:
            assert f">{title}</h2>" in content
        assert (folder / "report.html").stat().st_size < 3_000_000
        with (folder / "parameters.csv").open() as file:
            assert len(list(csv.DictReader(file))) == 7


def test_report_without_the_store_says_what_differs_from_the_runs_own_table(
    of_windows: Path, tmp_path: Path
) -> None:
    path = write_report(of_windows, out=tmp_path / "r.html")
    content = path.read_text("utf-8")
    assert "What differs between the classes" in content
    assert "A typical recording" not in content


def test_run_that_was_not_measured_is_measured_for_its_report(
    fit_into: FitInto, store: FeatureStore, tmp_path: Path
) -> None:
    folder = fit_into("falkon", compare=False).path
    assert not (folder / "parameters.csv").exists()
    assert "What differs" not in (folder / "report.html").read_text("utf-8")
    told: list[tuple[str, int, int]] = []
    write_report(folder, store=store, out=tmp_path / "r.html", progress=lambda *n: told.append(n))
    assert ("burst parameters", 7, 7) in told
    assert "What differs between the classes" in (tmp_path / "r.html").read_text("utf-8")
    bare = write_report(folder, out=tmp_path / "bare.html").read_text("utf-8")
    assert "What differs" not in bare


@pytest.mark.parametrize("damage", ["recording,firing_rate_hz\nr,x\n", "not a table", ""])
def test_damaged_table_costs_the_section_and_not_the_report(
    of_windows: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(of_windows, tmp_path / "run"))
    text = (folder / "parameters.csv").read_text() if not damage else ""
    (folder / "parameters.csv").write_text(damage or text.replace("0.", "x.", 1))
    (folder / "params.json").write_text(
        json.dumps({**json.loads((folder / "params.json").read_text()), "store": None})
    )
    content = write_report(folder).read_text("utf-8")
    assert "Confusion matrices" in content
    assert "What differs" not in content
    assert "does not say what differs" in caplog.text


def test_every_class_has_its_typical_raster_histogram_and_map(
    of_bursts: Path, store: FeatureStore
) -> None:
    pictures = blocks_of(
        (sections_of(of_bursts, store)["A typical recording of each class"],), Picture
    )
    assert len(pictures) == 6
    for label in "ABC":
        mine = [p for p in pictures if p.caption.startswith(f"{label}: device dev")]
        assert ["Raster" in p.caption for p in mine] == [True, False]
        assert "Firing rates" in mine[1].caption
    assert "4 of 4 electrodes" in pictures[-1].caption


def test_typical_is_the_medoid_and_of_correct_devices_where_there_are_any(
    of_bursts: Path,
) -> None:
    run = read_run(of_bursts)
    values = np.full((5, len(NAMES)), np.nan)
    values[:, 0] = [1.0, 2.0, 9.0, 2.1, 30.0]
    rows = ParameterValues(
        names=NAMES,
        values=values,
        device=np.array(["d0", "d1", "d2", "d3", "d4"]),
        label=np.array(["A", "A", "A", "A", "B"]),
        classes=("A", "B"),
        columns={},
    )

    one = run.verdicts[0]

    def verdicts(*right: str) -> ReadRun:
        made = [one._replace(device=d, label="A", prediction="A") for d in right]
        object.__setattr__(run, "verdicts", tuple(made))
        return run

    found = typical_recordings(verdicts(), rows)
    # Nearest to 1, 2, 9 is 2.1; nobody of class B is right, and it has one recording.
    assert [(t.label, t.row, t.is_correct) for t in found] == [("A", 3, False), ("B", 4, False)]
    assert typical_recordings(verdicts("d0", "d2"), rows)[0].row == 0
    assert typical_recordings(verdicts("d2"), rows)[0][:3] == ("A", 2, True)


def test_coefficients_are_those_of_the_model(of_bursts: Path, store: FeatureStore) -> None:
    found = read_coefficients(of_bursts)
    assert found is not None
    assert found.parameters == NAMES
    section = sections_of(of_bursts, store)["What the classifier weighs"]
    (table,) = blocks_of((section,), Table)
    assert table.header == ("parameter", "C", "A", "B")
    with (of_bursts / "coefficients.csv").open() as file:
        for row, written in zip(table.rows, csv.DictReader(file), strict=True):
            assert row[0] == TITLES[written["parameter"]]
            for cell, label in zip(row[1:], "CAB", strict=True):
                shown = float(str(cell).replace("\u2212", "-"))
                assert shown == pytest.approx(float(written[label]), abs=0.0051)


def test_only_a_linear_classifier_has_coefficients(
    fit_into: FitInto, of_windows: Path, store: FeatureStore
) -> None:
    gaussian = fit_into("parameters", fixed={"kernel": "gaussian"}).path
    for folder in (gaussian, of_windows):
        assert "What the classifier weighs" not in sections_of(folder, store)


def test_devices_of_each_class_and_batch_are_counted(of_bursts: Path, store: FeatureStore) -> None:
    section = sections_of(of_bursts, store)["What differs by batch"]
    counts = next(b for b in section.blocks if isinstance(b, Table) and "Devices" in b.caption)
    assert counts.header == ("class", "b0", "b1")
    assert counts.rows == (("C", "1", "1"), ("A", "1", "1"), ("B", "2", "1"))


# --- words


def made_differences(values: list[list[float]], labels: str, *, device: list[str] | None = None):  # type: ignore[no-untyped-def]  # a helper
    array = np.full((len(values), len(NAMES)), np.nan)
    array[:, : len(values[0])] = values
    names = tuple(f"r{k}" for k in range(len(values)))
    rows = ParameterValues(
        names=NAMES,
        values=array,
        device=np.array(device or names),
        label=np.array(list(labels)),
        classes=tuple(dict.fromkeys(labels)),
        columns={},
    )
    return Differences(values=rows, names=names)


def words(run: ReadRun, found: Differences) -> str:
    sections = difference_sections(run, found)
    parts = [b.text for b in blocks_of(sections, Text) + blocks_of(sections, Note)]
    parts += [b.caption + b.alt for b in blocks_of(sections, Picture)]
    for table in blocks_of(sections, Table):
        parts += [table.caption, *(str(cell) for row in table.rows for cell in row)]
    return " ".join(parts)


def test_without_a_detectable_difference_nothing_is_called_higher_or_lower(
    of_bursts: Path,
) -> None:
    found = made_differences([[1.0], [2.0], [1.5], [1.8]], "ABAB")
    said = words(read_run(of_bursts), found)
    assert "No detectable difference in any of 1 comparison" in said
    assert not re.search("higher|lower(?! [a-z]* ?case)|better|worse|differs detectably", said)


def test_detectable_differences_are_named_with_their_direction(of_bursts: Path) -> None:
    values = [[float(k), 0.5] for k in range(8)] + [[100.0 + k, 0.5] for k in range(8)]
    said = words(read_run(of_bursts), made_differences(values, "A" * 8 + "B" * 8))
    assert "B (8 devices) differs detectably from A (8 devices) in 1 of 2 parameters" in said
    assert "firing rate (spikes/s per electrode) higher (\u03b4 1.00)" in said


def test_three_classes_are_told_one_by_one(of_bursts: Path) -> None:
    values = [[float(k)] for k in range(8)] + [[100.0 + k] for k in range(8)] + [[4.5]] * 8
    said = words(read_run(of_bursts), made_differences(values, "A" * 8 + "B" * 8 + "C" * 8))
    assert "higher (\u03b4 1.00)" in said
    assert "no detectable difference" in said


def test_devices_with_both_labels_are_said_to_be_compared_with_themselves(of_bursts: Path) -> None:
    values = [[10.0 * k + drug * (k + 1)] for k in range(8) for drug in (0, 1)]
    device = [f"d{k}" for k in range(8) for _ in range(2)]
    said = words(read_run(of_bursts), made_differences(values, "AB" * 8, device=device))
    assert "each device with itself" in said
    assert "every device has the larger value in that class" in said
    assert "B (8 devices) differs detectably from A" in said
    assert "lines join the values of a device" in said


def test_parameters_by_both_ways_to_find_bursts_are_shown_once() -> None:
    names = ["logisi_burst_spikes", "isi_cv", "burst_spikes", "logisi_threshold_s"]
    assert distinct(names) == ["logisi_burst_spikes", "isi_cv", "logisi_threshold_s"]


@pytest.mark.parametrize(
    ("p", "said"),
    [(0.0, "p < 0.001"), (0.00099, "p < 0.001"), (0.0456, "p = 0.046"), (1, "p = 1.00")],
)
def test_p_values_are_never_zero(p: float, said: str) -> None:
    assert p_words(p).replace("\u00a0", " ") == said


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["68"], "1 dead electrode (number 68)"),
        (["12", "68", "71"], "3 dead electrodes (numbers 12, 68 and 71)"),
        (["A05"], "1 dead electrode (A05)"),
        (["E1", "E2"], "2 dead electrodes (E1 and E2)"),
    ],
)
def test_names_of_electrodes_do_not_read_as_counts(labels: list[str], said: str) -> None:
    assert named_electrodes("dead", labels) == said


# --- the order of the classes


def test_classes_are_shown_in_the_order_of_the_devices_file(
    of_bursts: Path, of_windows: Path
) -> None:
    for folder in (of_bursts, of_windows):
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["classes"] == ["A", "B", "C"]  # files stay sorted
        assert json.loads((folder / "params.json").read_text())["class_order"] == ["C", "A", "B"]
        run = read_run(folder)
        assert run.classes == ("C", "A", "B")
        maps = [
            b for c in confusion_section(run).blocks if isinstance(c, Columns) for b in c.blocks
        ]
        assert all(m.rows == m.columns == ("C", "A", "B") for m in maps)  # type: ignore[union-attr]
        # The columns went along with the names.
        for v in run.verdicts:
            k = run.classes.index(v.prediction)
            assert v.votes[k] == v.votes.max()
        with (folder / "confusion.csv").open() as file:
            written = {
                (row["label"], row["prediction"]): int(row["count"])
                for row in csv.DictReader(file)
                if row["unit"] == "device"
            }
        for i, label in enumerate(run.classes):
            for j, prediction in enumerate(run.classes):
                assert run.device_confusion[i, j] == written[label, prediction]
        assert f"{run.name}: C, A, B" in (folder / "report.html").read_text("utf-8")


def test_another_order_can_be_asked_for_and_is_repeated(fit_into: FitInto) -> None:
    run = read_run(fit_into(classes="B,A").path)
    assert run.classes == ("B", "A", "C")
    assert any("--classes B,A" in line for line in commands(run))
    merged = read_run(fit_into(classes="BC, A, C", merge=("BC=B,C",)).path)
    assert merged.classes == ("BC", "A")


def test_order_does_not_change_a_run(fit_into: FitInto, of_bursts: Path) -> None:
    other = fit_into(classes="B,C,A").path
    for name in ("windows.csv", "devices.csv", "confusion.csv", "coefficients.csv"):
        assert (other / name).read_bytes() == (of_bursts / name).read_bytes()
    model = "model/model.safetensors"
    assert (other / model).read_bytes() == (of_bursts / model).read_bytes()


def test_order_with_a_class_that_is_not_there_is_refused(fit_into: FitInto) -> None:
    with pytest.raises(InputErrors, match="`classes` names 'D', which is no class; there are"):
        fit_into(classes="A,D")


def test_run_without_an_order_is_shown_as_it_was(of_bursts: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(of_bursts, tmp_path / "old"))
    params = json.loads((old / "params.json").read_text())
    del params["class_order"]
    (old / "params.json").write_text(json.dumps(params))
    assert read_run(old).classes == ("A", "B", "C")
    assert effect_sizes(find_differences(read_run(old)).values).contrasts[0].label == "A"  # type: ignore[union-attr]
    write_report(old)
