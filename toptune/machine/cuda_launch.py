"""Launching the project's CUDA kernels on torch's tensors.

What enters: the name of a source in kernels/, then kernels' names, numbers of threads and
arguments. What leaves: a function that launches; by CuPy on a GPU, in torch's current stream, so
that kernels and torch's own work keep their order without waiting for one another.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from toptune.errors import ToptuneError
from toptune.machine.assets import kernels

_BLOCK = 256
# The kernels' loops stride over the grid, so more blocks than a GPU holds at once gain nothing.
_MOST_BLOCKS = 1 << 20


class Launch(Protocol):
    """Launches kernels of one source."""

    def __call__(
        self, kernel: str, threads: int, /, *arguments: torch.Tensor | int | float
    ) -> None:
        """Launch a kernel.

        Parameters
        ----------
        kernel
            Its name in the source.
        threads
            How many can be of use; the kernel strides over its work with any number.
        arguments
            As the kernel declares them: contiguous tensors as pointers, int as 64-bit integers,
            float as double.
        """


class _CurrentStream(NamedTuple):
    """torch's stream, by the protocol by which CuPy takes streams of others."""

    pointer: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


@cache
def cupy_launch(source: str, device_index: int) -> Launch:
    """Compile a source, or find it compiled, for a GPU.

    Parameters
    ----------
    source
        Such as ``render.cu``.
    device_index
        Of the GPU.

    Raises
    ------
    ToptuneError
        CuPy is not installed.
    """
    cupy = _cupy()
    with cupy.cuda.Device(device_index):
        text = (kernels() / source).read_text("utf-8")
        module = cupy.RawModule(code=text, options=("--std=c++17",))
    function = cache(module.get_function)

    def launch(kernel: str, threads: int, *arguments: torch.Tensor | int | float) -> None:
        values = tuple(map(_eight_bytes, arguments))
        blocks = min(-(-threads // _BLOCK), _MOST_BLOCKS)
        stream = torch.cuda.current_stream(device_index).cuda_stream
        with (
            cupy.cuda.Device(device_index),
            cupy.cuda.Stream.from_external(_CurrentStream(stream)),
        ):
            function(kernel)((blocks,), (_BLOCK,), values)

    return launch


def _eight_bytes(argument: torch.Tensor | int | float) -> np.uint64 | np.int64 | np.float64:
    """Give an argument the width that the kernels declare, whatever CuPy makes of Python's own."""
    if isinstance(argument, torch.Tensor):
        return np.uint64(argument.data_ptr())
    return np.float64(argument) if isinstance(argument, float) else np.int64(argument)


def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise ToptuneError(
            "--device cuda draws by CUDA kernels, which need CuPy: pip install 'toptune[gpu]', or"
            " use --device cpu"
        ) from error
    return cupy
