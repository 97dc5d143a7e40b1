"""Which device does the work: the user's word, resolved once, never changed silently."""

from __future__ import annotations

from toptune.errors import InputError


def torch_device(device: str) -> str:
    """Resolve ``auto`` to ``cuda`` where torch sees a GPU, to ``cpu`` elsewhere.

    Parameters
    ----------
    device
        ``auto``, ``cpu`` or ``cuda``.

    Raises
    ------
    InputError
        The device is unknown, or a GPU is asked for and torch sees none.
    """
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device must be auto, cpu or cuda, got {device!r}")
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise InputError("--device cuda: torch sees no GPU here; use --device cpu or auto")
    return "cuda" if device != "cpu" and found else "cpu"


# Compute capabilities of the GPUs whose float64 runs at half the rate of float32, not at a 32nd or
# less: P100, V100, A100, H100 and H200, B200 (CUDA C++ Programming Guide, throughput of native
# arithmetic instructions, 64-bit floating-point).
_FULL_RATE_FLOAT64 = frozenset({(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)})


def float64_device(device: str) -> str:
    """Resolve ``auto`` for work in float64: ``cuda`` only where the GPU is made for it.

    On other GPUs the processor's float64 is the faster one as a rule; ``cuda`` takes them all the
    same.

    Parameters
    ----------
    device
        ``auto``, ``cpu`` or ``cuda``.

    Raises
    ------
    InputError
        As `torch_device`.
    """
    resolved = torch_device(device)
    if device == "auto" and resolved == "cuda":
        import torch

        if not has_full_rate_float64(torch.cuda.get_device_capability()):
            return "cpu"
    return resolved


def has_full_rate_float64(capability: tuple[int, int]) -> bool:
    """Tell whether GPUs of a compute capability are made for float64."""
    return capability in _FULL_RATE_FLOAT64
