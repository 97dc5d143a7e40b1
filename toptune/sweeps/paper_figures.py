"""Accuracies that the paper reports, for comparison.

Pastore et al., "An efficient deep learning approach to identify dynamics in in vitro neural
networks": 32 devices of five ratios of excitatory to inhibitory neurons, the paper's network, each
device left out once. Only those figures are listed that are known from the paper's text.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from toptune.sweeps.grid import PictureView

SOURCE = (
    "Pastore et al., An efficient deep learning approach to identify dynamics in in vitro neural"
    " networks; their 64-unit network on their recordings. Empty cells: not known here."
)
ENDS = frozenset({"100E0I", "0E100I"})
MIXED = frozenset({"75E25I", "50E50I", "25E75I"})


class PaperFigures(NamedTuple):
    """Accuracies the paper reports.

    Attributes
    ----------
    window_mean, window_sd : float
        Per picture, mean and SD over the devices.
    device : float
        Per device.
    """

    window_mean: float
    window_sd: float
    device: float


_FIVE = {("histogram", 120.0, 5.0, "efficientnet_b0"): PaperFigures(0.747, 0.353, 0.813)}
_MERGED = {("histogram", 120.0, 5.0, "efficientnet_b0"): PaperFigures(0.957, 0.175, 0.969)}


def paper_figures(
    view: PictureView, classes: Collection[str], merges: Collection[Collection[str]]
) -> PaperFigures | None:
    """Give what the paper reports of a view; None where that is not known here.

    Parameters
    ----------
    view
        What is drawn and what describes it.
    classes
        As trained on.
    merges
        The classes of each merge.
    """
    kind = (
        view.picture.kind,
        view.windows.width_s,
        view.windows.stride_s,
        view.backbone.name,
    )
    # The paper's plotting program sets each picture's own axis.
    drawn_alike = view.picture.count_axis == "window"
    return (_figures(classes, merges) or {}).get(kind) if drawn_alike else None


def _figures(
    classes: Collection[str], merges: Collection[Collection[str]]
) -> dict[tuple[str, float, float, str], PaperFigures] | None:
    if set(classes) == ENDS | MIXED and not merges:
        return _FIVE
    merged_mixed = [frozenset(members) for members in merges] == [MIXED]
    return _MERGED if merged_mixed and set(classes) > ENDS and len(classes) == 3 else None
