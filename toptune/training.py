"""Train a head, score it by leaving out whole groups, and publish the run.

What enters: a table of features, the head's name and parameters. What leaves: a folder with scores,
held-out predictions, pictures, parameters, the environment, and the model trained on all devices.
Nothing is trained before everything has been checked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone

from toptune.errors import InputError, InputErrors, StorageError
from toptune.evaluation.evaluate import Evaluation, Units, evaluate, shuffles
from toptune.evaluation.folds import FoldResults
from toptune.evaluation.metrics import describe_metrics, score_task
from toptune.evaluation.permutations import Permutations
from toptune.evaluation.scores import Scores, parse_merges
from toptune.evaluation.task import Task, read_task, table_problems
from toptune.features.parameter_views import KIND, ParameterParams
from toptune.features.table import FeatureTable, RecordingInfo, View
from toptune.heads.base import Head
from toptune.heads.catalogue import head_of
from toptune.machine.environment import describe_environment
from toptune.params import content_key
from toptune.recordings.facts import TrainingFacts
from toptune.reports.run import write_report
from toptune.runs.folder import plain, publish, target_problems, write_json, write_params
from toptune.runs.model import trained_model, write_model
from toptune.runs.tables import write_confusion, write_model_tables, write_tables
from toptune.store.feature_store import FeatureStore

_LOG = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class RunResult:
    """A published run.

    Attributes
    ----------
    path : Path
        Its folder.
    scores : Scores
    evaluation : Evaluation
        Rows as in the feature table.
    metrics : dict
        What metrics.json holds.
    """

    path: Path
    scores: Scores
    evaluation: Evaluation
    metrics: dict[str, Any]

    @property
    def folds(self) -> FoldResults:
        """Held-out scores and predictions of every window."""
        return self.evaluation.folds


def fit(
    table: FeatureTable,
    head: str,
    out: Path,
    *,
    facts: TrainingFacts,
    group_by: str = "device",
    merge: Iterable[str] = (),
    head_params: Mapping[str, Any] | None = None,
    tune: bool = True,
    grid: Mapping[str, Sequence[Any]] | None = None,
    permutations: int | None = None,
    strata: str | None = None,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    store: FeatureStore | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Score a head by leaving out each group once, train it on all rows, and write the run.

    Parameters
    ----------
    table : FeatureTable
        Of one feature set, or of several joined.
    head : str
        ``mlp``, ``falkon`` or ``parameters``; the last is trained on burst parameters of whole
        recordings (`toptune.store.tables.table_for`).
    out : Path
        Folder of the run; must not exist, unless `overwrite` and it is a run.
    facts : TrainingFacts
        Of the same table, from `FeatureStore.training_facts`.
    group_by : str
        What is left out together: ``device``, or a further column of the devices file.
    merge : iterable of str
        Classes to merge before training, each ``NAME=A,B,C``.
    head_params : mapping of str to value, optional
        Of the head's constructor; what is given here is fixed, and not tuned. The seed and the
        device are given by `seed` and `device`, the views by the table.
    tune : bool
        Choose what is not fixed inside each fold's training groups; otherwise the head's own
        defaults are taken.
    grid : mapping of str to sequence, optional
        Values to choose from, by parameter; the head's default grid for parameters not named.
    permutations : int, optional
        Shuffles of the labels for the p-value. Default: 1,000 for Falkon's direct solver, 200 for
        the parameters head, none for what takes long to train every fold anew.
    strata : str, optional
        A further column of the devices file, within which labels are shuffled.
    seed : int
        The head's random state; equal seeds give equal results.
    device : str
        Where heads train: ``auto``, ``cpu`` or ``cuda``. Of a GPU that torch finds, ``auto`` makes
        use for the MLP and Falkon's iterative solvers; for the direct solver only where its
        float64 is at full rate (`toptune.machine.device.float64_device`).
    overwrite : bool
    store : FeatureStore, optional
        Where the table is from; the report shows the activity of its recordings.
    progress : callable, optional
        Told what is going on, how much of it is done, and how much there is.

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
    job = _checked(
        table,
        head,
        out,
        group_by=group_by,
        merge=merge,
        head_params=dict(head_params or {}),
        tune=tune,
        grid=grid or {},
        permutations=permutations,
        strata=strata,
        seed=seed,
        device=device,
        overwrite=overwrite,
    )
    task = job.task
    found = evaluate(
        job.head,
        clone(job.estimator),
        table.features,
        task.label,
        task.group,
        job.units,
        job.candidates,
        job.shuffled,
        progress=progress,
    )
    folds = found.folds
    scores = score_task(task, folds.classes, folds.predictions, folds.probabilities)
    estimator = job.estimator.set_params(**found.final)
    estimator.fit(table.features, task.label)
    metrics = describe_metrics(head, task, table, scores, found)
    metrics["centres"] = job.centres
    model = trained_model(
        head,
        estimator,
        table,
        facts,
        left_out=task.group,
        scores=metrics,
        inverse_temperature=found.final_inverse_temperature,
    )
    metrics["seconds"] = round(time.perf_counter() - start, 3)
    with publish(out, overwrite=overwrite) as folder:
        write_json(folder / "metrics.json", metrics)
        write_params(
            folder,
            {
                "head": head,
                "head_params": plain(estimator.get_params()),
                "candidates": [plain(dict(candidate)) for candidate in job.candidates],
                "seed": seed,
                "group_by": group_by,
                "merge": {name: list(members) for name, members in job.merges.items()},
                "permutations": 0 if job.shuffled is None else len(job.shuffled.labels),
                "strata": strata,
                "store": None if store is None else str(store.path.resolve()),
                "features": table.provenance,
            },
        )
        trained_on = getattr(estimator, "device", "cpu")
        write_json(folder / "environment.json", describe_environment(trained_on))
        write_tables(folder, task, table.start_s, found, scores)
        write_confusion(folder, scores)
        write_model_tables(folder, table, job.head, estimator)
        write_model(folder / "model", model)
        _report(folder, out, store, progress)
    return RunResult(out, scores, found, metrics)


def _report(folder: Path, out: Path, store: FeatureStore | None, progress: Progress | None) -> None:
    """Write the report of a run that is about to be published; nothing learnt hangs on it."""
    try:
        write_report(folder, store=store, going_to=out, progress=progress)
    except (StorageError, OSError):
        raise  # a full disk: then the rest of the run may not be whole either
    except Exception as error:  # noqa: BLE001  # told; hours of training must not hang on a drawing
        _LOG.debug("report of %s", out, exc_info=True)
        _LOG.error(
            "%s is published without its report.html (%s): toptune report %s tries again",
            out, " ".join(str(error).split()), out,
        )  # fmt: skip


def fit_problems(
    recordings: Sequence[RecordingInfo],
    head: str,
    *,
    group_by: str = "device",
    merge: Iterable[str] = (),
    head_params: Mapping[str, Any] | None = None,
    tune: bool = True,
    grid: Mapping[str, Sequence[Any]] | None = None,
    permutations: int | None = None,
    strata: str | None = None,
    seed: int = 0,
    device: str = "auto",
) -> list[str]:
    """Say what stands against `fit` whatever the features; known before there are any.

    Parameters
    ----------
    recordings : sequence of RecordingInfo
        All that are listed. That one is too short for a window shows later.
    head, group_by, merge, head_params, tune, grid, permutations, strata, seed, device
        As for `fit`.
    """
    n = len(recordings)
    params = ParameterParams()
    views = (
        (View(params.description, content_key(params.to_json()), 1, params.to_json()),)
        if head_of(head).uses == "recordings"
        else ()
    )
    table = FeatureTable(
        np.ones((n, 1), np.float32), np.zeros(n), np.arange(n), tuple(recordings), {}, views
    )
    try:
        _checked(
            table,
            head,
            None,
            group_by=group_by,
            merge=merge,
            head_params=dict(head_params or {}),
            tune=tune,
            grid=grid or {},
            permutations=permutations,
            strata=strata,
            seed=seed,
            device=device,
            overwrite=False,
        )
    except InputErrors as error:
        return list(error.problems)
    return []


@dataclass(frozen=True)
class _Job:
    """What has been checked and is to be done."""

    head: Head
    task: Task
    merges: Mapping[str, tuple[str, ...]]
    estimator: Any
    candidates: tuple[Mapping[str, Any], ...]
    centres: str | None
    units: Units
    shuffled: Permutations | None


def _checked(
    table: FeatureTable,
    head: str,
    out: Path | None,
    *,
    group_by: str,
    merge: Iterable[str],
    head_params: dict[str, Any],
    tune: bool,
    grid: Mapping[str, Sequence[Any]],
    permutations: int | None,
    strata: str | None,
    seed: int,
    device: str,
    overwrite: bool,
) -> _Job:
    """Check everything that can be checked without training, and tell all problems at once."""
    problems = [] if out is None else target_problems(out, overwrite=overwrite)
    merges: dict[str, tuple[str, ...]] = {}
    one, estimator, centres = None, None, None
    candidates: tuple[Mapping[str, Any], ...] = ()
    try:
        merges = parse_merges(merge)
    except InputErrors as error:
        problems += error.problems
    try:
        one = head_of(head)
        where = one.device(device, head_params)
        head_params, centres = one.prepare(
            head_params, n_rows=len(table.features), view_sizes=table.view_sizes, device=where
        )
        estimator = _build(one, head_params, seed, where)
        candidates = one.candidates(head_params, grid, len(table.view_sizes), tune=tune)
    except InputError as error:
        problems.append(str(error))
    problems += table_problems(table, may_be_undefined=one is not None and one.uses == "recordings")
    if one is not None:
        problems += _rows_problems(one, table)
    task = read_task(table, group_by, merges, problems, strata=strata)
    units = Units.of(task.device, task.label)
    shuffled = None
    if not problems and one is not None:
        try:
            n_groups = len(np.unique(task.group))
            n = permutations
            if n is None:
                n = one.default_permutations(estimator, n_groups)
            shuffled = shuffles(units, n, seed, task.stratum)
            problems += one.problems(estimator, n_groups, len(candidates), permuted=n > 0)
        except InputError as error:
            problems.append(str(error))
    if problems or one is None:
        raise InputErrors(problems)
    return _Job(one, task, merges, estimator, candidates, centres, units, shuffled)


def _rows_problems(head: Head, table: FeatureTable) -> list[str]:
    """Say whether a head and a table are not made for each other."""
    whole = any(
        view.params.get("kind") == KIND and not view.params["windows"] for view in table.views
    )
    if whole == (head.uses == "recordings"):
        return []
    return [
        f"the {head.name} head is trained on features of windows, and these are burst parameters of"
        " whole recordings"
        if whole
        else f"the {head.name} head is trained on burst parameters of whole recordings, and these"
        " are features of windows"
    ]


def _build(head: Head, params: Mapping[str, Any], seed: int, device: str) -> Any:
    of_run = {"random_state": seed, "device": device}
    for name in sorted(set(of_run) & set(params)):
        raise InputError(f"the head's {name} is set by the run's seed and device, not by itself")
    given = {name: value for name, value in of_run.items() if head.accepts(name)}
    return head.make({**params, **given})
