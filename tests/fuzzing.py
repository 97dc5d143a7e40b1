"""Mutating real files, and reading what comes of it in a process of its own."""

from __future__ import annotations

import json
import os
import random
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHILD = Path(__file__).with_name("fuzz_child.py")
TOP = Path(__file__).parents[1]
TIME_LIMIT_S = 60.0  # a hang is told from a slow machine
#: What a reader may take beyond four times its file: buffers, libraries' own, the interpreter's.
SLACK_KIB = 64 * 1024

_EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63)


@dataclass(frozen=True)
class Reply:
    """What became of one input.

    ``outcome`` is ``read``, ``refused`` (by one of our errors), ``escaped`` (any other), ``died``
    or ``hung``; ``detail`` says more, and ``grown_kib`` by how much memory rose meanwhile.
    """

    outcome: str
    detail: str
    grown_kib: int = 0


class Reader:
    """A child process that reads files; started anew when one was too much for it."""

    def __init__(self, time_limit_s: float = TIME_LIMIT_S) -> None:
        self._time_limit_s = time_limit_s
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def read(self, target: str, path: Path) -> Reply:
        """Let the child read a file."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{target} {path}\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], self._time_limit_s)
        if not ready:
            self._stop()
            return Reply("hung", f"no answer in {self._time_limit_s:g} s")
        line = process.stdout.readline()
        if not line:
            code = process.wait()
            self._stop()
            return Reply("died", f"exit status {code}")
        return Reply(**json.loads(line))

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-u", str(CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "PYTHONPATH": str(TOP), "OMP_NUM_THREADS": "1"},
            )
        return self._process

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None


def mutated(seeds: list[bytes], rng: random.Random) -> bytes:
    """Change one of the files in one to four ways."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        if data:
            rng.choice(_MUTATIONS)(data, rng, seeds)
    return bytes(data)


def _place(data: bytearray, rng: random.Random) -> int:
    # Headers and directories lie at the ends of most formats.
    span = rng.choice((len(data), min(len(data), 512), min(len(data), 4096)))
    at = rng.randrange(span)
    return at if rng.random() < 0.8 else len(data) - 1 - at


def _flip(data: bytearray, rng: random.Random, _: list[bytes]) -> None:
    for _flipped in range(rng.choice((1, 1, 2, 8))):
        data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _random_bytes(data: bytearray, rng: random.Random, _: list[bytes]) -> None:
    at = _place(data, rng)
    data[at : at + rng.choice((1, 2, 4, 16))] = rng.randbytes(rng.choice((1, 2, 4, 16)))


def _edge_number(data: bytearray, rng: random.Random, _: list[bytes]) -> None:
    """Put a number that size fields do not expect where one may be."""
    size = rng.choice((1, 2, 4, 8))
    at = _place(data, rng) // size * size
    here = int.from_bytes(data[at : at + size], "little")
    value = rng.choice((*_EDGES, here + 1, here - 1, here * 2, here * 1000, ~here))
    order = rng.choice(("little", "little", "little", "big"))
    data[at : at + size] = (value % 256**size).to_bytes(size, order)


def _cut(data: bytearray, rng: random.Random, _: list[bytes]) -> None:
    del data[rng.randrange(len(data)) :]


def _delete(data: bytearray, rng: random.Random, _: list[bytes]) -> None:
    at = _place(data, rng)
    del data[at : at + rng.choice((1, 4, 8, 64, 1000))]


def _repeat(data: bytearray, rng: random.Random, _: list[bytes]) -> None:
    at = _place(data, rng)
    piece = data[at : at + rng.choice((1, 8, 64, 1000))]
    data[at:at] = piece * rng.choice((1, 2, 50))


def _splice(data: bytearray, rng: random.Random, seeds: list[bytes]) -> None:
    """Take a piece of any of the files, to the same place or another."""
    other = rng.choice(seeds)
    size = rng.choice((4, 16, 64, 512, 5000))
    source = rng.randrange(max(1, len(other) - size))
    at = source if rng.random() < 0.5 else _place(data, rng)
    data[at : at + size] = other[source : source + size]


_WORDS = (
    b"nan", b"inf", b"-1", b"1e308", b"1e-400", b"9" * 30, b"9" * 5000, b"1_000", b"\xef\xbb\xbf",
    b"\x00", b"\r", b"\r\n", b"\n", b'"', b",", b";", b"\xff\xfe", b"\t", b"0x10", b"true", b"null",
    b"{", b"[", b"[" * 3000, "\u0663".encode(), b"/etc/passwd", b"../..", b"<script>",
)  # fmt: skip


def _word(data: bytearray, rng: random.Random, _: list[bytes]) -> None:
    at = _place(data, rng)
    data[at : at + rng.choice((0, 0, 1, 4))] = rng.choice(_WORDS)


_MUTATIONS = (
    _flip, _random_bytes, _edge_number, _edge_number, _cut, _delete, _repeat, _splice, _word,
)  # fmt: skip


# --- JSON

_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -1e308, float("nan"), float("inf"), "", "x",
    "../..", "/etc/passwd", "\x1b[2J", "9" * 400, [], {}, [[]], [0], {"x": 1},
)  # fmt: skip


def mutated_json(content: Any, rng: random.Random) -> Any:
    """Change, delete, double or rename one value, anywhere inside."""
    places: list[tuple[Any, Any]] = []
    _collect(content, places)
    if not places:
        return rng.choice(_VALUES)
    holder, key = rng.choice(places)
    how = rng.randrange(5)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    elif how == 2 and isinstance(holder, list):
        holder.append(holder[key])
    elif how == 3 and isinstance(holder[key], int | float):
        holder[key] = rng.choice((holder[key] + 1, -holder[key], holder[key] * 10**9, 1e-300))
    else:
        holder[key] = rng.choice(_VALUES)
    return content


def _collect(content: Any, places: list[tuple[Any, Any]]) -> None:
    keys = content if isinstance(content, dict) else range(len(content))
    for key in list(keys):
        places.append((content, key))
        if isinstance(content[key], dict | list):
            _collect(content[key], places)
