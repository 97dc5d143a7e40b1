"""Extraction: what is there is not done again, what changed is, and nothing is half-written."""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results import read_csv
from small_data import (
    FIVE_PICTURES,
    RAW,
    check_store,
    half_of_this_processor,
    write_data_set,
    write_devices,
    write_mcs,
)

from toptune.backbones.engine import Computed, FeatureEngine
from toptune.errors import InputError, InputErrors, StorageError, ToptuneError
from toptune.extraction import ExtractionResult, extract
from toptune.features.picture_features import PictureExtractor
from toptune.machine.fingerprint import file_sha256
from toptune.params import (
    Backbone,
    Compute,
    HighPass,
    Picture,
    Ptsd,
    SpikeSettings,
    Windows,
)
from toptune.pictures.bins import PlacedSpikes
from toptune.pictures.drawer import Drawer
from toptune.recordings.mcs import McsRecording
from toptune.recordings.opening import open_recording
from toptune.recordings.spike_npz import write_npz
from toptune.recordings.trains import Spikes, SpikeTrains
from toptune.recordings.windows import SegmentBins
from toptune.spikes import streaming as detection
from toptune.spikes.streaming import detect_recording
from toptune.store.feature_store import FeatureStore, recording_name
from toptune.store.groups import read_attributes, write_attributes

pytestmark = pytest.mark.usefixtures("one_torch_thread", "tiny_backbones")

WINDOWS = Windows(width_s=2.0, stride_s=1.0)
TINY = Backbone(name="tiny", weights="random")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set and its store; look, do not touch."""
    folder = tmp_path_factory.mktemp("made")
    extract(write_data_set(folder), folder / "s.zarr", windows=WINDOWS, backbone=TINY)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy, times of the files included, so that stamps still fit."""
    return shutil.copytree(made, tmp_path / "work")


def again(folder: Path, **kwargs: Any) -> ExtractionResult:
    kwargs = {"windows": WINDOWS, "backbone": TINY} | kwargs
    return extract(folder / "devices.csv", folder / "s.zarr", **kwargs)


def leftovers(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.name.startswith(".writing-")]


def test_store_holds_what_the_stages_give_one_by_one(made: Path) -> None:
    store = FeatureStore(made / "s.zarr")
    name = recording_name("r4.h5")
    with McsRecording(made / "r4.h5") as recording:
        trains = detect_recording(recording).trains
    assert len(trains.spikes.sample) > 100
    for field in Spikes._fields:
        kept = getattr(store.read_spikes(name).spikes, field)
        np.testing.assert_array_equal(kept, getattr(trains.spikes, field))
    from toptune.backbones.loading import load_backbone

    engine = FeatureEngine(load_backbone(TINY))
    expected = engine.features(Drawer(trains, WINDOWS, Picture(), 32, "cpu").draw(0, 7))
    features, start_s = store.read_features(name, store.choose().key)
    # float32 rounding, since batches may differ.
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)
    assert start_s.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_each_recording_is_opened_once_before_the_work_and_once_for_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def counting(path: Path, **options: Any) -> Any:
        opened.append(path.name)
        return open_recording(path, **options)

    monkeypatch.setattr("toptune.spikes.finding.open_recording", counting)
    shutil.rmtree(folder / "s.zarr")
    again(folder)
    names = [f"r{k}.h5" for k in range(6)]
    assert opened == names + names


def test_spikes_that_were_just_found_are_not_read_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reading(*_: object) -> None:
        raise AssertionError("the spikes are in memory")

    (folder / "s.zarr").rename(folder / "expected.zarr")
    expected = FeatureStore(folder / "expected.zarr")
    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "read_spikes", reading)
        assert again(folder).done == 6
    store = FeatureStore(folder / "s.zarr")
    for recording in store.recordings:
        key = store.choose().key
        for got, wanted in zip(
            store.read_features(recording.name, key),
            expected.read_features(recording.name, key),
            strict=True,
        ):
            np.testing.assert_array_equal(got, wanted)


