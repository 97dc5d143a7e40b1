"""The device that computes: the user's choice, resolved once and never changed silently."""

from __future__ import annotations

from toptune.errors import InputError


def torch_device(device: str) -> str:
    """Resolve ``auto`` to ``cuda`` if torch finds a GPU, to ``cpu`` otherwise.

    Parameters
    ----------
    device
        ``auto``, ``cpu`` or ``cuda``.

    Raises
    ------
    InputError
        The device is unknown, or it is ``cuda`` and torch finds no GPU.
    """
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device must be auto, cpu or cuda, got {device!r}")
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise InputError(
            "`device='cuda'`: torch finds no GPU; use `device='cpu'` or `device='auto'`"
        )
    return "cuda" if device != "cpu" and found else "cpu"


# Compute capabilities of the GPUs whose float64 runs at half the rate of float32, instead of a 32nd
# or less: P100, V100, A100, H100 and H200, B200 (CUDA C++ Programming Guide, throughput of native
# arithmetic instructions, 64-bit floating-point).
_FULL_RATE_FLOAT64 = frozenset({(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)})


def float64_device(device: str) -> str:
    """Resolve ``auto`` for float64: ``cuda`` only if the GPU computes it at half rate or more.

    On other GPUs float64 is usually slower than on the CPU. ``cuda`` takes any GPU.

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
    """Tell whether GPUs of a compute capability run float64 at half the rate of float32."""
    return capability in _FULL_RATE_FLOAT64
