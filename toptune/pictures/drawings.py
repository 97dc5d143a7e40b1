"""What draws a recording on the device where its pictures are described.

What enters: the spikes of one recording, then window and picture parameters, a size in pixels and a
device. What leaves: a `Drawer` on the CPU, a `Renderer` on CUDA; both draw the same pictures.
"""

from __future__ import annotations

import torch

from toptune.machine.cuda_launch import cupy_launch
from toptune.params import Picture, Windows
from toptune.pictures.bins import BinnedSpikes
from toptune.pictures.drawer import Drawer
from toptune.pictures.drawer_cuda import PlacedSpikes, Renderer, ResidentSpikes
from toptune.recordings.trains import SpikeTrains


class Drawings:
    """What draws one recording, on any device; spikes in bins of one length are shared.

    Parameters
    ----------
    trains
        The recording's spikes.
    resident
        The same on the current GPU, where they were found there.
    """

    def __init__(self, trains: SpikeTrains, resident: ResidentSpikes | None = None) -> None:
        self._trains = trains
        self._resident = resident
        self._binned: dict[float, BinnedSpikes] = {}
        self._placed: dict[tuple[str, float], PlacedSpikes] = {}

    def drawer(
        self, windows: Windows, picture: Picture, size: int, device: str
    ) -> Drawer | Renderer:
        """Give what draws windows where they are described.

        Parameters
        ----------
        windows, picture
            What is drawn.
        size
            Side of the pictures in pixels.
        device
            ``cpu``, or ``cuda`` with or without an index.

        Raises
        ------
        InputError
            A spike lies outside the recording or on a channel it does not have.
        ToptuneError
            CuPy, which launches the kernels on CUDA, is not installed.
        """
        if device == "cpu":
            return self._on_cpu(windows, picture, size)
        return self._on_cuda(windows, picture, size, device)

    def _on_cpu(self, windows: Windows, picture: Picture, size: int) -> Drawer:
        bin_ms = windows.bin_ms
        if bin_ms not in self._binned:
            self._binned[bin_ms] = BinnedSpikes(self._trains, bin_ms, "cpu")
        return Drawer(self._trains, windows, picture, size, "cpu", self._binned[bin_ms])

    def _on_cuda(self, windows: Windows, picture: Picture, size: int, device: str) -> Renderer:
        key = (device, windows.bin_ms)
        if key not in self._placed:
            index = torch.device(device).index
            index = torch.cuda.current_device() if index is None else index
            target = torch.device("cuda", index)
            resident = self._resident
            if resident is not None and resident.sample.device != target:
                resident = None
            self._placed[key] = PlacedSpikes(
                self._trains, key[1], target, cupy_launch("render.cu", index), resident
            )
        return Renderer(self._placed[key], windows, picture, size)
