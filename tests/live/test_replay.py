"""A recording replayed gives its own samples, gaps and times, at the speed that was asked for."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from array_recording import ArrayRecording

from toptune.errors import InputError
from toptune.live import Block, Note, open_source
from toptune.live.replay import Replay, Speed
from toptune.recordings.mcs_writer import McsChannel, McsStream, McsWriter
from toptune.recordings.trains import Segment

RATE_HZ = 1000.0


def recording(n: int = 3000, gaps: tuple[Segment, ...] | None = None) -> ArrayRecording:
    samples = np.random.default_rng(1).normal(0, 5, (3, n)).astype(np.float32)
    return ArrayRecording(samples, RATE_HZ, gaps, Path("culture.h5"))


def split(source: Replay) -> tuple[list[Block], list[Note]]:
    found = list(source.read())
    return [b for b in found if isinstance(b, Block)], [n for n in found if isinstance(n, Note)]


@pytest.mark.parametrize("speed", ["max", 50.0])
def test_all_samples_come_once_and_in_order(speed: Speed) -> None:
    whole = recording()
    with Replay(whole, speed=speed) as source:
        blocks, notes = split(source)
    assert notes == []
    assert [b.first_sample for b in blocks[1:]] == [b.stop_sample for b in blocks[:-1]]
    np.testing.assert_array_equal(
        np.concatenate([b.samples for b in blocks], axis=1), whole.samples_uv
    )
    assert source.info.n_samples == 3000
    assert source.info.channel_labels == ("0", "1", "2")


def test_gaps_of_the_recording_are_gaps_of_the_source() -> None:
    gaps = (Segment(0, 1000, 0.0), Segment(1000, 500, 1.0), Segment(1500, 1500, 2.5004))
    with Replay(recording(gaps=gaps), speed="max") as source:
        blocks, notes = split(source)
    assert [(b.first_sample, b.begins_s) for b in blocks] == [
        (0, None), (1000, 1.0), (2500, 2.5004), (3500, None),
    ]  # fmt: skip
    assert [(n.kind, n.n_samples, n.at_s) for n in notes] == [("gap", 1000, 1.5)]


def test_a_speed_is_kept_and_a_slow_reader_is_told_when_samples_were_due() -> None:
    begun_s = time.monotonic()
    with Replay(recording(2000), speed=4.0) as source:
        blocks = [b for b in source.read() if isinstance(b, Block)]
        took_s = time.monotonic() - begun_s
    assert 0.5 <= took_s < 2.0
    with Replay(recording(2000), speed=4.0) as source:
        late = iter(source.read())
        next(late)
        time.sleep(0.7)
        rest = [b for b in late if isinstance(b, Block)]
    # All was due long before it was asked for.
    spread_s = rest[-1].received_s - rest[0].received_s
    assert spread_s == pytest.approx(blocks[-1].received_s - blocks[1].received_s, abs=0.01)
    assert time.monotonic() - rest[-1].received_s > 0.2


def test_closing_ends_a_wait() -> None:
    source = Replay(recording(), speed=0.01)
    blocks = source.read()
    source.close()
    begun_s = time.monotonic()
    assert list(blocks) == []
    assert time.monotonic() - begun_s < 1.0


@pytest.mark.parametrize("speed", [0.0, -1.0, float("inf"), float("nan")])
def test_a_speed_that_is_none_is_refused(speed: float) -> None:
    with pytest.raises(InputError, match="`speed` must be above 0"):
        Replay(recording(), speed=speed)


def test_files_are_opened_by_their_content(tmp_path: Path) -> None:
    path = tmp_path / "culture.h5"
    counts = np.arange(400, dtype=np.int32).reshape(2, 200)
    with McsWriter(path) as writer:
        channels = tuple(McsChannel(label=f"E{k}", channel_id=k) for k in range(2))
        raw = McsStream(label="Electrode Raw Data", channels=channels)
        writer.add_recording().add_stream(raw).write(counts)
    with open_source(path, speed="max") as source:
        (block,) = source.read()
    assert isinstance(block, Block)
    np.testing.assert_allclose(block.samples, counts * 59605e-6, rtol=1e-6)
    assert source.info.name == "culture.h5"
    assert open_source(source) is source


def test_spikes_are_no_source(tmp_path: Path) -> None:
    path = tmp_path / "spikes.csv"
    path.write_text("time_s,channel\n0.5,A\n")
    with pytest.raises(InputError, match="holds spikes and no voltage"):
        open_source(path)
