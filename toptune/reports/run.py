"""The report of a run: one HTML file that says what was run, how good it is and where it errs.

What enters: the folder of a run, where wanted its store, whose spikes are drawn, and other runs to
put beside it. What leaves: report.html in the run's folder, which needs nothing but itself.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from toptune.errors import InputError
from toptune.pictures.thumbnails import draw_thumbnails
from toptune.reports.compare import beside_section
from toptune.reports.devices import Drawn, devices_section, shown_recordings
from toptune.reports.page import Page, Section, Text, render
from toptune.reports.scores import (
    calibration_section,
    confusion_section,
    headline,
    scores_section,
    verdict_sentence,
    warnings_of,
)
from toptune.reports.setup import setup_section
from toptune.runs.reading import ReadRun, read_run
from toptune.store.feature_store import FeatureStore

_LOG = logging.getLogger(__name__)

NAME = "report.html"


def write_report(
    folder: Path | str,
    *,
    store: FeatureStore | None = None,
    beside: Sequence[Path | str] = (),
    extra: Sequence[Section] = (),
    out: Path | None = None,
    going_to: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Write a run's report, replacing an earlier one.

    Parameters
    ----------
    folder
        Of the run.
    store
        The store the run was fitted on; without it there are no pictures of the activity.
    beside
        Folders of other runs.
    extra
        Further sections, after the devices.
    out
        The file to write; report.html in the run's folder where None.
    going_to
        Where the run's folder will be once it is published, if it is not yet.
    progress
        Told what is being drawn, how much of it is done, and how much there is.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InputError
        No run, a damaged one, or a store that is not the one the run was fitted on.
    """
    run = read_run(folder)
    others = [read_run(other) for other in beside]
    target = run.path / NAME if out is None else out
    if going_to is not None:
        run = replace(run, path=going_to)
    html = render(report_page(run, others, store, extra, progress))
    # Written aside, so that whoever opens the report sees a whole one.
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        aside.write_text(html, "utf-8")
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    return target


def find_store(folder: Path | str, given: Path | None = None) -> FeatureStore | None:
    """Open the store of a run: the one that is given, or the one it was fitted on if still there.

    Parameters
    ----------
    folder
        Of the run.
    given
        Where the user says it is; must then be a store.
    """
    if given is not None:
        return FeatureStore(given)
    run = read_run(folder)
    noted = run.params.get("store")
    if noted is None or not Path(noted).exists():
        return None
    try:
        store = FeatureStore(noted)
        refuse_other_store(run, store)
    except InputError as error:
        _LOG.warning("no pictures of the activity: %s", error)
        return None
    return store


def report_page(
    run: ReadRun,
    others: Sequence[ReadRun] = (),
    store: FeatureStore | None = None,
    extra: Sequence[Section] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> Page:
    """Put a run's report together; see `write_report`."""
    drawn = {} if store is None else _draw(run, store, progress)
    m = run.metrics
    views = " + ".join(view["name"] for view in run.views)
    sections = [
        *([beside_section([run, *others])] if others else []),
        confusion_section(run),
        devices_section(run, drawn),
        *extra,
        scores_section(run),
        calibration_section(run),
        setup_section(run, "STORE.zarr" if store is None else str(store.path)),
    ]
    return Page(
        title=f"{run.name}: {', '.join(run.classes)}",
        lead=verdict_sentence(run),
        blocks=(
            headline(run),
            *warnings_of(run),
            Text(
                text=f"{m['head']} head on {views}: {m['n_windows']} windows of"
                f" {m['n_devices']} devices. Each {run.params['group_by']} was left out once; all"
                " numbers are of what was left out.",
                quiet=True,
            ),
        ),
        sections=tuple(sections),
        footer=f"Written by toptune {version('toptune')}.",
    )


def _draw(
    run: ReadRun, store: FeatureStore, progress: Callable[[str, int, int], None] | None
) -> dict[str, Drawn]:
    """Draw the recordings that are shown from the store's spikes."""
    refuse_other_store(run, store)
    names = shown_recordings(run)
    drawn: dict[str, Drawn] = {}
    for done, name in enumerate(names):
        if progress is not None:
            progress("report", done, len(names))
        drawn[name] = Drawn(draw_thumbnails(store.read_spikes(name)), _remark(store, name))
    return drawn


def refuse_other_store(run: ReadRun, store: FeatureStore) -> None:
    """Refuse a store whose recordings or settings are not those the run was fitted on."""
    wanted = run.params["features"]
    if store.settings != wanted["settings"]:
        raise InputError(
            f"{store.path} holds spikes found with other settings than {run.path} was fitted on:"
            " give the run's own store"
        )
    for name in dict.fromkeys(run.where.recording.tolist()):
        info = store.spikes_info(name)
        if info is None or info["input"]["sha256"] != wanted["inputs"][name]["sha256"]:
            what = "no recording" if info is None else "another recording under the name"
            raise InputError(
                f"{store.path} holds {what} {name}, which {run.path} was fitted on: give the run's"
                " own store"
            )


def _remark(store: FeatureStore, name: str) -> str:
    """Tell of electrodes that were left out of, or doubtful in, detection."""
    info = store.spikes_info(name) or {}
    said = [
        f"{word} electrodes: {', '.join(info[key])}."
        for word, key in (("Dead", "dead_channels"), ("Over-noisy", "over_noisy_channels"))
        if info.get(key)
    ]
    return " ".join(said)
