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
