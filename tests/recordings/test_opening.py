"""How formats are recognised, and how one is added."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from toptune.errors import InputError
from toptune.params import OpeningOptions, SpikeSettings
from toptune.recordings import opening
from toptune.recordings.opening import Format, SpikeRecording, open_recording, spike_rate_hz
from toptune.recordings.trains import Segment, SpikeTrains, sort_spikes
from toptune.spikes.finding import find_spikes


def recognise_ticks(path: Path) -> str | None:
    return "ticks" if path.read_bytes().startswith(b"ticks ") else None


def read_ticks(path: Path, options: OpeningOptions) -> SpikeTrains:
    sample = np.array(path.read_text().split()[1:], np.int64)
    return SpikeTrains(
        spikes=sort_spikes(sample, np.zeros(len(sample), np.int32), np.ones(len(sample), "f4")),
        channel_labels=("A",),
        sampling_rate_hz=spike_rate_hz(options),
        segments=(Segment(0, 1000, 0.0),),
        threshold_uv=np.array([np.nan], np.float32),
    )


TICKS = Format(
    description="lists of ticks",
    recognise=recognise_ticks,
    open=lambda path, kind, options: SpikeRecording(path, kind, options, read_ticks),
)


def test_a_format_is_added_by_one_entry_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.dat"
    path.write_text("ticks 3 70 500")
    with pytest.raises(InputError, match="not a recording toptune knows"):
        open_recording(path)
    monkeypatch.setattr(opening, "FORMATS", (*opening.FORMATS, TICKS))
    found = find_spikes(path, SpikeSettings(sampling_rate_hz=500), stage=lambda *_: None)
    assert found.kind == "ticks"
    assert found.trains.spikes.sample.tolist() == [3, 70, 500]
    assert found.trains.duration_s == 2
    path.write_text("ticks of another kind"[:2])
    with pytest.raises(InputError, match=r"spikes as CSV .*, lists of ticks"):
        open_recording(path)


def test_opening_a_table_loads_no_library_of_another_stage(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("time_s,channel\n1,A\n")
    code = (
        "import sys; from toptune.recordings.opening import open_recording;"
        f"open_recording({str(tmp_path / 's.csv')!r}).trains();"
        "print([m for m in ('torch', 'numba', 'scipy', 'McsPy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
