"""Several cultures in one recording: wells of a plate, or arrays of a headstage.

Every reader follows one rule. What holds several cultures is refused, naming them, unless one is
chosen by `well`; so several cultures are never read as one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

import numpy as np

from toptune.errors import InputError
from toptune.recordings.trains import Spikes, SpikeTrains, natural_key

# A1_11: the well, a row of letters and a column, and the electrode in it.
_IN_WELL = re.compile(r"([A-Za-z]{1,2})0*([1-9]\d?)[_ :]([0-9A-Za-z]+)")
_WELL = re.compile(r"([A-Za-z]{1,2})0*([1-9]\d?)")
_SHOWN = 12


class SeveralCulturesError(InputError):
    """A recording holds several cultures, and none was chosen; `names` are theirs."""

    def __init__(self, path: Path, kind: str, names: Sequence[str]) -> None:
        self.names = tuple(names)
        super().__init__(
            f"{path}: holds {len(names)} {kind}s, {shown(names)}, each a culture of its own: choose"
            " one by `well`, or give each a line of devices.csv, in a column well"
        )


@overload
def well_name(text: str) -> str: ...
@overload
def well_name(text: str | None) -> str | None: ...
def well_name(text: str | None) -> str | None:
    """Write a well's name in one way: ``a01`` is A1."""
    if text is None:
        return None
    match = _WELL.fullmatch(text.strip())
    return f"{match[1].upper()}{match[2]}" if match else text.strip()


def split_label(label: str) -> tuple[str, str] | None:
    """Split an electrode's name into its well and its name there; None if it names no well."""
    match = _IN_WELL.fullmatch(label.strip())
    return (f"{match[1].upper()}{match[2]}", match[3]) if match else None


def in_well(label: str) -> str:
    """Return an electrode's name in its well: A1_12 is 12."""
    parts = split_label(label)
    return parts[1] if parts else label


def wells_of(labels: Iterable[str]) -> dict[str, list[int]]:
    """List the electrodes, by their numbers, of each well; none unless every name has a well."""
    found: dict[str, list[int]] = {}
    for number, label in enumerate(labels):
        parts = split_label(label)
        if parts is None:
            return {}
        found.setdefault(parts[0], []).append(number)
    return {well: found[well] for well in sorted(found, key=natural_key)}


def choose(path: Path, kind: str, names: Sequence[str], wanted: str | None) -> str:
    """Return which of several cultures is meant; refuse several of which none is chosen.

    `kind` is what they are called: ``well`` or ``array``.
    """
    if wanted is None:
        if len(names) == 1:
            return names[0]
        raise SeveralCulturesError(path, kind, names)
    by_name = {well_name(name): name for name in names}
    if well_name(wanted) in by_name:
        return by_name[well_name(wanted)]
    raise InputError(f"{path}: has no {kind} {wanted}; it has {shown(names)}")


def shown(names: Sequence[str]) -> str:
    """List names, the first dozen of many."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def rows_of_culture(path: Path, labels: Sequence[str], wanted: str | None) -> list[int]:
    """Return the electrodes of the culture that is meant, by their numbers.

    Electrodes of several wells, of which none is chosen, are refused.
    """
    wells = wells_of(labels)
    if wanted is None and len(wells) < 2:
        return list(range(len(labels)))
    if not wells:
        raise InputError(
            f"{path}: its electrodes ({shown(labels)}) are of no well, so that well {wanted} cannot"
            " be chosen: leave `well` out"
        )
    return wells[choose(path, "well", list(wells), wanted)]


def one_culture(
    path: Path, trains: SpikeTrains, wanted: str | None, *, length_given: bool = False
) -> SpikeTrains:
    """Return the spikes of one well; refuse those of several if none is chosen.

    A well without a spike may not be in the file at all. Where the length is given, it is a silent
    recording; its electrodes are unknown, and one stands for them.
    """
    wells = wells_of(trains.channel_labels)
    if wanted is None and len(wells) < 2:
        return trains
    name = well_name(wanted)
    if wells and name is not None and name not in wells and _WELL.fullmatch(name):
        if length_given:
            return silent(trains)
        raise InputError(
            f"{path}: has no spike in well {wanted}, only in {shown(list(wells))}: if that well was"
            " silent, give its recording's length by `duration_s`"
        )
    rows = rows_of_culture(path, trains.channel_labels, wanted)
    place = np.full(len(trains.channel_labels), -1, np.int32)
    place[rows] = np.arange(len(rows), dtype=np.int32)
    here = place[trains.spikes.channel] >= 0
    sample, channel, amplitude = trains.spikes
    return replace(
        trains,
        spikes=Spikes(sample[here], place[channel[here]], amplitude[here]),
        channel_labels=tuple(in_well(trains.channel_labels[row]) for row in rows),
        threshold_uv=trains.threshold_uv[rows],
    )


def silent(trains: SpikeTrains) -> SpikeTrains:
    """Return a recording of the same length without a spike, on one electrode."""
    return replace(
        trains,
        spikes=Spikes(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.float32)),
        channel_labels=("1",),
        threshold_uv=np.full(1, np.nan, np.float32),
        notes=(*trains.notes, SILENT),
    )


# Rows and columns of plates by their number of wells.
_PLATES = {6: 3, 12: 4, 24: 6, 48: 8, 72: 12, 96: 12}


def well_of_plate(number: int, n_wells: int) -> str | None:
    """Name a well by its number, counted from 0 row by row; None on a plate that is not known."""
    columns = _PLATES.get(n_wells)
    if columns is None or not 0 <= number < n_wells:
        return None
    row, column = divmod(number, columns)
    return f"{chr(ord('A') + row)}{column + 1}"


#: What is said of a recording without spikes whose file names no electrodes.
SILENT = "no spikes in it: one silent electrode stands for those that the file does not name"
