"""The command line: a command parses, calls one function, prints.

Results go to stdout (as JSON alone with --json), everything else to stderr. Exit codes: 0 done,
1 failed, 2 wrong usage or input, 3 some recordings failed and were listed. Heavy modules are
imported inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from toptune.commands import extracting, recordings, training
from toptune.commands.options import say
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
        say("interrupted; what was published is kept")
        sys.exit(130)


@contextmanager
def _interrupt_once() -> Iterator[None]:
    """Let the system's own answer to Ctrl-C, which needs no Python, follow the first."""

    def first(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, first)
    try:
        yield
    except KeyboardInterrupt:
        raise  # the interpreter may still wait for threads: the second Ctrl-C ends that, too
    except BaseException:
        signal.signal(signal.SIGINT, before)
        raise
    else:
        signal.signal(signal.SIGINT, before)
