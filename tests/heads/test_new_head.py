"""A fourth head, made in this file or installed, goes everywhere the three others go."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import NDArray
from results import Run, read_json
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import validate_data
from small_data import write_data_set

from toptune.errors import InputError, InputErrors
from toptune.evaluation.folds import leave_one_group_out
from toptune.features.table import FeatureTable
from toptune.heads import Head, catalogue, head_for, head_of, heads, register
from toptune.params import FitOptions, Option
from toptune.prediction import predict
from toptune.runs.model import load_model
from toptune.store.feature_store import FeatureStore
from toptune.sweeps.grid import read_grid
from toptune.sweeps.sweep import sweep
from toptune.training import fit, fit_problems

pytestmark = pytest.mark.usefixtures("one_torch_thread", "tiny_backbones")


class CentroidClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """Nearest centroid; centroids move a share of the way towards the mean of all rows."""

    def __init__(self, shrink: float = 0.0) -> None:
        self.shrink = shrink

    def fit(self, X: Any, y: Any) -> Self:
        X, y = validate_data(self, X, y)
        self.classes_ = np.unique(y)
        centroids = np.stack([X[y == name].mean(axis=0) for name in self.classes_])
        self.centroids_ = centroids + self.shrink * (X.mean(axis=0) - centroids)
        return self

    def class_scores(self, X: Any) -> NDArray[np.float64]:
        X = np.asarray(X, np.float64)
        distances = np.linalg.norm(X[:, None] - self.centroids_, axis=2)
        return np.asarray(-distances)

    def predict(self, X: Any) -> NDArray[Any]:
        return np.asarray(self.classes_[self.class_scores(X).argmax(axis=1)])

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        return np.asarray(softmax(self.class_scores(X), axis=1))

    def to_tensors(self) -> dict[str, NDArray[Any]]:
        return {"centroids": self.centroids_}

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, NDArray[Any]], params: dict[str, Any], classes: NDArray[Any]
    ) -> Self:
        made = cls(**params)
        made.classes_, made.centroids_ = classes, tensors["centroids"]
        made.n_features_in_ = made.centroids_.shape[1]
        return made


class CentroidHead(Head):
    name = "centroid"
    title = "Nearest centroid"
    estimator = f"{__name__}:CentroidClassifier"
    options = (
        Option(
            name="shrink",
            field="shrink",
            type=float,
            default=0.0,
            help="Share of the way to the mean of all windows.",
            panel="Nearest centroid",
            several=True,
            least=0,
            most=1,
        ),
    )
    defaults = ({"shrink": 0.0}, {"shrink": 0.5})


class Silent:
    """Ignores all progress."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


@pytest.fixture(scope="module")
def registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(catalogue, "_known", dict(catalogue._known))
        register(CentroidHead())
        yield


GRID = """
window_s = 2
stride_s = 1
backbone = "tiny"
weights = "random"
head = ["falkon", "centroid"]
permutations = 3
[centroid]
shrink = [0.25, [0.0, 0.9]]
"""


