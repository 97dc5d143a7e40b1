"""The command line: what it prints where, its exit codes, and one clear line for every mistake."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from results import Run, read_json
from safetensors.torch import save_file
from small_data import RAW, write_data_set, write_devices, write_mcs

from toptune.cli.app import app
from toptune.errors import ToptuneError
from toptune.extraction import extract
from toptune.params import RECOMMENDED_PICTURES, Backbone, Compute, Picture, Windows
from toptune.recordings.mcs import McsRecording
from toptune.recordings.mcs_writer import McsStream, McsWriter, mea60_channels
from toptune.recordings.spike_npz import read_npz
from toptune.recordings.trains import Spikes
from toptune.runs.model import read_model
from toptune.runs.predictor import FoundRecording, Predictor
from toptune.spikes.streaming import detect_recording
from toptune.store.feature_store import FeatureStore, recording_name

COMMANDS = (
    "demo", "simulate", "inspect", "plate", "detect", "extract", "fit", "predict", "stream",
    "sweep", "report", "why", "doctor", "bench",
)  # fmt: skip
TINY = ("--window-s", "2", "--stride-s", "1", "--backbone", "tiny", "--weights", "random")


pytestmark = pytest.mark.usefixtures("one_torch_thread", "tiny_backbones")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set and its store; look, do not touch."""
    folder = tmp_path_factory.mktemp("made")
    extract(
        write_data_set(folder),
        folder / "s.zarr",
        windows=Windows(width_s=2.0, stride_s=1.0),
        picture=Picture(count_axis=4.0),
        backbone=Backbone(name="tiny", weights="random"),
    )
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "work")


def tree(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


# --- help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run: Run, command: str) -> None:
    ran = run(command, "--help")
    assert ran.code == 0
    assert f"toptune {command} [OPTIONS]" in " ".join(ran.out.split())


def test_help_lists_every_command(run: Run) -> None:
    ran = run("--help")
    assert ran.code == 0
    assert {c.callback.__name__ for c in app.registered_commands if c.callback} == set(COMMANDS)
    for command in COMMANDS:
        assert command in ran.out


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("detect",), ("fit", "s.zarr", "--head", "x")]
)
def test_wrong_usage_exits_2(run: Run, arguments: tuple[str, ...]) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err


# --- detect and inspect


