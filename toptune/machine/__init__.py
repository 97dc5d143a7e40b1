"""The computer: its processor and GPU, its disk, and the programs that share them.

Nothing here is about recordings. `device` and `cuda` choose and open the GPU, `threads` uses the
processor, and `durable` and `locks` write results that survive a crash and other processes.
`fingerprint` identifies files, and `installation` finds the files that are not Python and describes
with what a result was computed. `caches` finds folders where there is no home, and `drawing` is
Matplotlib without a screen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toptune.machine.lazy import lazy_names

if TYPE_CHECKING:
    from toptune.machine.cuda import Accelerator, accelerator
    from toptune.machine.device import float64_device, torch_device
    from toptune.machine.durable import move_into_place, write_whole, writing
    from toptune.machine.fingerprint import file_sha256
    from toptune.machine.locks import held, is_held
    from toptune.machine.threads import in_threads, thread_pool, usable_cores
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "cuda": ("Accelerator", "accelerator"),
            "device": ("float64_device", "torch_device"),
            "durable": ("move_into_place", "write_whole", "writing"),
            "fingerprint": ("file_sha256",),
            "locks": ("held", "is_held"),
            "threads": ("in_threads", "thread_pool", "usable_cores"),
        },
    )

__all__ = [
    "Accelerator", "accelerator", "file_sha256", "float64_device", "held", "in_threads", "is_held",
    "move_into_place", "thread_pool", "torch_device", "usable_cores", "write_whole", "writing",
]  # fmt: skip
