"""The command that does the whole job on simulated cultures, offline: demo."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from toptune.cli.options import N_JOBS, SEED, AsJson, command, require_weights
from toptune.cli.printing import command_line, free_name, print_json, tell, watch_whole
from toptune.errors import InputError
from toptune.machine.installation import require_networks
from toptune.params import Backbone, Compute, FitOptions, Picture, Windows

N_DEVICES = 20
SECONDS = 30.0
# Short recordings need short windows; random weights need a count axis that shows how high the
# bursts are. MobileNetV2 is the fastest of the paper's backbones.
WINDOWS = Windows(width_s=10.0, stride_s=5.0)
PICTURE = Picture(count_axis=40.0)
BACKBONE = "mobilenet_v2"
# What each step takes on 2 cores, in seconds: the bar's first guess of the time left.
EXPECTED_S = {"simulate": 6.0, "load": 3.0, "extract": 9.0, "fit": 4.0, "compare": 2.0}
HEAD = "falkon"
_RECORDINGS = "recordings"


@command("toptune demo")
def demo(
    out: Annotated[Path, typer.Option(help="New folder to write into.")] = Path("toptune-demo"),
    keep: Annotated[
        bool,
        typer.Option(
            "--keep", help="Keep the recordings, about 500 MB, when their spikes have been found."
        ),
    ] = False,
    open_report: Annotated[
        bool,
        typer.Option(
            "--open/--no-open",
            help="Open the report in a browser, where there is a terminal and a screen.",
        ),
    ] = True,
    weights: Annotated[
        str, typer.Option(help="Weights of the network: random, imagenet or a file.")
    ] = "random",
    seed: Annotated[int, SEED] = 0,
    n_jobs: Annotated[int | None, N_JOBS] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate cultures, classify each by a model that never saw it, and write a report.

    It takes half a minute on two idle cores, 10 s more the first time, when functions are compiled,
    and works offline.
    """
    require_weights(weights)
    require_networks("the demonstration")
    with watch_whole(sum(EXPECTED_S.values())) as watch:
        result = run_demo(out, weights=weights, keep=keep, seed=seed, n_jobs=n_jobs, watch=watch)
    if as_json:
        report = str(result.report)
        seconds, metrics = result.seconds, result.metrics
        print_json({"folder": str(out), "seconds": seconds, "metrics": metrics, "report": report})
        return
    opened = open_report and has_screen(os.environ, sys.platform) and _open(result.report)
    for line in _told(result):
        tell(line)
    tell(f"report: {result.report}")
    tell("It is open in your browser." if opened else how_to_open(result.report, os.environ))


class Watch(Protocol):
    """Shows how far the whole of the work is."""

    def begin(self, text: str, expected_s: float) -> None:
        """Note that a step begins, which should take so long."""

    def part(self, done: float, text: str = "") -> None:
        """Note the part of the step that is done, 0 to 1."""


