"""The command line: a command parses, calls one function, prints.

Results go to stdout (as JSON alone with --json), everything else to stderr. Exit codes: 0 done,
1 failed, 2 wrong usage or input, 3 some recordings failed and were listed. Commands check what they
are given before they import what they work with, so that --help and refusals answer at once.
"""

from __future__ import annotations

import _thread
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from toptune.cli import demo, live, machine, recordings, reporting, training
from toptune.cli.options import BASIC, in_flags
from toptune.cli.printing import bar_is_shown, say
from toptune.cli.streams import let_go, make_printable
from toptune.errors import ToptuneError


class _Command(TyperCommand):
    """A command whose --help stands among its basic options."""

    def get_help_option(self, ctx: Any) -> Any:
        option: Any = super().get_help_option(ctx)
        option.rich_help_panel = BASIC
        return option


app = typer.Typer(
    name="toptune",
    help="Tell from micro-electrode-array recordings which kind of neuronal network made them.",
    epilog="Example: toptune demo",
    no_args_is_help=True,
    # What holds for the whole holds for each command.
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
# In the order of --help: that of the flow.
for command in (
    demo.demo,
    recordings.simulate,
    recordings.inspect,
    recordings.plate,
    recordings.detect,
    recordings.extract,
    training.fit,
    training.predict,
    live.stream,
    training.sweep,
    reporting.report,
    reporting.why,
    machine.doctor,
    machine.bench,
):
    app.command(cls=_Command, epilog=f"Example: {command.example}")(command.run)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"toptune {version('toptune')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None: ...


def _signal_main_thread() -> None:
    """Send SIGTERM to the main thread, which ends a sleep or a read of it where a system can."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    else:
        _thread.interrupt_main(signal.SIGTERM)


class _InFlags(logging.Formatter):
    """Let warnings of the library name flags."""

    def format(self, record: logging.LogRecord) -> str:
        return in_flags(super().format(record))


def main() -> None:
    """Run the command line; every foreseen error is one line on stderr.

    The first Ctrl-C ends the work and tidies up; a second one ends the process at once, which
    nothing that was published minds.
    """
    make_printable()
    handler = logging.StreamHandler()
    handler.setFormatter(_InFlags("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # It tells that it lists the machine's fonts, which is no news of the user's work.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        with _interrupt_once():
            app()
    except ToptuneError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except UnicodeEncodeError as error:
        say(
            f"error: {error.object!r} cannot be the name of a file here, where names are"
            f" {error.encoding}: set PYTHONUTF8=1"
        )
        sys.exit(2)
    except OSError as error:
        say(f"error: {error}")
        let_go()
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _is_loading(frame: FrameType | None) -> bool:
    """Whether a compiled module is being loaded, and runs Python for that."""
    while frame is not None:
        if frame.f_code.co_name in ("create_module", "exec_module"):
            loader = frame.f_locals.get("self")
            if isinstance(loader, ExtensionFileLoader):
                return True
        frame = frame.f_back
    return False


_INTERRUPTED = b"interrupted; what was published is kept\n"
_SHOW_CURSOR = b"\x1b[?25h"


@contextmanager
def _interrupt_once() -> Iterator[None]:
    """Answer the first Ctrl-C as Python does, and leave the second to the system."""
    interrupted = said = False

    def first(_number: int, frame: FrameType | None) -> None:
        nonlocal interrupted, said
        interrupted = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # Not by a file object, which may be in the middle of a write. A bar would be drawn over it,
        # and hides the cursor, which the second Ctrl-C would leave hidden.
        said = not bar_is_shown()
        os.write(2, _INTERRUPTED if said else _SHOW_CURSOR)
        again(_number, frame)

    def again(_number: int, frame: FrameType | None) -> None:
        # A compiled module that is being loaded drops what is raised, or fails with an error of its
        # own. Loading ends soon.
        if _is_loading(frame):
            later()
        else:
            raise KeyboardInterrupt

    def later() -> None:
        # By a signal whose handler is free.
        signal.signal(signal.SIGTERM, again)
        threading.Timer(0.01, _signal_main_thread).start()

    def unraisable(lost: sys.UnraisableHookArgs) -> None:
        # It came while a finaliser or a weak reference's callback ran, where Python drops what is
        # raised.
        if interrupted and isinstance(lost.exc_value, KeyboardInterrupt):
            later()
        else:
            hook(lost)

    before = signal.signal(signal.SIGINT, first)
    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        yield
    finally:
        sys.unraisablehook = hook
        if interrupted and not said:
            os.write(2, _INTERRUPTED)
        # Where it was pressed, the interpreter may still wait for threads: a second one ends that.
        if not interrupted:
            signal.signal(signal.SIGINT, before)
