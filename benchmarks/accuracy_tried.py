"""What was tried in place of the default classifier and its views: a plugin of accuracy.py.

    python benchmarks/accuracy.py --plugin benchmarks/accuracy_tried.py

None of this is a default of toptune. Other ways to fuse all six views come first, then other
views, then other kernels. Each is a line in the table. Views of the pictures are described by
MobileNetV2, and burst parameters of the same windows are one view more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from accuracy import (
    EVERY,
    HISTOGRAM,
    PARAMETERS,
    RASTER,
    SHARED,
    WEIGHTS,
    Dataset,
    Method,
    Verdicts,
    View,
    evaluated,
    head,
    register,
)
from numpy.typing import NDArray

from toptune.backbones.loading import load_backbone
from toptune.errors import InputError
from toptune.evaluation.evaluate import Units
from toptune.features.table import FeatureTable
from toptune.heads.base import Candidate, Head, Progress
from toptune.heads.calibration import calibrate_folds, calibrated
from toptune.heads.catalogue import head_of
from toptune.heads.falkon.head import PENALTY, WIDTH, FalkonHead
from toptune.heads.falkon.kernel import KernelSum
from toptune.heads.falkon.targets import balanced_targets
from toptune.heads.falkon.tuning import tune_falkon
from toptune.heads.nested import FoldScores, NestedScores, Shuffled, folds_and_pairs
from toptune.heads.recordings.kernel_means import Bags, mean_of_rows
from toptune.heads.rows import (
    Float64,
    Ints,
    LabelledRows,
    group_rows,
    l2_normalise_views,
    view_columns,
)
from toptune.params import RECOMMENDED_PICTURES, Backbone, Picture, Windows, content_key
from toptune.pictures.drawer import Drawer

Views = tuple[View | str, ...]

PICTURES = tuple(view for view in EVERY if isinstance(view, View))
SORTED_RASTER = View(Picture(kind="sorted_raster"))
RECOMMENDED = tuple(map(View, RECOMMENDED_PICTURES))
OTHER_WINDOWS = tuple(
    replace(HISTOGRAM, windows=Windows(width_s=width_s, stride_s=20)) for width_s in (30, 300)
)
LITE0 = tuple(replace(view, network="timm:tf_efficientnet_lite0") for view in PICTURES)
#: Beside wider windows these are still of those of 120 s.
PARAMETERS_120_S = f"{PARAMETERS} 120 s every 20 s"
#: Of MobileNetV2: outputs of inverted residual blocks of 32, 96 and 320 channels.
LAYERS = ("features.6", "features.13", "features.17")
#: In multiples of the default's width.
SCALES = (
    (1.0,), (0.5, 1.0), (1.0, 1.5), (1.0, 2.5), (1.0, 3.0), (0.7, 1.0, 1.4), (0.5, 1.0, 2.0),
    (0.5, 1.0, 2.0, 4.0), (0.35, 0.7, 1.4, 2.8),
)  # fmt: skip
_PICTURES_AT_ONCE = 32
_EM_STEPS = 500


# --- fusions of the views' probabilities


class Part(NamedTuple):
    """What Falkon says of every unit, a device and label, by one view."""

    held_out: Float64  # (u, k): calibrated probabilities by the model without the unit's device
    # (g, u, k): the same without device g as well, calibrated without g; NaN in units of g
    inner: Float64
    group: Ints  # (u,): number of each unit's device


@lru_cache(maxsize=32)
def part_of(dataset: Dataset, view: View | str) -> Part:
    """Evaluate Falkon on one view, as `toptune fit` does."""
    task, found = evaluated(dataset.table("falkon", [view]), head_of("falkon"))
    assert found.nested is not None  # Falkon always has inner folds
    assert found.inverse_temperature is not None
    units = Units.of(task.device, task.label)
    n_units = len(units.label)
    inner = [
        mean_of_rows(calibrated(scores, a), units.of_row, n_units)
        for scores, a in zip(found.nested.inner_scores, found.inverse_temperature, strict=True)
    ]
    held_out = mean_of_rows(found.folds.probabilities, units.of_row, n_units)
    return Part(held_out, np.array(inner), group_rows(units.device).codes)


def most_probable(dataset: Dataset, probabilities: Float64) -> Verdicts:
    """Give each unit the class of its largest probability, (u, k)."""
    return Verdicts(dataset.classes[probabilities.argmax(axis=1)], probabilities)


def mean_of_parts(dataset: Dataset, *, views: Views) -> Verdicts:
    """Average the calibrated probabilities of Falkon on each view alone."""
    parts = [part_of(dataset, view).held_out for view in views]
    return most_probable(dataset, np.mean(parts, axis=0))


def mean_with_head_parameters(dataset: Dataset, *, views: Views) -> Verdicts:
    """Average the probabilities of Falkon on all six views and of ``--head parameters``."""
    found = (head(dataset, name="falkon", views=views), head(dataset, name="parameters"))
    return most_probable(dataset, np.mean([one.probabilities for one in found], axis=0))


def stacked(dataset: Dataset, *, views: Views, pull: float) -> Verdicts:
    """Average the views' probabilities with weights learnt on the inner folds of each fold."""
    parts = [part_of(dataset, view) for view in views]
    codes = np.searchsorted(dataset.classes, dataset.units.label)
    probabilities = np.empty(parts[0].held_out.shape)
    for group in np.unique(parts[0].group).tolist():
        own = parts[0].group == group
        seen = np.flatnonzero(~own)
        of_truth = np.stack([part.inner[group, seen, codes[seen]] for part in parts], axis=1)
        weights = mixture_weights(of_truth, codes[seen], pull)
        probabilities[own] = sum(
            weight * part.held_out[own] for weight, part in zip(weights, parts, strict=True)
        )
    return most_probable(dataset, probabilities)


