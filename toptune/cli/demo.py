"""The command that does the whole job on simulated cultures, offline: demo."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from toptune.cli.options import N_JOBS, SEED, AsJson, command, require_weights
from toptune.cli.printing import print_json, print_scores, say, tell
from toptune.errors import InputError
from toptune.params import Backbone, Compute, FitOptions, Picture, Windows

N_DEVICES = 20
SECONDS = 60.0
# Short recordings need short windows with much overlap, and random weights need a count axis that
# shows how high the bursts are; MobileNetV2 is the fastest of the paper's backbones.
WINDOWS = Windows(width_s=30, stride_s=1)
PICTURE = Picture(count_axis=40.0)
BACKBONE = "mobilenet_v2"
_RANDOM_WEIGHTS = (
    "These features come from a network with seeded RANDOM weights: the demo needs no download."
    " With ImageNet's weights: toptune demo --weights imagenet --out demo-imagenet (needs the"
    " internet once), or --weights FILE."
)


@command("toptune demo")
def demo(
    out: Annotated[Path, typer.Option(help="New folder to write into.")] = Path("toptune-demo"),
    weights: Annotated[
        str, typer.Option(help="Weights of the network: random, imagenet or a file.")
    ] = "random",
    seed: Annotated[int, SEED] = 0,
    n_jobs: Annotated[int | None, N_JOBS] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate cultures, extract, fit two classifiers, print their scores: 2 minutes, offline."""
    require_weights(weights)
    result = run_demo(
        out, weights=weights, seed=seed, n_jobs=n_jobs, step=lambda text: say(f"... {text}")
    )
    if as_json:
        print_json({"folder": str(out), "seconds": result.seconds, "metrics": result.metrics})
    else:
        _print_demo(result, weights)


def _print_demo(result: DemoResult, weights: str) -> None:
    """Print what the demonstration found, and how to go on."""
    print_scores(result.metrics)
    steps = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result.seconds.items())
    tell(f"{steps}; everything is in {result.folder}/")
    for head in result.metrics:
        tell(f"report: {result.folder / f'run-{head}' / 'report.html'}")
    if weights == "random":
        tell(_RANDOM_WEIGHTS)


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration made."""

    folder: Path  # of recordings, store and runs
    metrics: dict[str, dict[str, Any]]  # by head, what its metrics.json holds
    seconds: dict[str, float]  # by step


def run_demo(
    folder: Path,
    *,
    weights: str = "random",
    seed: int = 0,
    n_devices: int = N_DEVICES,
    seconds: float = SECONDS,
    n_jobs: int | None = None,
    step: Callable[[str], None] = lambda _: None,
) -> DemoResult:
    """Simulate cultures, extract features and fit Falkon and the MLP, in a new folder.

    `step` is called with a line of text as each step begins.
    """
    if folder.exists():
        raise InputError(f"{folder} exists already: remove it or choose another folder with --out")
    from toptune.extraction import extract
    from toptune.machine.threads import usable_cores
    from toptune.recordings.simulated import simulate
    from toptune.store.feature_store import FeatureStore
    from toptune.training import fit

    took: dict[str, float] = {}

    @contextmanager
    def timed(name: str, text: str) -> Iterator[None]:
        step(text)
        began = time.perf_counter()
        yield
        took[name] = time.perf_counter() - began

    simulating = f"simulating {n_devices} cultures of {seconds:g} s on 60 electrodes"
    with timed("simulate", simulating):
        devices = simulate(
            folder / "recordings",
            n_devices=n_devices,
            seconds=seconds,
            seed=seed,
            n_jobs=n_jobs or usable_cores(),
        )
    describing = f"detecting spikes, drawing windows, describing them by {BACKBONE} ({weights})"
    store = folder / "store.zarr"
    with timed("extract", describing):
        done = extract(
            devices,
            store,
            windows=WINDOWS,
            picture=PICTURE,
            backbone=Backbone(name=BACKBONE, weights=weights, seed=seed),
            compute=Compute(n_jobs=n_jobs),
        )
    opened = FeatureStore(store)
    table = opened.table(done.feature_set)
    facts = opened.training_facts(table)
    metrics = {}
    # Tuning the MLP trains a network for every pair of cultures, which is no demonstration.
    for head, tune in (("falkon", True), ("mlp", False)):
        options = FitOptions(head=head, seed=seed, tune=tune)
        with timed(head, f"leaving each culture out once: {head}"):
            run = fit(table, options, folder / f"run-{head}", facts=facts, store=opened)
            metrics[head] = run.metrics
    return DemoResult(folder, metrics, took)
