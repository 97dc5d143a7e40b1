"""Prediction: verdicts of a trained model on recordings of any kind.

Spikes, windows, pictures and features are made by the very code that made them for training.
"""

from __future__ import annotations

from pathlib import Path

from toptune.features.recordings import (
    ProgressReporter,
    RecordingBatch,
    SilentReporter,
    SpikeFinder,
)
from toptune.machine.remote import local_output
from toptune.params import Compute, OpeningOptions
from toptune.pictures.thumbnails import Thumbnails, draw_thumbnails
from toptune.reports.predictions import write_report
from toptune.runs.folder import PREDICTIONS, model_folder, publish, require_target
from toptune.runs.model import read_model
from toptune.runs.predictor import (
    Paths,
    Predictor,
    Recordings,
    check_named,
    find_recording,
    list_paths,
    list_recordings,
    settings_of,
)
from toptune.runs.verdicts import Predictions, RecordingPrediction, write_predictions


def predict(
    model: Path | str,
    recordings: Recordings,
    *,
    weights: Paths = (),
    opening: OpeningOptions | None = None,
    compute: Compute | None = None,
    out: Path | str | None = None,
    overwrite: bool = False,
    keep_going: bool = False,
    progress: ProgressReporter | None = None,
) -> Predictions:
    """Say for each recording which class it looks like.

    Parameters
    ----------
    model
        A run's folder, or the ``model`` folder in it.
    recordings
        One or several: voltage or spikes, of any kind that `open_recording` knows; paths or
        objects, or a mapping from names to them.
    weights
        A file or several of backbones' weights, where they have moved since the training.
    opening
        How these recordings are opened, where they differ from those of training.
    compute
        Where and with how much of the machine.
    out
        A new folder for report.html, windows.csv, verdicts.csv and predictions.json; nothing is
        written where None.
    overwrite
        Replace predictions in `out`.
    keep_going
        List recordings that fail, and go on; otherwise the first error ends the prediction, and
        what can be found before any work is reported for all recordings at once.
    progress
        Shows the progress.

    Raises
    ------
    InputError
        A damaged model, weights other than in training, a folder that must not be replaced, a
        recording that cannot be read, cannot be filtered, or is shorter than a window.
    """
    model = model_folder(model)
    read = read_model(model)
    if out is not None:
        out = local_output(out)
        require_target(out, overwrite=overwrite, kind=PREDICTIONS)
    compute, progress = compute or Compute(), progress or SilentReporter()
    settings = settings_of(read, opening)
    named = list_recordings(recordings)
    paths = {str(path): path for path in named}
    opened = check_named(named, read, settings, keep_going=keep_going)
    finder = SpikeFinder(settings, compute, voltage=opened.voltage)
    predictor = Predictor(read, list_paths(weights), compute)
    batch = RecordingBatch(list(paths), keep_going=keep_going, progress=progress)
    batch.refuse(opened.refused)
    done: list[RecordingPrediction] = []
    drawn: list[Thumbnails] = []
    for name in batch.left:
        with batch.working_on(name, paths[name]):
            found = find_recording(paths[name], finder, read, progress.stage)
            done.append(predictor.predict(found, progress.stage))
            if out is not None:
                drawn.append(draw_thumbnails(found.trains))
    result = Predictions(
        model=model,
        classes=read.classes,
        calibrated=read.inverse_temperature is not None,
        cross_validated=read.scores,
        recordings=tuple(done),
        failed=batch.failed,
    )
    if out is not None:
        with publish(out, overwrite=overwrite, kind=PREDICTIONS) as folder:
            write_predictions(folder, result)
            write_report(folder, result, read, drawn)
    return result
