"""Verifying a store: whatever bit is flipped, file gone or part copied, it is named.

`TOPTUNE_FLIPS=all pytest tests/store/test_check.py --log-cli-level=INFO` flips a bit of every byte
and tells how many; a number, that many bits of each file.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from store_cases import LISTED, SET, A, B, flips, make_store, read_all, write_recording

from toptune.errors import InputError, ToptuneError
from toptune.machine.installation import store_contract
from toptune.params import SpikeSettings
from toptune.store.check import StoreReport, check_store, remove_damaged
from toptune.store.feature_store import FeatureStore
from toptune.store.groups import SUM, read_attributes, write_attributes
from toptune.store.session import writing_session

_LOG = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two recordings; look, do not touch."""
    path = tmp_path_factory.mktemp("made") / "s.zarr"
    make_store(path)
    return path


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "s.zarr")


def region(file: Path, path: Path) -> str:
    """What kind of bytes a file of the store holds."""
    if file.name != "zarr.json":
        return "chunk"
    metadata = json.loads(file.read_bytes())
    if metadata["node_type"] == "array":
        return "array metadata"
    if file.parent == path:
        return "root"
    names = {*metadata["attributes"]} - {SUM}
    return "group attributes" if names else "plain group"


def test_a_flipped_bit_anywhere_is_refused_by_name(path: Path) -> None:
    expected = read_all(path)
    rng = np.random.default_rng(0)
    refused, harmless = 0, 0
    files = [path / "zarr.json", *sorted(p for p in (path / A).rglob("*") if p.is_file())]
    regions = Counter(region(f, path) for f in files)
    assert sorted(regions) == [
        "array metadata", "chunk", "group attributes", "plain group", "root",
    ]  # fmt: skip
    for file in files:
        intact = file.read_bytes()
        for byte, bit in flips(len(intact), rng):
            broken = bytearray(intact)
            broken[byte] ^= 1 << bit
            file.write_bytes(broken)
            try:
                got = read_all(path)
            except ToptuneError as error:
                refused += 1
                assert (A if A in file.parts else "s.zarr") in str(error)  # noqa: PT017
            else:
                # The same JSON, written otherwise: 1e-05 and 1E-05.
                harmless += 1
                assert got == expected, f"bit {bit} of byte {byte} of {file} changed data"
                assert file.name == "zarr.json"
        file.write_bytes(intact)
    _LOG.info("%d refused, %d without effect, files: %s", refused, harmless, dict(regions))
    assert read_all(path) == expected
    assert harmless <= refused / 100


def test_a_flipped_bit_in_a_length_reaches_no_facts(path: Path) -> None:
    # Facts are told without reading the spikes.
    assert FeatureStore(path).recording_facts(A).n_spikes == 60
    meta = path / A / "spikes" / "sample" / "zarr.json"
    text = meta.read_text()
    assert '"shape": [\n    60' in text
    meta.write_text(text.replace('"shape": [\n    60', '"shape": [\n    61'))
    with pytest.raises(ToptuneError, match=r"sample is damaged .*sample/zarr\.json"):
        FeatureStore(path).recording_facts(A)


def test_a_sound_store_is_called_sound(made: Path) -> None:
    report = check_store(made)
    assert report.is_sound
    assert (report.n_recordings, report.n_groups, report.n_unsummed) == (2, 4, 0)
    assert (report.findings, report.extract_again) == ((), ())
    files = sum(p.stat().st_size for n in (A, B) for p in (made / n).rglob("*/*") if p.is_file())
    plain = sum((made / n / "features" / "zarr.json").stat().st_size for n in (A, B))
    assert report.n_bytes == files - plain


def test_golden_store_of_an_earlier_toptune_is_sound_without_sums(tmp_path: Path) -> None:
    golden = shutil.copytree(store_contract() / "golden.zarr", tmp_path / "golden.zarr")
    report = check_store(golden)
    assert report.is_sound
    assert (report.n_groups, report.n_unsummed) == (4, 4)


