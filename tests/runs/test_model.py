"""The model's two files: they give back the head that was written, and damage is always told."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load, save
from scipy.special import softmax
from small_data import make_facts, make_provenance, make_view

from toptune.errors import InputError, ToptuneError
from toptune.features.picture_features import PictureFeatureParams
from toptune.features.table import FeatureTable, RecordingInfo
from toptune.heads import head_of
from toptune.params import HighPass, Picture, SpikeSettings
from toptune.recordings.trains import WeightsSource
from toptune.runs.model import FORMAT, Model, load_model, read_model, trained_model, write_model

SCORES = {
    "head": "any", "n_devices": 9, "device_accuracy": 0.75, "device_accuracy_ci95": [0.4, 0.9],
    "chance": 0.34, "permutation_p": None,
}  # fmt: skip
HEADS: dict[str, dict[str, Any]] = {
    "falkon": {
        "width": (np.float64(0.4), 0.7),
        "view_sizes": (5, 7),
        "view_weights": (0.2, np.float64(0.8)),
        "penalty": np.float64(1e-4),
    },
    "mlp": {"epochs": np.int64(3), "view_sizes": (5, 7), "n_hidden": 6},
}


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def make_table() -> FeatureTable:
    """Nine devices of three classes, five windows each, under two views."""
    rng = np.random.default_rng(0)
    infos = tuple(RecordingInfo(f"r{i}", f"d{i}", "ABC"[i % 3], {}) for i in range(9))
    recording = np.repeat(np.arange(9), 5)
    features = np.abs(rng.standard_normal((3, 12))[recording % 3] + rng.standard_normal((45, 12)))
    views = (make_view(5), make_view(7, kind="raster"))
    return FeatureTable(
        features.astype(np.float32),
        np.tile(np.arange(5.0), 9),
        recording,
        infos,
        make_provenance(*views),
        views,
    )


def labels(table: FeatureTable) -> NDArray[Any]:
    return np.array([table.recordings[row].label for row in table.recording])


def make_model(head: str = "falkon", **changes: Any) -> Model:
    table = make_table()
    estimator = head_of(head).make(HEADS[head]).fit(table.features, labels(table))
    model = trained_model(
        head,
        estimator,
        table,
        make_facts(table),
        left_out=table.recording,
        scores=SCORES,
        inverse_temperature=1.75,
    )
    return replace(model, **changes)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model; look, do not touch."""
    folder = tmp_path_factory.mktemp("written") / "model"
    write_model(folder, make_model())
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "model")


@pytest.mark.parametrize("head", ["falkon", "mlp"])
def test_what_is_read_is_what_was_written(head: str, tmp_path: Path) -> None:
    model = make_model(head)
    write_model(tmp_path / "model", model)
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "model.json",
        "model.safetensors",
    ]
    back = read_model(tmp_path / "model")
    new = np.abs(np.random.default_rng(1).standard_normal((20, 12))).astype(np.float32)
    np.testing.assert_array_equal(back.class_scores(new), model.class_scores(new))
    np.testing.assert_array_equal(back.probabilities(new), model.probabilities(new))
    np.testing.assert_array_equal(
        load_model(tmp_path / "model").predict(new), model.estimator.predict(new)
    )
    for name in ("head", "classes", "provenance", "weights", "inverse_temperature", "scores"):
        assert getattr(back, name) == getattr(model, name), name
    assert back.views == model.views
    assert back.spikes == model.spikes == SpikeSettings()
    assert back.toptune_version.count(".") == 2
    np.testing.assert_array_equal(back.novelty.reference, model.novelty.reference)
    assert back.novelty.to_json() == model.novelty.to_json()
    write_model(tmp_path / "again", back)
    for name in ("model.json", "model.safetensors"):
        ours, theirs = (tmp_path / f / name for f in ("again", "model"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_the_file_tells_people_what_it_is(written: Path) -> None:
    described = json.loads((written / "model.json").read_text("utf-8"))
    assert (described["kind"], described["format"]) == ("toptune model", 2)
    assert described["head"]["classes"] == ["A", "B", "C"]
    assert described["head"]["params"]["width"] == [0.4, 0.7]
    assert described["scores"] == SCORES
    views = described["provenance"]["views"]
    assert [v["params"]["picture"]["kind"] for v in views] == ["histogram", "raster"]
    assert described["weights"] == [{"path": None, "seed": 0}] * 2
    tensors = load((written / "model.safetensors").read_bytes())
    assert set(tensors) == {"head.centres", "head.dual_coef", "novelty.reference"}
    assert tensors["novelty.reference"].dtype == np.float32


@pytest.mark.parametrize("head", ["falkon", "mlp"])
def test_probabilities_are_calibrated_or_the_heads_own(head: str) -> None:
    new = make_table().features[:7]
    model = make_model(head)
    scores = model.estimator.class_scores(new)
    np.testing.assert_allclose(model.probabilities(new), softmax(1.75 * scores, axis=1), rtol=1e-12)
    plain = replace(model, inverse_temperature=None)
    # Twice the same product, which threads may add up in another order.
    expected = model.estimator.predict_proba(new)
    np.testing.assert_allclose(plain.probabilities(new), expected, rtol=1e-12)


def test_views_carry_their_settings_and_sources() -> None:
    table = make_table()
    sources = (WeightsSource(path="/w/a.pth"), None)
    first, second = make_model(weights=sources).views
    assert (first.n_features, second.n_features) == (5, 7)
    assert (first.weights, second.weights) == sources
    assert first.params.to_json() == table.views[0].params
    assert second.params.to_json() == table.views[1].params
    assert first.name == table.views[0].name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inverse_temperature": 0.0}, "inverse_temperature must be above 0"),
        ({"inverse_temperature": float("nan")}, "inverse_temperature must be above 0"),
        ({"scores": {"n_devices": 3}}, "scores have no 'device_accuracy'"),
        ({"provenance": make_provenance(make_view(5), make_view(6))}, "12 features, its views 11"),
        ({"weights": (None,)}, "shorter|longer"),
    ],
)
def test_parts_that_do_not_fit_make_no_model(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**changes)


