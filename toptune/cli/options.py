"""What commands take: options from the parameter classes, their flags in messages, and paths.

A command's parameter that is annotated with a parameter class, as in ``spikes: SpikeSettings``,
stands for every option of that class: the command line has a flag for each, and the command gets
the finished object. Messages of the library name parameters between backticks, as Python writes
them: `overwrite=True`, `weights`; the running command's flags are put in their place.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, is_dataclass, replace
from functools import wraps
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Protocol, get_args, get_origin, get_type_hints

import typer
from typer.models import OptionInfo

from toptune.backbones.names import require_known
from toptune.errors import InputError, InputErrors
from toptune.machine.fingerprint import require_regular, require_weights_file
from toptune.machine.remote import as_path, local_output
from toptune.params import (
    NO_PICTURE,
    RECOMMENDED,
    Backbone,
    Compute,
    FitOptions,
    Option,
    Picture,
    from_options,
    options_of,
    pictures_of,
)

BASIC = "Basic"
ADVANCED = "Advanced"

_NAMED = re.compile(r"`([A-Za-z_][\w.]*)(?:=([^`]*))?`")
_QUALIFIED = re.compile(r"\b[A-Z]\w*\.\w+\b")
_NONE: Mapping[str, str] = {}
_RUNNING: ContextVar[Mapping[str, str]] = ContextVar("flags of the running command", default=_NONE)


def flag(name: str) -> str:
    """Write an option's name as the command line does."""
    return "--" + name.replace("_", "-")


def use_flags_of(context: typer.Context, fields: Iterable[tuple[str, Option]]) -> None:
    """Let messages name the flags of this command from now on.

    `fields` are its options that are fields of parameter classes, each with the class's name.
    """
    flags: dict[str, str] = {
        one.name: f"toptune {one.name}"
        for one in getattr(context.find_root().command, "commands", {}).values()
    }
    for parameter in context.command.params:
        if parameter.param_type_name == "argument":
            flags[str(parameter.name)] = str(parameter.name).upper()
            continue
        for long in (*parameter.opts, *parameter.secondary_opts):
            if long.startswith("--"):
                flags[long[2:].replace("-", "_")] = long
                flags.setdefault(str(parameter.name), long)
    flags |= {f"{owner}.{one.field}": flag(one.name) for owner, one in fields}
    _RUNNING.set(flags)


