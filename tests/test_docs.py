"""What the documents show works as it is printed."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from foreign_objects import (
    NeoBlock,
    NeoSegment,
    NeoTrain,
    Quantity,
    SpikeInterfaceRecording,
    SpikeInterfaceSorting,
)
from small_data import write_data_set, write_mcs

from toptune.cli.app import app
from toptune.evaluation.folds import leave_one_group_out
from toptune.extraction import extract
from toptune.heads import catalogue, head_of, register
from toptune.params import Backbone, FitOptions, Windows
from toptune.store.feature_store import FeatureStore
from toptune.training import fit

TOP = Path(__file__).parents[1]
DOCS = TOP / "docs"


def blocks(name: str) -> list[str]:
    """The Python code that a document prints, block by block."""
    text = (DOCS / name).read_text("utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module that docs/own-classifier.md prints, imported."""
    (code,) = blocks("own-classifier.md")
    (tmp_path / "printed_head.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(catalogue, "_known", dict(catalogue._known))
    yield importlib.import_module("printed_head")
    sys.modules.pop("printed_head")


def test_the_printed_classifier_is_tuned_scored_written_and_read(printed: Any) -> None:
    register(printed.CentroidHead())
    head = head_of("centroid")
    assert len(head.candidates({}, {}, 1, tune=True)) == 2
    X = np.repeat(np.eye(3), 4, axis=0) + np.arange(12)[:, None] / 50
    y, group = np.repeat(list("abc"), 4), np.tile(["p", "q", "r", "s"], 3)
    classifier = head.make({"shrink_threshold": 0.1})
    assert (leave_one_group_out(classifier, X, y, group).predictions == y).all()
    fitted = classifier.fit(X, y)
    again = head.read(fitted.to_tensors(), fitted.get_params(), fitted.classes_)
    np.testing.assert_array_equal(again.class_scores(X), fitted.class_scores(X))
    np.testing.assert_array_equal(again.predict(X), fitted.predict(X))


# --- docs/python.md

PACKAGES = ("xarray", "anndata")


@pytest.fixture(scope="module")
def study(tiny_backbones: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store, the run and the recording that the document speaks of."""
    del tiny_backbones
    folder = tmp_path_factory.mktemp("study")
    devices = write_data_set(folder)
    extract(
        devices,
        folder / "study.zarr",
        windows=Windows(width_s=2.0, stride_s=1.0),
        backbone=Backbone(name="tiny", weights="random"),
    )
    store = FeatureStore(folder / "study.zarr")
    table = store.table(store.choose())
    options = FitOptions(head="falkon", tune=False, permutations=0)
    fit(table, options, folder / "run-falkon", facts=store.training_facts(table), store=store)
    (folder / "week4").mkdir()
    write_mcs(folder / "week4" / "new.h5", seed=9)
    return folder


@pytest.fixture
def names(study: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the document takes as given: objects of neo's and SpikeInterface's shapes."""
    monkeypatch.chdir(study)
    train = NeoTrain(Quantity(np.array([0.5]), "s"), Quantity(2.0, "s"))
    noise = np.random.default_rng(1).normal(0, 5, (80_000, 4)).astype(np.float32)
    noise[1000:79_000:500] -= 80
    return {
        "block": NeoBlock([NeoSegment([train])]),
        "sorting": SpikeInterfaceSorting([{1: [10]}]),
        "recording": SpikeInterfaceRecording([noise]),
    }


def test_what_the_document_on_python_shows_works(
    names: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = [code for code in blocks("python.md") if not any(p in code for p in PACKAGES)]
    assert len(shown) == 6
    for code in shown:
        exec(code, names)
    out = capsys.readouterr().out
    printed = re.findall(r"print\(.*\)  # (.*)", "".join(shown))
    assert printed == ["<SpikeTrains: 4 spikes on 3 channels, 300 s at 25000 Hz>"]
    assert printed[0] in out
    assert "culture 7" in out
    assert "culture 8" in out
    assert len(names["found"].trains.spikes.sample) > 100
    assert set(names["means"].index.get_level_values("label")) == {"A", "B", "C"}


@pytest.mark.parametrize("package", PACKAGES)
def test_what_it_shows_of_other_packages_works(package: str, names: dict[str, Any]) -> None:
    pytest.importorskip(package, reason=f"{package}: not installed")
    for code in blocks("python.md"):
        if "to_pandas" in code or package in code:
            exec(code, names)
    assert {"xarray": "per_device", "anndata": "data"}[package] in names


# --- commands

PAGES = [TOP / "README.md", *sorted(DOCS.glob("*.md"))]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group


def shown_commands(text: str) -> Iterator[list[str]]:
    """Give the words of each toptune command in a page's blocks of shell, without its name."""
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            for one in line.split("&&"):
                words = shlex.split(one, comments=True)
                if words[:1] == ["toptune"]:
                    yield words[1:]


def code_spans(text: str) -> list[str]:
    """Give what stands between single backticks, outside of blocks."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return re.findall(r"(?<!`)`([^`]+)`(?!`)", text)


def unknown_options(command: str, words: list[str]) -> list[str]:
    """List the options among the words that a command lacks."""
    (known,) = [COMMANDS[command]]
    context = known.context_class(known, info_name=command)
    have = {o for p in known.get_params(context) for o in (*p.opts, *p.secondary_opts)}
    return [word for word in words if re.match(r"--?[A-Za-z]", word) and word not in have]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_shown_is_one_with_these_options(page: Path) -> None:
    for name, *words in shown_commands(page.read_text("utf-8")):
        COMMANDS[name].make_context(name, words)  # refuses what it does not know or lacks


def test_every_option_named_in_a_sentence_exists() -> None:
    options = {
        option
        for name, command in COMMANDS.items()
        for parameter in command.get_params(command.context_class(command, info_name=name))
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    # Of pytest and mkdocs, and of the program itself.
    options |= {"--strict-skips", "--strict", "--version", "--install-completion"}
    wrong = []
    for page in PAGES:
        for span in code_spans(page.read_text("utf-8")):
            first, *words = span.removeprefix("toptune ").split()
            if first in COMMANDS:
                found = unknown_options(first, words)
            elif first.startswith("--"):
                found = [word for word in (first, *words) if word.startswith("--")]
                found = [word for word in found if word not in options]
            else:
                continue
            wrong += [f"{page.name}: `{span}`: {one}" for one in found]
    assert not wrong


def test_every_extra_that_is_to_be_installed_exists() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text("utf-8"))["project"]
    named = [
        extra
        for page in PAGES
        for extras in re.findall(r"(?:\.|toptune)\[([a-z,]+)\]", page.read_text("utf-8"))
        for extra in extras.split(",")
    ]
    assert named
    assert set(named) <= set(project["optional-dependencies"])


def test_the_fresh_machine_finds_its_two_commands_first() -> None:
    demo, test, *_ = re.findall(r"^```bash\n(.*?)^```", PAGES[0].read_text("utf-8"), re.M | re.S)
    assert demo.rstrip().endswith("toptune demo")
    assert test.rstrip().endswith("pytest -q")
