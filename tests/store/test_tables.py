"""Burst parameters from a store to a run and to verdicts, alone and beside pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from burst_data import make_trains
from results import read_csv

from toptune.errors import InputError, InputErrors
from toptune.extraction import extract
from toptune.features.burst_features import (
    NAMES,
    BurstExtractor,
    BurstFeatureParams,
    recording_parameters,
)
from toptune.features.electrodes import ElectrodeTrains, WindowedTrains
from toptune.features.table import FeatureTable
from toptune.heads.parameters.logistic import LogisticClassifier
from toptune.params import Backbone, FitOptions, Picture, Windows
from toptune.prediction import predict
from toptune.recordings.spike_npz import write_npz
from toptune.recordings.trains import SpikeTrains
from toptune.runs.model import read_model
from toptune.runs.verdicts import Predictions
from toptune.store.feature_store import FeatureStore
from toptune.store.tables import parameter_table, table_for
from toptune.training import fit

pytestmark = pytest.mark.usefixtures("one_torch_thread", "tiny_backbones")

WINDOWS = Windows(width_s=10.0, stride_s=5.0)
N_DEVICES = 10


def culture(seed: int, bursting: bool) -> SpikeTrains:
    """Six electrodes for 40 s at 1 kHz: bursts together, or as many spikes at any time."""
    rng = np.random.default_rng(seed)
    electrodes = []
    starts = np.sort(rng.integers(500, 39_000, 10))
    for _ in range(6):
        if bursting:
            train = np.concatenate([s + np.cumsum(rng.integers(2, 12, 12)) for s in starts])
        else:
            train = rng.integers(0, 40_000, 120)
        electrodes.append(np.unique(train[train < 40_000]).tolist())
    return make_trains(electrodes, 40_000)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of two classes and a store of them; device 0 has two recordings."""
    folder = tmp_path_factory.mktemp("made")
    lines = ["recording,device,label,batch"]
    for k in range(N_DEVICES + 1):
        device = k % N_DEVICES
        write_npz(culture(k, bursting=device % 2 == 0), folder / f"r{k}.npz")
        lines.append(f"r{k}.npz,dev{device},{'AB'[device % 2]},b{device % 2}")
    (folder / "devices.csv").write_text("\n".join(lines) + "\n")
    extract(
        folder / "devices.csv",
        folder / "s.zarr",
        windows=WINDOWS,
        picture=Picture(count_axis=6.0),
        backbone=Backbone(name="tiny", weights="random"),
    )
    return folder


@pytest.fixture(scope="module")
def store(made: Path) -> FeatureStore:
    return FeatureStore(made / "s.zarr")


def run(
    store: FeatureStore,
    table: FeatureTable,
    head: str,
    out: Path,
    device: str = "cpu",
    **options: Any,
) -> Path:
    fitting = FitOptions(head=head, **options)
    return fit(table, fitting, out, facts=store.training_facts(table), device=device).path


# --- tables


def test_a_table_holds_one_row_a_recording_and_says_how(store: FeatureStore) -> None:
    seen: list[tuple[str, int, int]] = []
    table = table_for(store, "parameters", progress=lambda *told: seen.append(told))
    assert table.features.shape == (N_DEVICES + 1, 30)
    assert table.recording.tolist() == list(range(N_DEVICES + 1))
    assert {told[2] for told in seen} == {N_DEVICES + 1}
    assert seen[-1][:2] == ("burst parameters", N_DEVICES + 1)
    assert table.provenance["features"] == BurstFeatureParams().to_json()
    beside = store.table(store.choose()).provenance
    assert {k: table.provenance[k] for k in ("settings", "inputs")} == {
        k: beside[k] for k in ("settings", "inputs")
    }
    extractor = BurstExtractor(BurstFeatureParams())
    for row, info in enumerate(store.recordings):
        alone = extractor.measure(store.read_spikes(info.name))
        np.testing.assert_array_equal(table.features[row], alone.features[0])