def mixture_weights(of_truth: Float64, codes: Ints, pull: float) -> Float64:
    """Find weights of the views, 0 or above and adding up to 1, that make the truth most probable.

    Parameters
    ----------
    of_truth : (u, v)
        The probability that each view gives to each unit's own class.
    codes : (u,)
        The units' classes, which all weigh the same.
    pull
        By how many further units, which speak for all views alike, the weights are drawn to equal
        ones: the parameter of a Dirichlet prior.
    """
    n_units, n_views = of_truth.shape
    sizes = np.bincount(codes)
    weight_of_unit = n_units / (np.count_nonzero(sizes) * sizes[codes])
    weights = np.full(n_views, 1 / n_views)
    # Expectation maximisation; probabilities may be 0 where all views are certain and wrong.
    likely = np.maximum(of_truth, np.finfo(np.float64).tiny)
    for _ in range(_EM_STEPS):
        shares = weights * likely
        shares /= shares.sum(axis=1, keepdims=True)
        weights = (weight_of_unit @ shares + pull / n_views) / (n_units + pull)
    return weights


# --- fusions of the views' kernels


def summed_kernels(dataset: Dataset, *, views: Views, width: float, ridge: float) -> Verdicts:
    """Compare recordings by the sum of the views' kernel means, and fit a balanced ridge to it.

    Each kernel is centred and scaled to unit trace on the training recordings of each fold; `ridge`
    is relative to the mean of the sum's diagonal.
    """
    kernels = kernel_means(dataset, views, width)
    codes = np.searchsorted(dataset.classes, dataset.units.label)
    n_units, n_classes = len(codes), len(dataset.classes)
    grouping = group_rows(dataset.units.device)
    n_groups = len(grouping.groups)
    found = FoldScores.empty(1, n_groups, n_units, n_classes)
    for left_out in folds_and_pairs(n_groups):
        train = np.flatnonzero(~np.isin(grouping.codes, left_out))
        kernel = np.mean([unit_trace(one, train) for one in kernels], axis=0)
        within = kernel[np.ix_(train, train)] + ridge / len(train) * np.eye(len(train))
        targets = balanced_targets(codes[train], n_classes)
        scores = kernel[:, train] @ np.linalg.solve(within, targets)
        for group in left_out:
            rows = grouping.rows(group)
            found.put(0, left_out, group, rows, scores[rows])
    folds = calibrate_folds(
        found.inner[0], codes, np.arange(n_units), grouping.codes, found.outer[0]
    )
    return most_probable(dataset, folds.probabilities)


def kernel_means(dataset: Dataset, views: Views, width: float) -> Float64:
    """Mean of the Gaussian over all pairs of windows of two units, for each view, (v, u, u)."""
    table = dataset.table("recordings", views)
    who = [table.recordings[row] for row in table.recording.tolist()]
    units = Units.of(np.array([one.device for one in who]), np.array([one.label for one in who]))
    n_units, sizes = len(units.label), table.view_sizes
    rows = l2_normalise_views(table.features, sizes)
    by_unit = rows[np.argsort(units.of_row, kind="stable")]
    alone = np.eye(len(sizes)).tolist()
    kernels = [KernelSum((width,) * len(sizes), tuple(weights), sizes) for weights in alone]
    bags = Bags(by_unit, np.bincount(units.of_row).astype(np.int64))
    return np.array(
        [mean_of_rows(one, units.of_row, n_units) for one in bags.of_windows(rows, kernels)]
    )


def unit_trace(kernel: Float64, train: Ints) -> Float64:
    """Centre a kernel, (u, u), about the mean of training units; scale their trace to 1."""
    with_mean = kernel[:, train].mean(axis=1)
    centred = kernel - with_mean[:, None] - with_mean + with_mean[train].mean()
    scaled: Float64 = centred / np.trace(centred[np.ix_(train, train)])
    return scaled


