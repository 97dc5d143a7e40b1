"""Whether this machine's processor computes backbones in 16 bits, by OpenVINO."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

# Flags of processors of the x86 family that have units for a 16-bit type. OpenVINO also says that
# it can compute in bfloat16 where there are none (AVX-512 alone): it then computes in float32 and
# rounds, which is slower than float32 by itself.
_UNITS = {
    "float16": ("amx_fp16", "avx512_fp16", "avx_ne_convert"),
    "bfloat16": ("amx_bf16", "avx512_bf16", "avx_ne_convert"),
}
# float16 first: it has 11 bits of precision, bfloat16 has 8.
_CAPABILITIES = {"float16": "FP16", "bfloat16": "BF16"}
_CPUINFO = Path("/proc/cpuinfo")


class Half(NamedTuple):
    """A 16-bit type of the processor."""

    dtype: str  # float16 or bfloat16
    units: tuple[str, ...]  # the processor's flags that stand for it; empty where none are known


def half_of_processor() -> Half | None:
    """Say in which 16-bit type the processor computes faster than in float32; None: in neither.

    OpenVINO must say that it can. On Linux on x86 the processor must have units for that type, too:
    AMX, AVX512-FP16 or AVX512-BF16. Raises `ImportError` where OpenVINO is not installed.
    """
    capabilities = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return _chosen(tuple(capabilities), processor_flags())


def _chosen(capabilities: tuple[str, ...], flags: frozenset[str] | None) -> Half | None:
    for dtype, capability in _CAPABILITIES.items():
        if capability not in capabilities:
            continue
        if flags is None:
            return Half(dtype, ())
        units = tuple(flag for flag in _UNITS[dtype] if flag in flags)
        if units:
            return Half(dtype, units)
    return None


@cache
def processor_flags() -> frozenset[str] | None:
    """Give the flags of a processor of the x86 family; None where the system lists none."""
    try:
        lines = _CPUINFO.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, words = line.partition(":")
        if name.strip() == "flags":
            return frozenset(words.split())
    return None


def openvino() -> Any:
    """Import OpenVINO without its telemetry, which would send events over the network."""
    name = "openvino_telemetry"
    if "openvino" not in sys.modules and name not in sys.modules:
        sys.modules[name] = None  # type: ignore[assignment]  # makes the import fail, as documented
        try:
            import openvino
        finally:
            del sys.modules[name]
    else:
        import openvino
    return openvino


@cache
def openvino_core() -> Any:
    """Give the one OpenVINO core of this process, which stays as long as the process.

    OpenVINO's processor plugin gives the thread that makes a core a stack for signals, and takes
    its memory back with the core. Of two cores, the second gives back the stack of the first, which
    may be gone by then: the next signal, such as that of Ctrl-C, would end the process by a
    segmentation fault.
    """
    return openvino().Core()
