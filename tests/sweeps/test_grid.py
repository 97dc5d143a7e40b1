"""Grids: what is an axis, what is refused and where, which combinations are one and the same."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from toptune.backbones.names import PAPER_BACKBONES
from toptune.errors import InputError, InputErrors
from toptune.params import Backbone, FitOptions, HighPass, Picture, PictureKind, Windows
from toptune.sweeps.grid import Grid, PictureView, grid_keys, read_grid, shipped_grids


def write(folder: Path, text: str) -> Path:
    path = folder / "grid.toml"
    path.write_text(text, "utf-8")
    return path


def problems_of(where: Path | str, *settings: str) -> list[str]:
    with pytest.raises(InputErrors) as refused:
        read_grid(where, settings)
    return list(refused.value.problems)


def drawn(grid: Grid) -> list[tuple[str, str | float, float]]:
    """Pictures, axes and widths of the views, each once, in order."""
    return [(v.picture.kind, v.picture.count_axis, v.windows.width_s) for v in grid.views]


# --- what ships


def test_table_1_is_two_pictures_by_four_windows_of_efficientnet_b0() -> None:
    grid = read_grid("table1")
    assert drawn(grid) == [
        (kind, "window", width) for kind in ("histogram", "raster") for width in (120, 60, 30, 10)
    ]
    assert {v.backbone.name for v in grid.views} == {"efficientnet_b0"}
    assert {v.windows.stride_s for v in grid.views} == {5.0}
    assert [(c.fit.head, c.fit.tune) for c in grid.points[:2]] == [("mlp", False), ("falkon", True)]
    assert len(grid.points) == 16


def test_table_2_is_the_papers_six_backbones() -> None:
    grid = read_grid("table2")
    assert tuple(v.backbone.name for v in grid.views) == PAPER_BACKBONES
    assert drawn(grid) == [("histogram", "window", 120.0)] * 6
    assert {v.backbone.weights for v in grid.views} == {"imagenet"}


def test_what_ships_is_found_by_name_and_a_file_of_that_name_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shipped_grids() == ("table1", "table2")
    monkeypatch.chdir(tmp_path)
    Path("table1").write_text("window_s = 7", "utf-8")
    assert drawn(read_grid("table1")) == [("histogram", "window", 7.0)]
    with pytest.raises(InputError, match=r"table3: cannot be read .*; give a TOML file, or one of"):
        read_grid("table3")


def test_the_documented_grid_is_one(tmp_path: Path) -> None:
    docs = Path(__file__).parents[2] / "docs" / "sweep.md"
    if not docs.is_file():
        pytest.skip("docs/: not beside these tests")
    text = docs.read_text("utf-8").partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "mobilenet_v2.safetensors").touch()
    grid = read_grid(write(tmp_path, text))
    assert grid.title == "Three windows"
    # Three windows by two histograms and a raster by two networks; two MLPs, Falkon; merged or not.
    assert len(grid.views) == 3 * 3 * 2
    assert len(grid.points) == 18 * 3 * 2 + 2


# --- axes


def test_an_empty_grid_is_the_defaults(tmp_path: Path) -> None:
    grid = read_grid(write(tmp_path, ""))
    (one,) = grid.points
    assert grid.views == (PictureView(Windows(), Picture(), Backbone()),)
    assert (one.fit.head, one.fit.fixed, one.fit.tune) == ("falkon", {}, True)


def test_a_list_is_an_axis_and_a_list_in_a_list_is_tried_inside_the_folds(tmp_path: Path) -> None:
    grid = read_grid(
        write(tmp_path, "width = [0.5, [0.5, 1.0]]\npenalty = 1e-5\nmerge = ['none', ['X=A,B']]")
    )
    fits = [c.fit for c in grid.points]
    fixed, tried = {"penalty": 1e-5}, {"width": (0.5, 1.0)}
    assert fits == [
        FitOptions(head="falkon", fixed={"width": 0.5, **fixed}),
        FitOptions(head="falkon", fixed=fixed, tried=tried),
        FitOptions(head="falkon", fixed={"width": 0.5, **fixed}, merge=("X=A,B",)),
        FitOptions(head="falkon", fixed=fixed, tried=tried, merge=("X=A,B",)),
    ]


def test_a_section_is_for_its_head_only(tmp_path: Path) -> None:
    text = "head = ['mlp', 'falkon']\npermutations = 9\n[mlp]\nepochs = [3, 5]\ntune = false\n"
    fits = [c.fit for c in read_grid(write(tmp_path, text)).points]
    assert [(f.head, f.fixed, f.tune, f.permutations) for f in fits] == [
        ("mlp", {"epochs": 3}, False, 9),
        ("mlp", {"epochs": 5}, False, 9),
        ("falkon", {}, True, 9),
    ]


def test_a_table_of_weights_gives_each_backbone_its_own(tmp_path: Path) -> None:
    (tmp_path / "b.pth").touch()
    text = "backbone = ['resnet18', 'mobilenet_v2', 'densenet121']\n"
    text += "weights = {resnet18 = 'b.pth', mobilenet_v2 = 'random'}\n"
    grid = read_grid(write(tmp_path, text))
    sources = [v.backbone.weights for v in grid.views]
    assert sources == [str(tmp_path / "b.pth"), "random", "imagenet"]
    grid = read_grid(tmp_path / "grid.toml", ["weights={resnet18='imagenet', others='random'}"])
    assert [v.backbone.weights for v in grid.views] == ["imagenet", "random", "random"]


def test_settings_stand_above_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "window_s = [120, 60]\nhead = 'mlp'\n[mlp]\nepochs = 3\n")
    grid = read_grid(path, ["window_s=30", "picture=raster", "mlp.epochs=[7]", "mlp.tune=false"])
    (one,) = grid.points
    assert drawn(grid) == [("raster", "window", 30.0)]
    assert (one.fit.fixed, one.fit.tune) == ({"epochs": 7}, False)
    # A file named on the command line lies where the user is, not where the grid is.
    monkeypatch.chdir(tmp_path)
    Path("w.pth").touch()
    (tmp_path / "other").mkdir()
    grid = read_grid(write(tmp_path / "other", ""), ["weights=w.pth"])
    assert grid.views[0].backbone.weights == str(tmp_path / "w.pth")
    # One head of a grid that ships is enough.
    assert {c.fit.head for c in read_grid("table1", ["head=falkon"]).points} == {"falkon"}


def test_detection_is_set_once(tmp_path: Path) -> None:
    text = "threshold_sd = 7.5\nhighpass_hz = 100\nhighpass_order = 2\n"
    text += "noise = 'fixed'\nthreshold_uv = 40"
    spikes = read_grid(write(tmp_path, text)).spikes
    assert (spikes.highpass, spikes.ptsd.threshold_sd) == (HighPass(cutoff_hz=100, order=2), 7.5)
    assert (spikes.ptsd.noise, spikes.ptsd.threshold_uv) == ("fixed", 40)


# --- combinations that are one and the same


def test_rasters_do_not_vary_with_the_count_axis_and_that_is_said(tmp_path: Path) -> None:
    text = "picture = ['histogram', 'raster']\ncount_axis = ['window', 'log', 40]\n"
    grid = read_grid(write(tmp_path, text + "window_s = [20, 10]\n"))
    assert drawn(grid) == [
        *(("histogram", axis, width) for axis in ("window", "log", 40) for width in (20, 10)),
        ("raster", "window", 20),
        ("raster", "window", 10),
    ]
    (note,) = grid.notes
    assert note.startswith("12 combinations of picture, windows and backbone are 8: only a")


def test_every_kind_of_picture_may_be_in_a_grid(tmp_path: Path) -> None:
    kinds = get_args(PictureKind)
    grid = read_grid(write(tmp_path, f"picture = {list(kinds)}\n"))
    assert [kind for kind, _, _ in drawn(grid)] == list(kinds)


def test_heads_do_not_vary_with_each_others_options_and_that_is_said(tmp_path: Path) -> None:
    grid = read_grid(write(tmp_path, "head = ['mlp', 'falkon']\nepochs = [3, 5]\nwidth = 1.0\n"))
    assert [(c.fit.head, c.fit.fixed) for c in grid.points] == [
        ("mlp", {"epochs": 3}),
        ("mlp", {"epochs": 5}),
        ("falkon", {"width": 1.0}),
    ]
    assert grid.notes == ("epochs belongs to the head mlp: the others do not vary with it",)


def test_burst_parameters_are_fitted_once_for_all_pictures_and_that_is_said(tmp_path: Path) -> None:
    text = "picture = ['histogram', 'raster']\nhead = ['falkon', 'parameters']\n"
    grid = read_grid(write(tmp_path, text), ["merge=['none','X=A,B']"])
    seen = [(c.view and c.view.picture.kind, c.fit.head, c.fit.merge) for c in grid.points]
    assert seen == [
        (None, "parameters", ()),
        (None, "parameters", ("X=A,B",)),
        *((kind, "falkon", m) for kind in ("histogram", "raster") for m in ((), ("X=A,B",))),
    ]
    assert grid.notes == (
        "the head parameters uses no pictures: it is fitted once for all of them",
    )


# --- refusals


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("windows = 5", "line 1: windows: there is no option windows; there are title, picture,"),
        ("head = 'mlp'\n[mlp]\nepoch = 5", "line 3: mlp.epoch: there is no option epoch; there"),
        ("\npicture = 'histo'", "line 2: picture: Picture.kind must be one of histogram, raster"),
        ("window_s = [120, '60']", "line 1: window_s: Windows.width_s must be above 0, got '60'"),
        ("window_s = 0.0151", "window_s: Windows.width_s must be a whole number of 10 ms bins"),
        ("stride_s = true", "line 1: stride_s: Windows.stride_s must be above 0, got True"),
        ("count_axis = 'max'", "count_axis: Picture.count_axis must be window, recording, log or"),
        ("backbone = 3", "backbone: Backbone.name must be a model's name, got 3"),
        ("weights = 'no.pth'", "line 1: weights: no such file: no.pth (imagenet, random, or"),
        ("weights = {efficientnet_b0 = 1}", "takes a source for efficientnet_b0 as text, got 1"),
        ("weights = {densenet121 = 'random'}", "weights: of no use here: no combination has the"),
        ("head = 'parameters'", "line 1: head: of no use here: parameters alone needs no sweep"),
        ("head = 'svm'", "head: takes mlp or falkon or recordings or parameters, got 'svm'"),
        ("tune = 1", "line 1: tune: FitOptions.tune must be true or false, got 1"),
        ("permutations = true", "FitOptions.permutations must be a whole number from 0, got True"),
        ("permutations = -1", "FitOptions.permutations must be a whole number from 0, got -1"),
        ("merge = 'A,B'", "line 1: merge: `merge` 'A,B' is not of the form NAME=A,B,C"),
        ("width = 'wide'", "width: FalkonClassifier.width must be above 0, got 'wide'"),
        ("width = -1.0", "line 1: width: FalkonClassifier.width must be above 0, got -1.0"),
        ("n_centres = 0", "n_centres: FalkonClassifier.n_centres must be a whole number from 1"),
        ("solver = 'fast'", "line 1: solver: "),
        ("n_centres = [[5, 6]]", "n_centres: FalkonClassifier.n_centres must be a whole number"),
        ("head = 'mlp'\nepochs = 2.5", "line 2: epochs: MLPClassifier.epochs must be a whole"),
        ("epochs = 3", "line 1: epochs: of no use here: it belongs to the head mlp, which no"),
        ("[mlp]\nepochs = 3", "line 1: mlp: of no use here: no combination has the head mlp"),
        ("picture = 'raster'\ncount_axis = 4", "line 2: count_axis: of no use here: only a hist"),
        ("picture = []", "line 1: picture: an empty list; give at least one value"),
        ("window_s = [10, 60, 10.0]", "line 1: window_s: 10.0 is listed twice"),
        ("threshold_sd = [8, 7]", "line 1: threshold_sd: takes one value, since spikes are found"),
        ("noise = 'loud'", "line 1: noise: Ptsd.noise must be one of smallest_sd, mad, fixed"),
        ("threshold_uv = 40", "Ptsd.threshold_uv must be None unless `noise='fixed'`"),
        ("sampling_rate_hz = 0", "sampling_rate_hz: SpikeSettings.sampling_rate_hz must be above"),
        ("title = 3", "line 1: title: takes text, got 3"),
        ("width = [[0.5, 1.0]]\ntune = false", "width of falkon has values to be tried inside the"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_its_line_or_key(
    tmp_path: Path, text: str, expected: str
) -> None:
    (problem,) = problems_of(write(tmp_path, text))
    assert problem.startswith(str(tmp_path / "grid.toml"))
    assert expected in problem
    assert "\n" not in problem


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    text = "windows = 5\npicture = 'x'\nwindow_s = [0, -1]\n[falkon]\nwidth = 0\nepochs = 3\n"
    problems = problems_of(write(tmp_path, text), "stride_s=no", "nonsense", "backbone=''")
    keys = ["nonsense", "windows", "picture", "window_s", "window_s", "falkon.width",
            "falkon.epochs", "stride_s", "backbone"]  # fmt: skip
    assert len(problems) == len(keys)
    for key in keys:
        assert any(key in problem for problem in problems)
    assert any(p.startswith("setting stride_s: ") for p in problems)


def test_what_is_no_toml_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"grid\.toml: not TOML: .*line 2"):
        read_grid(write(tmp_path, "picture = 'raster'\nwindow_s = = 1\n"))
    (tmp_path / "latin.toml").write_bytes("title = 'Größe'".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.toml: cannot be read \(not UTF-8 text\)"):
        read_grid(tmp_path / "latin.toml")


def test_options_are_named_as_on_the_command_line() -> None:
    from typer.main import get_command

    from toptune.cli.app import app

    commands = get_command(app).commands  # type: ignore[attr-defined]  # a group, typed as a command
    options = (o for name in ("extract", "fit") for p in commands[name].params for o in p.opts)
    known = {option.lstrip("-").replace("-", "_") for option in options}
    assert {*grid_keys()} <= known
