"""The whole job on simulated cultures, offline: simulate, extract, fit both heads.

A folder's name enters; a store, two runs and their scores leave.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toptune.errors import InputError
from toptune.extraction import extract
from toptune.params import Backbone, FitOptions, Picture, Windows
from toptune.recordings.simulated.culture import simulate
from toptune.store.feature_store import FeatureStore
from toptune.training import fit

N_DEVICES = 20
SECONDS = 60.0
# Short recordings want short windows that overlap much, and random weights an axis that keeps the
# bursts' height; MobileNetV2 is the fastest of the paper's backbones.
WINDOWS = Windows(width_s=30, stride_s=1)
PICTURE = Picture(count_axis=40.0)
BACKBONE = "mobilenet_v2"


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration made.

    Parameters
    ----------
    folder
        Recordings, store and runs.
    metrics
        By head, what its metrics.json holds.
    seconds
        By step.
    """

    folder: Path
    metrics: dict[str, dict[str, Any]]
    seconds: dict[str, float]


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
    """Simulate cultures, extract features and fit both heads.

    Parameters
    ----------
    folder
        Where to; must not exist.
    weights
        ``random`` (seeded, needs no download), ``imagenet`` or a file, for MobileNetV2.
    seed
        Of simulation, random weights and heads.
    n_devices, seconds
        Size of the simulated data set.
    n_jobs
        Threads; None for one a core.
    step
        Called with a line of text as each step begins.
    """
    from toptune.machine.threads import usable_cores

    if folder.exists():
        raise InputError(f"{folder} exists already: remove it or choose another folder with --out")
    took: dict[str, float] = {}
    began = time.perf_counter()

    def begin(name: str, text: str) -> None:
        nonlocal began
        took[name] = 0.0
        began = time.perf_counter()
        step(text)

    def end(name: str) -> None:
        took[name] = time.perf_counter() - began

    begin("simulate", f"simulating {n_devices} cultures of {seconds:g} s on 60 electrodes")
    devices = simulate(
        folder / "recordings",
        n_devices=n_devices,
        seconds=seconds,
        seed=seed,
        n_jobs=n_jobs or usable_cores(),
    )
    end("simulate")
    begin(
        "extract", f"detecting spikes, drawing windows, describing them by {BACKBONE} ({weights})"
    )
    store = folder / "store.zarr"
    done = extract(
        devices,
        store,
        windows=WINDOWS,
        picture=PICTURE,
        backbone=Backbone(name=BACKBONE, weights=weights, seed=seed),
        n_jobs=n_jobs,
    )
    end("extract")
    opened = FeatureStore(store)
    table = opened.table(done.feature_set)
    facts = opened.training_facts(table)
    metrics = {}
    # Tuning the MLP trains a network for every pair of cultures, which is no demonstration.
    for head, tune in (("falkon", True), ("mlp", False)):
        begin(head, f"leaving each culture out once: {head}")
        run = fit(
            table, FitOptions(head=head, seed=seed, tune=tune), folder / f"run-{head}",
            facts=facts, store=opened,
        )  # fmt: skip
        metrics[head] = run.metrics
        end(head)
    return DemoResult(folder, metrics, took)