def test_store_obeys_the_schema(made: Path) -> None:
    names = [recording_name(f"r{k}.h5") for k in range(6)]
    check_store(made / "s.zarr", names, FeatureStore(made / "s.zarr").choose().key)


def test_what_is_published_is_not_done_again(
    folder: Path, detected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("a complete store needs no compiled backbone")

    monkeypatch.setattr("toptune.backbones.engine.OpenVinoNetwork", no_network)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    result = again(folder)
    assert (result.done, result.reused, result.n_windows) == (0, 6, 42)
    assert detected == []
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "other",
    [
        {"windows": Windows(width_s=4.0, stride_s=2.0)},
        {"picture": Picture(kind="raster")},
        {"picture": Picture(count_axis=7.0)},
        {"backbone": Backbone(name="tiny_two", weights="random")},
        {"backbone": Backbone(name="tiny", weights="random", seed=1)},
    ],
)
def test_spikes_serve_every_window_picture_and_backbone(
    folder: Path, detected: list[str], other: dict[str, Any]
) -> None:
    result = again(folder, **other)
    assert (result.done, result.reused, result.spikes_reused) == (6, 0, 6)
    assert detected == []
    store = FeatureStore(folder / "s.zarr")
    assert len(store.feature_sets()) == 2
    assert again(folder).reused == 6  # the first set is still there


def features_of(store: FeatureStore, key: str) -> list[Any]:
    return [store.read_features(recording.name, key) for recording in store.recordings]


