"""What Dask's workers load in tests: backbones of a few weights, and what is wrong where asked.

``TOPTUNE_TEST_VERSION`` and ``TOPTUNE_TEST_CLOCK_S`` make a worker of another version, or one whose
clock is ahead; with ``TOPTUNE_TEST_DIES=N`` a worker dies when it has written all of its Nth group
but is yet to publish it.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import Any

import pytest

from toptune.cluster import worker

patch = pytest.MonkeyPatch()


def dask_setup(_worker: object) -> None:
    """Called by Dask, for ``--preload``."""
    version, ahead_s, dies = (
        os.environ.get(f"TOPTUNE_TEST_{name}") for name in ("VERSION", "CLOCK_S", "DIES")
    )
    if version or ahead_s:
        itself = worker.identity()
        seen = replace(
            itself, version=version or itself.version, time_s=itself.time_s + float(ahead_s or 0)
        )
        patch.setattr(worker, "identity", lambda: seen)
        return
    import torch
    from small_data import install_tiny_backbones

    torch.set_num_threads(1)
    install_tiny_backbones(patch)
    if dies:
        _die_at(int(dies))


def _die_at(number: int) -> None:
    from toptune.machine.durable import move_into_place

    real, n_groups = move_into_place, 0

    def move(*paths: Any, **how: Any) -> None:
        nonlocal n_groups
        n_groups += 1
        if n_groups == number:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*paths, **how)

    patch.setattr("toptune.store.places.move_into_place", move)
