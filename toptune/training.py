"""Train a classifier, score it by leaving out whole groups, and publish the run.

The run is a folder with scores, held-out predictions, pictures, parameters, the environment, and
the model trained on all devices. Nothing is trained before everything has been checked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone

from toptune.cluster import Cluster
from toptune.errors import InputError, InputErrors, StorageError, ToptuneError
from toptune.evaluation.evaluate import (
    Evaluation,
    Units,
    describe_metrics,
    evaluate,
    score_task,
    shuffles,
)
from toptune.evaluation.folds import FoldResults
from toptune.evaluation.permutations import Permutations
from toptune.evaluation.scores import Scores
from toptune.evaluation.task import Task, read_task, table_problems
from toptune.features.burst_features import BurstFeatureParams
from toptune.features.table import FeatureTable, RecordingInfo
from toptune.heads.base import Candidate, Head, Progress
from toptune.heads.catalogue import head_of, heads
from toptune.heads.rows import LabelledRows, group_rows
from toptune.machine.display import count, summary_html, summary_line
from toptune.machine.installation import describe_environment
from toptune.machine.interruption import heed_interrupt
from toptune.machine.remote import local_output
from toptune.params import FitOptions, parse_merges, parse_names
from toptune.recordings.trains import TrainingFacts
from toptune.reports.run import write_report
from toptune.runs.folder import aside_of, plain, publish, target_problems, write_json, write_params
from toptune.runs.model import trained_model, write_model
from toptune.runs.tables import write_confusion, write_model_tables, write_tables
from toptune.store.feature_store import FeatureStore
from toptune.store.tables import parameter_table

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """A published run."""

    path: Path  # its folder
    scores: Scores
    evaluation: Evaluation  # rows as in the feature table
    metrics: dict[str, Any]  # what metrics.json holds

    @property
    def folds(self) -> FoldResults:
        """Held-out scores and predictions of every window."""
        return self.evaluation.folds

    def __repr__(self) -> str:
        return summary_line(f"RunResult {self.path}", self._told())

    def _repr_html_(self) -> str:
        verdicts = self.scores.verdicts
        rows = [
            (v.device, v.label, v.prediction, float(v.probabilities.max()), v.n_windows)
            for v in sorted(verdicts, key=lambda one: one.prediction == one.label)
        ]
        header = ("device", "label", "prediction", "largest probability", "windows")
        told = [*self._told(), *(f"warning: {one}" for one in self.metrics["warnings"])]
        return summary_html(f"RunResult {self.path}", told, header, rows, n_rows=len(rows))

    def _told(self) -> list[str]:
        verdicts = self.scores.verdicts
        right = sum(v.prediction == v.label for v in verdicts)
        return [
            str(self.metrics["head"]),
            f"{right} of {count(len(verdicts), 'verdict')} on left-out devices right",
            f"chance {self.scores.chance:.3f}",
        ]


def fit(
    table: FeatureTable,
    options: FitOptions,
    out: Path,
    *,
    facts: TrainingFacts,
    device: str = "auto",
    overwrite: bool = False,
    store: FeatureStore | None = None,
    compare: bool = True,
    parameters: FeatureTable | None = None,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Score a classifier by leaving out each group once, train it on all rows, and write the run.

    Parameters
    ----------
    table : FeatureTable
        Of one feature set, or of several joined; of burst parameters of whole recordings for a
        head that uses those (`toptune.store.tables.table_for`).
    options : FitOptions
        The seed, the device and the views must not be among its fixed values: they are the run's
        and the table's.
    out : Path
        Folder of the run; must not exist, unless `overwrite` and it is a run.
    facts : TrainingFacts
        Of the same table, from `FeatureStore.training_facts`.
    device : str
        Where the classifier trains: ``auto``, ``cpu`` or ``cuda``. ``auto`` takes a GPU that torch
        finds for the MLP and Falkon's iterative solvers; for the direct solver only where the GPU's
        float64 is at full rate (`toptune.machine.device.float64_device`).
    overwrite : bool
    store : FeatureStore, optional
        Where the table is from; the report shows the activity of its recordings.
    compare : bool
        Whether to say, where there is a store, how simple classifiers of burst parameters do on the
        same left-out devices; for that, all recordings are measured.
    parameters : FeatureTable, optional
        Burst parameters of the whole recordings, which the report shows, where they were measured
        already and are not to be measured for a comparison.
    cluster : Cluster, optional
        Whose workers tune the classifier, where its head `spreads`; the rest is done here.
    progress : callable, optional
        Told what is going on, how much of it is done, and how much there is.

    Returns
    -------
    RunResult

    Raises
    ------
    InputError
        There is a cluster, and the head does not spread.
    InputErrors
        Everything that is wrong with the input, at once, before anything is trained.
    """
    start = time.perf_counter()
    out = local_output(out)
    problems = target_problems(out, overwrite=overwrite)
    table = _spread(table, options)
    design = _Design.of(options, table.recordings, device, problems, table)
    if problems or design is None:
        raise InputErrors(problems)
    task = design.task
    if store is not None:
        task = task._replace(warnings=(*_same_spikes(store, table.recordings), *task.warnings))
    with ExitStack() as stack:
        head = design.head
        if cluster is not None:
            head = head.on(cluster, stack.enter_context(aside_of(out)))
        found = evaluate(
            head,
            clone(design.estimator),
            table.features,
            task.label,
            task.group,
            design.units,
            design.candidates,
            design.shuffled,
            progress=progress,
        )
    folds = found.folds
    scores = score_task(task, folds.classes, folds.predictions, folds.probabilities)
    estimator = design.estimator.set_params(**found.final)
    groups = group_rows(task.group)
    parameters = _burst_parameters(store, table, progress) if compare else parameters
    design.head.fit(
        estimator, LabelledRows(table.features, task.label, groups, design.units.of_row)
    )
    metrics = describe_metrics(options.head, task, table, scores, found)
    metrics["centres"] = design.note
    metrics["compared_with"] = _simple_classifiers(parameters, options, design) if compare else None
    metrics["windows_per_recording"] = design.head.at_most(options.windows_per_recording)
    model = trained_model(
        options.head,
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
        write_params(folder, _describe(options, design, estimator, table, store, device))
        trained_on = getattr(estimator, "device", "cpu")
        write_json(folder / "environment.json", describe_environment(trained_on))
        write_tables(folder, task, table.start_s, found, scores)
        write_confusion(folder, scores, _shown_order(options, design.task, table))
        write_model_tables(folder, table, design.head, estimator, parameters)
        write_model(folder / "model", model)
        _report(folder, out, store, progress)
    return RunResult(out, scores, found, metrics)


def _burst_parameters(
    store: FeatureStore | None, table: FeatureTable, progress: Progress | None
) -> FeatureTable | None:
    """Measure the whole recordings of a table; None where there are no spikes of them."""
    used = {table.recordings[row].name for row in np.unique(table.recording)}
    if store is None or any(store.spikes_info(name) is None for name in used):
        return None
    if _is_of_recordings(table):
        return table
    try:
        return parameter_table(store, BurstFeatureParams(), only=used, progress=progress)
    except ToptuneError as error:  # what was trained must not be lost for it
        _LOG.warning("the recordings' burst parameters were not measured: %s", error)
        return None


def _is_of_recordings(table: FeatureTable) -> bool:
    return any(not view.params.get("windows", True) for view in table.views)


def _simple_classifiers(
    parameters: FeatureTable | None, options: FitOptions, design: _Design
) -> list[dict[str, Any]] | None:
    """Score simple classifiers on the same recordings; None where they are not measured."""
    if parameters is None:
        return None
    from toptune.evaluation.comparison import compare

    try:
        found = compare(parameters, options.group_by, design.merges, except_for=options.head)
    except ToptuneError as error:  # what was trained must not be lost for it
        _LOG.warning("no comparison with simple classifiers: %s", error)
        return None
    return [one._asdict() for one in found]


def _shown_order(options: FitOptions, task: Task, table: FeatureTable) -> list[str]:
    """Order the classes as asked for, and the others as the devices file names them first."""
    first = np.argsort(table.recording, kind="stable")
    there = dict.fromkeys(task.label[first].tolist())
    asked = [name for name in parse_names(options.classes or "") if name in there]
    return list(dict.fromkeys([*asked, *there]))


def _spread(table: FeatureTable, options: FitOptions) -> FeatureTable:
    """Take as many windows of each recording as asked for, or as the classifier wants."""
    head = heads().get(options.head)
    most = None if head is None else head.at_most(options.windows_per_recording)
    return table if most is None else table.spread(most)


def _same_spikes(store: FeatureStore, recordings: Sequence[RecordingInfo]) -> list[str]:
    """Warn of recordings with the same input that count as several devices or classes."""
    same: dict[str, list[RecordingInfo]] = {}
    for one in recordings:
        info = store.spikes_info(one.name)
        if info is not None:
            same.setdefault(info["key"], []).append(one)
    return [
        f"recordings {' and '.join(one.name for one in several)} hold the same bytes as"
        f" {' and '.join(f'{one.device} ({one.label})' for one in several)}: left out, one is still"
        " learnt from the other"
        for several in same.values()
        if len({(one.device, one.label) for one in several}) > 1
    ]


def _describe(
    options: FitOptions,
    design: _Design,
    estimator: Any,
    table: FeatureTable,
    store: FeatureStore | None,
    device: str,
) -> dict[str, Any]:
    """Put together params.json."""
    devices_file = None if store is None else store.devices_file
    return {
        "head": options.head,
        "head_params": plain(estimator.get_params()),
        "candidates": [plain(dict(candidate)) for candidate in design.candidates],
        "seed": options.seed,
        "group_by": options.group_by,
        "merge": {name: list(members) for name, members in design.merges.items()},
        "class_order": _shown_order(options, design.task, table),
        "permutations": 0 if design.shuffled is None else len(design.shuffled.labels),
        "strata": options.strata,
        "requested": {
            "fixed": plain(dict(options.fixed)),
            "tried": plain(dict(options.tried)),
            "tune": options.tune,
            "windows_per_recording": options.windows_per_recording,
            "classes": options.classes,
            "permutations": options.permutations,
            "device": device,
        },
        "devices": None if devices_file is None else str(devices_file),
        "store": None if store is None else str(store.path.resolve()),
        "features": table.provenance,
    }


def _report(folder: Path, out: Path, store: FeatureStore | None, progress: Progress | None) -> None:
    """Write the report of a run that is about to be published; nothing learnt hangs on it."""
    try:
        write_report(folder, store=store, going_to=out, measure=False, progress=progress)
    except (StorageError, OSError):
        raise  # a full disk: then the rest of the run may not be whole either
    except Exception as error:  # noqa: BLE001  # told; hours of training must not hang on a drawing
        heed_interrupt(error)
        _LOG.debug("report of %s", out, exc_info=True)
        _LOG.error(
            "%s is published without its report.html (%s): `report` tries again",
            out, " ".join(str(error).split()),
        )  # fmt: skip


def fit_problems(
    recordings: Sequence[RecordingInfo], options: FitOptions, *, device: str = "auto"
) -> list[str]:
    """Say what stands against `fit` whatever the features; known before there are any.

    `recordings` are all that are listed; that one is too short for a window shows later.
    """
    problems: list[str] = []
    _Design.of(options, recordings, device, problems)
    return problems


@dataclass(frozen=True)
class _Design:
    """What is to be trained and scored, and how; checked.

    Its task and units are those of the table's windows, or of whole recordings where there is no
    table yet.
    """

    head: Head
    estimator: Any
    candidates: tuple[Candidate, ...]
    note: str | None
    merges: Mapping[str, tuple[str, ...]]
    task: Task
    units: Units
    shuffled: Permutations | None

    @classmethod
    def of(
        cls,
        options: FitOptions,
        recordings: Sequence[RecordingInfo],
        device: str,
        problems: list[str],
        table: FeatureTable | None = None,
    ) -> _Design | None:
        """Check everything that can be checked without training; what is wrong is added."""
        merges: dict[str, tuple[str, ...]] = {}
        try:
            merges = parse_merges(options.merge)
        except InputErrors as error:
            problems += error.problems
        made = _classifier(options, device, problems, table)
        if table is not None:
            problems += _table_problems(options, table)
        row = np.arange(len(recordings)) if table is None else table.recording
        task = read_task(recordings, row, options.group_by, merges, problems, strata=options.strata)
        problems += _order_problems(options, recordings, merges)
        units = Units.of(task.device, task.label)
        if made is None or problems:
            return None
        head, estimator, candidates, note = made
        n_groups = len(np.unique(task.group))
        n = options.permutations
        if n is None:
            n = head.default_permutations(estimator, n_groups)
        try:
            shuffled = shuffles(units, n, options.seed, task.stratum)
        except InputError as error:
            problems.append(str(error))
            return None
        problems += head.problems(estimator, n_groups, len(candidates), permuted=n > 0)
        return cls(head, estimator, candidates, note, merges, task, units, shuffled)


def _order_problems(
    options: FitOptions,
    recordings: Sequence[RecordingInfo],
    merges: Mapping[str, tuple[str, ...]],
) -> list[str]:
    """Say which names of the classes' order are of no class; merged ones may be named, too."""
    known = dict.fromkeys([*(info.label for info in recordings), *merges])
    if options.classes is None:
        return []
    return [
        f"`classes` names {name!r}, which is no class; there are {', '.join(known)}"
        for name in dict.fromkeys(parse_names(options.classes))
        if name not in known
    ]


def _classifier(
    options: FitOptions, device: str, problems: list[str], table: FeatureTable | None
) -> tuple[Head, Any, tuple[Candidate, ...], str | None] | None:
    """Build the classifier that is not fitted, and list what its tuning chooses from."""
    try:
        head = head_of(options.head)
        params, note = dict(options.fixed), None
        where = head.device(device, params)
        of_run = {"random_state": options.seed, "device": where}
        for name in sorted(set(of_run) & set(params)):
            raise InputError(f"`{name}` follows from the run's seed and device: do not fix it")
        for name, values in {**{n: [v] for n, v in params.items()}, **options.tried}.items():
            for value in values:
                head.check_option(name, value)
        n_views = 1
        if table is not None:
            n_views = len(table.view_sizes)
            n_rows, sizes = len(table.features), table.view_sizes
            params, note = head.prepare(params, n_rows=n_rows, view_sizes=sizes, device=where)
        given = {name: value for name, value in of_run.items() if head.accepts(name)}
        estimator = head.make({**params, **given})
        candidates = head.candidates(params, options.tried, n_views, tune=options.tune)
    except InputError as error:
        problems.append(str(error))
        return None
    return head, estimator, candidates, note


def _table_problems(options: FitOptions, table: FeatureTable) -> list[str]:
    """Say what is wrong with the features, and whether the head is made for them."""
    head = heads().get(options.head)
    of_recordings = head is not None and head.uses == "recordings"
    if head is not None and table.streamed and not head.streams:
        return [f"the classifier {head.name} needs its features in memory, and these are streamed"]
    problems = table_problems(table, may_be_undefined=of_recordings)
    if head is None or _is_of_recordings(table) == of_recordings:
        return problems
    windows, bursts = "features of windows", "burst parameters of whole recordings"
    used, given = (bursts, windows) if of_recordings else (windows, bursts)
    return [*problems, f"the classifier {head.name} is trained on {used}, and these are {given}"]
