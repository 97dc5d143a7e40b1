"""Live verdicts are those of `predict`, and come one by one from a source of any chunking."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_recording import ArrayRecording
from hypothesis import given, settings
from hypothesis import strategies as st
from live_cases import ArraySource, cut, voltage
from numpy.typing import NDArray
from small_data import CLASS_RATES_HZ, write_data_set, write_mcs

from toptune.errors import InputError
from toptune.extraction import extract
from toptune.features.burst_features import BurstFeatureParams
from toptune.features.electrodes import Float32
from toptune.features.table import FeatureTable
from toptune.heads.falkon.classifier import FalkonClassifier
from toptune.live import (
    Block,
    Calibration,
    CalibrationProgress,
    LiveSession,
    LiveVerdict,
    Note,
    stream,
)
from toptune.params import Backbone, Compute, Picture, Windows
from toptune.prediction import predict
from toptune.recordings.mcs import McsRecording
from toptune.recordings.trains import Segment
from toptune.runs.model import read_model, trained_model, write_model
from toptune.runs.predictor import FoundRecording, JudgedWindows, Predictor
from toptune.runs.verdicts import RecordingPrediction
from toptune.spikes.streaming import detect_recording
from toptune.store.feature_store import FeatureStore
from toptune.store.tables import table_for

pytestmark = pytest.mark.usefixtures("one_torch_thread", "tiny_backbones")

TINY = Backbone(name="tiny", weights="random", seed=3)
ONE_THREAD = Compute(device="cpu", n_jobs=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, and models: of one picture, and of three views; look, do not touch."""
    folder = tmp_path_factory.mktemp("made")
    devices = write_data_set(folder)
    for windows, picture in (
        (Windows(width_s=3, stride_s=1), Picture()),
        (Windows(width_s=2, stride_s=0.5), Picture(kind="raster")),
    ):
        extract(devices, folder / "s.zarr", backbone=TINY, windows=windows, picture=picture)
    store = FeatureStore(folder / "s.zarr")
    train(store, table_for(store, "falkon", ["histogram"]), folder / "one")
    three = table_for(store, "falkon", ["histogram", "raster", "parameters"])
    train(store, three, folder / "three")
    return folder


def train(store: FeatureStore, table: FeatureTable, folder: Path) -> None:
    """Write a model, as a fit does, but for its scores."""
    label = np.array([table.recordings[row].label for row in table.recording])
    device = np.array([table.recordings[row].device for row in table.recording])
    estimator = FalkonClassifier(width=0.3, penalty=1e-4, view_sizes=table.view_sizes)
    scores = {"n_devices": 6, "device_accuracy": 1.0, "device_accuracy_ci95": [0.6, 1.0]}
    model = trained_model(
        "falkon",
        estimator.fit(table.features, label),
        table,
        store.training_facts(table),
        left_out=device,
        scores=scores | {"chance": 0.33},
        inverse_temperature=3.0,
    )
    write_model(folder, model)


def changed(folder: Path, to: Path, **params: Any) -> Path:
    """Write a copy of a model whose only view has other parameters."""
    model = read_model(folder)
    (view,) = model.provenance["views"]
    views = [{**view, "params": params or view["params"]}]
    write_model(to, replace(model, provenance={**model.provenance, "views": views}))
    return to