class _NoWatch:
    def begin(self, text: str, expected_s: float) -> None:
        pass

    def part(self, done: float, text: str = "") -> None:
        pass


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration made."""

    folder: Path  # of devices.csv, store and runs
    weights: str
    seed: int
    kinds: tuple[str, ...]  # classes of the cultures, in the order of devices.csv
    recording_s: float  # length of each recording
    recordings_mb: float  # of all recordings together
    kept: bool  # whether they are still there
    metrics: dict[str, dict[str, Any]]  # by run, what its metrics.json holds; the first counts
    seconds: dict[str, float]  # by step

    @property
    def report(self) -> Path:
        """The report of the first run."""
        return self.folder / f"run-{next(iter(self.metrics))}" / "report.html"


def run_demo(
    folder: Path,
    *,
    weights: str = "random",
    keep: bool = False,
    seed: int = 0,
    n_devices: int = N_DEVICES,
    seconds: float = SECONDS,
    n_jobs: int | None = None,
    watch: Watch | None = None,
) -> DemoResult:
    """Simulate cultures, extract features and fit the recommended classifier, in a new folder.

    Pictures through random weights are for testing only: then the classifier is trained on burst
    parameters, and a second one on the pictures, for comparison. With trained weights the first has
    both, and the second burst parameters alone. The recordings are deleted after use unless `keep`.
    """
    if folder.exists():
        raise InputError(f"{folder} exists already: remove it or choose another folder with --out")
    watch = watch or _NoWatch()
    took: dict[str, float] = {}

    @contextmanager
    def timed(name: str, text: str, expected: str) -> Iterator[None]:
        watch.begin(text, EXPECTED_S[expected])
        began = time.perf_counter()
        yield
        took[name] = time.perf_counter() - began

    with timed("simulate", "simulating cultures", "simulate"):
        from toptune.machine.threads import usable_cores
        from toptune.recordings.simulated import simulate

        n_simulated = 0

        def simulated(_: str) -> None:
            nonlocal n_simulated
            n_simulated += 1
            watch.part(n_simulated / n_devices, f"{n_simulated}/{n_devices}")

        devices = simulate(
            folder / _RECORDINGS,
            n_devices=n_devices,
            seconds=seconds,
            seed=seed,
            n_jobs=n_jobs or usable_cores(),
            on_device=simulated,
        )
    store = folder / "store.zarr"
    with timed("extract", "loading programs and network", "load"), _unsaid_random_weights():
        from toptune.extraction import extract

        extract(
            devices,
            store,
            windows=WINDOWS,
            picture=PICTURE,
            backbone=Backbone(name=BACKBONE, weights=weights, seed=seed),
            compute=Compute(n_jobs=n_jobs),
            progress=_RecordingsPart(watch),
        )
    recordings = sorted(devices.parent.glob("*.h5"))
    megabytes = sum(path.stat().st_size for path in recordings) / 1e6
    from threadpoolctl import threadpool_limits

    from toptune.recordings.devices import read_devices
    from toptune.store.feature_store import FeatureStore
    from toptune.store.tables import table_for
    from toptune.training import fit

    opened = FeatureStore(store)
    (pictures,) = opened.feature_sets()
    # Trained weights: all the store has, and burst parameters, as `fit` takes them by itself.
    both, alone = [pictures.key, "parameters"], ["parameters"]
    runs = {HEAD: (alone, True), "pictures": ([pictures.key], False)}
    if weights != "random":
        runs = {HEAD: (both, True), "parameters": (alone, True)}
    metrics = {}
    for name, (features, tune) in runs.items():
        first = name == HEAD
        step = "leaving each culture out" if first else "comparing"
        # Products this small are slower on several threads, and very much so on a busy machine.
        with timed(name, step, "fit" if first else "compare"), threadpool_limits(limits=1):
            table = table_for(opened, HEAD, features, n_jobs=n_jobs)
            run = fit(
                table,
                FitOptions(head=HEAD, seed=seed, tune=tune, permutations=None if tune else 0),
                folder / f"run-{name}",
                facts=opened.training_facts(table),
                store=opened,
                compare=first,
                progress=_FitPart(watch),
            )
            metrics[name] = run.metrics
    kinds = tuple(dict.fromkeys(row.label for row in read_devices(devices).rows))
    result = DemoResult(folder, weights, seed, kinds, seconds, megabytes, keep, metrics, took)
    if not keep:
        for path in recordings:
            path.unlink()
        about = devices.parent / "README.txt"
        about.write_text("\n".join(_deleted(result)) + "\n", "utf-8")
    return result


class _RecordingsPart:
    """Tells a watch how far extraction is."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._at = (0, 1)

    def recording(self, number: int, total: int, name: str) -> None:
        del name
        if number == 1:
            self._watch.begin("finding spikes, drawing", EXPECTED_S["extract"])
        self._at = (number - 1, total)
        self._watch.part((number - 1) / total, f"{number}/{total}")

    def stage(self, name: str, done: int, total: int) -> None:
        if name == "spikes" and total:
            number, n = self._at
            self._watch.part((number + done / total) / n, f"{number + 1}/{n}")


