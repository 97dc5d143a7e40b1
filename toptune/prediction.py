"""From recordings of any kind to verdicts, by a trained model.

What enters: a model's folder and paths of recordings. What leaves: for every window a class and
probabilities, for every recording a verdict with what speaks against trusting it. Spikes, windows,
pictures and features are made by the very code that made them for training.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toptune.errors import InputError, InputErrors, ToptuneError
from toptune.machine.cuda import Accelerator, accelerator
from toptune.machine.fingerprint import file_sha256
from toptune.machine.progress import Progress, Silent
from toptune.params import SpikeSettings
from toptune.runs.model import Model, read_model
from toptune.runs.predictor import Predictor, require_length
from toptune.runs.verdict_tables import check_target, write_predictions
from toptune.runs.verdicts import SEEN, Predictions, RecordingPrediction
from toptune.spikes.finding import check_recording, find_spikes

if TYPE_CHECKING:
    from toptune.backbones.engine import Precision

_LOG = logging.getLogger(__name__)
_unwatched = Silent().stage

Paths = Path | str | Sequence[Path | str]


def predict(
    model: Path | str,
    recordings: Paths,
    *,
    weights: Paths = (),
    stream: str | None = None,
    sampling_rate_hz: float | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    n_jobs: int | None = None,
    batch_size: int | None = None,
    out: Path | str | None = None,
    overwrite: bool = False,
    keep_going: bool = False,
    progress: Progress | None = None,
) -> Predictions:
    """Say for each recording which class it looks like.

    Parameters
    ----------
    model
        The ``model`` folder of a run.
    recordings
        One or several: voltage or spikes, of any kind that `open_recording` knows.
    weights
        A file or several of backbones' weights, where they have moved since the training.
    stream, sampling_rate_hz
        As for `open_recording`, where these recordings differ from those of training.
    device
        ``auto``, ``cpu`` or ``cuda``.
    precision
        In which backbones compute: ``auto`` is 16 bits on CUDA and float32 on the CPU.
    n_jobs
        Threads; None for one a core.
    batch_size
        Pictures a batch; the engine's choice where None.
    out
        A new folder for windows.csv, verdicts.csv and predictions.json; nothing is written where
        None.
    overwrite
        Replace predictions in `out`.
    keep_going
        List recordings that fail, and go on; otherwise the first error ends the prediction, and
        those that can be told before are all told at once.
    progress
        Watches.

    Raises
    ------
    InputError
        A damaged model, weights other than in training, a folder that must not be replaced, a
        recording that cannot be read, cannot be filtered, or is shorter than a window.
    """
    read = read_model(model)
    if out is not None:
        check_target(Path(out), overwrite=overwrite)
    settings = _settings(read, stream, sampling_rate_hz)
    names = [str(path) for path in _listed(recordings)]
    failed, voltage = _preflight(names, read, settings)
    if failed and not keep_going:
        raise InputErrors([cause for _, cause in failed])
    spike_device = accelerator(device) if voltage else None
    predictor = Predictor(
        read, _listed(weights), device=device, precision=precision, n_jobs=n_jobs,
        batch_size=batch_size,
    )  # fmt: skip
    job = _Job(predictor, settings, spike_device, n_jobs, progress or Silent())
    done = job.run([n for n in names if n not in dict(failed)], failed, keep_going=keep_going)
    result = Predictions(
        model=Path(model),
        classes=read.classes,
        calibrated=read.inverse_temperature is not None,
        cross_validated=read.scores,
        recordings=tuple(done),
        failed=tuple(sorted(failed, key=lambda failure: names.index(failure[0]))),
    )
    if out is not None:
        write_predictions(Path(out), result, overwrite=overwrite)
    return result


def _settings(model: Model, stream: str | None, sampling_rate_hz: float | None) -> SpikeSettings:
    """Take the training's settings, but for what is only about how files are labelled."""
    given: dict[str, Any] = {"stream": stream, "sampling_rate_hz": sampling_rate_hz}
    return replace(model.spikes, **{k: v for k, v in given.items() if v is not None})


def _preflight(
    names: Sequence[str], model: Model, settings: SpikeSettings
) -> tuple[list[tuple[str, str]], bool]:
    """Open all; (recording, cause) of each that cannot be predicted, and whether any is voltage."""
    if not names:
        raise InputError("there is no recording to predict: name at least one")
    if len({Path(name).resolve() for name in names}) < len(names):
        raise InputError("a recording is named twice: name each once")
    failed = []
    voltage = False
    for name in names:
        try:
            header = check_recording(Path(name), settings)
            if header is not None:
                voltage = True
                require_length(name, header.segments, header.sampling_rate_hz, model)
        except InputError as error:
            failed.append((name, _one_line(error)))
    return failed, voltage


def _listed(paths: Paths) -> list[Path]:
    """Give a list of one path, too: the letters of a single name are no paths."""
    return [Path(paths)] if isinstance(paths, Path | str) else [Path(path) for path in paths]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class _Job:
    """One prediction of several recordings."""

    def __init__(
        self,
        predictor: Predictor,
        settings: SpikeSettings,
        spike_device: Accelerator | None,
        n_jobs: int | None,
        progress: Progress,
    ) -> None:
        self.predictor = predictor
        self.settings = settings
        self.spike_device = spike_device
        self.n_jobs = n_jobs
        self.progress = progress

    def run(
        self, names: Sequence[str], failed: list[tuple[str, str]], *, keep_going: bool
    ) -> list[RecordingPrediction]:
        """Predict one after the other; what fails is added to `failed` where told to go on."""
        done = []
        for number, name in enumerate(names, 1):
            self.progress.recording(number, len(names), name)
            try:
                done.append(self._one(name))
            except ToptuneError as error:
                if not keep_going:
                    raise
                failed.append((name, _one_line(error)))
                _LOG.error("%s failed: %s", name, failed[-1][1])
        return done

    def _one(self, name: str) -> RecordingPrediction:
        stage = self.progress.stage
        found = find_spikes(
            Path(name), self.settings, device=self.spike_device, n_jobs=self.n_jobs, stage=stage
        )
        notes = list(found.notes)
        sha256 = file_sha256(Path(name))
        if sha256 in self.predictor.model.training_inputs:
            notes.insert(0, SEEN)
        return replace(self.predictor.predict(name, found.trains, notes, stage), sha256=sha256)
