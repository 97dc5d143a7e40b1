"""How good a head is on devices it has not seen: tuned, calibrated and tested inside the folds.

What enters: a head that is not fitted, rows of features, and for each row its label, device and
group; the candidates to choose from, and how labels may be shuffled. What leaves: held-out scores
and probabilities of every row, what was chosen in each fold, and a p-value.

Whatever is learnt, chosen or scaled for a fold comes from the other groups. Falkon's scores are
calibrated on inner folds, always, and so are the classic head's; an MLP's where it is tuned, since
inner folds cost a network a pair of groups, and are the softmax of its logits otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from toptune.errors import InputErrors
from toptune.evaluation.folds import FoldResults, fold_results, leave_one_group_out
from toptune.evaluation.permutations import (
    Permutations,
    device_accuracies,
    exchangeable_blocks,
    p_value,
    permuted_labels,
    strata_of_units,
)
from toptune.heads.calibration import calibrate_folds, fit_inverse_temperature
from toptune.heads.falkon.classifier import FalkonClassifier
from toptune.heads.falkon.tuning import tune_falkon
from toptune.heads.logistic.classifier import LogisticClassifier
from toptune.heads.logistic.tuning import tune_logistic
from toptune.heads.mlp.classifier import MLPClassifier
from toptune.heads.mlp.tuning import held_out_scores_of, tune_mlp
from toptune.heads.nested import NestedScores, Shuffled
from toptune.heads.rows import Grouping, group_rows

Candidate = Mapping[str, Any]
AnyHead = FalkonClassifier | MLPClassifier | LogisticClassifier
Progress = Callable[[str, int, int], None]


class Units(NamedTuple):
    """What carries one label and gets one verdict: a device and label.

    Attributes
    ----------
    of_row : (n,) int64
        Unit of each row, numbered in the order of devices, then labels.
    device, label : (u,) str
    """

    of_row: NDArray[np.int64]
    device: NDArray[Any]
    label: NDArray[Any]

    @classmethod
    def of(cls, device: NDArray[Any], label: NDArray[Any]) -> Units:
        """Find the pairs of device and label, each (n,), that occur."""
        devices, d = np.unique(device, return_inverse=True)
        labels, c = np.unique(label, return_inverse=True)
        pairs, of_row = np.unique(d * len(labels) + c, return_inverse=True)
        return cls(
            of_row.astype(np.int64), devices[pairs // len(labels)], labels[pairs % len(labels)]
        )


@dataclass(frozen=True)
class PermutationTest:
    """How often the procedure does as well under shuffled labels.

    Attributes
    ----------
    p : float
        ``(1 + shuffles whose device accuracy is at least the observed) / (1 + shuffles)``.
    n : int
        Shuffles.
    exact : bool
        They are all ways in which the labels can fall.
    smallest_p : float
        No p below this could be expected, however good the head.
    repeats_tuning : bool
        Candidates were chosen anew under each shuffle; otherwise there was nothing to choose.
    note : str or None
        What a user should know of a test that cannot become significant.
    """

    p: float
    n: int
    exact: bool
    smallest_p: float
    repeats_tuning: bool
    note: str | None


@dataclass(frozen=True)
class Evaluation:
    """What leaving out each group once says of a head.

    Attributes
    ----------
    folds : FoldResults
        Probabilities are calibrated where `inverse_temperature` is there.
    candidates : tuple of mapping
        What was chosen from; one where nothing was.
    nested : NestedScores or None
        What was chosen; None without inner folds.
    inverse_temperature : (g,) float64 or None
        By which each fold's scores became probabilities.
    final_inverse_temperature : float or None
        The same for the model of all devices.
    test : PermutationTest or None
    """

    folds: FoldResults
    candidates: tuple[Candidate, ...]
    nested: NestedScores | None
    inverse_temperature: NDArray[np.float64] | None
    final_inverse_temperature: float | None
    test: PermutationTest | None

    @property
    def final(self) -> Candidate:
        """What the model of all devices is trained with."""
        return self.candidates[self.nested.final_choice if self.nested else 0]


def shuffles(
    units: Units, n: int, seed: int, strata: NDArray[Any] | None = None
) -> Permutations | None:
    """Shuffle the labels of units; None for no permutations.

    Parameters
    ----------
    units : Units
    n : int
        How many; 0 for none.
    seed : int
    strata : (n_rows,) str, optional
        Within which labels may be shuffled.

    Raises
    ------
    InputError
        Units that cannot be exchanged, or in two strata.
    """
    if n == 0:
        return None
    of_units = None
    if strata is not None:
        of_units = strata_of_units(units.of_row, strata, units.device)
    blocks = exchangeable_blocks(units.device, of_units)
    codes = np.unique(units.label, return_inverse=True)[1].astype(np.int64)
    return permuted_labels(codes, blocks, n, seed)


def evaluation_problems(
    head: AnyHead, n_groups: int, n_candidates: int, permuted: bool
) -> list[str]:
    """Say what stands against tuning and permutations; an empty list where nothing does.

    Parameters
    ----------
    head : FalkonClassifier, MLPClassifier or LogisticClassifier
    n_groups, n_candidates : int
    permuted : bool
        Labels are to be shuffled.
    """
    problems = []
    if n_candidates > 1 and n_groups < 3:
        problems.append(
            f"tuning inside a fold needs three groups, there are {n_groups}: give fixed values"
            " with --no-tune"
        )
    if isinstance(head, MLPClassifier):
        return problems
    if isinstance(head, LogisticClassifier):
        if permuted and n_groups < 3:
            problems.append(
                "permutations of the parameters head need three groups: leave them out with"
                " --permutations 0"
            )
        return problems
    if n_candidates > 1 and head.solver != "direct":
        problems.append(
            f"the solver {head.solver} fits one fold at a time, so tuning would take a fit for"
            " every pair of devices and setting: give fixed values with --no-tune, or take --solver"
            " direct"
        )
    if permuted and (n_groups < 3 or head.solver != "direct"):
        problems.append(
            "Falkon's permutations need three groups and --solver direct: leave them out with"
            " --permutations 0"
        )
    return problems


def evaluate(
    head: AnyHead,
    X: NDArray[np.floating[Any]],
    y: NDArray[Any],
    groups: NDArray[Any],
    units: Units,
    candidates: Sequence[Candidate],
    shuffled: Permutations | None = None,
    *,
    progress: Progress | None = None,
) -> Evaluation:
    """Leave each group out once.

    Parameters
    ----------
    head : FalkonClassifier, MLPClassifier or LogisticClassifier
        Not fitted, and not changed.
    X : (n, d) float32 or float64
    y, groups : (n,) str
    units : Units
        Of the same rows.
    candidates : sequence of mapping
        Values of the head's constructor; one where nothing is to be chosen.
    shuffled : Permutations, optional
        From `shuffles`.
    progress : callable, optional
        Told what is going on, how much of it is done, and how much there is.

    Raises
    ------
    InputErrors
        Tuning or permutations that this solver or so few groups do not allow.
    """
    folds = _Folds(head, X, y, group_rows(groups), units, tuple(candidates), progress)
    direct = isinstance(head, FalkonClassifier) and head.solver == "direct"
    if direct and len(folds.grouping.groups) > 2:
        return folds.nested(tune_falkon, "candidates", shuffled)
    if isinstance(head, LogisticClassifier) and len(folds.grouping.groups) > 2:
        return folds.nested(tune_logistic, "labellings", shuffled)
    if isinstance(head, MLPClassifier) and len(candidates) > 1:
        return folds.tuned_mlp(shuffled)
    return folds.plain(shuffled)


@dataclass(frozen=True)
class _Folds:
    head: Any
    X: NDArray[np.floating[Any]]
    y: NDArray[Any]
    grouping: Grouping
    units: Units
    candidates: tuple[Candidate, ...]
    progress: Progress | None

    @property
    def codes(self) -> NDArray[np.int64]:
        return np.unique(self.y, return_inverse=True)[1].astype(np.int64)

    def nested(
        self,
        tune: Callable[..., tuple[NestedScores, Shuffled]],
        what: str,
        shuffled: Permutations | None,
    ) -> Evaluation:
        """Folds, folds inside folds and shuffles at once."""
        nested, told = tune(
            self.head,
            self.X,
            self.y,
            self.grouping,
            self.units.of_row,
            self.candidates,
            shuffled=None if shuffled is None else shuffled.labels,
            progress=self._report(what),
        )
        test = None if shuffled is None else self._test(shuffled, told)
        return self._calibrated(nested, test)

    def tuned_mlp(self, shuffled: Permutations | None) -> Evaluation:
        """Train a network for each pair of groups and candidate, and as many for each shuffle."""
        nested = self._tune_mlp(self.y, "networks")
        if shuffled is None:
            return self._calibrated(nested, None)
        classes = np.unique(self.y)
        scores = [nested.scores]
        for number, labels in enumerate(shuffled.labels):
            what = f"networks of shuffle {number + 1} of {len(shuffled.labels)}"
            scores.append(self._tune_mlp(classes[labels[self.units.of_row]], what).scores)
        return self._calibrated(nested, self._test(shuffled, self._told(scores)))

    def _tune_mlp(self, y: NDArray[Any], what: str) -> NestedScores:
        return tune_mlp(
            self.head,
            self.X,
            y,
            self.grouping,
            self.units.of_row,
            self.candidates,
            progress=self._report(what),
        )

    def plain(self, shuffled: Permutations | None) -> Evaluation:
        """One model a fold, nothing chosen, nothing calibrated."""
        problems = evaluation_problems(
            self.head, len(self.grouping.groups), len(self.candidates), shuffled is not None
        )
        if problems:
            raise InputErrors(problems)
        head = clone(self.head).set_params(**self.candidates[0])
        folds = leave_one_group_out(head, self.X, self.y, self.grouping.groups[self.grouping.codes])
        test = None
        if shuffled is not None:
            test = self._test(shuffled, self._told([folds.scores, *self._shuffle(head, shuffled)]))
        return Evaluation(folds, self.candidates, None, None, None, test)

    def _shuffle(self, head: MLPClassifier, shuffled: Permutations) -> list[NDArray[np.float64]]:
        report = self._report("shuffles")
        lines = []
        labelings = shuffled.labels[:, self.units.of_row].T
        for scores in held_out_scores_of(head, self.X, labelings, self.grouping):
            lines.append(scores)
            if report is not None:
                report(len(lines), len(shuffled.labels))
        return lines

    def _told(self, scores: Sequence[NDArray[np.float64]]) -> Shuffled:
        """Classes of rows and mean scores of units, of each labelling's held-out scores."""
        unit = self.units.of_row
        sizes = np.bincount(unit)[:, None]
        predicted = np.stack([of_rows.argmax(axis=1) for of_rows in scores])
        sums = np.zeros((len(scores), len(self.units.label), scores[0].shape[1]))
        for line, of_rows in zip(sums, scores, strict=True):
            np.add.at(line, unit, of_rows)
        return Shuffled(predicted.astype(np.int16), (sums / sizes).astype(np.float32))

    def _test(self, shuffled: Permutations, told: Shuffled) -> PermutationTest:
        observed = np.unique(self.units.label, return_inverse=True)[1]
        labels = np.concatenate([observed[None], shuffled.labels])
        accuracies = device_accuracies(
            told.predicted, labels, self.units.of_row, told.mean_scores.shape[2], told.mean_scores
        )
        return PermutationTest(
            p=p_value(float(accuracies[0]), accuracies[1:]),
            n=len(shuffled.labels),
            exact=shuffled.exact,
            smallest_p=shuffled.smallest_p,
            repeats_tuning=len(self.candidates) > 1,
            note=shuffled.problem,
        )

    def _calibrated(self, nested: NestedScores, test: PermutationTest | None) -> Evaluation:
        unit, codes = self.units.of_row, self.codes
        found = calibrate_folds(
            nested.inner_scores, codes, unit, self.grouping.codes, nested.scores
        )
        folds = fold_results(
            nested.scores, found.probabilities, self.grouping, np.unique(self.y), nested.jitter
        )
        final = fit_inverse_temperature(nested.final_scores, codes, unit)
        return Evaluation(folds, self.candidates, nested, found.inverse_temperature, final, test)

    def _report(self, what: str) -> Callable[[int, int], None] | None:
        progress = self.progress
        if progress is None:
            return None
        return lambda done, total: progress(what, done, total)
