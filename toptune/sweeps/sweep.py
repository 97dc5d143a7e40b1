"""A sweep: every combination of a grid, extracted, fitted and scored, in one folder.

The folder holds one store, a run for each combination, a list of what failed, and the outcome of
all. Spikes are found once, features once per view, runs once: what is there with the wanted key is
not made again, so a sweep that was stopped goes on. A failure stops only what depends on it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from toptune.cluster import Cluster, open_cluster
from toptune.errors import (
    DeviceMemoryError,
    InputError,
    InputErrors,
    StorageError,
    ToptuneError,
)
from toptune.extraction import (
    ExtractionJob,
    FeaturesJob,
    PublishedSpikes,
    Reported,
    StoredFeatures,
    StoredSpikes,
    StoreJob,
    WorkerParts,
    check_listed,
    extract_recording,
    list_devices,
    problems_of,
    refuse_store,
    summed_notes,
)
from toptune.features.burst_features import KIND, BurstFeatureParams
from toptune.features.picture_features import load_engine
from toptune.features.recordings import SpikeFinder, one_line
from toptune.heads.catalogue import head_of
from toptune.machine.durable import write_whole, writing
from toptune.machine.installation import describe_environment
from toptune.machine.interruption import heed_interrupt
from toptune.machine.locks import held
from toptune.machine.remote import as_path, local_output
from toptune.machine.threads import BackgroundWriter
from toptune.params import Backbone, Compute, FitOptions, content_key
from toptune.recordings.devices import DeviceRow, DevicesFile, read_devices
from toptune.recordings.windows import window_starts
from toptune.runs.folder import SWEEP, sweep_problems, write_csv
from toptune.store.feature_store import recording_name
from toptune.store.session import StoreSession, writing_session
from toptune.store.tables import parameter_table
from toptune.sweeps.grid import Grid, GridPoint, PictureView
from toptune.sweeps.plan import Forecast, run_key, run_name
from toptune.sweeps.results import (
    Failure,
    Outcome,
    SweepReporter,
    SweepResult,
    Throughput,
    ViewFacts,
)
from toptune.training import fit, fit_problems

if TYPE_CHECKING:
    from toptune.backbones.engine import FeatureEngine
    from toptune.cluster.client import Done
    from toptune.features.table import FeatureTable, RecordingInfo

_LOG = logging.getLogger(__name__)

FORMAT = 1
# Views that are computed or wait to be written: the features of 157 windows take a megabyte.
_MOST_PENDING = 16


def sweep(
    devices: Path | str,
    grid: Grid,
    out: Path | str,
    *,
    compute: Compute | None = None,
    seed: int = 0,
    dask: str | Cluster | None = None,
    watch: SweepReporter,
) -> SweepResult:
    """Extract, fit and score every combination of a grid.

    `out` is a new folder, or that of a sweep, which goes on: with another grid, too. `seed` is that
    of the classifiers. `dask` is whose workers find spikes, describe pictures and tune MLPs, as of
    `extract`.

    Raises
    ------
    InputErrors
        Problems with the devices file, recordings' headers, classes, groups, backbones, weights,
        the folder or its store: all at once, before any work.
    """
    begin = time.perf_counter()
    compute = compute or Compute()
    with ExitStack() as stack:
        cluster = None if dask is None else stack.enter_context(open_cluster(dask))
        task = _Task(as_path(devices), grid, local_output(out), compute, seed, cluster)
        checked = _check(task, watch)
        with writing(task.out):
            task.out.mkdir(parents=True, exist_ok=True)
        task.write_state("under way")
        settings, listed = grid.spikes.to_json(), checked.devices.path
        session = stack.enter_context(
            writing_session(task.store_path, settings, checked.infos, devices_file=listed)
        )
        work = _Work(task, checked, session, watch)
        work.run()
    return SweepResult(
        path=task.out,
        devices=task.devices,
        grid=grid,
        outcomes=tuple(work.outcomes),
        failures=tuple(work.failures),
        notes=(*grid.notes, *work.notes),
        seed=seed,
        device=compute.device,
        seconds=time.perf_counter() - begin,
    )


@dataclass(frozen=True)
class _Task:
    """What was asked for; see `sweep`."""

    devices: Path
    grid: Grid
    out: Path
    compute: Compute
    seed: int
    cluster: Cluster | None  # whose workers do it

    @property
    def here(self) -> Compute:
        """How this process computes; where there are workers, it only loads backbones."""
        return self.compute if self.cluster is None else Compute(device="cpu")

    @property
    def store_path(self) -> Path:
        """Of the one store of all combinations."""
        return self.out / "store.zarr"

    def head_device(self, head: str) -> str:
        """Give the sweep's device, unless a head cannot compute there."""
        device = self.compute.device
        return device if device in ("auto", *head_of(head).devices) else "auto"

    def write_state(
        self, state: str, runs: Sequence[str] = (), failures: Sequence[Failure] = ()
    ) -> None:
        """Write sweep.json, which also marks the folder as a sweep."""
        content = {
            "kind": SWEEP.kind,
            "format": FORMAT,
            "state": state,
            "devices": str(self.devices),
            "grid": {n: getattr(self.grid, n) for n in ("name", "title", "text", "settings")},
            "seed": self.seed,
            "device": self.compute.device,
            "runs": list(runs),
            "failures": [f._asdict() for f in failures],
        }
        # Whole or not at all: without it nothing would go on in this folder. The lock tells what a
        # killed process left from what another is writing.
        lock = self.store_path.with_name(f".{self.store_path.name}.locks") / "sweep.lock"
        with writing(self.out), held(lock):
            for left in self.out.glob(f".{SWEEP.marker}.*.partial"):
                left.unlink()
            write_whole(self.out / SWEEP.marker, json.dumps(content, indent=2) + "\n")


