"""Pictures of sliding windows: histograms, raster plots, intervals between spikes, correlations.

Spikes of a recording and the parameters of windows and pictures enter; square pictures leave, as
torch tensors on the CPU or a GPU. `Drawers` picks the drawer for a device, and shares binned spikes
between pictures. `draw_thumbnails` draws a whole recording for reports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toptune.machine.lazy import lazy_names

if TYPE_CHECKING:
    from toptune.pictures.bins import BinnedSpikes
    from toptune.pictures.drawer import Drawer
    from toptune.pictures.drawer_cuda import CudaDrawer, ResidentSpikes
    from toptune.pictures.drawers import Drawers
    from toptune.pictures.thumbnails import Thumbnails, draw_thumbnails
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "bins": ("BinnedSpikes",),
            "drawer": ("Drawer",),
            "drawers": ("Drawers",),
            "drawer_cuda": ("CudaDrawer", "ResidentSpikes"),
            "thumbnails": ("Thumbnails", "draw_thumbnails"),
        },
    )

__all__ = [
    "BinnedSpikes", "CudaDrawer", "Drawer", "Drawers", "ResidentSpikes", "Thumbnails",
    "draw_thumbnails",
]  # fmt: skip
