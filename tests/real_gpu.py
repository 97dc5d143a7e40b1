"""The GPU of tests and benchmarks."""

from __future__ import annotations

from needs import no_gpu

from toptune.errors import InputError
from toptune.machine.cuda import CudaAccelerator, open_cuda


def real_accelerator() -> CudaAccelerator:
    """Open the GPU, or skip or fail."""
    try:
        return open_cuda()
    except InputError as error:
        no_gpu(str(error))
