"""The errors toptune raises on purpose. Each is one line that names the culprit and the way out.

A message names a parameter, with or without a value, between backticks as Python writes it:
`tune=False`, `out`. The command line puts its own flags in their place.
"""

from __future__ import annotations


def chain_of(error: BaseException) -> list[BaseException]:
    """List an error and those it was made of or came after, the last first; at most eight."""
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and len(found) < 8:
        found.append(one)
        one = one.__cause__ or one.__context__
    return found


class ToptuneError(Exception):
    """Something could not be done; the message is one line for the user (exit code 1)."""

    exit_code = 1


class InputError(ToptuneError, ValueError):
    """A file, a line or a value given by the user is wrong (exit code 2)."""

    exit_code = 2


class MissingPackagesError(ToptuneError, ImportError):
    """Packages that this needs are not installed (exit code 1)."""


class DeviceMemoryError(ToptuneError):
    """A device has too little memory even for the smallest piece of the work (exit code 1)."""


class StorageError(ToptuneError):
    """A result cannot be written where it should go; a batch ends there (exit code 1)."""


class InputErrors(InputError):  # noqa: N818  # plural of InputError
    """Several things are wrong with the input at once, all of them listed, one line each."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))
