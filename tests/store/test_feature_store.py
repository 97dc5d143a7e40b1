"""The store: its format is kept for ever, and what is damaged or half-written is never data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_data import check_attributes, check_store, make_set

from toptune.errors import InputError, StorageError, ToptuneError
from toptune.features.table import RecordingInfo
from toptune.machine.installation import store_contract
from toptune.params import SpikeSettings
from toptune.recordings.trains import RecordingFacts, Segment, Spikes, SpikeTrains, WeightsSource
from toptune.store import groups as zarr_groups
from toptune.store.feature_store import (
    FeatureSet,
    FeatureStore,
    difference,
    made_with,
    recording_name,
    refuse_mixed,
)
from toptune.store.groups import read_attributes, write_attributes

FIRST, SECOND = "plates_culture_1.h5-4e443254", "peaks_culture_2-c6da3107"
GOLDEN_KEY = "235de233592f524f"


def make_trains(seed: int = 0, n: int = 200) -> SpikeTrains:
    rng = np.random.default_rng(seed)
    return SpikeTrains(
        spikes=Spikes(
            np.sort(rng.integers(0, 50_000, n)),
            rng.integers(0, 2, n, dtype=np.int32),
            rng.uniform(20, 90, n).astype(np.float32),
        ),
        channel_labels=("11", "12"),
        sampling_rate_hz=10_000.0,
        segments=(Segment(0, 20_000, 0.0), Segment(20_000, 30_000, 3.25)),
        threshold_uv=np.array([np.nan, 21.5], np.float32),
    )


def features_info(n_windows: int, key: str = "0" * 16) -> dict[str, Any]:
    return {
        "key": key,
        "n_windows": n_windows,
        "input": {"recording": "a.h5", "sha256": "e" * 64},
        "versions": {"toptune": "0"},
    }


def spikes_info(key: str = "0" * 16) -> dict[str, Any]:
    return {
        "key": key,
        "stamp": [["a.h5", 1, 2]],
        "kind": "mcs",
        "input": {"recording": "a.h5", "sha256": "e" * 64},
    }


def listed(*names: str) -> tuple[RecordingInfo, ...]:
    return tuple(RecordingInfo(name, f"dev-{name}", "A", {}) for name in names)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Two recordings and one feature set, a chunk each."""
    made = FeatureStore.create(tmp_path / "s.zarr", SpikeSettings().to_json())
    made.list_recordings(listed("a", "b"))
    for seed, name in enumerate("ab"):
        made.write_spikes(name, make_trains(seed), spikes_info())
        x = np.random.default_rng(seed).standard_normal((5, 16)).astype(np.float32)
        made.write_features(name, x, np.arange(5.0), make_set(), features_info(5))
    return made


# --- the format


