"""Where which drawer is taken, and what several of one recording share."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from pictures.test_drawer import make_trains

from toptune.machine import cuda
from toptune.params import Picture, Windows
from toptune.pictures import drawer_cuda
from toptune.pictures.drawer import Drawer, Drawers
from toptune.pictures.drawer_cuda import CudaBinnedSpikes, ResidentSpikes
from toptune.recordings.trains import SpikeTrains

WINDOWS = Windows(width_s=0.1, stride_s=0.1)
TRAINS = make_trains([5, 7], [0, 1], n_channels=2, rate_hz=1000, lengths=[300])


def test_the_cpu_draws_by_drawers_that_share_bins() -> None:
    made = Drawers(TRAINS)
    drawers = [
        made.drawer(WINDOWS, Picture.from_json({"kind": kind}), 8, "cpu")
        for kind in ("histogram", "raster")
    ]
    for kind, drawer in zip(("histogram", "raster"), drawers, strict=True):
        alone = Drawer(TRAINS, WINDOWS, Picture.from_json({"kind": kind}), 8)
        assert torch.equal(drawer.draw(0, 3), alone.draw(0, 3))


def launch_nothing(_kernel: str, _threads: int, *_arguments: torch.Tensor | int | float) -> None:
    pass


@pytest.mark.parametrize(("device", "index"), [("cuda", 2), ("cuda:1", 1)])
def test_cuda_draws_by_kernels_on_the_device_that_is_meant_from_spikes_placed_once(
    monkeypatch: pytest.MonkeyPatch, device: str, index: int
) -> None:
    placed: list[tuple[float, torch.device, int]] = []

    class Placing(CudaBinnedSpikes):
        """Places on the CPU, and notes where it should have."""

        def __init__(
            self,
            trains: SpikeTrains,
            bin_ms: float,
            device: torch.device,
            launch: int,
            resident: ResidentSpikes | None,
        ) -> None:
            # Those on another device than the pictures' are not of use there.
            assert resident is None
            placed.append((bin_ms, device, launch))
            super().__init__(trains, bin_ms, torch.device("cpu"), launch_nothing)

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    kernels = {k: SimpleNamespace(launch=k) for k in (1, 2)}
    monkeypatch.setattr(cuda, "torch_kernels", lambda _source, where: kernels[where])
    monkeypatch.setattr(drawer_cuda, "CudaBinnedSpikes", Placing)
    spikes = TRAINS.spikes
    elsewhere = ResidentSpikes(torch.tensor(spikes.sample), torch.tensor(spikes.channel))
    made = Drawers(TRAINS, elsewhere)
    for bin_ms in (10.0, 10.0, 20.0):
        windows = Windows(width_s=0.1, stride_s=0.1, bin_ms=bin_ms)
        assert len(made.drawer(windows, Picture(), 8, device)) == 3
    assert placed == [(b, torch.device("cuda", index), index) for b in (10.0, 20.0)]
