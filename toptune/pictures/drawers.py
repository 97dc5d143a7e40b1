"""The drawers of one recording, made when they are first needed, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toptune.machine.installation import require_networks
from toptune.params import Picture, Windows
from toptune.recordings.trains import SpikeTrains

if TYPE_CHECKING:
    from toptune.pictures.bins import BinnedSpikes
    from toptune.pictures.drawer import Drawer
    from toptune.pictures.drawer_cuda import CudaBinnedSpikes, CudaDrawer, ResidentSpikes


class Drawers:
    """The drawers of one recording, on any device; those of one bin length share binned spikes.

    Parameters
    ----------
    trains
        The recording's spikes.
    resident
        The same spikes on the current GPU, if they were detected there.
    """

    def __init__(self, trains: SpikeTrains, resident: ResidentSpikes | None = None) -> None:
        self.trains = trains
        self._resident = resident
        self._binned: dict[float, BinnedSpikes] = {}
        self._binned_on_cuda: dict[tuple[str, float], CudaBinnedSpikes] = {}

    def drawer(
        self, windows: Windows, picture: Picture, size: int, device: str
    ) -> Drawer | CudaDrawer:
        """Return the drawer of some windows on the device where their features are computed.

        On CUDA, histograms and rasters are drawn by kernels; pictures made of cells, which the CPU
        computes, are enlarged there.

        Parameters
        ----------
        windows, picture
            Which windows, and how they are drawn.
        size
            Side of the pictures in pixels.
        device
            ``cpu``, or ``cuda`` with or without an index.

        Raises
        ------
        InputError
            A spike lies outside the recording or on a channel it does not have.
        ToptuneError
            CuPy, which launches CUDA kernels, or torch is not installed.
        """
        # Only now: spikes and burst parameters do without torch.
        require_networks("drawing windows as pictures")
        from toptune.pictures.bins import BinnedSpikes
        from toptune.pictures.cells import KINDS
        from toptune.pictures.drawer import Drawer

        if device != "cpu" and picture.kind not in KINDS:
            return self._on_cuda(windows, picture, size, device)
        bin_ms = windows.bin_ms
        if bin_ms not in self._binned:
            self._binned[bin_ms] = BinnedSpikes(self.trains, bin_ms, "cpu")
        return Drawer(self.trains, windows, picture, size, device, self._binned[bin_ms])

    def _on_cuda(self, windows: Windows, picture: Picture, size: int, device: str) -> CudaDrawer:
        import torch

        from toptune.machine.cuda import torch_kernels
        from toptune.pictures.drawer_cuda import CudaBinnedSpikes, CudaDrawer

        key = (device, windows.bin_ms)
        if key not in self._binned_on_cuda:
            index = torch.device(device).index
            index = torch.cuda.current_device() if index is None else index
            target = torch.device("cuda", index)
            resident = self._resident
            if resident is not None and resident.sample.device != target:
                resident = None
            self._binned_on_cuda[key] = CudaBinnedSpikes(
                self.trains, key[1], target, torch_kernels("render", index).launch, resident
            )
        return CudaDrawer(self._binned_on_cuda[key], windows, picture, size)