def test_several_pictures_in_one_pass_are_bit_for_bit_what_each_is_alone(
    folder: Path, tmp_path: Path, detected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[float] = []
    of = PlacedSpikes.of

    def placing(trains: SpikeTrains, segment_bins: SegmentBins) -> PlacedSpikes:
        placed.append(segment_bins.per_bin)
        return of(trains, segment_bins)

    devices, store = folder / "devices.csv", tmp_path / "all.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(PlacedSpikes, "of", placing)
        result = extract(devices, store, windows=WINDOWS, backbone=TINY, picture=FIVE_PICTURES)
    assert detected == [f"r{k}.h5" for k in range(6)]  # each once
    assert placed == [100.0] * 6
    assert (result.done, result.reused, result.n_windows) == (6, 0, 42)
    together = FeatureStore(store)
    names = [recording_name(f"r{k}.h5") for k in range(6)]
    for picture, made in zip(FIVE_PICTURES, result.feature_sets, strict=True):
        assert made.params["picture"] == picture.to_json()
        alone = again(folder, picture=picture)
        assert alone.feature_set == made
        check_store(store, names, made.key)
        for got, wanted in zip(
            features_of(together, made.key),
            features_of(FeatureStore(folder / "s.zarr"), made.key),
            strict=True,
        ):
            np.testing.assert_array_equal(got[0], wanted[0])
            np.testing.assert_array_equal(got[1], wanted[1])
    # They differ from each other.
    tables = [together.table(made).features for made in result.feature_sets]
    for k, one in enumerate(tables):
        for other in tables[:k]:
            assert not np.allclose(one, other, rtol=0.01)


def test_of_several_pictures_only_those_that_are_missing_are_made(
    folder: Path, detected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    again(folder, picture=Picture(kind="raster"))
    asked: list[str] = []
    start = PictureExtractor.start

    def starting(self: PictureExtractor, *given: Any) -> Any:
        asked.append(self.picture.kind)
        return start(self, *given)

    monkeypatch.setattr(PictureExtractor, "start", starting)
    wanted = (Picture(), Picture(kind="intervals"), Picture(kind="raster"))
    result = again(folder, picture=wanted)
    assert asked == ["intervals"] * 6
    assert (result.done, result.reused, result.spikes_reused, detected) == (6, 0, 6, [])
    assert [one.params["picture"]["kind"] for one in result.feature_sets] == [
        "histogram", "intervals", "raster",
    ]  # fmt: skip
    assert result.feature_set == result.feature_sets[0]
    result = again(folder, picture=wanted)
    assert (result.done, result.reused, result.n_windows) == (0, 6, 42)
    assert len(asked) == 6


def test_killed_extraction_of_several_pictures_goes_on_with_what_is_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(folder / "s.zarr")
    write = FeatureStore.write_features
    calls = 0

    def killed(self: FeatureStore, *given: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 8:  # the second recording's third
            raise KeyboardInterrupt
        write(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "write_features", killed)
        with pytest.raises(KeyboardInterrupt):
            again(folder, picture=FIVE_PICTURES)
    store = folder / "s.zarr"
    there = [len([*store.glob(f"r{k}.h5-*/features/*/zarr.json")]) for k in range(6)]
    assert there[:2] == [5, 2]
    calls = -100
    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "write_features", killed)
        result = again(folder, picture=FIVE_PICTURES)
    assert calls == -100 + 30 - sum(there)
    assert result.reused == there.count(5)
    assert again(folder, picture=FIVE_PICTURES).reused == 6


def test_the_same_picture_twice_is_refused(folder: Path) -> None:
    pictures = (Picture(), Picture(kind="raster"), Picture())
    with pytest.raises(InputError, match="histogram is named twice"):
        extract(folder / "devices.csv", folder / "new.zarr", picture=pictures, backbone=TINY)
    assert not (folder / "new.zarr").exists()


def test_spikes_alone_are_extracted_and_shared_by_pictures_that_follow(folder: Path) -> None:
    store = folder / "new.zarr"
    first = extract(folder / "devices.csv", store, picture=())
    assert (first.done, first.reused, first.n_windows, first.too_short) == (6, 0, 0, ())
    assert first.to_json()["feature_sets"] == []
    assert "spikes only" in repr(first)
    with pytest.raises(InputError, match="no picture was extracted"):
        _ = first.feature_set
    assert not FeatureStore(store).feature_sets()
    again = extract(folder / "devices.csv", store, picture=())
    assert (again.done, again.reused) == (0, 6)
    drawn = extract(folder / "devices.csv", store, windows=WINDOWS, backbone=TINY)
    assert (drawn.done, drawn.spikes_reused) == (6, 6)


def test_what_is_to_be_known_of_a_recording_is_said_once_for_several_pictures(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_mcs(folder / "short.h5", seed=60, seconds=1.5)
    (folder / "still.csv").write_text("time_s,channel\n0.5,E1\n0.6,E1\n")
    with (folder / "devices.csv").open("a") as file:
        file.write("short.h5,dev9,A,b1\nstill.csv,dev8,A,b1\n")
    result = again(
        folder, picture=FIVE_PICTURES, spikes=SpikeSettings(duration_s=30.0), overwrite=True
    )
    assert result.too_short == ("short.h5",)
    (note,) = (n for n in result.notes if "hold no spike" in n)
    assert note.startswith("still.csv: 28 of 29 windows hold no spike")
    told = [r.getMessage() for r in caplog.records]
    assert sum("hold no spike" in one for one in told) == 1
    assert sum("less than a window" in one for one in told) == 1


def test_changed_recording_is_done_again_and_only_that(folder: Path, detected: list[str]) -> None:
    (folder / "r2.h5").unlink()
    write_mcs(folder / "r2.h5", seed=99, seconds=9.0)
    result = again(folder)
    assert detected == ["r2.h5"]
    assert (result.done, result.reused, result.n_windows) == (1, 5, 43)


def test_touched_recording_with_the_same_bytes_is_not_done_again(
    folder: Path, detected: list[str]
) -> None:
    os.utime(folder / "r2.h5", ns=(1, 1))
    assert again(folder).reused == 6
    assert detected == []


def test_added_recording_is_all_that_is_done(folder: Path, detected: list[str]) -> None:
    write_mcs(folder / "new.h5", seed=50)
    with (folder / "devices.csv").open("a") as file:
        file.write("new.h5,dev9,A,b1\n")
    result = again(folder)
    assert detected == ["new.h5"]
    assert (result.done, result.reused) == (1, 6)


def test_changed_label_needs_no_work_and_reaches_the_table(
    folder: Path, detected: list[str]
) -> None:
    devices = folder / "devices.csv"
    devices.write_text(devices.read_text().replace("dev1,B", "dev1,A").replace("dev4,B", "dev4,C"))
    result = again(folder)
    assert (result.done, detected) == (0, [])
    store = FeatureStore(folder / "s.zarr")
    table = store.table(store.choose())
    assert [r.label for r in table.recordings] == ["A", "A", "C", "A", "C", "C"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            SpikeSettings(ptsd=Ptsd(threshold_sd=7.5)),
            r"s\.zarr: its spikes were found with ptsd\.threshold_sd = 8\.0, not 7\.5: give"
            r" `threshold_sd=8\.0` to go on with it, or use another store",
        ),
        (SpikeSettings(highpass=HighPass(cutoff_hz=0)), r"highpass\.cutoff_hz = 300\.0, not 0"),
        (SpikeSettings(highpass=HighPass(order=2)), r"order = 1, not 2: give `highpass_order=1`"),
        (SpikeSettings(stream="x"), r"stream = None, not 'x': leave out `stream`"),
    ],
)
def test_other_detection_parameters_are_refused_by_name(
    folder: Path, settings: SpikeSettings, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        again(folder, spikes=settings)
    assert again(folder).reused == 6


def test_killed_extraction_goes_on_where_it_stopped(
    folder: Path, detected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(folder / "s.zarr")
    real = FeatureEngine.start
    calls = 0

    def killed(self: FeatureEngine, *given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(self, *given)

    monkeypatch.setattr(FeatureEngine, "start", killed)
    with pytest.raises(KeyboardInterrupt):
        again(folder)
    assert detected == ["r0.h5", "r1.h5", "r2.h5"]
    store = FeatureStore(folder / "s.zarr")
    with pytest.raises(InputError, match="4 of 6 recordings have no features"):
        store.table(store.choose())
    assert not leftovers(folder)
    detected.clear()
    result = again(folder)
    assert (result.done, result.reused, result.spikes_reused) == (4, 2, 1)
    assert detected == ["r3.h5", "r4.h5", "r5.h5"]


def test_unpublished_group_is_refused_not_redone_in_silence(folder: Path) -> None:
    spikes = folder / "s.zarr" / recording_name("r1.h5") / "spikes"
    write_attributes(spikes, {**read_attributes(spikes), "published": False})
    with pytest.raises(ToptuneError, match=r"r1.* is not published: remove that folder and run"):
        again(folder)
    shutil.rmtree(spikes.parent)
    assert (again(folder).done, again(folder).reused) == (1, 6)


def test_damaged_spikes_are_not_described(folder: Path) -> None:
    spikes = folder / "s.zarr" / recording_name("r1.h5") / "spikes"
    (spikes / "sample" / "c" / "0").unlink()
    with pytest.raises(ToptuneError, match="sample is damaged"):
        again(folder, picture=Picture(kind="raster"))
    assert not leftovers(folder)


def test_short_recording_is_listed_not_fatal(folder: Path) -> None:
    write_mcs(folder / "short.h5", seed=60, seconds=1.5)
    with (folder / "devices.csv").open("a") as file:
        file.write("short.h5,dev9,A,b1\n")
    result = again(folder)
    assert result.too_short == ("short.h5",)
    assert (result.n_windows, result.failed) == (42, ())
    store = FeatureStore(folder / "s.zarr")
    table = store.table(store.choose())
    assert len(table.recordings) == 6
    assert table.provenance["too_short"] == [recording_name("short.h5")]
    assert again(folder).too_short == ("short.h5",)  # from the store, too


def test_class_with_one_device_is_extracted_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    devices = folder / "devices.csv"
    devices.write_text(devices.read_text().replace("dev1,B", "dev1,D"))
    result = again(folder)
    assert result.reused == 6
    told = [n for n in result.notes if "class" in n]
    assert len(told) == 2
    assert "line 6: class B has only one device, dev4" in told[1]
    assert "line 3: class D has only one device, dev1" in caplog.text


@pytest.mark.parametrize("only_when", ["first", "last"])
def test_nothing_is_written_when_the_recordings_are_refused(folder: Path, only_when: str) -> None:
    broken = folder / ("r0.h5" if only_when == "first" else "r5.h5")
    broken.write_bytes(broken.read_bytes()[:5000])
    with pytest.raises(InputErrors, match=rf"devices\.csv, line \d: .*{broken.name}"):
        extract(folder / "devices.csv", folder / "new.zarr", windows=WINDOWS, backbone=TINY)
    assert not (folder / "new.zarr").exists()


def test_all_bad_recordings_are_told_at_once(folder: Path) -> None:
    (folder / "r1.h5").write_bytes(b"")
    (folder / "r3.h5").write_text("a text")
    with pytest.raises(InputErrors) as error:
        again(folder)
    first, second = error.value.problems
    assert "line 3" in first
    assert "the file is empty" in first
    assert "line 5" in second
    assert "not a recording toptune knows" in second


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"backbone": Backbone(name="efficientnet_b00")}, "no backbone 'efficientnet_b00'"),
        ({"spikes": SpikeSettings(highpass=HighPass(cutoff_hz=5000))}, "line 2: .*5000 Hz"),
        ({"spikes": SpikeSettings(stream="Filter")}, rf"line 2: .*{RAW[:4]}"),
    ],
)
def test_bad_settings_leave_the_disk_as_it_was(
    folder: Path, bad: dict[str, Any], message: str
) -> None:
    before = sorted(folder.rglob("*"))
    arguments = {"windows": WINDOWS, "backbone": TINY} | bad
    for store, overwrite in (("new.zarr", False), ("s.zarr", True)):
        with pytest.raises(InputError, match=message):
            extract(folder / "devices.csv", folder / store, overwrite=overwrite, **arguments)
    assert sorted(folder.rglob("*")) == before


