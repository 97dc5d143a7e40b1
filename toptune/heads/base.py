"""What toptune knows of a head: its options, and how its classifier is tuned, tested and kept.

A head is a small object without state beside a scikit-learn classifier. `Head` itself serves any
classifier by fitting it anew for every fold; a head overrides what it can do faster, and what
differs. Nothing here imports NumPy, torch or scikit-learn before it is needed, so that command
lines and grids can ask heads for their options at no cost.

The classifier of a head has, beside scikit-learn's `fit`, `predict`, `predict_proba`,
`get_params` and `set_params`:

- ``class_scores(X)``: (n, k) float64, whatever the number of classes; the largest is predicted;
- ``scorer()``, if it has one: what gives ``class_scores`` of few rows again and again;
- ``to_tensors()``: what was learnt, as arrays by name;
- ``from_tensors(tensors, params, classes)``: the way back, a class method.

Arguments `random_state`, `device` and `view_sizes` of its constructor, where it has them, are set
by the run.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import import_module
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from toptune.errors import InputError
from toptune.machine.installation import require_networks
from toptune.params import Option

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from toptune.cluster import Cluster
    from toptune.heads.falkon.kernel import Nearness
    from toptune.heads.nested import HeldOut, NestedScores, Shuffled
    from toptune.heads.rows import LabelledRows

Candidate = Mapping[str, Any]
#: Told what is going on, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]
#: Told how much of one thing is done, and how much there is.
StepProgress = Callable[[int, int], None]
#: Takes a parameter's full name and a value; raises `InputError` where that is out of range.
#: Classifiers apply their rules when they are fitted, as scikit-learn asks; grids and command lines
#: apply the same rules before there is any data.
Rule = Callable[[str, Any], None]


class Table(NamedTuple):
    """A CSV file of a run."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Head:
    """A classifier as toptune sees it.

    Where a method takes `estimator`, that is a classifier of the head, not fitted unless said, and
    not changed; `rows` are `LabelledRows`, `params` arguments of the classifier's constructor, and
    `candidates` those to choose from.
    """

    name: str  # by which it is chosen
    title: str  # for people
    estimator: str  # where its scikit-learn classifier is: ``module:Class``
    # What a user may set. Those with `several` can be chosen inside every fold.
    options: tuple[Option, ...] = ()
    # Of the constructor's arguments; an option without a rule follows its type and range. A class
    # overrides it, nobody changes it.
    rules: Mapping[str, Rule] = {}
    defaults: tuple[Candidate, ...] = ({},)  # what tuning chooses from unless told otherwise
    # What a row is: features of windows, or burst parameters of whole recordings, NaN where one is
    # not defined.
    uses: Literal["pictures", "recordings"] = "pictures"
    needs_torch: bool = False  # even on the CPU
    devices: tuple[str, ...] = ("cpu",)  # where it can compute: ``cpu``, ``cuda``
    # Whether it weighs several feature sets: then all of a store, and burst parameters of the same
    # windows, are what it is trained on unless told otherwise.
    fuses: bool = False
    # Whether its tuning can be given to the workers of a cluster.
    spreads: bool = False
    # Whether rows that do not fit into memory may be read whenever they are looked at
    # (`toptune.heads.streaming`).
    streams: bool = False
    # Of pictures: the most windows of a recording that are trained on and scored unless told
    # otherwise; None: all.
    windows_per_recording: int | None = None

    @property
    def tuned(self) -> tuple[str, ...]:
        """Arguments of the constructor that tuning may choose."""
        return tuple(one.field for one in self.options if one.several)

    def estimator_type(self) -> Any:
        """Import the classifier's class.

        Raises
        ------
        MissingPackagesError
            It needs torch, which is not installed.
        """
        if self.needs_torch:
            require_networks(f"the classifier {self.name}")
        module, _, name = self.estimator.partition(":")
        return getattr(import_module(module), name)

    def accepts(self, argument: str) -> bool:
        """Whether the classifier's constructor has an argument."""
        return argument in inspect.signature(self.estimator_type()).parameters

    # --- before there is any data

    def at_most(self, windows_per_recording: int | None) -> int | None:
        """Give the most windows of a recording to take, where so many are asked for; None: all."""
        asked = windows_per_recording
        return (self.windows_per_recording if asked is None else asked) or None

    def check_option(self, name: str, value: Any) -> None:
        """Refuse a value that the classifier would refuse when it is fitted.

        Parameters
        ----------
        name : str
            Of an option, or of an argument of the constructor. Unknown ones are left to `make`.
        value : any

        Raises
        ------
        InputError
            The value is out of range.
        """
        listed = {one.name: one for one in self.options}
        field = listed[name].field if name in listed else name
        rule = self.rules.get(field)
        if rule is None and name in listed:
            rule = rule_of(listed[name])
        if rule is not None:
            rule(f"{self.estimator.partition(':')[2]}.{field}", value)

    def candidates(
        self,
        fixed: Mapping[str, Any],
        tried: Mapping[str, Sequence[Any]],
        n_views: int,
        *,
        tune: bool,
    ) -> tuple[Candidate, ...]:
        """List what is to be chosen from; one candidate without a value where nothing is.

        Parameters
        ----------
        fixed : mapping of str to value
            Arguments of the constructor that are given.
        tried : mapping of str to sequence
            Arguments that are to be chosen from several values.
        n_views : int
            How many feature sets lie side by side in the rows.
        tune : bool

        Raises
        ------
        InputError
            A value to choose from where there is nothing to choose.
        """
        for name, values in tried.items():
            if name not in self.tuned:
                raise InputError(
                    f"`{name}` of the classifier {self.name} cannot be chosen inside the folds:"
                    " give one value"
                )
            if name in fixed:
                raise InputError(f"`{name}` is both fixed and to be chosen from {list(values)}")
            if not tune:
                raise InputError(
                    f"`{name}` is to be chosen from {list(values)}, but `tune=False` chooses"
                    " nothing: give one value"
                )
        if not tune or all(name in fixed for name in self.tuned):
            return ({},)
        # A fixed value is a candidate's only one, which says the same as not naming it.
        given: dict[str, Sequence[Any]] = {n: [fixed[n]] for n in self.tuned if n in fixed}
        return self.combinations({**given, **tried}, n_views)

    def combinations(
        self,
        values: Mapping[str, Sequence[Any]],
        n_views: int,  # noqa: ARG002  # of use where views have weights
    ) -> tuple[Candidate, ...]:
        """List all combinations of given values and, for arguments not named, of the defaults."""
        if not values:
            return self.defaults
        offered = {
            name: values.get(name) or sorted({c[name] for c in self.defaults if name in c})
            for name in self.tuned
        }
        offered = {name: offer for name, offer in offered.items() if offer}
        return tuple(
            dict(zip(offered, combination, strict=True))
            for combination in product(*offered.values())
        )

    def device(self, requested: str, params: Mapping[str, Any]) -> str:  # noqa: ARG002  # Falkon's depends on its solver
        """Resolve ``auto``, ``cpu`` or ``cuda`` to where the classifier computes.

        Raises
        ------
        InputError
            It cannot compute there, or there is no such device.
        """
        if "cuda" in self.devices:
            from toptune.machine.device import torch_device

            return torch_device(requested)
        if requested == "cuda":
            raise InputError(f"the classifier {self.name} works on the CPU, not on cuda")
        return "cpu"

    def on(self, cluster: Cluster, folder: Path) -> Head:  # noqa: ARG002  # of a head that spreads
        """Give the head that tunes on a cluster's workers.

        `folder` is an empty one that all of them see; what is large goes through it.
        """
        raise InputError(f"the classifier {self.name} is tuned by a single process")

    # --- from rows to a classifier

    def prepare(
        self,
        params: Mapping[str, Any],
        *,
        n_rows: int,  # noqa: ARG002  # Falkon's centres depend on it
        view_sizes: Sequence[int],
        device: str,  # noqa: ARG002  # and on the device's memory
    ) -> tuple[dict[str, Any], str | None]:
        """Fill in what follows from the rows.

        Returns
        -------
        params : dict
        note : str or None
            Why, in one line for people.
        """
        filled = dict(params)
        if len(view_sizes) > 1 and self.accepts("view_sizes"):
            filled.setdefault("view_sizes", tuple(view_sizes))
        return filled, None

    def make(self, params: Mapping[str, Any]) -> Any:
        """Build a classifier that is not fitted.

        Raises
        ------
        InputError
            An argument that its constructor does not have.
        """
        cls = self.estimator_type()
        known = list(inspect.signature(cls).parameters)
        unknown = sorted(set(params) - set(known))
        if unknown:
            raise InputError(
                f"the classifier {self.name} has no parameter {unknown[0]!r}; it has"
                f" {', '.join(known)}"
            )
        return cls(**params)

    def read(
        self, tensors: dict[str, NDArray[Any]], params: dict[str, Any], classes: NDArray[Any]
    ) -> Any:
        """Build the fitted classifier whose ``to_tensors`` and ``get_params`` were written.

        Raises
        ------
        InputError
            The tensors are not those of this head, or do not fit together.
        """
        return self.estimator_type().from_tensors(tensors, params, classes)

    def fit(self, estimator: Any, rows: LabelledRows) -> Any:
        """Train the classifier on all rows; it is changed, and given back."""
        return estimator.fit(rows.X, rows.y)

    # --- leaving groups out

    def problems(
        self, estimator: Any, n_groups: int, n_candidates: int, *, permuted: bool
    ) -> list[str]:
        """Say what stands against tuning and, where `permuted`, against shuffling the labels."""
        del estimator, permuted  # other heads look at them
        if n_candidates > 1 and n_groups < 3:
            return [
                f"tuning inside a fold needs three groups, there are {n_groups}: give fixed values"
                " with `tune=False`"
            ]
        return []

    def default_permutations(self, estimator: Any, n_groups: int) -> int:
        """How many shuffles of the labels are made unless told otherwise."""
        del estimator, n_groups  # other heads look at them
        return 0

    def held_out(self, estimator: Any, rows: LabelledRows) -> HeldOut:
        """Score every row by a classifier trained without the row's group."""
        from toptune.heads.nested import refit_folds

        return refit_folds(estimator, rows)

    def held_out_of_labellings(
        self, estimator: Any, rows: LabelledRows, labellings: NDArray[Any]
    ) -> Iterator[NDArray[np.float64]]:
        """Give held-out scores for other labels of the same rows, one labelling after the other.

        Parameters
        ----------
        estimator, rows
        labellings : (r, n) labels
            All of the same classes.

        Yields
        ------
        (n, k) float64
            Classes in their sorted order.
        """
        for labels in labellings:
            yield self.held_out(estimator, rows._replace(y=labels)).scores

    def nests(self, estimator: Any, n_groups: int, n_candidates: int) -> bool:
        """Whether folds inside folds are computed, so that scores can be calibrated."""
        del estimator, n_groups  # other heads look at them
        return n_candidates > 1

    def tune(
        self,
        estimator: Any,
        rows: LabelledRows,
        candidates: Sequence[Candidate],
        progress: StepProgress | None,
    ) -> NestedScores:
        """Leave each group out once, with the candidate chosen among the other groups.

        Parameters
        ----------
        estimator, rows, candidates
            Rows of three groups or more.
        progress : callable, optional
            Told how many models are trained, and of how many.
        """
        from toptune.heads.nested import tune_by_refitting

        return tune_by_refitting(estimator, rows, candidates, progress)

    def nested(
        self,
        estimator: Any,
        rows: LabelledRows,
        candidates: Sequence[Candidate],
        shuffled: NDArray[np.int64] | None,
        progress: Progress | None,
    ) -> tuple[NestedScores, Shuffled | None]:
        """Do the same for the observed and for shuffled labels.

        Parameters
        ----------
        estimator, rows, candidates
        shuffled : (r, u) int64, optional
            Further labellings: the class of each unit, numbered in the sorted order of the classes.
        progress : callable, optional

        Returns
        -------
        NestedScores
            Of the observed labels.
        Shuffled or None
            Its first line is of the observed labels, the others of `shuffled`.
        """
        from toptune.heads.nested import tune_each_labelling

        return tune_each_labelling(self.tune, estimator, rows, candidates, shuffled, progress)

    # --- the fitted classifier

    def nearness(self, estimator: Any, view_sizes: Sequence[int]) -> Nearness:
        """Say how alike two rows are, for telling recordings unlike those of training."""
        del estimator  # a kernel of its own is another head's
        from toptune.heads.falkon.kernel import Nearness

        return Nearness.plain(view_sizes)

    def tables(self, estimator: Any, columns: Sequence[str]) -> dict[str, Table]:
        """Give tables of the run that tell of the fitted model of all devices, by file name.

        `columns`: names of the rows' columns; empty where they have none.
        """
        del estimator, columns  # other heads have something to tell
        return {}


