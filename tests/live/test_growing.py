"""An MCS file that another process writes is followed sample by sample."""

from __future__ import annotations

import signal
from pathlib import Path

import h5py
import pytest
from live_processes import Reading, writing
from live_writers import add_samples, add_start, growing_file

from toptune.errors import InputError
from toptune.live import open_source
from toptune.params import Waiting

STALLING = Waiting(stopped_after_s=0.3)


def test_samples_come_as_they_are_written_until_the_writer_closes(tmp_path: Path) -> None:
    path = tmp_path / "culture.h5"
    writer = writing("hdf5", path, 2000, 2.0, 1.0, wait=True)
    with writer, open_source(path, waiting=Waiting()) as source:
        assert source.info.channel_labels == ("E0", "E1", "E2", "E3")
        assert source.info.sampling_rate_hz == 2000.0
        reading = Reading(source)
        reading.until(lambda r: r.n > 500)
        reading.end()
    # A second is missing after a second.
    gap_at = next(note for note in reading.notes if note.kind == "gap")
    assert gap_at.n_samples == 2000
    at = round(gap_at.at_s * 2000)
    assert at == pytest.approx(2000, abs=40)
    assert reading.numbers() == {(k if k < at else k + 2000): k for k in range(4000)}
    assert set(reading.kinds()) == {"gap"}


def test_a_writer_that_stalls_and_dies_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "culture.h5"
    running = writing("hdf5", path, 2000, 60.0, wait=True)
    with running as writer, open_source(path, waiting=STALLING) as source:
        reading = Reading(source)
        reading.until(lambda r: r.n > 500)
        writer.send_signal(signal.SIGSTOP)
        reading.until(lambda r: "stopped" in r.kinds())
        n = reading.n
        writer.send_signal(signal.SIGCONT)
        reading.until(lambda r: r.n > n + 500)
        writer.kill()
        reading.until(lambda r: r.kinds()[-1] == "stopped")
    assert reading.kinds()[:2] == ["stopped", "resumed"]
    assert reading.numbers() == {k: k for k in range(reading.n)}


def test_a_gap_that_is_told_late_is_said(tmp_path: Path) -> None:
    path = tmp_path / "culture.h5"
    _, data, stamps = growing_file(path, 1000)
    add_start(stamps, 0, 0)
    add_samples(data, 0, 1000)
    with open_source(path, waiting=Waiting()) as source:
        reading = Reading(source)
        reading.until(lambda r: r.n == 1000)
        add_start(stamps, 2_500_000, 500)
        add_samples(data, 1000, 1000)
        reading.until(lambda r: r.n == 2000)
    assert sorted(reading.kinds()) == ["clock", "gap"]
    expected = {k: k for k in range(1000)} | {k + 2000: k for k in range(1000, 2000)}
    assert reading.numbers() == expected


def test_another_file_in_its_place_ends_the_source(tmp_path: Path) -> None:
    path = tmp_path / "culture.h5"
    _, data, stamps = growing_file(path, 1000)
    add_start(stamps, 0, 0)
    add_samples(data, 0, 1000)
    with open_source(path, waiting=Waiting()) as source:
        reading = Reading(source)
        reading.until(lambda r: r.n == 1000)
        path.rename(tmp_path / "moved.h5")
        path.write_bytes((tmp_path / "moved.h5").read_bytes())
        reading.end()
    assert reading.kinds() == ["changed"]


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("x", (0,), "f4", maxshape=(None,), chunks=(10,))
        file.swmr_mode = True
        file.flush()
        with pytest.raises(InputError, match="not a recording as MCS's programs write it"):
            open_source(path)


def test_a_closed_file_is_replayed(tmp_path: Path) -> None:
    path = tmp_path / "culture.h5"
    file, data, stamps = growing_file(path, 1000)
    stamps.resize(1, axis=0)
    stamps[0] = (0, 0, 999)
    add_samples(data, 0, 1000)
    file.close()
    with open_source(path, speed="max") as source:
        assert source.info.n_samples == 1000
        reading = Reading(source)
        reading.end()
    assert reading.numbers() == {k: k for k in range(1000)}