def test_overwrite_starts_anew(folder: Path, detected: list[str]) -> None:
    settings = SpikeSettings(ptsd=Ptsd(threshold_sd=7.0))
    result = again(folder, overwrite=True, spikes=settings)
    assert (result.done, result.reused) == (6, 0)
    assert len(detected) == 6
    assert FeatureStore(folder / "s.zarr").settings["ptsd"]["threshold_sd"] == 7.0


def test_keep_going_lists_failures_and_does_the_rest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = detect_recording

    def failing(recording: McsRecording, *args: Any, **kwargs: Any) -> Any:
        if recording.path.name in ("r1.h5", "r4.h5"):
            raise InputError(f"{recording.path}: a chunk is\ndamaged, really")
        return real(recording, *args, **kwargs)

    monkeypatch.setattr(detection, "detect_recording", failing)
    shutil.rmtree(folder / "s.zarr")
    with pytest.raises(InputError, match="damaged"):
        again(folder)
    result = again(folder, keep_going=True)
    assert [r for r, _ in result.failed] == ["r1.h5", "r4.h5"]
    assert (result.done, result.reused) == (3, 1)
    rows = read_csv(folder / "s.failures.csv")
    assert [r["recording"] for r in rows] == ["r1.h5", "r4.h5"]
    assert rows[0]["cause"] == f"{folder / 'r1.h5'}: a chunk is damaged, really"
    monkeypatch.setattr(detection, "detect_recording", real)
    assert again(folder, keep_going=True).failed == ()
    assert not (folder / "s.failures.csv").exists()