def in_flags(text: str) -> str:
    """Write a message of the library as a user of the running command would say it.

    What is between backticks but no option of the command stays as it is.
    """
    flags = _RUNNING.get()

    def named(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if name not in flags:
            return match[0]
        if value is None or value == "True":
            return flags[name]
        if value == "False":
            return flags.get(f"no_{name}", f"no {flags[name]}")
        return " ".join(f"{flags[name]} {one}" for one in _words(value))

    told = _NAMED.sub(named, text)
    return _QUALIFIED.sub(lambda match: flags.get(match[0], match[0]), told)


def _words(value: str) -> list[str]:
    """Write a value as Python writes it for a shell; each of a list by itself."""
    try:
        read = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return [value]
    several = read if isinstance(read, list | tuple) else [read]
    return [shlex.quote(one) if isinstance(one, str) else value for one in several]


class Expansion(Protocol):
    """What several options of the command line stand for together."""

    def parameters(self) -> Iterable[inspect.Parameter]:
        """List them as typer takes them."""

    def fields(self) -> Iterable[tuple[str, Option]]:
        """Name the class, as error messages do, and the option of each field."""

    def build(self, given: Mapping[str, Any], by_user: Collection[str]) -> Any:
        """Make the object from the values of the command's options, some of them by the user."""


@dataclass(frozen=True)
class Only:
    """Restrict a parameter class to some of its options; the others keep their defaults."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class _Fields:
    """A parameter class, or some of its options."""

    cls: type
    names: tuple[str, ...] | None

    @property
    def options(self) -> list[Option]:
        return [o for o in options_of(self.cls) if self.names is None or o.name in self.names]

    def parameters(self) -> Iterable[inspect.Parameter]:
        return map(typer_parameter, self.options)

    def fields(self) -> Iterable[tuple[str, Option]]:
        classes = [self.cls]
        for cls in classes:
            classes += filter(is_dataclass, get_type_hints(cls).values())
            yield from ((cls.__name__, one) for one in options_of(cls))

    def build(self, given: Mapping[str, Any], by_user: Collection[str]) -> Any:
        del by_user  # defaults are the same here and there
        taken = {o.name: _value(o, given[o.name]) for o in self.options}
        return from_options(self.cls, taken)


def _value(one: Option, given: Any) -> Any:
    """Turn what the command line gives into what the parameter class takes."""
    if one.several:
        return tuple(given or ())
    if isinstance(one.type, UnionType) and isinstance(given, str):
        with suppress(ValueError):
            return float(given)
    return given


@dataclass(frozen=True)
class Command:
    """A command for typer."""

    run: Callable[..., None]  # its parameters are those of the command line
    example: str  # a command line that works as it is written


def command(example: str) -> Callable[[Callable[..., None]], Command]:
    """Make a command of a function, whose parameters may be annotated with parameter classes."""

    def make(function: Callable[..., None]) -> Command:
        expansions: dict[str, Expansion] = {}
        parameters: list[inspect.Parameter] = []
        hints = get_type_hints(function, include_extras=True)
        for parameter in inspect.signature(function).parameters.values():
            hint = hints[parameter.name]
            expansion = _expansion(hint)
            if expansion is None:
                parameters.append(parameter.replace(annotation=_told(hint)))
                continue
            expansions[parameter.name] = expansion
            parameters += expansion.parameters()
        own = [name for name in hints if name not in expansions and name != "return"]

        @wraps(function)
        def run(context: typer.Context, **given: Any) -> None:
            use_flags_of(context, (pair for one in expansions.values() for pair in one.fields()))
            by_user = {name for name in given if _is_by_user(context, name)}
            given = {name: _paths(value) for name, value in given.items()}
            made = {name: one.build(given, by_user) for name, one in expansions.items()}
            function(**{name: given[name] for name in own}, **made)

        asked = inspect.Parameter("context", _KEYWORD, annotation=typer.Context)
        listed = [p.replace(kind=_KEYWORD) for p in sorted(parameters, key=_panel_rank)]
        run.__signature__ = inspect.Signature([asked, *listed])  # type: ignore[attr-defined]  # for typer
        run.__annotations__ = {}
        return Command(run, example)

    return make


def _paths(value: Any) -> Any:
    """Make paths of URLs, of which typer has made paths of this machine."""
    if isinstance(value, list):
        return [_paths(one) for one in value]
    return as_path(value) if isinstance(value, Path) else value


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _is_by_user(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _expansion(hint: Any) -> Expansion | None:
    of_class, *more = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    for one in more:
        if hasattr(one, "build"):
            expansion: Expansion = one
            return expansion
    if not is_dataclass(of_class):
        return None
    (only,) = [one.names for one in more if isinstance(one, Only)] or (None,)
    return _Fields(of_class, only)  # type: ignore[arg-type]  # an annotation is a class, not its instance


def _told(hint: Any) -> Any:
    """Let typer read an annotation that holds an `Option`; every option has a panel."""
    for one in getattr(hint, "__metadata__", ()):
        if isinstance(one, Option):
            return typer_parameter(one).annotation
        if isinstance(one, OptionInfo) and one.rich_help_panel is None:
            one.rich_help_panel = BASIC
    return hint


def _panel_rank(parameter: inspect.Parameter) -> int:
    """Order options as their panels are to stand in the help; arguments stay before them."""
    (told,) = parameter.annotation.__metadata__
    panel = told.rich_help_panel if isinstance(told, OptionInfo) else None
    return {None: 0, BASIC: 1, ADVANCED: 3}.get(panel, 2)


def typer_parameter(one: Option) -> inspect.Parameter:
    """Make a parameter of the command line from an option."""
    kind: Any = one.type if one.type in (bool, int, float) or one.choices else str
    default, metavar = one.default, None
    if one.several:
        metavar = f"<{kind.__name__}>..."
        kind, default = list[kind], list(default) if default else None
    if default is None:
        kind = kind | None
    told = typer.Option(
        flag(one.name) + (f"/{flag('no_' + one.name)}" if default is True else ""),
        help=one.help,
        metavar=metavar,
        # Not by typer's min and max, whose long ranges leave the help no room.
        callback=_range_check(one),
        rich_help_panel=one.panel,
    )
    return inspect.Parameter(one.name, _KEYWORD, default=default, annotation=Annotated[kind, told])


def _range_check(one: Option) -> Callable[[Any], Any] | None:
    """Refuse numbers out of an option's range."""
    least, most = one.least, one.most
    if least is None and most is None:
        return None

    def check(value: Any) -> Any:
        given = value if isinstance(value, list) else [value]
        for number in (number for number in given if number is not None):
            if least is not None and number < least:
                raise InputError(f"{flag(one.name)} must be {least:.0f} or above, got {number}")
            if most is not None and number > most:
                raise InputError(f"{flag(one.name)} must be at most {most:.0f}, got {number}")
        return value

    return check


class PictureChoice:
    """What `extract` takes of pictures: several kinds, and several count axes for histograms."""

    def parameters(self) -> Iterable[inspect.Parameter]:
        """See `Expansion`."""
        kind, axis = options_of(Picture)
        names = ", ".join(kind.choices)
        yield typer_parameter(
            replace(
                kind, type=str, several=True, default=(kind.default,),
                help=f"How a window is drawn: {names}; or {RECOMMENDED}: those from which verdicts"
                f" are best; or {NO_PICTURE}: spikes only, for burst parameters."
                " Repeat it for several, in one pass over the recordings.",
            )
        )  # fmt: skip
        more = " Repeat it for several histograms."
        yield typer_parameter(
            replace(axis, type=str, several=True, default=None, help=axis.help + more)
        )

    def fields(self) -> Iterable[tuple[str, Option]]:
        """See `Expansion`."""
        return [(Picture.__name__, one) for one in options_of(Picture)]

    def build(self, given: Mapping[str, Any], by_user: Collection[str]) -> tuple[Picture, ...]:
        """See `Expansion`."""
        del by_user  # defaults are the same here and there
        return pictures_of(given["picture"], map(_count_axis, given["count_axis"] or ()))


def _count_axis(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


#: Where to compute, and with how many threads.
Machine = Annotated[Compute, Only(("device", "n_jobs"))]
SEED = next(one for one in options_of(FitOptions) if one.name == "seed")
N_JOBS = next(one for one in options_of(Compute) if one.name == "n_jobs")
AsJson = Annotated[bool, typer.Option("--json", help="Print pure JSON on stdout.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
KeepGoing = Annotated[
    bool, typer.Option("--keep-going", help="List recordings that fail, and go on with the others.")
]
DaskAddress = Annotated[
    str | None,
    typer.Option(
        "--dask",
        metavar="ADDRESS|local:N",
        help="Work on the workers of a Dask scheduler, or on N processes of this machine.",
        rich_help_panel=ADVANCED,
    ),
]
MovedWeights = Annotated[
    list[Path] | None,
    typer.Option(
        "--weights",
        help="File of the backbone's weights, where it has moved since training; may be repeated.",
        rich_help_panel=ADVANCED,
    ),
]
ARecording = Annotated[Path, typer.Argument(help="A recording of any kind, or its URL.")]
ModelFolder = Annotated[Path, typer.Argument(help="A run, or its model folder.")]
Recordings = Annotated[list[Path], typer.Argument(help="Recordings of any kind, or their URLs.")]
DevicesCsv = Annotated[
    Path, typer.Argument(help="CSV file with recording, device and label, or its URL.")
]


# --- paths, refused before anything heavy is imported, in the words of the library's own checks;
# the library checks again, with all that it knows


def require_recordings(recordings: Iterable[Path]) -> None:
    """Refuse recordings that are not there, all at once."""
    problems = []
    for recording in recordings:
        try:
            require_regular(recording)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputErrors(problems)


def require_store(path: Path) -> None:
    """Refuse a store that is not there."""
    if not path.exists():
        raise InputError(f"{path}: no such store: make one with `extract`")


def require_model(folder: Path) -> None:
    """Refuse a folder that holds no model."""
    from toptune.runs.folder import MODEL_FILE, model_folder

    try:
        (model_folder(folder) / MODEL_FILE).stat()
    except OSError as error:
        raise InputError(
            f"{folder} holds no model: {error}: name a run, or its model folder"
        ) from None


def require_run(folder: Path) -> None:
    """Refuse a folder that is not a run's."""
    try:
        params = json.loads((folder / "params.json").read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{folder} is not a whole run: params.json: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{folder / 'params.json'} is damaged: {error}") from None
    if not isinstance(params, dict) or params.get("kind") != "toptune run":
        raise InputError(f"{folder} is not a run of toptune: give the folder that fit wrote")


def require_backbone(backbone: Backbone) -> None:
    """Refuse a network that nobody has, and weights that are not there."""
    require_known(backbone.name)
    require_weights(backbone.weights)


def require_weights(weights: str) -> None:
    """Refuse a file of weights that is not there, or of a kind that is not read."""
    if weights not in ("imagenet", "random"):
        require_weights_file(Path(weights))


def require_new_file(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that cannot or must not be written."""
    local_output(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a file")
    require_parent(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already: choose another file or --overwrite")


def require_parent(path: Path) -> None:
    """Refuse a file whose folder is not there."""
    local_output(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
