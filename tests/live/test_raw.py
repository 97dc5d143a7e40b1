"""Raw samples as they are written: what the header says, and writers that stall, die and go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_processes import ROOT, Reading, writing
from live_writers import N_CHANNELS, raw_frames

from toptune.errors import InputError
from toptune.live import Block, Note, open_source
from toptune.live.raw import RawFormat
from toptune.params import Waiting

SOON = Waiting(stopped_after_s=0.2, end_after_s=0.5)
STALLING = Waiting(stopped_after_s=0.3)
HEADER = """
sampling_rate_hz = 1000
channels = ["a", "b", "c", "d"]
dtype = "int32"
uv_per_digit = 1
counter = "uint32"
"""


def header(folder: Path, text: str = HEADER) -> Path:
    path = folder / "rig.toml"
    path.write_text(text)
    return path


# --- the header


@pytest.mark.parametrize("dtype", ["int16", "uint16", "int32", "uint32", "float32", "float64"])
@pytest.mark.parametrize("byte_order", ["little", "big"])
@pytest.mark.parametrize("layout", ["samples", "channels"])
def test_values_become_microvolts(tmp_path: Path, dtype: str, byte_order: str, layout: str) -> None:
    digits = np.random.default_rng(2).integers(0, 30_000, (3, 600))
    mark = "<" if byte_order == "little" else ">"
    values = digits.astype(np.dtype(dtype).newbyteorder(mark))  # type: ignore[arg-type]  # < or >
    if layout == "samples":
        data, extra = values.T.tobytes(), ""
    else:
        blocks = [values[:, at : at + 50].tobytes() for at in range(0, 600, 50)]
        data, extra = b"".join(blocks), "block_samples = 50"
    path = tmp_path / "culture.raw"
    path.write_bytes(b"12345678" + data + b"1")
    (tmp_path / "culture.raw.toml").write_text(
        f'sampling_rate_hz = 20000.0\nchannels = 3\ndtype = "{dtype}"\nlayout = "{layout}"\n'
        f'byte_order = "{byte_order}"\nuv_per_digit = [0.5, 0.25, 2]\nzero_digit = 100\n'
        f"skip_bytes = 8\n{extra}\n"
    )
    expected = ((digits - 100.0) * np.array([[0.5], [0.25], [2.0]])).astype(np.float32)
    with open_source(path, speed="max") as source:
        assert source.info.sampling_rate_hz == 20_000.0
        assert source.info.channel_labels == ("1", "2", "3")
        replayed = [b.samples for b in source.read() if isinstance(b, Block)]
    np.testing.assert_array_equal(np.concatenate(replayed, axis=1), expected)
    with open_source(path, waiting=Waiting(end_after_s=0.2)) as source:
        found = list(source.read())
    live = [b.samples for b in found if isinstance(b, Block)]
    np.testing.assert_array_equal(np.concatenate(live, axis=1), expected)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("sampling_rate_hz = 0", "`sampling_rate_hz` must be above 0"),
        ('sampling_rate_hz = "fast"', "`sampling_rate_hz` must be a number"),
        ("channels = []", "`channels` must be a list of names"),
        ('channels = ["a", "a"]', "`channels` must be a list of names that differ"),
        ("channels = 0", "`channels` must be a whole number from 1"),
        ("channels = true", "`channels` must be a list of names"),
        ('channels = ["a\\u0007"]', "cannot be printed"),
        ('dtype = "int24"', "`dtype` must be one of 'int16'"),
        ("uv_per_digit = [1, 2]", "`uv_per_digit` must be a number, or one for each of 4"),
        ("uv_per_digit = 0", "gives no voltage"),
        ("uv_per_digit = nan", "gives no voltage"),
        ("zero_digit = inf", "`zero_digit` must be a number"),
        ('byte_order = "middle"', "`byte_order` must be one of 'little', 'big'"),
        ('layout = "rows"', "`layout` must be one of 'samples', 'channels'"),
        ('layout = "channels"', "`block_samples` must be a whole number"),
        ('layout = "channels"\nblock_samples = 5', "`counter` must be left out"),
        ("block_samples = 5", "`block_samples` must be left out"),
        ('counter = "int8"', "`counter` must be one of 'uint32', 'uint64'"),
        ("skip_bytes = -1", "`skip_bytes` must be a whole number from 0"),
        ("gain = 3", "'gain' is no key of a header"),
        ("sampling_rate_hz", "is not TOML"),
        ("# \xff", "is not UTF-8"),
    ],
)
def test_headers_that_are_wrong_are_refused(tmp_path: Path, line: str, problem: str) -> None:
    keys = [one.partition(" ")[0] for one in line.splitlines()]
    kept = [one for one in HEADER.splitlines() if one.partition(" ")[0] not in keys]
    path = tmp_path / "rig.toml"
    path.write_bytes("\n".join([*kept, line]).encode("latin-1"))
    with pytest.raises(InputError, match=problem) as refused:
        RawFormat.read(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("key", ["sampling_rate_hz", "channels", "dtype", "uv_per_digit"])
def test_what_a_header_must_say_is_missed(tmp_path: Path, key: str) -> None:
    kept = [one for one in HEADER.splitlines() if not one.startswith(key)]
    with pytest.raises(InputError, match=f"`{key}` must be .*, got nothing"):
        RawFormat.read(header(tmp_path, "\n".join(kept)))


def test_microvolts_need_no_step(tmp_path: Path) -> None:
    text = 'sampling_rate_hz = 1000\nchannels = 2\ndtype = "float32"'
    assert RawFormat.read(header(tmp_path, text)).uv_per_digit == (1.0, 1.0)


def test_a_header_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.toml: cannot be read"):
        open_source("-", header=tmp_path / "none.toml")
    with pytest.raises(InputError, match="standard input: say by `header`"):
        open_source("-")


def test_numbers_that_do_not_count_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "culture.raw"
    path.write_bytes(raw_frames(0, 100)[4:])
    source = open_source(path, header=header(tmp_path))
    with source, pytest.raises(InputError, match="do not count up"):
        list(source.read())


def test_numbers_begin_anew_after_their_largest_value(tmp_path: Path) -> None:
    path = tmp_path / "culture.raw"
    frames = np.zeros(100, [("number", "<u4"), ("values", "<i4", (N_CHANNELS,))])
    frames["number"] = np.arange(2**32 - 30, 2**32 + 70, dtype=np.uint64).astype(np.uint32)
    path.write_bytes(np.delete(frames, slice(50, 60)).tobytes())
    with open_source(path, header=header(tmp_path), waiting=SOON) as source:
        found = list(source.read())
    blocks = [(b.first_sample, b.stop_sample) for b in found if isinstance(b, Block)]
    notes = [n for n in found if isinstance(n, Note)]
    assert blocks == [(0, 50), (60, 100)]
    assert [n.n_samples for n in notes if n.kind == "gap"] == [10]
    assert "taken to have ended" in notes[-2].text
    assert notes[-1].kind == "gap"


def test_a_complete_file_is_replayed_with_its_gaps(tmp_path: Path) -> None:
    path = tmp_path / "culture.raw"
    path.write_bytes(raw_frames(500, 1000) + raw_frames(1700, 300))
    with open_source(path, header=header(tmp_path), speed="max") as source:
        found = list(source.read())
    blocks = [b for b in found if isinstance(b, Block)]
    assert [(b.first_sample, b.stop_sample) for b in blocks] == [(0, 1000), (1200, 1500)]
    assert blocks[-1].samples[0, 0] == 17_000


# --- writers


def test_a_file_that_grows_is_followed_while_its_writer_stalls_and_dies(tmp_path: Path) -> None:
    path = tmp_path / "culture.raw"
    path.touch()
    running = writing("raw", path, 1000, 60, wait=True)
    with running as writer, open_source(path, header=header(tmp_path), waiting=STALLING) as source:
        reading = Reading(source)
        reading.until(lambda r: r.n > 300)
        assert time.monotonic() - reading.blocks[-1].received_s < 1.0
        writer.send_signal(signal.SIGSTOP)
        reading.until(lambda r: "stopped" in r.kinds())
        n = reading.n
        writer.send_signal(signal.SIGCONT)
        reading.until(lambda r: "resumed" in r.kinds() and r.n > n + 300)
        writer.kill()
        writer.wait()
        n = path.stat().st_size // 20
        reading.until(lambda r: r.n == n and r.kinds()[-1] == "stopped")
    assert reading.kinds()[:2] == ["stopped", "resumed"]
    assert reading.numbers() == {k: k for k in range(n)}


def test_a_writer_that_begins_again_counts_anew(tmp_path: Path) -> None:
    path = tmp_path / "culture.raw"
    # Far enough that the numbers of the second writer cannot be late ones.
    path.write_bytes(raw_frames(0, 20_000))
    with open_source(path, header=header(tmp_path), waiting=STALLING) as source:
        reading = Reading(source)
        reading.until(lambda r: r.n == 20_000)
        with writing("raw", path, 1000, 60, wait=True):
            reading.until(lambda r: r.n > 20_200)
    clocks = [note for note in reading.notes if note.kind == "clock"]
    assert [note.at_s for note in clocks] == [20.0]
    assert clocks[0].n_samples > 0


@pytest.mark.parametrize("what", ["shorter", "another", "header"])
def test_a_file_that_is_no_longer_the_same_ends_the_source(tmp_path: Path, what: str) -> None:
    path, head = tmp_path / "culture.raw", header(tmp_path)
    path.write_bytes(raw_frames(0, 500))
    with open_source(path, header=head, waiting=Waiting()) as source:
        reading = Reading(source)
        reading.until(lambda r: r.n == 500)
        if what == "shorter":
            os.truncate(path, 100)
        elif what == "another":
            other = tmp_path / "other"
            other.write_bytes(raw_frames(0, 500))
            other.replace(path)
        else:
            head.write_text(HEADER.replace("1000", "2000"))
        reading.end(5.0)
    assert reading.kinds() == ["changed"]
    said = {"shorter": "shorter", "another": "another file", "header": "`sampling_rate_hz`"}
    assert said[what] in reading.notes[0].text


PIPED = """
import sys
from toptune.live import Note, open_source
from toptune.params import Waiting
waiting = Waiting(patience_s=0.2, stopped_after_s=0.3)
with open_source("-", header=sys.argv[1], waiting=waiting) as source:
    for one in source.read():
        if isinstance(one, Note):
            print("note", one.kind, one.n_samples, flush=True)
        else:
            print("block", one.first_sample, one.stop_sample, flush=True)