class NestingHead(Head):
    """A head that computes folds inside folds whether or not anything is chosen by them."""

    def problems(
        self, estimator: Any, n_groups: int, n_candidates: int, *, permuted: bool
    ) -> list[str]:
        """See `Head`; shuffles go through the folds inside folds, too."""
        found = super().problems(estimator, n_groups, n_candidates, permuted=permuted)
        if permuted and n_groups < 3:
            found.append(
                f"permutations of the classifier {self.name} need three groups: leave them out with"
                " `permutations=0`"
            )
        return found

    def nests(self, estimator: Any, n_groups: int, n_candidates: int) -> bool:
        """See `Head`; they are, wherever there are groups enough."""
        del estimator, n_candidates
        return n_groups > 2


# --- rules of parameters


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number, of Python or NumPy; a bool is none."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)


def is_count(value: Any) -> bool:
    """Whether a value is a whole number from 1."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and int(value) >= 1


def is_list(value: Any) -> bool:
    """Whether a value is a sequence or an array, and no text."""
    return isinstance(value, Collection) and not isinstance(value, str)


def listed(value: Any) -> list[Any]:
    """Give several values, or a single one, as a list."""
    return list(value) if is_list(value) else [value]


def above_0(name: str, value: Any) -> None:
    """Accept finite numbers above 0."""
    if not is_number(value) or value <= 0:
        raise InputError(f"{name} must be above 0, got {value!r}")


def at_least_0(name: str, value: Any) -> None:
    """Accept finite numbers from 0."""
    if not is_number(value) or value < 0:
        raise InputError(f"{name} must be 0 or above, got {value!r}")


def above_0_up_to_1(name: str, value: Any) -> None:
    """Accept numbers above 0, 1 included."""
    above_0(name, value)
    if value > 1:
        raise InputError(f"{name} must be at most 1, got {value!r}")


def true_or_false(name: str, value: Any) -> None:
    """Accept True and False."""
    if not isinstance(value, bool):
        raise InputError(f"{name} must be true or false, got {value!r}")


def whole_from_1(name: str, value: Any) -> None:
    """Accept whole numbers from 1."""
    if not is_count(value):
        raise InputError(f"{name} must be a whole number from 1, got {value!r}")


def one_of(*choices: str) -> Rule:
    """Make a rule that accepts some words."""
    words = f"{', '.join(choices[:-1])} or {choices[-1]}"

    def rule(name: str, value: Any) -> None:
        if value not in choices:
            raise InputError(f"{name} must be {words}, got {value!r}")

    return rule


def optional(rule: Rule) -> Rule:
    """Make a rule that accepts None as well."""

    def with_none(name: str, value: Any) -> None:
        if value is not None:
            rule(name, value)

    return with_none


def rule_of(option: Option) -> Rule:
    """Make the rule that an option's type and range stand for."""
    if option.choices:
        return one_of(*option.choices)

    def rule(name: str, value: Any) -> None:
        kinds = {bool: bool, int: numbers.Integral, float: numbers.Real}
        kind = kinds.get(option.type, option.type)
        if not isinstance(value, kind) or (isinstance(value, bool) and option.type is not bool):
            raise InputError(f"{name} must be of type {option.type.__name__}, got {value!r}")
        if option.least is not None and value < option.least:
            raise InputError(f"{name} must be {option.least:g} or above, got {value!r}")
        if option.most is not None and value > option.most:
            raise InputError(f"{name} must be at most {option.most:g}, got {value!r}")

    return rule