def test_golden_store_of_version_1_is_read_with_the_numbers_written_into_it(tmp_path: Path) -> None:
    # A copy, so that nothing can write into the original.
    path = shutil.copytree(store_contract() / "golden.zarr", tmp_path / "golden.zarr")
    golden = FeatureStore(path)
    assert golden.settings == {
        "highpass": {"cutoff_hz": 300.0, "order": 2},
        "ptsd": {
            "threshold_sd": 8.0,
            "lifetime_ms": 2.0,
            "refractory_ms": 1.0,
            "overshoot_ms": 0.5,
            "alignment": "largest",
            "noise": "smallest_sd",
            "threshold_uv": None,
        },
        "stream": None,
        "sampling_rate_hz": None,
    }
    assert golden.recordings == (
        RecordingInfo(FIRST, "culture 1", "100E0I", {"batch": "1", "div": "21"}),
        RecordingInfo(SECOND, "culture 2", "0E100I", {"batch": "1", "div": "28"}),
    )

    trains = golden.read_spikes(FIRST)
    assert trains.spikes.sample.dtype == np.int64
    assert trains.spikes.channel.dtype == np.int32
    assert trains.spikes.peak_to_peak_uv.dtype == np.float32
    assert trains.spikes.sample.tolist() == [3, 3, 70, 12000]
    assert trains.spikes.channel.tolist() == [0, 2, 1, 2]
    amplitudes = np.array([41.5, 120.25, np.nan, 0.1], np.float32)
    np.testing.assert_array_equal(trains.spikes.peak_to_peak_uv, amplitudes)
    assert trains.channel_labels == ("21", "Ü 3", "87")
    assert trains.sampling_rate_hz == 10_000.0
    assert trains.segments == (Segment(0, 10_000, 0.0), Segment(10_000, 7_500, 1.5))
    np.testing.assert_array_equal(trains.threshold_uv, np.array([32.5, np.inf, 27.75], np.float32))
    info = golden.spikes_info(FIRST)
    assert info is not None
    assert info["dead_channels"] == ["Ü 3"]
    assert info["key"] == "a903673dd19c8844"
    assert golden.read_spikes(SECOND).spikes.sample.shape == (0,)

    (feature_set,) = golden.feature_sets()
    assert feature_set.key == GOLDEN_KEY
    assert feature_set.description == (
        "histogram axis 12.5, 0.5 s every 0.25 s, mobilenet_v2, random weights abababab"
    )
    x, start_s = golden.read_features(FIRST, GOLDEN_KEY)
    assert x.dtype == np.float32
    assert x[0].tolist() == [0.5, -1.25, np.float32(3e-7), 1024.0]
    assert x[1].tolist() == [np.float32(1 / 3), 0.0, 65504.0, 2.0]
    assert start_s.tolist() == [0.0, 0.25]

    table = golden.table(feature_set)
    assert table.features[2].tolist() == [7.0, 8.0, 9.0, 10.0]
    assert table.features.shape == (3, 4)
    assert table.start_s.tolist() == [0.0, 0.25, 0.0]
    assert table.recording.tolist() == [0, 0, 1]
    assert table.recordings == golden.recordings
    assert table.provenance["format_version"] == 1
    assert table.provenance["features_key"] == GOLDEN_KEY
    assert table.provenance["inputs"][SECOND] == {
        "recording": "peaks/culture 2",
        "sha256": "02" * 32,
    }
    assert table.provenance["too_short"] == []


def test_names_and_keys_are_those_of_version_1() -> None:
    # They find what older stores hold; a change here would make every store anew.
    assert recording_name("plates/culture 1.h5") == FIRST
    golden = FeatureSet.of(
        {
            "windows": {"width_s": 0.5, "stride_s": 0.25, "bin_ms": 10.0},
            "picture": {"kind": "histogram", "count_axis": 12.5},
            "backbone": {
                "name": "mobilenet_v2",
                "weights": "random",
                "sha256": "ab" * 32,
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
                "input_size": 224,
            },
        }
    )
    assert golden.key == GOLDEN_KEY


def test_golden_store_obeys_the_schema() -> None:
    check_store(store_contract() / "golden.zarr", [FIRST, SECOND], GOLDEN_KEY)


def test_new_store_obeys_the_schema(store: FeatureStore) -> None:
    # What extract itself writes is checked in test_extraction.py; names here are not extract's.
    root = json.loads((store.path / "zarr.json").read_text())
    assert root["attributes"]["version"] == 1
    for name in "ab":
        check_attributes("spikes", store.path / name / "spikes")
        check_attributes("features", store.path / name / "features" / make_set().key)


# --- writing and reading


def test_spikes_come_back_bit_for_bit(store: FeatureStore) -> None:
    written, read = make_trains(1), store.read_spikes("b")
    for field in Spikes._fields:
        a, b = getattr(written.spikes, field), getattr(read.spikes, field)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(written.threshold_uv, read.threshold_uv)
    assert written.segments == read.segments
    assert written.channel_labels == read.channel_labels


def test_table_follows_the_devices_file_not_the_folder(store: FeatureStore) -> None:
    store.list_recordings(listed("b"))
    table = FeatureStore(store.path).table(make_set())
    assert [r.name for r in table.recordings] == ["b"]
    expected = np.random.default_rng(1).standard_normal((5, 16)).astype(np.float32)
    np.testing.assert_array_equal(table.features, expected)


def test_store_knows_its_devices_file_also_when_both_were_moved(
    store: FeatureStore, tmp_path: Path
) -> None:
    assert store.devices_file is None  # as in a store of an earlier version
    devices = store.path.parent / "tables" / "devices.csv"
    store.list_recordings(listed("a", "b"), devices)
    assert FeatureStore(store.path).devices_file == devices.resolve()
    moved = shutil.copytree(store.path, tmp_path / "moved" / store.path.name)
    moved_to = (tmp_path / "moved" / "tables" / "devices.csv").resolve()
    assert FeatureStore(moved).devices_file == moved_to
    # A list without a file keeps the one that is known.
    store.list_recordings(listed("b"))
    assert FeatureStore(store.path).devices_file == devices.resolve()


