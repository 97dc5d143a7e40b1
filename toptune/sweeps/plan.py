"""What a sweep is to do: names and keys of its runs, and how long the rest takes.

A key says whether a run is there already: equal data, features and settings give an equal key.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from toptune.features.table import RecordingInfo
from toptune.params import FitOptions, content_key
from toptune.runs.folder import FORMAT
from toptune.sweeps.grid import PictureView


def weights_word(weights: str) -> str:
    """Name a source of weights: ``imagenet``, ``random`` or a file without its ending."""
    return weights if weights in ("imagenet", "random") else Path(weights).stem


def describe_picture(view: PictureView) -> str:
    """Name a picture, with its count axis where it is not each window's own."""
    return view.picture.description


def describe_fit(fit: FitOptions, *, task: bool = True) -> str:
    """Name a way of fitting: the head, what differs from its defaults, and if asked the task."""
    parts = [fit.head, *(f"{name} {_shown(value)}" for name, value in fit.fixed.items())]
    parts += [f"{name} of {_shown(values)}" for name, values in fit.tried.items()]
    if not fit.tune:
        parts.append("not tuned")
    if fit.permutations is not None:
        parts.append(f"{fit.permutations} permutations")
    if task and describe_task(fit):
        parts.append(describe_task(fit))
    return ", ".join(parts)


def fit_labels(fits: Iterable[FitOptions]) -> dict[FitOptions, str]:
    """Name ways of fitting as shortly as tells them apart: by the head, if there is one of it."""
    full = {fit: describe_fit(fit, task=False) for fit in fits}
    of_head: dict[str, set[str]] = {}
    for fit, text in full.items():
        of_head.setdefault(fit.head, set()).add(text)
    return {fit: fit.head if len(of_head[fit.head]) == 1 else text for fit, text in full.items()}


def describe_task(fit: FitOptions) -> str:
    """Describe merged classes and what is left out together; empty for the plain task."""
    parts = [f"{merge} merged" for merge in fit.merge]
    if fit.group_by != "device":
        parts.append(f"each {fit.group_by} left out whole")
    if fit.strata is not None:
        parts.append(f"shuffled within {fit.strata}")
    return ", ".join(parts)


def _shown(value: Any) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return " or ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def run_name(view: PictureView | None, fit: FitOptions, key: str) -> str:
    """Name a run's folder: what a reader wants to know, and its key's first eight digits."""
    parts = [describe_fit(fit)]
    if view is not None:
        windows = view.windows
        parts = [
            *(describe_picture(view), f"{windows.width_s:g}s", f"every{windows.stride_s:g}s"),
            *(view.backbone.name, weights_word(view.backbone.weights), *parts),
        ]
    slug = "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", part).strip("._") for part in parts)
    return f"{slug[:120]}-{key[:8]}"


def run_key(
    recordings: Sequence[RecordingInfo], features: Mapping[str, str], fit: FitOptions, seed: int
) -> str:
    """Give the key of a run: equal data, features and settings, equal key.

    `features` holds for each recording's name the key of its features, which covers its spikes.
    """
    return content_key(
        {
            "recordings": [asdict(recording) for recording in recordings],
            "features": dict(features),
            "fit": {
                "head": fit.head,
                "params": list(fit.fixed.items()),
                "tried": list(fit.tried.items()),
                "merge": fit.merge,
                "group_by": fit.group_by,
                "strata": fit.strata,
                "tune": fit.tune,
                "permutations": fit.permutations,
            },
            "seed": seed,
            "format": FORMAT,
        }
    )


@dataclass
class Pace:
    """How much is left of one kind of work, and what was measured of it."""

    left: int = 0
    done: int = 0
    seconds: float = 0.0

    def measure(self, n: int, seconds: float) -> None:
        """Note that so much of it was done."""
        self.left -= n
        self.done += n
        self.seconds += seconds


@dataclass
class Forecast:
    """How long the rest takes, from what was measured so far; pictures by backbone, runs by head.

    A backbone or head that has not run yet counts like the slowest that has.
    """

    pictures: defaultdict[str, Pace] = field(default_factory=lambda: defaultdict(Pace))
    runs: defaultdict[str, Pace] = field(default_factory=lambda: defaultdict(Pace))

    def seconds_left(self) -> tuple[float, bool]:
        """Seconds, and whether all work that is left was counted."""
        parts = [_left(list(paces.values())) for paces in (self.pictures, self.runs)]
        return sum(seconds for seconds, _ in parts), all(whole for _, whole in parts)


def _left(paces: Sequence[Pace]) -> tuple[float, bool]:
    slowest = max((p.seconds / p.done for p in paces if p.done), default=None)
    waiting = [p for p in paces if p.left > 0]
    if slowest is None:
        return 0.0, not waiting
    return sum(p.left * (p.seconds / p.done if p.done else slowest) for p in waiting), True
