"""What several test files need."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
import typer
from hypothesis import settings
from results import Ran, Run
from s3 import Bucket, Server, found_in_environment, serving
from small_data import install_tiny_backbones

from toptune.cli.app import main
from toptune.recordings.mcs import McsRecording
from toptune.spikes import streaming

# Numba's first call is slow. Otherwise the profile is that of the place: where CI is set, examples
# are the same each time, so that a red run means a change and never a draw.
_PLACE = settings.get_profile(settings.get_current_profile_name())
settings.register_profile("toptune", _PLACE, deadline=None)
settings.load_profile("toptune")


@pytest.fixture(scope="session", autouse=True)
def _commands_built_once() -> Iterator[None]:
    """Typer builds all commands at each call, of which a program makes one and tests hundreds."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(typer.main, "get_command", cache(typer.main.get_command))
        yield


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """Products this small are slower on several threads, and very much so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny_backbones() -> Iterator[None]:
    """Let names that begin with ``tiny`` be networks of a few weights."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        install_tiny_backbones(monkeypatch)
        yield


@pytest.fixture
def detected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the recordings whose spikes are detected from here on."""
    names: list[str] = []
    real = streaming.detect_recording

    def counting(recording: McsRecording, *args: Any, **kwargs: Any) -> Any:
        names.append(recording.path.name)
        return real(recording, *args, **kwargs)

    monkeypatch.setattr(streaming, "detect_recording", counting)
    return names


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `toptune ARGUMENTS` in this process."""

    def call(*arguments: object) -> Ran:
        monkeypatch.setattr("sys.argv", ["toptune", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        code = stop.value.code
        return Ran(code if isinstance(code, int) else int(code is not None), *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    """An S3 server on the loopback interface, which `bucket` and `found_in_environment` use."""
    with serving() as server:
        yield server


@pytest.fixture
def bucket(s3_server: Server) -> Iterator[Bucket]:
    """An empty bucket, which this process finds by its environment; no faults are left."""
    s3_server.faults()
    with found_in_environment(s3_server):
        yield s3_server.bucket()
    s3_server.faults()


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system on which no file can be locked."""
    fcntl = pytest.importorskip("fcntl", reason="fcntl: not on this system")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
