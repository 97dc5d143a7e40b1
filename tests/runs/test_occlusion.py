"""Occlusion over time: as a plain loop would do it, and pointing to what is known to matter."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from results import Run, read_csv, read_json
from small_data import write_data_set

from toptune.errors import InputError
from toptune.extraction import extract
from toptune.features.extractor import FeatureExtractor
from toptune.features.picture_features import PictureExtractor
from toptune.params import Backbone, Compute, FitOptions, Picture, Windows
from toptune.recordings.spike_npz import write_npz
from toptune.recordings.trains import Segment, Spikes, SpikeTrains, sort_spikes
from toptune.reports.page import Text
from toptune.reports.why import draw_explanation, why_page
from toptune.runs.model import read_model
from toptune.runs.occlusion import (
    Explanation,
    Occlusion,
    _stretches,
    explain,
    group_by_rate,
    importance,
    spread,
)
from toptune.runs.predictor import FoundRecording, Predictor
from toptune.store.feature_store import FeatureStore
from toptune.store.tables import table_for
from toptune.training import fit

TINY = Backbone(name="tiny", weights="random", seed=3)
CPU = Compute(device="cpu", n_jobs=1)
RATE_HZ = 10_000.0

pytestmark = pytest.mark.usefixtures("one_torch_thread", "tiny_backbones")


# --- as a plain loop


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and a model of three views of other widths and kinds; look, do not touch."""
    folder = tmp_path_factory.mktemp("fused")
    devices = write_data_set(folder)
    sets: tuple[dict[str, Any], ...] = (
        {"windows": Windows(width_s=3.0, stride_s=1.0), "picture": Picture(count_axis="recording")},
        {"windows": Windows(width_s=2.0, stride_s=0.5), "picture": Picture(kind="raster")},
    )
    for options in sets:
        extract(devices, folder / "s.zarr", backbone=TINY, **options)
    store = FeatureStore(folder / "s.zarr")
    table = table_for(store, "falkon", ("histogram", "raster", "parameters 2 s every 0.5 s"))
    facts = store.training_facts(table)
    fitting = FitOptions(head="falkon", tune=False, permutations=0)
    fit(table, fitting, folder / "run", facts=facts)
    return folder


def silenced(trains: SpikeTrains, begin_s: float, end_s: float) -> SpikeTrains:
    """Take the spikes out, one after the other."""
    s = trains.spikes
    kept = [
        i for i, sample in enumerate(s.sample.tolist())
        if not round(begin_s * 100) <= sample // 100 < round(end_s * 100)
    ]  # fmt: skip
    return SpikeTrains(
        spikes=Spikes(s.sample[kept], s.channel[kept], s.peak_to_peak_uv[kept]),
        channel_labels=trains.channel_labels,
        sampling_rate_hz=trains.sampling_rate_hz,
        segments=trains.segments,
        threshold_uv=trains.threshold_uv,
    )


def keep(trains: SpikeTrains, kept: Any) -> SpikeTrains:
    """Keep some of the spikes."""
    s = trains.spikes
    left = Spikes(s.sample[kept], s.channel[kept], s.peak_to_peak_uv[kept])
    return replace(trains, spikes=left)