@dataclass(frozen=True, eq=False)
class _Checked:
    """What the checks before any work have opened and loaded."""

    devices: DevicesFile
    infos: tuple[RecordingInfo, ...]
    finder: SpikeFinder
    voltage: bool  # any recording holds voltage
    engines: dict[Backbone, FeatureEngine]


def _check(task: _Task, watch: SweepReporter) -> _Checked:
    """Find everything that is wrong with what was given."""
    problems = sweep_problems(task.out)
    opened = None
    try:
        opened = _open(task, problems)
    except InputErrors as error:
        problems += error.problems
    except InputError as error:
        problems.append(str(error))
    watch.doing("loading backbones")
    engines = {}
    for backbone in dict.fromkeys(view.backbone for view in task.grid.views):
        try:
            engines[backbone] = load_engine(backbone, task.here)
        except ToptuneError as error:
            problems.append(str(error))
    if problems or opened is None:
        raise InputErrors(list(dict.fromkeys(problems)))
    return _Checked(*opened, engines)


def _open(
    task: _Task, problems: list[str]
) -> tuple[DevicesFile, tuple[RecordingInfo, ...], SpikeFinder, bool]:
    """Open the devices file and every recording, and add what stands against the fits."""
    devices = read_devices(task.devices)
    infos = list_devices(devices)
    opened = check_listed(devices, task.grid.spikes)
    problems += problems_of(devices, opened)
    for one in dict.fromkeys(c.fit for c in task.grid.points):
        options = replace(one, seed=task.seed)
        problems += fit_problems(infos, options, device=task.head_device(one.head))
    refuse_store(task.store_path, task.grid.spikes)
    finder = SpikeFinder(task.grid.spikes, task.here, voltage=opened.voltage)
    return devices, infos, finder, opened.voltage


class _ViewJob:
    """One view of a sweep: its features, and how fast they were made."""

    def __init__(
        self,
        view: PictureView,
        features: StoredFeatures,
        measured: Path,  # the folder of throughputs
        took: Callable[[PictureView, int, float], None],  # pictures and seconds of each recording
    ) -> None:
        self.view = view
        self.features = features
        self.key = features.feature_set.key
        self.description = features.feature_set.description
        self.failed: list[tuple[str, str]] = []  # recordings, with the cause
        self._measured = measured / f"{self.key}.json"
        self._took = took
        self.throughput = Throughput.read(self._measured)

    @property
    def facts(self) -> ViewFacts:
        """What is known of the view beside scores."""
        loaded = self.features.engine.loaded
        return ViewFacts(
            key=self.key,
            n_parameters=loaded.n_parameters,
            n_features=loaded.n_features,
            weights=loaded.weights,
            throughput=self.throughput,
        )

    def add(self, made: _Made) -> None:
        """Note that the features of one recording were made."""
        if made.pictures:
            self.throughput.pictures += made.pictures
            self.throughput.seconds += made.seconds
            self.throughput.device = made.device
            self.throughput.write(self._measured)
        self._took(self.view, made.pictures, made.seconds)