@pytest.fixture(scope="module")
def swept(registered: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001  # registers
    """A sweep of Falkon and the new head over six devices."""
    folder = tmp_path_factory.mktemp("swept")
    devices = write_data_set(folder)
    (folder / "grid.toml").write_text(GRID)
    watch: Any = Silent()
    sweep(devices, read_grid(folder / "grid.toml"), folder / "sweep", watch=watch)
    return folder


def store_of(folder: Path) -> FeatureStore:
    return FeatureStore(folder / "sweep" / "store.zarr")


def table_of(folder: Path) -> FeatureTable:
    store = store_of(folder)
    return store.table(store.choose())


def test_a_section_of_the_grid_sets_its_options_in_a_sweep(swept: Path) -> None:
    runs = sorted((swept / "sweep" / "runs").iterdir())
    params = [read_json(run / "params.json") for run in runs]
    of_new = [p for p in params if p["head"] == "centroid"]
    assert sorted(str(p["candidates"]) for p in of_new) == [
        "[{'shrink': 0.0}, {'shrink': 0.9}]",
        "[{}]",
    ]
    assert {p["head"] for p in params} == {"falkon", "centroid"}
    for run in runs:
        assert read_json(run / "metrics.json")["permutations"]["n"] == 3
        assert "centroid" in (run / "report.html").read_text("utf-8") or "falkon" in run.name


def test_the_grid_refuses_values_out_of_range_without_fitting(swept: Path, tmp_path: Path) -> None:
    assert swept.exists()
    place = tmp_path / "grid.toml"
    place.write_text("head = 'centroid'\n[centroid]\nshrink = 2.0\n")
    with pytest.raises(InputErrors, match=r"line 3: .*shrink must be at most 1, got 2"):
        read_grid(place)
    place.write_text("head = 'centroid'\n[centroid]\nshrink = 'much'\n")
    with pytest.raises(InputErrors, match=r"shrink must be of type float, got 'much'"):
        read_grid(place)


@pytest.mark.parametrize("tune", [True, False])
def test_fit_writes_a_run_that_predicts_as_the_classifier_does(
    swept: Path, tmp_path: Path, tune: bool
) -> None:
    store, table = store_of(swept), table_of(swept)
    options = FitOptions(head="centroid", tune=tune, permutations=5)
    result = fit(table, options, tmp_path / "run", facts=store.training_facts(table), store=store)
    metrics = read_json(tmp_path / "run" / "metrics.json")
    assert metrics == result.metrics
    assert metrics["device_accuracy"] >= 5 / 6
    assert metrics["calibrated"] == tune
    assert metrics["permutations"]["n"] == 5
    with (tmp_path / "run" / "folds.csv").open(encoding="utf-8") as file:
        assert ("chosen_shrink" in next(csv.reader(file))) == tune

    # The model of all devices is that of scikit-learn's interface, written and read back.
    shrink = read_json(tmp_path / "run" / "params.json")["head_params"]["shrink"]
    label = np.array([table.recordings[row].label for row in table.recording])
    expected = CentroidClassifier(shrink=shrink).fit(table.features, label)
    loaded = load_model(tmp_path / "run" / "model")
    assert type(loaded) is CentroidClassifier
    np.testing.assert_allclose(
        loaded.class_scores(table.features), expected.class_scores(table.features)
    )
    verdicts = predict(tmp_path / "run" / "model", [swept / f"r{k}.h5" for k in range(6)])
    right = [r.classes[r.code] == "ABC"[k % 3] for k, r in enumerate(verdicts.recordings)]
    assert sum(right) >= 5
    assert "shrink" in (tmp_path / "run" / "report.html").read_text("utf-8")


def test_the_command_line_fits_it(swept: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "run"
    words = ("fit", store_of(swept).path, "--head", "centroid", "-o", out, "--json", "--set")
    ran = run(*words, "shrink=2.5")
    assert ran.code == 2
    assert "shrink must be at most 1, got 2.5" in ran.err
    ran = run(*words, "shrink=0.25")
    assert ran.code == 0
    assert json.loads(ran.out)["head"] == "centroid"
    params = read_json(tmp_path / "run" / "params.json")
    assert params["head_params"] == {"shrink": 0.25}


def test_tuning_scores_each_fold_by_what_the_other_folds_chose(swept: Path, tmp_path: Path) -> None:
    store, table = store_of(swept), table_of(swept)
    result = fit(
        table, FitOptions(head="centroid", permutations=0), tmp_path / "run",
        facts=store.training_facts(table),
    )  # fmt: skip
    nested = result.evaluation.nested
    assert nested is not None
    label = np.array([table.recordings[row].label for row in table.recording])
    device = np.array([table.recordings[row].device for row in table.recording])
    for fold, group in enumerate(np.unique(device)):
        own = device == group
        shrink = (0.0, 0.5)[nested.choice[fold]]
        refitted = CentroidClassifier(shrink=shrink).fit(table.features[~own], label[~own])
        np.testing.assert_allclose(
            result.folds.scores[own], refitted.class_scores(table.features[own])
        )
        for other in set(np.unique(device)) - {group}:
            inner, rest = device == other, ~own & (device != other)
            refitted = CentroidClassifier(shrink=shrink).fit(table.features[rest], label[rest])
            known = np.searchsorted(["A", "B", "C"], refitted.classes_)
            np.testing.assert_allclose(
                nested.inner_scores[fold][inner][:, known],
                refitted.class_scores(table.features[inner]),
                rtol=1e-5,
            )


def test_problems_are_told_before_there_are_features(swept: Path) -> None:
    infos = table_of(swept).recordings
    assert fit_problems(infos, FitOptions(head="centroid")) == []
    (problem,) = fit_problems(infos, FitOptions(head="centroid", fixed={"shrink": -1.0}))
    assert problem == "CentroidClassifier.shrink must be 0 or above, got -1.0"
    (problem,) = fit_problems(infos, FitOptions(head="centroid", tried={"shrink": (0.1, 3.0)}))
    assert problem == "CentroidClassifier.shrink must be at most 1, got 3.0"
    (problem,) = fit_problems(infos, FitOptions(head="centroid", fixed={"grow": 1}))
    assert "no parameter 'grow'; it has shrink" in problem
    (problem,) = fit_problems(infos, FitOptions(head="centroid"), device="cuda")
    assert problem == "the classifier centroid works on the CPU, not on cuda"


def test_classifiers_belong_to_the_head_of_their_type(registered: None) -> None:  # noqa: ARG001  # registers
    assert head_for(CentroidClassifier()).name == "centroid"

    class Other(CentroidClassifier):
        pass

    # Whatever a subclass changes, it is fitted anew for every fold.
    assert type(head_for(Other())) is Head
    X = np.repeat(np.eye(3), 4, axis=0) + np.arange(12)[:, None] / 50
    y, group = np.repeat(list("abc"), 4), np.tile(["p", "q", "r", "s"], 3)
    for classifier in (CentroidClassifier(), Other()):
        assert (leave_one_group_out(classifier, X, y, group).predictions == y).all()


def test_a_name_is_given_once(registered: None) -> None:  # noqa: ARG001  # registers
    assert list(heads()) == ["mlp", "falkon", "recordings", "parameters", "centroid"]
    with pytest.raises(InputError, match="there is a classifier 'centroid' already"):
        register(CentroidHead())
    with pytest.raises(
        InputError, match="no classifier 'svm'; there are mlp, falkon, recordings, parameters, c"
    ):
        head_of("svm")


PLUGIN = """
from toptune.heads.base import Head
from toptune.params import Option

class PluginHead(Head):
    name = "plugin"
    title = "Installed"
    estimator = "sklearn.neighbors:NearestCentroid"
    options = (Option(name="metric", field="metric", type=str, default="euclidean", help="x"),)
"""


def test_heads_of_installed_packages_are_found_and_broken_ones_told_of(tmp_path: Path) -> None:
    info = tmp_path / "some_heads-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-heads\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[toptune.heads]\nplugin = some_heads:PluginHead\nbroken = some_heads:Missing\n"
    )
    (tmp_path / "some_heads.py").write_text(PLUGIN)
    code = (
        "import sys\n"
        "from toptune.heads import head_of, heads\n"
        "head_of('falkon')\n"
        "assert 'some_heads' not in sys.modules\n"
        "print(*heads(), type(head_of('plugin').make({})).__name__)\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == [
        "mlp", "falkon", "recordings", "parameters", "plugin", "NearestCentroid"
    ]  # fmt: skip
    assert "the classifier 'broken' of some_heads:Missing cannot be used" in done.stderr


def test_asking_for_options_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from toptune.heads import heads\n"
        "for head in heads().values():\n"
        "    for option in head.options:\n"
        "        assert option.panel == head.title, option\n"
        "    head.candidates({}, {}, 2, tune=True)\n"
        "try:\n"
        "    heads()['mlp'].check_option('epochs', 0)\n"
        "except ValueError as error:\n"
        "    print(error)\n"
        "print({'numpy', 'scipy', 'sklearn', 'torch', 'numba'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "MLPClassifier.epochs must be a whole number from 1, got 0",
        "set()",
    ]
