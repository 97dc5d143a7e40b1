"""How often verdicts on devices never seen are right: every method on every real set, same folds.

    python benchmarks/accuracy.py --list
    python benchmarks/accuracy.py --json accuracy.json

The sets are the recordings in ../shared/data. Each method gets a `Dataset` and gives a verdict on
each device and label, by a classifier to which nothing of that device was known: all that is
learnt, chosen or scaled is learnt anew without it. Scores are balanced accuracies per verdict. The
mean over the sets decides, and its difference from the best peer has a 95 % interval, by a
bootstrap over devices within sets.

Peers are what a user can do without toptune's classifiers, in a few lines of scikit-learn or aeon.
Methods of another file are added by ``--plugin FILE``: it imports this one as ``accuracy`` and
calls `register`.

``--precision half`` describes pictures in 16 bits, and keeps all that in a folder of its own, so
that its figures can be held against those in float32.

Stores and verdicts are kept in the folder ``--cache``; a method is computed again when its version,
its parameters, the recordings or the code that it uses change. Methods that need aeon (``pip
install 'toptune[bench]'``) are shown from the cache where aeon is missing.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.util
import inspect
import io
import json
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import toptune
from toptune.errors import InputError, InputErrors
from toptune.evaluation.evaluate import Evaluation, Units, evaluate
from toptune.evaluation.folds import leave_one_group_out
from toptune.evaluation.scores import HeldOutWindows, calibration_quality, device_verdicts
from toptune.evaluation.task import Task, read_task, table_problems
from toptune.extraction import extract
from toptune.features.burst_features import VERSION, in_units
from toptune.features.picture_features import PictureFeatureParams
from toptune.features.table import FeatureTable, RecordingInfo
from toptune.heads.base import Head
from toptune.heads.catalogue import head_of
from toptune.machine.installation import describe_environment
from toptune.params import (
    RECOMMENDED_PICTURES,
    Backbone,
    Compute,
    Picture,
    Precision,
    SpikeSettings,
    Windows,
    content_key,
)
from toptune.recordings.trains import SpikeTrains, spike_times_s
from toptune.store.feature_store import FeatureSet, FeatureStore
from toptune.store.tables import table_for

SHARED = Path(__file__).parents[2] / "shared"
#: The sets, and how their spikes are read: one culture of cxhp3d has an electrode's file twice.
SETS: dict[str, SpikeSettings] = {
    "4clusters": SpikeSettings(),
    "mk801": SpikeSettings(),
    "scaffolds": SpikeSettings(),
    "cxhp3d": SpikeSettings(odd_electrodes="leave_out"),
}
#: Networks with ImageNet weights, and their files in ../shared/weights.
WEIGHTS = {
    "mobilenet_v2": "mobilenet_v2.safetensors",
    "timm:tf_efficientnet_lite0": "efficientnet_lite0.safetensors",
}
N_DRAWS = 10_000
SEED = 0


# --- the sets


@dataclass(frozen=True)
class View:
    """Pictures of windows and the network that describes them: one feature set of a store."""

    picture: Picture
    windows: Windows = field(default_factory=lambda: Windows(width_s=120, stride_s=20))
    network: str = "mobilenet_v2"

    def is_of(self, feature_set: FeatureSet) -> bool:
        """Whether a store's feature set holds these features."""
        there = PictureFeatureParams.from_json(feature_set.params)
        same = (there.picture, there.windows) == (self.picture, self.windows)
        return same and there.backbone.name == self.network


HISTOGRAM = View(Picture(kind="histogram"))
RASTER = View(Picture(kind="raster"))
HISTOGRAM_LITE0 = replace(HISTOGRAM, network="timm:tf_efficientnet_lite0")
RASTER_LITE0 = replace(RASTER, network="timm:tf_efficientnet_lite0")
#: Burst parameters of the same windows, beside views.
PARAMETERS = "parameters"
#: Whatever is drawn, but for where an electrode's band lies in a raster, and burst parameters.
EVERY: tuple[View | str, ...] = (
    HISTOGRAM,
    RASTER,
    View(Picture(kind="intervals")),
    View(Picture(kind="correlation")),
    View(Picture(count_axis="log")),
    PARAMETERS,
)


class Verdicts(NamedTuple):
    """What a method says of every device and label, in the order of `Dataset.units`."""

    prediction: NDArray[Any]  # (u,) str
    probabilities: NDArray[np.float64]  # (u, k), or what stands for them; columns as the classes