class _Made(NamedTuple):
    """Features of a recording that were made, and how fast."""

    pictures: int
    seconds: float
    device: str  # where pictures were described, for people


def _start(
    features: StoredFeatures, spikes: PublishedSpikes, make_room: Callable[[], None]
) -> Callable[[], _Made] | None:
    """Start to make the features of one recording; None where they are there.

    Where a GPU is full, `make_room` is to let other backbones on it go, and it is tried once more.
    What is returned waits for the features and publishes them. The way of a single process and of
    every worker of a cluster.
    """
    if features.published(spikes) is not None:
        return None
    try:
        return _begin(features, spikes)
    except DeviceMemoryError:
        make_room()
        return _begin(features, spikes)


def _begin(features: StoredFeatures, spikes: PublishedSpikes) -> Callable[[], _Made]:
    # Neither is part of what a picture takes: all views share both.
    features.engine.compile()
    _ = spikes.drawers
    watch = features.engine.stopwatch()
    pending = features.start(spikes)
    watch.stop()
    # The spikes themselves are not kept in memory until the features are written.
    source = replace(spikes, found=None)

    def write() -> _Made:
        rows = pending.result()
        made = _Made(len(rows.features), watch.seconds(), _device_name(str(features.engine.device)))
        features.write(source, rows)
        return made

    return write


@cache
def _device_name(device: str) -> str:
    where = describe_environment(device)
    return str(where["device_name"] or where["cpu"])


class Described(NamedTuple):
    """What a worker tells of one view of a recording."""

    made: _Made | None  # None where the features were there, or failed
    failure: str | None


def describe_recording(job: ExtractionJob, row: DeviceRow) -> list[Described]:
    """Make what is missing of a recording's views on a worker, which publishes it itself."""
    parts = job.store.parts()
    views = [parts.features(one) for one in job.features]
    with parts.spikes_of(row) as spikes_of:
        work = _WorkersViews(parts, spikes_of.update(row), len(views))
        for number, features in enumerate(views):
            work.start(number, features)
        work.publish()
    return work.told


class _WorkersViews:
    """The views of a recording on a worker: all are begun before any is waited for."""

    def __init__(self, parts: WorkerParts, spikes: PublishedSpikes, n_views: int) -> None:
        self.told = [Described(None, None)] * n_views
        self._parts = parts
        self._spikes = spikes
        self._begun: list[tuple[int, Callable[[], _Made]]] = []

    def start(self, number: int, features: StoredFeatures) -> None:
        """Start a view."""

        def start() -> None:
            write = _start(features, self._spikes, self._make_room)
            if write is not None:
                self._begun.append((number, write))

        self._keep(number, start)

    def _make_room(self) -> None:
        self.publish()
        self._parts.release()

    def publish(self) -> None:
        """Wait for all that is begun, and publish it."""
        for number, write in self._begun:

            def publish(number: int = number, write: Callable[[], _Made] = write) -> None:
                self.told[number] = Described(write(), None)

            self._keep(number, publish)
        self._begun.clear()

    def _keep(self, number: int, work: Callable[[], None]) -> None:
        """Do some work on a view, and keep what goes wrong as its failure."""
        if (failure := _attempt(work)) is not None:
            self.told[number] = Described(None, failure)


