"""Verdicts while the recording is still going on.

A source enters: the blocks of voltage, in order, of an amplifier, of a file that still grows or of
a recording that is replayed, with notes on what was lost. With a model, a verdict leaves for every
window as soon as its last sample is at hand; a screen, a page and a folder of results take it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toptune.machine.lazy import lazy_names

if TYPE_CHECKING:
    from toptune.live.blocks import Block, Note, Source, SourceInfo
    from toptune.live.detection import Calibration
    from toptune.live.engine import CalibrationProgress, LiveSession, LiveVerdict, stream
    from toptune.live.sources import open_source
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "blocks": ("Block", "Note", "Source", "SourceInfo"),
            "detection": ("Calibration",),
            "engine": ("CalibrationProgress", "LiveSession", "LiveVerdict", "stream"),
            "sources": ("open_source",),
        },
    )

__all__ = [
    "Block", "Calibration", "CalibrationProgress", "LiveSession", "LiveVerdict", "Note", "Source",
    "SourceInfo", "open_source", "stream",
]  # fmt: skip