def on_axis(extractor: FeatureExtractor, trains: SpikeTrains) -> FeatureExtractor:
    """The count axis of the whole recording, as a number."""
    if not isinstance(extractor, PictureExtractor) or extractor.picture.kind == "raster":
        return extractor
    top = float(np.bincount(trains.spikes.sample // 100).max())
    return PictureExtractor(extractor.windows, Picture(count_axis=top), extractor.engine)


def test_occlusion_equals_silencing_redrawing_and_predicting_one_by_one(fused: Path) -> None:
    store = FeatureStore(fused / "s.zarr")
    trains = store.read_spikes(store.recordings[1].name)
    predictor = Predictor(read_model(fused / "run" / "model"), compute=CPU)
    code = 1
    got = explain(
        predictor, FoundRecording.of("r", trains), of_class=predictor.model.classes[code],
        occlusion=Occlusion(stretch_s=0.8, step_s=0.7),
    )  # fmt: skip
    np.testing.assert_allclose(got.offset_s, [0, 0.7, 1.4, 2.1, 2.2])
    # Tiles of 3 s from the start, the last window, and the surest.
    assert {0.0, 3.0, 5.0} <= set(got.start_s.tolist())
    naive = Predictor(read_model(fused / "run" / "model"), compute=CPU)
    naive.extractors = tuple(on_axis(e, trains) for e in naive.extractors)
    whole = predictor.model.probabilities(naive.features(FoundRecording.of("r", trains)).features)
    np.testing.assert_allclose(got.prediction.probabilities, whole, atol=1e-5)
    for i, row in enumerate(got.rows.tolist()):
        for j, offset in enumerate(got.offset_s.tolist()):
            begin = got.prediction.start_s[row] + offset
            blanked = silenced(trains, begin, begin + 0.8)
            features = naive.features(FoundRecording.of("r", blanked)).features[[row]]
            expected = predictor.model.probabilities(features)[0, code]
            assert got.probability[i, j] == pytest.approx(expected, abs=1e-5)
            assert got.drop[i, j] == pytest.approx(whole[row, code] - expected, abs=2e-5)
            score = predictor.model.class_scores(features)[0, code]
            assert got.score[i, j] == pytest.approx(score, abs=1e-4)
    # Something did matter; probabilities this sure hardly move, but scores do.
    assert np.abs(got.score_drop).max() > 0.05


def test_leaving_out_electrodes_equals_removing_them_redrawing_and_predicting_one_by_one(
    fused: Path,
) -> None:
    store = FeatureStore(fused / "s.zarr")
    trains = store.read_spikes(store.recordings[2].name)
    # One electrode is silent.
    trains = keep(trains, trains.spikes.channel != 1)
    predictor = Predictor(read_model(fused / "run" / "model"), compute=CPU)
    got = explain(
        predictor, FoundRecording.of("r", trains), occlusion=Occlusion(electrode_windows=2)
    )
    electrodes = got.electrodes
    assert electrodes is not None
    assert electrodes.group.tolist() == [0, -1, 1, 2]
    assert (len(electrodes.rows), electrodes.in_groups) == (2, False)
    assert got.rows[got.strongest] in electrodes.rows
    naive = Predictor(read_model(fused / "run" / "model"), compute=CPU)
    naive.extractors = tuple(on_axis(e, trains) for e in naive.extractors)
    model, code = predictor.model, got.code
    whole = naive.features(FoundRecording.of("r", trains)).features[electrodes.rows]
    for electrode in range(4):
        without = keep(trains, trains.spikes.channel != electrode)
        features = naive.features(FoundRecording.of("r", without)).features[electrodes.rows]
        drop = model.probabilities(whole)[:, code] - model.probabilities(features)[:, code]
        np.testing.assert_allclose(electrodes.drop[:, electrode], drop, atol=2e-5)
        score = model.class_scores(whole)[:, code] - model.class_scores(features)[:, code]
        np.testing.assert_allclose(electrodes.score_drop[:, electrode], score, atol=2e-4)
    for k, start_s in enumerate(got.prediction.start_s[electrodes.rows].tolist()):
        time_s = trains.spikes.sample / RATE_HZ
        inside = (time_s >= start_s) & (time_s < start_s + 3.0)
        counts = np.bincount(trains.spikes.channel[inside], minlength=4)
        np.testing.assert_array_equal(electrodes.n_spikes[k], counts)
    assert np.abs(electrodes.score_drop).max() > 0.05
    none = explain(
        predictor, FoundRecording.of("r", trains), occlusion=Occlusion(electrode_windows=0)
    )
    assert none.electrodes is None


def test_many_electrodes_are_left_out_in_groups_and_the_page_says_so(
    bursts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toptune.runs.occlusion._GROUPS", 3)
    trains = burst_trains(77, 3.0)
    predictor = Predictor(read_model(bursts / "run" / "model"), compute=CPU)
    got = explain(predictor, FoundRecording.of("r", trains))
    electrodes = got.electrodes
    assert electrodes is not None
    assert electrodes.in_groups
    assert sorted(set(electrodes.group.tolist())) == [0, 1, 2]
    model, code = predictor.model, got.code
    whole = got.prediction.scores[electrodes.rows, code]
    for number in range(3):
        members = np.flatnonzero(electrodes.group == number)
        without = keep(trains, ~np.isin(trains.spikes.channel, members))
        features = predictor.features(FoundRecording.of("r", without)).features[electrodes.rows]
        expected = whole - model.class_scores(features)[:, code]
        for k in members:
            np.testing.assert_allclose(electrodes.score_drop[:, k], expected, atol=2e-4)
    page = why_page("run", [draw_explanation(predictor, trains, got)])
    texts = [b.text for b in page.sections[0].blocks if isinstance(b, Text)]
    assert any(text.startswith("There are too many electrodes") for text in texts)


def test_gaps_without_spikes_are_not_judged_again(
    bursts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trains = burst_trains(77, 3.0)
    trains = keep(trains, trains.spikes.sample < 35_000)
    predictor = Predictor(read_model(bursts / "run" / "model"), compute=CPU)
    (extractor,) = predictor.extractors
    asked: list[int] = []
    real = extractor.extract_variants

    def counting(of: SpikeTrains, variants: Any, n_rows: int) -> Any:
        asked.append(n_rows)
        return real(of, variants, n_rows)

    monkeypatch.setattr(extractor, "extract_variants", counting)
    wanted = Occlusion(stretch_s=0.5, step_s=0.5, electrode_windows=0)
    got = explain(predictor, FoundRecording.of("r", trains), occlusion=wanted)
    silent = got.start_s[:, None] + got.offset_s >= 3.5
    assert got.n_silent == silent.sum() > 0
    assert asked == [silent.size - got.n_silent]
    np.testing.assert_array_equal(got.drop[silent], 0)
    np.testing.assert_array_equal(got.score_drop[silent], 0)
    assert np.abs(got.drop[~silent]).max() > 0.1


@pytest.mark.parametrize("of_class", ["burst", "quiet"])
def test_leaving_out_the_electrode_that_bursts_alone_points_to_it(
    bursts: Path, of_class: str
) -> None:
    trains = burst_trains(77, 3.0)
    # All spikes of the burst come from electrode 5, and the others' are moved away.
    inside = (trains.spikes.sample >= 30_000) & (trains.spikes.sample < 31_000)
    channel = np.where(inside, 5, trains.spikes.channel).astype(np.int32)
    moved = replace(trains, spikes=trains.spikes._replace(channel=channel))
    predictor = Predictor(read_model(bursts / "run" / "model"), compute=CPU)
    got = explain(predictor, FoundRecording.of("r", moved), of_class=of_class)
    electrodes = got.electrodes
    assert electrodes is not None
    score = electrodes.score_drop.mean(axis=0)
    assert np.abs(score).argmax() == 5
    assert (score[5] > 0) == (of_class == "burst")


# --- a planted truth


def burst_trains(seed: int, burst_s: float | None) -> SpikeTrains:
    """Six seconds of lone spikes on 8 electrodes, and one burst of all of them where wanted."""
    rng = np.random.default_rng(seed)
    sample = rng.integers(0, 60_000, 240)
    channel = rng.integers(0, 8, 240)
    if burst_s is not None:
        first = round(burst_s * RATE_HZ)
        sample = np.concatenate([sample, rng.integers(first, first + 1000, 400)])
        channel = np.concatenate([channel, rng.integers(0, 8, 400)])
    spikes = sort_spikes(
        sample.astype(np.int64), channel.astype(np.int32), np.ones(len(sample), np.float32)
    )
    return SpikeTrains(
        spikes=spikes,
        channel_labels=tuple(f"E{k}" for k in range(8)),
        sampling_rate_hz=RATE_HZ,
        segments=(Segment(0, 60_000, 0.0),),
        threshold_uv=np.full(8, np.nan, np.float32),
    )


@pytest.fixture(scope="module")
def bursts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that tells recordings with one burst from those without: nothing else differs."""
    folder = tmp_path_factory.mktemp("bursts")
    rows = ["recording,device,label"]
    for k in range(8):
        # Between 2 and 4 s, so that every window of 4 s holds it.
        at = 2.1 + 0.2 * k if k % 2 else None
        write_npz(burst_trains(k, at), folder / f"r{k}.npz")
        rows.append(f"r{k}.npz,d{k},{'burst' if k % 2 else 'quiet'}")
    (folder / "devices.csv").write_text("\n".join(rows) + "\n")
    extract(
        folder / "devices.csv", folder / "s.zarr", backbone=TINY,
        windows=Windows(width_s=4.0, stride_s=0.5), picture=Picture(kind="raster"),
    )  # fmt: skip
    store = FeatureStore(folder / "s.zarr")
    table = store.table(store.choose())
    facts = store.training_facts(table)
    fitting = FitOptions(head="falkon", tune=False, permutations=0)
    fit(table, fitting, folder / "run", facts=facts)
    return folder


@pytest.mark.parametrize("burst_s", [2.25, 3.0, 3.7])
def test_occlusion_points_to_the_one_burst_that_makes_the_class(
    bursts: Path, burst_s: float
) -> None:
    predictor = Predictor(read_model(bursts / "run" / "model"), compute=CPU)
    trains = burst_trains(77, burst_s)
    got = explain(
        predictor, FoundRecording.of("new", trains), occlusion=Occlusion(stretch_s=0.4, step_s=0.2)
    )
    assert got.prediction.classes[got.code] == "burst"
    blank = got.start_s[:, None] + got.offset_s
    whole_burst = (blank <= burst_s) & (blank + 0.4 >= burst_s + 0.1)
    no_burst = (blank + 0.4 <= burst_s) | (blank >= burst_s + 0.1)
    for drops, with_it, without in zip(got.drop, whole_burst, no_burst, strict=True):
        assert with_it.any()
        assert drops[with_it].min() > 0.2
        assert drops[with_it].min() > 3 * np.abs(drops[without]).max()
    time_s, mean_drop = importance(got)
    assert abs(time_s[mean_drop.argmax()] - (burst_s + 0.05)) < 0.4


def test_importance_is_the_mean_of_the_stretches_over_a_time(bursts: Path) -> None:
    predictor = Predictor(read_model(bursts / "run" / "model"), compute=CPU)
    got = explain(
        predictor,
        FoundRecording.of("new", burst_trains(5, 3.0)),
        occlusion=Occlusion(stretch_s=0.5),
    )
    time_s, mean_drop = importance(got)
    for at, value in zip(time_s.tolist(), mean_drop.tolist(), strict=True):
        over = [
            got.drop[i, j]
            for i, start in enumerate(got.start_s)
            for j, offset in enumerate(got.offset_s)
            if start + offset <= at < start + offset + 0.5
        ]
        assert value == pytest.approx(np.mean(over))
    assert (time_s[0] > 0, time_s[-1] < 6.0) == (True, True)


# --- stretches and groups


@given(st.integers(1, 400), st.floats(0.01, 4), st.one_of(st.none(), st.floats(0.01, 4)))
def test_stretches_cover_the_window_and_stay_inside(
    width: int, stretch_s: float, step_s: float | None
) -> None:
    if round(stretch_s / 0.01) > width:
        with pytest.raises(InputError, match="at most the model's window"):
            _stretches(Occlusion(stretch_s=stretch_s, step_s=step_s), width, 0.01)
        return
    stretch, offsets = _stretches(Occlusion(stretch_s=stretch_s, step_s=step_s), width, 0.01)
    assert offsets[0] == 0
    assert offsets[-1] + stretch == width
    assert (np.diff(offsets) > 0).all()
    if step_s is None:  # half of themselves: no bin is passed over
        assert (np.diff(offsets) <= stretch).all()


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=20, unique=True), st.integers(1, 8), st.data()
)
def test_spread_windows_hold_the_strongest_and_are_some_of_the_others(
    rows: list[int], n: int, data: st.DataObject
) -> None:
    best = data.draw(st.sampled_from(rows))
    chosen = spread(np.array(sorted(rows)), best, n).tolist()
    assert best in chosen
    assert sorted(set(chosen)) == chosen
    assert set(chosen) <= set(rows)
    assert len(chosen) == min(n, len(rows))


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=200), st.integers(1, 70))
def test_electrodes_of_a_group_are_of_similar_rates_and_hold_a_share_of_the_spikes(
    counts: list[int], most: int
) -> None:
    n_spikes = np.array(counts)
    group = group_by_rate(n_spikes, most)
    np.testing.assert_array_equal(group < 0, n_spikes == 0)
    used = np.unique(group[group >= 0])
    np.testing.assert_array_equal(used, np.arange(len(used)))
    active = int((n_spikes > 0).sum())
    assert len(used) <= most
    if active <= most:
        assert len(used) == active
        return
    for k in used:
        inside = n_spikes[group == k]
        # More than an equal share of the spikes only by the electrode that fills it up.
        assert inside.sum() - inside.min() <= n_spikes.sum() / most
        slower = n_spikes[(group > k)]
        assert not len(slower) or inside.min() >= slower.max()


@pytest.mark.parametrize("name", ["stretch_s", "step_s"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_stretches_of_no_length_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"Occlusion.{name} must be above 0"):
        Occlusion(**{name: value})  # type: ignore[arg-type]  # one of two of the same type


# --- the command


def test_why_writes_a_page_and_the_numbers(bursts: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "why"
    new = tmp_path / "new.npz"
    write_npz(burst_trains(77, 3.0), new)
    model, seen = bursts / "run" / "model", bursts / "r1.npz"
    arguments = ("why", model, new, seen, "-o", out, "--stretch-s", "0.4")
    ran = run(*arguments, "--json")
    assert ran.code == 0
    printed, written = json.loads(ran.out), read_json(out / "why.json")
    assert printed["recordings"] == written["recordings"]
    first, second = written["recordings"]
    assert (first["prediction"], first["class"]) == ("burst", "burst")
    assert 2.6 <= first["strongest_stretch_start_s"] <= 3.1
    assert any("trained on this very recording" in w for w in second["warnings"])
    rows = [row for row in read_csv(out / "occlusion.csv") if row["recording"] == str(new)]
    best = max(rows, key=lambda row: float(row["drop"]))
    assert float(best["blank_start_s"]) == pytest.approx(first["strongest_stretch_start_s"])
    for row in rows:
        expected = float(row["probability"]) - float(row["probability_without"])
        assert float(row["drop"]) == pytest.approx(expected, abs=1e-5)
    assert (first["electrode_windows_start_s"], len(first["electrodes"])) == ([0.0, 2.0], 3)
    left_out = read_csv(out / "electrodes.csv")
    for one in first["electrodes"]:
        of_it = [
            row for row in left_out
            if (row["recording"], row["electrode"]) == (str(new), one["electrode"])
        ]  # fmt: skip
        assert np.mean([float(row["drop"]) for row in of_it]) == pytest.approx(
            one["drop"], abs=2e-6
        )
        assert [float(row["window_start_s"]) for row in of_it] == [0.0, 2.0]
        for row in of_it:
            difference = float(row["probability"]) - float(row["probability_without"])
            assert float(row["drop"]) == pytest.approx(difference, abs=2e-6)
            assert row["left_out_together"] == "1"
    assert len(left_out) == 2 * 2 * 8
    page = (out / "why.html").read_text("utf-8")
    assert page.count("<article") == 4
    assert page.count("Map of the array: drop in probability") == 2
    assert "The spikes of each electrode were removed, one electrode after the other." in page
    assert "0 to 4 s, 2 to 6 s" in page
    assert "no test of the model" in page
    ran = run("why", model, new, "-o", tmp_path / "in-words")
    assert "new.npz: burst\n" in ran.out
    assert re.search(r"\n  [\d.]+ to [\d.]+ s contributed most to burst \(\+0\.\d\d\)\n", ran.out)
    assert re.search(
        r"\n  of the electrodes (E\d \([^)]+\), ){2}E\d \([^)]+\) contributed", ran.out
    )
    ran = run("why", model, new, "-o", tmp_path / "no", "--electrode-windows", "0")
    assert "electrode" not in ran.out
    assert not read_csv(tmp_path / "no" / "electrodes.csv")
    ran = run(*arguments)
    assert ran.code == 2
    assert "exists; choose another name or give --overwrite" in ran.err
    assert run(*arguments, "--overwrite", "--class", "quiet").code == 0
    assert read_json(out / "why.json")["recordings"][0]["class"] == "quiet"


def test_class_the_model_does_not_know_is_refused(bursts: Path, tmp_path: Path, run: Run) -> None:
    out, model = tmp_path / "why", bursts / "run" / "model"
    ran = run("why", model, bursts / "r0.npz", "-o", out, "--class", "noise")
    assert ran.code == 2
    assert "no class 'noise'; it knows burst, quiet" in ran.err
    assert not (tmp_path / "why").exists()


def test_model_of_whole_recordings_has_nothing_to_explain(fused: Path, tmp_path: Path) -> None:
    store = FeatureStore(fused / "s.zarr")
    table = table_for(store, "parameters")
    facts = store.training_facts(table)
    options = FitOptions(head="parameters", tune=False, permutations=0)
    fit(table, options, tmp_path / "run", facts=facts)
    predictor = Predictor(read_model(tmp_path / "run" / "model"), compute=CPU)
    trains = store.read_spikes(store.recordings[0].name)
    assert len(predictor.predict(FoundRecording.of("r", trains)).codes) == 1
    with pytest.raises(InputError, match="burst parameters of whole recordings"):
        explain(predictor, FoundRecording.of("r", trains))


def test_explained_windows_are_named_by_their_starts(bursts: Path) -> None:
    predictor = Predictor(read_model(bursts / "run" / "model"), compute=CPU)
    got: Explanation = explain(predictor, FoundRecording.of("new", burst_trains(5, 3.0)))
    assert got.start_s[got.strongest] == got.prediction.start_s[got.rows[got.strongest]]
    shares = got.prediction.probabilities[:, got.code]
    assert shares[got.rows[got.strongest]] == shares.max()
