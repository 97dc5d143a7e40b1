"""The report of a prediction: it says what the tables say, and what speaks against the verdicts."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from results import Run, read_csv, read_json
from small_data import CLASS_RATES_HZ, train_small_run, write_mcs

from toptune.params import Compute, FitOptions, Picture
from toptune.pictures.thumbnails import Thumbnails
from toptune.prediction import predict
from toptune.reports.page import Cell, Facts, Note, Page, Table, Timeline
from toptune.reports.predictions import predictions_page
from toptune.runs.model import Model, load_model, read_model
from toptune.runs.verdicts import Predictions
from toptune.store.feature_store import FeatureStore
from toptune.store.tables import table_for
from toptune.training import fit

CPU = Compute(device="cpu", n_jobs=1)
DRAWN = Thumbnails(b"\x89PNG", b"\x89PNG", 0.01, 7, 8.0)

pytestmark = pytest.mark.usefixtures("one_torch_thread", "tiny_backbones")


class Made(NamedTuple):
    run: Path
    recordings: list[Path]  # one a class, and one that is louder than anything in training
    predictions: Predictions


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_backbones: None) -> Made:
    """Make a run and predictions by it; tests do not change them."""
    del tiny_backbones
    folder = tmp_path_factory.mktemp("made")
    run = train_small_run(folder, Picture(kind="raster"))
    rates = [*CLASS_RATES_HZ.items(), ("loud", 150.0)]
    (folder / "new").mkdir()
    recordings = [
        write_mcs(folder / "new" / f"new-{name}.h5", seed=70 + k, rate_hz=rate)
        for k, (name, rate) in enumerate(rates)
    ]
    found = predict(run, recordings, out=folder / "out", compute=CPU)
    return Made(run, recordings, found)


def page_of(made: Made, predictions: Predictions | None = None, model: Model | None = None) -> Page:
    predictions = predictions or made.predictions
    drawn = [DRAWN] * len(predictions.recordings)
    return predictions_page(predictions, model or read_model(made.run), drawn)


def section(page: Page, title: str) -> list[object]:
    (found,) = (one.blocks for one in page.sections if one.title == title)
    return list(found)


def test_run_stands_for_its_model(made: Made, tmp_path: Path) -> None:
    assert made.predictions.model == made.run / "model"
    again = predict(made.run / "model", made.recordings[:1], compute=CPU)
    assert again.recordings[0].to_json() == made.predictions.recordings[0].to_json()
    assert load_model(made.run).classes_.tolist() == ["A", "B", "C"]
    assert read_json(made.run.parent / "out" / "predictions.json")["model"].endswith("run/model")
    # A folder that is a model itself is not looked into.
    both = shutil.copytree(made.run / "model", tmp_path / "both")
    (both / "model").mkdir()
    (both / "model" / "model.json").write_text("{}")
    assert read_model(both).classes == ("A", "B", "C")


def test_command_takes_a_run_and_names_the_report_last(
    made: Made, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "out"
    ran = run("predict", made.run, made.recordings[0], "-o", out, "--device", "cpu")
    assert ran.code == 0
    assert ran.out.rstrip().splitlines()[-1] == f"report: {out / 'report.html'}"
    assert (out / "report.html").read_text("utf-8").count("<article") == 1


def test_table_says_what_verdicts_csv_says(made: Made) -> None:
    (table,) = section(page_of(made), "Verdicts")
    assert isinstance(table, Table)
    rows = read_csv(made.run.parent / "out" / "verdicts.csv")
    assert len(table.rows) == len(rows) == 4
    for shown, row in zip(table.rows, rows, strict=True):
        cells = [cell.text if isinstance(cell, Cell) else cell for cell in shown]
        assert cells[0] == Path(row["recording"]).name
        assert cells[1] == row["prediction"]
        assert float(cells[2]) == pytest.approx(float(row["probability"]), abs=0.006)
        votes = row[f"windows_{row['prediction']}"]
        assert cells[3] == f"{votes} of {row['n_windows']}"
        for k, name in enumerate("ABC"):
            probability = float(row[f"probability_{name}"])
            assert float(cells[4 + k]) == pytest.approx(probability, abs=0.006)
        assert (cells[7] == "unlike training") == bool(int(row["unlike_training"]))


def test_lines_are_the_probabilities_of_the_windows(made: Made) -> None:
    timelines = [b for b in section(page_of(made), "Recordings") if isinstance(b, Timeline)]
    for block, one in zip(timelines, made.predictions.recordings, strict=True):
        first, second = block.tracks[0].lines
        np.testing.assert_allclose([y for _, y in first.points], one.probabilities[:, one.code])
        # Recordings of 8 s, windows of 2 s every second.
        np.testing.assert_allclose([8 * x for x, _ in first.points], np.arange(7) + 1.0)
        others = np.delete(one.mean_probabilities, one.code)
        assert np.mean([y for _, y in second.points]) == pytest.approx(others.max())


def test_what_is_unlike_training_is_flagged_everywhere(made: Made) -> None:
    page = page_of(made)
    loud = made.predictions.recordings[3]
    assert [one.unlike_training for one in made.predictions.recordings] == [False] * 3 + [True]
    *_, block = (b for b in section(page, "Recordings") if isinstance(b, Timeline))
    assert block.tone == "bad"
    assert "UNLIKE" in block.badge
    for warning in loud.warnings:
        assert warning in block.text
    marked = next(track for track in block.tracks if track.name == "unlike training")
    assert len(marked.lines) == np.count_nonzero(loud.novelty.unlike)
    notes = " ".join(b.text for b in page.blocks if isinstance(b, Note))
    assert "1 recording is unlike anything in training" in notes
    assert "RANDOM" in notes


def test_lead_counts_recordings_in_whole_words(made: Made) -> None:
    a, b, *_ = made.predictions.recordings
    b = replace(b, code=1)
    of = {n: replace(made.predictions, recordings=n) for n in ((a,), (a, a, b), ())}
    assert page_of(made, of[a,]).lead.startswith("Of 1 recording, 1 looks like A.")
    assert page_of(made, of[a, a, b]).lead.startswith(
        "Of 3 recordings, 2 look like A and 1 looks like B. On 6 left-out devices"
    )
    assert page_of(made, of[()]).lead == "No recording could be judged."


def test_model_that_cannot_be_told_from_chance_is_said_to_be_worthless(made: Made) -> None:
    scores = {**made.predictions.cross_validated, "device_accuracy_ci95": [0.2, 0.6], "chance": 0.3}
    page = page_of(made, replace(made.predictions, cross_validated=scores, calibrated=False))
    assert any("say nothing" in b.text for b in page.blocks if isinstance(b, Note))
    (facts,) = (b for b in page.blocks if isinstance(b, Facts))
    assert facts.facts[-1].tone == "bad"
    said = " ".join(getattr(b, "text", "") for b in section(page, "The model"))
    assert "NOT calibrated" in said


def test_nothing_is_said_of_windows_where_rows_are_recordings(made: Made, tmp_path: Path) -> None:
    store = FeatureStore(made.run.parent / "s.zarr")
    table = table_for(store, "parameters")
    options = FitOptions(head="parameters", permutations=0, tune=False)
    fit(table, options, tmp_path / "run", facts=store.training_facts(table))
    predictions = predict(tmp_path / "run", made.recordings[:1], compute=CPU)
    page = predictions_page(predictions, read_model(tmp_path / "run"), [DRAWN])
    (verdicts,) = section(page, "Verdicts")
    assert isinstance(verdicts, Table)
    assert "its windows" not in verdicts.header
    assert "windows" not in verdicts.caption
    (timeline,) = (b for b in section(page, "Recordings") if isinstance(b, Timeline))
    assert [track.name.split(",")[0] for track in timeline.tracks] == ["histogram", "raster"]
    assert "window" not in timeline.text


def test_failures_are_listed_with_their_causes(made: Made) -> None:
    failed = replace(made.predictions, failed=(("x.h5", "it holds no samples"),))
    (table,) = section(page_of(made, failed), "Recordings that failed")
    assert isinstance(table, Table)
    assert table.rows == (("x.h5", "it holds no samples"),)