class Watched:
    """Features that were judged."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.features: list[Float32] = []
        real = Predictor.judge

        def judge(predictor: Predictor, features: NDArray[np.float32]) -> JudgedWindows:
            self.features.append(features)
            return real(predictor, features)

        monkeypatch.setattr(Predictor, "judge", judge)

    def taken(self) -> Float32:
        """Give all rows so far, and forget them."""
        rows, self.features = np.concatenate(self.features), []
        return rows


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def check_equal(live: RecordingPrediction, whole: RecordingPrediction) -> None:
    for name in ("start_s", "scores", "probabilities", "codes", "votes", "mean_probabilities"):
        np.testing.assert_array_equal(getattr(live, name), getattr(whole, name), name)
    assert live.code == whole.code
    np.testing.assert_array_equal(live.novelty.nearness, whole.novelty.nearness)
    np.testing.assert_array_equal(live.novelty.unlike, whole.novelty.unlike)
    assert live.novelty.warnings == whole.novelty.warnings
    assert live.unlike_training == whole.unlike_training
    assert live.facts.n_spikes == whole.facts.n_spikes
    assert live.facts.duration_s == whole.facts.duration_s


@pytest.mark.parametrize("run", ["one", "three"])
def test_a_replayed_file_has_the_verdicts_of_predict(
    run: str, made: Path, tmp_path: Path, watched: Watched
) -> None:
    path = write_mcs(tmp_path / "new.h5", seed=70, rate_hz=CLASS_RATES_HZ["B"])
    (whole,) = predict(made / run, path).recordings
    expected = watched.taken()
    learnt = Calibration.of_recording(path, read_model(made / run).spikes)
    verdicts: list[LiveVerdict] = []
    result = stream(made / run, path, speed="max", calibration=learnt, on_verdict=verdicts.append)
    (live,) = result.recordings
    np.testing.assert_array_equal(watched.taken()[1:], expected)  # the first warmed up
    check_equal(live, whole)
    assert [v.start_s for v in verdicts] == whole.start_s.tolist()
    assert [v.stop_s for v in verdicts] == (whole.start_s + 3).tolist()
    last = verdicts[-1]
    assert last.recording_prediction == whole.prediction
    np.testing.assert_array_equal(last.votes, whole.votes)
    trains = detect_recording(McsRecording(path)).trains
    assert last.n_spikes == len(trains.spikes.sample)
    seconds = trains.spikes.sample / 1e4
    for v in verdicts:
        assert v.counts.sum() == np.count_nonzero((seconds >= v.start_s) & (seconds < v.stop_s))
        assert (v.prediction, v.probability) == (v.classes[v.code], v.probabilities.max())
        assert 0 < v.latency_s < 60
        assert v.n_dropped == 0


lengths_of_blocks = st.lists(
    st.sampled_from([1, 40, 128, 900, 5000, 30_000]), min_size=1, max_size=4
).filter(lambda lengths: sum(lengths) / len(lengths) > 300)


@pytest.mark.parametrize("run", ["one", "three"])
@settings(max_examples=8)
@given(lengths_of_blocks, st.lists(st.floats(0, 1), max_size=2), st.floats(0, 4), st.integers(0, 9))
def test_any_blocks_with_gaps_have_the_features_of_the_whole(
    run: str, made: Path, lengths: list[int], parts: list[float], gap_s: float, seed: int
) -> None:
    x = voltage(seed, 110_000)
    segments = cut(110_000, parts, [gap_s])
    model = read_model(made / run)
    whole = detect_recording(
        ArrayRecording(x, 1e4, segments), model.spikes.highpass, model.spikes.ptsd
    )
    predictor = Predictor(model, compute=ONE_THREAD)
    expected = predictor.features(FoundRecording.of("x", whole.trains))
    learnt = Calibration(
        channel_labels=whole.trains.channel_labels,
        threshold_uv=whole.noise.threshold_uv,
        mean_uv=whole.mean_uv,
        dead=whole.noise.dead,
        noisy=whole.noise.noisy,
        span_s=11.0,
    )
    source = ArraySource(x, 1e4, lengths, segments)
    with pytest.MonkeyPatch.context() as monkeypatch:
        judged = Watched(monkeypatch)
        with LiveSession(made / run, source, calibration=learnt, compute=ONE_THREAD) as session:
            judged.taken()
            verdicts = [e for e in session.events() if isinstance(e, LiveVerdict)]
        np.testing.assert_array_equal(judged.taken(), expected.features)
    assert [v.start_s for v in verdicts] == expected.start_s.tolist()
    (live,) = session.result().recordings
    check_equal(live, predictor.predict(FoundRecording.of("x", whole.trains)))
    assert source.closed


def test_thresholds_are_learnt_first_and_then_stay(made: Path) -> None:
    x = voltage(3, 80_000)
    source = ArraySource(x, 1e4, [500])
    with LiveSession(made / "one", source, calibration_s=2, compute=ONE_THREAD) as session:
        events = list(session.events())
    kinds = [type(e) for e in events]
    told = [e for e in events if isinstance(e, CalibrationProgress)]
    assert [round(e.done_s, 3) for e in told] == [0.05, 1.0, 2.0]
    assert {e.span_s for e in told} == {2.0}
    assert [e.calibration is None for e in told] == [True, True, False]
    assert told[-1].calibration is session.calibration
    assert kinds.index(LiveVerdict) > kinds.index(CalibrationProgress)
    assert kinds.count(LiveVerdict) == 6
    (result,) = session.result().recordings
    assert "dead channel: 3" in result.warnings


def test_a_loop_over_verdicts_goes_at_the_reader_s_pace_and_closes_the_source(made: Path) -> None:
    source = ArraySource(voltage(3, 80_000), 1e4, [1000])
    notes: list[Note] = []
    starts = []
    for verdict in stream(made / "one", source, calibration_s=1, stride_s=2, on_note=notes.append):
        starts.append(verdict.start_s)
        assert verdict.votes.sum() == len(starts)
        if len(starts) == 2:
            break
    assert starts == [0.0, 2.0]
    assert notes == []


def test_a_lost_stretch_is_counted_and_windows_begin_anew(made: Path) -> None:
    x = voltage(3, 80_000)
    segments = (Segment(0, 35_000, 0.0), Segment(35_000, 45_000, 5.0))
    source = ArraySource(x, 1e4, [1000], segments)
    with LiveSession(made / "one", source, calibration_s=1, compute=ONE_THREAD) as session:
        verdicts = [e for e in session.events() if isinstance(e, LiveVerdict)]
    assert [v.start_s for v in verdicts] == [0.0, 5.0, 6.0]
    assert [v.n_dropped for v in verdicts] == [0, 15_000, 15_000]
    (result,) = session.result().recordings
    assert result.warnings[1] == "15000 samples (1.5 s) were lost in gaps"
    assert result.facts.duration_s == 8.0


class Scripted(ArraySource):
    """A source that gives what it is told to."""

    def __init__(self, *items: Any) -> None:
        super().__init__(voltage(3, 10), 1e4)
        self.items = items

    def read(self) -> Any:
        """Give it."""
        return iter(self.items)


def block(first: int, samples: Any) -> Block:
    return Block(first_sample=first, samples=samples, received_s=0.0)


def test_samples_that_are_no_voltage_are_a_gap(made: Path) -> None:
    x = voltage(3, 70_000)
    bad = x[:, 35_000:36_000].copy()
    bad[1, 7] = np.nan
    source = Scripted(block(0, x[:, :35_000]), block(35_000, bad), block(36_000, x[:, 36_000:]))
    with LiveSession(made / "one", source, calibration_s=1, compute=ONE_THREAD) as session:
        events = list(session.events())
    (note,) = [e for e in events if isinstance(e, Note)]
    assert (note.kind, note.at_s, note.n_samples) == ("gap", 3.5, 1000)
    verdicts = [e for e in events if isinstance(e, LiveVerdict)]
    assert [v.start_s for v in verdicts] == [0.0, 3.6]
    assert verdicts[-1].n_dropped == 1000


def test_a_source_that_breaks_its_word_is_refused(made: Path) -> None:
    x = voltage(3, 4_000)
    for items, message in (
        ((block(0, x), block(3_999, x)), "sample 3999 came again"),
        ((block(0, x[:2]),), "a block of 2 channels"),
    ):
        with (
            LiveSession(made / "one", Scripted(*items), compute=ONE_THREAD) as session,
            pytest.raises(InputError, match=message),
        ):
            list(session.events())


def test_a_source_too_short_for_a_window_has_no_verdict(made: Path) -> None:
    source = ArraySource(voltage(3, 20_000), 1e4, [1000])
    result = stream(made / "one", source, on_verdict=print)
    assert result.recordings == ()
    assert result.failed == (("<memory>", "no window of 3 s without a gap in 2.0 s"),)


def test_a_model_that_needs_the_whole_recording_is_refused(made: Path, tmp_path: Path) -> None:
    params = read_model(made / "one").provenance["views"][0]["params"]
    picture = Picture(count_axis="recording").to_json()
    axis = changed(made / "one", tmp_path / "axis", **{**params, "picture": picture})
    whole = changed(made / "one", tmp_path / "whole", **BurstFeatureParams().to_json())
    for model, message in ((axis, "count_axis='recording'"), (whole, "judges whole recordings")):
        source = ArraySource(voltage(3, 20_000), 1e4)
        with pytest.raises(InputError, match=message):
            stream(model, source)
        assert source.closed


def test_a_recording_unlike_training_is_flagged_while_it_goes_on(made: Path) -> None:
    quiet = np.random.default_rng(1).normal(0, 5, (4, 60_000)).astype(np.float32)
    source = ArraySource(quiet, 1e4, [1000])
    verdicts = list(stream(made / "one", source, calibration_s=1))
    assert all(v.unlike_training for v in verdicts)
    assert any("mean firing rate" in w for w in verdicts[0].warnings)


class Hour(ArraySource):
    """An hour of the same ten seconds at 1 kHz, again and again."""

    def read(self) -> Iterator[Block | Note]:
        """Give it in blocks of ten seconds, with a gap of ten seconds every ten minutes."""
        for k in range(360):
            if k % 60:
                yield block(k * 10_000, self.samples_uv)


def test_an_hour_is_watched_in_the_memory_of_its_first_minutes(made: Path) -> None:
    source = Hour(voltage(3, 10_000), 1e3)
    session = LiveSession(made / "three", source, calibration_s=5, stride_s=20, compute=ONE_THREAD)
    with session:
        sizes = [held(session) for event in session.events() if isinstance(event, LiveVerdict)]
    assert len(sizes) == 6 * 30
    # What is held comes and goes with blocks and gaps; an hour has no more of it than ten minutes.
    assert max(sizes[30:]) <= max(sizes[:30])
    assert max(sizes) < 500


class Broken(ArraySource):
    """Voltage with a gap after every second, in which no window of three seconds fits."""

    def read(self) -> Iterator[Block | Note]:
        """Give it in blocks of a tenth of a second."""
        for k in range(600):
            yield block(k * 100 + k // 10 * 50, self.samples_uv)


def test_a_source_without_any_window_is_watched_in_little_memory(made: Path) -> None:
    source = Broken(voltage(3, 100), 1e3)
    with LiveSession(made / "three", source, calibration_s=5, compute=ONE_THREAD) as session:
        sizes = [held(session) for _ in session.events()]
        assert held(session) < 30
    assert len(sizes) == 6
    assert session.result().recordings == ()


def held(session: LiveSession) -> int:
    """Count the spikes, windows and blocks that a session holds, and tens of samples."""
    judge, walk = session._judge, session._detector._walk
    spikes = sum(
        len(s._spikes.sample) + sum(len(n.sample) for n in s._new)
        for s in judge.windows._stretches.values()
    )
    waiting = sum(len(v.waiting) for v in judge.windows._views) + len(judge._arrived)
    return spikes + waiting + (0 if walk is None else walk._held.size // 1000)
