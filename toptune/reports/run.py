"""The report of a run: one HTML file with its scores, its errors and its settings.

It is written from the run's folder alone. With the run's store it also shows the activity of every
recording, and with the folders of other runs a comparison.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from toptune.errors import InputError, MissingPackagesError
from toptune.machine.display import count, named_electrodes
from toptune.pictures.thumbnails import draw_thumbnails
from toptune.reports.compare import comparison_section
from toptune.reports.devices import Drawn, devices_section, shown_recordings
from toptune.reports.differences import Differences, difference_sections, read_coefficients
from toptune.reports.page import Page, Text, render
from toptune.reports.scores import (
    calibration_section,
    confusion_section,
    headline,
    scores_section,
    verdict_sentence,
    warnings_of,
)
from toptune.reports.setup import setup_section
from toptune.runs.parameters import TABLE, run_parameters
from toptune.runs.reading import ReadRun, read_run
from toptune.store.feature_store import FeatureStore

_LOG = logging.getLogger(__name__)

NAME = "report.html"


def write_report(
    folder: Path | str,
    *,
    store: FeatureStore | None = None,
    beside: Sequence[Path | str] = (),
    out: Path | None = None,
    going_to: Path | None = None,
    measure: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Write a run's report, replacing an earlier one.

    Parameters
    ----------
    folder
        Of the run.
    store
        The store the run was fitted on; without it the activity is not shown.
    beside
        Folders of other runs to compare with.
    out
        The file to write; report.html in the run's folder where None.
    going_to
        The run's folder after publication, where it is not published yet.
    measure
        Whether to measure the store's recordings, to say what differs, where the run's folder has
        no burst parameters of them.
    progress
        Called with the stage, the number of recordings drawn and their total.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InputError
        The folder is no run or a damaged one, or the store is not the one the run was fitted on.
    """
    run = read_run(folder)
    others = [read_run(other) for other in beside]
    target = run.path / NAME if out is None else out
    differences = find_differences(run, store, progress, measure=measure)
    if going_to is not None:
        run = replace(run, path=going_to)
    html = render(report_page(run, others, store, progress, differences))
    # Written under another name first, so that nobody opens half a report.
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        aside.write_text(html, "utf-8")
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    return target


def find_store(folder: Path | str, given: Path | None = None) -> FeatureStore | None:
    """Open the store of a run.

    Parameters
    ----------
    folder
        Of the run.
    given
        Path of the store. None: the path that the run's params.json names, if the store is there.
    """
    if given is not None:
        return FeatureStore(given)
    run = read_run(folder)
    try:
        store = FeatureStore.at(run.params.get("store"))
        if store is not None:
            refuse_other_store(run, store)
    except (InputError, MissingPackagesError) as error:
        _LOG.warning("the report does not show the activity: %s", error)
        return None
    return store


def report_page(
    run: ReadRun,
    others: Sequence[ReadRun] = (),
    store: FeatureStore | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    differences: Differences | None = None,
) -> Page:
    """Assemble the report of a run; see `write_report`.

    Without `differences`, from `find_differences`, it does not say what differs.
    """
    drawn = {} if store is None else _draw(run, store, progress)
    m = run.metrics
    sections = [
        *([comparison_section([run, *others])] if others else []),
        confusion_section(run),
        *(() if differences is None else difference_sections(run, differences)),
        devices_section(run, drawn),
        scores_section(run),
        calibration_section(run),
        setup_section(run, store),
    ]
    return Page(
        title=f"{run.name}: {', '.join(run.classes)}",
        lead=verdict_sentence(run),
        blocks=(
            headline(run),
            *warnings_of(run),
            Text(
                text=f"Classifier: {run.classifier}. Features: {run.features}."
                f" {count(m['n_windows'], run.rows_are[:-1])} of {count(m['n_devices'], 'device')}."
                f" Each {run.params['group_by']} was"
                " left out of training once, and all scores were computed on what was left out.",
                quiet=True,
            ),
        ),
        sections=tuple(sections),
        footer=f"Written by toptune {version('toptune')}.",
    )


def find_differences(
    run: ReadRun,
    store: FeatureStore | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    *,
    measure: bool = True,
) -> Differences | None:
    """Gather what the report says of what differs; None without burst parameters of the run.

    They are read from the run's folder or, where it lacks them and if `measure`, measured from the
    store's spikes.
    """
    if (store is None or not measure) and not (run.path / TABLE).exists():
        return None
    try:
        values = run_parameters(run, store, progress)
        coefficients = read_coefficients(run.path)
    except (InputError, OSError, ValueError) as error:
        _LOG.warning("the report does not say what differs: %s", error)
        return None
    return Differences(
        values=values,
        names=tuple(run.recordings),
        coefficients=coefficients,
        spikes_of=None if store is None else store.read_spikes,
    )


def _draw(
    run: ReadRun, store: FeatureStore, progress: Callable[[str, int, int], None] | None
) -> dict[str, Drawn]:
    """Draw the recordings that have a timeline."""
    refuse_other_store(run, store)
    names = shown_recordings(run)
    drawn: dict[str, Drawn] = {}
    for done, name in enumerate(names):
        if progress is not None:
            progress("report", done, len(names))
        drawn[name] = Drawn(draw_thumbnails(store.read_spikes(name)), _remark(store, name))
    return drawn


def refuse_other_store(run: ReadRun, store: FeatureStore) -> None:
    """Refuse a store that does not hold the recordings and settings the run was fitted on."""
    wanted = run.params["features"]
    if store.settings != wanted["settings"]:
        raise InputError(
            f"{store.path} holds spikes detected with other settings than those {run.path} was"
            " fitted on: give the run's own store"
        )
    for name in dict.fromkeys(run.origin.recording.tolist()):
        info = store.spikes_info(name)
        if info is None or info["input"]["sha256"] != wanted["inputs"][name]["sha256"]:
            what = "no recording" if info is None else "another recording under the name"
            raise InputError(
                f"{store.path} holds {what} {name}, which {run.path} was fitted on: give the run's"
                " own store"
            )


def _remark(store: FeatureStore, name: str) -> str:
    """List electrodes that were excluded from detection or are doubtful."""
    info = store.spikes_info(name) or {}
    said = [
        f"{named_electrodes(word, info[key])}."
        for word, key in (("dead", "dead_channels"), ("over-noisy", "over_noisy_channels"))
        if info.get(key)
    ]
    return " ".join(said)