def test_a_table_of_unknown_features_makes_no_model() -> None:
    table = make_table()
    estimator = head_of("falkon").make(HEADS["falkon"]).fit(table.features, labels(table))
    for bare in (replace(table, views=()), replace(table, provenance={})):
        with pytest.raises(ToptuneError, match="does not say what made its features"):
            trained_model(
                "falkon", estimator, bare, make_facts(table), left_out=table.recording,
                scores=SCORES,
            )  # fmt: skip


# --- the format


@pytest.mark.parametrize(
    ("head", "scores", "shares", "least_nearness", "nearness"),
    [
        (
            "falkon",
            [[-0.5193357322567865, 0.5193357322567865], [0.8658902121420783, -0.8658902121420783]],
            [[0.1739327873062473, 0.8260672126937527], [0.9307115152370931, 0.06928848476290701]],
            0.9921834003354183,
            [0.38347288069799035, 0.9213115853195183],
        ),
        (
            "mlp",
            [[-2.991184430281456, 4.16794588989222], [1.3997129159488244, -0.9275708658858657]],
            [[2.1688743402096937e-05, 0.999978311256598], [0.9704284714719086, 0.0295715285280921]],
            0.9872509006967044,
            [0.3715528331002487, 0.9436894277516212],
        ),
    ],
)
def test_golden_models_of_format_2_are_read_with_the_numbers_of_their_making(
    head: str,
    scores: list[list[float]],
    shares: list[list[float]],
    least_nearness: float,
    nearness: list[float],
) -> None:
    golden = read_model(Path(__file__).parents[1] / "golden_models" / head)
    new = np.array([[1, 0.5, 0.25, 1, 0], [0.5, 1, 2, 0.5, 1]], np.float32)
    np.testing.assert_allclose(golden.class_scores(new), scores, rtol=1e-6)
    np.testing.assert_allclose(golden.probabilities(new), shares, rtol=1e-6)
    limits = golden.novelty
    assert limits.least_nearness == least_nearness
    near = limits.nearness.largest(new, limits.reference)
    np.testing.assert_allclose(near, nearness, rtol=1e-6)
    assert limits.electrode_rate_hz == (10.0, 10.0)
    assert (golden.head, golden.classes) == (head, ("0E100I", "100E0I"))
    assert golden.weights == (WeightsSource(seed=0), None)
    assert golden.toptune_version == "0.1.0"
    first, second = golden.views
    assert (first.n_features, second.n_features) == (3, 2)
    assert isinstance(first.params, PictureFeatureParams)
    assert isinstance(second.params, PictureFeatureParams)
    assert first.params.picture == Picture()
    assert second.params.picture == Picture(kind="raster")
    assert (first.params.windows.width_s, second.params.windows.width_s) == (2.0, 4.0)
    assert second.params.backbone.std == (0.25, 0.25, 0.25)
    # The default of its time, which later defaults must not replace.
    assert golden.spikes == SpikeSettings(highpass=HighPass(order=2))


# --- damage


