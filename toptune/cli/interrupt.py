"""Ctrl-C: the first ends the work and tidies up, the second ends the process at once."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from toptune.cli.printing import bar_is_shown
from toptune.machine import interruption

_INTERRUPTED = b"interrupted; what was published is kept\n"
_SHOW_CURSOR = b"\x1b[?25h"
_LATER_S = 0.01
# Longer than any import takes. Where an import runs the whole program, waiting would never end.
_IMPORT_S = 20.0


@contextmanager
def interrupting() -> Iterator[None]:
    """Answer the first Ctrl-C as Python does, wherever it falls; leave the second to the system."""
    interrupt = _Interrupt()
    before = signal.signal(signal.SIGINT, interrupt.first)
    sys.unraisablehook = interrupt.unraisable
    try:
        yield
    except Exception as error:
        if interruption.came:
            raise KeyboardInterrupt from error
        raise
    finally:
        sys.unraisablehook = interrupt.hook
        # Where it was pressed, the interpreter may still wait for threads: a second one ends that.
        if not interruption.came:
            signal.signal(signal.SIGINT, before)
        elif not interrupt.is_told:
            os.write(2, _INTERRUPTED)
        interruption.came = False


class _Interrupt:
    """What the first Ctrl-C does."""

    def __init__(self) -> None:
        self.is_told = False
        self.hook = sys.unraisablehook
        self._latest_s = 0.0

    def first(self, number: int, frame: FrameType | None) -> None:
        """Say so, and raise a KeyboardInterrupt; the handler of a signal."""
        interruption.came = True
        self._latest_s = time.monotonic() + _IMPORT_S
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # Not by a file object, which may be in the middle of a write. A bar would be drawn over it,
        # and hides the cursor, which the second Ctrl-C would leave hidden.
        self.is_told = not bar_is_shown()
        os.write(2, _INTERRUPTED if self.is_told else _SHOW_CURSOR)
        self._raise(number, frame)

    def _raise(self, _number: int, frame: FrameType | None) -> None:
        if _is_importing(frame) and time.monotonic() < self._latest_s:
            self._raise_later()
        else:
            raise KeyboardInterrupt

    def _raise_later(self) -> None:
        # By SIGTERM: SIGINT is the system's from the first one on.
        signal.signal(signal.SIGTERM, self._raise)
        threading.Timer(_LATER_S, _signal_main_thread).start()

    def unraisable(self, lost: sys.UnraisableHookArgs) -> None:
        """Raise it once more where Python drops what is raised: in finalisers, for example."""
        if interruption.came and isinstance(lost.exc_value, KeyboardInterrupt):
            self._raise_later()
        else:
            self.hook(lost)


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported.

    A compiled one that runs Python meanwhile drops what is raised there, makes an error of its own
    of it, or ends the process; and every module would be left half made.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            return True
        frame = frame.f_back
    return False


def _signal_main_thread() -> None:
    """Send SIGTERM to the main thread, which ends a sleep or a read of it where a system can."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    else:
        _thread.interrupt_main(signal.SIGTERM)