print("end")
"""


def test_standard_input_is_read_until_its_end(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PIPED, str(header(tmp_path))]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, cwd=ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(raw_frames(0, 30) + raw_frames(30, 1)[:7])
        process.stdin.flush()
        assert process.stdout.readline() == b"block 0 30\n"
        assert process.stdout.readline() == b"note stopped 0\n"
        process.stdin.write(raw_frames(30, 1)[7:] + raw_frames(1000, 500) + b"123")
        process.stdin.close()
        lines = process.stdout.read().decode().splitlines()
    assert lines == [
        "note resumed 0", "block 30 31", "note gap 969", "block 1000 1500", "note stopped 0", "end",
    ]  # fmt: skip
    assert process.returncode == 0


def test_a_named_pipe_is_read_like_standard_input(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with open_source(pipe, header=header(tmp_path), waiting=SOON) as source:
        reading = Reading(source)
        with pipe.open("wb") as file:
            file.write(raw_frames(0, 400))
        reading.end()
    assert reading.numbers() == {k: k for k in range(400)}


def test_a_source_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "culture.raw"
    path.write_bytes(raw_frames(0, 500))
    with open_source(path, header=header(tmp_path), waiting=SOON) as source:
        list(source.read())
        with pytest.raises(Exception, match="a source is read once"):
            list(source.read())


def test_a_reader_that_is_slow_gets_all_and_when_it_came(tmp_path: Path) -> None:
    path = tmp_path / "culture.raw"
    path.write_bytes(raw_frames(0, 70_000))
    with open_source(path, header=header(tmp_path), waiting=SOON) as source:
        got = iter(source.read())
        first = next(got)
        time.sleep(0.6)
        rest = list(got)
    assert isinstance(first, Block)
    blocks = [first, *(one for one in rest if isinstance(one, Block))]
    assert sum(b.samples.shape[1] for b in blocks) == 70_000
    # All came at once; only what was more than is kept waited for the reader.
    n_early = sum(b.samples.shape[1] for b in blocks if b.received_s < first.received_s + 0.5)
    assert 60_000 <= n_early < 70_000
