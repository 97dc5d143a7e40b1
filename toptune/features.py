"""Describe pictures with a frozen backbone.

What enters: pictures (n, S, S), float32 in [0, 1], on the engine's device, and a loaded backbone.
What leaves: features (n, d), float32, in main memory. The device decides what computes them:
OpenVINO on the CPU, torch elsewhere, both in float32.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from toptune.backbones import LoadedBackbone
from toptune.errors import ToptuneError
from toptune.threads import usable_cores
from toptune.windows import Drawer

# Pictures in one inference. On the CPU a small batch stays in cache: with a stream a thread 2 and
# 4 were the fastest of 1, 2, 4, 8, 16 for EfficientNetB0 and DenseNet121.
_CPU_BATCH = 4
_GPU_BATCH = 64
# A stream holds the activations of one batch (tens of megabytes), so many cores share streams.
_MAX_STREAMS = 8
# Pictures drawn at a time: 13 MB at 224 x 224, whatever the recording's length.
_DRAWN_AT_ONCE = 64


class _Network(Protocol):
    """Turns pictures (n, S, S) into features (n, d)."""

    def __call__(self, pictures: torch.Tensor) -> NDArray[np.float32]: ...


class FeatureEngine:
    """A backbone made ready on a device.

    Parameters
    ----------
    loaded
        The backbone; its module is left as it is, on the CPU.
    device
        Where the pictures are. ``cpu`` means OpenVINO; anything else torch on that device.
    batch_size
        Pictures in one inference; a measured default where None. It does not change features by
        more than float32 rounding.
    n_threads
        CPU threads of OpenVINO; all that this process may use where None.

    Attributes
    ----------
    input_size, n_features
        Side S of the pictures and length d of the features.
    device, batch_size
        As given, or the default.

    Raises
    ------
    ValueError
        `batch_size` or `n_threads` is below 1.
    """

    def __init__(
        self,
        loaded: LoadedBackbone,
        device: torch.device | str = "cpu",
        batch_size: int | None = None,
        n_threads: int | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("n_threads", n_threads)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        self.device = torch.device(device)
        self.name = loaded.name
        self.input_size = loaded.input_size
        self.n_features = loaded.n_features
        on_cpu = self.device.type == "cpu"
        self.batch_size = batch_size or (_CPU_BATCH if on_cpu else _GPU_BATCH)
        self._network: _Network = (
            _OpenVinoNetwork(loaded, self.batch_size, n_threads or usable_cores())
            if on_cpu
            else _TorchNetwork(loaded, self.batch_size, self.device)
        )

    def features(self, pictures: torch.Tensor) -> NDArray[np.float32]:
        """Describe pictures.

        Parameters
        ----------
        pictures : (n, S, S) float32
            Grey values in [0, 1], 1 = white, on the engine's device. They become three equal
            channels, normalised with the backbone's mean and SD.

        Returns
        -------
        (n, d) float32
            One row a picture, in their order.

        Raises
        ------
        ValueError
            The pictures have another size, type or device.
        ToptuneError
            A feature is not finite.
        """
        size = (self.input_size, self.input_size)
        if pictures.ndim != 3 or pictures.shape[1:] != size or pictures.dtype != torch.float32:
            raise ValueError(
                f"{self.name} takes float32 pictures (n, {size[0]}, {size[1]}), got "
                f"{pictures.dtype} {tuple(pictures.shape)}"
            )
        if pictures.device.type != self.device.type:
            raise ValueError(f"pictures are on {pictures.device}, the engine on {self.device}")
        if len(pictures) == 0:
            return np.empty((0, self.n_features), dtype=np.float32)
        features = self._network(pictures)
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            raise ToptuneError(
                f"{self.name} gave features that are not finite for {np.count_nonzero(~finite)} of "
                f"{len(features)} pictures; its weights or the pictures are broken"
            )
        return features


def describe(
    drawer: Drawer, engine: FeatureEngine, progress: Callable[[int], object] | None = None
) -> NDArray[np.float32]:
    """Draw and describe all windows of a recording, few at a time.

    Parameters
    ----------
    drawer
        Draws at the engine's input size, on its device.
    engine
        Describes.
    progress
        Called after each batch with the number of windows it held.

    Returns
    -------
    (n_windows, d) float32
        One row a window; no rows where no window fits.

    Raises
    ------
    ValueError
        Drawer and engine differ in size or device.
    ToptuneError
        A feature is not finite.
    """
    if drawer.size != engine.input_size:
        raise ValueError(
            f"pictures are {drawer.size} pixels wide, {engine.name} takes {engine.input_size}"
        )
    features = np.empty((len(drawer), engine.n_features), dtype=np.float32)
    for first in range(0, len(drawer), _DRAWN_AT_ONCE):
        last = min(first + _DRAWN_AT_ONCE, len(drawer))
        features[first:last] = engine.features(drawer.draw(first, last))
        if progress is not None:
            progress(last - first)
    return features


class _Normalised(nn.Module):
    """A backbone with the step before it: grey pictures (n, 1, S, S) in, features out."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, loaded: LoadedBackbone) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(loaded.module)
        self.register_buffer("mean", torch.tensor(loaded.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(loaded.std).view(1, 3, 1, 1))
        self.eval()

    def forward(self, grey: torch.Tensor) -> Any:
        return self.backbone((grey - self.mean) / self.std)  # one channel against three: all equal


class _TorchNetwork:
    """The module itself, batch by batch, on a torch device."""

    def __init__(self, loaded: LoadedBackbone, batch_size: int, device: torch.device) -> None:
        self._module = _Normalised(loaded).to(device)
        self._batch_size = batch_size

    @torch.inference_mode()
    def __call__(self, pictures: torch.Tensor) -> NDArray[np.float32]:
        batches = torch.split(pictures[:, None], self._batch_size)
        features: NDArray[np.float32] = torch.cat([self._module(b) for b in batches]).cpu().numpy()
        return features


class _OpenVinoNetwork:
    """The backbone compiled for the CPU, a batch of fixed size a stream, streams side by side."""

    def __init__(self, loaded: LoadedBackbone, batch_size: int, n_threads: int) -> None:
        ov = _openvino()
        size = loaded.input_size
        self._shape = (batch_size, 1, size, size)
        self._n_features = loaded.n_features
        example = torch.zeros(self._shape)
        with warnings.catch_warnings(), torch.no_grad():
            # OpenVINO would trace in the same way, but twice (a check that costs seconds). The
            # warnings are that tracing is deprecated, and that it fixes shapes, which is wanted.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(  # type: ignore[no-untyped-call]  # torch types it not
                _Normalised(loaded), example, check_trace=False, strict=False
            )
            model = ov.convert_model(traced, example_input=example)
        model.reshape(list(self._shape))
        streams = min(n_threads, _MAX_STREAMS)
        compiled = ov.Core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": n_threads,
                "NUM_STREAMS": str(streams),
                # Pinned to cores, two processes would share the same ones while others idle.
                "ENABLE_CPU_PINNING": False,
            },
        )
        self._queue = ov.AsyncInferQueue(compiled, streams)

    def __call__(self, pictures: torch.Tensor) -> NDArray[np.float32]:
        n, batch = len(pictures), self._shape[0]
        grey = pictures[:, None].contiguous().numpy()
        features = np.empty((n, self._n_features), dtype=np.float32)

        def keep(request: Any, first: int) -> None:
            rows = features[first : first + batch]
            rows[:] = request.get_output_tensor(0).data[: len(rows)]

        self._queue.set_callback(keep)
        for first in range(0, n, batch):
            part = grey[first : first + batch]
            if len(part) < batch:  # the compiled shape is fixed; rows beyond n are not kept
                rest = np.zeros((batch - len(part), *self._shape[1:]), dtype=np.float32)
                part = np.concatenate([part, rest])
            self._queue.start_async([part], first, share_inputs=True)
        self._queue.wait_all()
        return features


def _openvino() -> Any:
    """Import OpenVINO without its telemetry, which would send events over the network unasked."""
    name = "openvino_telemetry"
    if "openvino" not in sys.modules and name not in sys.modules:
        sys.modules[name] = None  # type: ignore[assignment]  # makes the import fail, as documented
        try:
            import openvino
        finally:
            del sys.modules[name]
    else:
        import openvino
    return openvino