def product_of_gaussians(dataset: Dataset, *, views: Views) -> Verdicts:
    """Evaluate Falkon on the geometric mean of the views' Gaussians.

    That is one Gaussian of all columns: side by side, and again divided by their length, rows of v
    views are apart by the mean of their squared distances in the views.
    """
    table = dataset.table("falkon", views)
    rows = l2_normalise_views(table.features, table.view_sizes)
    return falkon_on(dataset, replace(table, features=rows, views=()))


def falkon_on(dataset: Dataset, table: FeatureTable, chosen: Head | None = None) -> Verdicts:
    """Evaluate Falkon, or a variant of it, on a table as `toptune fit` does."""
    task, found = evaluated(table, chosen or head_of("falkon"))
    folds = found.folds
    return dataset.verdicts(task.device, task.label, folds.predictions, folds.probabilities)


class FreeChoice(FalkonHead):
    """Falkon that chooses freely, without a handicap, which of the views to take."""

    def combinations(
        self, values: Mapping[str, Sequence[Any]], n_views: int
    ) -> tuple[Candidate, ...]:
        del values  # nothing is fixed
        # All views come first, and the empty subset, the last, is none.
        subsets = list(product((1, 0), repeat=n_views))[:-1]
        weights = [tuple(taken / sum(subset) for taken in subset) for subset in subsets]
        return tuple({"width": WIDTH, "penalty": PENALTY, "view_weights": w} for w in weights)

    def nested(
        self,
        estimator: Any,
        rows: LabelledRows,
        candidates: Sequence[Candidate],
        shuffled: Ints | None,
        progress: Progress | None,
    ) -> tuple[NestedScores, Shuffled | None]:
        return tune_falkon(estimator, rows, candidates, shuffled=shuffled, progress=progress)


def free_choice(dataset: Dataset, *, views: Views) -> Verdicts:
    """Choose among all subsets of the views inside each fold by the smallest loss."""
    return falkon_on(dataset, dataset.table("falkon", views), FreeChoice())


# --- views of intermediate layers


def layer_in_place(dataset: Dataset, *, views: Views, of: tuple[View, ...], layer: str) -> Verdicts:
    """Evaluate Falkon on views of which some, `of`, are described by an intermediate layer."""
    table = dataset.table("falkon", views)
    blocks, described = [], []
    for view, columns, name in zip(views, view_columns(table.view_sizes), table.views, strict=True):
        block = table.features[:, columns]
        if isinstance(view, View) and view in of:
            block = layer_features(dataset, view)[layer]
        blocks.append(block)
        described.append(replace(name, n_columns=block.shape[1]))
    if len({len(block) for block in blocks}) > 1:
        raise InputError(f"the set {dataset.name}: views {views} are of different windows")
    features = np.concatenate(blocks, axis=1)
    return falkon_on(dataset, replace(table, features=features, views=tuple(described)))


def layer_features(dataset: Dataset, view: View) -> dict[str, NDArray[np.float32]]:
    """Give outputs of `LAYERS` for the windows of a view's table, (n, channels) each.

    They are computed once and kept beside the store.
    """
    asked = {"set": dataset.key, "features": dataset.view_key(view), "layers": list(LAYERS)}
    folder = dataset.store.path.parent / "layers"
    path = folder / f"{dataset.name}-{view.picture.kind}-{content_key(asked)}.npz"
    if not path.exists():
        folder.mkdir(exist_ok=True)
        aside = path.with_suffix(f".{os.getpid()}.npz")
        # NumPy's types take any keyword for its own option.
        arrays: dict[str, Any] = pooled_outputs(dataset, view)
        np.savez(aside, **arrays)
        aside.replace(path)
    with np.load(path, allow_pickle=False) as kept:
        return dict(kept)


@torch.inference_mode()
def pooled_outputs(dataset: Dataset, view: View) -> dict[str, NDArray[np.float32]]:
    """Describe the pictures of a view by the mean of each channel of `LAYERS`."""
    table = dataset.table("falkon", [view])
    weights = str(SHARED / "weights" / WEIGHTS[view.network])
    network = load_backbone(Backbone(name=view.network, weights=weights))
    found: dict[str, list[torch.Tensor]] = {layer: [] for layer in LAYERS}

    def keep(layer: str) -> Callable[..., None]:
        return lambda _module, _given, output: found[layer].append(output.mean(dim=(2, 3)))

    for layer in LAYERS:
        network.module.get_submodule(layer).register_forward_hook(keep(layer))
    mean, sd = (torch.tensor(values).view(1, 3, 1, 1) for values in (network.mean, network.std))
    order = []
    for number, one in enumerate(table.recordings):
        rows = np.flatnonzero(table.recording == number)
        trains = dataset.store.read_spikes(one.name)
        drawer = Drawer(trains, view.windows, view.picture, network.input_size)
        windows = np.searchsorted(drawer.start_s, table.start_s[rows] - 1e-6).tolist()
        drawn = torch.cat([drawer.draw(window, window + 1) for window in windows])
        for at in range(0, len(drawn), _PICTURES_AT_ONCE):
            network.module((drawn[at : at + _PICTURES_AT_ONCE, None] - mean) / sd)
        order.append(rows)
    restored = np.argsort(np.concatenate(order))
    return {layer: torch.cat(outputs).numpy()[restored] for layer, outputs in found.items()}