def test_store_says_what_computed_the_features(made: Path) -> None:
    store = FeatureStore(made / "s.zarr")
    info = store.features_info(recording_name("r0.h5"), store.choose().key)
    assert info is not None
    assert info["computed"] == {"device": "cpu", "precision": "float32", "engine": "openvino"}


def test_a_mixture_is_refused_before_anything_is_computed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(folder / "s.zarr")
    shutil.rmtree(store.path / recording_name("r3.h5") / "features")
    monkeypatch.setattr(FeatureEngine, "computed", Computed("cuda:some GPU", "float16", "torch"))

    def computing(*_: Any) -> Any:
        pytest.fail("features are computed that may not be written")

    monkeypatch.setattr("toptune.extraction.start_features", computing)
    with pytest.raises(InputError, match="precision"):
        again(folder)


def test_half_precision_is_refused_before_any_work_without_units_for_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toptune.backbones.engine.half_of_processor", lambda: None)
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match='`precision="half"`: this processor has no units'):
        again(folder, compute=Compute(device="cpu", precision="half"), overwrite=True)
    assert sorted(folder.rglob("*")) == before
    assert again(folder, compute=Compute(precision="float32")).reused == 6


def test_half_precision_on_a_processor_is_never_mixed_with_float32(folder: Path) -> None:
    dtype = half_of_this_processor()
    half = Compute(device="cpu", precision="half")
    # All are there in float32: they are not taken for what was asked for.
    with pytest.raises(InputError, match=f"precision {dtype}, not float32"):
        again(folder, compute=half)
    shutil.rmtree(FeatureStore(folder / "s.zarr").path / recording_name("r3.h5") / "features")
    with pytest.raises(InputError, match=f"precision {dtype}, not float32"):
        again(folder, compute=half)
    again(folder, compute=half, overwrite=True)
    store = FeatureStore(folder / "s.zarr")
    info = store.features_info(recording_name("r0.h5"), store.choose().key)
    assert info is not None
    assert info["computed"] == {"device": "cpu", "precision": dtype, "engine": "openvino"}
    assert again(folder, compute=half).reused == 6


