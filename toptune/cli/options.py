"""How commands get their options from the parameter classes, and which options many commands share.

A command's parameter that is annotated with a parameter class, as in ``spikes: SpikeSettings``,
stands for every option of that class: the command line has a flag for each, and the command gets
the finished object.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from functools import wraps
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Protocol, get_args, get_origin, get_type_hints

import typer
from typer.models import OptionInfo

from toptune.cli.flags import flag, use_flags_of
from toptune.errors import InputError
from toptune.params import Compute, FitOptions, Option, from_options, options_of

BASIC = "Basic"
ADVANCED = "Advanced"


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
        try:
            return float(given)
        except ValueError:
            return given
    return given


@dataclass(frozen=True)
class Command:
    """A command for typer.

    Parameters
    ----------
    run
        Its parameters are those of the command line.
    example
        A command line that works as it is written.
    """

    run: Callable[..., None]
    example: str


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
            made = {name: one.build(given, by_user) for name, one in expansions.items()}
            function(**{name: given[name] for name in own}, **made)

        asked = inspect.Parameter("context", _KEYWORD, annotation=typer.Context)
        listed = [p.replace(kind=_KEYWORD) for p in sorted(parameters, key=_panel_rank)]
        run.__signature__ = inspect.Signature([asked, *listed])  # type: ignore[attr-defined]  # for typer
        run.__annotations__ = {}
        return Command(run, example)

    return make


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
        for number in value if isinstance(value, list) else [value]:
            if least is not None and number is not None and number < least:
                raise InputError(f"{flag(one.name)} must be {least:.0f} or above, got {number}")
            if most is not None and number is not None and number > most:
                raise InputError(f"{flag(one.name)} must be at most {most:.0f}, got {number}")
        return value

    return check


#: Where to compute, and with how many threads.
Machine = Annotated[Compute, Only(("device", "n_jobs"))]
SEED = next(one for one in options_of(FitOptions) if one.name == "seed")
N_JOBS = next(one for one in options_of(Compute) if one.name == "n_jobs")
AsJson = Annotated[bool, typer.Option("--json", help="Print pure JSON on stdout.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
KeepGoing = Annotated[
    bool, typer.Option("--keep-going", help="List recordings that fail, and go on with the others.")
]
MovedWeights = Annotated[
    list[Path] | None,
    typer.Option(
        "--weights",
        help="File of the backbone's weights, where it has moved since training; may be repeated.",
        rich_help_panel=ADVANCED,
    ),
]
ARecording = Annotated[Path, typer.Argument(help="A recording of any kind.")]
ModelFolder = Annotated[Path, typer.Argument(help="The model folder of a run.")]
Recordings = Annotated[list[Path], typer.Argument(help="Recordings of any kind.")]
DevicesCsv = Annotated[Path, typer.Argument(help="CSV file with recording, device and label.")]
