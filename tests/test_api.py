"""The public names: what they do from Python is what the commands do."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import assert_type, get_type_hints

import pytest
from results import Run
from small_data import write_data_set

import toptune
from toptune import Backbone, FeatureStore, InputError, Windows

pytestmark = pytest.mark.usefixtures("one_torch_thread", "tiny_backbones")
TINY = Backbone(name="tiny", weights="random")
WINDOWS = Windows(width_s=2.0, stride_s=1.0)
GRID = """
picture = ["histogram", "raster"]
window_s = 2
stride_s = 1
backbone = "tiny"
weights = "random"
head = "falkon"
tune = false
permutations = 0
"""


@pytest.fixture(scope="module")
def study(tiny_backbones: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recordings, a store, and a run made from Python; look, do not touch."""
    del tiny_backbones
    folder = tmp_path_factory.mktemp("study")
    devices = write_data_set(folder)
    toptune.extract(devices, folder / "s.zarr", windows=WINDOWS, backbone=TINY)
    (folder / "grid.toml").write_text(GRID)
    toptune.fit(folder / "s.zarr", folder / "run", permutations=20)
    return folder


def test_only_public_names_are_listed_and_every_one_is_there() -> None:
    assert dir(toptune) == sorted(toptune.__all__)
    for name in toptune.__all__:
        assert getattr(toptune, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'fits'"):
        # Mypy tells of a comment that ignores no error: it knows which names there are.
        _ = toptune.fits  # type: ignore[attr-defined]


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import sys, toptune; print(sorted({'numpy', 'torch', 'sklearn'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_function_has_types_all_through(study: Path) -> None:
    # What mypy derives is what is there.
    assert_type(
        toptune.predict(study / "run" / "model", study / "r0.h5").recordings[0].prediction, str
    )
    assert_type(FeatureStore(study / "s.zarr").feature_sets()[0].key, str)
    for name in toptune.__all__:
        public = getattr(toptune, name)
        if inspect.isfunction(public):
            hints, parameters = get_type_hints(public), inspect.signature(public).parameters
            assert {*hints} == {*parameters, "return"}


def test_a_fit_is_that_of_the_command(study: Path, tmp_path: Path, run: Run) -> None:
    work = shutil.copytree(study, tmp_path / "work")
    ran = run("fit", str(work / "s.zarr"), "-o", str(tmp_path / "run"), "--permutations", "20")
    assert ran.code == 0, ran.err
    for name in ("windows.csv", "devices.csv", "model/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (study / "run" / name).read_bytes()


def test_options_of_the_classifier_are_fixed_or_chosen_from(study: Path, tmp_path: Path) -> None:
    def params(name: str, **given: object) -> dict[str, object]:
        toptune.fit(
            FeatureStore(study / "s.zarr"),
            tmp_path / name,
            features="histogram",
            permutations=0,
            **given,  # type: ignore[arg-type]  # any of them
        )
        found: dict[str, object] = json.loads((tmp_path / name / "params.json").read_text())
        return found

    fixed = params("fixed", parameters={"width": 0.5, "penalty": [1e-4]})["requested"]
    assert isinstance(fixed, dict)
    assert fixed["fixed"] == {"width": 0.5, "penalty": 1e-4}
    several = params("several", parameters={"penalty": (1e-4, 1e-5)})["requested"]
    assert isinstance(several, dict)
    assert several["tried"] == {"penalty": [1e-4, 1e-5]}
    merged = params("merged", merge={"A, B": ["A", "B"]}, classes=["C", "A, B"])
    assert merged["merge"] == {"A, B": ["A", "B"]}
    assert merged["class_order"] == ["C", "A, B"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"head": "svm"}, "svm"),
        ({"parameters": {"learning_rate": 1}}, "has no option 'learning_rate'; it has"),
        ({"parameters": {"penalty": -1.0}}, "penalty"),
        ({"features": "correlation"}, "0 sets like 'correlation'"),
        ({"device": "tpu"}, "tpu"),
        ({"strata": "batches"}, "batches"),
    ],
)
def test_what_is_wrong_is_said_in_the_words_of_python(
    study: Path, tmp_path: Path, given: dict[str, object], says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        toptune.fit(study / "s.zarr", tmp_path / "run", **given)  # type: ignore[arg-type]
    assert " --" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_verdicts_are_predicted_and_explained_with_and_without_a_folder(
    study: Path, tmp_path: Path
) -> None:
    model, recording = study / "run" / "model", study / "r0.h5"
    (verdict,) = toptune.predict(model, recording).recordings
    (alone,) = toptune.explain(model, recording)
    (written,) = toptune.explain(model, recording, tmp_path / "why")
    for explained in (alone, written):
        assert explained.prediction.prediction == verdict.prediction
    assert (tmp_path / "why" / "why.html").is_file()


def test_a_report_is_written_again_and_beside_others(study: Path, tmp_path: Path) -> None:
    other = toptune.fit(
        study / "s.zarr", tmp_path / "other", features="histogram", permutations=0, tune=False
    )
    path = toptune.report(study / "run", beside=[other], out=tmp_path / "both.html")
    assert path == tmp_path / "both.html"
    assert "other" in path.read_text("utf-8")
    assert toptune.report(other) == other.path / "report.html"


def test_a_sweep_is_run_and_goes_on(study: Path, tmp_path: Path) -> None:
    first = toptune.sweep(study / "devices.csv", study / "grid.toml", tmp_path / "swept")
    assert (len(first.done), first.failures) == (2, ())
    assert (tmp_path / "swept" / "report.html").is_file()
    more = {"head": ["falkon", "recordings"]}
    again = toptune.sweep(
        study / "devices.csv", study / "grid.toml", tmp_path / "swept", settings=more
    )
    assert sorted(outcome.reused for outcome in again.outcomes) == [False, False, True, True]
