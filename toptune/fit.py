"""Train a head, score it by leaving out whole groups, and publish the run.

What enters: a table of features, the head's name and parameters. What leaves: a folder with scores,
held-out predictions, pictures, parameters, the environment, and the head trained on all devices.
Nothing is trained before everything has been checked.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from toptune.environment import describe_environment
from toptune.errors import InputError, InputErrors
from toptune.featuretable import FeatureTable, RecordingInfo
from toptune.folds import FoldResults, group_problems, leave_one_group_out
from toptune.heads import make_head
from toptune.heads.closed_form import group_rows
from toptune.run_folder import (
    plain,
    publish,
    target_problems,
    write_json,
    write_model,
    write_params,
)
from toptune.run_tables import Task, write_confusion, write_tables
from toptune.scores import Scores, Windows, merge_classes, parse_merges, score

# With more windows than this, the falkon head gets Nystrom centres unless told otherwise: the
# kernel of all rows would take 1.8 GB and more.
ALL_ROWS_LIMIT = 15_000
NYSTROM_CENTRES = 4_000


@dataclass(frozen=True)
class RunResult:
    """A published run.

    Attributes
    ----------
    path : Path
        Its folder.
    scores : Scores
    folds : FoldResults
        Rows as in the feature table.
    metrics : dict
        What metrics.json holds.
    """

    path: Path
    scores: Scores
    folds: FoldResults
    metrics: dict[str, Any]


def fit(
    table: FeatureTable,
    head: str,
    out: Path,
    *,
    group_by: str = "device",
    merge: Iterable[str] = (),
    head_params: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> RunResult:
    """Score a head by leaving out each group once, train it on all rows, and write the run.

    Parameters
    ----------
    table : FeatureTable
    head : str
        ``mlp`` or ``falkon``.
    out : Path
        Folder of the run; must not exist, unless `overwrite` and it is a run.
    group_by : str
        What is left out together: ``device``, or a further column of the devices file.
    merge : iterable of str
        Classes to merge before training, each ``NAME=A,B,C``.
    head_params : mapping of str to value, optional
        Of the head's constructor. The seed and the device are given by `seed` and `device`.
    seed : int
        The head's random state; equal seeds give equal results.
    device : str
        Where the MLP trains: ``auto``, ``cpu`` or ``cuda``. Falkon is solved on the CPU.
    overwrite : bool

    Returns
    -------
    RunResult

    Raises
    ------
    InputErrors
        Everything that is wrong with the input, at once, before anything is trained.
    """
    start = time.perf_counter()
    out = Path(out)
    problems = target_problems(out, overwrite=overwrite)
    merges: dict[str, tuple[str, ...]] = {}
    estimator: Any = None
    try:
        merges = parse_merges(merge)
    except InputErrors as error:
        problems += error.problems
    try:
        estimator = _build_head(head, head_params or {}, seed, device, len(table.features))
    except InputError as error:
        problems.append(str(error))
    problems += _table_problems(table)
    task = _read_task(table, group_by, merges, problems)
    if problems:
        raise InputErrors(problems)

    folds = leave_one_group_out(clone(estimator), table.features, task.label, task.group)
    scores = score(
        Windows(
            task.label,
            folds.predictions,
            folds.probabilities,
            task.device,
            task.group,
            folds.classes,
        )
    )
    estimator.fit(table.features, task.label)
    metrics = _metrics(head, scores, len(task.label), time.perf_counter() - start)
    with publish(out, overwrite=overwrite) as folder:
        write_json(folder / "metrics.json", metrics)
        write_params(
            folder,
            {
                "head": head,
                "head_params": plain(estimator.get_params()),
                "seed": seed,
                "group_by": group_by,
                "merge": {name: list(members) for name, members in merges.items()},
                "features": table.provenance,
            },
        )
        trained_on = getattr(estimator, "device", "cpu")
        write_json(folder / "environment.json", describe_environment(trained_on))
        write_tables(folder, task, table.start_s, folds, scores)
        write_confusion(folder, scores)
        write_model(folder / "model", head, estimator, table.provenance)
    return RunResult(out, scores, folds, metrics)


def _build_head(
    head: str, head_params: Mapping[str, Any], seed: int, device: str, n_rows: int
) -> Any:
    params = dict(head_params)
    for name in {"random_state", "device"} & set(params):
        raise InputError(f"the head's {name} is set by the run's seed and device, not by itself")
    params["random_state"] = seed
    if head == "mlp":
        params["device"] = _torch_device(device)
    if head == "falkon":
        if device not in ("auto", "cpu"):
            raise InputError(f"the falkon head is solved on the CPU, not on {device}")
        if n_rows > ALL_ROWS_LIMIT:
            params.setdefault("n_centres", NYSTROM_CENTRES)
    return make_head(head, params)


def _torch_device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise InputError(f"there is no device {device!r}; there are auto, cpu and cuda") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda was asked for, but torch finds none; use auto or cpu")
    return device


def _table_problems(table: FeatureTable) -> list[str]:
    """Find what is wrong with the features themselves."""
    if not len(table.features):
        return ["there are no windows to train on; all recordings are shorter than one window?"]
    problems = [
        f"recording {name} is in the table {count} times"
        for name, count in Counter(info.name for info in table.recordings).items()
        if count > 1
    ]
    bad = ~np.isfinite(table.features).all(axis=1)
    for row in np.unique(table.recording[bad]):
        count = np.count_nonzero(bad & (table.recording == row))
        problems.append(
            f"recording {table.recordings[row].name}: {count} windows have features that are NaN "
            "or infinite; extract it again"
        )
    return problems


def _read_task(
    table: FeatureTable,
    group_by: str,
    merges: Mapping[str, tuple[str, ...]],
    problems: list[str],
) -> Task:
    """Give every window its device, label and group; what is wrong is added to `problems`."""
    used = np.unique(table.recording).tolist()
    infos = [table.recordings[row] for row in used]
    groups = [_group_of(info, group_by) for info in infos]
    for info, group in zip(infos, groups, strict=True):
        needed = {"device": info.device, "label": info.label, group_by: group}
        problems += [
            f"recording {info.name} has no {what}" for what, value in needed.items() if not value
        ]
    labels = np.array([info.label for info in infos], dtype=str)
    try:
        labels = merge_classes(labels, merges)
    except InputErrors as error:
        problems += error.problems
    problems += _task_problems(infos, labels, groups)
    row = np.searchsorted(used, table.recording)
    return Task(
        np.array([info.name for info in infos], dtype=str)[row],
        np.array([info.device for info in infos], dtype=str)[row],
        labels[row],
        np.array(groups, dtype=str)[row],
    )


def _group_of(info: RecordingInfo, group_by: str) -> str:
    return info.device if group_by == "device" else info.columns.get(group_by, "")


def _task_problems(
    infos: list[RecordingInfo], labels: NDArray[Any], groups: list[str]
) -> list[str]:
    """Find what makes the classes impossible to score; names that are missing are passed over."""
    named = [i for i, group in enumerate(groups) if group and labels[i]]
    if not named:
        return []
    grouping = group_rows(np.array([groups[i] for i in named], dtype=str))
    problems = group_problems(labels[named], grouping)
    classes = np.unique(labels[named])
    if len(classes) < 2:
        problems.append(f"there is one class, {classes[0]}; a head tells at least two apart")
    groups_of: dict[str, set[str]] = {}
    for i in named:
        groups_of.setdefault(infos[i].device, set()).add(groups[i])
    problems += [
        f"device {device} is in groups {' and '.join(sorted(several))}: a device must be left out "
        "whole"
        for device, several in groups_of.items()
        if len(several) > 1
    ]
    return problems


def _metrics(head: str, scores: Scores, n_windows: int, seconds: float) -> dict[str, Any]:
    return {
        "head": head,
        "classes": list(scores.classes),
        "n_groups": len(scores.groups),
        "n_devices": len(scores.verdicts),
        "n_windows": n_windows,
        "window_accuracy_mean": scores.window_accuracy_mean,
        "window_accuracy_sd": scores.window_accuracy_sd,
        "device_accuracy": scores.device_accuracy,
        "device_accuracy_ci95": list(scores.device_accuracy_ci95),
        "balanced_accuracy": scores.balanced_accuracy,
        "macro_f1": scores.macro_f1,
        "window_balanced_accuracy": scores.window_balanced_accuracy,
        "window_macro_f1": scores.window_macro_f1,
        "chance": scores.chance,
        "chance_balanced": scores.chance_balanced,
        # Permutation tests are not made yet.
        "permutation_p": None,
        "seconds": round(seconds, 3),
    }