def test_table_refuses_an_extraction_that_was_not_finished(store: FeatureStore) -> None:
    store.list_recordings(listed("a", "b", "c"))
    with pytest.raises(InputError, match=r"1 of 3 recordings have no features .*first c: run ext"):
        store.table(make_set())


def test_an_incomplete_table_names_what_is_missing(store: FeatureStore) -> None:
    store.list_recordings(listed("a", "c", "b"))
    table = store.table(make_set(), allow_incomplete=True)
    assert [r.name for r in table.recordings] == ["a", "b"]
    assert table.provenance["missing"] == ["c"]
    assert sorted(table.provenance["inputs"]) == ["a", "b"]


def test_features_computed_in_two_ways_are_refused_when_written_and_when_read(
    store: FeatureStore,
) -> None:
    half = {"device": "cuda:X", "precision": "float16", "engine": "torch"}
    info = features_info(5) | {"computed": half}
    x = np.ones((5, 16), np.float32)
    store.list_recordings(listed("a", "b", "c"))
    store.write_spikes("c", make_trains(2), spikes_info())
    with pytest.raises(InputError, match=r"precision float16, not float32 as those of [ab]:"):
        store.write_features("c", x, np.arange(5.0), make_set(), info)
    assert store.features_info("c", make_set().key) is None
    # As when parts of two stores are put together.
    folder = store.path / "b" / "features" / make_set().key
    write_attributes(folder, read_attributes(folder) | {"computed": half})
    store.list_recordings(listed("a", "b"))
    with pytest.raises(InputError, match=r"of b were computed with precision float16, not float32"):
        store.table(make_set())


def test_provenance_tells_who_made_the_features(store: FeatureStore) -> None:
    made = store.table(make_set()).provenance["made_with"]
    assert made == {make_set().key: {"computed": [], "versions": {"toptune": ["0"]}, "notes": []}}


