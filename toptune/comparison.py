"""Several runs side by side: what each scored, and whether two differ on the same devices.

Folders of runs enter, of any heads. What leaves: their metrics in one order, and for each pair the
devices that only one of them named rightly.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import binomtest

from toptune.errors import InputError

# What stands in a row: names of metrics.json.
COLUMNS = (
    "head",
    "features",
    "n_devices",
    "device_accuracy",
    "device_accuracy_ci95",
    "balanced_accuracy",
    "macro_f1",
    "window_accuracy_mean",
    "window_accuracy_sd",
    "chance",
    "permutation_p",
    "device_ece",
    "seconds",
)

Unit = tuple[str, str]


@dataclass(frozen=True, eq=False)
class RunSummary:
    """One run.

    Attributes
    ----------
    path : Path
    metrics : dict
        metrics.json.
    right : dict of (device, label) to bool
        Whether each verdict was right.
    """

    path: Path
    metrics: dict[str, Any]
    right: dict[Unit, bool]

    @property
    def row(self) -> dict[str, Any]:
        """Its values of `COLUMNS`, and its folder as ``run``."""
        return {"run": str(self.path), **{name: self.metrics[name] for name in COLUMNS}}


class Pair(NamedTuple):
    """Two runs on the same devices.

    Attributes
    ----------
    first, second : Path
    both, only_first, only_second, neither : int
        Devices that were named rightly by each.
    p : float
        Of McNemar's exact test, two-sided: how often as lopsided a split of the devices on which
        they differ would come by tossing a coin (McNemar 1947, Psychometrika 12:153-157); 1 where
        they differ on none.
    """

    first: Path
    second: Path
    both: int
    only_first: int
    only_second: int
    neither: int
    p: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs side by side.

    Attributes
    ----------
    runs : tuple of RunSummary
        As they were named.
    pairs : tuple of Pair
        Every two of them.
    """

    runs: tuple[RunSummary, ...]
    pairs: tuple[Pair, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        pairs = [
            {**p._asdict(), "first": str(p.first), "second": str(p.second)} for p in self.pairs
        ]
        return {"runs": [run.row for run in self.runs], "pairs": pairs}


def compare_runs(folders: Sequence[Path | str]) -> Comparison:
    """Put runs side by side.

    Parameters
    ----------
    folders : sequence of path
        Runs on the same devices with the same labels.

    Raises
    ------
    InputError
        A folder that is no run or is damaged, or runs on other devices or labels.
    """
    runs = [_read(Path(folder)) for folder in folders]
    for run in runs[1:]:
        differing = sorted(set(run.right) ^ set(runs[0].right))
        if differing:
            device, label = differing[0]
            raise InputError(
                f"{runs[0].path} and {run.path} were not scored on the same devices and classes:"
                f" {device} ({label}) is in one of them only"
            )
    return Comparison(tuple(runs), tuple(_pair(a, b) for a, b in combinations(runs, 2)))


def _read(folder: Path) -> RunSummary:
    try:
        metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
        with (folder / "devices.csv").open(encoding="utf-8", newline="") as file:
            right = {(r["device"], r["label"]): r["correct"] == "1" for r in csv.DictReader(file)}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} is no run of toptune, or is damaged: {error}") from None
    missing = [name for name in COLUMNS if name not in metrics]
    if missing:
        raise InputError(f"{folder / 'metrics.json'} has no {missing[0]!r}: fit again")
    return RunSummary(folder, metrics, right)


def _pair(a: RunSummary, b: RunSummary) -> Pair:
    split = [(a.right[unit], b.right[unit]) for unit in a.right]
    only_a, only_b = split.count((True, False)), split.count((False, True))
    p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    both, neither = split.count((True, True)), split.count((False, False))
    return Pair(a.path, b.path, both, only_a, only_b, neither, p)