def edit(folder: Path, change: Callable[[Any], object]) -> None:
    place = folder / "model.json"
    described = json.loads(place.read_text("utf-8"))
    change(described)
    place.write_text(json.dumps(described))


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as refused:
        read_model(folder)
    message = str(refused.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def all_keys(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places of all names in nested JSON."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield (*place, name)
            yield from all_keys(inner, (*place, name))


def at(value: Any, place: tuple[Any, ...]) -> Any:
    for name in place:
        value = value[name]
    return value


# Notes for people, which nothing reads.
NOTES = {("provenance", name) for name in ("format_version", "too_short")}
NOTES |= {("scores", name) for name in ("head", "permutation_p")}


def test_every_missing_value_is_told(folder: Path) -> None:
    whole = json.loads((folder / "model.json").read_text("utf-8"))
    # Values of the head's constructor have their defaults.
    places = [p for p in all_keys(whole) if p not in NOTES and p[:2] != ("head", "params")]
    places += [("provenance", "views", 0, *p) for p in all_keys(whole["provenance"]["views"][0])]
    places.remove(("provenance", "views", 0, "key"))
    # Models of before there were several have none; what they say is tested by golden models.
    places.remove(("novelty", "nearness", "scales"))
    assert len(places) > 40
    for place in places:
        damaged = copy.deepcopy(whole)
        del at(damaged, place[:-1])[place[-1]]
        (folder / "model.json").write_text(json.dumps(damaged))
        refusal(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(kind="x"), "does not describe a model of toptune"),
        (lambda d: d.update(format=1), "has model format 1, this version reads 2: fit again"),
        (lambda d: d.update(format=FORMAT + 1), "model format 3.*: use a newer toptune"),
        (lambda d: d.pop("format"), "has model format None"),
        (lambda d: d.update(head=7), "model.json is damaged"),
        (lambda d: d.update(scores=[]), "scores have no"),
        (lambda d: d["head"].update(name="svm"), "there is no classifier 'svm'"),
        (lambda d: d["head"].update(name="mlp"), "is damaged"),
        (lambda d: d["head"].update(classes=["A", "B"]), "does not fit together"),
        (lambda d: d["head"].update(classes=["A", "B", "B"]), "all different"),
        (lambda d: d["head"]["params"].update(gamma=1), "gamma"),
        (lambda d: d.update(inverse_temperature=-1), "inverse_temperature must be above 0"),
        (lambda d: d.update(inverse_temperature="1"), "is damaged"),
        (lambda d: d.update(weights=[]), "is damaged"),
        (lambda d: d.update(weights=[{"url": 1}, None]), "is damaged"),
        (lambda d: d["novelty"].update(least_similarity=1), "least_similarity"),
        (lambda d: d["novelty"]["nearness"].update(view_sizes=[6, 7]), "do not fit the kernel"),
        (lambda d: d["provenance"]["settings"]["ptsd"].update(threshold_sd=-1), "above 0, got -1"),
        (lambda d: d["provenance"]["settings"].update(filter=1), "filter"),
        (lambda d: d["provenance"].update(inputs={"a.h5": {}}), "sha256"),
        (lambda d: d["provenance"]["views"][0].update(n_columns=6), "its views 13"),
        (
            lambda d: d["provenance"]["views"][0]["params"]["windows"].update(width_s=0),
            "Windows.width_s must be above 0",
        ),
        (lambda d: d["provenance"]["views"][0]["params"]["backbone"].pop("sha256"), "sha256"),
        (lambda d: d.update(tensors_sha256="0" * 64), "damaged: its sha256 is not model.json's"),
    ],
)
def test_changed_descriptions_are_refused(
    folder: Path, change: Callable[[Any], object], message: str
) -> None:
    edit(folder, change)
    assert re.search(message, refusal(folder))


def test_damaged_or_missing_files_are_refused(folder: Path) -> None:
    tensors, described = folder / "model.safetensors", folder / "model.json"
    content, text = tensors.read_bytes(), described.read_bytes()
    for broken in (content[:-1], content[:7], b"", bytes([*content[:-1], content[-1] ^ 1])):
        tensors.write_bytes(broken)
        assert "model.safetensors is damaged: its sha256" in refusal(folder)
    tensors.unlink()
    assert "model.safetensors cannot be read: No such file" in refusal(folder)
    for other in (b"", text[:-10], b"[]", b"\xff\xfe", b"7"):
        described.write_bytes(other)
        refusal(folder)
    described.unlink()
    assert "holds no model" in refusal(folder)
    assert "holds no model" in refusal(folder / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("novelty.reference"), "there is no 'novelty.reference'"),
        (lambda t: t.pop("head.centres"), "it has no 'centres'"),
        (lambda t: t.update({"novelty.reference": np.ones((2, 3), np.float32)}), "do not fit"),
        (lambda t: t.update({"head.centres": np.ones((2, 3))}), "does not fit together"),
    ],
)
def test_tensors_of_another_model_are_refused(
    folder: Path, change: Callable[[Any], object], message: str
) -> None:
    tensors = load((folder / "model.safetensors").read_bytes())
    change(tensors)
    content = save(tensors)
    (folder / "model.safetensors").write_bytes(content)
    edit(folder, lambda d: d.update(tensors_sha256=hashlib.sha256(content).hexdigest()))
    assert message in refusal(folder)


def test_what_is_no_safetensors_file_is_refused(folder: Path) -> None:
    content = b"\x80\x04K\x01."  # a pickle
    (folder / "model.safetensors").write_bytes(content)
    edit(folder, lambda d: d.update(tensors_sha256=hashlib.sha256(content).hexdigest()))
    assert "model.safetensors cannot be read" in refusal(folder)
