"""The folder of a prediction: windows.csv, verdicts.csv, predictions.json, and failures.csv if any.

Predictions enter; files leave. Times are in seconds since the recording's start, probabilities
between 0 and 1 (six significant digits in tables).
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from toptune.errors import InputError
from toptune.machine.environment import describe_environment
from toptune.machine.fingerprint import file_sha256
from toptune.runs.folder import PREDICTIONS, publish, target_problems, write_csv, write_json
from toptune.runs.verdicts import Predictions

FORMAT = 1


def check_target(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that must not be written, before the work is done."""
    problems = target_problems(out, overwrite=overwrite, kind=PREDICTIONS)
    if problems:
        raise InputError(problems[0])


def write_predictions(out: Path, predictions: Predictions, *, overwrite: bool = False) -> None:
    """Publish a prediction as a folder.

    Parameters
    ----------
    out
        Must not exist, unless `overwrite` and it is a prediction.
    predictions
        What to write.
    overwrite
        Replace it.
    """
    marked = {
        "kind": PREDICTIONS.kind,
        "format": FORMAT,
        "toptune_version": version("toptune"),
        # model.json holds the sha256 of its tensors, so this one stands for all of the model.
        "model_sha256": file_sha256(predictions.model / "model.json"),
        "packages": describe_environment("cpu")["packages"],
    }
    shares = [f"probability_{name}" for name in predictions.classes]
    votes = [f"windows_{name}" for name in predictions.classes]
    with publish(out, overwrite=overwrite, kind=PREDICTIONS) as folder:
        write_json(folder / PREDICTIONS.marker, {**marked, **predictions.to_json()})
        write_csv(
            folder / "windows.csv",
            ["recording", "start_s", "prediction", *shares, "nearness", "unlike_training"],
            _window_rows(predictions),
        )
        write_csv(
            folder / "verdicts.csv",
            [
                *("recording", "prediction", "probability", "n_windows"),
                *votes,
                *shares,
                *("n_windows_unlike_training", "unlike_training", "warnings"),
            ],
            _verdict_rows(predictions),
        )
        if predictions.failed:
            write_csv(folder / "failures.csv", ["recording", "cause"], predictions.failed)


def _window_rows(predictions: Predictions) -> Iterator[list[Any]]:
    for one in predictions.recordings:
        for i, code in enumerate(one.codes.tolist()):
            yield [
                one.recording,
                float(one.start_s[i]),
                one.classes[code],
                *one.probabilities[i].tolist(),
                float(one.novelty.nearness[i]),
                int(one.novelty.unlike[i]),
            ]


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
