"""Which device, class and group each row belongs to, and what stands against training on it.

All problems of a table, its groups, classes and strata are found before anything is trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputErrors
from toptune.evaluation.folds import group_problems
from toptune.evaluation.scores import merge_classes
from toptune.features.table import FeatureTable, RecordingInfo
from toptune.heads.rows import cut, group_rows
from toptune.recordings.devices import label_doubts

# Rows whose values are looked at together.
_ROWS_AT_ONCE = 4096


class Task(NamedTuple):
    """Who each row belongs to: a window, or a whole recording."""

    # Recording and device: (n,) str
    recording: NDArray[Any]
    device: NDArray[Any]
    label: NDArray[Any]  # (n,) str: as trained on: merged where classes are
    group: NDArray[Any]  # (n,) str: what is left out together
    # (n,) str or None: within which permutations shuffle labels
    stratum: NDArray[Any] | None = None
    # What does not stand against training, but against believing the scores; one line each
    warnings: tuple[str, ...] = ()


def table_problems(table: FeatureTable, *, may_be_undefined: bool = False) -> list[str]:
    """Find what is wrong with the features themselves.

    NaN may stand for what a recording does not have, if `may_be_undefined`.
    """
    if not len(table.features):
        return ["there are no windows to train on; all recordings are shorter than one window?"]
    problems = [
        f"recording {name} is in the table {count} times"
        for name, count in Counter(info.name for info in table.recordings).items()
        if count > 1
    ]
    bad = np.empty(len(table.features), dtype=bool)
    for part in cut(len(bad), _ROWS_AT_ONCE):
        values = table.features[part]
        usable = np.isfinite(values)
        if may_be_undefined:
            usable |= np.isnan(values)
        bad[part] = ~usable.all(axis=1)
    for row in np.unique(table.recording[bad]):
        count = np.count_nonzero(bad & (table.recording == row))
        problems.append(
            f"recording {table.recordings[row].name}: {count} windows have features that are NaN "
            "or infinite; extract it again"
        )
    return problems


def read_task(
    recordings: Sequence[RecordingInfo],
    recording: NDArray[np.int64],
    group_by: str,
    merges: Mapping[str, tuple[str, ...]],
    problems: list[str],
    *,
    strata: str | None = None,
) -> Task:
    """Give every row, by the number of its recording, its device, label, group and stratum.

    `group_by` is ``device`` or a further column of the devices file, `strata` one within which
    permutations shuffle labels. What is wrong is added to `problems`.
    """
    used = np.unique(recording).tolist()
    infos = [recordings[row] for row in used]
    labels, groups = read_labels(infos, group_by, merges, problems, strata=strata)
    row = np.searchsorted(used, recording)
    return Task(
        np.array([info.name for info in infos], dtype=str)[row],
        np.array([info.device for info in infos], dtype=str)[row],
        labels[row],
        np.array(groups, dtype=str)[row],
        None
        if strata is None
        else np.array([info.columns.get(strata, "") for info in infos], dtype=str)[row],
        (
            *label_doubts(labels.tolist()),
            *batch_warnings(infos, labels.tolist(), (group_by, strata)),
        ),
    )


def read_labels(
    infos: Sequence[RecordingInfo],
    group_by: str,
    merges: Mapping[str, tuple[str, ...]],
    problems: list[str],
    *,
    strata: str | None = None,
) -> tuple[NDArray[Any], list[str]]:
    """Give every recording its class, merged where classes are, and its group; see `read_task`."""
    groups = [_group_of(info, group_by) for info in infos]
    needed = {
        "device": [info.device for info in infos],
        "label": [info.label for info in infos],
        group_by: groups,
    }
    if strata is not None:
        needed[strata] = [info.columns.get(strata, "") for info in infos]
    for what, values in needed.items():
        lacking = [i.name for i, value in zip(infos, values, strict=True) if not value]
        if lacking:
            others = f", nor have {len(lacking) - 1} others" if lacking[1:] else ""
            problems.append(
                f"recording {lacking[0]} has no {what or 'column without a name'}{others}"
            )
    labels = np.array([info.label for info in infos], dtype=str)
    try:
        labels = merge_classes(labels, merges)
    except InputErrors as error:
        problems += error.problems
    problems += _task_problems(infos, labels, groups)
    return labels, groups


def batch_warnings(
    infos: Sequence[RecordingInfo], labels: Sequence[str], columns: Iterable[str | None] = ()
) -> tuple[str, ...]:
    """Warn of classes that lie in one batch only, which a classifier may tell apart by the batch.

    `columns` may say what was made together, too. A column with one value only tells no classes
    apart; recordings without a value are passed over.
    """
    warnings = []
    for column in dict.fromkeys(("batch", *columns)):
        batches: dict[str, set[str]] = {}
        for info, label in zip(infos, labels, strict=True):
            value = info.columns.get(column or "", "")
            if value and label:
                batches.setdefault(label, set()).add(value)
        if len(set().union(*batches.values())) < 2:
            continue
        warnings += [
            f"class {label} lies in one {column} only, {next(iter(mine))}: what tells it apart may"
            f" be the {column}, not the class"
            for label, mine in sorted(batches.items())
            if len(mine) == 1
        ]
    return tuple(warnings)


def _group_of(info: RecordingInfo, group_by: str) -> str:
    return info.device if group_by == "device" else info.columns.get(group_by, "")


def _task_problems(
    infos: Sequence[RecordingInfo], labels: NDArray[Any], groups: list[str]
) -> list[str]:
    """Find what makes the classes impossible to score; names that are missing are passed over."""
    named = [i for i, group in enumerate(groups) if group and labels[i]]
    if not named:
        return []
    grouping = group_rows(np.array([groups[i] for i in named], dtype=str))
    problems = group_problems(labels[named], grouping)
    classes = np.unique(labels[named])
    if len(classes) < 2:
        problems.append(f"there is one class, {classes[0]}; a classifier needs two or more")
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