class _Work:
    """Extracting and fitting, beside other processes that do the same."""

    def __init__(
        self, task: _Task, checked: _Checked, session: StoreSession, watch: SweepReporter
    ) -> None:
        self.task = task
        self.checked = checked
        self.session = session
        self.store = session.store
        self.watch = watch
        self.forecast = Forecast()
        # Kept, since the plan and every backbone need them again.
        self._measured: FeatureTable | None = None
        self.spikes_of = StoredSpikes(self.store, checked.finder, watch.stage, keep=True)
        self.jobs = {view: self._job(view) for view in task.grid.views}
        self.outcomes: list[Outcome] = []
        self.failures: list[Failure] = []
        self.notes: list[str] = []

    def _job(self, view: PictureView) -> _ViewJob:
        engine = self.checked.engines[view.backbone]
        features = StoredFeatures(
            self.store, view.windows, view.picture, view.backbone, engine, self.watch.stage
        )
        return _ViewJob(view, features, self.task.out / "measured", self._took)

    def run(self) -> None:
        """Spikes first, then all features, then the runs; what failed is written."""
        self.watch.doing("spikes")
        if self.task.cluster is None:
            self._find_spikes()
        else:
            self._find_spikes_there(self.task.cluster)
        if self.failures:
            self.notes.append(
                "Nothing was fitted: correct the recordings that failed, or take their lines out of"
                f" {self.task.devices}, and run the same command again"
            )
        else:
            self._plan()
            self._without_pictures()
            self._describe()
            for backbone in self.checked.engines:
                for view, job in self.jobs.items():
                    if view.backbone == backbone:
                        self._fits(job)
        self._finish()

    def _find_spikes(self) -> None:
        with closing(self._claimed()) as work:
            for row, _ in work:
                if (cause := _attempt(partial(self.spikes_of.update, row))) is not None:
                    self.failures.append(Failure("recording", row.name, cause))
        self.notes += self.spikes_of.notes

    def _find_spikes_there(self, cluster: Cluster) -> None:
        """Find spikes on a cluster's workers."""
        told: dict[str, Reported] = {}
        for row, done in self._done(cluster, extract_recording, ()):
            reported, failure = _told_by(done)
            if failure is None:
                told[row.name] = reported
            else:
                self.failures.append(Failure("recording", row.name, failure))
        in_order = (told[row.name] for row in self.checked.devices.rows if row.name in told)
        self.notes += summed_notes([note for one in in_order for note in one.notes])

    def _done(
        self, cluster: Cluster, function: Callable[..., object], jobs: Sequence[_ViewJob]
    ) -> Iterator[tuple[DeviceRow, Done]]:
        """Do something with every recording on a cluster's workers, and tell of each that is done.

        `jobs` are the views that are wanted.
        """
        spikes, compute = self.task.grid.spikes, self.task.compute
        voltage = self.checked.voltage
        job = StoreJob.of(self.session, spikes, compute, cluster, voltage=voltage)
        views = tuple(FeaturesJob.of(one.features) for one in jobs)
        rows = {row.name: row for row in self.checked.devices.rows}
        name = f"{function.__module__}:{function.__name__}"
        wanted = ExtractionJob(store=job, features=views)
        with closing(cluster.run(name, wanted, rows, on_gpu=job.on_gpu)) as ended:
            for number, done in enumerate(ended, 1):
                self.watch.recording(number, len(rows), done.name)
                yield rows[done.name], done

    def _plan(self) -> None:
        """Count what is to be done; only now, since windows depend on the recordings' lengths."""
        trains = {info.name: self.spikes_of.read(info.name) for info in self.checked.infos}
        n_pictures = 0
        for job in self.jobs.values():
            missing = [
                t for name, t in trains.items() if self.store.features_info(name, job.key) is None
            ]
            n = sum(len(window_starts(t, job.view.windows).start_s) for t in missing)
            self.forecast.pictures[_label(job.view.backbone)].left += n
            n_pictures += n
        for point in self.task.grid.points:
            view = point.view
            folder = self._folder(None if view is None else self.jobs[view], point.fit)
            if folder is None or not folder.exists():
                self.forecast.runs[point.fit.head].left += 1
        self.watch.begin(n_pictures, len(self.task.grid.points))

    def _folder(self, job: _ViewJob | None, options: FitOptions) -> Path | None:
        """Where a run belongs; None as long as its features are not all there.

        Without a view it is trained on what is measured of the spikes.
        """
        keys = {} if job is not None else {KIND: content_key(BurstFeatureParams().to_json())}
        for info in self.checked.infos:
            if job is None:
                made = self.store.spikes_info(info.name)
            else:
                made = self.store.features_info(info.name, job.key)
            if made is None:
                return None
            keys[info.name] = made["key"]
        key = run_key(self.checked.infos, keys, options, self.task.seed)
        view = None if job is None else job.view
        return self.task.out / "runs" / run_name(view, options, key)

    def _took(self, view: PictureView, n_pictures: int, seconds: float) -> None:
        self.forecast.pictures[_label(view.backbone)].measure(n_pictures, seconds)
        self.watch.described(n_pictures)
        self.watch.left(*self.forecast.seconds_left())

    def _describe(self) -> None:
        """Bring the features of all views into the store; failures stay in the jobs.

        Each recording is gone through once: its spikes are read once, put into bins once, and every
        view that is missing is drawn and described. On a GPU all of it is queued, and the next
        recording is begun while it is computed and written.
        """
        self.watch.doing("features")
        jobs = list(self.jobs.values())
        if self.task.cluster is None:
            self._describe_here(jobs)
        else:
            self._describe_there(jobs, self.task.cluster)
        self.spikes_of.forget()  # before runs, which want the memory
        for pace in self.forecast.pictures.values():
            pace.left = 0  # even if some were not described
        for job in jobs:
            for recording, cause in job.failed:
                name = f"{job.description} of {recording}"
                self.failures.append(Failure("features", name, cause))

    def _describe_there(self, jobs: Sequence[_ViewJob], cluster: Cluster) -> None:
        """Describe on a cluster's workers; failures stay in the jobs, as from here."""
        if not jobs:
            return
        for row, done in self._done(cluster, describe_recording, jobs):
            described, failure = _told_by(done)
            each = described or [Described(None, failure)] * len(jobs)
            for job, one in zip(jobs, each, strict=True):
                if one.failure is not None:
                    job.failed.append((row.name, one.failure))
                if one.made is not None:
                    job.add(one.made)

    def _describe_here(self, jobs: Sequence[_ViewJob]) -> None:
        with (
            closing(self._claimed()) as work,
            BackgroundWriter(_MOST_PENDING) as writer,
        ):
            for row, claim in work:
                if (cause := _attempt(partial(self._start_all, row, jobs, writer))) is not None:
                    for job in jobs:
                        job.failed.append((row.name, cause))
                # Behind all that is to be written of the recording.
                writer.submit(row.name, claim.pop_all().close)
                _raise_first(writer)
            writer.wait()
            _raise_first(writer)

    def _start_all(
        self, row: DeviceRow, jobs: Sequence[_ViewJob], writer: BackgroundWriter
    ) -> None:
        """Start to make what is missing of a recording, and hand over what publishes it."""
        spikes = self.spikes_of.update(row)
        # Published when all are begun: whoever waits for features ends the batch that they are in.
        publish: list[Callable[[], None]] = []
        try:
            for job in jobs:

                def start(job: _ViewJob = job) -> None:
                    write = self._start(job, spikes, writer)
                    if write is not None:
                        publish.append(partial(_attempt_for, job, row, write))

                _attempt_for(job, row, start)
        finally:
            for one in publish:  # after Ctrl-C, too
                writer.submit(row.name, one)

    def _start(
        self, job: _ViewJob, spikes: PublishedSpikes, writer: BackgroundWriter
    ) -> Callable[[], None] | None:
        """Start a view; what is returned publishes it."""

        def make_room() -> None:
            writer.wait()
            for engine in self.checked.engines.values():
                engine.release()

        write = _start(job.features, spikes, make_room)
        return None if write is None else lambda: job.add(write())

    def _claimed(self) -> Generator[tuple[DeviceRow, ExitStack], None, None]:
        """Go through the recordings, claiming each.

        Whoever takes a claim over releases it; otherwise it is released when the next one is asked
        for.
        """
        rows = self.checked.devices.rows
        for number, row in enumerate(rows, 1):
            self.watch.recording(number, len(rows), row.name)
            with ExitStack() as claim:
                claim.enter_context(self.session.claim(recording_name(row.name), wait=True))
                yield row, claim

    def _without_pictures(self) -> None:
        for point in self.task.grid.points:
            if point.view is None:
                self._end(self._fit(None, point, self._parameters), KIND)

    def _parameters(self) -> FeatureTable:
        """Burst parameters of all recordings, measured when first needed and once for all."""
        if self._measured is None:
            n_jobs = self.task.compute.n_jobs
            self._measured = parameter_table(self.store, BurstFeatureParams(), n_jobs=n_jobs)
        return self._measured

    def _fits(self, job: _ViewJob) -> None:
        # Read when first needed, too.
        table = cache(lambda: self.store.table(job.features.feature_set))
        for point in self.task.grid.points:
            if point.view == job.view:
                self._end(self._fit(job, point, table), job.description)

    def _end(self, outcome: Outcome, what: str) -> None:
        """Keep and tell what became of a grid point; `what` names one that has no folder."""
        self.outcomes.append(outcome)
        if outcome.metrics is None:
            self.failures.append(Failure("run", outcome.name or what, outcome.cause))
        self.watch.ran(outcome)
        self.watch.left(*self.forecast.seconds_left())

    def _fit(
        self, job: _ViewJob | None, point: GridPoint, table: Callable[[], FeatureTable]
    ) -> Outcome:
        facts, options = None if job is None else job.facts, point.fit
        folder = self._folder(job, options)
        lacking = [] if job is None else job.failed
        if lacking or folder is None:
            self.forecast.runs[options.head].left -= 1
            failed = ", ".join(recording for recording, _ in lacking)
            cause = f"its features could not be made for {failed}"
            return Outcome(point=point, facts=facts, cause=cause)
        reused = folder.exists()
        if not reused:
            self.watch.doing(folder.name)
            begin = time.perf_counter()
            failure = _attempt(partial(self._train, folder, options, table))
            self.forecast.runs[options.head].measure(1, time.perf_counter() - begin)
            if failure is not None:
                return Outcome(point=point, facts=facts, name=folder.name, cause=failure)
        metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
        return Outcome(point=point, facts=facts, name=folder.name, metrics=metrics, reused=reused)

    def _train(self, folder: Path, options: FitOptions, table: Callable[[], FeatureTable]) -> None:
        rows = table()
        fit(
            rows,
            replace(options, seed=self.task.seed),
            folder,
            facts=self.store.training_facts(rows),
            device=self.task.head_device(options.head),
            store=self.store,
            compare=False,
            parameters=self._measured,
            cluster=self.task.cluster if head_of(options.head).spreads else None,
            progress=self.watch.stage,
        )

    def _finish(self) -> None:
        path = self.task.out / "failures.csv"
        with writing(path):
            path.unlink(missing_ok=True)
            if self.failures:
                write_csv(path, Failure._fields, self.failures)
        runs = [o.name for o in self.outcomes if o.metrics is not None]
        self.task.write_state("finished", runs, self.failures)


