"""The yardstick of benchmarks/accuracy.py: its folds, intervals and cache."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import accuracy
import numpy as np
import pytest
from accuracy import (
    METHODS,
    Dataset,
    Method,
    Verdicts,
    View,
    balanced_accuracies,
    calibration_error,
    compare,
    draw_devices,
    leave_devices_out,
    outcome,
)
from needs import package
from numpy.typing import NDArray
from results import read_json
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from small_data import make_facts, make_provenance, make_view

from toptune.features.burst_features import NAMES, BurstFeatureParams
from toptune.features.table import FeatureTable, RecordingInfo
from toptune.features.table import View as Columns
from toptune.heads.catalogue import head_of
from toptune.params import FitOptions
from toptune.recordings.trains import SpikeTrains
from toptune.training import fit

pytestmark = pytest.mark.usefixtures("one_torch_thread")

N_DEVICES, N_WINDOWS = 20, 3
SEEDS = range(12)
WINDOW_S = 12.0
#: What would take minutes, or learn nothing from so few rows, is made to.
SMALL = {
    "n_estimators": 10,
    "n_kernels": 84,
    "window_s": WINDOW_S,
    "fixed": {"epochs": 100, "learning_rate": 0.01, "batch_size": 20},
}


class Naming(Dataset):
    """Devices whose features name them, and say nothing else.

    With `twins`, two devices each of one class share their features: then a device's class is known
    from its twin, and whoever looks at features is right.
    """

    def __init__(self, seed: int, *, twins: bool = False, paired: bool = False) -> None:
        self._random = np.random.default_rng(seed)
        device = np.repeat(np.arange(N_DEVICES), 2 if paired else 1)
        label = np.arange(len(device)) % 2 if paired else device // 2 % 2
        self._named = device // 2 if twins else device
        super().__init__(
            "made",
            [
                RecordingInfo(f"rec{i:02}", f"dev{d:02}", "AB"[c], {})
                for i, (d, c) in enumerate(zip(device.tolist(), label.tolist(), strict=True))
            ],
        )
        self._made: dict[int, NDArray[np.float64]] = {}

    @property
    def key(self) -> str:
        return f"naming {self.name}"

    def view_key(self, view: View | str) -> str:
        return repr(view)

    def _of_devices(self, n_columns: int) -> NDArray[np.float64]:
        """Numbers of each recording, all those of its device, (recordings, columns)."""
        if n_columns not in self._made:
            rows = self._random.random((N_DEVICES, n_columns))
            self._made[n_columns] = rows[self._named]
        return self._made[n_columns]

    @property
    def parameters(self) -> NDArray[np.float64]:
        return self._of_devices(len(NAMES))

    @property
    def scaled_parameters(self) -> NDArray[np.float64]:
        return self._of_devices(len(NAMES))

    def counts(self, bin_ms: float = 100.0) -> list[NDArray[np.float32]]:
        n = int(N_WINDOWS * WINDOW_S * 1000 / bin_ms)
        return [np.floor(4 * series).astype(np.float32) for series in self._of_devices(n)]

    def table(self, head: str, views: Sequence[View | str] = ()) -> FeatureTable:
        whole = head_of(head).uses == "recordings"
        row = np.repeat(np.arange(len(self.recordings)), 1 if whole else N_WINDOWS)
        params = BurstFeatureParams(windows=None if whole else accuracy.RASTER.windows)
        columns: list[Columns] = []
        for view in views or ("parameters",):
            if isinstance(view, str):
                columns.append(Columns(view, "p", params.n_columns, params.to_json()))
            else:
                columns.append(make_view(20, kind=view.picture.kind))
        rows = self._of_devices(sum(one.n_columns for one in columns))[row]
        # Windows differ by a trace that is the device's, too.
        rows = rows + 0.01 * self._random.random(rows.shape)
        start_s = np.arange(0, 20 * len(row), 20, dtype=np.float64)
        return FeatureTable(
            rows.astype(np.float32), start_s, row, self.recordings, make_provenance(*columns),
            tuple(columns),
        )  # fmt: skip


def accuracy_of(method: Method, dataset: Dataset) -> float:
    """Compute it anew."""
    right = method.verdicts(dataset).prediction == dataset.units.label
    n_devices = len(np.unique(dataset.device))
    once = np.ones((1, n_devices), dtype=np.int64)
    return float(balanced_accuracies(dataset, right[None], once)[0, 0])


# --- folds


@pytest.mark.parametrize("name", METHODS)
def test_features_that_only_name_the_device_score_at_chance(name: str) -> None:
    method = METHODS[name]
    if method.needs is not None:
        package(method.needs)
    small: dict[str, Any] = {name: SMALL[name] for name in SMALL if name in method.params}
    if method.params.get("name") != "mlp":
        small.pop("fixed", None)
    method = replace(method, params={**method.params, **small})
    # Verdicts depend on each other, so one seed has an SD of up to 0.2.
    found = [accuracy_of(method, Naming(seed)) for seed in SEEDS]
    assert np.mean(found) < 0.5 + 3 * 0.2 / np.sqrt(len(SEEDS))
    # The same devices under both labels: whatever is said is right for one and wrong for the other.
    assert accuracy_of(method, Naming(0, paired=True)) == pytest.approx(0.5, abs=0.1)
    # A device that stays in training under another name is found: the test above can fail.
    assert accuracy_of(method, Naming(0, twins=True)) > 0.8


def test_verdicts_are_those_of_fits_without_the_device() -> None:
    dataset = Naming(1, paired=True)
    X = dataset.parameters + np.random.default_rng(2).random((len(dataset.recordings), len(NAMES)))
    found = leave_devices_out(dataset, LogisticRegression(), X)
    units = sorted(zip(dataset.device, dataset.label, range(len(X)), strict=True))
    for verdict, (device, label, row) in enumerate(units):
        others = dataset.device != device
        fitted = LogisticRegression().fit(X[others], dataset.label[others])
        assert found.prediction[verdict] == fitted.predict(X[row : row + 1])[0]
        np.testing.assert_allclose(
            found.probabilities[verdict], fitted.predict_proba(X[row : row + 1])[0]
        )
        assert (dataset.units.device[verdict], dataset.units.label[verdict]) == (device, label)


@pytest.mark.parametrize("name", ["falkon-both", "head-parameters"])
def test_a_head_scores_what_fit_reports(name: str, tmp_path: Path) -> None:
    method, dataset = METHODS[name], Naming(3, twins=True)
    table = dataset.table(method.params["name"], method.params.get("views", ()))
    verdicts = method.verdicts(_With(dataset, table))
    options = FitOptions(head=method.params["name"], permutations=0)
    ran = fit(table, options, tmp_path / "run", facts=make_facts(table), device="cpu")
    metrics = read_json(ran.path / "metrics.json")
    assert [one.prediction for one in ran.scores.verdicts] == verdicts.prediction.tolist()
    assert metrics["device_ece"] == pytest.approx(calibration_error(dataset, verdicts))
    assert metrics["balanced_accuracy"] == pytest.approx(
        compare([dataset], [[verdicts]], 1).mean[0]
    )


class _With(Naming):
    """The same devices with a table that is given."""

    def __init__(self, dataset: Naming, table: FeatureTable) -> None:
        Dataset.__init__(self, dataset.name, dataset.recordings)
        self._given = table

    def table(self, head: str, views: Sequence[View | str] = ()) -> FeatureTable:
        del head, views
        return self._given


def test_counts_are_those_of_all_electrodes_in_whole_windows() -> None:
    dataset = Naming(5)
    X, recording = accuracy._count_windows(dataset, 100, WINDOW_S)
    assert X.shape == (N_DEVICES * N_WINDOWS, 1, 120)
    np.testing.assert_array_equal(recording, np.repeat(np.arange(N_DEVICES), N_WINDOWS))
    np.testing.assert_array_equal(X[N_WINDOWS + 1, 0], dataset.counts()[1][120:240])


def test_counts_are_those_of_spikes_in_bins() -> None:
    times = np.sort(np.random.default_rng(0).integers(0, 100_000, 500)) / 10_000
    trains = SpikeTrains.from_arrays(
        np.concatenate([times, [0.3, 0.7]]), ["a"] * 500 + ["b"] * 2, duration_s=10.05,
        sampling_rate_hz=10_000,
    )  # fmt: skip
    dataset = devices_of("one", "A B")
    dataset.__dict__["trains"] = (trains,)
    (counts,) = dataset.counts(100)
    samples = np.rint(np.append(times, [0.3, 0.7]) * 10_000).astype(int)
    expected = [np.count_nonzero(samples // 1000 == each) for each in range(100)]
    np.testing.assert_array_equal(counts, expected)


def test_hydra_learns_nothing_from_what_it_is_fitted_to() -> None:
    package("aeon")
    series = np.random.default_rng(1).random((6, 1, 60)).astype(np.float32)
    others = 5 + np.random.default_rng(2).random((3, 1, 60)).astype(np.float32)
    found = accuracy.hydra(series)
    np.testing.assert_array_equal(found, accuracy.hydra(series, fitted_to=others))
    assert found.std(axis=0).max() > 0


# --- intervals


def devices_of(name: str, labels: str) -> Dataset:
    """A set with a device for each word, which has a verdict for each of its letters."""
    return Dataset(
        name,
        [
            RecordingInfo(f"{d}{letter}", f"dev{d:02}", letter, {})
            for d, word in enumerate(labels.split())
            for letter in word
        ],
    )


def guesses(dataset: Dataset, share_right: float, seed: int) -> Verdicts:
    """Verdicts of which so many are right."""
    random = np.random.default_rng(seed)
    n = len(dataset.units.label)
    wrong = dataset.classes[random.integers(len(dataset.classes), size=n)]
    prediction = np.where(random.random(n) < share_right, dataset.units.label, wrong)
    return Verdicts(prediction, np.full((n, len(dataset.classes)), 1 / len(dataset.classes)))


def naive_mean(dataset: Dataset, verdicts: Verdicts, devices: Sequence[str]) -> float:
    """Balanced accuracy of listed devices, which may repeat."""
    recalls = []
    for name in dataset.classes:
        right = [
            prediction == label
            for drawn in devices
            for device, label, prediction in zip(
                dataset.units.device, dataset.units.label, verdicts.prediction, strict=True
            )
            if device == drawn and label == name
        ]
        if right:
            recalls.append(np.mean(right))
    return float(np.mean(recalls))


def test_draws_are_scored_as_a_loop_over_drawn_devices_scores_them() -> None:
    sets = [devices_of("paired", "AB AB AB BA A B"), devices_of("rare", "A A A A A B C C C C")]
    verdicts = [[guesses(one, 0.8, 1), guesses(one, 0.4, 2)] for one in sets]
    found = compare(sets, verdicts, 200)
    times = [draw_devices(one, 200) for one in sets]
    # A class of one device is missing from some draws.
    assert np.any(times[1][:, 5] == 0)
    for draw in range(200):
        for method in range(2):
            expected = [
                naive_mean(
                    one, of_methods[method], np.repeat(np.unique(one.device), count[draw]).tolist()
                )
                for one, of_methods, count in zip(sets, verdicts, times, strict=True)
            ]
            assert found.draws[draw, method] == pytest.approx(np.mean(expected))
    low, high = np.percentile(found.draws[:, 0] - found.draws[:, 1], [2.5, 97.5])
    assert found.interval(0, 1) == pytest.approx((low, high))
    assert found.interval(1, 0) == pytest.approx((-high, -low))


def test_observed_scores_are_scikit_learns() -> None:
    dataset = devices_of("rare", "A A A A A B B C C C C")
    verdicts = guesses(dataset, 0.6, 3)
    expected = balanced_accuracy_score(dataset.units.label, verdicts.prediction)
    assert compare([dataset], [[verdicts]], 1).mean[0] == pytest.approx(expected)


def test_devices_are_drawn_evenly_and_the_same_for_all_methods() -> None:
    dataset = devices_of("even", "A A A B B B B")
    times = draw_devices(dataset)
    assert times.shape == (accuracy.N_DRAWS, 7)
    np.testing.assert_array_equal(times.sum(axis=1), 7)
    np.testing.assert_allclose(times.mean(axis=0), 1, atol=0.05)
    # Of n drawn with replacement, a device is missing with (1 - 1/n)^n.
    np.testing.assert_allclose((times == 0).mean(axis=0), (6 / 7) ** 7, atol=0.03)
    np.testing.assert_array_equal(times, draw_devices(dataset))
    assert not np.array_equal(times, draw_devices(devices_of("other", "A A A B B B B")))
    same = [[guesses(dataset, 0.5, 1)] * 2]
    assert compare([dataset], same).interval(0, 1) == (0.0, 0.0)


def test_an_interval_is_that_of_drawing_indices() -> None:
    dataset = devices_of("many", " ".join("AB" * 20))
    pair = [guesses(dataset, 0.9, 4), guesses(dataset, 0.2, 5)]
    low, high = compare([dataset], [pair]).interval(0, 1)
    random, differences = np.random.default_rng(9), []
    right = np.array([one.prediction == dataset.units.label for one in pair])
    for _ in range(4000):
        rows = random.integers(40, size=40)
        recalls = [
            right[:, rows][:, dataset.units.label[rows] == name].mean(axis=1) for name in "AB"
        ]
        differences.append(np.subtract(*np.mean(recalls, axis=0)))
    np.testing.assert_allclose((low, high), np.percentile(differences, [2.5, 97.5]), atol=0.03)


# --- what was tried beside the recommended classifier


@pytest.fixture(scope="module")
def tried() -> Any:
    """The plugin, whose methods stay out of the table of the other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy, "METHODS", {})
        return importlib.import_module("accuracy_tried")


