"""The cultures of one file, such as the wells of a plate, and a devices file to fill in."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toptune.errors import InputError
from toptune.machine.cuda import accelerator
from toptune.machine.remote import RemotePath, as_path
from toptune.params import Compute, SpikeSettings
from toptune.recordings.opening import SpikeRecording, open_recording
from toptune.recordings.wells import SeveralCulturesError
from toptune.reports.overview import activity
from toptune.spikes.finding import find_spikes


@dataclass(frozen=True, kw_only=True)
class Well:
    """A culture in a file that holds several."""

    name: str
    n_electrodes: int
    n_active: int  # electrodes with more than 0.1 spikes/s
    n_spikes: int
    rate_hz: float  # spikes/s per electrode
    duration_s: float
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "notes": list(self.notes)}


def wells_in(path: Path | str, settings: SpikeSettings | None = None) -> tuple[str, ...]:
    """List the wells or arrays of a recording; none where it holds one culture.

    Raises
    ------
    InputError
        It cannot be opened.
    """
    try:
        recording = open_recording(path, **(settings or SpikeSettings()).opening)
        if isinstance(recording, SpikeRecording):
            recording.trains()
        else:
            recording.close()
    except SeveralCulturesError as several:
        return several.names
    return ()


def plate(
    path: Path | str,
    settings: SpikeSettings | None = None,
    compute: Compute | None = None,
    *,
    on_well: Callable[[str, int, int], None] = lambda *_: None,
) -> tuple[Well, ...]:
    """Find the spikes of every well of a file, one after the other.

    Parameters
    ----------
    path, settings, compute
        As for extraction; without `settings.well`.
    on_well
        Called with each well's name, its number from 1 and how many there are.

    Raises
    ------
    InputError
        It cannot be opened, or holds one culture only.
    """
    path, settings, compute = as_path(path), settings or SpikeSettings(), compute or Compute()
    names = wells_in(path, settings)
    if not names:
        raise InputError(f"{path}: holds one culture, not the wells of a plate: use `inspect`")
    device = accelerator(compute.device)
    found = []
    for number, name in enumerate(names, 1):
        on_well(name, number, len(names))
        spikes = find_spikes(
            path,
            replace(settings, well=name),
            device=device,
            n_jobs=compute.n_jobs,
            stage=lambda *_: None,
        )
        trains = spikes.trains
        counts, rates, n_active = activity(trains)
        found.append(
            Well(
                name=name,
                n_electrodes=len(counts),
                n_active=n_active,
                n_spikes=int(counts.sum()),
                rate_hz=float(rates.mean()),
                duration_s=trains.duration_s,
                notes=spikes.notes,
            )
        )
    return tuple(found)


def devices_table(path: Path, wells: tuple[Well, ...], settings: SpikeSettings, out: Path) -> str:
    """Write a devices file that lists every well as a device; its labels are to be filled in.

    What `settings` say of how the file is opened becomes columns, too.
    """
    usual = SpikeSettings().opening
    given = {k: v for k, v in settings.opening.items() if v != usual[k] and k != "well"}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["recording", "well", "device", "label", *given])
    is_url = isinstance(path, RemotePath)
    written = str(path) if is_url else os.path.relpath(path.resolve(), out.resolve().parent)
    for well in wells:
        table.writerow([written, well.name, f"{path.stem}-{well.name}", "", *given.values()])
    return text.getvalue()
