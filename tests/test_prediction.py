"""Prediction: what training saw is described alike, and what differs from it is told or refused."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_on_cpu import HostAccelerator
from results import read_csv
from small_data import CLASS_RATES_HZ, RAW, write_data_set, write_mcs

from toptune.backbones import loading as backbones
from toptune.backbones.engine import FeatureEngine
from toptune.backbones.loading import LoadedBackbone
from toptune.errors import InputError, InputErrors
from toptune.evaluation.folds import leave_one_group_out
from toptune.evaluation.scores import HeldOutWindows, score
from toptune.explanation import explain as why
from toptune.extraction import extract
from toptune.features.table import FeatureTable, join_tables
from toptune.heads import head_of
from toptune.machine import cuda
from toptune.machine.fingerprint import file_sha256
from toptune.params import Backbone, Compute, OpeningOptions, Picture, Windows
from toptune.prediction import predict
from toptune.recordings.mcs import McsRecording
from toptune.recordings.mcs_writer import McsChannel, McsStream, McsWriter
from toptune.recordings.spike_npz import write_npz
from toptune.recordings.trains import Spikes, SpikeTrains, WeightsSource
from toptune.runs.model import Model, read_model, trained_model, write_model
from toptune.runs.verdicts import Predictions
from toptune.spikes import streaming as detection
from toptune.spikes.streaming import detect_recording
from toptune.store.feature_store import FeatureStore, recording_name

SETS: tuple[dict[str, Any], ...] = (
    {"windows": Windows(width_s=3.0, stride_s=1.0), "picture": Picture(count_axis=8.0)},
    {"windows": Windows(width_s=2.0, stride_s=0.5), "picture": Picture(kind="raster")},
)
TINY = Backbone(name="tiny", weights="random", seed=3)
HEADS: dict[str, dict[str, Any]] = {
    "falkon": {"width": 0.3, "penalty": 1e-4},
    "mlp": {"epochs": 100, "learning_rate": 0.02, "batch_size": 12},
}


pytestmark = pytest.mark.usefixtures("one_torch_thread", "seeded_backbones")


@pytest.fixture(scope="module")
def seeded_backbones(tiny_backbones: None) -> Iterator[None]:
    """Tiny backbones, whose weights may also be a file that holds a seed."""
    del tiny_backbones
    seeded = backbones.load_backbone

    def load(params: Backbone) -> LoadedBackbone:
        if params.weights in ("random", "imagenet"):
            return seeded(params)
        path = Path(params.weights)
        made = seeded(replace(params, weights="random", seed=int(path.read_text())))
        return replace(made, weights_sha256=file_sha256(path))

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(backbones, "load_backbone", load)
        yield


def train(store: FeatureStore, table: FeatureTable, head: str, folder: Path) -> Path:
    """Do what fit does, without tuning."""
    label = np.array([table.recordings[row].label for row in table.recording])
    device = np.array([table.recordings[row].device for row in table.recording])
    params = HEADS[head] | {"view_sizes": table.view_sizes}
    estimator = head_of(head).make(params).fit(table.features, label)
    folds = leave_one_group_out(head_of(head).make(params), table.features, label, device)
    scores = score(
        HeldOutWindows(label, folds.predictions, folds.probabilities, device, device, folds.classes)
    )
    model = trained_model(
        head,
        estimator,
        table,
        store.training_facts(table),
        left_out=device,
        inverse_temperature=3.0,
        scores={
            "n_devices": len(scores.verdicts),
            "device_accuracy": scores.device_accuracy,
            "device_accuracy_ci95": list(scores.device_accuracy_ci95),
            "chance": scores.chance,
        },
    )
    write_model(folder, model)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings, a store with two feature sets, and models; look, do not touch."""
    folder = tmp_path_factory.mktemp("made")
    devices = write_data_set(folder)
    (folder / "weights.pth").write_text("11")
    for options in SETS:
        extract(devices, folder / "s.zarr", backbone=TINY, **options)
    from_file = replace(TINY, weights=str(folder / "weights.pth"))
    extract(devices, folder / "s.zarr", backbone=from_file, **SETS[0])
    store = FeatureStore(folder / "s.zarr")
    first, second, filed = (
        store.table(store.choose(w)) for w in ("histogram random", "raster", "weights.pth")
    )
    for head in HEADS:
        train(store, first, head, folder / head)
        train(store, join_tables([second, first]), head, folder / f"{head}-joined")
    train(store, filed, "falkon", folder / "filed")
    return folder


