"""What a prediction says, window by window and recording by recording, and the tables of it.

The folder holds windows.csv, verdicts.csv, predictions.json, and failures.csv where a recording
failed; its report.html is made by `toptune.reports.predictions`. Times are in seconds since the
recording's start, probabilities between 0 and 1 (six significant digits in tables).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toptune.evaluation.counting import Counts
from toptune.machine.display import summary_html, summary_line
from toptune.machine.fingerprint import file_sha256
from toptune.machine.installation import describe_environment
from toptune.recordings.trains import RecordingFacts
from toptune.runs.folder import MODEL_FILE, PREDICTIONS, write_csv, write_json
from toptune.runs.novelty import Novelty

FORMAT = 1

WINDOWS_TABLE, VERDICTS_TABLE = "windows.csv", "verdicts.csv"

# The note on a recording that the model was trained on.
SEEN = "the model was trained on this very recording: its verdict is no test of the model"


@dataclass(frozen=True, eq=False, kw_only=True)
class RecordingPrediction:
    """One recording's windows and verdict."""

    facts: RecordingFacts  # of the recording; `facts.name` is as it was named
    classes: tuple[str, ...]  # columns of what follows
    start_s: NDArray[np.float64]  # (n,): of each window
    scores: NDArray[np.float64]  # (n, k)
    probabilities: NDArray[np.float64]  # (n, k): calibrated where the model is
    codes: NDArray[np.int64]  # (n,): the class of each window's largest score
    votes: NDArray[np.int64]  # (k,): windows per class
    mean_probabilities: NDArray[np.float64]  # (k,): over the windows
    code: int  # the class with most votes, of equals the more probable, then the first
    novelty: Novelty
    # One line each: all of `novelty`'s, and what was noticed in the recording
    warnings: tuple[str, ...]
    sha256: str | None = None  # of the recording's bytes; None where it is no file

    @property
    def recording(self) -> str:
        """As it was named."""
        return self.facts.name

    @property
    def prediction(self) -> str:
        """The verdict's class."""
        return self.classes[self.code]

    @property
    def probability(self) -> float:
        """The verdict's mean probability over the windows."""
        return float(self.mean_probabilities[self.code])

    @property
    def unlike_training(self) -> bool:
        """Whether the recording is unlike anything in training."""
        return self.novelty.unlike_training

    def to_json(self) -> dict[str, Any]:
        """Plain values of the verdict, without the windows."""
        return {
            "recording": self.recording,
            "sha256": self.sha256,
            "prediction": self.prediction,
            "probability": self.probability,
            "probabilities": dict(zip(self.classes, self.mean_probabilities.tolist(), strict=True)),
            "windows": dict(zip(self.classes, self.votes.tolist(), strict=True)),
            "n_windows": len(self.codes),
            "n_windows_unlike_training": int(np.count_nonzero(self.novelty.unlike)),
            "unlike_training": self.unlike_training,
            "warnings": list(self.warnings),
            "sampling_rate_hz": self.facts.sampling_rate_hz,
            "n_electrodes": self.facts.n_electrodes,
            "duration_s": self.facts.duration_s,
            "electrode_rate_hz": self.facts.electrode_rate_hz,
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Predictions:
    """What a model says of several recordings, and how often it was right of others."""

    model: Path  # its folder
    classes: tuple[str, ...]
    calibrated: bool  # its probabilities were calibrated on left-out devices
    # Its scores on devices that were left out of training, as in metrics.json
    cross_validated: dict[str, Any]
    # In the order they were named, but for those that failed
    recordings: tuple[RecordingPrediction, ...]
    # (recording, cause) of each that failed; only with `keep_going`
    failed: tuple[tuple[str, str], ...]

    @property
    def caution(self) -> str:
        """One line to stand beside every verdict: how often the model was right on new devices."""
        m = self.cross_validated
        low, high = m["device_accuracy_ci95"]
        scored = Counts.of(m).scored.replace(" devices", " left-out devices")
        return (
            f"cross-validated on {scored}: {m['device_accuracy']:.3f}"
            f" right (95 % {low:.2f} - {high:.2f}, chance {m['chance']:.3f}); probabilities"
            f" {'calibrated on those devices' if self.calibrated else 'NOT calibrated'}"
        )

    def __repr__(self) -> str:
        return summary_line(f"Predictions by {self.model}", self._told())

    def _repr_html_(self) -> str:
        rows = [
            (one.recording, one.prediction, one.probability, "; ".join(one.warnings))
            for one in self.recordings
        ]
        header = ("recording", "prediction", "probability", "warnings")
        told = [*self._told(), self.caution]
        told += [f"failed: {name}: {cause}" for name, cause in self.failed]
        return summary_html(f"Predictions by {self.model}", told, header, rows, n_rows=len(rows))

    def _told(self) -> list[str]:
        counts = Counter(one.prediction for one in self.recordings)
        told = [f"{n} {name}" for name, n in counts.most_common()] or ["no verdict"]
        return [*told, f"{len(self.failed)} failed"] if self.failed else told

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the windows."""
        return {
            "model": str(self.model),
            "classes": list(self.classes),
            "calibrated": self.calibrated,
            "cross_validated": self.cross_validated,
            "recordings": [one.to_json() for one in self.recordings],
            "failed": [{"recording": r, "cause": c} for r, c in self.failed],
        }


# --- the folder


def write_predictions(folder: Path, predictions: Predictions) -> None:
    """Write the tables of a prediction and predictions.json into its folder."""
    marked = {**prediction_mark(predictions.model), **predictions.to_json()}
    write_json(folder / PREDICTIONS.marker, marked)
    write_csv(
        folder / WINDOWS_TABLE,
        window_header(predictions.classes),
        window_rows(predictions),
    )
    header, *rows = verdict_table(predictions)
    write_csv(folder / VERDICTS_TABLE, header, rows)
    if predictions.failed:
        write_csv(folder / "failures.csv", ["recording", "cause"], predictions.failed)


def prediction_mark(model: Path) -> dict[str, Any]:
    """Say what predictions.json is, and what wrote it; `model` is the model's folder."""
    return {
        "kind": PREDICTIONS.kind,
        "format": FORMAT,
        "toptune_version": version("toptune"),
        # model.json holds the sha256 of its tensors, so this one identifies the whole model.
        "model_sha256": file_sha256(model / MODEL_FILE),
        "packages": describe_environment("cpu")["packages"],
    }


def window_header(classes: Sequence[str]) -> list[str]:
    """Name the columns of windows.csv."""
    shares = [f"probability_{name}" for name in classes]
    return ["recording", "start_s", "prediction", *shares, "nearness", "unlike_training"]


def window_row(
    recording: str,
    start_s: float,
    prediction: str,
    probabilities: NDArray[np.float64],
    nearness: float,
    unlike: bool,
) -> list[Any]:
    """Give a row of windows.csv."""
    judged = [recording, float(start_s), prediction, *probabilities.tolist()]
    return [*judged, float(nearness), int(unlike)]


def window_rows(predictions: Predictions) -> Iterator[list[Any]]:
    """Give the rows of windows.csv."""
    for one in predictions.recordings:
        for i, code in enumerate(one.codes.tolist()):
            yield window_row(
                one.recording,
                one.start_s[i],
                one.classes[code],
                one.probabilities[i],
                one.novelty.nearness[i],
                one.novelty.unlike[i],
            )


def verdict_table(predictions: Predictions) -> list[list[Any]]:
    """Give verdicts.csv: its header, and a row a recording."""
    shares = [f"probability_{name}" for name in predictions.classes]
    votes = [f"windows_{name}" for name in predictions.classes]
    header = [
        *("recording", "prediction", "probability", "n_windows"),
        *votes,
        *shares,
        *("n_windows_unlike_training", "unlike_training", "warnings"),
    ]
    return [header, *_verdict_rows(predictions)]


def _verdict_rows(predictions: Predictions) -> Iterator[list[Any]]:
    for one in predictions.recordings:
        yield [
            one.recording,
            one.prediction,
            one.probability,
            len(one.codes),
            *one.votes.tolist(),
            *one.mean_probabilities.tolist(),
            int(one.novelty.unlike.sum()),
            int(one.unlike_training),
            "; ".join(one.warnings),
        ]