class _FitPart:
    """Tells a watch how far a fit is: the classifier takes half of it, the report the rest."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __call__(self, what: str, done: int, total: int) -> None:
        part = done / total if total else 0.0
        if what == "report":
            self._watch.part(0.6 + 0.4 * part)
        elif what == "settings":
            self._watch.part(0.5 * part)


@contextmanager
def _unsaid_random_weights() -> Iterator[None]:
    """Leave to the end, where it belongs to a result, that weights are random."""
    logger = logging.getLogger("toptune.backbones.loading")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


# --- what is printed


def _told(result: DemoResult) -> Iterator[str]:
    """Say what was found, the best founded result first."""
    (first, m), (_, other) = result.metrics.items()
    yield (
        f"{m['n_devices']} simulated cultures of {len(m['classes'])} kinds, {result.recording_s:g}"
        " s each, each left out of training once"
    )
    yield "kinds, by per cent of excitatory and inhibitory neurons:"
    yield f"  {', '.join(result.kinds)}"
    yield ""
    random = result.weights == "random"
    features = "burst parameters" if random else "pictures and burst parameters"
    yield f"{first} on {features}: {_right(m)}"
    yield f"  {_chance(m)}"
    if not random:
        yield f"beside it, {first} on burst parameters alone: {_right(other)}"
    else:
        yield f"beside it, for testing only, {first} on pictures: {_right(other)}"
        yield "  Their network has RANDOM weights: rely on no result of it. Trained weights let"
        yield "  pictures join the burst parameters: --weights FILE or, from the internet,"
        words = ("toptune", "demo", "--weights", "imagenet", "--out", free_name("demo-imagenet"))
        yield f"  {command_line(*words)}"
    yield ""
    steps = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result.seconds.items())
    yield f"{sum(result.seconds.values()):.0f} s: {steps}"
    if not result.kept:
        yield from _deleted(result)
    yield f"{folder_mb(result.folder):.0f} MB are left in {result.folder}/"


def _right(metrics: Mapping[str, Any]) -> str:
    n = metrics["n_devices"]
    return f"{round(metrics['device_accuracy'] * n)} of {n} cultures right"


def _chance(metrics: Mapping[str, Any]) -> str:
    n, p = metrics["n_devices"], metrics["permutation_p"]
    low, high = metrics["device_accuracy_ci95"]
    text = (
        f"always naming one kind: {metrics['chance'] * n:.0f} of {n}; 95 % interval"
        f" {low * n:.0f} to {high * n:.0f} of {n}"
    )
    return text if p is None else f"{text}; p = {p:.3f}"


def _deleted(result: DemoResult) -> Iterator[str]:
    n = next(iter(result.metrics.values()))["n_devices"]
    again = ["toptune", "simulate", str(result.folder / _RECORDINGS), "--devices", str(n)]
    again += ["--seconds", f"{result.recording_s:g}", "--seed", str(result.seed), "--overwrite"]
    yield f"The recordings ({result.recordings_mb:.0f} MB) were deleted after use. The same again:"
    yield f"  {command_line(*again)}"


def folder_mb(folder: Path) -> float:
    """Add up the sizes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def has_screen(environment: Mapping[str, str], platform: str) -> bool:
    """Whether a person at a terminal can see a browser that is opened here."""
    if any(environment.get(name) for name in ("CI", "SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY")):
        return False
    if not sys.stdout.isatty():
        return False
    if platform in ("darwin", "win32"):
        return True
    return any(environment.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _open(path: Path) -> bool:
    """Open a file in a browser, unless that is one for terminals; return whether it did."""
    import webbrowser

    try:
        browser = webbrowser.get()
        # The class of browsers in the terminal, which would take it over.
        if type(browser) is webbrowser.GenericBrowser:
            return False
        return browser.open(path.resolve().as_uri())
    except (webbrowser.Error, OSError):
        return False


def how_to_open(path: Path, environment: Mapping[str, str], platform: str = sys.platform) -> str:
    """Say how a file is opened in a browser."""
    if platform == "win32":
        return f'open it: start "" "{path}"'
    if platform == "darwin":
        return f"open it: open {shlex.quote(str(path))}"
    if any(environment.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")):
        return f"open it: xdg-open {shlex.quote(str(path))}"
    return "open it in any browser, on any computer: it is one file that needs nothing else"
