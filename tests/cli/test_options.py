"""Options on the command line: made from parameter classes, explained, and named in messages."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, get_args

import pytest
import typer
from results import Run
from typer.main import get_command
from typer.testing import CliRunner

from toptune.cli.app import app
from toptune.cli.options import Only, command, in_flags, use_flags_of
from toptune.cli.training import FitChoice
from toptune.errors import InputError
from toptune.heads import catalogue
from toptune.heads.base import Head
from toptune.heads.catalogue import BUILT_IN
from toptune.params import (
    Backbone,
    Compute,
    FitOptions,
    Option,
    Picture,
    PictureKind,
    Ptsd,
    SpikeSettings,
    Windows,
    options_of,
)

COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]  # a group, typed as a command


def options_named(name: str) -> dict[str, Any]:
    return {flag: one for one in COMMANDS[name].params for flag in (*one.opts, *one.secondary_opts)}


# --- from parameter classes to options


def run_made(*arguments: str) -> Any:
    """Run a command made for the test; gives what it got."""
    got: dict[str, Any] = {}

    @command("toptune made NAME")
    def made(
        name: Annotated[str, typer.Argument()],
        spikes: SpikeSettings,
        windows: Windows,
        picture: Picture,
        machine: Annotated[Compute, Only(("n_jobs",))],
        quick: Annotated[bool, typer.Option("--quick")] = False,
    ) -> None:
        got.update(locals())

    one = typer.Typer()
    one.command()(made.run)
    result = CliRunner().invoke(one, list(arguments), catch_exceptions=False)
    return got if result.exit_code == 0 else result


def test_a_parameter_class_gives_its_options_and_comes_as_an_object() -> None:
    got = run_made("x")
    assert got["name"] == "x"
    assert (got["spikes"], got["windows"]) == (SpikeSettings(), Windows())
    assert (got["picture"], got["machine"], got["quick"]) == (Picture(), Compute(), False)
    got = run_made(
        *("x", "--threshold-sd", "7", "--stream", "raw", "--window-s", "30", "--count-axis", "40"),
        *("--n-jobs", "2", "--quick"),
    )
    assert got["spikes"] == SpikeSettings(ptsd=Ptsd(threshold_sd=7), stream="raw")
    assert (got["windows"], got["picture"]) == (Windows(width_s=30), Picture(count_axis=40.0))
    assert (got["machine"], got["quick"]) == (Compute(n_jobs=2), True)


def test_a_class_may_be_restricted_to_some_of_its_options() -> None:
    assert run_made("x", "--device", "cpu").exit_code == 2


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("extract", (SpikeSettings, Windows, Backbone, Compute)),
        ("inspect", (SpikeSettings,)),
        ("detect", (SpikeSettings,)),
        ("predict", (Compute,)),
        ("fit", (FitOptions,)),
    ],
)
def test_options_have_the_defaults_and_sentences_of_their_classes(
    name: str, classes: tuple[type, ...]
) -> None:
    found = options_named(name)
    for one in (one for cls in classes for one in options_of(cls)):
        shown = found["--" + one.name.replace("_", "-")]
        assert shown.default in (one.default, None if one.default == () else one.default)
        assert shown.help == one.help
        assert shown.rich_help_panel == one.panel


def test_extract_takes_several_pictures_and_names_them() -> None:
    kind, axis = (options_named("extract")[name] for name in ("--picture", "--count-axis"))
    assert (kind.multiple, kind.default) == (True, ["histogram"])
    for name in (*get_args(PictureKind), "recommended"):
        assert f" {name}" in kind.help
    assert axis.multiple
    assert axis.help.startswith(options_of(Picture)[1].help)


def test_every_option_of_every_classifier_is_one_of_fit() -> None:
    found = options_named("fit")
    for one in (one for head in BUILT_IN for one in head.options):
        assert found["--" + one.name.replace("_", "-")].help.startswith(one.help)


# --- help


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_is_described_and_stands_in_a_panel(name: str) -> None:
    for one in COMMANDS[name].params:
        assert len(one.help.split()) >= 3, one.name
        assert one.help.endswith("."), one.name
        if one.param_type_name == "option":
            assert one.rich_help_panel, one.name


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_examples_are_command_lines_that_are_understood(name: str) -> None:
    example = COMMANDS[name].epilog.removeprefix("Example: ")
    program, command_name, *rest = shlex.split(example)
    assert (program, command_name) == ("toptune", name)
    assert len(f" Example: {example} ") <= 80
    COMMANDS[name].make_context(name, rest)


def test_help_shows_defaults_panels_and_the_example(
    monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = run("fit", "--help").out
    assert max(map(len, out.splitlines())) <= 80
    panels = [line.split("─ ")[1].split(" ─")[0] for line in out.splitlines() if line[:2] == "╭─"]
    assert panels == ["Arguments", "Basic", *dict.fromkeys(h.options[0].panel for h in BUILT_IN),
                      "Advanced"]  # fmt: skip
    assert "[default: 25]" in out
    assert "Example: toptune fit study.zarr -o run" in out


def test_the_version_is_told() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("toptune 0.")


# --- flags in place of parameters


@pytest.fixture
def as_fit() -> None:
    context: Any = typer.Context(COMMANDS["fit"])
    ptsd = [("Ptsd", one) for one in options_of(Ptsd)]
    use_flags_of(context, [*ptsd, ("FalkonClassifier", BUILT_IN[1].options[0])])


@pytest.mark.parametrize(
    ("library", "shown"),
    [
        ("give fixed values with `tune=False`", "give fixed values with --no-tune"),
        ("leave them out with `permutations=0`", "leave them out with --permutations 0"),
        ("pass `overwrite=True` or `overwrite`", "pass --overwrite or --overwrite"),
        ("`head='falkon'` needs `store` and `out`", "--head falkon needs STORE and --out"),
        ("`group_by` and `C`", "--group-by and --C"),
        ("Ptsd.lifetime_ms must be above 0", "--lifetime-ms must be above 0"),
        ("FalkonClassifier.width must be", "--width must be"),
        ("no `overwrite=False`", "no no --overwrite"),
        ("`unknown=3` and `unknown` stay", "`unknown=3` and `unknown` stay"),
        ("so does Ptsd.unknown", "so does Ptsd.unknown"),
        ("a file `tune", "a file `tune"),
    ],
)
@pytest.mark.usefixtures("as_fit")
def test_parameters_in_messages_become_flags_of_the_running_command(
    library: str, shown: str
) -> None:
    assert in_flags(library) == shown


def test_verbs_in_messages_become_commands() -> None:
    root = SimpleNamespace(command=get_command(app))
    context: Any = SimpleNamespace(find_root=lambda: root, command=COMMANDS["doctor"])
    use_flags_of(context, [])
    assert in_flags("make it by `extract`") == "make it by toptune extract"
    assert in_flags("give `weights`") == "give `weights`"  # doctor has no such option


def test_errors_and_warnings_of_the_library_name_flags(
    monkeypatch: pytest.MonkeyPatch, run: Run, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run(*["extract", "d.csv", "--store", "s.zarr", "--noise", "fixed"])
    told = "error: --threshold-uv must be above 0 with --noise fixed, got None\n"
    assert (ran.code, ran.err) == (2, told)


# --- options of classifiers


def fit_options(*arguments: str) -> FitOptions:
    """What the command line makes of the options of `fit`."""
    context = COMMANDS["fit"].make_context("fit", ["s.zarr", "-o", "run", *arguments])
    by_user = {n for n in context.params if context.get_parameter_source(n).name == "COMMANDLINE"}
    return FitChoice().build(context.params, by_user)


def test_one_value_is_fixed_and_several_are_tried() -> None:
    options = fit_options(
        *("--head", "falkon", "--width", "1", "--penalty", "1e-5", "--penalty", "1e-4"),
        *("--view-weights", "0.5,0.5", "--merge", "X=A,B", "--no-tune", "--permutations", "0"),
    )
    assert options == FitOptions(
        head="falkon", fixed={"width": 1.0, "view_weights": (0.5, 0.5)},
        tried={"penalty": (1e-5, 1e-4)}, merge=("X=A,B",), tune=False, permutations=0,
    )  # fmt: skip
    assert fit_options("--head", "mlp") == FitOptions(head="mlp")
    assert fit_options("--head", "mlp", "--epochs", "25").fixed == {"epochs": 25}


def test_options_of_classifiers_are_set_by_key_too() -> None:
    options = fit_options(
        "--head", "falkon", "--set", "width=[0.5, 1.0]", "--set", "solver=iterative",
        "--set", "view_weights=[0.5, 0.5]",
    )  # fmt: skip
    assert options.fixed == {"solver": "iterative", "view_weights": [0.5, 0.5]}
    assert options.tried == {"width": (0.5, 1.0)}


def test_a_classifier_of_another_package_is_set_by_key(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forest(Head):
        name = "forest"
        estimator = "sklearn.ensemble:RandomForestClassifier"
        options = (
            Option(name="trees", field="n_estimators", type=int, default=100, help="How many."),
        )

    monkeypatch.setitem(catalogue._known, "forest", Forest())
    assert fit_options("--head", "forest", "--set", "trees=30").fixed == {"n_estimators": 30}
    with pytest.raises(InputError, match=r"n_estimators must be of type int, got 'many'"):
        fit_options("--head", "forest", "--set", "trees=many")
    with pytest.raises(InputError, match=r"--width belongs to --head falkon or recordings, not f"):
        fit_options("--head", "forest", "--width", "1")
    with pytest.raises(InputError, match=r"--head forest has no option leaves; it has trees"):
        fit_options("--head", "forest", "--set", "leaves=3")
    with pytest.raises(InputError, match=r"no classifier 'fern'; there are mlp, falkon, .*forest"):
        fit_options("--head", "fern")