def test_what_is_replaced_while_it_is_read_is_not_called_damaged(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = zarr_groups.read_array
    writer = FeatureStore(store.path)

    def replaced_meanwhile(folder: Path, name: str, info: dict[str, Any]) -> Any:
        if name == "features":
            monkeypatch.setattr("toptune.store.feature_store.read_array", real)
            writer.write_spikes("a", make_trains(5), spikes_info("1" * 16))
        return real(folder, name, info)

    monkeypatch.setattr("toptune.store.feature_store.read_array", replaced_meanwhile)
    with pytest.raises(ToptuneError, match="was replaced while it was read"):
        store.read_features("a", make_set().key)


def test_a_store_can_be_read_where_nothing_can_be_written(store: FeatureStore) -> None:
    before = {p: p.stat().st_mtime_ns for p in store.path.rglob("*")}
    opened = FeatureStore(store.path)
    opened.table(opened.choose())
    opened.read_spikes("a")
    assert {p: p.stat().st_mtime_ns for p in store.path.rglob("*")} == before
    assert [p.name for p in store.path.parent.iterdir()] == ["s.zarr"]


def test_recording_without_windows_is_left_out_of_the_table_and_named(store: FeatureStore) -> None:
    store.list_recordings(listed("a", "c", "b"))
    store.write_spikes("c", make_trains(2), spikes_info())
    nothing = np.empty((0, 1), np.float32)
    store.write_features("c", nothing, np.empty(0), make_set(), features_info(0))
    table = store.table(make_set())
    assert [r.name for r in table.recordings] == ["a", "b"]
    assert table.recording.tolist() == [0] * 5 + [1] * 5
    assert table.provenance["too_short"] == ["c"]


def test_new_spikes_take_the_old_features_with_them(store: FeatureStore) -> None:
    store.write_spikes("a", make_trains(7), spikes_info("1" * 16))
    assert store.features_info("a", make_set().key) is None
    assert store.read_spikes("a").spikes.sample.tolist() == make_trains(7).spikes.sample.tolist()


def test_features_that_are_not_finite_are_not_written(store: FeatureStore) -> None:
    broken = np.array([[1.0, np.inf]], np.float32)
    other = make_set(width_s=3.0)
    with pytest.raises(ToptuneError, match="not finite"):
        store.write_features("a", broken, np.zeros(1), other, features_info(1))
    assert store.features_info("a", other.key) is None


def test_names_that_look_alike_stay_apart() -> None:
    names = {recording_name(w) for w in ("a b.h5", "a_b.h5", "a/b.h5", "..", "ä", "", "x" * 300)}
    assert len(names) == 7
    assert all(len(n) <= 89 and "/" not in n and not n.startswith(".") for n in names)


# --- what is not whole


def test_unpublished_groups_are_refused(store: FeatureStore) -> None:
    for group in ("a/spikes", f"a/features/{make_set().key}"):
        attributes = read_attributes(store.path / group)
        del attributes["published"]
        write_attributes(store.path / group, attributes)
    again = FeatureStore(store.path)
    with pytest.raises(ToptuneError, match=r"features.* is not published"):
        again.table(make_set())
    with pytest.raises(ToptuneError, match="spikes is not published"):
        again.read_spikes("a")


def test_leftovers_of_a_killed_run_are_not_seen(store: FeatureStore) -> None:
    expected = store.table(make_set())
    shutil.copytree(store.path / "a", store.path / ".writing-123-abc")
    shutil.copytree(store.path / "a" / "spikes", store.path / ".writing-124-abd" / "group")
    again = FeatureStore(store.path)
    assert [s.key for s in again.feature_sets()] == [make_set().key]
    np.testing.assert_array_equal(again.table(make_set()).features, expected.features)
    again.write_spikes("b", make_trains(3), spikes_info())
    assert again.read_spikes("b").spikes.sample.tolist() == make_trains(3).spikes.sample.tolist()


def test_a_write_that_fails_leaves_what_was_there(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("toptune.store.feature_store.write_group", fail)
    with pytest.raises(StorageError, match=r"s\.zarr cannot be written \(disk full\)"):
        store.write_spikes("a", make_trains(9), spikes_info())
    assert store.read_spikes("a").spikes.sample.tolist() == make_trains(0).spikes.sample.tolist()
    assert not list(store.path.glob(".writing-*"))


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("array", ["features", "start_s"])
def test_a_flipped_bit_in_features_is_refused(store: FeatureStore, array: str) -> None:
    folder = store.path / "a" / "features" / make_set().key
    expected = store.read_features("a", make_set().key)
    (chunk,) = (p for p in (folder / array / "c").rglob("*") if p.is_file())
    bits = np.random.default_rng(0).choice(8 * chunk.stat().st_size, 60, replace=False)
    refused = 0
    for bit in bits.tolist():
        flip(chunk, bit)
        try:
            got = store.read_features("a", make_set().key)
        except ToptuneError as error:
            refused += 1
            assert f"{array} is damaged" in str(error)  # noqa: PT017  # a few bits mean nothing
        else:
            # Zstd has bits without meaning; then nothing is wrong with the data.
            for x, y in zip(got, expected, strict=True):
                np.testing.assert_array_equal(x, y)
        flip(chunk, bit)
    assert refused >= 50
    store.read_features("a", make_set().key)


@pytest.mark.parametrize("array", [*Spikes._fields, "segments", "threshold_uv"])
def test_a_damaged_byte_in_spikes_is_refused(store: FeatureStore, array: str) -> None:
    (chunk,) = (p for p in (store.path / "a/spikes" / array / "c").rglob("*") if p.is_file())
    intact = chunk.read_bytes()
    for byte in (0, len(intact) // 2, len(intact) - 1):
        damaged = intact[:byte] + bytes([intact[byte] ^ 0xFF]) + intact[byte + 1 :]
        chunk.write_bytes(damaged)
        with pytest.raises(ToptuneError, match=f"{array} is damaged"):
            store.read_spikes("a")
    chunk.write_bytes(intact[:-1])
    with pytest.raises(ToptuneError, match=f"{array} is damaged"):
        store.read_spikes("a")


@pytest.mark.parametrize("array", ["sample", "peak_to_peak_uv"])
def test_a_chunk_that_is_gone_is_refused_not_read_as_the_fill_value(
    store: FeatureStore, array: str
) -> None:
    (store.path / "a/spikes" / array / "c/0").unlink()
    with pytest.raises(ToptuneError, match=f"{array} is damaged"):
        store.read_spikes("a")


@pytest.mark.parametrize(
    ("old", "new"),
    [("float32", "int32"), ("float32", "float64"), ('"shape": [\n    5', '"shape": [\n    4')],
)
def test_changed_metadata_of_an_array_is_refused(store: FeatureStore, old: str, new: str) -> None:
    meta = store.path / "a/features" / make_set().key / "features" / "zarr.json"
    text = meta.read_text()
    assert old in text
    meta.write_text(text.replace(old, new).replace('"NaN"', "0" if "int" in new else '"NaN"'))
    with pytest.raises(ToptuneError, match="features is damaged"):
        FeatureStore(store.path).read_features("a", make_set().key)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_damaged_group_metadata_is_one_clear_line(store: FeatureStore, content: str) -> None:
    (store.path / "a/features" / make_set().key / "zarr.json").write_text(content)
    with pytest.raises(ToptuneError, match=rf"a/features/{make_set().key} is damaged"):
        FeatureStore(store.path).table(make_set())


# --- opening and choosing


def test_what_is_no_store_of_this_version_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.zarr: no such store: make one with"):
        FeatureStore(tmp_path / "none.zarr")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder: not a Zarr v3 store"):
        FeatureStore(tmp_path / "folder")
    (tmp_path / "file").write_text("no")
    with pytest.raises(InputError, match="file: not a Zarr v3 store"):
        FeatureStore(tmp_path / "file")
    with pytest.raises(InputError, match="spikes: a Zarr group, but not a toptune store"):
        FeatureStore(store.path / "a" / "spikes")
    write_attributes(store.path, {**read_attributes(store.path), "version": 99})
    with pytest.raises(InputError, match="store format version 99, this toptune reads 1"):
        FeatureStore(store.path)


def test_create_replaces_nothing_but_a_store(store: FeatureStore, tmp_path: Path) -> None:
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("precious")
    with pytest.raises(InputError):
        FeatureStore.create(other, {}, replace=True)
    assert (other / "chapter.txt").exists()
    assert FeatureStore.create(store.path, {}, replace=True).recordings == ()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.zarr", "thesis"]
    assert [p.name for p in store.path.iterdir()] == ["zarr.json"]


def test_create_refuses_a_place_that_is_taken(store: FeatureStore) -> None:
    with pytest.raises(InputError, match="exists already"):
        FeatureStore.create(store.path, {})


def test_choose_needs_no_words_for_a_single_set(store: FeatureStore) -> None:
    assert store.choose() == make_set()


def test_choose_tells_sets_apart_by_key_or_words(store: FeatureStore) -> None:
    raster = make_set(kind="raster", width_s=10.0)
    x = np.ones((1, 3), np.float32)
    for name in "ab":
        store.write_features(name, x, np.zeros(1), raster, features_info(1))
    assert store.choose(raster.key[:6]) == raster
    assert store.choose("Raster") == raster
    assert store.choose("net 2 every") == make_set()
    with pytest.raises(InputError, match="holds several feature sets: choose one by `features`"):
        store.choose()
    with pytest.raises(InputError, match="2 sets like 'net'") as several:
        store.choose("net")
    with pytest.raises(InputError, match="0 sets like 'densenet'") as none:
        store.choose("densenet")
    for error in (several, none):
        for one in (raster, make_set()):
            assert f"{one.key[:8]} = {one.description}" in str(error.value)


def test_choose_takes_the_set_with_the_whole_words_among_several(store: FeatureStore) -> None:
    sets = [make_set(kind=kind) for kind in ("raster", "sorted_raster")]
    x = np.ones((1, 3), np.float32)
    for name in "ab":
        for one in sets:
            store.write_features(name, x, np.zeros(1), one, features_info(1))
    assert store.choose("raster") == sets[0]
    assert store.choose("sorted_raster") == store.choose("sorted") == sets[1]
    for one in (*sets, make_set()):
        assert store.choose(one.description) == one


def test_choose_in_an_empty_store_names_the_next_step(tmp_path: Path) -> None:
    empty = FeatureStore.create(tmp_path / "s.zarr", {})
    with pytest.raises(InputError, match="holds no features yet: run `extract` first"):
        empty.choose()


# --- facts


def test_facts_of_recordings_are_those_of_their_spikes(store: FeatureStore) -> None:
    for seed, name in enumerate("ab"):
        store.write_spikes(name, make_trains(seed, n=200 + seed), spikes_info())
        facts = store.recording_facts(name)
        assert facts == RecordingFacts.of(name, store.read_spikes(name))
        # 50,000 samples at 10 kHz on two electrodes; the gap does not count.
        assert (facts.n_spikes, facts.duration_s, facts.n_electrodes) == (200 + seed, 5.0, 2)
        assert facts.electrode_rate_hz == pytest.approx((200 + seed) / 10)


def test_facts_behind_a_table_follow_its_recordings_and_views(store: FeatureStore) -> None:
    table = store.table(make_set())
    facts = store.training_facts(table)
    assert [f.name for f in facts.recordings] == ["a", "b"]
    assert facts.weights == (None,)  # a store of an earlier toptune does not say
    for name, seed in (("b", 4), ("a", 7)):
        info = features_info(5) | {"weights": {"path": None, "seed": seed}}
        x = np.ones((5, 16), np.float32)
        store.write_features(name, x, np.arange(5.0), make_set(), info)
        facts = store.training_facts(table)
        assert facts.weights == (WeightsSource(seed=seed),)  # the first recording's


def test_facts_of_unpublished_or_damaged_spikes_are_refused(store: FeatureStore) -> None:
    with pytest.raises(ToptuneError, match="c has no published spikes"):
        store.recording_facts("c")
    shutil.rmtree(store.path / "a" / "spikes" / "sample")
    with pytest.raises(ToptuneError, match="sample is damaged"):
        FeatureStore(store.path).recording_facts("a")


# --- who computed features: what is refused as mixed, what is only told


def info(
    device: str = "cpu", precision: str = "float32", engine: str = "openvino", **versions: str
) -> dict[str, Any]:
    return {
        "computed": {"device": device, "precision": precision, "engine": engine},
        "versions": {"toptune": "1", **versions},
    }


OLDER: dict[str, Any] = {"versions": {"toptune": "0"}}
HALF = info("cuda:NVIDIA H100", "float16", "torch")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (info(), info(), None),
        (info(torch="2.5"), info(torch="2.6"), None),
        (HALF, info("cuda:NVIDIA A100", "float16", "torch"), None),
        (HALF, info(), "precision float16, not float32"),
        (info(engine="torch"), info(), "engine torch, not openvino"),
        (info("cuda:X", engine="torch"), info(engine="torch"), "device cuda, not cpu"),
        (OLDER, OLDER, None),
        (OLDER, info(), None),
        (OLDER, HALF, "precision float32, not float16"),
        (HALF, OLDER, "precision float16, not float32"),
    ],
)
def test_what_may_change_numbers_is_named(
    one: dict[str, Any], other: dict[str, Any], expected: str | None
) -> None:
    assert difference(one, other) == expected
    assert (difference(other, one) is None) == (expected is None)


def test_mixed_features_are_refused_by_name_with_the_way_out() -> None:
    refuse_mixed({"a": HALF, "b": HALF}, "histogram", "s.zarr")
    refuse_mixed({}, "histogram", "s.zarr")
    with pytest.raises(InputError) as error:
        refuse_mixed({"a": HALF, "b": HALF, "c": info()}, "histogram", "s.zarr")
    for text in (
        "s.zarr",
        "'histogram' of c",
        "precision float32, not float16",
        "`overwrite=True`",
    ):
        assert text in str(error.value)


def test_versions_and_gpus_that_differ_are_told() -> None:
    other = info("cuda:NVIDIA A100", "float16", "torch", openvino="2025.1")
    told = made_with(
        {"a": {**HALF, "versions": {"toptune": "1", "openvino": "2024.6"}}, "b": other}
    )
    assert told["versions"] == {"toptune": ["1"], "openvino": ["2024.6", "2025.1"]}
    assert [one["device"] for one in told["computed"]] == ["cuda:NVIDIA A100", "cuda:NVIDIA H100"]
    assert told["notes"] == [
        "some features were made with openvino 2024.6, some with 2025.1",
        "some features were computed on cuda:NVIDIA A100, some on cuda:NVIDIA H100",
    ]


def test_one_maker_needs_no_note() -> None:
    told = made_with({"a": info(), "b": info(), "c": OLDER | {"versions": {"toptune": "1"}}})
    assert told == {
        "computed": [{"device": "cpu", "precision": "float32", "engine": "openvino"}],
        "versions": {"toptune": ["1"]},
        "notes": [],
    }
