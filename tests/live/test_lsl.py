"""A stream of the Lab Streaming Layer from another process, on this machine alone."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import needs
import pytest
from live_processes import Reading, writing

from toptune.errors import InputError
from toptune.live import lsl, open_source
from toptune.params import Waiting

needs.package("pylsl")
pylsl = import_module("pylsl")

# No multicast: streams are looked for on this machine only.
CONFIGURATION = """
[log]
level = -2
[ports]
IPv6 = disable
[multicast]
ResolveScope = machine
[lab]
KnownPeers = {127.0.0.1}
SessionID = %s
"""
SOON = Waiting(stopped_after_s=0.4, end_after_s=10.0)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The library reads its configuration once in a process: all tests have the same."""
    path = tmp_path_factory.mktemp("lsl") / "lsl_api.cfg"
    path.write_text(CONFIGURATION % path.parent.name)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("LSLAPICFG", str(path))
        yield str(path)


def test_a_name_that_is_not_there_is_refused_with_those_that_are(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lsl, "_FIND_S", 0.1)
    refused = pytest.raises(InputError, match=r"no stream of the name 'absent'.*'lsl:present'")
    with writing("lsl", config, "present", 1000, 30, wait=True), refused:
        open_source("lsl:absent")


def test_samples_come_in_order_from_when_the_stream_is_opened(config: str) -> None:
    writer = writing("lsl", config, "rig", 2000, 1.0, wait=True)
    with writer as process, open_source("lsl:rig", waiting=SOON) as source:
        assert source.info.channel_labels == ("E0", "E1", "E2", "E3")
        assert source.info.sampling_rate_hz == 2000.0
        assert source.info.name == "lsl:rig"
        # All is sent before any of it is read.
        process.wait(20)
        reading = Reading(source)
        reading.until(lambda r: r.n >= 2000)
    assert reading.numbers() == {k: k for k in range(2000)}
    assert set(reading.kinds()) <= {"stopped"}


def test_a_sender_that_stalls_loses_nothing(config: str) -> None:
    with open_after(config, "stalls", 2000) as (writer, reading):
        writer.send_signal(signal.SIGSTOP)
        reading.until(lambda r: "stopped" in r.kinds())
        n = reading.n
        writer.send_signal(signal.SIGCONT)
        reading.until(lambda r: r.n > n + 2000)
    assert reading.kinds()[:2] == ["stopped", "resumed"]
    assert reading.numbers() == {k: k for k in range(reading.n)}


def test_a_sender_that_is_killed_and_started_again_goes_on_after_a_gap(config: str) -> None:
    with open_after(config, "again", 2000) as (writer, reading):
        writer.kill()
        reading.until(lambda r: "stopped" in r.kinds())
        n = reading.n
        with writing("lsl", config, "again", 2000, 60, wait=True):
            reading.until(lambda r: r.n > n + 1000)
    gap = next(note for note in reading.notes if note.kind == "gap")
    assert "resumed" in reading.kinds()
    assert gap.n_samples > 0.3 * 2000
    numbers = reading.numbers()
    # The second sender counts from 0: each of its places is as far off.
    resumed = gap.n_samples + n
    assert {numbers[place] - place for place in numbers if place >= resumed} == {-resumed}


def test_a_stream_that_comes_back_as_another_ends_the_source(config: str) -> None:
    with open_after(config, "other", 2000) as (writer, reading):
        writer.kill()
        with writing("lsl", config, "other", 2000, 60, 5, wait=True):
            reading.end()
    assert reading.kinds()[-1] == "changed"
    assert "5 channels" in reading.notes[-1].text


