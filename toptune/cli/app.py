"""The command line: a command parses, calls one function, prints.

Results go to stdout (as JSON alone with --json), everything else to stderr. Exit codes: 0 done,
1 failed, 2 wrong usage or input, 3 some recordings failed and were listed. Commands check what they
are given before they import what they work with, so that --help and refusals answer at once.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from toptune.cli import demo, live, machine, recordings, reporting, training
from toptune.cli.interrupt import interrupting
from toptune.cli.options import BASIC, in_flags
from toptune.cli.printing import say
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
        with interrupting():
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
