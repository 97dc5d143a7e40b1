"""What tests and benchmarks marked `gpu` do where there is none."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

from toptune.errors import InputError
from toptune.machine.cuda import CudaAccelerator, open_cuda


def no_gpu(reason: str) -> NoReturn:
    """Skip; with TOPTUNE_GPU=1, which says that there is a GPU, fail."""
    if os.environ.get("TOPTUNE_GPU") == "1":
        pytest.fail(f"TOPTUNE_GPU=1, but {reason}")
    pytest.skip(reason)


def real_accelerator() -> CudaAccelerator:
    """Open the GPU, or skip or fail."""
    try:
        return open_cuda()
    except InputError as error:
        no_gpu(str(error))