def test_detect_writes_what_detect_recording_finds(made: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "spikes.npz"
    ran = run("detect", made / "r5.h5", "-o", out, "--threshold-sd", "7")
    assert (ran.code, ran.err) == (0, "")
    from toptune.params import Ptsd

    with McsRecording(made / "r5.h5") as recording:
        expected = detect_recording(recording, ptsd=Ptsd(threshold_sd=7)).trains
    got = read_npz(out)
    assert f"{len(expected.spikes.sample)} spikes on 4 channels in 8.0 s" in ran.out
    for field in Spikes._fields:
        np.testing.assert_array_equal(getattr(got.spikes, field), getattr(expected.spikes, field))
    np.testing.assert_array_equal(got.threshold_uv, expected.threshold_uv)
    assert (got.channel_labels, got.segments) == (expected.channel_labels, expected.segments)


def test_detect_refuses_to_replace_a_file(made: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "spikes.npz"
    out.write_text("mine")
    ran = run("detect", made / "r0.h5", "-o", out)
    assert (ran.code, ran.out) == (2, "")
    assert f"{out} exists already" in ran.err
    assert out.read_text() == "mine"
    assert run("detect", made / "r0.h5", "-o", out, "--overwrite").code == 0
    assert read_npz(out).channel_labels == ("E0", "E1", "E2", "E3")


def test_place_that_cannot_be_written_is_refused_before_the_work(
    made: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_work(*_: object, **__: object) -> None:
        raise AssertionError("worked before looking")

    monkeypatch.setattr("toptune.reports.overview.overview", no_work)
    for command, option in (("detect", "-o"), ("inspect", "--png")):
        ran = run(command, made / "r0.h5", option, tmp_path / "no" / "x.png")
        assert (ran.code, ran.err) == (2, f"error: {tmp_path}/no/x.png: there is no folder "
                                          f"{tmp_path}/no\n")  # fmt: skip
        ran = run(command, made / "r0.h5", option, tmp_path)
        assert (ran.code, ran.err) == (
            2,
            f"error: {tmp_path} is a folder: give the name of a file\n",
        )


def test_inspect_shows_header_and_channels(made: Path, run: Run) -> None:
    ran = run("inspect", made / "r5.h5")
    assert (ran.code, ran.err) == (0, "")
    for text in ("mcs", "10000", RAW, "E0", "E3", "80000 samples from 0 s"):
        assert text in ran.out


def write_counts(path: Path, counts: object, *, tick_us: int) -> Path:
    """Write 60 channels of an array, as MCS's program would."""
    channels = mea60_channels()
    with McsWriter(path, identity=path.name) as writer:
        stream = McsStream(label=RAW, channels=channels, tick_us=tick_us)
        written = writer.add_recording().add_stream(stream)
        written.write(np.asarray(counts, np.int32))
    return path


def test_inspect_shows_header_and_channels_of_what_cannot_be_filtered(
    tmp_path: Path, run: Run
) -> None:
    counts = np.random.default_rng(0).integers(-99, 99, (60, 2000))
    slow = write_counts(tmp_path / "slow.h5", counts, tick_us=2000)
    ran = run("inspect", slow)
    assert ran.code == 2
    assert ran.err == (
        "error: a high-pass cut-off of 300 Hz needs a sampling rate above 600 Hz, this recording"
        " has 500 Hz: choose a cut-off below 250 Hz, or 0 for no filter, by --highpass-hz\n"
    )
    lines = {line.split()[0]: line for line in ran.out.splitlines()}
    assert lines["sampling_rate_hz"].split() == ["sampling_rate_hz", "500"]
    assert lines["duration_s"].split() == ["duration_s", "4"]
    assert lines["n_channels"].split() == ["n_channels", "59"]
    assert lines["stream"].endswith(RAW)
    assert lines["channels"].split()[1:4] == ["12,", "13,", "14,"]
    assert lines["channels"].endswith(" and 47 more")
    told = json.loads(run("inspect", slow, "--json").out)
    assert told["problem"] in ran.err
    assert [c["label"] for c in told["channels"]][:2] == ["12", "13"]
    assert (told["n_channels"], len(told["channels"])) == (59, 59)
    assert run("inspect", slow, "--highpass-hz", "50").code == 0
    # What cannot even be opened has no header.
    (tmp_path / "broken.h5").write_bytes(b"")
    assert run("inspect", tmp_path / "broken.h5").out == ""
    assert run("inspect", tmp_path / "broken.h5", "--json").out == ""


def test_inspect_says_of_a_flat_recording_why_it_has_no_spikes(tmp_path: Path, run: Run) -> None:
    ran = run("inspect", write_counts(tmp_path / "flat.h5", np.zeros((60, 20_000)), tick_us=100))
    assert (ran.code, ran.err) == (0, "")
    assert "note: every channel is constant, so there can be no spikes" in ran.out


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_many_channels_do_not_scroll_the_header_away(
    columns: int, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    rows = "".join(f"{k / 50},E{k % 300}\n" for k in range(3000))
    path = tmp_path / "many.csv"
    path.write_text(f"time_s,channel\n{rows}0.5,E7\n0.6,E7\n")
    lines = run("inspect", path, "--duration-s", "100").out.splitlines()
    assert len(lines) < 23
    assert lines[0].split()[:1] == ["recording"]
    assert any(line.split()[:2] == ["n_channels", "300"] for line in lines)
    (rates,) = (line for line in lines if line.lstrip().startswith("rate (1/s)"))
    # Ten spikes on each of 300 electrodes in 100 s, and two more on one.
    assert rates.split()[2:] == ["0.10", "0.10", "0.10", "0.10", "0.12"]
    assert any(line.split()[:4] == ["most", "active", "E7", "(0.1/s),"] for line in lines)
    listed = run("inspect", path, "--duration-s", "100", "--channels").out.splitlines()
    assert max(map(len, listed[:-20])) <= columns
    cells = " ".join(listed).split()
    for k in range(300):
        at = cells.index(f"E{k}")
        assert cells[at + 1 : at + 3] == (["12", "0.12"] if k == 7 else ["10", "0.10"])
    # The header is what is left to see.
    assert any(line.split()[:1] == ["recording"] for line in listed[-23:])


def test_inspect_json_is_pure_and_tells_the_rates(made: Path, run: Run) -> None:
    ran = run("inspect", made / "r5.h5", "--json")
    assert ran.err == ""
    summary = json.loads(ran.out)
    assert (summary["duration_s"], summary["n_channels"]) == (8.0, 4)
    assert (summary["highpass_hz"], summary["highpass_order"]) == (300, 1)
    # Class C: 40 spikes a second were put on each electrode; a few fall into each other.
    assert all(25 < c["rate_hz"] <= 41 for c in summary["channels"])
    assert sum(c["spikes"] for c in summary["channels"]) == summary["n_spikes"]


@pytest.mark.parametrize("name", ["r0.h5", "spikes.npz"])
def test_inspect_draws_a_png_whatever_the_files_name(
    made: Path, tmp_path: Path, run: Run, name: str
) -> None:
    recording = made / name
    if name.endswith(".npz"):
        recording = tmp_path / name
        assert run("detect", made / "r0.h5", "-o", recording).code == 0
    png = tmp_path / "picture.of.it"
    assert run("inspect", recording, "--png", png).code == 0
    assert png.read_bytes().startswith(b"\x89PNG\r\n")
    ran = run("inspect", recording, "--png", png)
    assert (ran.code, "exists already" in ran.err) == (2, True)
    assert run("inspect", recording, "--png", png, "--overwrite").code == 0


# --- extract


def test_extract_prints_the_next_command_and_json_is_pure(folder: Path, run: Run) -> None:
    arguments = ("extract", folder / "devices.csv", "--store", folder / "n.zarr", *TINY)
    ran = run(*arguments)
    assert ran.code == 0
    assert "6 recordings extracted (0 with spikes from the store), 0 were there" in ran.out
    assert f"next: toptune fit {folder}/n.zarr" in ran.out
    ran = run(*arguments, "--json", "--picture", "raster")
    result = json.loads(ran.out)
    assert (result["done"], result["spikes_reused"], result["n_windows"]) == (6, 6, 42)
    assert result["features"]["picture"] == {"kind": "raster", "count_axis": "window"}


def test_a_store_of_the_earlier_filter_is_neither_mixed_nor_lost(folder: Path, run: Run) -> None:
    arguments = ("extract", folder / "devices.csv", "--store", folder / "n.zarr", *TINY)
    earlier = ("--highpass-order", "2")
    assert run(*arguments, *earlier).code == 0
    ran = run(*arguments, "--picture", "raster")
    assert (ran.code, ran.err) == (
        2,
        f"error: {folder}/n.zarr: its spikes were found with highpass.order = 2, not 1: give"
        " --highpass-order 2 to go on with it, or use another store\n",
    )
    ran = run(*arguments, "--picture", "raster", *earlier)
    assert (ran.code, "6 with spikes from the store" in ran.out) == (0, True)
    assert run(*arguments, "--overwrite").code == 0
    settings = read_json(folder / "n.zarr" / "zarr.json")["attributes"]["settings"]
    assert settings["highpass"] == {"cutoff_hz": 300.0, "order": 1}


def test_all_recommended_pictures_are_extracted_fitted_predicted_and_explained(
    folder: Path, run: Run
) -> None:
    store = folder / "n.zarr"
    arguments = ("extract", folder / "devices.csv", "--store", store, *TINY)
    pictures = ("--picture", "recommended", "--picture", "raster", "--picture", "correlation")
    ran = run(*arguments, *pictures)
    assert (ran.code, ran.err) == (0, "")
    assert "6 recordings extracted (0 with spikes from the store), 0 were there" in ran.out
    assert [line.split(",")[0] for line in ran.out.splitlines() if "features: " in line] == [
        *("features: intervals", "features: histogram axis log"),
        *("features: raster", "features: correlation"),
    ]
    assert ran.out.splitlines()[-1] == f"next: toptune fit {store} -o run"
    result = json.loads(run(*arguments, *pictures, "--json").out)
    assert (result["done"], result["reused"], result["n_windows"]) == (0, 6, 42)
    assert [one["params"]["picture"] for one in result["feature_sets"]] == [
        picture.to_json()
        for picture in (*RECOMMENDED_PICTURES, Picture(kind="raster"), Picture(kind="correlation"))
    ]
    words = ("intervals", "histogram log", "raster", "correlation")
    out = folder / "run"
    ran = run(
        "fit", store, "--head", "falkon", "--no-tune", "--permutations", "0", "-o", out,
        *(word for one in words for word in ("--features", one)), "--json",
    )  # fmt: skip
    assert ran.code == 0
    assert len(json.loads(ran.out)["features"]) == 4
    ran = run("fit", store, "-o", folder / "all", "--no-tune", "--permutations", "0", "--json")
    assert ran.code == 0
    assert len(json.loads(ran.out)["features"]) == 5  # and burst parameters
    ran = run("predict", out / "model", folder / "r0.h5", "-o", folder / "told")
    assert ran.code == 0
    assert "r0.h5: " in ran.out
    # Pictures are drawn again as they were for the training.
    predictor = Predictor(read_model(out / "model"), compute=Compute(device="cpu"))
    opened = FeatureStore(store)
    name = recording_name("r0.h5")
    rows = predictor.features(FoundRecording.of("r0.h5", opened.read_spikes(name)))
    kept = [opened.read_features(name, opened.choose(one).key)[0] for one in words]
    np.testing.assert_array_equal(rows.features, np.concatenate(kept, axis=1))
    assert run("why", out / "model", folder / "r0.h5", "-o", folder / "why").code == 0
    page = (folder / "why" / "why.html").read_text("utf-8")
    for shown in ("histogram, axis log", "intervals", "raster"):
        assert f"The {shown} of this window, the input of the network" in page
    # Time runs along the others, so that the matrix is not among them.
    assert "correlation of the same window, also an input of the network" in page
    assert f"{' '.join(pictures)}\n" in (out / "report.html").read_text("utf-8")


def test_several_pictures_and_count_axes_are_extracted_together(folder: Path, run: Run) -> None:
    arguments = ("extract", folder / "devices.csv", "--store", folder / "n.zarr", *TINY, "--json")
    ran = run(
        *arguments, "--picture", "histogram", "--picture", "raster", "--count-axis", "40",
        "--count-axis", "log",
    )  # fmt: skip
    assert ran.code == 0
    assert [one["params"]["picture"] for one in json.loads(ran.out)["feature_sets"]] == [
        {"kind": "histogram", "count_axis": 40.0}, {"kind": "histogram", "count_axis": "log"},
        {"kind": "raster", "count_axis": "window"},
    ]  # fmt: skip


def test_failing_recordings_are_listed_with_exit_code_3(folder: Path, run: Run) -> None:
    rows = [(f"r{k}.h5", f"dev{k}", "AB"[k % 2]) for k in range(4)]
    (folder / "bad.csv").write_text("time_s,channel\n0.5,E1\nnan,E1\n")
    devices = write_devices(folder, [*rows, ("bad.csv", "dev9", "A")])
    arguments = ("extract", devices, "--store", folder / "n.zarr", *TINY, "--keep-going")
    ran = run(*arguments)
    assert ran.code == 3
    assert "4 recordings extracted" in ran.out
    assert "failed: bad.csv: " in ran.out
    assert "bad.csv, line 3" in (folder / "n.failures.csv").read_text()
    ran = run(*arguments, "--json")
    assert ran.code == 3
    (failure,) = json.loads(ran.out)["failed"]
    assert failure["recording"] == "bad.csv"


def test_fit_of_an_unfinished_store_needs_a_word_and_says_so(folder: Path, run: Run) -> None:
    (features,) = (folder / "s.zarr").glob("r1*/features")
    shutil.rmtree(features)
    arguments = ("fit", folder / "s.zarr", "--head", "falkon", "-o", folder / "run")
    ran = run(*arguments)
    assert (ran.code, ran.out) == (2, "")
    for text in ("1 of 6 recordings", "devices dev1", "--allow-incomplete"):
        assert text in ran.err
    # Without dev1 class B has one device, which cannot be left out.
    ran = run(*arguments, "--merge", "AB=A,B", "--permutations", "0", "--allow-incomplete")
    assert ran.code == 0
    name = features.parent.name
    assert f"1 listed recording has no features and is not in these scores: {name}" in ran.out
    metrics = read_json(folder / "run" / "metrics.json")
    assert (metrics["missing_recordings"], metrics["n_devices"]) == ([name], 5)
    params = read_json(folder / "run" / "params.json")
    assert params["features"]["missing"] == [name]
    (made_with,) = params["features"]["made_with"].values()
    assert "openvino" in made_with["versions"]


def test_doctor_names_what_to_extract_again_and_extract_does_just_that(
    folder: Path, run: Run
) -> None:
    store = folder / "s.zarr"
    sound = run("doctor", store)
    assert (sound.code, sound.err) == (0, "")
    assert "sound" in sound.out
    (chunk,) = (p for p in store.glob("r2*/features/*/features/c/0/0"))
    chunk.write_bytes(chunk.read_bytes()[:-1])
    ran = run("doctor", store, "--json")
    assert ran.code == 3
    report = json.loads(ran.out)
    assert (report["sound"], report["extract_again"]) == (False, ["r2.h5"])
    ran = run("doctor", store, "--remove-damaged")
    assert ran.code == 3
    assert "to extract again: r2.h5" in ran.out
    again = run(
        "extract", folder / "devices.csv", "--store", store, *TINY, "--count-axis", "4", "--json"
    )
    assert (json.loads(again.out)["done"], json.loads(again.out)["spikes_reused"]) == (1, 1)
    assert run("doctor", store).code == 0
    assert run("doctor", folder / "no.zarr").code == 2


def truncated(folder: Path) -> None:
    whole = (folder / "r1.h5").read_bytes()
    (folder / "r1.h5").write_bytes(whole[: len(whole) // 2])


def empty(folder: Path) -> None:
    (folder / "r1.h5").write_bytes(b"")


def two_streams(folder: Path) -> None:
    (folder / "r1.h5").unlink()
    write_mcs(folder / "r1.h5", seed=1, streams=2)


def edit_devices(old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "devices.csv"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return edit


def spikes_csv_with_nan(folder: Path) -> None:
    (folder / "c.csv").write_text("time_s,channel\n0.5,E1\nnan,E1\n")
    edit_devices("r1.h5", "c.csv")(folder)


def text_in_a_peak_train(folder: Path) -> None:
    (folder / "peaks").mkdir()
    (folder / "peaks" / "ptrain_12.txt").write_text("80000 0\n100 41.5\nabc 30.0\n")
    edit_devices("r1.h5", "peaks")(folder)


def weights_of_another_network(folder: Path) -> None:
    from torchvision.models import resnet18

    save_file(resnet18().state_dict(), folder / "w.safetensors")


def nothing(_: Path) -> None:
    pass


MOBILENET = ("--backbone", "mobilenet_v2", "--weights")


@pytest.mark.parametrize(
    ("damage", "options", "culprits"),
    [
        (truncated, (), ("devices.csv, line 3", "r1.h5")),
        (empty, (), ("devices.csv, line 3", "r1.h5", "the file is empty")),
        (two_streams, (), ("line 3", "r1.h5", "(1) Electrode", "(2) Electrode", "--stream")),
        (nothing, ("--stream", "Filter 9"), ("line 2", "r0.h5", "'Filter 9'", RAW)),
        (edit_devices("r1.h5", "no.h5"), (), ("line 3", "no such recording: no.h5")),
        (spikes_csv_with_nan, (), ("c.csv, line 3", "nan")),
        (text_in_a_peak_train, (), ("ptrain_12.txt, line 3", "abc")),
        (edit_devices("dev1,B", "dev1,"), (), ("devices.csv, line 3", "label is missing")),
        (edit_devices("C,b1\n", "C,b1\nr0.h5,dev9,B,b0\n"), (), ("line 8", "r0.h5 has two labels")),
        (edit_devices(",label,", ",class,"), (), ("devices.csv, line 1", "no column label")),
        (nothing, ("--backbone", "mobilenet_v"), ("no backbone 'mobilenet_v'", "mobilenet_v2")),
        (nothing, (*MOBILENET, "no.pth"), ("no.pth",)),
        (weights_of_another_network, (*MOBILENET, "w.safetensors"), ("w.safetensors", "resnet18")),
        (nothing, ("--window-s", "0"), ("--window-s must be above 0, got 0.0",)),
        (nothing, ("--count-axis", "tall"), ("--count-axis must be window,", "'tall'")),
        (nothing, ("--noise", "fixed"), ("--threshold-uv must be above 0 with --noise fixed",)),
        (nothing, ("--highpass-hz", "5000"), ("line 2", "5000")),
    ],
)
def test_what_is_wrong_is_one_line_that_names_it(
    folder: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
    options: tuple[str, ...],
    culprits: tuple[str, ...],
) -> None:
    monkeypatch.chdir(folder)
    damage(folder)
    before = tree(folder)
    ran = run("extract", "devices.csv", "--store", "n.zarr", *TINY, *options)
    assert (ran.code, ran.out) == (2, "")
    lines = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    for culprit in culprits:
        assert culprit in ran.err
    if "--stream" not in options and "--highpass-hz" not in options:  # those concern every line
        assert len(ran.err.splitlines()) == 1
    after = set(tree(folder)) - set(before)
    assert not [p for p in after if p.name.startswith(".writing-") or p.suffix == ".part"]
    # What could be seen without reading whole recordings left nothing at all behind.
    if damage not in (spikes_csv_with_nan, text_in_a_peak_train):
        assert not after


def test_other_detection_in_the_same_store_is_refused(folder: Path, run: Run) -> None:
    arguments = ("extract", folder / "devices.csv", "--store", folder / "s.zarr", *TINY)
    ran = run(*arguments, "--lifetime-ms", "1.5")
    assert ran.code == 2
    assert "ptsd.lifetime_ms = 2.0, not 1.5" in ran.err
    assert run(*arguments, "--lifetime-ms", "1.5", "--overwrite").code == 0


# --- fit


@pytest.mark.parametrize("head", ["falkon", "mlp"])
def test_fit_from_a_store_end_to_end(made: Path, tmp_path: Path, run: Run, head: str) -> None:
    out = tmp_path / "run"
    few = ("--epochs", "3") if head == "mlp" else ("--permutations", "20")
    ran = run("fit", made / "s.zarr", "--head", head, "-o", out, "--json", *few)
    assert ran.code == 0
    metrics = json.loads(ran.out)
    assert metrics == read_json(out / "metrics.json")
    assert (metrics["classes"], metrics["n_devices"], metrics["n_windows"]) == (list("ABC"), 6, 42)
    if head == "falkon":  # 2, 10 and 40 spikes a second look different; chance is 1/3
        assert metrics["device_accuracy"] >= 2 / 3
    assert (out / "model" / "model.json").is_file()
    assert read_json(out / "params.json")["features"]["settings"]["ptsd"]["threshold_sd"] == 8.0
    ran = run("fit", made / "s.zarr", "--head", head, "-o", out)
    assert (ran.code, ran.out) == (2, "")
    assert str(out) in ran.err


def test_fit_prints_what_its_numbers_rest_on(made: Path, tmp_path: Path, run: Run) -> None:
    ran = run("fit", made / "s.zarr", "--head", "falkon", "-o", tmp_path / "run")
    assert ran.code == 0
    assert "4 settings were tried inside every fold" in ran.out
    assert "shuffles of the devices' labels, parameters chosen anew under every shuffle" in ran.out
    # Two devices a class can fall in 90 ways, of which 6 rename the classes.
    assert "no p-value below 0.067 can be reached" in ran.out


def test_a_thin_class_is_extracted_refused_by_fit_and_rescued_by_merge(
    folder: Path, tmp_path: Path, run: Run
) -> None:
    devices = folder / "devices.csv"
    devices.write_text(devices.read_text().replace("dev1,B", "dev1,D"))
    ran = run("extract", devices, "--store", folder / "n.zarr", *TINY)
    assert ran.code == 0
    assert "class D has only one device, dev1" in ran.out
    arguments = ("fit", folder / "n.zarr", "--head", "falkon", "--permutations", "0", "-o")
    ran = run(*arguments, tmp_path / "run")
    assert (ran.code, ran.out) == (2, "")
    assert "class D has one group, dev1" in ran.err
    ran = run(*arguments, tmp_path / "run", "--merge", "BD=B,D", "--strata", "batch")
    assert ran.code == 0
    assert read_json(tmp_path / "run" / "metrics.json")["classes"] == ["A", "BD", "C"]
    # Devices alternate between two batches, those of a class do not.
    assert "warning: class" not in ran.out
    ran = run(*arguments, tmp_path / "two", "--merge", "BD=B,D", "--group-by", "batch", "--no-tune")
    assert ran.code == 0
    assert read_json(tmp_path / "two" / "metrics.json")["n_groups"] == 2


def test_feature_sets_are_fused_and_the_model_predicts(
    folder: Path, tmp_path: Path, run: Run
) -> None:
    arguments = ("extract", folder / "devices.csv", "--store", folder / "s.zarr", *TINY)
    assert run(*arguments, "--picture", "raster").code == 0
    out = tmp_path / "run"
    ran = run(
        "fit", folder / "s.zarr", "--head", "falkon", "-o", out, "--features", "raster",
        "--features", "histogram", "--json",
    )  # fmt: skip
    assert ran.code == 0
    assert len(json.loads(ran.out)["features"]) == 2

    recordings = [folder / "r0.h5", folder / "r5.h5"]
    ran = run("predict", out / "model", *recordings, "-o", tmp_path / "told", "--json")
    assert ran.code == 0
    told = json.loads(ran.out)
    assert len(told["recordings"]) == 2
    assert {"windows.csv", "verdicts.csv"} <= {p.name for p in (tmp_path / "told").iterdir()}
    ran = run("predict", out / "model", *recordings)
    assert ran.code == 0
    assert "r5.h5: " in ran.out
    assert "probability" in ran.out
    ran = run("predict", out / "model", *recordings, "-o", tmp_path / "told")
    assert (ran.code, ran.out) == (2, "")
    ran = run("predict", tmp_path, *recordings)
    assert ran.code == 2
    assert "holds no model" in ran.err


def test_the_classic_head_stands_beside_the_pictures(made: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "run"
    fit = ("fit", made / "s.zarr", "-o", out)
    ran = run(*fit, "--head", "parameters", "--permutations", "5")
    assert ran.code == 0
    assert (
        "4 settings were tried inside every fold; the model trained on all devices uses C"
        in ran.out
    )
    metrics = read_json(out / "metrics.json")
    assert (metrics["n_devices"], metrics["n_windows"]) == (6, 6)
    ran = run("predict", out / "model", made / "r2.h5", "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["recordings"][0]["n_windows"] == 1
    # What exists is told before anything is measured.
    ran = run(*fit, "--head", "falkon", "--features", "histogram", "--features", "parameters")
    assert (ran.code, ran.out, f"{out} exists" in ran.err) == (2, "", True)
    ran = run(
        *fit, "--head", "falkon", "--features", "histogram", "--features", "parameters",
        "--overwrite", "--json", "--permutations", "0",
    )  # fmt: skip
    assert ran.code == 0
    assert json.loads(ran.out)["features"][1] == "parameters, 2 s every 1 s"
    assert run("predict", out / "model", made / "r2.h5").code == 0


def test_recordings_are_compared_as_a_whole(made: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "run"
    ran = run(
        "fit", made / "s.zarr", "--head", "recordings", "-o", out, "--features", "histogram",
        "--features", "parameters", "--ridge", "0.1", "--ridge", "0.01",
        "--windows-per-recording", "5", "--view-weights", "0.3,0.7",
    )  # fmt: skip
    assert ran.code == 0
    assert "4 settings were tried inside every fold" in ran.out
    params, metrics = read_json(out / "params.json"), read_json(out / "metrics.json")
    assert metrics["n_windows"] == 6 * 5
    assert [c["ridge"] for c in params["candidates"]] == [0.1, 0.01, 0.1, 0.01]
    assert {tuple(c["view_weights"]) for c in params["candidates"]} == {(0.3, 0.7)}
    # Six devices of three classes can be labelled in 90 ways.
    assert metrics["permutations"]["n"] == 89
    assert metrics["calibrated"]
    ran = run("predict", out / "model", made / "r2.h5", "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["recordings"][0]["n_windows"] == 7


def test_parameters_can_be_told_apart_by_a_gaussian_kernel(
    made: Path, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "run"
    ran = run("fit", made / "s.zarr", "--head", "parameters", "--kernel", "gaussian", "-o", out)
    assert ran.code == 0
    assert "3 settings were tried inside every fold" in ran.out
    assert read_json(out / "metrics.json")["permutations"]["n"] == 89
    assert not (out / "coefficients.csv").exists()
    assert read_json(out / "params.json")["head_params"].keys() == {"ridge"}
    assert "--kernel gaussian" in (out / "report.html").read_text("utf-8")
    ran = run("predict", out / "model", made / "r2.h5", "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["recordings"][0]["n_windows"] == 1


def test_merged_classes_reach_the_scores(made: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "run"
    ran = run("fit", made / "s.zarr", "--head", "falkon", "-o", out, "--merge", "slow=A,B")
    assert ran.code == 0
    assert f"run: {out}" in ran.out
    assert read_json(out / "metrics.json")["classes"] == ["C", "slow"]


def test_grouping_by_another_column(made: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "run"
    arguments = ("fit", made / "s.zarr", "--head", "falkon", "-o", out, "--group-by")
    ran = run(*arguments, "batch")
    assert ran.code == 2
    assert "needs three groups, there are 2: give fixed values with --no-tune" in ran.err
    assert run(*arguments, "batch", "--no-tune", "--json").code == 0
    assert read_json(out / "metrics.json")["n_groups"] == 2
    assert read_json(out / "metrics.json")["permutation_p"] is None
    ran = run(*arguments, "plate", "--overwrite")
    assert ran.code == 2
    assert "plate" in ran.err
    assert read_json(out / "metrics.json")["n_groups"] == 2


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        (("--head", "mlp", "--width", "1"), "--width belongs to --head falkon or recordings, no"),
        (("--head", "falkon", "--epochs", "3"), "--epochs belongs to --head mlp, not falkon"),
        (("--head", "falkon", "--merge", "x=A,Q"), "Q"),
        (("--head", "falkon", "--width", "-1"), "width"),
        (("--head", "falkon", "--features", "raster"), "0 sets like 'raster'"),
        (("--head", "mlp", "--solver", "direct"), "--solver belongs to --head falkon, not mlp"),
        (("--head", "falkon", "--view-weights", "a"), "--view-weights 'a' is not of the form"),
        (("--head", "falkon", "--view-weights", "0.5,0.3,0.2"), "view_weights"),
        (
            ("--head", "falkon", "--no-tune", "--width", "1", "--width", "2"),
            "--width is to be chosen from [1.0, 2.0], but --no-tune chooses nothing",
        ),
        (("--head", "falkon", "--solver", "iterative"), "give fixed values with --no-tune"),
        (("--head", "falkon", "--strata", "plate"), "has no plate"),
        (("--head", "falkon", "--C", "1"), "--C belongs to --head parameters, not falkon"),
        (("--head", "parameters", "--width", "1"), "--width belongs to --head falkon or recordi"),
        (("--head", "parameters", "--ridge", "1"), "--ridge belongs to --kernel gaussian, not to"),
        (("--head", "parameters", "--features", "histogram"), "leave --features out"),
        (("--head", "parameters", "--C", "0"), "C must be above 0"),
    ],
)
def test_wrong_options_of_fit_are_named(
    made: Path, tmp_path: Path, run: Run, options: tuple[str, ...], culprit: str
) -> None:
    ran = run("fit", made / "s.zarr", "-o", tmp_path / "run", *options)
    assert (ran.code, ran.out) == (2, "")
    assert culprit in ran.err
    assert tree(tmp_path) == []


def test_several_feature_sets_must_be_chosen_from(folder: Path, run: Run) -> None:
    arguments = ("extract", folder / "devices.csv", "--store", folder / "s.zarr", *TINY)
    assert run(*arguments, "--picture", "raster").code == 0
    fit = ("fit", folder / "s.zarr", "--permutations", "0", "-o")
    ran = run(*fit, folder / "mlp", "--head", "mlp")
    assert ran.code == 2
    assert "choose one by --features" in ran.err
    assert run(*fit, folder / "run", "--features", "raster", "--json").code == 0
    features = read_json(folder / "run" / "params.json")["features"]["features"]
    assert features["picture"]["kind"] == "raster"


def test_fit_takes_all_that_a_store_has_and_the_recommended_classifier(
    folder: Path, run: Run
) -> None:
    arguments = ("extract", folder / "devices.csv", "--store", folder / "s.zarr", *TINY)
    assert run(*arguments, "--picture", "raster").code == 0
    ran = run("fit", folder / "s.zarr", "--permutations", "0", "-o", folder / "run", "--json")
    assert ran.code == 0
    metrics = json.loads(ran.out)
    assert metrics["head"] == "falkon"
    kinds = [words.split(",")[0].split()[0] for words in metrics["features"]]
    assert sorted(kinds) == ["histogram", "parameters", "raster"]
    assert metrics["windows_per_recording"] == 64


def test_damaged_features_are_refused_by_fit(folder: Path, run: Run) -> None:
    chunk = next((folder / "s.zarr").glob("r3*/features/*/features/c/0/0"))
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 0x10
    chunk.write_bytes(bytes(data))
    ran = run("fit", folder / "s.zarr", "--head", "falkon", "-o", folder / "run")
    assert (ran.code, ran.out) == (2, "")
    assert "r3.h5" in ran.err
    assert "is damaged" in ran.err
    assert not (folder / "run").exists()


def test_simulate_and_extract_go_together(tmp_path: Path, run: Run) -> None:
    ran = run("simulate", tmp_path / "sim", "--devices", "2", "--seconds", "2", "--json")
    assert ran.code == 0
    devices = Path(json.loads(ran.out)["devices"])
    ran = run("extract", devices, "--store", tmp_path / "s.zarr", *TINY)
    assert ran.code == 0
    # Two devices of two classes: merging could help, so it is fit that refuses.
    assert "class 100E0I has only one device" in " ".join(ran.out.split())
    ran = run("fit", tmp_path / "s.zarr", "--head", "falkon", "-o", tmp_path / "run")
    assert ran.code == 2
    assert "class 100E0I" in ran.err
    ran = run("simulate", tmp_path / "sim", "--devices", "2", "--seconds", "2")
    assert (ran.code, "already there" in ran.err) == (2, True)


# --- sweep

FEW = [
    word
    for setting in (
        *("backbone=tiny", "weights=random", "window_s=2", "stride_s=1"),
        *("permutations=0", "tune=false", "head=falkon"),
    )
    for word in ("--set", setting)
]


def test_sweep_prints_its_tables_and_goes_on_as_json(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("sweep", folder / "devices.csv", "table1", "-o", folder / "out", *FEW)
    ran = run(*arguments)
    assert ran.code == 0
    assert "| picture | falkon: per picture | falkon: per device |" in ran.out
    assert "RANDOM (seed 0)" in ran.out
    assert f"report: {folder / 'out' / 'report.html'}" in ran.out
    assert "[2/2] tiny, raster, 2 s, falkon, not tuned, 0 permutations: devices" in ran.err
    names = {p.name for p in (folder / "out").iterdir() if not p.name.startswith(".")}
    assert names == {"store.zarr", "measured", "runs", "sweep.json", "runs.csv", "table.csv",
                     "table.md", "report.html"}  # fmt: skip
    ran = run(*arguments, "--json")
    result = json.loads(ran.out)
    assert (result["done"], result["reused"], result["failed"]) == (2, 2, [])
    for one in result["runs"]:
        assert one["metrics"] == read_json(folder / "out" / "runs" / one["name"] / "metrics.json")

    def broken(*_: object, **__: object) -> None:
        raise ToptuneError("no luck")

    monkeypatch.setattr("toptune.sweeps.sweep.fit", broken)
    ran = run(*arguments, "--seed", "5")
    assert ran.code == 3
    assert "failed: run " in ran.out
    assert "no luck" in (folder / "out" / "failures.csv").read_text()


def test_a_sweep_without_room_for_its_first_file_goes_on(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("sweep", folder / "devices.csv", "table1", "-o", folder / "out", *FEW)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("toptune.sweeps.sweep.write_whole", full)
        ran = run(*arguments)
    assert ran.code == 1
    assert "make room and run the same command again" in ran.err
    assert run(*arguments).code == 0
    (folder / "out" / "sweep.json").unlink()
    ran = run(*arguments)
    assert ran.code == 2
    assert f"{folder / 'out'} is not a sweep of toptune: choose another folder" in ran.err


def test_sweep_refuses_a_bad_grid_with_every_problem_and_leaves_nothing(
    folder: Path, run: Run
) -> None:
    (folder / "grid.toml").write_text("pictures = 'raster'\nwindow_s = 'long'\n")
    ran = run("sweep", folder / "devices.csv", folder / "grid.toml", "-o", folder / "out")
    assert (ran.code, ran.out) == (2, "")
    assert "line 1: pictures: there is no option pictures; there are" in ran.err
    assert "line 2: window_s: Windows.width_s must be above 0, got 'long'" in ran.err
    assert not (folder / "out").exists()