class open_after:  # noqa: N801  # reads as a function in a with statement
    """A stream that has begun to be read."""

    def __init__(self, config: str, name: str, rate: float) -> None:
        self._writing = writing("lsl", config, name, rate, 60, wait=True)
        self._name = name

    def __enter__(self) -> tuple[subprocess.Popen[str], Reading]:
        writer = self._writing.__enter__()
        self._source = open_source(f"lsl:{self._name}", waiting=Waiting(stopped_after_s=0.4))
        reading = Reading(self._source)
        reading.until(lambda r: r.n > 500)
        return writer, reading

    def __exit__(self, *error: Any) -> None:
        self._source.close()
        self._writing.__exit__(*error)


class Inlet:
    """What a stream says of itself, without a stream."""

    def __init__(self, rate: float, kind: str, unit: str, labels: tuple[str, ...]) -> None:
        self._info = pylsl.StreamInfo("rig", "ephys", len(labels), rate, kind, "rig")
        channels = self._info.desc().append_child("channels")
        for label in labels:
            channel = channels.append_child("channel")
            channel.append_child_value("label", label)
            channel.append_child_value("unit", unit)

    def info(self, _timeout: float) -> Any:
        return self._info


@pytest.mark.parametrize(
    ("rate", "kind", "unit", "problem"),
    [
        (0.0, "float32", "microvolts", "no regular sampling rate"),
        (10.0, "string", "microvolts", "sends texts"),
        (10.0, "float32", "degrees", "channel a is in 'degrees'"),
        (10.0, "int16", "", "does not say their unit"),
    ],
)
@pytest.mark.usefixtures("config")
def test_streams_that_are_no_voltage_are_refused(
    rate: float, kind: str, unit: str, problem: str
) -> None:
    with pytest.raises(InputError, match=f"^lsl:rig: .*{problem}"):
        lsl._described(Inlet(rate, kind, unit, ("a", "b")), "lsl:rig", pylsl)


@pytest.mark.parametrize(
    ("kind", "unit", "gain_uv"),
    [
        ("float32", "microvolts", 1),
        ("double64", "V", 1e6),
        ("int16", "uV", 1),
        ("int32", "mV", 1e3),
    ],
)
@pytest.mark.usefixtures("config")
def test_units_become_microvolts(kind: str, unit: str, gain_uv: float) -> None:
    found = lsl._described(Inlet(10.0, kind, unit, ("a", "b")), "lsl:rig", pylsl)
    assert found.labels == ("a", "b")
    assert found.gain_uv.tolist() == [gain_uv, gain_uv]
    assert found.assumed == ()


@pytest.mark.parametrize(
    ("rate", "unit", "labels", "said"),
    [
        (10.0, "uV", ("a", "b"), ""),
        (20.0, "uV", ("a", "b"), "at 20 Hz now, not at 10 Hz"),
        (10.0, "uV", ("a", "b", "c"), "3 channels now, not 2"),
        (10.0, "uV", ("b", "a"), "other names or units"),
        (10.0, "mV", ("a", "b"), "other names or units"),
    ],
)
@pytest.mark.usefixtures("config")
def test_what_has_changed_is_said(
    rate: float, unit: str, labels: tuple[str, ...], said: str
) -> None:
    before, now = (
        lsl._described(Inlet(*about), "lsl:rig", pylsl)
        for about in ((10.0, "float32", "uV", ("a", "b")), (rate, "float32", unit, labels))
    )
    found = lsl._difference(before, now)
    assert said in found
    assert bool(said) == bool(found)


@pytest.mark.usefixtures("config")
def test_what_a_stream_does_not_say_is_assumed_and_told() -> None:
    found = lsl._described(Inlet(10.0, "float32", "", ("a", "a")), "lsl:rig", pylsl)
    assert found.labels == ("1", "2")
    assert found.gain_uv.tolist() == [1, 1]
    assert [text.rpartition(": ")[2] for text in found.assumed] == [
        "they are numbered", "microvolts are assumed",
    ]  # fmt: skip


def test_what_does_not_apply_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`speed` does not apply"):
        open_source("lsl:rig", speed=1.0)
    with pytest.raises(InputError, match="`header` does not apply"):
        open_source("lsl:rig", header=tmp_path / "x.toml")
