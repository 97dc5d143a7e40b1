"""Raw samples that a program writes, to a file that grows or to standard input.

A small TOML file says how they are laid out:

=================  =================================================================================
sampling_rate_hz   samples a second of each channel
channels           the electrodes' names, in their order; or how many there are
dtype              ``int16``, ``uint16``, ``int32``, ``uint32``, ``float32`` or ``float64``
uv_per_digit       microvolts of one step: a number, or one for each channel; needed for whole
                   numbers, 1 for others
zero_digit         the value that means 0 uV (0): uV = (value - zero_digit) x uv_per_digit
byte_order         ``little`` (the default) or ``big``
layout             ``samples`` (the default): all channels of the first sample, then of the second;
                   ``channels``: in blocks, all samples of the first channel, then of the second
block_samples      samples of each channel in a block, for the layout ``channels``
counter            ``uint32`` or ``uint64``: each sample begins with its number, which counts up by
                   1 and may begin anew after its largest value; for the layout ``samples``
skip_bytes         bytes before the first sample (0)
=================  =================================================================================

Without numbers, samples that a program failed to write cannot be noticed. With them gaps, doubled
and late samples show.
"""

from __future__ import annotations

import os
import select
import stat
import time
import tomllib
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.live.blocks import SourceInfo
from toptune.live.ordering import Ordering, Piece
from toptune.live.receiving import Received, Said
from toptune.params import FASTEST_HZ, Waiting
from toptune.recordings.trains import check_labels
from toptune.recordings.voltage import Stretch, VoltageReader, between_gaps, check_scale

