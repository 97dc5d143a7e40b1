"""What simple classifiers of burst parameters make of the same left-out devices.

A network and pictures are worth their trouble where they tell devices apart that thirty numbers of
each whole recording do not. So a run says how two classifiers do that anybody has at hand: a
support vector machine as a user of scikit-learn writes it in five lines, untuned, and toptune's own
logistic regression. Both leave out the same groups, and learn all they need, means and scales
included, without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from toptune.evaluation.evaluate import Units, evaluate, score_task
from toptune.evaluation.folds import FoldResults, leave_one_group_out
from toptune.evaluation.task import Task, read_task
from toptune.features.burst_features import KIND
from toptune.features.table import FeatureTable
from toptune.heads.catalogue import head_of

SVM = "svm"


class Compared(NamedTuple):
    """How one classifier does."""

    name: str  # `SVM`, or a head's
    n_right: int
    n_verdicts: int
    device_accuracy: float
    balanced_accuracy: float


def support_vector_machine() -> Any:
    """Make the five lines: medians for what is missing, columns of SD 1, a Gaussian kernel."""
    return make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True),
        StandardScaler(),
        SVC(kernel="rbf", C=10, class_weight="balanced"),
    )


def compare(
    table: FeatureTable,
    group_by: str,
    merges: Mapping[str, tuple[str, ...]],
    *,
    except_for: str = "",
) -> list[Compared]:
    """Score the support vector machine and the head ``parameters``.

    Parameters
    ----------
    table : FeatureTable
        Burst parameters of the whole recordings that a run was trained on.
    group_by, merges
        As of `read_task`.
    except_for : str
        A head that need not be scored again.

    Returns
    -------
    list of Compared
        None where these recordings cannot be scored.
    """
    problems: list[str] = []
    task = read_task(table.recordings, table.recording, group_by, merges, problems)
    if problems:
        return []
    found = {SVM: leave_one_group_out(support_vector_machine(), table.features, *_who(task))}
    if except_for != KIND:
        found[KIND] = _by_logistic_regression(table, task)
    return [_compared(name, folds, task) for name, folds in found.items()]


def _who(task: Task) -> tuple[Any, Any]:
    return task.label, task.group


def _by_logistic_regression(table: FeatureTable, task: Task) -> FoldResults:
    head = head_of(KIND)
    units = Units.of(task.device, task.label)
    can_tune = len(set(task.group.tolist())) > 2
    candidates = head.candidates({}, {}, 1, tune=can_tune)
    found = evaluate(head, head.make({}), table.features, *_who(task), units, candidates)
    return found.folds


def _compared(name: str, folds: FoldResults, task: Task) -> Compared:
    scores = score_task(task, folds.classes, folds.predictions, folds.probabilities)
    n_right = sum(one.prediction == one.label for one in scores.verdicts)
    return Compared(
        name, n_right, len(scores.verdicts), scores.device_accuracy, scores.balanced_accuracy
    )
