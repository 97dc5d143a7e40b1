"""Read a published run, for reports and for comparisons of runs.

Metrics, parameters and held-out predictions are given as the run's files hold them, checked against
each other. Shares and probabilities lie between 0 and 1; times are in seconds.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.evaluation.counting import Counts
from toptune.evaluation.scores import (
    HeldOutWindows,
    Scores,
    Verdict,
    accuracy_interval,
    score,
)
from toptune.heads.catalogue import head_of
from toptune.recordings.trains import WeightsSource
from toptune.runs.folder import RUN

Rows = list[dict[str, str]]


class WindowOrigins(NamedTuple):
    """The recording of each held-out window, and the time at which it starts."""

    recording: NDArray[Any]  # (n,) str
    start_s: NDArray[np.float64]  # (n,): since the recording's start


@dataclass(frozen=True, eq=False, kw_only=True)
class ReadRun:
    """The contents of a run's folder."""

    path: Path
    metrics: dict[str, Any]
    params: dict[str, Any]
    environment: dict[str, Any]
    windows: HeldOutWindows  # held-out predictions of every one
    origin: WindowOrigins  # of every window, in the same order
    verdicts: tuple[Verdict, ...]  # of every device (and label)
    sources: tuple[WeightsSource | None, ...]  # of each view's weights; None: the run does not say

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes in the order in which they are shown, that of the probabilities' columns."""
        return tuple(str(name) for name in self.windows.classes)

    @property
    def views(self) -> tuple[dict[str, Any], ...]:
        """The feature sets the classifier was trained on, as a store describes them."""
        return tuple(self.params["features"]["views"])

    @property
    def first_windows(self) -> NDArray[np.int64]:
        """The first window of each recording, (recordings,) ascending."""
        return np.sort(np.unique(self.origin.recording, return_index=True)[1])

    @property
    def recordings(self) -> list[str]:
        """Names of the recordings, in the order of the windows."""
        names: list[str] = self.origin.recording[self.first_windows].tolist()
        return names

    @property
    def features(self) -> str:
        """The feature sets in words; of more than three only how many there are."""
        names = [view["name"] for view in self.views]
        return " + ".join(names) if len(names) <= 3 else f"{len(names)} feature sets side by side"

    @property
    def classifier(self) -> str:
        """Title of the classifier; its name where the package that adds it is not installed."""
        name: str = self.params["head"]
        try:
            return head_of(name).title
        except InputError:
            return name

    @property
    def rows_are(self) -> str:
        """What a row of the features is: ``windows``, or whole ``recordings``."""
        has_windows = any(view["params"].get("windows") for view in self.views)
        return "windows" if has_windows else "recordings"

    @property
    def n_correct(self) -> int:
        """Number of verdicts that are right."""
        return sum(v.prediction == v.label for v in self.verdicts)

    @property
    def counts(self) -> Counts:
        """Verdicts and devices."""
        return Counts.of(self.metrics)

    @property
    def device_confusion(self) -> NDArray[np.int64]:
        """Count the verdicts, (k, k): rows are true classes, columns predicted ones."""
        counts = np.zeros((len(self.classes),) * 2, dtype=np.int64)
        for v in self.verdicts:
            counts[self.classes.index(v.label), self.classes.index(v.prediction)] += 1
        return counts

    @cached_property
    def scores(self) -> Scores:
        """All scores, for what metrics.json does not hold: reliability and confusion matrices."""
        return score(self.windows)