def test_a_store_without_features_is_enough(made: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(made / "s.zarr", tmp_path / "s.zarr")
    for features in bare.glob("*/features"):
        shutil.rmtree(features)
    store = FeatureStore(bare)
    assert len(table_for(store, "parameters").features) == N_DEVICES + 1
    # Nothing says which windows: the usual 120 s, of which there are none in 40 s.
    with pytest.raises(InputError, match="no recording is as long as a window"):
        table_for(store, "falkon", ["parameters"])
    assert len(table_for(store, "falkon", ["parameters 20 s every 10 s"]).features) == 33

    shutil.rmtree(next(bare.glob("r3*")) / "spikes")
    with pytest.raises(InputError, match="1 of 11 recordings have no spikes, first r3"):
        table_for(FeatureStore(bare), "parameters")


def test_parameters_join_pictures_window_by_window(store: FeatureStore) -> None:
    pictures = store.table(store.choose())
    table = table_for(store, "falkon", ["histogram", "parameters"])
    assert table.view_sizes == (pictures.features.shape[1], 60)
    np.testing.assert_array_equal(table.features[:, : table.view_sizes[0]], pictures.features)
    np.testing.assert_array_equal(table.start_s, pictures.start_s)
    assert table.dropped.n_windows == 0
    other = table_for(store, "falkon", ["parameters", "histogram"])
    np.testing.assert_array_equal(other.features[:, :60], table.features[:, -60:])
    assert other.views[0].name == "parameters, 10 s every 5 s"
    # Named by its description; a wider one leads.
    named = table_for(store, "falkon", ["histogram", "parameters, 20 s every 10 s"])
    assert len(named.features) == 33
    alone = table_for(store, "mlp", ["parameters"])
    np.testing.assert_array_equal(alone.features, other.features[:, :60])


@pytest.mark.parametrize(
    ("head", "features", "message"),
    [
        ("parameters", ["histogram"], "leave `features` out"),
        ("falkon", ["parameters", "parameters"], "is named twice"),
        ("falkon", ["parameters 0.0.1 s"], "'0.0.1' is not a number of seconds"),
        ("falkon", ["parameters 0 s"], "Windows.width_s must be above 0"),
        ("falkon", ["parameter"], "0 sets like 'parameter'"),
    ],
)
def test_words_that_name_nothing_are_refused(
    store: FeatureStore, head: str, features: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        table_for(store, head, features)


def test_windows_must_be_said_where_the_store_has_several(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "w")
    extract(
        tmp_path / "w" / "devices.csv",
        tmp_path / "w" / "s.zarr",
        windows=Windows(width_s=20.0, stride_s=10.0),
        picture=Picture(kind="raster"),
        backbone=Backbone(name="tiny", weights="random"),
    )
    store = FeatureStore(tmp_path / "w" / "s.zarr")
    with pytest.raises(InputError, match="several windows: say which"):
        table_for(store, "falkon", ["parameters"])
    joined = table_for(store, "falkon", ["histogram", "raster", "parameters"])
    assert joined.views[2].name == "parameters, 20 s every 10 s"


@pytest.mark.parametrize("most", [1, 3, 4, 7, 100])
def test_windows_are_taken_evenly_and_parameters_measured_of_them_alone(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    features = ["histogram", "parameters"]
    every = table_for(store, "falkon", features, windows_per_recording=0)
    n_measured = []
    window = WindowedTrains.__getitem__

    def counted(cut: WindowedTrains, row: int) -> ElectrodeTrains:
        n_measured.append(row)
        return window(cut, row)

    monkeypatch.setattr(WindowedTrains, "__getitem__", counted)
    table = table_for(store, "falkon", features, windows_per_recording=most)
    assert len(n_measured) == len(table.features)
    rows = []
    for recording in range(len(every.recordings)):
        own = np.flatnonzero(every.recording == recording)
        n = min(most, len(own))
        rows += [own[i * len(own) // n] for i in range(n)]
    np.testing.assert_array_equal(table.features, every.features[rows])
    np.testing.assert_array_equal(table.start_s, every.start_s[rows])
    assert len(every.spread(most).features) == len(rows)
    assert every.spread(100) is every


def test_a_head_that_fuses_takes_all_there_is_unless_told_otherwise(store: FeatureStore) -> None:
    assert [view.name for view in table_for(store, "falkon").views] == [
        view.name for view in table_for(store, "falkon", ["histogram", "parameters"]).views
    ]
    assert len(table_for(store, "mlp").views) == 1


# --- runs


def test_the_logistic_regression_is_scored_and_written_as_the_others(
    store: FeatureStore, tmp_path: Path
) -> None:
    table = table_for(store, "parameters")
    out = run(store, table, "parameters", tmp_path / "run", permutations=29)
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["head"], metrics["features"]) == (
        "parameters", ["parameters of the whole recording"],
    )  # fmt: skip
    assert (metrics["n_devices"], metrics["n_windows"]) == (N_DEVICES, N_DEVICES + 1)
    assert metrics["device_accuracy"] == 1.0
    assert metrics["permutation_p"] == pytest.approx(1 / 30, abs=2 / 30)
    assert metrics["permutations"]["parameters"] == "chosen anew under every shuffle"
    assert metrics["calibrated"]
    assert metrics["tuning"]["n_candidates"] == 4
    folds = read_csv(out / "folds.csv")
    assert {row["n_windows"] for row in folds} == {"1", "2"}
    assert all(float(row["chosen_C"]) in (0.01, 0.1, 1, 10) for row in folds)
    devices = read_csv(out / "devices.csv")
    assert devices[0]["n_windows"] == "2"  # its two recordings vote
    assert {p.name for p in (out / "model").iterdir()} == {"model.json", "model.safetensors"}
    parameters = read_csv(out / "parameters.csv")
    for row, info in zip(parameters, store.recordings, strict=True):
        assert (row["recording"], row["label"]) == (info.name, info.label)
        for name, value in recording_parameters(store.read_spikes(info.name))._asdict().items():
            told = float(row[name]) if row[name] else np.nan
            assert told == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True), name
    coefficients = read_csv(out / "coefficients.csv")
    assert [row["parameter"] for row in coefficients] == list(NAMES)
    # Bursts together are what tells class A; both classes mirror each other.
    tiling = next(row for row in coefficients if row["parameter"] == "spike_time_tiling")
    assert float(tiling["A"]) > 0 > float(tiling["B"])
    written = json.loads((out / "params.json").read_text())
    assert written["features"]["features"]["kind"] == "parameters"
    assert json.loads((out / "environment.json").read_text())["device"] == "cpu"


def test_fixed_and_tried_penalties(store: FeatureStore, tmp_path: Path) -> None:
    table = table_for(store, "parameters")
    fixed = run(store, table, "parameters", tmp_path / "a", fixed={"C": 0.5}, permutations=0)
    assert json.loads((fixed / "params.json").read_text())["head_params"] == {"C": 0.5}
    tried = run(store, table, "parameters", tmp_path / "b", tried={"C": [0.2, 2.0]}, permutations=0)
    assert {row["chosen_C"] for row in read_csv(tried / "folds.csv")} <= {"0.2", "2"}
    plain = run(store, table, "parameters", tmp_path / "c", tune=False, permutations=0)
    assert json.loads((plain / "metrics.json").read_text())["tuning"] is None


def test_two_groups_are_scored_without_tuning(store: FeatureStore, tmp_path: Path) -> None:
    table = table_for(store, "parameters")
    infos = tuple(
        type(r)(r.name, r.device, r.label, {"half": "xy"[int(r.device[3:]) // 2 % 2]})
        for r in table.recordings
    )
    halves = FeatureTable(
        table.features, table.start_s, table.recording, infos, table.provenance, table.views
    )
    with pytest.raises(InputErrors, match="needs three groups"):
        run(store, halves, "parameters", tmp_path / "a", group_by="half")
    with pytest.raises(
        InputErrors, match="permutations of the classifier parameters need three groups"
    ):
        run(
            store, halves, "parameters", tmp_path / "a", group_by="half", tune=False, permutations=9
        )
    out = run(store, halves, "parameters", tmp_path / "a", group_by="half", tune=False)
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["n_groups"], metrics["permutation_p"]) == (2, None)


def test_heads_and_tables_that_do_not_fit_are_refused(store: FeatureStore, tmp_path: Path) -> None:
    whole, windows = table_for(store, "parameters"), store.table(store.choose())
    for table, head in ((whole, "falkon"), (windows, "parameters")):
        with pytest.raises(InputErrors, match=f"the classifier {head} is trained on"):
            run(store, table, head, tmp_path / "run")
    with pytest.raises(InputErrors, match="works on the CPU, not on cuda"):
        run(store, whole, "parameters", tmp_path / "run", device="cuda")
    broken = whole.features.copy()
    broken[2, 3] = np.inf
    bad = FeatureTable(
        broken, whole.start_s, whole.recording, whole.recordings, whole.provenance, whole.views
    )
    with pytest.raises(InputErrors, match="1 windows have features that are NaN or infinite"):
        run(store, bad, "parameters", tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


# --- features that stay in the store


def files_of(folder: Path) -> dict[str, bytes]:
    """Contents of a run that hold no time of computing."""
    names = ("windows.csv", "devices.csv", "folds.csv", "model/model.safetensors", "params.json")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.filterwarnings("ignore:the normal equation:scipy.linalg.LinAlgWarning")
@pytest.mark.parametrize("features", [["histogram"], ["histogram", "parameters"]])
@pytest.mark.parametrize("most", [0, 4])
def test_a_run_on_streamed_features_is_that_on_features_in_memory(
    features: list[str], most: int, store: FeatureStore, tmp_path: Path
) -> None:
    found = []
    for stream in (True, False):
        table = table_for(store, "falkon", features, windows_per_recording=most, stream=stream)
        assert table.streamed is stream
        fixed = {"n_centres": 24, "penalty": 1e-2}
        out = run(
            store, table, "falkon", tmp_path / f"{stream}",
            fixed=fixed, permutations=20, windows_per_recording=most,
        )  # fmt: skip
        found.append(files_of(out))
    assert found[0] == found[1]


def test_features_are_streamed_where_memory_is_short_and_the_head_can(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = store.size_of(store.choose("histogram"))
    assert size == store.table(store.choose("histogram")).features.nbytes

    def streamed(free: float, head: str, **options: Any) -> bool:
        monkeypatch.setattr("toptune.store.tables.available_memory", lambda: int(free))
        return table_for(store, head, ["histogram"], **options).streamed

    # Three copies of them are to fit into half of the memory.
    assert not streamed(6 * size, "falkon")
    assert streamed(6 * size - 2, "falkon", windows_per_recording=0)
    # One window of the seven of each recording does.
    assert not streamed(size, "falkon", windows_per_recording=1)
    assert not streamed(2 * size, "mlp", windows_per_recording=0)
    with pytest.raises(InputError, match=r"mlp needs its 77 windows in memory.*`head=\"falkon\"`"):
        streamed(2 * size - 1, "mlp", windows_per_recording=0)


def test_a_head_that_cannot_stream_refuses_streamed_features_by_name(
    store: FeatureStore, tmp_path: Path
) -> None:
    for head in ("mlp", "recordings"):
        table = table_for(store, head, ["histogram"], stream=True)
        with pytest.raises(InputErrors, match=f"{head} needs its features in memory"):
            run(store, table, head, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_damage_is_found_when_streamed_features_are_read(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "s.zarr", tmp_path / "s.zarr")
    store = FeatureStore(tmp_path / "s.zarr")
    table = table_for(store, "falkon", ["histogram"], stream=True)
    (chunk,) = (store.path / store.recordings[3].name).glob("features/*/features/c/*/*")
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(bytes(content))
    with pytest.raises(InputError, match="is damaged"):
        run(store, table, "falkon", tmp_path / "run")


# --- predictions


def check(result: Predictions, model: Path, table: FeatureTable) -> None:
    """Every recording of training is described and scored exactly as in training."""
    read = read_model(model)
    for row, one in enumerate(result.recordings):
        mine = table.recording == row
        np.testing.assert_array_equal(one.scores, read.class_scores(table.features[mine]))
        np.testing.assert_array_equal(one.start_s, table.start_s[mine])
        assert not one.unlike_training
        assert one.prediction == table.recordings[row].label


def test_the_model_of_burst_parameters_predicts_recordings_as_in_training(
    made: Path, store: FeatureStore, tmp_path: Path
) -> None:
    table = table_for(store, "parameters")
    model = run(store, table, "parameters", tmp_path / "run", permutations=0) / "model"
    result = predict(model, [made / f"r{k}.npz" for k in range(N_DEVICES + 1)])
    check(result, model, table)
    assert isinstance(read_model(model).estimator, LogisticClassifier)
    new = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for k, path in enumerate(new):
        write_npz(culture(90 + k, bursting=k == 0), path)
    # A recording's length is its own: 25 s here, 40 s in training.
    short = make_trains([list(range(3, 25_000, 800))] * 6, 25_000)
    write_npz(short, tmp_path / "c.npz")
    result = predict(model, [*new, tmp_path / "c.npz"])
    assert [one.prediction for one in result.recordings[:2]] == ["A", "B"]
    assert result.recordings[2].unlike_training
    assert any("1 of 1 window is unlike" in w for w in result.recordings[2].warnings)


def test_silence_is_judged_and_said_to_be_unlike_training(
    store: FeatureStore, tmp_path: Path
) -> None:
    table = table_for(store, "parameters")
    model = run(store, table, "parameters", tmp_path / "run", permutations=0) / "model"
    write_npz(make_trains([[], [], [], [], [], []], 40_000), tmp_path / "silent.npz")
    one = predict(model, tmp_path / "silent.npz").recordings[0]
    assert np.isfinite(one.probabilities).all()
    assert one.unlike_training


@pytest.mark.parametrize("head", ["falkon", "mlp"])
def test_a_fused_model_measures_parameters_anew(
    head: str, made: Path, store: FeatureStore, tmp_path: Path
) -> None:
    table = table_for(store, head, ["histogram", "parameters"])
    few = {"epochs": 60, "learning_rate": 0.01} if head == "mlp" else {}
    out = run(
        store, table, head, tmp_path / "run", tune=False, permutations=0, fixed=few,
    )  # fmt: skip
    result = predict(out / "model", [made / f"r{k}.npz" for k in range(N_DEVICES + 1)])
    check(result, out / "model", table)
    write_npz(make_trains([[5]], 9_000), tmp_path / "short.npz")
    with pytest.raises(InputError, match="less than the model's windows of 10 s"):
        predict(out / "model", tmp_path / "short.npz")


def test_a_model_of_another_version_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    table = parameter_table(store, BurstFeatureParams())
    model = run(store, table, "parameters", tmp_path / "run", permutations=0) / "model"
    text = (model / "model.json").read_text()
    (model / "model.json").write_text(text.replace('"version": 1,', '"version": 9,'))
    with pytest.raises(InputError, match=r"model.json.*version 9, this toptune has version 1"):
        read_model(model)
