"""The devices file: what is accepted, and every refusal with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from toptune.errors import InputError, InputErrors
from toptune.recordings.devices import read_devices

GOOD = "recording,device,label\na.h5,D1,ctrl\nb.h5,D2,ctrl\nc.h5,D3,drug\nd.h5,D4,drug\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abcdef":
        (tmp_path / f"{name}.h5").touch()
    return tmp_path


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "devices.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def problems_of(path: Path) -> tuple[str, ...]:
    with pytest.raises(InputError) as caught:
        read_devices(path)
    error = caught.value
    return error.problems if isinstance(error, InputErrors) else (str(error),)


def test_rows_keep_order_lines_and_further_columns(folder: Path) -> None:
    text = (
        "recording,batch,device,label,note\n"
        "a.h5,B1,D1,ctrl,\n"
        "\n"
        'b.h5,B1, D2 ,ctrl,"two\nlines"\n'
        "c.h5,B2,D3,drug,x\n"
        "d.h5,B2,D4,drug,x\n"
    )
    devices = read_devices(write(folder, text))
    assert [row.line for row in devices.rows] == [2, 4, 6, 7]
    assert [row.written for row in devices.rows] == ["a.h5", "b.h5", "c.h5", "d.h5"]
    assert devices.rows[1].device == "D2"
    assert devices.rows[1].columns == {"batch": "B1", "note": "two\nlines"}
    assert devices.labels == ("ctrl", "drug")
    assert [row.device for row in devices.rows] == ["D1", "D2", "D3", "D4"]


def test_paths_are_relative_to_the_file_and_may_be_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "table").mkdir()
    names = ["../data/1", "../data/2", "../data/3", str(tmp_path / "data" / "4")]
    for number in range(1, 5):
        (tmp_path / "data" / str(number)).mkdir(parents=True)
    rows = [f"{name},D{i},{'xy'[i // 2]}" for i, name in enumerate(names)]
    path = write(tmp_path / "table", "\n".join(["recording,device,label", *rows]))
    monkeypatch.chdir("/")
    devices = read_devices(path)
    assert [row.recording for row in devices.rows] == [tmp_path / "data" / n for n in "1234"]
    assert devices.rows[0].written == "../data/1"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(GOOD.replace(",", ";"), id="semicolons"),
        pytest.param(GOOD.encode("utf-8-sig"), id="byte-order mark"),
        pytest.param(GOOD.replace("\n", "\r\n"), id="windows line ends"),
        pytest.param(GOOD + ",,\n\n", id="empty cells at the end, as spreadsheets leave them"),
        pytest.param(GOOD.replace(",", " , "), id="spaces around cells"),
        pytest.param(GOOD.rstrip("\n"), id="no line end at the end"),
    ],
)
def test_what_spreadsheets_write_reads_the_same(folder: Path, content: str | bytes) -> None:
    devices = read_devices(write(folder, content))
    assert [(r.written, r.device, r.label) for r in devices.rows] == [
        ("a.h5", "D1", "ctrl"),
        ("b.h5", "D2", "ctrl"),
        ("c.h5", "D3", "drug"),
        ("d.h5", "D4", "drug"),
    ]


def test_a_device_may_have_several_recordings_and_labels(folder: Path) -> None:
    text = "recording,device,label\na.h5,D1,0uM\nb.h5,D1,5uM\nc.h5,D2,0uM\nd.h5,D2,5uM\n"
    devices = read_devices(write(folder, text))
    assert [row.device for row in devices.rows] == ["D1", "D1", "D2", "D2"]
    assert devices.labels == ("0uM", "5uM")


def test_further_columns_are_kept_by_name(folder: Path) -> None:
    text = "recording,device,label,batch\n" + "".join(
        f"{name}.h5,D{name},{label},{batch}\n"
        for name, label, batch in zip("abcd", "xyxy", "1122", strict=True)
    )
    rows = read_devices(write(folder, text)).rows
    assert [row.columns for row in rows] == [{"batch": b} for b in "1122"]


HEAD = "recording,device,label\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param("", ["the file is empty"], id="empty"),
        pytest.param(HEAD, ["no recordings"], id="header only"),
        pytest.param("recording,label\na.h5,x\n", ["line 1: no column device"], id="no column"),
        pytest.param("recording\tname\tlabel\n", ["line 1: no column device"], id="tabs"),
        pytest.param(
            "recording,device,label,label\n", ["line 1: column 'label' is there twice"], id="twice"
        ),
        pytest.param("recording,device,,label\n", ["line 1: column 3 has no name"], id="nameless"),
        pytest.param(
            GOOD.replace("D2", "Kanülen").encode("latin-1"), ["line 3: not UTF-8"], id="latin-1"
        ),
        pytest.param(GOOD.encode("utf-16")[:-1], ["not UTF-16"], id="utf-16"),
        pytest.param(HEAD + '"a.h5,D1,x\n', ["line 2: not a CSV table"], id="open quote"),
        pytest.param(GOOD + "e.h5,D5\n", ["line 6: 2 columns, but the header has 3"], id="ragged"),
        pytest.param(GOOD + "e.h5,D5,\n", ["line 6: label is missing"], id="label missing"),
        pytest.param(GOOD + ",,x\n", ["line 6: recording, device is missing"], id="two missing"),
        pytest.param(
            GOOD + "nope.h5,D5,drug\n", ["line 6: no such recording: nope.h5"], id="no file"
        ),
        pytest.param(
            GOOD + "./a.h5,D5,ctrl\n", ["line 6: recording ./a.h5 is already in line 2"], id="again"
        ),
        pytest.param(
            GOOD + "a.h5,D1,drug\n",
            ["line 6: recording a.h5 has two labels, ctrl (line 2) and drug"],
            id="two labels",
        ),
    ],
)
def test_bad_tables_are_refused_in_one_line_each(
    folder: Path, content: str | bytes, expected: list[str]
) -> None:
    problems = problems_of(write(folder, content))
    assert len(problems) == len(expected)
    for problem, part in zip(problems, expected, strict=True):
        assert "devices.csv" in problem
        assert part in problem
        assert "\n" not in problem


def test_all_problems_are_reported_at_once_with_their_lines(folder: Path) -> None:
    text = GOOD + "nope.h5,D5,drug\ne.h5,D6,\na.h5,D7,drug\n"
    problems = problems_of(write(folder, text))
    assert [p.split(": ")[0].rsplit(", ")[-1] for p in problems] == ["line 7", "line 6", "line 8"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param("", [], id="none"),
        pytest.param(
            "e.h5,D5,other\n", ["line 6: class other has only one device, D5"], id="one recording"
        ),
        pytest.param(
            "e.h5,D5,other\nf.h5,D5,other\n",
            ["line 6, 7: class other has only one device, D5"],
            id="two recordings",
        ),
    ],
)
def test_a_thin_class_is_told_with_its_lines_not_refused(
    folder: Path, rows: str, expected: list[str]
) -> None:
    thin = read_devices(write(folder, GOOD + rows)).thin_classes
    assert len(thin) == len(expected)
    for problem, part in zip(thin, expected, strict=True):
        assert f"devices.csv, {part}" in problem


def test_a_table_of_one_class_is_told(folder: Path) -> None:
    (problem,) = read_devices(write(folder, HEAD + "a.h5,D1,x\nb.h5,D2,x\n")).thin_classes
    assert "only one class, x" in problem


def test_a_link_to_a_recording_is_the_same_recording(folder: Path) -> None:
    (folder / "link.h5").symlink_to(folder / "a.h5")
    assert "already in line 2" in problems_of(write(folder, GOOD + "link.h5,D5,ctrl\n"))[0]


def test_a_missing_devices_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nope\.csv: no such file"):
        read_devices(tmp_path / "nope.csv")
