"""Numbers that repeat: same data and seed, same bytes, whatever the threads and chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crash_jobs import tree, write_data
from threadpoolctl import threadpool_limits

from toptune.backbones import engine as features
from toptune.extraction import extract
from toptune.machine import device
from toptune.params import Backbone, Compute, FitOptions, Picture, Ptsd, SpikeSettings, Windows
from toptune.spikes import ptsd_compiled
from toptune.spikes import streaming as detection
from toptune.store.feature_store import FeatureStore
from toptune.store.tables import table_for
from toptune.training import fit

pytestmark = pytest.mark.usefixtures("one_torch_thread", "tiny_backbones")
WINDOWS = Windows(width_s=1.0, stride_s=0.25)
TINY = Backbone(name="tiny", weights="random")
# As noise is estimated by default, and from the whole recording at once.
SETTINGS = (SpikeSettings(), SpikeSettings(ptsd=Ptsd(noise="mad")))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recordings and a store made by one thread; look, do not touch."""
    folder = tmp_path_factory.mktemp("made")
    write_data(folder)
    run_extract(folder, folder / "s.zarr", compute=Compute(n_jobs=1))
    return folder


def run_extract(folder: Path, store: Path, **options: Any) -> Path:
    extract(folder / "devices.csv", store, windows=WINDOWS, backbone=TINY, **options)
    return store


@pytest.mark.parametrize("n_jobs", [3])
def test_a_store_is_the_same_bytes_for_any_number_of_threads(
    made: Path, tmp_path: Path, n_jobs: int
) -> None:
    # Side by side, since a store knows where its devices file is from there.
    expected = tree(run_extract(made, tmp_path / "one.zarr", compute=Compute(n_jobs=1)))
    store = run_extract(made, tmp_path / "s.zarr", compute=Compute(n_jobs=n_jobs))
    assert tree(store) == expected


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_store_is_the_same_bytes_for_any_chunks(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: SpikeSettings
) -> None:
    expected = tree(
        run_extract(made, tmp_path / "one.zarr", spikes=settings, compute=Compute(n_jobs=2))
    )
    monkeypatch.setattr(detection, "_BATCH_VALUES", 4 * ptsd_compiled.BLOCK)
    monkeypatch.setattr(features, "_DRAWN_AT_ONCE", 3)
    store = run_extract(made, tmp_path / "two.zarr", spikes=settings, compute=Compute(n_jobs=2))
    assert tree(store) == expected


@pytest.mark.parametrize("batch_size", [7])
def test_features_keep_within_rounding_for_any_batch_size(
    made: Path, tmp_path: Path, batch_size: int
) -> None:
    store = FeatureStore(
        run_extract(made, tmp_path / "s.zarr", compute=Compute(batch_size=batch_size))
    )
    expected = FeatureStore(made / "s.zarr")
    got, there = store.table(store.choose()), expected.table(expected.choose())
    np.testing.assert_allclose(got.features, there.features, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("falkon", {"permutations": 20}),
        ("falkon", {"permutations": 5, "fixed": {"n_centres": 10}}),
        ("mlp", {"permutations": 1, "fixed": {"epochs": 2}, "tune": False}),
    ],
)
def test_a_run_is_the_same_bytes_again_and_its_verdicts_on_any_number_of_threads(
    made: Path, tmp_path: Path, head: str, options: dict[str, Any]
) -> None:
    store = FeatureStore(made / "s.zarr")
    table = store.table(store.choose())
    facts = store.training_facts(table)

    fitting = FitOptions(head=head, seed=3, **options)

    def run(name: str, threads: int) -> Any:
        with threadpool_limits(threads):
            # Of one name, which the report tells.
            return fit(table, fitting, tmp_path / name / "run", facts=facts)

    once, again, wide = run("once", 1), run("again", 1), run("wide", 2)
    assert tree(once.path) == tree(again.path)
    # Sums in another order: rounding, but no verdict.
    np.testing.assert_array_equal(wide.folds.predictions, once.folds.predictions)
    np.testing.assert_allclose(
        wide.folds.probabilities, once.folds.probabilities, rtol=1e-5, atol=1e-6
    )
    assert wide.metrics["permutation_p"] == once.metrics["permutation_p"]


@pytest.mark.parametrize("head", ["falkon", "recordings", "parameters"])
def test_a_run_is_the_same_bytes_however_much_memory_is_free(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    store = FeatureStore(made / "s.zarr")
    runs = []
    for gib in (1, 5, 64):
        monkeypatch.setattr(device, "_linux_available", lambda _, gib=gib: gib * 2**30)
        fitting = FitOptions(head=head, permutations=3)
        table = table_for(store, head)
        out = tmp_path / f"{gib}" / "run"
        facts = store.training_facts(table)
        runs.append(tree(fit(table, fitting, out, facts=facts).path))
    assert runs[0] == runs[1] == runs[2]


def test_the_picture_and_its_seed_decide_not_the_order_of_work(made: Path, tmp_path: Path) -> None:
    # A store that had another feature set first holds the same numbers.
    expected = tree(run_extract(made, tmp_path / "alone.zarr", compute=Compute(n_jobs=1)))
    folder = tmp_path / "s.zarr"
    run_extract(made, folder, picture=Picture(kind="raster"), compute=Compute(n_jobs=2))
    run_extract(made, folder, compute=Compute(n_jobs=2))
    assert {p: s for p, s in tree(folder).items() if p in expected} == expected