_DTYPES = ("int16", "uint16", "int32", "uint32", "float32", "float64")
_COUNTERS = ("uint32", "uint64")
_HEADER_BYTES = 1 << 20
_MOST_CHANNELS = 30_000
# How often a file is looked at, and whether it is still the same one.
_POLL_S, _LOOK_S = 0.02, 0.5
# What is read at once.
_AT_ONCE_S, _AT_ONCE_BYTES = 0.5, 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class RawFormat:
    """How raw samples are laid out; see the module. Made by `read` or `of`."""

    sampling_rate_hz: float
    channels: tuple[str, ...]
    dtype: str
    uv_per_digit: tuple[float, ...]
    zero_digit: float = 0.0
    byte_order: str = "little"
    layout: str = "samples"
    block_samples: int = 1
    counter: str | None = None
    skip_bytes: int = 0

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a header.

        Raises
        ------
        InputError
            It is missing, is not TOML, or says what cannot be; the message names the file and key.
        """
        try:
            data = path.read_bytes()[: _HEADER_BYTES + 1]
            if len(data) > _HEADER_BYTES:
                raise InputError(f"{path}: is no header: more than {_HEADER_BYTES} bytes long")
            return cls.of(tomllib.loads(data.decode("utf-8")), path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
        except UnicodeDecodeError:
            raise InputError(f"{path}: is not UTF-8 text: write the header as TOML") from None
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{path}: is not TOML ({error})") from None

    @classmethod
    def of(cls, values: Mapping[str, Any], path: Path) -> Self:
        """Take what a header says; `path` is named where it is wrong."""
        return cls(**_Header(values, path).checked())

    @property
    def frame(self) -> np.dtype[Any]:
        """One sample of all channels or, by the layout ``channels``, one block of samples."""
        order: Literal["<", ">"] = "<" if self.byte_order == "little" else ">"
        value = np.dtype(self.dtype).newbyteorder(order)
        n = len(self.channels)
        shape = (n,) if self.layout == "samples" else (n, self.block_samples)
        parts: list[tuple[Any, ...]] = [("values", value, shape)]
        if self.counter is not None:
            parts.insert(0, ("number", np.dtype(self.counter).newbyteorder(order)))
        return np.dtype(parts)

    def microvolts(self, frames: NDArray[Any]) -> NDArray[np.float32]:
        """Scale frames to (n_channels, n) float32: computed in double precision, rounded once."""
        values = frames["values"]
        if self.layout == "samples":
            raw = values.T
        else:
            raw = values.transpose(1, 0, 2).reshape(len(self.channels), -1)
        scaled = (raw.astype(np.float64) - self.zero_digit) * np.array(self.uv_per_digit)[:, None]
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(scaled, np.float32)

    def difference(self, other: RawFormat) -> str:
        """Say in what another header differs; empty where it does not."""
        names = [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]
        return ", ".join(f"`{name}`" for name in names)


class _Header:
    """Checks of a header's values, one by one."""

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        self._values = dict(values)
        self._path = path
        known = {f.name for f in fields(RawFormat)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(
                f"{path}: {unknown[0]!r} is no key of a header; there are {', '.join(known)}"
            )

    def checked(self) -> dict[str, Any]:
        channels = self._channels()
        dtype = self._one_of("dtype", _DTYPES)
        layout = self._one_of("layout", ("samples", "channels"), "samples")
        counter = self._one_of("counter", (*_COUNTERS, None), None)
        block = self._whole("block_samples", 1, 10_000_000, 1 if layout == "samples" else None)
        if layout == "channels" and counter is not None:
            raise self._wrong("counter", "left out where `layout` is 'channels'")
        if layout == "samples" and block != 1:
            raise self._wrong("block_samples", "left out unless `layout` is 'channels'")
        zero = float(self._number("zero_digit", 0.0))
        return {
            "sampling_rate_hz": self._rate(),
            "channels": channels,
            "dtype": dtype,
            "uv_per_digit": self._gains(channels, dtype, zero),
            "zero_digit": zero,
            "byte_order": self._one_of("byte_order", ("little", "big"), "little"),
            "layout": layout,
            "block_samples": block,
            "counter": counter,
            "skip_bytes": self._whole("skip_bytes", 0, 2**60, 0),
        }

    def _wrong(self, key: str, what: str) -> InputError:
        got = repr(self._values[key]) if key in self._values else "nothing"
        return InputError(f"{self._path}: `{key}` must be {what}, got {got:.200}")

    def _rate(self) -> float:
        rate = float(self._number("sampling_rate_hz", None))
        if not 0 < rate <= FASTEST_HZ:
            raise self._wrong("sampling_rate_hz", f"above 0 and at most {FASTEST_HZ:g}")
        return rate

    def _number(self, key: str, default: float | None) -> float:
        value = self._values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise self._wrong(key, "a number")
        return value

    def _whole(self, key: str, least: int, most: int, default: int | None) -> int:
        value = self._values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self._wrong(key, f"a whole number from {least} to {most}")
        return value

    def _one_of(self, key: str, allowed: tuple[Any, ...], default: Any = ...) -> Any:
        value = self._values.get(key, default)
        if value not in allowed:
            named = ", ".join(repr(one) for one in allowed if one is not None)
            raise self._wrong(key, f"one of {named}")
        return value

    def _channels(self) -> tuple[str, ...]:
        value: Any = self._values.get("channels")
        if isinstance(value, int) and not isinstance(value, bool):
            number = self._whole("channels", 1, _MOST_CHANNELS, None)
            return tuple(str(k + 1) for k in range(number))
        ok = isinstance(value, list) and 0 < len(value) <= _MOST_CHANNELS
        if not ok or not all(isinstance(one, str) and one.strip() for one in value):
            raise self._wrong("channels", "a list of names, or how many there are")
        if len(set(value)) < len(value):
            raise self._wrong("channels", "a list of names that differ")
        check_labels(self._path, value)
        return tuple(value)

    def _gains(self, channels: tuple[str, ...], dtype: str, zero: float) -> tuple[float, ...]:
        value = self._values.get("uv_per_digit", 1.0 if dtype.startswith("float") else None)
        gains = value if isinstance(value, list) else [value] * len(channels)
        numbers = all(isinstance(g, int | float) and not isinstance(g, bool) for g in gains)
        if len(gains) != len(channels) or not numbers:
            raise self._wrong("uv_per_digit", f"a number, or one for each of {len(channels)}")
        given = np.array(gains, np.float64)
        check_scale(self._path, channels, given, -zero * given)
        return tuple(given.tolist())


def header_beside(path: Path) -> Path | None:
    """Find the header of a raw file: its name with ``.toml`` added or in place of its ending."""
    for one in (path.with_name(path.name + ".toml"), path.with_suffix(".toml")):
        if one != path and one.is_file():
            return one
    return None


class _Frames:
    """Frames in a stream of bytes, as pieces with numbers."""

    def __init__(self, layout: RawFormat, name: str) -> None:
        self._layout = layout
        self._name = name
        self._frame = layout.frame
        self._skip = layout.skip_bytes
        self._rest = b""
        self._next = 0  # the number of the next frame, if it follows
        self._any = False

    @property
    def rest_bytes(self) -> int:
        """Bytes of a frame that has not come whole."""
        return len(self._rest)

    def pieces(self, data: bytes) -> Iterator[Piece]:
        """Add bytes; give the pieces that are whole now."""
        received_s = time.monotonic()
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        data = self._rest + data[skipped:]
        n = len(data) // self._frame.itemsize
        self._rest = data[n * self._frame.itemsize :]
        if not n:
            return
        frames = np.frombuffer(data, self._frame, n)
        samples = self._layout.microvolts(frames)
        for first, start, stop in self._numbered(frames):
            yield Piece(first, samples[:, start:stop], received_s)

    def _numbered(self, frames: NDArray[Any]) -> Iterator[tuple[int, int, int]]:
        """Divide frames where their numbers do not follow: number, first frame, end."""
        n = frames.size * (1 if self._layout.layout == "samples" else self._layout.block_samples)
        if self._layout.counter is None:
            yield self._next, 0, n
            self._next += n
            return
        steps = self._steps(frames["number"])
        jumps = np.flatnonzero(steps)
        if n >= 16 and 2 * jumps.size > n:
            raise InputError(
                f"{self._name}: the numbers before its samples do not count up: does the header"
                " say how the samples are laid out?"
            )
        edges = [0, *(int(k) for k in jumps if k), n]
        for start, stop in pairwise(edges):
            first = self._next + int(steps[start])
            yield first, start, stop
            self._next = first + stop - start

    def _steps(self, numbers: NDArray[Any]) -> NDArray[np.int64]:
        """Give by how much each number is ahead of the one that was due; they wrap around."""
        own = numbers.astype(numbers.dtype.newbyteorder("="))
        if not self._any:
            self._any, self._next = True, int(own[0])
        due = np.empty_like(own)
        due[0] = self._next % 2 ** (8 * own.dtype.itemsize)
        due[1:] = own[:-1] + own.dtype.type(1)
        signed = np.int32 if own.dtype.itemsize == 4 else np.int64
        ahead: NDArray[np.int64] = (own - due).view(signed).astype(np.int64)
        return ahead


class RawStream(Received):
    """Raw samples from standard input, a pipe, or a file that grows.

    A file is read from its beginning. It has no end: it is waited for while nothing is added.

    Parameters
    ----------
    path
        The file or named pipe; None for standard input.
    header
        The TOML file that says how the samples are laid out. Where it changes while it is read, the
        source ends.
    waiting
        How long what does not come is waited for.

    Raises
    ------
    InputError
        The header or the file cannot be read, or the header says what cannot be.
    """

    def __init__(self, path: Path | None, header: Path, waiting: Waiting) -> None:
        self._layout = RawFormat.read(header)
        self._header = header
        self._path = path
        self._name = "standard input" if path is None else path.name
        self.numbered = self._layout.counter is not None
        try:
            # A named pipe is opened without waiting for its writer.
            flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
            self._fd = 0 if path is None else os.open(path, flags)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
        kind = os.fstat(self._fd).st_mode
        self._grows = stat.S_ISREG(kind) and path is not None
        info = SourceInfo(
            name=self._name,
            channel_labels=self._layout.channels,
            sampling_rate_hz=self._layout.sampling_rate_hz,
        )
        rate = self._layout.sampling_rate_hz
        super().__init__(info, Ordering(rate, patience_s=waiting.patience_s), waiting)
        self._begin()

    def _pieces(self) -> Iterator[Piece | Said]:
        frames = _Frames(self._layout, self._name)
        most = int(_AT_ONCE_S * self.info.sampling_rate_hz) * self._layout.frame.itemsize
        most = min(_AT_ONCE_BYTES, max(most, 1 << 16))
        looked_s, position, begun = time.monotonic(), 0, False
        while not self._closing.is_set():
            data = self._bytes(most)
            position += len(data or b"")
            begun = begun or bool(data)
            if data:
                yield from frames.pieces(data)
            elif data is not None and not self._grows and (begun or self._path is None):
                break
            else:
                self._closing.wait(_POLL_S)
            if time.monotonic() - looked_s >= _LOOK_S:
                looked_s = time.monotonic()
                changed = self._changed(position)
                if changed:
                    yield Said("changed", f"{changed}: the source ends")
                    break
        if frames.rest_bytes and not self._closing.is_set():
            yield Said("stopped", f"{frames.rest_bytes} bytes at its end are no whole sample")

    def _bytes(self, most: int) -> bytes | None:
        """Read what is there: None where nothing is yet, empty at the end."""
        try:
            if not self._grows and hasattr(select, "poll") and not self._ready():
                return None
            return os.read(self._fd, most)
        except BlockingIOError:
            return None
        except OSError as error:
            raise InputError(f"{self._name}: cannot be read ({error.strerror or error})") from None

    def _ready(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN | select.POLLHUP | select.POLLERR)
        return bool(poll.poll(1000 * _POLL_S))

    def _changed(self, position: int) -> str:
        """Say what is no longer what it was; empty where all is."""
        try:
            if self._grows and os.fstat(self._fd).st_size < position:
                return "the file has become shorter"
            if self._grows and not self._same_file():
                return "another file has taken its place"
            difference = self._layout.difference(RawFormat.read(self._header))
        except (InputError, OSError):
            return ""  # it is being written again, or was moved away
        return f"the header says now another {difference}" if difference else ""

    def _same_file(self) -> bool:
        assert self._path is not None
        here, there = os.fstat(self._fd), self._path.stat()
        return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)

    def _let_go(self) -> None:
        fd, self._fd = self._fd, -1
        if fd > 0:
            os.close(fd)


