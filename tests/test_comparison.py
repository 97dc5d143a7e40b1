"""Runs side by side: counts by hand, the exact test by its definition, and what is refused."""

from __future__ import annotations

import json
from math import comb
from pathlib import Path

import pytest
from test_fit import fit, make_table

from toptune.comparison import COLUMNS, compare_runs
from toptune.errors import InputError

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def write_run(folder: Path, right: str, devices: str = "abcdefghij") -> Path:
    """Write a run that named some devices rightly, 1, and others wrongly, 0."""
    folder.mkdir()
    metrics = dict.fromkeys(COLUMNS, 0.5)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    rows = [f"{d},{d},A,1,A,{r}" for d, r in zip(devices, right, strict=True)]
    header = "device,group,label,n_windows,prediction,correct"
    (folder / "devices.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def test_two_runs_are_compared_device_by_device(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", "1111110000")
    b = write_run(tmp_path / "b", "1100000001")
    found = compare_runs([a, b])
    pair = found.pairs[0]
    assert (pair.both, pair.only_first, pair.only_second, pair.neither) == (2, 4, 1, 3)
    # As lopsided as 4 to 1 or more, either way, of five tosses.
    assert pair.p == pytest.approx(2 * (comb(5, 0) + comb(5, 1)) / 2**5)
    assert compare_runs([a, a]).pairs[0].p == 1
    assert json.loads(json.dumps(found.to_json()))["pairs"][0]["only_first"] == 4
    assert len(compare_runs([a, b, a]).pairs) == 3


def test_runs_of_other_devices_or_no_runs_are_refused(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", "1111110000")
    b = write_run(tmp_path / "b", "1100000001", devices="abcdefghik")
    with pytest.raises(InputError, match=r"j \(A\) is in one of them only"):
        compare_runs([a, b])
    with pytest.raises(InputError, match="is no run of toptune"):
        compare_runs([a, tmp_path])
    (a / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match=r"metrics.json has no 'head': fit again"):
        compare_runs([a])


def test_real_runs_have_all_that_is_compared(tmp_path: Path) -> None:
    one = fit(make_table(), "falkon", tmp_path / "one").path
    two = fit(make_table(seed=3), "falkon", tmp_path / "two").path
    found = compare_runs([one, two])
    assert found.runs[0].row["head"] == "falkon"
    assert sum(found.pairs[0][2:6]) == 12
    right = sum(found.runs[0].right.values())
    assert found.runs[0].row["device_accuracy"] == right / 12