def flip_middle(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def add_file(file: Path) -> None:
    (file.parent / "notes.txt").write_text("mine")


FEATURES = f"{A}/features/{SET.key}"
DAMAGES: list[tuple[str, Callable[[Path], object], str, str]] = [
    (f"{A}/spikes/sample/c/0", flip_middle, f"{A}/spikes/sample", "sample/c/0 is not the one"),
    (f"{A}/spikes/segments/c/0/0", Path.unlink, f"{A}/spikes/segments", "c/0/0 is gone"),
    (f"{A}/spikes/channel/zarr.json", Path.unlink, f"{A}/spikes/channel", "zarr.json is gone"),
    (f"{A}/spikes/channel/zarr.json", truncate, f"{A}/spikes/channel", "sha256"),
    (f"{A}/spikes/zarr.json", flip_middle, f"{A}/spikes", ""),
    (f"{A}/spikes/zarr.json", Path.unlink, f"{A}/spikes", "No such file"),
    (f"{A}/zarr.json", Path.unlink, A, "No such file"),
    (f"{A}/features/zarr.json", truncate, f"{A}/features", ""),
    (f"{FEATURES}/features/c/0/0", truncate, f"{FEATURES}/features", "c/0/0 is not the one"),
    (f"{FEATURES}/start_s", shutil.rmtree, f"{FEATURES}/start_s", "start_s/c/0 is gone"),
    (f"{FEATURES}/zarr.json", add_file, FEATURES, "notes.txt does not belong"),
    (f"{FEATURES}/features/c/0/0", add_file, f"{FEATURES}/features", "notes.txt does not belong"),
]  # fmt: skip


@pytest.mark.parametrize(("target", "damage", "place", "cause"), DAMAGES)
def test_damage_is_named_with_what_to_extract_again(
    path: Path, target: str, damage: Callable[[Path], object], place: str, cause: str
) -> None:
    damage(path / target)
    report = check_store(path)
    (finding,) = (f for f in report.findings if f.kind == "damaged")
    assert (finding.kind, finding.place) == ("damaged", place)
    assert cause in finding.cause
    assert report.extract_again in (("a.h5",), (A,))  # its name as written, where that is readable
    (removed,) = remove_damaged(report)
    assert place.startswith(removed)
    rest = check_store(path)
    assert {f.kind for f in rest.findings} == {"missing"}
    assert rest.extract_again == (A,)
    write_recording(FeatureStore(path), A, 1)
    assert check_store(path).is_sound


def test_half_copied_store_names_every_recording_that_is_not_whole(path: Path) -> None:
    shutil.rmtree(path / B)
    shutil.rmtree(path / A / "features")
    report = check_store(path)
    assert [(f.kind, f.place) for f in report.findings] == [("missing", B)]
    assert "not in the store" in report.findings[0].cause
    (path / "zarr.json").unlink()
    with pytest.raises(InputError, match="if it was copied, the copy is not complete"):
        check_store(path)


def test_a_recording_without_the_features_of_the_others_is_missing(path: Path) -> None:
    shutil.rmtree(path / A / "features")
    report = check_store(path)
    (finding,) = report.findings
    assert (finding.kind, finding.place) == ("missing", FEATURES)
    assert report.extract_again == (A,)


def test_parts_of_another_store_are_recognised(path: Path, tmp_path: Path) -> None:
    settings = SpikeSettings().to_json()
    settings["ptsd"]["threshold_sd"] = 7.0
    other = FeatureStore.create(tmp_path / "other.zarr", settings)
    write_recording(other, A, 1)
    shutil.rmtree(path / A / "spikes")
    shutil.copytree(other.path / A / "spikes", path / A / "spikes")
    causes = [f.cause for f in check_store(path).findings]
    assert causes == ["its spikes were not found with these settings"]


def test_features_of_other_spikes_are_recognised(path: Path) -> None:
    shutil.rmtree(path / A / "features")
    shutil.copytree(path / B / "features", path / A / "features")
    (finding,) = check_store(path).findings
    assert finding.cause == "it was not made from the spikes beside it"


def test_strangers_are_noted_and_do_no_harm(path: Path) -> None:
    shutil.copytree(path / A, path / "gone-00000000")
    (path / ".writing-123-00000000").mkdir()
    (path / "thesis.txt").write_text("mine")
    zarr.create_group(path / "foreign", zarr_format=3)
    report = check_store(path)
    assert report.is_sound
    assert {(f.kind, f.place) for f in report.findings} == {
        ("note", "gone-00000000"),
        ("note", ".writing-123-00000000"),
        ("note", "thesis.txt"),
        ("note", "foreign"),
    }
    assert remove_damaged(report) == ()


def test_a_foreign_zarr_group_is_no_store(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "foreign", attributes={"images": 3}, zarr_format=3)
    with pytest.raises(InputError, match="a Zarr group, but not a toptune store"):
        check_store(tmp_path / "foreign")


def test_an_attribute_that_is_unknown_is_refused_where_there_is_no_sum(tmp_path: Path) -> None:
    golden = shutil.copytree(store_contract() / "golden.zarr", tmp_path / "golden.zarr")
    meta = golden / "plates_culture_1.h5-4e443254" / "spikes" / "zarr.json"
    text = meta.read_text()
    assert '"stream"' in text
    meta.write_text(text.replace('"stream"', '"strdam"'))
    (finding,) = check_store(golden).findings
    assert "'strdam' is not one of toptune's" in finding.cause


def test_a_changed_value_with_its_own_sum_is_still_held_against_the_keys(path: Path) -> None:
    # Somebody edits by hand and makes the sum anew: the key stands for other parameters.
    folder = path / FEATURES
    attributes = json.loads(json.dumps(read_attributes(folder)))
    attributes["params"]["windows"]["width_s"] = 3.0
    write_attributes(folder, attributes)
    (finding,) = check_store(path).findings
    assert finding.cause == "its parameters are not those that its name stands for"


def test_nothing_is_removed_while_another_process_writes(path: Path) -> None:
    (path / A / "spikes" / "zarr.json").unlink()
    report: StoreReport = check_store(path)
    with (
        writing_session(path, SpikeSettings().to_json(), LISTED),
        pytest.raises(InputError, match="another process is extracting into it"),
    ):
        remove_damaged(report)
    assert (path / A).exists()