def _label(backbone: Backbone) -> str:
    return f"{backbone.name} {backbone.weights}"


def _attempt_for(job: _ViewJob, row: DeviceRow, work: Callable[[], object]) -> None:
    """Do some work on a view of a recording, and keep what goes wrong as that view's failure."""
    if (cause := _attempt(work)) is not None:
        job.failed.append((row.name, cause))


def _told_by(done: Done) -> tuple[Any, str | None]:
    """Give what a worker tells, or why it failed."""
    told: list[Any] = []
    failure = _attempt(lambda: told.append(done.value()))
    return (None if failure else told[0]), failure


def _raise_first(writer: BackgroundWriter) -> None:
    """Raise what no view can keep as its failure: that nothing can be written any longer."""
    for failed in writer.take_failures():
        raise failed.error


def _attempt(work: Callable[[], object]) -> str | None:
    """Do some work; if it fails, give the cause in one line."""
    try:
        work()
    except StorageError:
        raise  # nothing else could be written either
    except ToptuneError as error:
        return one_line(error)
    except Exception as error:  # noqa: BLE001  # logged with its traceback
        heed_interrupt(error)
        # Whatever it is, the rest of a long sweep goes on; the traceback says where to look.
        _LOG.exception("an unexpected error")
        return f"{type(error).__name__}: {one_line(error)}"
    return None
