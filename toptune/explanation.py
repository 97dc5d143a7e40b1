"""Explain a model's verdicts: which windows, and which seconds in them, contributed to each."""

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
from toptune.reports.why import draw_explanation, write_explanation
from toptune.runs.folder import WHY, model_folder, publish, require_target
from toptune.runs.model import read_model
from toptune.runs.occlusion import Explanation, Occlusion
from toptune.runs.occlusion import explain as explain_recording
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


def explain(
    model: Path | str,
    recordings: Recordings,
    out: Path | str | None = None,
    *,
    of_class: str | None = None,
    occlusion: Occlusion | None = None,
    weights: Paths = (),
    opening: OpeningOptions | None = None,
    compute: Compute | None = None,
    overwrite: bool = False,
    progress: ProgressReporter | None = None,
) -> list[Explanation]:
    """Explain a model's verdicts on recordings of any kind: what the command `why` does.

    Parameters
    ----------
    model
        A run's folder, or the ``model`` folder in it.
    recordings
        As for `predict`.
    out
        A new folder for why.html and its tables; nothing is written where None.
    of_class
        What to explain; each recording's verdict where None.
    occlusion
        How the gap without spikes slides.
    weights, opening, compute
        As for `predict`.
    overwrite
        Replace an explanation in `out`.
    progress
        Shows the progress.

    Raises
    ------
    InputError
        As for `predict`; or the model has no such class, or looks at whole recordings.
    """
    if out is not None:
        out = local_output(out)
        require_target(out, overwrite=overwrite, kind=WHY)
    compute, progress = compute or Compute(), progress or SilentReporter()
    model = model_folder(model)
    read = read_model(model)
    paths = list_recordings(recordings)
    settings = settings_of(read, opening)
    opened = check_named(paths, read, settings)
    finder = SpikeFinder(settings, compute, voltage=opened.voltage)
    predictor = Predictor(read, list_paths(weights), compute)
    batch = RecordingBatch([str(path) for path in paths], keep_going=False, progress=progress)
    done, drawn = [], []
    for path in paths:
        with batch.working_on(str(path), path):
            found = find_recording(path, finder, read, progress.stage)
            explained = explain_recording(
                predictor, found, occlusion=occlusion, of_class=of_class, stage=progress.stage
            )
            done.append(explained)
            if out is not None:
                drawn.append(draw_explanation(predictor, found.trains, explained))
    if out is not None:
        with publish(out, overwrite=overwrite, kind=WHY) as folder:
            write_explanation(folder, str(model), drawn)
    return done
