"""The command line: a command parses, calls one function, prints.

Results go to stdout (as JSON alone with --json), everything else to stderr. Exit codes: 0 done,
1 failed, 2 wrong usage or input, 3 some recordings failed and were listed. Heavy modules are
imported inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from toptune.cli import checking, extracting, recordings, reporting, sweeping, training
from toptune.cli.options import say
from toptune.errors import ToptuneError

app = typer.Typer(
    name="toptune",
    help="Tell from micro-electrode-array recordings which kind of neuronal network made them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# In the order of --help: that of the flow.
for command in (
    extracting.demo,
    recordings.simulate,
    recordings.inspect,
    recordings.detect,
    extracting.extract,
    training.fit,
    training.predict,
    sweeping.sweep,
    reporting.report,
    reporting.why,
    checking.doctor,
    checking.bench,
):
    app.command()(command)


def main() -> None:
    """Run the command line; every foreseen error is one line on stderr.

    The first Ctrl-C ends the work and tidies up; a second one ends the process at once, which
    nothing that was published minds.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        with _interrupt_once():
            app()
    except ToptuneError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except OSError as error:
        say(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


@contextmanager
def _interrupt_once() -> Iterator[None]:
    """Answer the first Ctrl-C as Python does, and leave the second to the system."""
    interrupted = False

    def first(_number: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # Not by a file object, which may be in the middle of a write.
        os.write(2, b"interrupted; what was published is kept\n")
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        # Where it was pressed, the interpreter may still wait for threads: a second one ends that.
        if not interrupted:
            signal.signal(signal.SIGINT, before)
