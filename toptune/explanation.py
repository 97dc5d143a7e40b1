"""Explain a model's verdicts: which windows, and which seconds in them, contributed to each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toptune.errors import InputError
from toptune.machine.fingerprint import file_sha256
from toptune.machine.progress import Progress, Silent
from toptune.reports.why import draw_explanation, write_explanation
from toptune.runs.folder import WHY, publish, target_problems
from toptune.runs.model import read_model
from toptune.runs.occlusion import Explained, Occlusion, explain
from toptune.runs.predictor import Predictor
from toptune.runs.verdicts import SEEN
from toptune.spikes.finding import find_spikes


def why(
    model: Path | str,
    recordings: Sequence[Path | str],
    out: Path | str,
    *,
    of_class: str | None = None,
    occlusion: Occlusion | None = None,
    weights: Sequence[Path] = (),
    device: str = "auto",
    n_jobs: int | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Explained]:
    """Explain a model's verdicts on recordings of any kind, and write the folder.

    Parameters
    ----------
    model
        The ``model`` folder of a run.
    recordings
        Paths.
    out
        A new folder.
    of_class
        What to explain; each recording's verdict where None.
    occlusion
        How the blank stretch slides.
    weights, device, n_jobs, batch_size
        As for `predict`.
    overwrite
        Replace an explanation in `out`.
    progress
        Watches.

    Raises
    ------
    InputError
        As for `predict` and `explain`.
    """
    out = Path(out)
    problems = target_problems(out, overwrite=overwrite, kind=WHY)
    if problems:
        raise InputError(problems[0])
    watch = progress or Silent()
    read = read_model(model)
    predictor = Predictor(read, weights, device=device, n_jobs=n_jobs, batch_size=batch_size)
    seen = []
    for number, path in enumerate(recordings, 1):
        watch.recording(number, len(recordings), str(path))
        found = find_spikes(Path(path), read.spikes, n_jobs=n_jobs, stage=watch.stage)
        notes = list(found.notes)
        if file_sha256(Path(path)) in read.training_inputs:
            notes.insert(0, SEEN)
        explained = explain(
            predictor, str(path), found.trains, occlusion=occlusion, of_class=of_class,
            notes=notes, stage=watch.stage,
        )  # fmt: skip
        seen.append(draw_explanation(predictor, found.trains, explained))
    with publish(out, overwrite=overwrite, kind=WHY) as folder:
        write_explanation(folder, str(model), seen)
    return [one.explained for one in seen]
