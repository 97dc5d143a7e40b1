"""Put the running command's flags in place of the parameters that messages name.

The library names a parameter between backticks, as Python writes it: `overwrite=True`, `weights`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextvars import ContextVar

import typer

from toptune.params import Option

_NAMED = re.compile(r"`([A-Za-z_][\w.]*)(?:=([^`]*))?`")
_QUALIFIED = re.compile(r"\b[A-Z]\w*\.\w+\b")
_NONE: Mapping[str, str] = {}
_RUNNING: ContextVar[Mapping[str, str]] = ContextVar("flags of the running command", default=_NONE)


def flag(name: str) -> str:
    """Write an option's name as the command line does."""
    return "--" + name.replace("_", "-")


def use_flags_of(context: typer.Context, fields: Iterable[tuple[str, Option]]) -> None:
    """Let messages name the flags of this command from now on.

    Parameters
    ----------
    context
        Of the command that runs.
    fields
        Its options that are fields of parameter classes, each with the class's name.
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
        return f"{flags[name]} {value.strip(chr(34) + chr(39))}"

    told = _NAMED.sub(named, text)
    return _QUALIFIED.sub(lambda match: flags.get(match[0], match[0]), told)
