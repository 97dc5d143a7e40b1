"""Which device finds the spikes: the one that the user names, for every command."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from cuda_on_cpu import HostAccelerator, Launch
from results import Run
from small_data import write_data_set, write_mcs

from toptune.errors import InputError
from toptune.machine import cuda
from toptune.params import SpikeSettings
from toptune.recordings.spike_npz import read_npz, write_npz
from toptune.spikes.finding import find_spikes
from toptune.spikes.ptsd_cuda import PTSD_SHAPES

pytestmark = pytest.mark.usefixtures("one_torch_thread", "tiny_backbones")


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> HostAccelerator:
    made = HostAccelerator(tmp_path_factory.mktemp("finding"))
    made.how = Launch(2, 64)
    return made


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mcs(tmp_path_factory.mktemp("recording") / "a.h5", seed=4)


def test_a_gpu_finds_the_spikes_of_the_cpu_and_keeps_them(
    recording: Path, device: HostAccelerator
) -> None:
    stages: list[tuple[str, int, int]] = []
    on_cpu = find_spikes(recording, SpikeSettings(), stage=lambda *_: None)
    on_gpu = find_spikes(
        recording, SpikeSettings(), device=device, stage=lambda *now: stages.append(now)
    )
    assert on_cpu.trains.spikes.sample.size > 100
    for got, expected in zip(on_gpu.trains.spikes, on_cpu.trains.spikes, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert (on_gpu.kind, on_gpu.stream) == (on_cpu.kind, on_cpu.stream)
    assert stages[-1] == ("spikes", 80_000, 80_000)
    assert on_cpu.on_device is None
    assert on_gpu.on_device is not None
    np.testing.assert_array_equal(on_gpu.on_device.sample, on_cpu.trains.spikes.sample)


def test_spikes_of_a_file_need_no_gpu(
    recording: Path, device: HostAccelerator, tmp_path: Path
) -> None:
    trains = find_spikes(recording, SpikeSettings(), stage=lambda *_: None).trains
    write_npz(trains, tmp_path / "s.npz")
    found = find_spikes(tmp_path / "s.npz", SpikeSettings(), device=device, stage=lambda *_: None)
    assert found.on_device is None
    assert found.trains.spikes.sample.size == trains.spikes.sample.size


def test_detect_and_inspect_work_where_they_are_told_to(
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    recording: Path,
    device: HostAccelerator,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(cuda, "open_cuda", lambda: device)
    launched = device.kernels("ptsd", **PTSD_SHAPES).launched
    found = []
    for word in ("cuda", "cpu"):
        launched.clear()
        out = tmp_path / f"{word}.npz"
        assert run("detect", recording, "-o", out, "--device", word).code == 0
        assert bool(launched) == (word == "cuda")
        found.append(read_npz(out).spikes)
    np.testing.assert_array_equal(found[0].sample, found[1].sample)
    launched.clear()
    ran = run("inspect", recording, "--device", "cuda", "--json")
    assert ran.code == 0
    assert launched
    assert json.loads(ran.out)["n_spikes"] == found[1].sample.size


def test_extract_finds_spikes_where_it_is_told_to(
    monkeypatch: pytest.MonkeyPatch, run: Run, device: HostAccelerator, tmp_path: Path
) -> None:
    # torch stays on the processor: only the spikes are looked at.
    monkeypatch.setattr("toptune.machine.device.torch_device", lambda _: "cpu")
    monkeypatch.setattr(cuda, "open_cuda", lambda: device)
    devices = write_data_set(tmp_path)
    kernels = device.kernels("ptsd", **PTSD_SHAPES)
    tiny = ("--window-s", "2", "--backbone", "tiny", "--weights", "random")
    for word in ("cpu", "cuda"):
        kernels.launched.clear()
        store = tmp_path / f"{word}.zarr"
        arguments = ("extract", devices, "--store", store, "--device", word, *tiny)
        assert run(*arguments).code == 0
        assert bool(kernels.launched) == (word == "cuda")


@pytest.mark.parametrize("command", ["detect", "inspect", "extract"])
def test_a_missing_gpu_ends_every_command_with_one_line_and_no_file(
    monkeypatch: pytest.MonkeyPatch, run: Run, recording: Path, tmp_path: Path, command: str
) -> None:
    def refuse() -> None:
        raise InputError("spikes on a GPU need CuPy: pip install toptune[gpu]")

    monkeypatch.setattr(cuda, "open_cuda", refuse)
    folder = tmp_path / "data"
    folder.mkdir()
    rest = {
        "detect": (recording, "-o", tmp_path / "s.npz"),
        "inspect": (recording, "--png", tmp_path / "s.png"),
        "extract": (write_data_set(folder), "--store", tmp_path / "s.zarr"),
    }
    told = "error: spikes on a GPU need CuPy: pip install toptune[gpu]\n"
    ran = run(command, *rest[command], "--device", "cuda")
    assert (ran.code, ran.err) == (2, told)
    # What is known of the recording all the same.
    assert ("sampling_rate_hz" in ran.out) == (command == "inspect")
    assert not list(tmp_path.glob("s.*"))


def test_what_detect_writes_of_a_recording_with_a_dead_channel_is_read_again(
    tmp_path: Path, run: Run
) -> None:
    recording, out = write_mcs(tmp_path / "a.h5", seed=4), tmp_path / "a.npz"
    with h5py.File(recording, "r+") as file:
        file["Data/Recording_0/AnalogStream/Stream_0/ChannelData"][2] = 0
    assert run("detect", recording, "-o", out).code == 0
    assert read_npz(out).threshold_uv[2] == np.inf
    channels = json.loads(run("inspect", out, "--json").out)["channels"]
    assert [c["threshold_uv"] is None for c in channels] == [False, False, True, False]
