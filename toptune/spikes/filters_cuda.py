"""The high-pass filter on a GPU, parallel over time, with state carried from chunk to chunk.

Samples may differ from those of `toptune.spikes.filters` in rounding. The state at the start of
every block of 128 samples comes from a scan in float64 (kernels/highpass.cu), which changes it by
about 1e-16 of its value and so, now and then, the last bit of a float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from toptune.machine.cuda import THREADS, Accelerator, DeviceArray
from toptune.params import HighPass
from toptune.spikes.filters import butterworth_sections

# Chunks whose length is a multiple of this give the same samples as the whole, bit for bit.
HIGHPASS_BLOCK = 128
_TILE = 64


class DeviceHighPass:
    """`HighPassFilter` for chunks on the device; an `InputError` where that one raises it."""

    def __init__(self, device: Accelerator, params: HighPass, sampling_rate_hz: float) -> None:
        self._xp = device.xp
        self._n_sections = 0
        self._state: DeviceArray | None = None
        self._ended = False
        sos = butterworth_sections(params, sampling_rate_hz)
        if sos is None:
            return
        self._n_sections = len(sos)
        self._kernels = device.kernels(
            "highpass",
            HIGHPASS_BLOCK=HIGHPASS_BLOCK,
            HIGHPASS_SECTIONS=self._n_sections,
            HIGHPASS_TILE=_TILE,
        )
        self._sos = self._xp.asarray(np.ascontiguousarray(sos, np.float64))
        self._silence = self._xp.asarray(_after_silence(sos, HIGHPASS_BLOCK))

    def apply(self, samples_uv: DeviceArray, out: DeviceArray) -> None:
        """Filter the next chunk, (channels, samples) float32, into `out`; they must not overlap.

        Rows are contiguous. A chunk that follows one of no whole number of blocks, after which the
        state is unknown, is a `ValueError`.
        """
        channels, n = samples_uv.shape
        if n == 0:
            return
        if not self._n_sections:
            out[...] = samples_uv
            return
        if self._ended:
            raise ValueError(f"only the last chunk may be no multiple of {HIGHPASS_BLOCK}")
        self._ended = n % HIGHPASS_BLOCK != 0
        if self._state is None:
            self._state = self._xp.zeros((channels, 2 * self._n_sections), np.float64)
            self._first = samples_uv[:, 0].astype(np.float64)
        blocks = -(-n // HIGHPASS_BLOCK)
        threads = channels * -(-blocks // _TILE) * THREADS
        left = self._xp.empty((channels, blocks, 2 * self._n_sections), np.float64)
        entered = self._xp.empty_like(left)
        chunk = (samples_uv, row_pitch(samples_uv), channels, n, self._first, self._sos)
        launch = self._kernels.launch
        launch("highpass_probe", threads, *chunk, left)
        launch(
            "highpass_chain", channels, channels, blocks, self._silence, left, entered, self._state
        )
        launch("highpass_run", threads, *chunk, entered, out, row_pitch(out))


def row_pitch(samples: DeviceArray) -> int:
    """Return the number of values from one row to the next; the rows must be contiguous."""
    if samples.shape[1] > 1 and samples.strides[1] != samples.itemsize:
        raise ValueError(f"rows must be contiguous, got strides {samples.strides}")
    return int(samples.strides[0] // samples.itemsize)


def _after_silence(sos: NDArray[np.float64], n_samples: int) -> NDArray[np.float64]:
    """Return the (states, states) matrix that maps a state to the one after `n_samples` zeros."""
    states = np.eye(2 * len(sos))
    for _ in range(n_samples):
        v = np.zeros(2 * len(sos))
        for k, (b0, b1, b2, _a0, a1, a2) in enumerate(sos):
            y = b0 * v + states[2 * k]
            states[2 * k] = b1 * v - a1 * y + states[2 * k + 1]
            states[2 * k + 1] = b2 * v - a2 * y
            v = y
    return states