@pytest.fixture
def fresh(made: Path, tmp_path: Path) -> dict[str, Path]:
    """A recording of each class that training has not seen."""
    del made
    return {
        label: write_mcs(tmp_path / f"new-{label}.h5", seed=70 + k, rate_hz=rate_hz)
        for k, (label, rate_hz) in enumerate(CLASS_RATES_HZ.items())
    }


def trains_of(path: Path) -> SpikeTrains:
    with McsRecording(path) as recording:
        return detect_recording(recording).trains


def changed(folder: Path, to: Path, **changes: Any) -> Path:
    """Write a copy of a model with other parts."""
    write_model(to, replace(read_model(folder), **changes))
    return to


def check_verdicts(predictions: Predictions, model: Model) -> None:
    """Votes, ties and means by their definitions."""
    for one in predictions.recordings:
        named = [model.classes[row.argmax()] for row in one.scores]
        votes = Counter(named)
        tied = [c for c in model.classes if votes[c] == max(votes.values())]
        mean = dict(zip(model.classes, one.probabilities.mean(axis=0), strict=True))
        assert one.prediction == max(tied, key=lambda c: mean[c])
        assert one.probability == pytest.approx(mean[one.prediction])
        assert dict(zip(model.classes, one.votes, strict=True)) == {
            c: votes[c] for c in model.classes
        }


@pytest.mark.parametrize("head", ["falkon", "mlp"])
def test_training_recordings_are_described_exactly_as_in_training(head: str, made: Path) -> None:
    paths = [made / f"r{k}.h5" for k in range(6)]
    result = predict(made / head, paths)
    model = read_model(made / head)
    store = FeatureStore(made / "s.zarr")
    key = store.choose("histogram random").key
    assert [one.recording for one in result.recordings] == [str(p) for p in paths]
    for k, one in enumerate(result.recordings):
        features, start_s = store.read_features(recording_name(f"r{k}.h5"), key)
        np.testing.assert_array_equal(one.scores, model.class_scores(features))
        np.testing.assert_array_equal(one.probabilities, model.probabilities(features))
        np.testing.assert_array_equal(one.start_s, start_s)
        assert one.start_s.tolist() == [0, 1, 2, 3, 4, 5]
        assert not one.unlike_training
        assert one.warnings == (
            "the model was trained on this very recording: its verdict is no test of the model",
        )
        assert one.prediction == "ABCABC"[k]
    check_verdicts(result, model)