def test_features_that_cannot_be_written_fail_their_own_recording(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FeatureStore.write_features

    def failing(self: FeatureStore, name: str, *args: Any, **kwargs: Any) -> None:
        # Not at once, so that the next recording is under way.
        time.sleep(0.2)
        if name.startswith(("r1", "r5")):
            raise ToptuneError(f"{name}: no room")
        real(self, name, *args, **kwargs)

    monkeypatch.setattr(FeatureStore, "write_features", failing)
    shutil.rmtree(folder / "s.zarr")
    with pytest.raises(ToptuneError, match=r"r1.*no room"):
        again(folder)
    store = FeatureStore(folder / "s.zarr")
    assert store.features_info(recording_name("r0.h5"), store.choose().key) is not None
    result = again(folder, keep_going=True)
    assert [r for r, _ in result.failed] == ["r1.h5", "r5.h5"]
    assert result.n_windows == 28
    assert result.done + result.reused == 4
    monkeypatch.setattr(FeatureStore, "write_features", real)
    assert (again(folder).done, again(folder).reused) == (2, 6)


def test_defect_in_writing_ends_the_extraction_even_where_told_to_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(FeatureStore, "write_features", failing)
    with pytest.raises(ZeroDivisionError, match="a defect"):
        again(folder, keep_going=True, picture=Picture(kind="raster"))


def test_keep_going_lists_what_cannot_be_opened_and_does_the_rest(folder: Path) -> None:
    broken = folder / "r1.h5"
    broken.write_bytes(broken.read_bytes()[:5000])
    (folder / "r4.h5").write_bytes(b"")
    with pytest.raises(InputErrors):
        extract(folder / "devices.csv", folder / "new.zarr", windows=WINDOWS, backbone=TINY)
    result = extract(
        folder / "devices.csv", folder / "new.zarr", windows=WINDOWS, backbone=TINY, keep_going=True
    )
    assert [r for r, _ in result.failed] == ["r1.h5", "r4.h5"]
    assert "the file is empty" in result.failed[1][1]
    assert (result.done, result.reused, result.n_windows) == (4, 0, 28)
    rows = read_csv(folder / "new.failures.csv")
    assert [r["recording"] for r in rows] == ["r1.h5", "r4.h5"]


def test_keep_going_outlives_errors_nobody_foresaw(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = detect_recording

    def failing(recording: McsRecording, *args: Any, **kwargs: Any) -> Any:
        if recording.path.name == "r1.h5":
            raise IndexError("nobody thought of this")
        if recording.path.name == "r2.h5":
            raise OSError(5, "Input/output error")
        return real(recording, *args, **kwargs)

    monkeypatch.setattr(detection, "detect_recording", failing)
    shutil.rmtree(folder / "s.zarr")
    result = again(folder, keep_going=True)
    causes = dict(result.failed)
    assert "r1.h5: failed unexpectedly (IndexError: nobody thought" in causes["r1.h5"]
    assert "r2.h5: cannot be read (Input/output error)" in causes["r2.h5"]
    assert result.done == 4


def test_keep_going_does_not_outlive_an_interrupt_that_became_another_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        # As the loaders of compiled modules do.
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error

    monkeypatch.setattr(detection, "detect_recording", failing)
    shutil.rmtree(folder / "s.zarr")
    with pytest.raises(KeyboardInterrupt):
        again(folder, keep_going=True)


def test_a_full_disk_ends_the_batch_whatever_keep_going_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("toptune.store.feature_store.write_group", full)
    shutil.rmtree(folder / "s.zarr")
    with pytest.raises(StorageError, match=r"s\.zarr cannot be written .*make room and run"):
        again(folder, keep_going=True)
    assert not leftovers(folder)


def test_a_recording_that_changes_while_it_is_read_is_not_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = detect_recording

    def written_to(recording: McsRecording, *args: Any, **kwargs: Any) -> Any:
        os.utime(recording.path, ns=(1, 1))
        return real(recording, *args, **kwargs)

    monkeypatch.setattr(detection, "detect_recording", written_to)
    shutil.rmtree(folder / "s.zarr")
    with pytest.raises(InputError, match=r"r0\.h5: the file changed while it was read"):
        again(folder)
    monkeypatch.setattr(detection, "detect_recording", real)
    assert again(folder).done == 6


def test_spikes_say_which_programs_found_them(made: Path) -> None:
    info = FeatureStore(made / "s.zarr").spikes_info(recording_name("r0.h5"))
    assert info is not None
    assert {"toptune", "numpy", "numba"} <= {*info["versions"]}


def test_spikes_of_a_file_are_taken_as_they_are(
    made: Path, tmp_path: Path, detected: list[str]
) -> None:
    rows = []
    for k in range(4):
        with McsRecording(made / f"r{k}.h5") as recording:
            write_npz(detect_recording(recording).trains, tmp_path / f"s{k}.npz")
        rows.append((f"s{k}.npz", f"d{k}", "AB"[k % 2]))
    devices = write_devices(tmp_path, rows)
    result = extract(devices, tmp_path / "s.zarr", windows=WINDOWS, backbone=TINY)
    assert detected == []
    ours, theirs = FeatureStore(tmp_path / "s.zarr"), FeatureStore(made / "s.zarr")
    check_store(ours.path, [recording_name("s3.npz")], result.feature_set.key)
    got, _ = ours.read_features(recording_name("s3.npz"), result.feature_set.key)
    expected, _ = theirs.read_features(recording_name("r3.h5"), result.feature_set.key)
    np.testing.assert_array_equal(got, expected)


def test_moved_data_set_keeps_its_store(folder: Path, tmp_path: Path, detected: list[str]) -> None:
    moved = folder.rename(tmp_path / "elsewhere")
    assert again(moved).reused == 6
    assert detected == []


def test_folder_hash_sees_names_contents_and_nothing_else(tmp_path: Path) -> None:
    def hashed(files: dict[str, str]) -> str:
        folder = tmp_path / f"f{len(list(tmp_path.iterdir()))}"
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        return file_sha256(folder)

    same = hashed({"a.txt": "1", "b/c.txt": "2"})
    assert hashed({"b/c.txt": "2", "a.txt": "1"}) == same
    others = [{"a.txt": "1"}, {"a.txt": "2", "b/c.txt": "1"}, {"a.txt": "1", "c.txt": "2"}]
    assert len({same, *map(hashed, others)}) == 4
