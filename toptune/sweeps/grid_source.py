"""Where a grid comes from: a TOML file, or one that ships with toptune, and settings above it.

What enters: a path or a name, and ``KEY=VALUE`` texts. What leaves: values as TOML gives them, not
checked, and the place of each key for messages.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from toptune.errors import InputError
from toptune.heads.catalogue import heads


def shipped_grids() -> tuple[str, ...]:
    """Names of the grids that come with toptune."""
    found = (file.name for file in files("toptune.sweeps").joinpath("grids").iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml")))


@dataclass(frozen=True)
class GridSource:
    """Where a grid comes from, what it says, and where in it a key stands.

    Attributes
    ----------
    name : str
        Without folder and ending.
    where, shown : str
        As given, and for messages.
    folder : Path
        Where the files it names are looked for.
    text : str
        TOML.
    settings : tuple of str
        Each ``KEY=VALUE``, instead of what the text says.
    """

    name: str
    where: str
    shown: str
    folder: Path
    text: str
    settings: tuple[str, ...]

    @classmethod
    def read(cls, where: Path | str, settings: Sequence[str]) -> GridSource:
        """Read a file, or a grid that ships with toptune.

        Raises
        ------
        InputError
            Neither is there.
        """
        path = Path(where)
        if str(where) in shipped_grids() and not path.is_file():
            text = files("toptune.sweeps").joinpath("grids", f"{where}.toml").read_text("utf-8")
            return cls(str(where), str(where), f"the grid {where}", Path(), text, tuple(settings))
        try:
            return cls(
                path.stem,
                str(where),
                str(path),
                path.parent,
                path.read_text("utf-8"),
                tuple(settings),
            )
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise InputError(
                f"{path}: cannot be read ({why}); give a TOML file, or one of"
                f" {', '.join(shipped_grids())}, which come with toptune"
            ) from None

    def values(self, problems: list[str]) -> dict[str, Any]:
        """Give what the text and the settings say together.

        Parameters
        ----------
        problems
            Settings that cannot be read are added to it.

        Raises
        ------
        InputError
            The text is no TOML.
        """
        try:
            values = tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{self.shown}: not TOML: {error}") from None
        for setting in self.settings:
            try:
                changed = _parse_setting(setting)
            except InputError as error:
                problems.append(str(error))
                continue
            for key, value in changed.items():
                if key in heads() and isinstance(value, dict) and isinstance(values.get(key), dict):
                    values[key] |= value
                else:
                    values[key] = _from_here(key, value)
        return values

    def place(self, key: str, section: str = "") -> str:
        """Say where a key stands: in a setting, or in the text, with its line if it has one."""
        full = f"{section}.{key}" if section else key
        if self.is_set(full):
            return f"--set {full}"
        at = ""
        for number, line in enumerate(self.text.splitlines(), 1):
            header = re.match(r"\s*\[\s*([\w-]+)\s*\]", line)
            at = header[1] if header else at
            named = header and not section and header[1] == key
            if named or (at == section and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line)):
                return f"{self.shown}, line {number}: {full}"
        return f"{self.shown}: {full}"

    def is_set(self, key: str) -> bool:
        """Whether a setting from the command line gives this key."""
        return key in {setting.partition("=")[0].strip() for setting in self.settings}


def _parse_setting(setting: str) -> dict[str, Any]:
    key, equals, value = setting.partition("=")
    if not equals or not re.fullmatch(r"\s*[\w.]+\s*", key):
        raise InputError(f"--set {setting!r} is not of the form KEY=VALUE")
    try:
        return tomllib.loads(f"{key} = {value}")
    except tomllib.TOMLDecodeError:
        quoted = value.strip().replace("\\", "\\\\").replace('"', '\\"')
        return tomllib.loads(f'{key} = "{quoted}"')


def _from_here(key: str, value: Any) -> Any:
    """Let files named on the command line be looked for from the working folder."""
    if key != "weights":
        return value
    if isinstance(value, list):
        return [_from_here(key, one) for one in value]
    if isinstance(value, dict):
        return {name: _from_here(key, one) for name, one in value.items()}
    named = isinstance(value, str) and value not in ("imagenet", "random")
    return str(Path(value).resolve()) if named else value