# --- the lines of the table


def methods() -> tuple[Method, ...]:
    """List all that was tried."""
    of_views = {"views": EVERY}
    kernels = {**of_views, "width": WIDTH, "ridge": 0.1}
    fusions: tuple[tuple[str, str, Callable[..., Verdicts], dict[str, Any]], ...] = (
        ("mean-of-parts", "mean of the views' probabilities", mean_of_parts, of_views),
        ("stacked", "stacked probabilities", stacked, {**of_views, "pull": 1.0}),
        (
            "stacked-pulled", "stacked probabilities, pulled to equal", stacked,
            {**of_views, "pull": 25.0},
        ),
        ("summed-kernels", "kernel means, centred, unit trace", summed_kernels, kernels),
        ("product", "product of the views' Gaussians", product_of_gaussians, of_views),
        (
            "with-head-parameters", "mean of all six views and `--head parameters`",
            mean_with_head_parameters, of_views,
        ),
        ("free-choice", "all six views, chosen freely", free_choice, of_views),
    )  # fmt: skip
    in_place = tuple(SORTED_RASTER if view == RASTER else view for view in EVERY)
    of_windows = (HISTOGRAM, *OTHER_WINDOWS)
    other_views: tuple[tuple[str, str, Views], ...] = (
        ("sorted-raster", "Falkon on sorted_raster alone", (SORTED_RASTER,)),
        ("with-sorted-raster", "all six views and sorted_raster", (*EVERY, SORTED_RASTER)),
        ("sorted-in-place", "all six views, sorted_raster for raster", in_place),
        ("histograms", "Falkon on histograms of 30, 120 and 300 s", of_windows),
        (
            "with-histograms", "all six views and histograms of 30 and 300 s",
            (*PICTURES, PARAMETERS_120_S, *OTHER_WINDOWS),
        ),
        ("default-lite0", "all six views, Lite0", (*LITE0, PARAMETERS)),
        ("both-networks", "all six views, MobileNetV2 and Lite0", (*PICTURES, *LITE0, PARAMETERS)),
    )  # fmt: skip
    return (
        *(
            Method(name, title, compute, params, EVERY, of_toptune=True)
            for name, title, compute, params in fusions
        ),
        *(
            Method(name, title, head, {"name": "falkon", "views": views}, views, of_toptune=True)
            for name, title, views in other_views
        ),
        *_of_layers(),
        *_of_scales(),
    )


def _of_scales() -> list[Method]:
    """List other mixtures of Gaussians for the default's views, in multiples of the width 0.5."""
    views: Views = (*RECOMMENDED, PARAMETERS)
    return [
        Method(
            f"scales-{'-'.join(f'{one:g}' for one in scales)}",
            f"the default, Gaussians of {', '.join(f'{one / 2:g}' for one in scales)}",
            head, {"name": "falkon", "views": views, "fixed": {"scales": scales}}, views,
            of_toptune=True,
        )
        for scales in SCALES
    ]  # fmt: skip


def _of_layers() -> list[Method]:
    """List views of intermediate layers, alone and in place of the last layer."""
    both = (HISTOGRAM, RASTER)
    asked: tuple[tuple[str, str, Views, tuple[View, ...]], ...] = (
        ("histogram", "Falkon on histogram alone", (HISTOGRAM,), (HISTOGRAM,)),
        ("raster", "Falkon on raster alone", (RASTER,), (RASTER,)),
        ("default", "all six views, histogram and raster", EVERY, both),
        ("recommended", "recommended views", (*RECOMMENDED, PARAMETERS), RECOMMENDED),
    )
    return [
        Method(
            f"{name}-{layer.replace('features.', 'layer-')}",
            f"{title}, {layer.replace('features.', 'layer ')}",
            layer_in_place, {"views": views, "of": of, "layer": layer}, views, of_toptune=True,
        )
        for name, title, views, of in asked
        for layer in LAYERS
    ]  # fmt: skip


for _method in methods():
    register(_method)
