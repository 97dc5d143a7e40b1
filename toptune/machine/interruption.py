"""Whether Ctrl-C was pressed: what fails after it may have failed because of it.

A compiled library that calls Python may turn a KeyboardInterrupt raised there into an error of its
own. Code that catches errors of any kind calls `heed_interrupt` first, so that an interrupt is
neither reported as the fault of a file nor ignored.
"""

from __future__ import annotations

from toptune.errors import chain_of

#: Set by the command line while an interrupt ends its work.
came = False


def heed_interrupt(error: BaseException) -> None:
    """Raise a KeyboardInterrupt if there was one, or if an error was made of one."""
    if came or any(isinstance(one, KeyboardInterrupt) for one in chain_of(error)):
        raise KeyboardInterrupt from error
