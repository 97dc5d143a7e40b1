"""Features of pictures: windows of a recording, drawn and described by a frozen network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.features.extractor import PendingFeatures
from toptune.machine.installation import require_networks
from toptune.params import Backbone, Compute, Picture, Windows
from toptune.recordings.trains import SpikeTrains

if TYPE_CHECKING:
    import torch

    from toptune.backbones.engine import FeatureEngine
    from toptune.backbones.loading import LoadedBackbone
    from toptune.pictures.drawers import Drawers

# Pictures of variants that are described at a time: enough to fill every thread of the engine.
_PICTURES_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class BackboneIdentity:
    """Which network described the pictures: equal identity, equal features."""

    name: str  # as asked for
    weights: str  # imagenet, random or a file's name
    sha256: str  # of the weights
    mean: tuple[float, ...]  # with std the normalisation of the three colour channels
    std: tuple[float, ...]
    input_size: int  # side of the pictures in pixels

    @classmethod
    def of(cls, loaded: LoadedBackbone, params: Backbone) -> BackboneIdentity:
        """Identify a loaded network; a file goes by its name and sha256, wherever it lies."""
        return cls(
            name=loaded.name,
            weights=Path(params.weights).name,
            sha256=loaded.weights_sha256,
            mean=tuple(loaded.mean),
            std=tuple(loaded.std),
            input_size=loaded.input_size,
        )


@dataclass(frozen=True, kw_only=True)
class PictureFeatureParams:
    """All that decides the features of pictures, given a recording's spikes."""

    windows: Windows
    picture: Picture
    backbone: BackboneIdentity

    def to_json(self) -> dict[str, Any]:
        """Plain values, as a feature set's `params` in the store."""
        b = self.backbone
        return {
            "windows": self.windows.to_json(),
            "picture": self.picture.to_json(),
            "backbone": asdict(b) | {"mean": list(b.mean), "std": list(b.std)},
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PictureFeatureParams:
        """Build from what `to_json` gave; a missing or unknown name is an error."""
        b = dict(values["backbone"])
        b |= {name: tuple(b[name]) for name in ("mean", "std")}
        parts = {
            "windows": Windows.from_json(values["windows"]),
            "picture": Picture.from_json(values["picture"]),
            "backbone": BackboneIdentity(**b),
        }
        made = cls(**{**values, **parts})
        if made.to_json() != values:
            raise InputError(f"the parameters of a feature set are not complete: {values}")
        return made

    def with_windows(self, windows: Windows) -> PictureFeatureParams:
        """Describe other windows in the same way."""
        return replace(self, windows=windows)

    def extractor(self, engine_of: Callable[[BackboneIdentity], FeatureEngine]) -> PictureExtractor:
        """Make what draws and describes such pictures."""
        return PictureExtractor(self.windows, self.picture, engine_of(self.backbone))


def load_engine(backbone: Backbone, compute: Compute) -> FeatureEngine:
    """Load a backbone; it is compiled when first needed.

    An unknown backbone, a device that is not there, a precision that it does not have, or weights
    that do not fit are an `InputError`.
    """
    require_networks("drawing pictures and describing them by a network")
    from toptune.backbones import loading
    from toptune.backbones.engine import resolve_precision
    from toptune.machine.device import torch_device

    device = torch_device(compute.device)
    resolve_precision(compute.precision, device)  # before weights are loaded
    return engine_for(loading.load_backbone(backbone), compute, device)


def engine_for(loaded: LoadedBackbone, compute: Compute, device: str) -> FeatureEngine:
    """Make the engine of a loaded backbone, on a device that `torch_device` gave."""
    from toptune.backbones.engine import FeatureEngine

    return FeatureEngine(
        loaded, device, compute.batch_size, compute.n_jobs, precision=compute.precision
    )


class PictureExtractor:
    """Draws and describes the windows of any recording's spikes; extractors may share an engine."""

    stage = "features"

    def __init__(self, windows: Windows, picture: Picture, engine: FeatureEngine) -> None:
        self.windows = windows
        self.picture = picture
        self.engine = engine

    @property
    def n_columns(self) -> int:
        """Columns of a row."""
        return self.engine.n_features

    def n_steps(self, trains: SpikeTrains) -> int:
        """How many windows a recording has."""
        from toptune.recordings.windows import window_starts

        return len(window_starts(trains, self.windows).start_s)

    def start(self, drawers: Drawers, count: Callable[[int], object]) -> PendingFeatures:
        """Start to draw and describe all windows; see `start_features`."""
        engine = self.engine
        drawer = drawers.drawer(self.windows, self.picture, engine.input_size, str(engine.device))
        if not len(drawer):  # no window, so that the network need not be compiled
            none = np.empty((0, engine.n_features), np.float32)
            return PendingFeatures(drawer.start_s, lambda: none)
        return PendingFeatures(drawer.start_s, engine.start(drawer, count))

    def extract_variants(
        self,
        trains: SpikeTrains,
        variants: Iterable[tuple[SpikeTrains, Sequence[int]]],
        n_rows: int,
    ) -> Iterator[NDArray[np.float32]]:
        """Draw and describe some windows of variants of a recording, 64 or more at a time."""
        import torch

        picture = self.picture
        if picture.count_axis == "recording":
            # The recording's own axis, which stays where it is when spikes are taken away.
            from toptune.pictures.drawer import largest_count

            top = largest_count(trains, self.windows.bin_ms)
            picture = replace(picture, count_axis=float(max(1, top)))
        waiting: list[torch.Tensor] = []
        left = n_rows
        for variant, rows in variants:
            waiting.append(self._draw(variant, rows, picture))
            n_waiting = sum(map(len, waiting))
            if n_waiting < min(_PICTURES_AT_ONCE, left):
                continue
            yield self.engine.features(torch.cat(waiting))
            left -= n_waiting
            waiting = []

    def picture_of(self, trains: SpikeTrains, row: int) -> tuple[Picture, NDArray[np.float32]]:
        """Draw a window as the network sees it, (S, S) in [0, 1], and say how it is drawn."""
        (grey,) = self._draw(trains, [row], self.picture).cpu().numpy()
        return self.picture, grey

    def _draw(self, trains: SpikeTrains, rows: Sequence[int], picture: Picture) -> torch.Tensor:
        """Draw some windows of a recording, (rows, S, S) float32."""
        import torch

        from toptune.pictures.drawer import Drawer

        engine = self.engine
        drawer = Drawer(trains, self.windows, picture, engine.input_size, str(engine.device))
        return torch.cat([drawer.draw(row, row + 1) for row in rows])