def read_run(folder: Path | str) -> ReadRun:
    """Read what `toptune fit` published.

    Raises
    ------
    InputError
        The folder is no run, or files are missing, unreadable or contradict each other.
    """
    folder = Path(folder)
    params = _json(folder / RUN.marker, folder)
    if params.get("kind") != RUN.kind:
        raise InputError(f"{folder} is not a run of toptune: give the folder that fit wrote")
    metrics = _json(folder / "metrics.json", folder)
    try:
        classes = _shown_order(metrics["classes"], params)
        windows, origin = _windows(_csv(folder / "windows.csv"), classes)
        verdicts = _verdicts(_csv(folder / "devices.csv"), classes)
        weights = _json(folder / "model" / "model.json", folder)["weights"]
        read = ReadRun(
            path=folder,
            metrics=metrics,
            params=params,
            environment=_json(folder / "environment.json", folder),
            windows=windows,
            origin=origin,
            verdicts=verdicts,
            sources=tuple(None if one is None else WeightsSource(**one) for one in weights),
        )
        _refuse_unknown_classes(read)
        n = read.counts.n_verdicts
        correct = metrics["device_accuracy"] * n
        if len(verdicts) != n or abs(read.n_correct - correct) > 1e-6 * n:
            raise InputError(
                f"{folder} is damaged: by devices.csv {read.n_correct} of {len(verdicts)} devices"
                f" are classified correctly, by metrics.json {correct:g} of {n}"
            )
        if "n_verdicts" not in metrics:
            metrics |= _counted_apart(verdicts)
        _ = read.views
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        cause = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{folder} is damaged: {cause}: fit again") from None
    return read


def _shown_order(classes: list[str], params: dict[str, Any]) -> list[str]:
    """Order the classes as the run says they are to be shown; an earlier toptune did not."""
    order = params.get("class_order")
    return order if isinstance(order, list) and sorted(order) == sorted(classes) else classes


def read_verdicts(folder: Path, classes: list[str]) -> tuple[Verdict, ...]:
    """Read the verdicts of a run alone; `classes` are those of its metrics.json.

    Raises
    ------
    InputError
        They cannot be read.
    """
    try:
        return _verdicts(_csv(folder / "devices.csv"), classes)
    except (KeyError, ValueError) as error:
        raise InputError(f"{folder / 'devices.csv'} is damaged: {error}") from None


def _counted_apart(verdicts: tuple[Verdict, ...]) -> dict[str, Any]:
    """Count verdicts and devices of a run by an earlier toptune, which took them for the same."""
    devices = [v.device for v in verdicts]
    right = np.array([v.prediction == v.label for v in verdicts])
    return {
        "n_devices": len(set(devices)),
        "n_verdicts": len(verdicts),
        "device_accuracy_ci95": list(accuracy_interval(right, devices)),
    }


def _refuse_unknown_classes(run: ReadRun) -> None:
    named = {str(name) for names in run.windows[:2] for name in np.unique(names)}
    named |= {name for v in run.verdicts for name in (v.label, v.prediction)}
    unknown = sorted(named - set(run.classes))
    if unknown:
        raise ValueError(f"there is no class {unknown[0]}")


def _json(path: Path, folder: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{folder} is not a whole run: {path.name}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: it holds no object")
    return value


def _csv(path: Path) -> Rows:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise InputError(
            f"{path.parent} is not a whole run: {path.name}: {error.strerror}"
        ) from None
    if not rows:
        raise InputError(f"{path} is damaged: it has no rows")
    return rows


def _text(rows: Rows, name: str) -> NDArray[Any]:
    return np.array([row[name] for row in rows], dtype=str)


def _windows(rows: Rows, classes: list[str]) -> tuple[HeldOutWindows, WindowOrigins]:
    windows = HeldOutWindows(
        label=_text(rows, "label"),
        prediction=_text(rows, "prediction"),
        probabilities=np.array([_probabilities(row, classes) for row in rows]),
        device=_text(rows, "device"),
        group=_text(rows, "group"),
        classes=np.array(classes, dtype=str),
    )
    start_s = np.array([float(row["start_s"]) for row in rows])
    return windows, WindowOrigins(_text(rows, "recording"), start_s)


def _verdicts(rows: Rows, classes: list[str]) -> tuple[Verdict, ...]:
    return tuple(
        Verdict(
            device=row["device"],
            label=row["label"],
            group=row["group"],
            n_windows=int(row["n_windows"]),
            prediction=row["prediction"],
            votes=np.array([int(row[f"windows_{name}"]) for name in classes], dtype=np.int64),
            probabilities=np.array(_probabilities(row, classes)),
        )
        for row in rows
    )


def _probabilities(row: Mapping[str, str], classes: list[str]) -> list[float]:
    return [float(row[f"probability_{name}"]) for name in classes]