class RawRecording(VoltageReader):
    """A raw file that is complete, as a `VoltageRecording` that can be replayed.

    Parameters
    ----------
    path
        The file.
    header
        The TOML file that says how the samples are laid out.

    Raises
    ------
    InputError
        One of them cannot be read, or no whole sample is in the file.
    """

    kind = "raw"

    def __init__(self, path: Path, header: Path) -> None:
        self.path = path
        self._layout = RawFormat.read(header)
        self.channel_labels = self._layout.channels
        self.sampling_rate_hz = self._layout.sampling_rate_hz
        self.stream_label = ""
        self.width = len(self.channel_labels)
        frame, skip = self._layout.frame, self._layout.skip_bytes
        n = max(0, path.stat().st_size - skip) // frame.itemsize
        if not n:
            raise InputError(f"{path}: holds no whole sample of {frame.itemsize} bytes")
        self._frames: NDArray[Any] = np.memmap(path, frame, "r", skip, (n,))
        left = path.stat().st_size - skip - n * frame.itemsize
        if left:
            self.notes = (f"{left} bytes at its end are no whole sample",)
        n_samples = n * self._layout.block_samples
        self._set_segments(
            [Stretch(0, n_samples, 0.0)]
            if self._layout.counter is None
            else between_gaps(self._numbers, n_samples, self.sampling_rate_hz)
        )

    def _numbers(self, start: int, stop: int) -> NDArray[Any]:
        return np.asarray(self._frames["number"][start:stop])

    def _fill(self, out: NDArray[np.float32], segment: int, start: int) -> None:
        start += self.segments[segment].first_sample
        step = self._layout.block_samples
        first = start // step
        frames = self._frames[first : -(-(start + out.shape[1]) // step)]
        begin = start - first * step
        out[...] = self._layout.microvolts(frames)[:, begin : begin + out.shape[1]]

    def read_into(self, out: NDArray[np.float32], start: int, pool: Executor | None = None) -> None:
        """Fill `out` (channels, samples) float32 with microvolts from sample `start` on."""
        super().read_into(out, start, pool)
        if self._layout.dtype.startswith("float") and not np.isfinite(out).all():
            raise InputError(f"{self.path}: some of its samples are no voltage")

    def close(self) -> None:
        """Let go of the file."""
        del self._frames