class Dataset:
    """A set of recordings, and all that methods may look at.

    Subclasses may give other parameters, tables and counts, as tests do.

    Parameters
    ----------
    name
    recordings
    store
        With spikes and feature sets of these recordings.
    """

    def __init__(
        self, name: str, recordings: Sequence[RecordingInfo], store: FeatureStore | None = None
    ) -> None:
        self.name = name
        self.recordings = tuple(recordings)
        self._store = store
        self._tables: dict[Any, FeatureTable] = {}
        # Of each recording: (n,) str
        self.device = np.array([one.device for one in self.recordings])
        self.label = np.array([one.label for one in self.recordings])
        self.batch = np.array([one.columns.get("batch", "") for one in self.recordings])
        self.classes = np.unique(self.label)  # (k,): sorted
        #: What gets a verdict, a device and label each, sorted by both.
        self.units = Units.of(self.device, self.label)

    @property
    def store(self) -> FeatureStore:
        """The store of the recordings."""
        if self._store is None:
            raise InputError(f"the set {self.name} has no store")
        return self._store

    @cached_property
    def key(self) -> str:
        """Changes when the recordings, their spikes, devices or labels change."""
        spikes = [(self.store.spikes_info(one.name) or {}).get("key") for one in self.recordings]
        who = [[one.name, one.device, one.label] for one in self.recordings]
        return content_key({"recordings": who, "spikes": spikes})

    def view_key(self, view: View | str) -> str:
        """Name a view's features in the store, or the version of burst parameters."""
        if isinstance(view, str):
            return f"{view} {VERSION}"
        found = _feature_set(self.store, view)
        if found is None:
            raise InputError(f"{self.store.path} lacks the features {view}")
        return found.key

    @cached_property
    def trains(self) -> tuple[SpikeTrains, ...]:
        """Spikes of each recording."""
        return tuple(self.store.read_spikes(one.name) for one in self.recordings)

    def table(self, head: str, views: Sequence[View | str] = ()) -> FeatureTable:
        """Give the table that a classifier of toptune is trained on, as the command line would.

        `views` are those of windows, `PARAMETERS` among them; none for whole recordings.
        """
        asked = (head_of(head).uses, tuple(views))
        if asked not in self._tables:
            words = [one if isinstance(one, str) else self.view_key(one) for one in views]
            self._tables[asked] = table_for(self.store, head, words)
        return self._tables[asked]

    @cached_property
    def parameters(self) -> NDArray[np.float64]:
        """Burst parameters of each whole recording in their units, (n, 30); NaN if undefined."""
        table = self.table("parameters")
        return self._by_recording(table, in_units(table.features))

    @cached_property
    def scaled_parameters(self) -> NDArray[np.float64]:
        """The same on toptune's scales, most of them logarithmic."""
        table = self.table("parameters")
        return self._by_recording(table, table.features.astype(np.float64))

    def _by_recording(self, table: FeatureTable, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bring a table's rows, one a recording, into the set's order."""
        row_of = {table.recordings[r].name: i for i, r in enumerate(table.recording.tolist())}
        return rows[[row_of[one.name] for one in self.recordings]]

    def counts(self, bin_ms: float = 100.0) -> list[NDArray[np.float32]]:
        """Spikes of all electrodes together in each bin of each recording, (bins,)."""
        found = []
        for trains in self.trains:
            # Times are whole samples: what is a bin's beginning but for rounding begins the bin.
            bins = np.floor(spike_times_s(trains) * 1000 / bin_ms + 1e-6).astype(np.int64)
            n = int(trains.segments[-1].start_s * 1000 / bin_ms)
            n += int(trains.segments[-1].n_samples / trains.sampling_rate_hz * 1000 / bin_ms + 1e-6)
            found.append(np.bincount(bins, minlength=n)[:n].astype(np.float32))
        return found

    def verdicts(
        self,
        device: NDArray[Any],
        label: NDArray[Any],
        predictions: NDArray[Any],
        probabilities: NDArray[np.float64],
    ) -> Verdicts:
        """Let rows, windows or whole recordings, vote for their devices' verdicts, as toptune does.

        Parameters
        ----------
        device, label : (n,) str
            Of each row.
        predictions : (n,) str
        probabilities : (n, k)
        """
        found = device_verdicts(
            HeldOutWindows(label, predictions, probabilities, device, device, self.classes)
        )
        units = zip(self.units.device.tolist(), self.units.label.tolist(), strict=True)
        if [(one.device, one.label) for one in found] != list(units):
            raise InputError(f"the set {self.name}: some devices have no verdict")
        return Verdicts(
            np.array([one.prediction for one in found]),
            np.array([one.probabilities for one in found]),
        )


def open_set(
    name: str, cache: Path, views: Sequence[View | str], precision: Precision = "auto"
) -> Dataset:
    """Open a set's store in the cache; what is missing in it is extracted from ../shared."""
    path = cache / f"{name}.zarr"
    for view in views:
        if isinstance(view, View) and not _is_whole(path, view):
            _say(f"{name}: extracting {view.picture.kind} with {view.network}")
            extract(
                unpacked(name, cache),
                path,
                windows=view.windows,
                picture=view.picture,
                backbone=Backbone(
                    name=view.network, weights=str(SHARED / "weights" / WEIGHTS[view.network])
                ),
                spikes=SETS[name],
                compute=Compute(precision=precision),
            )
    store = FeatureStore(path)
    return Dataset(name, store.recordings, store)


def _is_whole(path: Path, view: View) -> bool:
    """Whether a store has a view of all its recordings."""
    if not path.exists():
        return False
    store = FeatureStore(path)
    found = _feature_set(store, view)
    return found is not None and all(
        store.features_info(one.name, found.key) is not None for one in store.recordings
    )


def _feature_set(store: FeatureStore, view: View) -> FeatureSet | None:
    found = [one for one in store.feature_sets() if view.is_of(one)]
    return found[0] if len(found) == 1 else None


def unpacked(name: str, cache: Path) -> Path:
    """Unpack a set's recordings into the cache, unless they are there; gives the devices file."""
    folder = cache / "raw" / name
    if not folder.exists():
        archives = sorted((SHARED / "data" / name).glob("*.tar.gz"))
        if not archives:
            raise InputError(f"{SHARED / 'data' / name} holds no recordings: they are not public")
        aside = folder.with_name(f"{name}.partial-{os.getpid()}")
        for archive in archives:
            shutil.unpack_archive(archive, aside, filter="data")
        aside.rename(folder)
    listed = sorted(folder.rglob("devices.csv"))
    return listed[0] if listed else write_devices(folder)


def write_devices(folder: Path) -> Path:
    """List recordings that lie in ``class/device/``; one recording a device."""
    rows = [("recording", "device", "label")]
    for device in sorted(path for path in folder.glob("*/*") if path.is_dir()):
        label = device.parent.name
        rows.append((f"{label}/{device.name}", device.name, label))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    path = folder / "devices.csv"
    path.write_text(text.getvalue(), encoding="utf-8")
    return path


# --- methods


@dataclass(frozen=True)
class Method:
    """One way to give verdicts.

    `compute` is given a `Dataset` and `params`. What it uses that is not in `params`, `views` and
    toptune itself is part of `version`, a number that grows when verdicts may change.
    """

    name: str
    title: str  # of its line in the table
    compute: Callable[..., Verdicts]
    params: Mapping[str, Any] = field(default_factory=dict)
    views: tuple[View | str, ...] = ()  # that it reads
    version: int = 1
    peer: bool = False
    of_toptune: bool = False  # changes with the code of toptune's classifiers
    has_probabilities: bool = True  # otherwise they have no calibration error
    needs: str | None = None  # a package

    def key(self, dataset: Dataset) -> str:
        """Name its verdicts on a set."""
        return content_key(
            {
                "set": dataset.key,
                "method": self.name,
                "version": self.version,
                "params": json.loads(json.dumps(dict(self.params), default=repr)),
                "views": [dataset.view_key(view) for view in self.views],
                "code": [_code_of_toptune() if self.of_toptune else "", self._code_elsewhere()],
            }
        )

    def verdicts(self, dataset: Dataset) -> Verdicts:
        """Compute held-out verdicts on a set."""
        return self.compute(dataset, **self.params)

    def _code_elsewhere(self) -> str:
        """Sum of the file that a method of another file is in."""
        source = inspect.getsourcefile(inspect.unwrap(self.compute))
        if source is None or Path(source).resolve() == Path(__file__).resolve():
            return ""
        return hashlib.sha256(Path(source).read_bytes()).hexdigest()


@lru_cache(maxsize=1)
def _code_of_toptune() -> str:
    """Sum of the code by which toptune comes from spikes and features to verdicts.

    Looked at once, since a process keeps the code that it began with.
    """
    top, found = Path(toptune.__file__).parent, hashlib.sha256()
    for package in ("evaluation", "features", "heads", "store"):
        for path in sorted((top / package).rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()


METHODS: dict[str, Method] = {}


def register(method: Method) -> None:
    """Add a method; one of the same name is replaced."""
    METHODS[method.name] = method


def leave_devices_out(
    dataset: Dataset, estimator: Any, X: NDArray[Any], recording: NDArray[np.int64] | None = None
) -> Verdicts:
    """Fit a scikit-learn classifier anew without each device, and give the devices' verdicts.

    Parameters
    ----------
    dataset, estimator
    X : (n, ...)
        A row each recording, or a row each window.
    recording : (n,), optional
        The recording that each window is from.
    """
    rows = np.arange(len(dataset.recordings)) if recording is None else recording
    device, label = dataset.device[rows], dataset.label[rows]
    found = leave_one_group_out(estimator, X, label, device)
    return dataset.verdicts(device, label, found.predictions, found.probabilities)


def _standardised(classifier: Any) -> Any:
    """Fill in medians and standardise, all learnt from the rows that the classifier is fitted to.

    A column that is NaN throughout becomes zeros.
    """
    fill = SimpleImputer(strategy="median", keep_empty_features=True)
    return make_pipeline(fill, StandardScaler(), classifier)


def logistic(dataset: Dataset, **params: Any) -> Verdicts:
    """Logistic regression on parameters of whole recordings."""
    classifier = LogisticRegression(max_iter=10_000, **params)
    return leave_devices_out(dataset, _standardised(classifier), dataset.parameters)


def svm(dataset: Dataset, *, scaled: bool, **params: Any) -> Verdicts:
    """Support vector machine on parameters of whole recordings, in units or on toptune's scales."""
    X = dataset.scaled_parameters if scaled else dataset.parameters
    return leave_devices_out(dataset, _standardised(SVC(kernel="rbf", **params)), X)


def extra_trees(dataset: Dataset, **params: Any) -> Verdicts:
    """Extremely randomised trees on parameters of whole recordings."""
    classifier = ExtraTreesClassifier(random_state=SEED, n_jobs=-1, **params)
    return leave_devices_out(dataset, _standardised(classifier), dataset.parameters)


def minirocket(
    dataset: Dataset, *, bin_ms: float, window_s: float, n_kernels: int, class_weight: str
) -> Verdicts:
    """MiniRocket of spike counts: shares above biases after convolution, and ridge regression.

    A series is the count of all electrodes together, since the order of electrodes means nothing
    from device to device, in windows that do not overlap; the windows of a recording vote. Biases
    are quantiles of training series, columns are scaled and the ridge is chosen on training rows,
    so all of it is fitted anew in each fold.
    """
    from aeon.classification.convolution_based import MiniRocketClassifier

    X, recording = _count_windows(dataset, bin_ms, window_s)
    estimator = MiniRocketClassifier(
        n_kernels=n_kernels, class_weight=class_weight, random_state=SEED, n_jobs=-1
    )
    return leave_devices_out(dataset, estimator, X, recording)


def multirocket_hydra(
    dataset: Dataset, *, bin_ms: float, window_s: float, n_kernels: int, class_weight: str
) -> Verdicts:
    """MultiRocket and Hydra of the same windows, side by side, and ridge regression.

    As aeon's `MultiRocketHydraClassifier`, with fewer kernels of MultiRocket (there 6,250) and
    Hydra's square roots standardised as they are. MultiRocket's biases, all scales and the ridge
    are fitted anew in each fold. Hydra learns nothing from series, so the folds share it.
    """
    from aeon.transformations.collection.convolution_based import MultiRocket

    X, recording = _count_windows(dataset, bin_ms, window_s)
    series, n_bins = X[:, 0], X.shape[2]
    rocket = MultiRocket(n_kernels=n_kernels, random_state=SEED, n_jobs=-1)
    parts = [
        ("multirocket", make_pipeline(rocket, StandardScaler()), slice(0, n_bins)),
        ("hydra", StandardScaler(), slice(n_bins, None)),
    ]
    ridge = RidgeClassifierCV(alphas=np.logspace(-3, 3, 10), class_weight=class_weight)
    estimator = make_pipeline(ColumnTransformer(parts), ridge)
    rows = np.concatenate([series, np.sqrt(np.maximum(hydra(X), 0))], axis=1)
    return leave_devices_out(dataset, estimator, rows, recording)


def hydra(
    series: NDArray[np.float32], *, fitted_to: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Tell how much each kernel of a group answers most or least, (n, features) of (n, 1, bins).

    Kernels are random; whatever the series that the transform is fitted to, it is the same.
    """
    from aeon.transformations.collection.convolution_based import HydraTransformer

    transform = HydraTransformer(random_state=SEED, n_jobs=-1)
    transform.fit(series if fitted_to is None else fitted_to)
    return np.asarray(transform.transform(series), dtype=np.float32)


def _count_windows(
    dataset: Dataset, bin_ms: float, window_s: float
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cut counts into windows, (n, 1, bins), with the recording of each, (n,)."""
    n_bins = round(window_s * 1000 / bin_ms)
    X, recording = [], []
    for row, series in enumerate(dataset.counts(bin_ms)):
        whole = len(series) // n_bins
        X.append(series[: whole * n_bins].reshape(whole, 1, n_bins))
        recording += [row] * whole
    return np.concatenate(X), np.array(recording, dtype=np.int64)


def head(
    dataset: Dataset,
    *,
    name: str,
    views: Sequence[View | str] = (),
    tune: bool = True,
    fixed: Mapping[str, Any] = MappingProxyType({}),
) -> Verdicts:
    """Score one of toptune's classifiers as `toptune fit` does, without permutations.

    Its options are the defaults but for `fixed`.
    """
    task, found = evaluated(dataset.table(name, views), head_of(name), tune=tune, fixed=fixed)
    folds = found.folds
    return dataset.verdicts(task.device, task.label, folds.predictions, folds.probabilities)


def evaluated(
    table: FeatureTable,
    chosen: Head,
    *,
    tune: bool = True,
    fixed: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Task, Evaluation]:
    """Leave out each device of a table once, and say whose its rows are."""
    problems = table_problems(table, may_be_undefined=chosen.uses == "recordings")
    task = read_task(table.recordings, table.recording, "device", {}, problems)
    if problems:
        raise InputErrors(problems)
    n_rows, sizes = len(table.features), table.view_sizes
    params, _ = chosen.prepare(fixed, n_rows=n_rows, view_sizes=sizes, device="cpu")
    of_run = {"random_state": SEED, "device": "cpu"}
    of_run = {name: value for name, value in of_run.items() if chosen.accepts(name)}
    found = evaluate(
        chosen,
        chosen.make({**params, **of_run}),
        table.features,
        task.label,
        task.group,
        Units.of(task.device, task.label),
        chosen.candidates(params, {}, len(sizes), tune=tune),
    )
    return task, found


def _register_all() -> None:
    balanced = {"class_weight": "balanced"}
    of_parameters: tuple[tuple[str, str, Callable[..., Verdicts], dict[str, Any]], ...] = (
        ("logistic", "logistic regression on parameters", logistic, {"C": 1.0}),
        ("svm", "SVM on parameters", svm, {"scaled": False, "C": 10.0}),
        ("svm-scaled", "SVM on scaled parameters", svm, {"scaled": True, "C": 10.0}),
        ("extra-trees", "ExtraTrees on parameters", extra_trees, {"n_estimators": 500}),
    )
    for name, title, compute, params in of_parameters:
        probabilities = compute is not svm
        register(
            Method(
                name, title, compute, {**params, **balanced}, (PARAMETERS,), peer=True,
                has_probabilities=probabilities,
            )
        )  # fmt: skip
    windows = {"bin_ms": 100.0, "window_s": 120.0, **balanced}
    of_counts: tuple[tuple[str, str, Callable[..., Verdicts], int], ...] = (
        ("minirocket", "MiniRocket on counts", minirocket, 10_000),
        ("multirocket-hydra", "MultiRocket-Hydra on counts", multirocket_hydra, 1_250),
    )
    for name, title, compute, n_kernels in of_counts:
        register(
            Method(
                name, title, compute, {"n_kernels": n_kernels, **windows}, peer=True,
                has_probabilities=False, needs="aeon",
            )
        )  # fmt: skip
    both: tuple[View | str, ...] = (HISTOGRAM, RASTER, PARAMETERS)
    recommended: tuple[View | str, ...] = (*map(View, RECOMMENDED_PICTURES), PARAMETERS)
    plain = {"balanced": False}
    of_windows: tuple[tuple[str, str, str, tuple[View | str, ...], dict[str, Any]], ...] = (
        ("recommended", "**the default**: Falkon on recommended views", "falkon", recommended, {}),
        ("recommended-untuned", "the default, nothing chosen", "falkon", recommended, {}),
        ("recommended-plain", "the default, classes not balanced", "falkon", recommended, plain),
        ("falkon-all", "Falkon on all five pictures and parameters", "falkon", EVERY, {}),
        *(
            (f"falkon-{_short(view)}", f"Falkon on {_short(view)} alone", "falkon", (view,), {})
            for view in EVERY
        ),
        ("falkon-both", "Falkon on histogram, raster and parameters", "falkon", both, {}),
        ("falkon-histogram-lite0", "Falkon on histogram, Lite0", "falkon", (HISTOGRAM_LITE0,), {}),
        ("falkon-raster-lite0", "Falkon on raster, Lite0", "falkon", (RASTER_LITE0,), {}),
        ("recordings", "`--head recordings`, recommended views", "recordings", recommended, {}),
        ("recordings-all", "`--head recordings`, all six views", "recordings", EVERY, {}),
        ("mlp-histogram-untuned", "the paper's MLP on histograms", "mlp", (HISTOGRAM,), {}),
    )
    for name, title, of_head, views, fixed in of_windows:
        options = {
            "name": of_head, "views": views, "tune": not name.endswith("-untuned"), "fixed": fixed,
        }  # fmt: skip
        register(Method(name, title, head, options, views, of_toptune=True))
    gaussian = {"kernel": "gaussian"}
    for name, title, fixed in (
        ("head-parameters", "`--head parameters`", {}),
        (
            "head-parameters-gaussian",
            "`--head parameters --kernel gaussian`",
            gaussian,
        ),
    ):
        options = {"name": "parameters", "fixed": fixed}
        register(Method(name, title, head, options, (PARAMETERS,), of_toptune=True))


def _short(view: View | str) -> str:
    """Name a view in a word or two."""
    if isinstance(view, str):
        return f"windows-{view}"
    axis = view.picture.count_axis
    return view.picture.kind if axis == "window" else f"{axis}-{view.picture.kind}"


# --- computing, or reading what was computed


class Outcome(NamedTuple):
    """Verdicts of a method on a set."""

    verdicts: Verdicts
    seconds: float  # that computing them took
    versions: dict[str, str]  # of what computed them


def outcome(method: Method, dataset: Dataset, cache: Path, *, fresh: bool = False) -> Outcome:
    """Compute a method's verdicts on a set, or read them from the cache unless `fresh`."""
    path = cache / "verdicts" / f"{dataset.name}-{method.name}-{method.key(dataset)}.npz"
    if fresh or not path.exists():
        began = time.perf_counter()
        found = method.verdicts(dataset)
        told = {"seconds": time.perf_counter() - began, "versions": _versions(method)}
        aside = path.with_suffix(f".{os.getpid()}.npz")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(aside, told=json.dumps(told), **found._asdict())
        aside.replace(path)
    with np.load(path, allow_pickle=False) as kept:
        told = json.loads(str(kept["told"]))
        verdicts = Verdicts(kept["prediction"], kept["probabilities"])
    return Outcome(verdicts, told["seconds"], told["versions"])


def _versions(method: Method) -> dict[str, str]:
    names = ["numpy", "scikit-learn", "torch", "toptune"] + ([method.needs] if method.needs else [])
    return {name: version(name) for name in names}


def lacking(method: Method, dataset: Dataset, cache: Path) -> str | None:
    """Say why a method can neither be computed nor read."""
    if method.needs is None or importlib.util.find_spec(method.needs) is not None:
        return None
    name = f"{dataset.name}-{method.name}-{method.key(dataset)}.npz"
    return None if (cache / "verdicts" / name).exists() else f"{method.needs} is not installed"


# --- scores and intervals


def calibration_error(dataset: Dataset, verdicts: Verdicts) -> float:
    """Expected calibration error of verdicts, `Scores.device_ece`."""
    return calibration_quality(dataset.units.label, *verdicts, dataset.classes).error


def balanced_accuracies(
    dataset: Dataset, right: NDArray[np.bool_], times: NDArray[np.integer[Any]]
) -> NDArray[np.float64]:
    """Mean over classes of the share of right verdicts, for devices that count several times.

    A class of which no device is left does not count.

    Parameters
    ----------
    dataset
    right : (m, u)
        Of each method and verdict.
    times : (b, d)
        How often each device counts, with all its verdicts; devices are sorted.

    Returns
    -------
    (b, m)
    """
    _, device = np.unique(dataset.units.device, return_inverse=True)
    weight = times[:, device].astype(np.float64)
    recalls = []
    for name in dataset.classes:
        mine = dataset.units.label == name
        n = weight[:, mine].sum(axis=1, keepdims=True)
        n_right = weight[:, mine] @ right[:, mine].T
        recalls.append(np.divide(n_right, n, out=np.full(n_right.shape, np.nan), where=n > 0))
    return np.asarray(np.nanmean(recalls, axis=0))


def draw_devices(dataset: Dataset, n_draws: int = N_DRAWS, seed: int = SEED) -> NDArray[np.int64]:
    """Draw as many devices as there are with replacement: how often each is drawn, (n_draws, d).

    A set has the same draws whatever other sets and methods there are.
    """
    n = len(np.unique(dataset.device))
    random = np.random.default_rng([seed, zlib.crc32(dataset.name.encode())])
    return random.multinomial(n, np.full(n, 1 / n), size=n_draws)


class Comparison(NamedTuple):
    """Balanced accuracies of methods on sets."""

    observed: NDArray[np.float64]  # (sets, m)
    draws: NDArray[np.float64]  # (b, m): means over sets, of the same devices for all methods

    @property
    def mean(self) -> NDArray[np.float64]:
        """Over sets, (m,)."""
        return np.asarray(self.observed.mean(axis=0))

    def interval(self, one: int, other: int) -> tuple[float, float]:
        """95 % interval of the difference of two methods' means."""
        low, high = np.percentile(self.draws[:, one] - self.draws[:, other], [2.5, 97.5])
        return float(low), float(high)


def compare(
    datasets: Sequence[Dataset], verdicts: Sequence[Sequence[Verdicts]], n_draws: int = N_DRAWS
) -> Comparison:
    """Score methods on sets, `verdicts[set][method]`, and draw devices within the sets."""
    observed, draws = [], []
    for dataset, of_methods in zip(datasets, verdicts, strict=True):
        right = np.array([one.prediction == dataset.units.label for one in of_methods])
        times = draw_devices(dataset, n_draws)
        observed.append(balanced_accuracies(dataset, right, np.ones_like(times[:1]))[0])
        draws.append(balanced_accuracies(dataset, right, times))
    return Comparison(np.array(observed), np.asarray(np.mean(draws, axis=0)))


# --- the table


def report(
    datasets: Sequence[Dataset],
    methods: Sequence[Method],
    outcomes: Sequence[Sequence[Outcome]],
) -> dict[str, Any]:
    """Put all figures together, JSON-able; methods with the highest mean first."""
    verdicts = [[one.verdicts for one in of_methods] for of_methods in outcomes]
    compared = compare(datasets, verdicts)
    mean = compared.mean
    peers = [i for i, method in enumerate(methods) if method.peer]
    best = max(peers, key=lambda i: mean[i]) if peers else None
    lines = []
    for i in np.argsort(-mean, kind="stable").tolist():
        method, of_sets = methods[i], {}
        for s, dataset in enumerate(datasets):
            found = outcomes[s][i]
            of_sets[dataset.name] = {
                "balanced_accuracy": float(compared.observed[s, i]),
                "ece": calibration_error(dataset, found.verdicts)
                if method.has_probabilities
                else None,
                "predictions": found.verdicts.prediction.tolist(),
                "seconds": round(found.seconds, 3),
                "versions": found.versions,
            }
        eces = [one["ece"] for one in of_sets.values()]
        lines.append(
            {
                "method": method.name,
                "title": method.title,
                "peer": method.peer,
                "params": json.loads(json.dumps(dict(method.params), default=repr)),
                "mean": float(mean[i]),
                "ece": float(np.mean(eces)) if method.has_probabilities else None,
                "minus_best_peer": None if best is None else float(mean[i] - mean[best]),
                "interval": None if best in (None, i) else list(compared.interval(i, best)),
                "sets": of_sets,
            }
        )
    return {
        "sets": {
            one.name: {
                "n_devices": len(np.unique(one.device)),
                "classes": one.classes.tolist(),
                "verdicts": [list(map(str, unit)) for unit in zip(*one.units[1:], strict=True)],
            }
            for one in datasets
        },
        "best_peer": None if best is None else methods[best].name,
        "n_draws": N_DRAWS,
        "seed": SEED,
        "methods": lines,
        "environment": describe_environment("cpu"),
    }


def markdown(figures: Mapping[str, Any]) -> str:
    """Write the table."""
    names = list(figures["sets"])
    best = figures["best_peer"]
    versus = f"minus {best} (95 %)" if best else "minus the best peer"
    header = ["method", "mean", *names, "calibration error", versus]
    lines = [_row(header), "|" + "---|" * len(header)]
    for line in figures["methods"]:
        of_sets = [f"{line['sets'][name]['balanced_accuracy']:.2f}" for name in names]
        title = f"{line['title']} (peer)" if line["peer"] else line["title"]
        ece = "" if line["ece"] is None else f"{line['ece']:.2f}"
        difference = ""
        if line["interval"] is not None:
            low, high = line["interval"]
            difference = f"{line['minus_best_peer']:+.3f} ({low:+.2f} to {high:+.2f})"
        lines.append(_row([title, f"{line['mean']:.3f}", *of_sets, ece, difference]))
    lines.append("")
    lines += [
        f"{name}: {one['n_devices']} devices, {len(one['verdicts'])} verdicts,"
        f" {len(one['classes'])} classes (chance {1 / len(one['classes']):.2f})"
        for name, one in figures["sets"].items()
    ]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


# --- the command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for."""
    options = _parser().parse_args(arguments)
    for plugin in options.plugin:
        _load(plugin)
    if options.list:
        for method in METHODS.values():
            sys.stdout.write(f"{method.name:20} {method.title}{' (peer)' * method.peer}\n")
        return 0
    try:
        methods = [METHODS[name] for name in _chosen(options.methods, METHODS, "method")]
        sets = _chosen(options.sets, SETS, "set")
        fresh = () if options.fresh is None else _chosen(options.fresh, METHODS, "method")
        cache = options.cache / ("" if options.precision == "auto" else options.precision)
        _run(methods, sets, fresh, cache, options.json, options.precision)
    except (InputError, InputErrors) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _run(
    methods: list[Method],
    sets: list[str],
    fresh: Sequence[str],
    cache: Path,
    out: Path | None,
    precision: Precision,
) -> None:
    views = list(dict.fromkeys(view for one in methods for view in one.views))
    # The spikes come with the first pictures.
    needed = [view for view in views if isinstance(view, View)] or [HISTOGRAM]
    datasets = [open_set(name, cache, needed, precision) for name in sets]
    skipped = {}
    for method in methods:
        why = next(filter(None, (lacking(method, one, cache) for one in datasets)), None)
        if why is not None:
            skipped[method.name] = why
    methods = [method for method in methods if method.name not in skipped]
    if not methods:
        raise InputError("; ".join(f"{name}: {why}" for name, why in skipped.items()))
    outcomes: list[list[Outcome]] = []
    for dataset in datasets:
        outcomes.append([])
        for method in methods:
            _say(f"{dataset.name}: {method.name}")
            outcomes[-1].append(outcome(method, dataset, cache, fresh=method.name in fresh))
    figures = report(datasets, methods, outcomes)
    figures["skipped"] = skipped
    sys.stdout.write(markdown(figures) + "\n")
    for name, why in skipped.items():
        sys.stdout.write(f"not run: {name} ({why})\n")
    if out is not None:
        out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Plain)
    parser.add_argument("--methods", help="names, separated by commas; all if not given")
    parser.add_argument("--sets", help=f"of {', '.join(SETS)}; all if not given")
    parser.add_argument("--fresh", help="methods to compute again")
    parser.add_argument("--plugin", type=Path, action="append", default=[], help="a Python file")
    parser.add_argument("--precision", choices=get_args(Precision), default="auto")
    parser.add_argument("--cache", type=Path, default=_default_cache(), help="folder of stores")
    parser.add_argument("--json", type=Path, help="write all figures here, too")
    parser.add_argument("--list", action="store_true", help="list the methods")
    return parser


class _Plain(argparse.RawDescriptionHelpFormatter):
    """Leaves the lines of this file's description as they are."""


def _chosen(given: str | None, known: Mapping[str, Any], what: str) -> list[str]:
    """Give the names between commas, or all."""
    names = list(known) if given is None else [name.strip() for name in given.split(",")]
    for name in names:
        if name not in known:
            raise InputError(f"there is no {what} {name!r}; there are {', '.join(known)}")
    return names


def _default_cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        base = Path(given) if given else Path.home() / ".cache"
        usable = os.access(next(p for p in (base, *base.parents) if p.exists()), os.W_OK)
    except RuntimeError:  # nobody's home
        usable = False
    return (base if usable else Path(tempfile.gettempdir())) / "toptune-accuracy"


def _load(plugin: Path) -> None:
    """Run a file that registers methods."""
    # It imports this very module, which may have been started as a program.
    sys.modules.setdefault("accuracy", sys.modules[__name__])
    spec = importlib.util.spec_from_file_location(plugin.stem, plugin)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[plugin.stem] = module
    spec.loader.exec_module(module)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


_register_all()

if __name__ == "__main__":
    sys.exit(main())
