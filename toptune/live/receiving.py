"""What comes while it is recorded: taken in a thread, brought into order, and waited for.

A thread takes what comes as soon as it comes, so that neither an amplifier's program nor the clock
waits for a verdict. What was not yet asked for is kept, up to a limit.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, Self

from toptune.errors import ToptuneError
from toptune.live.blocks import Block, Note, NoteKind, SourceInfo
from toptune.params import Waiting

# How often it is looked whether something has been missing for too long.
_TICK_S = 0.05
# What is kept at most: seconds, and values (channels x samples).
_KEPT_S, _KEPT_VALUES = 60.0, 50_000_000


class Said(NamedTuple):
    """What a thread says of its source; the time of the recording is added when it is read."""

    kind: NoteKind
    text: str


class Order(Protocol):
    """Brings what comes into order: `Ordering`, or what places samples by time stamps first."""

    @property
    def at_s(self) -> float:
        """The time of the recording up to which all was given or given up."""

    def put(self, piece: Any) -> list[Block | Note]:
        """Take a piece; give what is in order now."""

    def waited(self, now_s: float) -> list[Block | Note]:
        """Give up what has been missing for too long."""

    def finish(self) -> list[Block | Note]:
        """Give all that is held."""


class _End(NamedTuple):
    error: BaseException | None


class _Kept:
    """What was received and not yet asked for; full, it lets the thread wait."""

    def __init__(self, most: int) -> None:
        self._most = most  # samples
        self._items: deque[tuple[Any, int]] = deque()
        self._n = 0
        self._changed = threading.Condition()

    def put(self, item: Any, n_samples: int, closing: threading.Event) -> None:
        with self._changed:
            while self._n >= self._most and not closing.is_set():
                self._changed.wait(_TICK_S)
            self._items.append((item, n_samples))
            self._n += n_samples
            self._changed.notify_all()

    def get(self, timeout_s: float) -> Any | None:
        with self._changed:
            if not self._items:
                self._changed.wait(timeout_s)
            if not self._items:
                return None
            item, n_samples = self._items.popleft()
            self._n -= n_samples
            self._changed.notify_all()
            return item


class Received(ABC):
    """A `Source` whose samples come in their own time.

    Parameters
    ----------
    info
        What is known of it.
    order
        Brings its pieces into order.
    waiting
        How long what does not come is waited for.
    """

    #: Whether a piece says where it belongs, so that what is lost shows.
    numbered = True

    def __init__(self, info: SourceInfo, order: Order, waiting: Waiting) -> None:
        self.info = info
        self._order = order
        self._waiting = waiting
        self._closing = threading.Event()
        self._letting_go = threading.Lock()
        most = min(_KEPT_S * info.sampling_rate_hz, _KEPT_VALUES / info.n_channels)
        self._kept = _Kept(max(1, int(most)))
        self._thread = threading.Thread(target=self._receive, name="source", daemon=True)
        self._is_read = self._ended = False

    def _begin(self) -> None:
        """Take from now on what comes, though it is not asked for yet; ends every `__init__`."""
        self._thread.start()

    @abstractmethod
    def _pieces(self) -> Iterator[Any]:
        """Give pieces (which have `samples` and `received_s`) and `Said`, in the thread.

        It must look at `_closing` several times a second.
        """

    @abstractmethod
    def _let_go(self) -> None:
        """Close what was opened; the thread has ended."""

    def read(self) -> Iterator[Block | Note]:
        """Give blocks and notes as they come; see `Source`."""
        if self._is_read:
            raise ToptuneError(f"{self.info.name}: a source is read once: open it again")
        self._is_read = True
        try:
            yield from self._read()
        finally:
            self.close()

    def _receive(self) -> None:
        error: BaseException | None = None
        try:
            for piece in self._pieces():
                n = 0 if isinstance(piece, Said) else int(piece.samples.shape[1])
                self._kept.put(piece, n, self._closing)
                if self._closing.is_set():
                    break
        except BaseException as caught:  # noqa: BLE001  # raised again where it is read
            error = caught
        self._kept.put(_End(error), 0, self._closing)

    def _read(self) -> Iterator[Block | Note]:
        silence = _Silence(self._waiting, self.info.sampling_rate_hz, self.numbered)
        error: BaseException | None = None
        while not (silence.too_long or self._ended or self._closing.is_set()):
            item = self._kept.get(_TICK_S)
            if isinstance(item, _End):
                self._ended, error = True, item.error
            else:
                yield from self._told(item, silence)
        yield from self._order.finish()
        if error is not None:
            raise error

    def _told(self, item: Any, silence: _Silence) -> Iterator[Block | Note]:
        any_block = False
        for one in self._taken(item):
            if isinstance(one, Block):
                any_block = True
                yield from silence.broken(one)
            elif one.kind == "changed":
                self._ended = True
            yield one
        if not any_block:
            now_s = getattr(item, "received_s", None) or time.monotonic()
            yield from silence.noticed(now_s, self._order.at_s)

    def _taken(self, item: Any) -> list[Block | Note]:
        if item is None:
            return self._order.waited(time.monotonic())
        if isinstance(item, Said):
            return [Note(at_s=self._order.at_s, kind=item.kind, text=item.text)]
        return self._order.put(item)

    def close(self) -> None:
        """End the thread, and let go of what it read."""
        self._closing.set()
        if self._thread is not threading.current_thread():
            self._thread.join(5.0)
        # One at a time: another thread may be closing the same source.
        with self._letting_go:
            self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Silence:
    """Whether something comes, and since when nothing does."""

    def __init__(self, waiting: Waiting, sampling_rate_hz: float, numbered: bool) -> None:
        self._waiting = waiting
        self._rate = sampling_rate_hz
        self._numbered = numbered
        self._last_s = time.monotonic()
        self._any = False
        self._told = False
        self.too_long = False

    def noticed(self, now_s: float, at_s: float) -> Iterator[Note]:
        """Say so once where nothing has come for a while, and once more where it is given up."""
        for_s = now_s - self._last_s
        what = "nothing more has come" if self._any else "nothing has come yet"
        if for_s >= self._waiting.stopped_after_s and not self._told:
            self._told = True
            yield Note(at_s=at_s, kind="stopped", text=f"{what} for {for_s:.1f} s")
        if for_s >= self._waiting.end_after_s:
            self.too_long = True
            yield Note(
                at_s=at_s,
                kind="stopped",
                text=f"{what} for {for_s:.0f} s: the source is taken to have ended",
            )

    def broken(self, block: Block) -> Iterator[Note]:
        """Say so where samples come again."""
        after_s = block.received_s - self._last_s
        told = self._told and self._any
        self._last_s, self._told, self._any = block.received_s, False, True
        if told:
            text = f"samples come again after {after_s:.1f} s"
            if not self._numbered:
                text += "; they have no numbers, and are taken to follow without a gap"
            yield Note(at_s=block.first_sample / self._rate, kind="resumed", text=text)
