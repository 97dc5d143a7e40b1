"""What is kept of a live recording: durable at any time, whatever the disk does."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from live_made import BIN_S, STRIDE_S, WIDTH_S, files_no_longer_than, make_verdicts
from results import read_csv, read_json
from small_data import train_small_run, write_mcs

from toptune.errors import InputError, StorageError
from toptune.live.blocks import Note, SourceInfo
from toptune.live.board import Board, Header
from toptune.live.detection import Calibration
from toptune.live.engine import LiveVerdict
from toptune.live.record import GrowingTable, Record, _Activity
from toptune.params import Compute, Picture
from toptune.prediction import predict
from toptune.runs.model import read_model
from toptune.runs.verdicts import Predictions

pytestmark = pytest.mark.usefixtures("one_torch_thread", "tiny_backbones")


class Made(NamedTuple):
    run: Path
    predicted: Path  # what predict wrote
    predictions: Predictions
    verdicts: list[LiveVerdict]  # the same as a session gives it


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_backbones: None) -> Made:
    """Make a run, and verdicts on a recording; tests do not change them."""
    del tiny_backbones
    folder = tmp_path_factory.mktemp("made")
    run = train_small_run(folder, Picture(kind="raster"))
    path = write_mcs(folder / "new.h5", seed=70, rate_hz=10.0)
    compute = Compute(device="cpu", n_jobs=1)
    found = predict(run, {"new.h5": path}, out=folder / "out", compute=compute)
    return Made(run, folder / "out", found, list(_as_live(found)))


def _as_live(found: Predictions) -> Iterator[LiveVerdict]:
    (one,) = found.recordings
    likes = make_verdicts(one.codes.tolist(), classes=found.classes)
    for k, like in enumerate(likes):
        told = {
            **vars(like),
            "start_s": float(one.start_s[k]),
            "scores": one.scores[k],
            "probabilities": one.probabilities[k],
            "nearness": float(one.novelty.nearness[k]),
            "unlike": bool(one.novelty.unlike[k]),
        }
        yield LiveVerdict(**told)


def header_of(made: Made) -> Header:
    source = SourceInfo(name="new.h5", channel_labels=("E0", "E1"), sampling_rate_hz=1e4)
    return Header(
        source=source, model="run", classes=made.predictions.classes,
        width_s=WIDTH_S, stride_s=STRIDE_S,
    )  # fmt: skip


def begin(made: Made, out: Path, **options: bool) -> tuple[Record, Board]:
    header = header_of(made)
    nothing = Predictions(**{**vars(made.predictions), "recordings": ()})
    return Record(out, read_model(made.run), nothing, header, **options), Board(header)


def test_the_folder_is_that_of_predict(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    record, board = begin(made, out)
    for verdict in made.verdicts:
        board.take(verdict)
        assert record.verdict(verdict) is None
    board.end()
    report = record.finish(made.predictions, board)
    record.close()
    for name in ("windows.csv", "verdicts.csv", "predictions.json"):
        assert (out / name).read_bytes() == (made.predicted / name).read_bytes()
    assert report == out / "report.html"
    page = report.read_text("utf-8")
    assert page.count("<article") == 1
    assert "No sample was lost." in page
    assert "Raster" not in page
    live = read_json(out / "live.json")
    assert (live["ended"], live["n_windows"], live["n_channels"]) == (True, 7, 2)


def test_everything_is_there_before_the_end(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    record, board = begin(made, out)
    assert read_json(out / "predictions.json")["recordings"] == []
    whole = read_csv(made.predicted / "windows.csv")
    for n, verdict in enumerate(made.verdicts, 1):
        board.take(verdict)
        record.verdict(verdict)
        assert read_csv(out / "windows.csv") == whole[:n]
    note = Note(at_s=3.0, kind="gap", text='a gap, "quoted"\nand more', n_samples=12)
    record.note(note)
    (row,) = read_csv(out / "notes.csv")
    assert row == {"at_s": "3", "kind": "gap", "n_samples": "12", "text": note.text}
    assert record.save(made.predictions, board) is None
    assert not record.is_due
    assert len(read_csv(out / "verdicts.csv")) == 1
    assert read_json(out / "live.json")["ended"] is False
    record.close()


def test_what_a_killed_process_left_can_be_replaced_and_nothing_else(
    made: Made, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    begin(made, out)[0].close()
    with pytest.raises(InputError, match="exists"):
        begin(made, out)
    begin(made, out, overwrite=True)[0].close()
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not a prediction"):
        begin(made, other, overwrite=True)
    assert (other / "mine.txt").read_text() == "mine"


def test_a_full_disk_is_said_once_and_nothing_is_missing_when_there_is_room(
    made: Made, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    record, board = begin(made, out)
    size = (out / "windows.csv").stat().st_size
    notes: list[Note | None] = []
    with files_no_longer_than(size + 150):
        for verdict in made.verdicts:
            board.take(verdict)
            notes.append(record.verdict(verdict))
            # Whole rows, of which a reader may rely on each.
            assert (out / "windows.csv").read_bytes().endswith(b"\n")
        notes.append(record.note(Note(at_s=1.0, kind="late", text="x" * 2000)))
        notes.append(record.save(made.predictions, board))
    (said,) = (note for note in notes if note is not None)
    assert said.kind == "disk"
    assert "File too large" in said.text
    again = record.save(made.predictions, board)
    assert again is not None
    assert "can be written again" in again.text
    assert record.save(made.predictions, board) is None
    record.close()
    assert (out / "windows.csv").read_bytes() == (made.predicted / "windows.csv").read_bytes()
    assert read_csv(out / "notes.csv")[0]["text"] == "x" * 2000
    assert list(out.glob(".*")) == []


def test_a_report_that_cannot_be_written_is_an_error_of_one_line(
    made: Made, tmp_path: Path
) -> None:
    record, board = begin(made, tmp_path / "out")
    with files_no_longer_than(5000), pytest.raises(StorageError, match="make room"):
        record.finish(made.predictions, board)
    record.close()


def test_a_verdict_that_was_not_given_is_in_the_table_at_the_end(
    made: Made, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    record, board = begin(made, out)
    record.verdict(made.verdicts[0])
    record.finish(made.predictions, board)
    record.close()
    assert (out / "windows.csv").read_bytes() == (made.predicted / "windows.csv").read_bytes()


def test_thresholds_are_kept_exactly(made: Made, tmp_path: Path) -> None:
    record, _ = begin(made, tmp_path / "out")
    given = Calibration(
        channel_labels=("E0", "E1"),
        threshold_uv=np.array([np.pi, np.inf], np.float32),
        mean_uv=np.array([1 / 3, 0], np.float32),
        dead=np.array([False, True]),
        noisy=np.array([False, False]),
        span_s=30.0,
    )
    assert record.calibration(given) is None
    record.close()
    assert Calibration.read(tmp_path / "out" / "thresholds.json").to_json() == given.to_json()


def test_a_table_grows_by_whole_rows(tmp_path: Path) -> None:
    table = GrowingTable(tmp_path / "t.csv", ["a", "b"])
    table.add([1.23456789, 'say "x", then\n'])
    assert (tmp_path / "t.csv").read_text() == "a,b\n"
    table.flush()
    table.sync()
    table.close()
    with (tmp_path / "t.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["a", "b"], ["1.23457", 'say "x", then\n']]
    with pytest.raises(FileExistsError):
        GrowingTable(tmp_path / "t.csv", ["a"])


@pytest.mark.parametrize("seconds", [3, 19, 100])
def test_the_histogram_of_the_whole_has_every_spike_once(seconds: int) -> None:
    activity = _Activity()
    for verdict in make_verdicts([0] * (seconds - 1)):
        activity.add(verdict)
    counts = activity._counts
    # Each bin has as many spikes as its second.
    assert counts.sum() == 100 * sum(range(seconds))
    drawn = activity.drawn()
    assert drawn.duration_s == pytest.approx(seconds, rel=1e-3)
    assert drawn.histogram_bin_s >= BIN_S
    per_s = round(1 / drawn.histogram_bin_s, 6)
    if per_s.is_integer():
        sums = counts[: int(per_s) * seconds].reshape(seconds, -1).sum(axis=1)
        np.testing.assert_array_equal(sums, 100 * np.arange(seconds))
