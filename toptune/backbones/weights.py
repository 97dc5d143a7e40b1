"""Weights of backbones: read from files, checked against a network, identified by content.

Pickled code is never run: .pth and .pt files are read with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from toptune.errors import InputError
from toptune.machine.fingerprint import require_weights_file
from toptune.machine.interruption import heed_interrupt

# Keys under which training scripts save the tensors.
_WRAPPERS = ("state_dict", "model")
# torchvision's published DenseNets still use the names of Lua Torch ("norm.1" for "norm1").
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..+)$")

# Types of a network's tensors; others cannot be checked or copied.
_DTYPES = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool,
}  # fmt: skip

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightsFile:
    """The content of a weights file."""

    path: Path
    sha256: str  # of the whole file, 64 hex digits
    state: dict[str, torch.Tensor]  # by name, on the CPU
    # What the file says by safetensors metadata: its network, and the normalisation.
    backbone: str | None = None
    mean: Triple | None = None
    std: Triple | None = None


def read_weights(path: Path | str) -> WeightsFile:
    """Read a weights file.

    Parameters
    ----------
    path
        Ends in .safetensors, .pth or .pt. A ``state_dict`` or ``model`` wrapper is removed, as is
        the ``module.`` that data-parallel training puts before every name.

    Raises
    ------
    InputError
        The file is missing, damaged or of another kind, or would run pickled code.
    """
    path = Path(path)
    require_weights_file(path)
    if path.stat().st_size == 0:
        raise InputError(f"weights file {path} is empty")
    if path.suffix == ".safetensors":
        content, metadata = _read_safetensors(path)
    else:
        content, metadata = _read_pickle(path), {}
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return WeightsFile(
        path=path,
        sha256=sha256,
        state=_unwrap(content, path),
        backbone=metadata.get("backbone"),
        mean=_triple(metadata, "mean", path),
        std=_triple(metadata, "std", path),
    )


def fitting_state(
    state: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    classifier: Iterable[str],
    *,
    source: str,
    name: str,
) -> dict[str, torch.Tensor]:
    """Remove the classifier from `state` and check that the rest is exactly what a network needs.

    `expected` is the state of the network without its classifier. `classifier` names its tensors; a
    name ending in a dot stands for all that begin with it. Only counters of training batches may be
    missing from `state`, since they do not affect what a trained network computes; any other
    tensor that is missing, unexpected, of another shape or type or not finite is an `InputError`,
    whose message says where the tensors are from (`source`) and for which network (`name`).
    """
    dropped = tuple(classifier)
    prefixes = tuple(c for c in dropped if c.endswith("."))
    state = {_OLD_DENSENET.sub(r"\1\2", k): v for k, v in state.items()}
    kept = {k: v for k, v in state.items() if k not in dropped and not k.startswith(prefixes)}
    counters = {k: v for k, v in expected.items() if k.endswith("num_batches_tracked")}
    problems = [
        _listed("missing", [k for k in expected if k not in kept and k not in counters]),
        _listed("unexpected", [k for k in kept if k not in expected]),
        _listed(
            "of another shape or kind",
            [k for k, v in kept.items() if k in expected and not _alike(v, expected[k])],
        ),
    ]
    if any(problems):
        raise InputError(f"{source} does not fit {name}: {'; '.join(filter(None, problems))}")
    broken = [k for k, v in kept.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise InputError(f"{source} holds values that are not finite, in {broken[0]}")
    return {**counters, **kept}


def state_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 of a state's names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  # not a dict
            return state, file.metadata() or {}
    except Exception as error:  # the library's own, and torch's for types that it does not know
        heed_interrupt(error)
        text = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} is not a complete safetensors file: {text}: copy or download it again"
        ) from error


def _check_archive(path: Path) -> None:
    """Refuse compressed members, which torch never writes and which may inflate a thousandfold."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise InputError(
                f"{path} cannot be used as weights: its tensors are compressed; save them by"
                " torch.save, or as safetensors"
            )


def _read_pickle(path: Path) -> Any:
    try:
        _check_archive(path)
        with warnings.catch_warnings():
            # torch warns of old pickle protocols before it tries to read them.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # for damaged files torch raises errors of many kinds
        heed_interrupt(error)
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            reason = (
                "it holds pickled code, not only tensors, and code in a file is never run: save"
                " model.state_dict() instead"
            )
        else:
            reason = f"it is damaged or not a PyTorch file ({type(error).__name__}): copy it again"
        raise InputError(f"{path} cannot be used as weights: {reason}") from error


def _unwrap(content: Any, path: Path) -> dict[str, torch.Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} holds no tensors by name")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise InputError(f"{path} holds more than tensors by name: {name!r:.60}")
        plain = value.layout is torch.strided and value.device.type == "cpu"
        if not plain or value.is_quantized or value.dtype not in _DTYPES:
            raise InputError(
                f"{path}: {name!r:.60} is {value.dtype}, {value.layout}, on {value.device.type}:"
                " save plain floating-point weights"
            )
    if all(name.startswith("module.") for name in content):
        return {name.removeprefix("module."): value for name, value in content.items()}
    return dict(content)


def _triple(metadata: dict[str, str], key: str, path: Path) -> Triple | None:
    """Read three numbers (red, green, blue) from the file's metadata; an SD must be above 0."""
    if key not in metadata:
        return None
    try:
        first, second, third = (float(v) for v in json.loads(metadata[key]))
    except (TypeError, ValueError, RecursionError, OverflowError):
        first = second = third = math.nan
    values = (first, second, third)
    if not all(map(math.isfinite, values)) or (key == "std" and min(values) <= 0):
        raise InputError(
            f"{path}: metadata {key!r} must be a JSON list of three numbers"
            f"{' above 0' if key == 'std' else ''}, got {metadata[key]!r:.60}"
        )
    return values


def _alike(value: torch.Tensor, expected: torch.Tensor) -> bool:
    return (
        value.shape == expected.shape and value.is_floating_point() == expected.is_floating_point()
    )


def _listed(what: str, names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what} ({shown})" if names else ""