@pytest.mark.parametrize("head", ["falkon", "mlp"])
def test_several_views_are_joined_as_in_training_from_spikes_found_once(
    head: str, made: Path, detected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: list[object] = []
    real = FeatureEngine.__init__

    def counting(self: FeatureEngine, *args: Any, **kwargs: Any) -> None:
        engines.append(self)
        real(self, *args, **kwargs)

    monkeypatch.setattr(FeatureEngine, "__init__", counting)
    model = read_model(made / f"{head}-joined")
    store = FeatureStore(made / "s.zarr")
    table = join_tables([store.table(store.choose(w)) for w in ("raster", "histogram random")])
    result = predict(made / f"{head}-joined", [made / "r4.h5", made / "r2.h5"])
    assert detected == ["r4.h5", "r2.h5"]
    assert len(engines) == 1  # both views have the same backbone
    for one, name in zip(result.recordings, ("r4.h5", "r2.h5"), strict=True):
        names = [r.name for r in table.recordings]
        rows = table.recording == names.index(recording_name(name))
        np.testing.assert_array_equal(one.scores, model.class_scores(table.features[rows]))
        np.testing.assert_array_equal(one.start_s, table.start_s[rows])
        assert len(one.codes) == 6
    check_verdicts(result, model)


@pytest.mark.parametrize("model", ["falkon", "mlp", "falkon-joined", "filed"])
def test_new_recordings_are_named_by_their_class(
    model: str, made: Path, fresh: dict[str, Path]
) -> None:
    result = predict(made / model, list(fresh.values()))
    assert [one.prediction for one in result.recordings] == list(fresh)
    assert [one.warnings for one in result.recordings] == [()] * 3
    check_verdicts(result, read_model(made / model))


def write_peak_trains(trains: SpikeTrains, folder: Path) -> Path:
    folder.mkdir()
    for k, label in enumerate(trains.channel_labels):
        mine = trains.spikes.channel == k
        pairs = zip(
            trains.spikes.sample[mine] + 1, trains.spikes.peak_to_peak_uv[mine], strict=True
        )
        lines = [f"{trains.n_samples} 0", *(f"{at} {uv:.3f}" for at, uv in pairs)]
        (folder / f"ptrain_x_{label}.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_spike_csv(trains: SpikeTrains, path: Path) -> Path:
    rows = zip(trains.spikes.sample, trains.spikes.channel, strict=True)
    lines = [f"{at / trains.sampling_rate_hz:.4f},{trains.channel_labels[c]}" for at, c in rows]
    path.write_text("\n".join(["time_s,channel", *lines]) + "\n")
    return path


def test_spikes_of_every_kind_give_what_the_voltage_gives(
    made: Path, tmp_path: Path, detected: list[str]
) -> None:
    trains = trains_of(made / "r2.h5")
    assert trains.spikes.sample[-1] > 70_000  # so that a CSV, too, lasts 8 s
    write_npz(trains, tmp_path / "s.npz")
    paths = [
        made / "r2.h5",
        tmp_path / "s.npz",
        write_peak_trains(trains, tmp_path / "peaks"),
        write_spike_csv(trains, tmp_path / "s.csv"),
    ]
    # What files do not say of length and rate would be assumed, with a warning.
    opening = OpeningOptions(duration_s=8.0, sampling_rate_hz=10_000)
    voltage, *others = predict(made / "falkon-joined", paths, opening=opening).recordings
    assert detected == ["r2.h5"]
    for other in others:
        np.testing.assert_array_equal(other.scores, voltage.scores)
        np.testing.assert_array_equal(other.start_s, voltage.start_s)
        assert (other.prediction, other.warnings) == ("C", ())


# --- the folder


def test_a_prediction_is_published_as_a_folder_that_agrees_with_itself(
    made: Path, fresh: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "out"
    result = predict(made / "falkon", list(fresh.values()), out=out)
    assert sorted(p.name for p in out.iterdir()) == [
        "predictions.json", "report.html", "verdicts.csv", "windows.csv",
    ]  # fmt: skip
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    windows, verdicts = read_csv(out / "windows.csv"), read_csv(out / "verdicts.csv")
    assert list(windows[0]) == [
        "recording", "start_s", "prediction", "probability_A", "probability_B", "probability_C",
        "nearness", "unlike_training",
    ]  # fmt: skip
    assert len(windows) == 18
    for row in windows:
        shares = {c: float(row[f"probability_{c}"]) for c in "ABC"}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
        assert row["prediction"] == max(shares, key=lambda c: shares[c])
    for row, one in zip(verdicts, result.recordings, strict=True):
        mine = [w for w in windows if w["recording"] == row["recording"]]
        assert [float(w["start_s"]) for w in mine] == [0, 1, 2, 3, 4, 5]
        assert int(row["n_windows"]) == 6
        for c in "ABC":
            assert int(row[f"windows_{c}"]) == sum(w["prediction"] == c for w in mine)
            mean = np.mean([float(w[f"probability_{c}"]) for w in mine])
            assert float(row[f"probability_{c}"]) == pytest.approx(mean, abs=1e-4)
        assert row["prediction"] == one.prediction
        assert row["probability"] == row[f"probability_{one.prediction}"]
        n_unlike = sum(int(w["unlike_training"]) for w in mine)
        assert int(row["n_windows_unlike_training"]) == n_unlike
    written = json.loads((out / "predictions.json").read_text("utf-8"))
    # From which bytes, by which model: a reader can look them up.
    hashed = [hashlib.sha256(path.read_bytes()).hexdigest() for path in fresh.values()]
    assert [one["sha256"] for one in written["recordings"]] == hashed
    model = (made / "falkon" / "model.json").read_bytes()
    assert written["model_sha256"] == hashlib.sha256(model).hexdigest()
    assert written["packages"]["openvino"]
    assert written["kind"] == "toptune predictions"
    assert result.to_json().items() <= written.items()
    assert written["cross_validated"] == read_model(made / "falkon").scores


def test_a_verdict_stands_beside_how_often_the_model_was_right(made: Path) -> None:
    scores = {
        "n_devices": 30, "device_accuracy": 0.6, "device_accuracy_ci95": [0.42, 0.75],
        "chance": 0.2333,
    }  # fmt: skip
    result = predict(made / "falkon", made / "r0.h5")
    result = replace(result, cross_validated=scores)
    assert result.caution == (
        "cross-validated on 30 left-out devices: 0.600 right (95 % 0.42 - 0.75, chance 0.233);"
        " probabilities calibrated on those devices"
    )
    assert replace(result, calibrated=False).caution.endswith("probabilities NOT calibrated")


def test_only_predictions_are_replaced_and_only_when_told(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(made / "falkon", made / "r0.h5", out=out)
    with pytest.raises(InputError, match="exists; choose another name or give `overwrite=True`"):
        predict(made / "falkon", made / "r1.h5", out=out)
    predict(made / "falkon", made / "r1.h5", out=out, overwrite=True)
    assert {row["recording"] for row in read_csv(out / "windows.csv")} == {str(made / "r1.h5")}
    (tmp_path / "thesis").mkdir()
    with pytest.raises(InputError, match="is not a prediction of toptune"):
        predict(made / "falkon", made / "r1.h5", out=tmp_path / "thesis", overwrite=True)
    assert list((tmp_path / "thesis").iterdir()) == []


# --- what differs from training


def test_noise_without_spikes_is_unlike_training(made: Path, tmp_path: Path) -> None:
    silent = write_mcs(tmp_path / "silent.h5", seed=80, rate_hz=0.0)
    (one,) = predict(made / "falkon", silent).recordings
    assert one.unlike_training
    (rate,) = [w for w in one.warnings if w.startswith("mean firing rate 0 spikes/s per electrode")]
    assert "training had" in rate


def test_pictures_unlike_those_of_training_are_told_though_the_rate_is_known(
    made: Path, tmp_path: Path
) -> None:
    # 55 spikes a second and electrode, at most 1.5 times the busiest of training.
    rng = np.random.default_rng(5)
    n = 55 * 8 * 4
    trains = trains_of(made / "r1.h5")
    busy = Spikes(
        np.sort(rng.integers(0, 80_000, n)),
        rng.integers(0, 4, n, dtype=np.int32),
        np.full(n, 100, np.float32),
    )
    write_npz(replace(trains, spikes=busy), tmp_path / "busy.npz")
    (one,) = predict(made / "falkon", tmp_path / "busy.npz").recordings
    assert one.unlike_training
    assert one.novelty.unlike.all()
    (warning,) = one.warnings
    assert warning.startswith("6 of 6 windows are unlike any window of the training devices")


def resampled(trains: SpikeTrains, rate_hz: float, n_electrodes: int) -> SpikeTrains:
    """The same seconds at another rate, on the first electrodes alone."""
    keep = trains.spikes.channel < n_electrodes
    factor = rate_hz / trains.sampling_rate_hz
    segments = tuple(s._replace(n_samples=round(s.n_samples * factor)) for s in trains.segments)
    return SpikeTrains(
        spikes=Spikes(
            (trains.spikes.sample[keep] * factor).astype(np.int64),
            trains.spikes.channel[keep],
            trains.spikes.peak_to_peak_uv[keep],
        ),
        channel_labels=trains.channel_labels[:n_electrodes],
        sampling_rate_hz=rate_hz,
        segments=segments,
        threshold_uv=trains.threshold_uv[:n_electrodes],
    )


def test_another_rate_and_other_electrodes_are_warned_of_by_name(
    made: Path, tmp_path: Path
) -> None:
    trains = trains_of(made / "r1.h5")
    write_npz(resampled(trains, 20_000.0, 4), tmp_path / "fast.npz")
    write_npz(resampled(trains, 10_000.0, 3), tmp_path / "three.npz")
    same, fast, three = predict(
        made / "falkon", [made / "r1.h5", tmp_path / "fast.npz", tmp_path / "three.npz"]
    ).recordings
    np.testing.assert_array_equal(fast.scores, same.scores)  # the same bins, in seconds
    (warning,) = fast.warnings
    assert warning.startswith("sampled at 20000 Hz, training at 10000 Hz: windows are cut in")
    assert three.warnings[-1] == "3 electrodes, training had 4"


def test_dead_electrodes_are_told(made: Path, tmp_path: Path) -> None:
    channels = tuple(McsChannel(label=f"E{k}", channel_id=k) for k in range(4))
    data = np.random.default_rng(0).normal(0, 100, (4, 80_000)).astype(np.int32)
    data[2] = 7
    path = tmp_path / "dead.h5"
    with McsWriter(path, identity="dead") as writer:
        recording = writer.add_recording()
        stream = recording.add_stream(McsStream(label=RAW, channels=channels, tick_us=100))
        stream.write(data)
    (one,) = predict(made / "falkon", path).recordings
    assert one.warnings[0] == "dead channel: E2"


def write_slow(path: Path) -> Path:
    """Voltage at 500 Hz."""
    channels = tuple(McsChannel(label=f"E{k}", channel_id=k) for k in range(4))
    with McsWriter(path, identity=path.name) as writer:
        recording = writer.add_recording()
        stream = recording.add_stream(McsStream(label=RAW, channels=channels, tick_us=2000))
        stream.write(np.zeros((4, 5000), np.int32))
    return path


def bad_recordings(folder: Path) -> list[tuple[Path, str]]:
    """Recordings that cannot be predicted, and what is said of them."""
    (folder / "text.h5").write_text("a text")
    trains = trains_of(write_mcs(folder / "x.h5", seed=1, seconds=2.9))
    write_npz(trains, folder / "short.npz")
    return [
        (folder / "missing.h5", "missing.h5: no such file"),
        (folder / "text.h5", "text.h5: not a recording toptune knows"),
        (write_slow(folder / "slow.h5"), "300"),
        (folder / "x.h5", "x.h5 lasts 2.9 s without a gap, less than the model's windows of 3 s"),
        (folder / "short.npz", "short.npz lasts 2.9 s without a gap, less than"),
    ]


def test_what_cannot_be_predicted_is_told_at_once_before_any_work(
    made: Path, tmp_path: Path, detected: list[str]
) -> None:
    bad = bad_recordings(tmp_path)
    with pytest.raises(InputErrors) as refused:
        predict(made / "falkon", [made / "r0.h5", *(p for p, _ in bad)], out=tmp_path / "out")
    # How long spikes last is known when they are read.
    for problem, (_, message) in zip(refused.value.problems, bad[:-1], strict=True):
        assert message in problem
    assert detected == []
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=bad[-1][1]):
        predict(made / "falkon", [made / "r0.h5", bad[-1][0]], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_keep_going_lists_what_fails_and_predicts_the_rest(made: Path, tmp_path: Path) -> None:
    bad = bad_recordings(tmp_path)
    paths = [bad[4][0], made / "r0.h5", *(p for p, _ in bad[:4]), made / "r1.h5"]
    result = predict(made / "falkon", paths, out=tmp_path / "out", keep_going=True)
    assert [one.recording for one in result.recordings] == [
        str(made / "r0.h5"),
        str(made / "r1.h5"),
    ]
    listed = read_csv(tmp_path / "out" / "failures.csv")
    assert [row["recording"] for row in listed] == [str(bad[4][0]), *(str(p) for p, _ in bad[:4])]
    for row, message in zip(listed, (bad[4][1], *(m for _, m in bad[:4])), strict=True):
        assert message in row["cause"]
    assert [f["recording"] for f in result.to_json()["failed"]] == [r["recording"] for r in listed]


@pytest.mark.parametrize("other", ["", "../made/"])
def test_no_recording_or_one_twice_is_refused(made: Path, other: str) -> None:
    with pytest.raises(InputError, match="there is no recording to predict"):
        predict(made / "falkon", [])
    twice = made / "sub" / ".." / "r0.h5" if other else made / "r0.h5"
    with pytest.raises(InputError, match="named twice"):
        predict(made / "falkon", [made / "r0.h5", twice])


def test_half_precision_is_refused_without_units_for_it(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toptune.backbones.engine.half_of_processor", lambda: None)
    with pytest.raises(InputError, match='`precision="half"`: this processor has no units'):
        predict(made / "mlp", made / "r0.h5", compute=Compute(device="cpu", precision="half"))


def test_a_stream_can_be_named_where_recordings_have_several(made: Path, tmp_path: Path) -> None:
    several = write_mcs(tmp_path / "two.h5", seed=1, rate_hz=10.0, streams=2)
    with pytest.raises(InputError, match=r"two\.h5"):
        predict(made / "falkon", several)
    opening = OpeningOptions(stream=RAW.replace("(1)", "(2)"))
    (one,) = predict(made / "falkon", several, opening=opening).recordings
    assert one.prediction == "B"


# --- weights


def sha(path: Path) -> str:
    return file_sha256(path)[:16]


def test_weights_are_taken_from_where_they_were_or_where_told(made: Path, tmp_path: Path) -> None:
    source = read_model(made / "filed").views[0].weights
    assert source == WeightsSource(path=str((made / "weights.pth").resolve()))
    (expected,) = predict(made / "filed", made / "r0.h5").recordings
    gone = (WeightsSource(path=str(tmp_path / "gone.pth")),)
    for k, weights in enumerate((gone, (None,))):
        moved = changed(made / "filed", tmp_path / f"moved{k}", weights=weights)
        place = "an unknown place" if k else "gone.pth"
        with pytest.raises(InputError, match=rf"weights.pth weights \(sha256 .*{place}.*`weights`"):
            predict(moved, made / "r0.h5")
        other_name = tmp_path / "other_name.pth"
        other_name.write_text("11")
        given: tuple[Any, ...] = (other_name, str(other_name), [other_name])
        for form in given:
            (one,) = predict(moved, made / "r0.h5", weights=form).recordings
            np.testing.assert_array_equal(one.scores, expected.scores)


def test_other_weights_are_refused_naming_both(made: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pth"
    wrong.write_text("12")
    right = sha(made / "weights.pth")
    with pytest.raises(InputErrors) as refused:
        predict(made / "filed", made / "r0.h5", weights=[wrong, tmp_path / "none.pth"])
    first, second = refused.value.problems
    assert sha(wrong) in first
    assert right in first
    assert "tiny with weights.pth weights" in first
    assert "none.pth does not exist" in second
    # The file changed where it lies.
    altered = changed(
        made / "filed", tmp_path / "altered", weights=(WeightsSource(path=str(wrong)),)
    )
    with pytest.raises(InputError) as error:
        predict(altered, made / "r0.h5")
    assert sha(wrong) in str(error.value)
    assert right in str(error.value)


def test_random_weights_are_drawn_by_their_seed_or_refused(made: Path, tmp_path: Path) -> None:
    assert read_model(made / "falkon").views[0].weights == WeightsSource(seed=3)
    unknown = changed(made / "falkon", tmp_path / "unknown", weights=(None,))
    with pytest.raises(InputError, match="does not know the seed of tiny"):
        predict(unknown, made / "r0.h5")
    other = changed(made / "falkon", tmp_path / "other", weights=(WeightsSource(seed=4),))
    with pytest.raises(InputError, match=r"needs tiny with random weights .* is now sha256"):
        predict(other, made / "r0.h5")


def test_another_normalisation_of_the_same_weights_is_refused(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded = backbones.load_backbone
    monkeypatch.setattr(
        backbones, "load_backbone", lambda p: replace(seeded(p), std=(0.2, 0.2, 0.2))
    )
    with pytest.raises(InputError, match=r"tiny is here used with std \(0.2, 0.2, 0.2\), in train"):
        predict(made / "falkon", made / "r0.h5")


class Watch:
    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def recording(self, number: int, total: int, name: str) -> None:
        self.seen.append((number, total, Path(name).name))

    def stage(self, name: str, done: int, total: int) -> None:
        self.seen.append((name, done, total))


def test_progress_is_told(made: Path) -> None:
    watch = Watch()
    paths = [made / "r0.h5", made / "r1.h5"]
    predict(made / "falkon", paths, progress=watch)
    assert [s for s in watch.seen if isinstance(s[0], int)] == [(1, 2, "r0.h5"), (2, 2, "r1.h5")]
    assert ("spikes", 80_000, 80_000) in watch.seen
    assert ("features", 6, 6) in watch.seen


@pytest.fixture
def host_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostAccelerator:
    """A GPU whose kernels run on the processor; torch stays there, so that spikes alone use it."""
    device = HostAccelerator(tmp_path)
    monkeypatch.setattr(cuda, "open_cuda", lambda: device)
    monkeypatch.setattr("toptune.machine.device.torch_device", lambda _: "cpu")
    return device


def test_predict_finds_spikes_on_the_device_that_is_asked_for(
    made: Path, tmp_path: Path, host_gpu: HostAccelerator
) -> None:
    path = write_mcs(tmp_path / "new.h5", seed=77)
    on_cpu = predict(made / "falkon", path, compute=Compute(device="cpu")).recordings[0]
    assert not host_gpu.launched
    on_gpu = predict(made / "falkon", path, compute=Compute(device="cuda")).recordings[0]
    assert "ptsd_evaluate" in host_gpu.launched
    np.testing.assert_array_equal(on_gpu.scores, on_cpu.scores)


def test_why_finds_spikes_on_the_device_that_is_asked_for(
    made: Path, tmp_path: Path, host_gpu: HostAccelerator
) -> None:
    path = write_mcs(tmp_path / "new.h5", seed=77)
    (on_cpu,) = why(made / "falkon", path, tmp_path / "a", compute=Compute(device="cpu"))
    assert not host_gpu.launched
    (on_gpu,) = why(made / "falkon", path, tmp_path / "b", compute=Compute(device="cuda"))
    assert "ptsd_evaluate" in host_gpu.launched
    np.testing.assert_array_equal(on_gpu.probability, on_cpu.probability)


def test_why_refuses_bad_recordings_all_at_once_before_any_work(
    made: Path, tmp_path: Path, detected: list[str]
) -> None:
    bad = bad_recordings(tmp_path)[:-1]
    with pytest.raises(InputErrors) as refused:
        why(made / "falkon", [made / "r0.h5", *(p for p, _ in bad)], tmp_path / "out")
    assert len(refused.value.problems) == len(bad)
    assert detected == []
    assert not (tmp_path / "out").exists()


def test_keep_going_outlives_errors_nobody_foresaw(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(recording: McsRecording, *args: Any, **kwargs: Any) -> Any:
        if recording.path.name == "r0.h5":
            raise IndexError("nobody thought of this")
        return detect_recording(recording, *args, **kwargs)

    monkeypatch.setattr(detection, "detect_recording", failing)
    result = predict(made / "falkon", [made / "r0.h5", made / "r1.h5"], keep_going=True)
    assert [one.recording for one in result.recordings] == [str(made / "r1.h5")]
    ((name, cause),) = result.failed
    assert name == str(made / "r0.h5")
    assert "failed unexpectedly (IndexError: nobody thought of this)" in cause
