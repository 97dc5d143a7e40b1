"""The command line: a command parses, calls one function, prints.

Results go to stdout (as JSON alone with --json), everything else to stderr. Exit codes: 0 done,
1 failed, 2 wrong usage or input, 3 some recordings failed and were listed. Heavy modules are
imported inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import logging
import sys

import typer

from toptune.commands import extracting, recordings, reporting, training
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
    reporting.report,
    reporting.why,
):
    app.command()(command)


def main() -> None:
    """Run the command line; every foreseen error is one line on stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
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