FUSIONS = [
    "mean-of-parts", "stacked", "summed-kernels", "product", "with-head-parameters", "free-choice",
]  # fmt: skip


class _Telling(Naming):
    """Every device under both labels, which features tell apart, of some devices the wrong way.

    Features or labels of device 3 are other ones if asked for.
    """

    DEVICE = 3

    def __init__(self, *, features: bool = False, labels: bool = False) -> None:
        super().__init__(6, paired=True)
        self._change = features
        if labels:
            swapped = [replace(one, label="AB"[one.label == "A"]) for one in self.recordings[6:8]]
            Dataset.__init__(self, "made", [*self.recordings[:6], *swapped, *self.recordings[8:]])

    def table(self, head: str, views: Sequence[View | str] = ()) -> FeatureTable:
        table = super().table(head, views)
        features = table.features.copy()
        row = table.recording
        features[row % 2 == 1, ::2] += np.where(row // 2 % 5 == 4, -0.3, 0.3)[row % 2 == 1, None]
        if self._change:
            rows = row == 2 * self.DEVICE
            features[rows] = features[rows, ::-1] ** 2
        return replace(table, features=features)


def _of_two_views(tried: Any, name: str) -> Method:
    method: Method = next(one for one in tried.methods() if one.name == name)
    views = (accuracy.HISTOGRAM, "parameters")
    return replace(method, params={**method.params, "views": views})


@pytest.mark.parametrize("name", FUSIONS)
def test_nothing_of_a_device_reaches_its_fold(tried: Any, name: str) -> None:
    method = _of_two_views(tried, name)
    plain, features, labels = (
        method.verdicts(each)
        for each in (_Telling(), _Telling(features=True), _Telling(labels=True))
    )
    assert accuracy_of(method, _Telling()) > 0.7
    first, second = 2 * _Telling.DEVICE, 2 * _Telling.DEVICE + 1
    # The device's first recording is another one: that is seen in its verdict, in those of other
    # devices, which learn from it, and not in that on the device's other recording.
    changed = np.abs(features.probabilities - plain.probabilities).max(axis=1)
    assert changed[second] < 1e-5
    assert min(changed[first], np.delete(changed, [first, second]).max()) > 1e-3
    # The same windows are called the same, whatever labels they bear.
    changed = np.abs(labels.probabilities[[second, first]] - plain.probabilities[[first, second]])
    assert changed.max() < 1e-5
    assert np.abs(labels.probabilities[:first] - plain.probabilities[:first]).max() > 1e-3


@pytest.mark.parametrize("name", FUSIONS)
def test_fusions_score_at_chance_where_features_only_name_the_device(tried: Any, name: str) -> None:
    method = _of_two_views(tried, name)
    assert accuracy_of(method, Naming(0, paired=True)) == pytest.approx(0.5, abs=0.1)
    assert accuracy_of(method, Naming(0, twins=True)) > 0.8


def test_stacking_gives_a_useless_view_little_weight(tried: Any) -> None:
    random = np.random.default_rng(0)
    codes = np.arange(40) % 2
    good, useless = random.uniform(0.6, 0.9, 40), random.uniform(0.3, 0.7, 40)
    of_truth = np.stack([good, useless], axis=1)
    weights = tried.mixture_weights(of_truth, codes, 1.0)
    assert weights[1] < 0.1
    assert weights.sum() == pytest.approx(1)
    # A prior of many units outweighs what these say, and one of none lets the better view win.
    np.testing.assert_allclose(tried.mixture_weights(of_truth, codes, 1e6), 0.5, atol=1e-3)
    assert tried.mixture_weights(of_truth, codes, 0.0)[1] < weights[1]


def test_stacking_lets_a_rare_class_weigh_as_much_as_a_frequent_one(tried: Any) -> None:
    codes = np.array([0] * 36 + [1] * 4)
    # One view knows the frequent class, and the other one as much of the rare class.
    of_truth = np.where(codes[:, None] == [0, 1], 0.8, 0.2)
    np.testing.assert_allclose(tried.mixture_weights(of_truth, codes, 1.0), 0.5)


def test_a_kernel_is_centred_and_of_unit_trace_on_training_rows(tried: Any) -> None:
    X = 3 + np.random.default_rng(1).random((8, 5))
    train = np.array([0, 2, 3, 5, 7])
    found = tried.unit_trace(X @ X.T, train)
    within = found[np.ix_(train, train)]
    assert np.trace(within) == pytest.approx(1)
    centred = X - X[train].mean(axis=0)
    scale = np.square(centred[train]).sum()
    np.testing.assert_allclose(found, centred @ centred.T / scale, atol=1e-12)


def test_the_product_of_gaussians_is_their_geometric_mean(tried: Any) -> None:
    dataset = Naming(4, twins=True)
    table = dataset.table("falkon", (accuracy.HISTOGRAM, "parameters"))
    rows = tried.l2_normalise_views(table.features, table.view_sizes).astype(np.float64)
    squares = [
        np.square(rows[:, None, columns] - rows[None, :, columns]).sum(axis=2)
        for columns in tried.view_columns(table.view_sizes)
    ]
    joined = tried.l2_normalise_views(rows)
    found = np.square(joined[:, None] - joined[None]).sum(axis=2)
    np.testing.assert_allclose(found, np.mean(squares, axis=0), atol=1e-6)


# --- the cache


def test_what_is_cached_is_what_was_computed(tmp_path: Path) -> None:
    calls = []

    def compute(dataset: Dataset, *, share: float) -> Verdicts:
        calls.append(share)
        return guesses(dataset, share, 7)

    dataset = Naming(0)
    method = Method("guess", "guesses", compute, {"share": 0.7})
    first = outcome(method, dataset, tmp_path)
    again = outcome(method, dataset, tmp_path)
    assert calls == [0.7]
    np.testing.assert_array_equal(first.verdicts.prediction, again.verdicts.prediction)
    np.testing.assert_array_equal(first.verdicts.probabilities, again.verdicts.probabilities)
    assert first.versions["numpy"] == np.__version__
    outcome(method, dataset, tmp_path, fresh=True)
    assert calls == [0.7] * 2
    outcome(replace(method, version=2), dataset, tmp_path)
    outcome(replace(method, params={"share": 0.1}), dataset, tmp_path)
    assert calls == [0.7] * 3 + [0.1]
    dataset.name = "other"
    outcome(method, dataset, tmp_path)
    assert calls == [0.7] * 3 + [0.1, 0.7]


def test_a_method_is_computed_again_when_the_code_that_it_uses_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, method = Naming(0), METHODS["head-parameters"]
    key, peers = method.key(dataset), METHODS["svm"].key(dataset)
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads" / "new.py").write_text("")
    monkeypatch.setattr("toptune.__file__", str(tmp_path / "__init__.py"))
    assert method.key(dataset) == key  # a process keeps the code that it began with
    accuracy._code_of_toptune.cache_clear()
    assert method.key(dataset) != key
    assert METHODS["svm"].key(dataset) == peers
    monkeypatch.undo()
    accuracy._code_of_toptune.cache_clear()
    assert method.key(dataset) == key


# --- the command line


def test_a_plugin_goes_through_sets_table_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from accuracy import Method, Verdicts, register\n"
        "def first(dataset):\n"
        "    p = [[1.0] + [0.0] * (len(dataset.classes) - 1)] * len(dataset.units.label)\n"
        "    import numpy as np\n"
        "    return Verdicts(np.full(len(p), dataset.classes[0]), np.array(p))\n"
        "register(Method('first', 'always the first class', first))\n"
    )
    monkeypatch.setattr(accuracy, "METHODS", dict(METHODS))
    monkeypatch.setattr(accuracy, "open_set", lambda name, *_: _named(name))
    out = tmp_path / "figures.json"
    arguments = ["--plugin", plugin, "--methods", "first,svm", "--sets", "mk801,4clusters"]
    status = accuracy.main([*map(str, arguments), "--cache", str(tmp_path), "--json", str(out)])
    assert status == 0
    figures = json.loads(out.read_text())
    by_name: dict[str, Any] = {line["method"]: line for line in figures["methods"]}
    assert by_name["first"]["sets"]["mk801"]["balanced_accuracy"] == pytest.approx(0.5)
    assert by_name["first"]["ece"] == pytest.approx(0.5)
    assert figures["best_peer"] == "svm"
    assert by_name["svm"]["interval"] is None
    low, high = by_name["first"]["interval"]
    assert low <= by_name["first"]["minus_best_peer"] <= high
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("| method | mean | mk801 | 4clusters | calibration error |")
    assert "| always the first class | 0.500 | 0.50 | 0.50 | 0.50 |" in "\n".join(table)
    assert accuracy.main(["--methods", "nobody"]) == 1
    assert "there is no method 'nobody'" in capsys.readouterr().err


def _named(name: str) -> Dataset:
    made = Naming(0)
    made.name = name
    return made


def test_devices_are_listed_by_the_folders_they_lie_in(tmp_path: Path) -> None:
    for name in ("Cx/1_Cx", "Cx/2_Cx", "Hp/1_Hp"):
        (tmp_path / name).mkdir(parents=True)
    assert accuracy.write_devices(tmp_path).read_text().splitlines() == [
        "recording,device,label",
        "Cx/1_Cx,1_Cx,Cx",
        "Cx/2_Cx,2_Cx,Cx",
        "Hp/1_Hp,1_Hp,Hp",
    ]
