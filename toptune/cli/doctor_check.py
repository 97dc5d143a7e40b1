"""What a check of the machine says, and how checks look at packages without falling over them.

Third-party modules are imported inside the checks, one by one, so that a broken one is a line of
the report and not the end of it.
"""

from __future__ import annotations

import importlib
from dataclasses import asdict, dataclass
from importlib import metadata
from types import ModuleType
from typing import Any, Literal

Part = Literal["cpu", "gpu", "weights", "extra"]
#: ``ok``: found; ``missing``: the CPU path needs it; ``absent``: not found, and not needed for it.
State = Literal["ok", "missing", "absent"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked for.

    Parameters
    ----------
    part
        What it belongs to: the CPU path, the GPU path, ImageNet weights, or what only some need.
    name
        What it is.
    state
        See `State`.
    found
        What is there, or what is wrong with it.
    remedy
        The command, or the step, that mends it; None where nothing has to be.
    """

    part: Part
    name: str
    state: State
    found: str
    remedy: str | None = None


@dataclass(frozen=True)
class Report:
    """All checks, in the order in which they were made."""

    checks: tuple[Check, ...]

    @property
    def cpu_complete(self) -> bool:
        """Whether everything the CPU path needs is there."""
        return all(check.state != "missing" for check in self.checks)

    @property
    def gpu_complete(self) -> bool:
        """Whether everything the GPU path needs is there too."""
        return self.cpu_complete and all(
            check.state == "ok" for check in self.checks if check.part == "gpu"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "cpu_complete": self.cpu_complete,
            "gpu_complete": self.gpu_complete,
            "checks": [asdict(check) for check in self.checks],
        }


def requirements() -> list[str]:
    """Give what toptune's own metadata ask for, extras included."""
    try:
        return metadata.requires("toptune") or []
    except metadata.PackageNotFoundError:
        return []


def version_of(name: str) -> str | None:
    """Version of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def imported(name: str) -> tuple[ModuleType | None, str | None]:
    """Import a module; or say in one line why that cannot be done."""
    try:
        return importlib.import_module(name), None
    except Exception as error:  # noqa: BLE001  # a broken package may raise anything
        return None, " ".join(str(error).split()) or type(error).__name__
