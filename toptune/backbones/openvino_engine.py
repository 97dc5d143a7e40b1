"""Backbones on the CPU, computed by OpenVINO in float32."""

from __future__ import annotations

import copy
import sys
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from toptune.backbones.loading import LoadedBackbone

# A stream holds the activations of a batch (tens of megabytes), so many cores share few streams.
_MAX_STREAMS = 8


class _Normalised(nn.Module):
    """A backbone that takes grey pictures (n, 1, S, S) and normalises them itself."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, loaded: LoadedBackbone) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(loaded.module)
        self.register_buffer("mean", torch.tensor(loaded.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(loaded.std).view(1, 3, 1, 1))
        self.eval()

    def forward(self, grey: torch.Tensor) -> Any:
        return self.backbone(
            (grey - self.mean) / self.std
        )  # one channel broadcast to three equal ones


class OpenVinoNetwork:
    """A backbone compiled for the CPU; parallel streams each compute batches of a fixed size.

    Parameters
    ----------
    loaded
        The backbone, which is not changed.
    batch_size
        Pictures per inference, 1 or more.
    n_threads
        CPU threads, 1 or more.
    """

    def __init__(self, loaded: LoadedBackbone, batch_size: int, n_threads: int) -> None:
        ov = _openvino()
        size = loaded.input_size
        self._shape = (batch_size, 1, size, size)
        self._n_features = loaded.n_features
        example = torch.zeros(self._shape)
        with warnings.catch_warnings(), torch.no_grad():
            # OpenVINO would trace in the same way, but twice, as a check that takes seconds. The
            # warnings say that tracing is deprecated and that it fixes shapes, which is intended.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(  # type: ignore[no-untyped-call]  # untyped in torch
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
                # With pinning, two processes would share the same cores while others are idle.
                "ENABLE_CPU_PINNING": False,
            },
        )
        self._queue = ov.AsyncInferQueue(compiled, streams)

    def __call__(self, pictures: torch.Tensor) -> NDArray[np.float32]:
        """Turn grey pictures (n, S, S), float32 in [0, 1], into features (n, d)."""
        n, batch = len(pictures), self._shape[0]
        grey = pictures[:, None].contiguous().numpy()
        features = np.empty((n, self._n_features), dtype=np.float32)

        def keep(request: Any, first: int) -> None:
            rows = features[first : first + batch]
            rows[:] = request.get_output_tensor(0).data[: len(rows)]

        self._queue.set_callback(keep)
        for first in range(0, n, batch):
            part = grey[first : first + batch]
            if len(part) < batch:  # the compiled shape is fixed; the excess rows are discarded
                rest = np.zeros((batch - len(part), *self._shape[1:]), dtype=np.float32)
                part = np.concatenate([part, rest])
            self._queue.start_async([part], first, share_inputs=True)
        self._queue.wait_all()
        return features


def _openvino() -> Any:
    """Import OpenVINO without its telemetry, which would send events over the network."""
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
