"""The command that gives verdicts while a recording goes on: stream."""

from __future__ import annotations

import json
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import typer

from toptune.cli.options import (
    AsJson,
    ModelFolder,
    MovedWeights,
    Only,
    Overwrite,
    command,
    require_model,
    require_recordings,
)
from toptune.cli.printing import printable, say, tell
from toptune.cli.streams import let_go
from toptune.cli.training import print_predictions
from toptune.errors import InputError, ToptuneError
from toptune.machine.remote import as_path
from toptune.params import Compute, OpeningOptions, Waiting

if TYPE_CHECKING:
    from toptune.live.blocks import Note
    from toptune.live.detection import Calibration
    from toptune.live.engine import LiveEvent, LiveSession, LiveVerdict
    from toptune.live.page import Address, LivePage
    from toptune.live.record import Record
    from toptune.live.screen import Screen

# Notes that are said once more when a screen that showed them has gone.
_NOTES_AT_THE_END = 5


@command("toptune stream run data/D01_100E0I.h5 --speed max -o live")
def stream(
    model: ModelFolder,
    source: Annotated[
        str,
        typer.Argument(
            help="A recording, which is replayed; a file that is still being written; lsl:NAME, a"
            " stream of the Lab Streaming Layer; or - for standard input."
        ),
    ],
    opening: Annotated[OpeningOptions, Only(("stream", "well"))],
    machine: Compute,
    waiting: Waiting,
    speed: Annotated[
        str | None,
        typer.Option(
            metavar="<float|max>",
            help="Seconds of a recording that are replayed in a second, or max; 1 if not given.",
        ),
    ] = None,
    header: Annotated[
        Path | None,
        typer.Option(help="TOML file that describes raw samples, of a file or standard input."),
    ] = None,
    stride_s: Annotated[
        float | None,
        typer.Option(
            help="Time between the starts of successive windows, in seconds; as in training if not"
            " given."
        ),
    ] = None,
    calibration_s: Annotated[
        float,
        typer.Option(help="Seconds at the beginning on which the electrodes' thresholds are set."),
    ] = 30.0,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--thresholds",
            help="File of thresholds to use instead, such as thresholds.json of --out.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="New folder for the tables, which grow, and report.html at the end."
        ),
    ] = None,
    serve: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS:PORT",
            help="Show it as a page in a browser of this computer, at 127.0.0.1 and this port; 0:"
            " any free one.",
        ),
    ] = None,
    weights: MovedWeights = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Give a verdict on every window while the recording goes on, until it ends or Ctrl-C."""
    require_model(model)
    address = None
    if serve is not None:
        from toptune.live.page import Address, require_server

        address = Address.parse(serve)
        require_server()
    if out is not None:
        from toptune.runs.folder import PREDICTIONS, require_target

        require_target(out, overwrite=overwrite, kind=PREDICTIONS)
    if source != "-" and not source.startswith("lsl:") and not Path(source).is_fifo():
        require_recordings([as_path(source)])
    require_recordings([path for path in (header, calibration) if path is not None])
    replay_speed = _speed(speed)
    from toptune.live.detection import Calibration
    from toptune.live.engine import LiveSession
    from toptune.live.sources import open_source

    thresholds = None if calibration is None else Calibration.read(calibration)
    with ExitStack() as stack:
        opened = stack.enter_context(
            open_source(source, speed=replay_speed, header=header, opening=opening, waiting=waiting)
        )
        session = stack.enter_context(
            LiveSession(
                model,
                opened,
                stride_s=stride_s,
                calibration_s=calibration_s,
                calibration=thresholds,
                weights=weights or (),
                compute=machine,
            )
        )
        live = stack.enter_context(
            _Live(session, str(model), out, overwrite=overwrite, as_json=as_json)
        )
        if address is not None:
            live.serve(address)
        live.follow()
    live.tell_end()


def _speed(text: str | None) -> float | Literal["max"] | None:
    """Read a speed; it is checked by what replays."""
    if text is None:
        return None
    if text == "max":
        return "max"
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--speed must be a number or max, got {text!r}") from None


class _Live:
    """Follows a session: records what comes, then shows it, then prints it."""

    def __init__(
        self, session: LiveSession, model: str, out: Path | None, *, overwrite: bool, as_json: bool
    ) -> None:
        from toptune.live.board import Board, Header

        header = Header(
            source=session.info,
            model=model,
            classes=session.model.classes,
            width_s=session.windows.width_s,
            stride_s=session.windows.stride_s,
        )
        self._session = session
        self._board = Board(header)
        self._as_json = as_json
        self._stack = ExitStack()
        self._ending = _Ending()
        self._lines = _Lines()
        self._notes: list[Note] = []  # since the last verdict
        self._page: LivePage | None = None
        self._report: Path | None = None
        self._failure: ToptuneError | None = None
        self._screen = self._make_screen()
        self._record = self._make_record(out, overwrite=overwrite)

    def _make_screen(self) -> Screen | None:
        from rich.console import Console

        console = Console(stderr=True)
        # Notebooks ask for colours (FORCE_COLOR), whoever reads; a screen needs a terminal.
        is_terminal = console.is_terminal and console.file.isatty() and not console.is_dumb_terminal
        # JSON beside it in the same terminal would be drawn over.
        if not is_terminal or (self._as_json and sys.stdout.isatty()):
            return None
        from toptune.live.screen import Screen

        return Screen(self._board, console)

    def _make_record(self, out: Path | None, *, overwrite: bool) -> Record | None:
        if out is None:
            return None
        from toptune.live.record import Record

        return Record(
            out,
            self._session.model,
            self._session.result(),
            self._board.header,
            overwrite=overwrite,
        )

    def serve(self, address: Address) -> None:
        """Serve a page, and say where."""
        from toptune.live.page import LivePage

        self._page = self._stack.enter_context(LivePage(self._board, address))
        say(f"page: {self._page.url}")

    def __enter__(self) -> Self:
        if self._record is not None:
            self._stack.callback(self._record.close)
        given = self._session.calibration
        if given is not None:
            self._keep(given)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def follow(self) -> None:
        """Take everything that comes, until the source ends or fails, or the user ends it."""
        with ExitStack() as stack:
            stack.enter_context(self._ending)
            if self._screen is not None:
                stack.enter_context(self._screen)
            try:
                for event in self._ending.events(self._session.events()):
                    self._take(event)
            except ToptuneError as error:
                # Raised at the end: what came before it is not lost.
                self._failure = error
        self._board.end()
        if self._page is not None:
            self._page.publish()
        if self._record is not None:
            self._report = self._record.finish(self._session.result(), self._board)

    def _take(self, event: LiveEvent) -> None:
        from toptune.live.blocks import Note
        from toptune.live.engine import CalibrationProgress, LiveVerdict

        if isinstance(event, Note):
            self._take_note(event)
        else:
            self._board.take(event)
        if isinstance(event, CalibrationProgress) and event.calibration is not None:
            self._keep(event.calibration)
        if isinstance(event, LiveVerdict):
            # Recorded first, so that none was seen that a killed process has lost.
            self._take_notes(None if self._record is None else self._record.verdict(event))
            self._print(event)
        if self._record is not None and self._record.is_due:
            self._take_notes(self._record.save(self._session.result(), self._board))
        if self._screen is not None:
            self._screen.show()
        if self._page is not None:
            self._page.publish()

    def _keep(self, calibration: Calibration) -> None:
        if self._record is not None:
            self._take_notes(self._record.calibration(calibration))

    def _take_notes(self, note: Note | None) -> None:
        if note is not None:
            self._take_note(note)

    def _take_note(self, note: Note) -> None:
        from toptune.live.screen import note_line

        self._board.take(note)
        self._notes.append(note)
        if self._screen is None:
            say(note_line(note))
        if self._record is not None:
            self._take_notes(self._record.note(note))

    def _print(self, verdict: LiveVerdict) -> None:
        from toptune.live.blocks import Note
        from toptune.live.board import note_json, verdict_json
        from toptune.live.screen import verdict_line

        notes, self._notes = self._notes, []
        if self._as_json:
            value = {**verdict_json(verdict), "notes": [note_json(note) for note in notes]}
            line = json.dumps(value, allow_nan=False)
        elif self._screen is None or not sys.stdout.isatty():
            line = printable(verdict_line(verdict))
        else:
            return
        cause = self._lines.put(line)
        if cause is not None:
            text = f"what is printed cannot be written ({cause}): verdicts go on"
            self._take_note(Note(at_s=verdict.stop_s, kind="disk", text=text))

    def tell_end(self) -> None:
        """Say what it came to, when the screen has gone."""
        from toptune.live.screen import note_line

        if self._screen is not None:
            for note in list(self._board.notes)[-_NOTES_AT_THE_END:]:
                say(note_line(note))
        if self._board.verdict is not None and not self._as_json:
            print_predictions(self._session.result())
        if self._report is not None:
            (say if self._as_json else tell)(f"report: {self._report}")
        self._lines.finish()
        if self._failure is not None:
            raise self._failure
        if self._board.verdict is None:
            width_s = self._board.header.width_s
            raise ToptuneError(
                f"there is no verdict: it ended before a window of {width_s:g} s was full"
            )


class _Lines:
    """Lines on standard output, which may be on a disk that is full for a while."""

    def __init__(self) -> None:
        self._left: deque[str] = deque()
        self._failed = False

    def put(self, line: str) -> str | None:
        """Print a line after those that could not be; give the cause where that first fails."""
        self._left.append(line)
        try:
            # What is left of a line in the stream's buffer comes before the next.
            sys.stdout.flush()
            while self._left:
                sys.stdout.write(self._left.popleft() + "\n")
                sys.stdout.flush()
        except OSError as error:
            known, self._failed = self._failed, True
            return None if known else error.strerror or str(error)
        self._failed = False
        return None

    def finish(self) -> None:
        """Raise where lines could not be printed."""
        try:
            sys.stdout.flush()
        except OSError as error:
            let_go()
            raise ToptuneError(
                f"not all verdicts could be printed ({error.strerror}): give --out as well"
            ) from None


class _Ending:
    """Ctrl-C or SIGTERM ends a stream while it waits, or else when the next verdict was given.

    The second Ctrl-C is one as ever.
    """

    def __init__(self) -> None:
        self._asked = False
        self._waiting = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._end)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True
        self._restore()
        if self._waiting:
            raise KeyboardInterrupt

    def events(self, given: Iterable[Any]) -> Iterator[Any]:
        """Give events as long as there are any and nobody asked for the end."""
        iterator = iter(given)
        while not self._asked:
            try:
                self._waiting = True
                event = next(iterator, None)
                self._waiting = False
            except KeyboardInterrupt:
                self._waiting = False
                return
            if event is None:
                return
            yield event
