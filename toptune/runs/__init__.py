"""What training and prediction publish, and how it is read again.

Scores and held-out predictions enter, with a fitted classifier and the table it was trained on. A
run's folder leaves (`folder`, `tables`), with a model that is complete in itself (`model`): its
classifier, calibration, scores, and what its training recordings have in common (`novelty`).

On further recordings, `predictor` makes verdicts with such a model, `verdicts` writes them, and
`occlusion` says which spikes they depend on. `reading` reads a run for reports, and `parameters`
the burst parameters of its recordings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toptune.machine.lazy import lazy_names

if TYPE_CHECKING:
    from toptune.runs.model import Model, load_model, read_model
    from toptune.runs.predictor import Predictor
    from toptune.runs.reading import ReadRun, read_run
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "model": ("Model", "load_model", "read_model"),
            "predictor": ("Predictor",),
            "reading": ("ReadRun", "read_run"),
        },
    )

__all__ = ["Model", "Predictor", "ReadRun", "load_model", "read_model", "read_run"]
