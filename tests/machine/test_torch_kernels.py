"""Launching kernels on torch's tensors: what can be seen without a GPU."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from toptune.errors import ToptuneError
from toptune.machine.cuda import torch_kernels


def test_missing_cupy_is_an_error_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ToptuneError, match=r"needs CuPy: pip install 'toptune\[gpu\]'"):
        torch_kernels("render", 0)


class _NvrtcOfTheTest:
    """What of NVRTC compiling uses."""

    NVRTCError = RuntimeError
    getPTX = staticmethod(lambda _: b"ptx")  # noqa: N815  # CuPy's name
    getCUBIN = staticmethod(lambda _: b"machine code")  # noqa: N815
    getSupportedArchs = staticmethod(lambda: (80, 90, 100))  # noqa: N815
    destroyProgram = staticmethod(lambda _: None)  # noqa: N815

    def createProgram(self, source: str, name: str, *_: object) -> int:  # noqa: N802
        assert "render_place" in source
        assert name == "render.cu"
        return 1

    def compileProgram(self, _: int, options: list[str]) -> None:  # noqa: N802
        exact = ["--std=c++17", "--ftz=false", "-DTHREADS=256"]
        assert options == ["--gpu-architecture=sm_90", *exact]


class _CupyOfTheTest:
    """What of CuPy a launch uses, noting it."""

    def __init__(self) -> None:
        self.noted: list[object] = []
        self.cuda = self

    class _Context:
        compute_capability = "90"

        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    def Device(self, index: int | None = None) -> _Context:  # noqa: N802  # CuPy's name
        if index is not None:
            self.noted.append(("device", index))
        return self._Context()

    @property
    def Stream(self) -> _CupyOfTheTest:  # noqa: N802  # CuPy's name
        return self

    def from_external(self, stream: object) -> _Context:
        protocol = stream.__cuda_stream__()  # type: ignore[attr-defined]  # CUDA's stream protocol
        self.noted.append(("stream", protocol))
        return self._Context()

    @property
    def nvrtc(self) -> _NvrtcOfTheTest:
        return _NvrtcOfTheTest()

    def Module(self) -> _CupyOfTheTest:  # noqa: N802  # CuPy's name
        return self

    def load(self, code: bytes) -> None:
        assert code == b"machine code"

    def get_function(self, name: str) -> object:
        self.noted.append(("looked up", name))

        def launched(grid: tuple[int], block: tuple[int], values: tuple[object, ...]) -> None:
            self.noted.append((name, grid, block, values))

        return launched


def test_kernels_run_in_torchs_stream_on_its_device_with_pointers_of_its_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stream:
        cuda_stream = 77

    fake = _CupyOfTheTest()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: Stream() if index == 3 else 0)
    torch_kernels.cache_clear()
    try:
        tensor = torch.zeros(5)
        torch_kernels("render", 3).launch("render_place", 1000, tensor, 7, 2.5)
        torch_kernels("render", 3).launch("render_place", 2**40)
    finally:
        torch_kernels.cache_clear()
    assert ("stream", (0, 77)) in fake.noted
    assert {entry[1] for entry in fake.noted if entry[0] == "device"} == {3}  # type: ignore[index]
    launches = [entry for entry in fake.noted if entry[0] == "render_place"]  # type: ignore[index]
    assert launches[0] == ("render_place", (4,), (256,), (tensor.data_ptr(), 7, 2.5))
    assert {np.dtype(type(v)).itemsize for v in launches[0][3]} == {8}
    assert fake.noted.count(("looked up", "render_place")) == 1
    assert launches[1] == ("render_place", (1 << 20,), (256,), ())
