"""Whether Ctrl-C was pressed: what fails after it may have failed for it.

Compiled libraries that call Python make errors of their own of the KeyboardInterrupt that falls
into that. Whoever turns errors of any kind into others asks here first, so that an interrupt is
never told of as the fault of a file, nor survived.
"""

from __future__ import annotations

_DEEPEST = 16  # errors that were made of one another
_came = False


def note_interrupt(*, came: bool) -> None:
    """Say that the user has asked for the end, or that this is over."""
    global _came  # noqa: PLW0603  # of the process, as the signal
    _came = came


def heed_interrupt(error: BaseException) -> None:
    """Raise a KeyboardInterrupt if an error was, or may have been, made of one."""
    one: BaseException | None = error
    is_one = _came
    for _ in range(_DEEPEST):
        is_one |= isinstance(one, KeyboardInterrupt)
        one = None if one is None else one.__cause__ or one.__context__
    if is_one:
        raise KeyboardInterrupt from error
