"""In which 16-bit type a processor computes, by its flags and what OpenVINO says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from toptune.backbones import processor
from toptune.backbones.processor import Half, half_of_processor, processor_flags

NAMES = ("FP32", "INT8", "BIN", "EXPORT_IMPORT")


@pytest.mark.parametrize(
    ("says", "flags", "expected"),
    [
        # AVX-512 alone: OpenVINO would round to bfloat16, and compute in float32.
        ({"BF16"}, {"avx512f", "avx512_vnni"}, None),
        ({"BF16"}, {"avx512f", "avx512_bf16"}, Half("bfloat16", ("avx512_bf16",))),
        ({"BF16"}, {"avx2", "avx_ne_convert"}, Half("bfloat16", ("avx_ne_convert",))),
        (
            {"BF16", "FP16"},
            {"amx_bf16", "avx512_bf16", "avx512_fp16"},
            Half("float16", ("avx512_fp16",)),
        ),
        ({"BF16", "FP16"}, {"amx_bf16"}, Half("bfloat16", ("amx_bf16",))),
        ({"BF16"}, {"avx512_fp16"}, None),
        (set(), {"avx512_bf16", "avx512_fp16", "amx_fp16"}, None),
        # Where the system lists no flags, as on ARM, OpenVINO's word counts.
        ({"FP16"}, None, Half("float16", ())),
        (set(), None, None),
    ],
)
def test_the_type_needs_units_of_the_processor_and_openvinos_word(
    says: set[str],
    flags: set[str] | None,
    expected: Half | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = SimpleNamespace(get_property=lambda *_: [*NAMES, *says])
    monkeypatch.setattr(processor, "openvino_core", lambda: core)
    monkeypatch.setattr(processor, "processor_flags", lambda: flags and frozenset(flags))
    assert half_of_processor() == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512_bf16\nvmx flags\t: ept\n", {"fpu", "avx512_bf16"}),
        ("processor\t: 0\nFeatures\t: fp asimd asimdhp\n", None),
        (None, None),
    ],
)
def test_flags_are_those_of_the_processor_where_the_system_lists_them(
    text: str | None, expected: set[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text, "utf-8")
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
    assert processor_flags.__wrapped__() == expected


# The networks that were made first go first. With a core for each, OpenVINO would leave a stack for
# signals whose memory is gone.
INTERRUPTED = """
import signal
from small_data import random_backbone
from toptune.backbones.engine import FeatureEngine
from toptune.backbones.processor import half_of_processor

half_of_processor()
engines = [FeatureEngine(random_backbone("mobilenet_v3_small"), n_threads=1) for _ in range(2)]
for engine in engines:
    engine.compile()
while engines:
    engines.pop(0).release()
try:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_is_no_crash_when_networks_have_gone() -> None:
    paths = [str(Path(__file__).parents[n]) for n in (1, 2)]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_this_processor_is_one_of_them() -> None:
    found = half_of_processor()
    assert found is None or found.dtype in ("float16", "bfloat16")
