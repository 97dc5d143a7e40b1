"""Pictures by the CUDA kernels, built by g++: the definition's, in every type a network takes."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from cuda_on_cpu import KERNELS, HostKernels, build
from cuda_on_cpu import Launch as Grid
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures.test_drawer import (
    fifteen_minutes,
    levels,
    make_trains,
    naive_pictures,
    recordings,
    windows_in_bins,
)

from toptune.backbones.engine import HALF
from toptune.backbones.loading import LoadedBackbone
from toptune.backbones.torch_engine import TorchNetwork
from toptune.errors import InputError
from toptune.machine.cuda import Launch, torch_kernels
from toptune.params import Picture, Windows
from toptune.pictures.drawer import Drawer
from toptune.pictures.drawer_cuda import CudaBinnedSpikes, CudaDrawer, InputChannels, ResidentSpikes
from toptune.recordings.trains import SpikeTrains

CPU = torch.device("cpu")
launches = st.builds(Grid, st.integers(1, 5), st.integers(1, 33), st.booleans())
HISTOGRAM, RASTER = Picture(), Picture(kind="raster")
LOGARITHMIC, SORTED = Picture(count_axis="log"), Picture(kind="sorted_raster")
RECORDING = fifteen_minutes()
# As a network's first convolution and as three normalised channels would want it.
CHANNELS = (((1.0, 0.0),), ((1.0, 0.0), (0.0, 1.0)), ((-4.4, 2.2), (-1.0, 0.25), (-2.0, 1.0)))


# Strips of 3 rows put many of their edges into small pictures.
@pytest.fixture(scope="module", params=[16, 3])
def kernels(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> HostKernels:
    rows: int = request.param
    folder = tmp_path_factory.mktemp(f"render_{rows}")
    return build(KERNELS / "render.cu", folder, RENDER_ROWS=rows)


def on_cpu(kernels: HostKernels, grid: Grid = Grid(2, 32, False)) -> Launch:  # noqa: B008  # immutable
    """Launch as CuPy would, but by the processor and on a grid of its own."""

    def launch(kernel: str, threads: int, *arguments: torch.Tensor | int | float) -> None:
        assert threads > 0
        kernels.run(kernel, grid, *map(eight_bytes, arguments))

    return launch


def eight_bytes(argument: torch.Tensor | int | float) -> int:
    """A pointer, an integer, or the bits of a double: what a kernel's argument holds."""
    if isinstance(argument, torch.Tensor):
        assert argument.is_contiguous() or argument.permute(0, 2, 3, 1).is_contiguous()
        return argument.data_ptr()
    if isinstance(argument, float):
        bits: int = struct.unpack("q", struct.pack("d", argument))[0]
        return bits
    return argument


def renderer(
    launch: Launch, trains: SpikeTrains, windows: Windows, picture: Picture, size: int
) -> CudaDrawer:
    return CudaDrawer(CudaBinnedSpikes(trains, windows.bin_ms, CPU, launch), windows, picture, size)


@settings(deadline=None, max_examples=60)
@given(recordings(), windows_in_bins, levels, st.integers(1, 31), launches)
def test_every_pixel_is_the_definitions(
    kernels: HostKernels,
    trains: SpikeTrains,
    windows: Windows,
    picture: Picture,
    size: int,
    grid: Grid,
) -> None:
    made = renderer(on_cpu(kernels, grid), trains, windows, picture, size)
    drawn = made.draw(0, len(made))
    expected = naive_pictures(trains, windows, picture, size)
    assert drawn.dtype == torch.float32
    assert drawn.shape == expected.shape
    np.testing.assert_allclose(drawn.numpy(), expected, atol=2e-7)  # float32's own rounding
    assert ((drawn >= 0) & (drawn <= 1)).all()
    drawer = Drawer(trains, windows, picture, size)
    np.testing.assert_array_equal(made.start_s, drawer.start_s)
    torch.testing.assert_close(drawn, drawer.draw(0, len(drawer)), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("size", "width_s"), [(224, 120.0), (299, 10.0)])
@pytest.mark.parametrize("picture", [HISTOGRAM, RASTER, LOGARITHMIC, SORTED])
def test_fifteen_minutes_are_drawn_as_on_the_cpu(
    kernels: HostKernels, size: int, width_s: float, picture: Picture
) -> None:
    trains, windows = RECORDING, Windows(width_s=width_s)
    made = renderer(on_cpu(kernels), trains, windows, picture, size)
    drawer = Drawer(trains, windows, picture, size)
    assert len(made) == len(drawer) > 150
    expected = drawer.draw(100, 102)
    assert expected.std() > 0.01
    torch.testing.assert_close(made.draw(100, 102), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("picture", [HISTOGRAM, RASTER])
def test_a_batch_holds_the_networks_channels_in_its_type(
    kernels: HostKernels,
    dtype: torch.dtype,
    channels: tuple[tuple[float, float], ...],
    picture: Picture,
) -> None:
    trains, windows = RECORDING, Windows(width_s=10.0)
    made = renderer(on_cpu(kernels), trains, windows, picture, 50)
    shape = (3, len(channels), 50, 50)
    out = torch.full(shape, 7.0, dtype=dtype).contiguous(memory_format=torch.channels_last)
    made.render(5, 8, out, InputChannels.of(channels, CPU))
    darkness = 1 - Drawer(trains, windows, picture, 50).draw(5, 8)
    expected = torch.stack([darkness * scale + shift for scale, shift in channels], 1)
    # A value that lies between two of the type may be rounded to either, for 1e-6 more or less.
    step = {torch.float32: 0, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[dtype]
    torch.testing.assert_close(out.float(), expected, atol=5e-6, rtol=step)
    if dtype != torch.float32:
        assert (out == expected.to(dtype)).float().mean() > 0.99


@settings(deadline=None, max_examples=100)
@given(st.floats(-70_000, 70_000, width=32) | st.floats(-(2**-13), 2**-13, width=32))
def test_values_are_rounded_to_16_bits_as_torch_rounds_them(
    kernels: HostKernels, value: float
) -> None:
    # A white picture holds nothing but the shift.
    trains = make_trains([], [], n_channels=1, rate_hz=1000, lengths=[100])
    made = renderer(on_cpu(kernels), trains, Windows(width_s=0.1, stride_s=0.1), HISTOGRAM, 1)
    for dtype in (torch.float16, torch.bfloat16):
        out = torch.zeros((1, 1, 1, 1), dtype=dtype)
        made.render(0, 1, out, InputChannels.of(((1.0, value),), CPU))
        assert torch.equal(out.view(-1), torch.tensor([value]).to(dtype))


@settings(deadline=None, max_examples=30)
@given(recordings(), windows_in_bins, levels, st.data())
def test_a_slice_is_that_part_of_the_whole_exactly(
    kernels: HostKernels,
    trains: SpikeTrains,
    windows: Windows,
    picture: Picture,
    data: st.DataObject,
) -> None:
    made = renderer(on_cpu(kernels), trains, windows, picture, 16)
    first = data.draw(st.integers(0, len(made)))
    last = data.draw(st.integers(first, len(made)))
    assert torch.equal(made.draw(first, last), made.draw(0, len(made))[first:last])


def test_bars_far_above_the_axis_are_cut(kernels: HostKernels) -> None:
    trains = make_trains([0] * 300, [0] * 300, n_channels=1, rate_hz=100, lengths=[2])
    windows = Windows(width_s=0.02, stride_s=0.02)
    made = renderer(on_cpu(kernels), trains, windows, Picture(count_axis=1e-12), 4)
    expected = torch.ones(4, 4)
    expected[:, :2] = 0
    assert torch.equal(made.draw(0, 1)[0], expected)


@pytest.mark.parametrize(
    "picture", [HISTOGRAM, Picture(count_axis="recording"), LOGARITHMIC, RASTER, SORTED]
)
def test_a_recording_without_spikes_is_white(kernels: HostKernels, picture: Picture) -> None:
    trains = make_trains([], [], n_channels=0, rate_hz=1000, lengths=[2000])
    made = renderer(on_cpu(kernels), trains, Windows(width_s=1.0, stride_s=0.5), picture, 16)
    assert torch.equal(made.draw(0, 3), torch.ones(3, 16, 16))


def test_a_recording_shorter_than_the_window_has_no_pictures(kernels: HostKernels) -> None:
    trains = make_trains([5], [0], n_channels=1, rate_hz=1000, lengths=[999, 9])
    for picture in (HISTOGRAM, Picture(count_axis="recording"), LOGARITHMIC, RASTER, SORTED):
        made = renderer(on_cpu(kernels), trains, Windows(width_s=1.0, stride_s=0.5), picture, 8)
        assert len(made) == 0
        assert made.draw(0, 0).shape == (0, 8, 8)


def test_spikes_placed_once_serve_windows_and_pictures(kernels: HostKernels) -> None:
    placed_by: list[str] = []
    shim = on_cpu(kernels)

    def launch(kernel: str, threads: int, *arguments: torch.Tensor | int | float) -> None:
        placed_by.append(kernel)
        shim(kernel, threads, *arguments)

    trains = RECORDING
    placed = CudaBinnedSpikes(trains, 10.0, CPU, launch)
    for picture in (HISTOGRAM, RASTER):
        for width_s in (10.0, 30.0):
            windows = Windows(width_s=width_s)
            drawn = CudaDrawer(placed, windows, picture, 20).draw(3, 5)
            expected = Drawer(trains, windows, picture, 20).draw(3, 5)
            torch.testing.assert_close(drawn, expected, atol=1e-6, rtol=0)
    # One launch a batch of windows, whatever their number, and one for the spikes.
    assert placed_by == ["render_place", *["render_histogram"] * 2, *["render_raster"] * 2]


class _Padded(torch.nn.Module):
    """Begins as most backbones do: a padded convolution without bias, then a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.relu(self.norm(self.conv(x))).mean((2, 3))


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-5), (HALF, 5e-3)])
@pytest.mark.parametrize("picture", [HISTOGRAM, RASTER])
def test_spikes_become_the_features_of_eager_torch_by_kernels_and_folded_network(
    kernels: HostKernels, dtype: torch.dtype, relative: float, picture: Picture
) -> None:
    torch.manual_seed(0)
    loaded = LoadedBackbone(
        name="padded", input_size=33, n_features=8, mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225), module=_Padded().eval().requires_grad_(False),
        weights="random", weights_sha256="0" * 64, n_parameters=1,
    )  # fmt: skip
    windows = Windows(width_s=10.0)
    made = renderer(on_cpu(kernels), RECORDING, windows, picture, 33)
    found = TorchNetwork(loaded, CPU, dtype, 64).start(made)()
    grey = Drawer(RECORDING, windows, picture, 33).draw(0, len(made))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (loaded.mean, loaded.std))
    expected = loaded.module((grey[:, None] - mean) / std).numpy()
    assert found.shape == (179, 8)
    error = np.linalg.norm(found - expected, axis=1)
    assert (error <= relative * np.linalg.norm(expected, axis=1)).all()


def test_what_cannot_be_drawn_is_refused(kernels: HostKernels) -> None:
    launch = on_cpu(kernels)
    outside = make_trains([100], [0], n_channels=2, rate_hz=1000, lengths=[100])
    with pytest.raises(InputError, match="sample 100 lies outside the recording's 100 samples"):
        CudaBinnedSpikes(outside, 10.0, CPU, launch)
    trains = make_trains([5], [0], n_channels=2, rate_hz=1000, lengths=[100])
    placed = CudaBinnedSpikes(trains, 10.0, CPU, launch)
    windows = Windows(width_s=0.1, stride_s=0.1)
    with pytest.raises(ValueError, match="size must be 1 or more, got 0"):
        CudaDrawer(placed, windows, HISTOGRAM, 0)
    for kind in ("intervals", "correlation"):
        with pytest.raises(ValueError, match=f"{kind} are drawn by `Drawer`"):
            CudaDrawer(placed, windows, Picture.from_json({"kind": kind}), 8)
    with pytest.raises(ValueError, match=r"bins of 10\.0 ms, not 20\.0 ms"):
        CudaDrawer(placed, Windows(width_s=0.1, stride_s=0.1, bin_ms=20.0), HISTOGRAM, 8)
    made = CudaDrawer(placed, windows, HISTOGRAM, 8)
    for first, last in [(0, 2), (-1, 1), (1, 0)]:
        with pytest.raises(IndexError, match="there are 1"):
            made.draw(first, last)
    grey = InputChannels.of(((-1.0, 1.0),), CPU)
    for out in (
        torch.empty(1, 2, 8, 8),
        torch.empty(1, 1, 8, 9),
        torch.empty(1, 1, 8, 8, dtype=torch.float64),
        torch.empty(1, 1, 16, 8)[:, :, ::2],
    ):
        with pytest.raises(ValueError, match="the batch must be"):
            made.render(0, 1, out, grey)


def cuda() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.mark.gpu
@pytest.mark.parametrize(
    "picture",
    [
        HISTOGRAM,
        Picture(count_axis="recording"),
        Picture(count_axis=3.5),
        LOGARITHMIC,
        RASTER,
        SORTED,
    ],
)
@pytest.mark.parametrize("width_s", [120.0, 10.0])
def test_the_gpu_draws_what_the_cpu_draws(picture: Picture, width_s: float) -> None:
    device, windows, trains = cuda(), Windows(width_s=width_s), fifteen_minutes()
    launch = torch_kernels("render", device.index).launch
    made = CudaDrawer(CudaBinnedSpikes(trains, 10.0, device, launch), windows, picture, 224)
    expected = Drawer(trains, windows, picture, 224).draw(0, len(made))
    torch.testing.assert_close(made.draw(0, len(made)).cpu(), expected, atol=1e-6, rtol=0)
    channels = InputChannels.of(CHANNELS[1], device)
    for dtype in (torch.float16, torch.bfloat16):
        out = torch.zeros((len(made), 2, 224, 224), dtype=dtype, device=device)
        out = out.contiguous(memory_format=torch.channels_last)
        made.render(0, len(made), out, channels)
        assert (out[:, 1] == 1).all()
        step = torch.finfo(dtype).eps
        torch.testing.assert_close(out[:, 0].float().cpu(), 1 - expected, atol=2e-6, rtol=step)


@pytest.mark.gpu
def test_drawing_on_the_gpu_keeps_the_order_of_torchs_stream() -> None:
    device, trains = cuda(), fifteen_minutes()
    launch = torch_kernels("render", device.index).launch
    expected = Drawer(trains, Windows(), HISTOGRAM, 224).draw(0, 157)
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        # Work that must be through before, and a reader that must come after.
        slow = torch.rand(4000, 4000, device=device)
        for _ in range(20):
            slow = slow @ slow / 4000
        made = CudaDrawer(CudaBinnedSpikes(trains, 10.0, device, launch), Windows(), HISTOGRAM, 224)
        drawn = made.draw(0, 157).clone()
    side.synchronize()
    torch.testing.assert_close(drawn.cpu(), expected, atol=1e-6, rtol=0)


def test_spikes_that_are_on_the_device_are_placed_from_there(kernels: HostKernels) -> None:
    launch = on_cpu(kernels)
    expected = CudaBinnedSpikes(RECORDING, 10.0, CPU, launch)
    spikes = RECORDING.spikes
    resident = ResidentSpikes(torch.tensor(spikes.sample), torch.tensor(spikes.channel))
    # Other spikes on the host, as many: they must not be looked at.
    silent = replace(RECORDING, spikes=spikes._replace(sample=np.zeros_like(spikes.sample)))
    placed = CudaBinnedSpikes(silent, 10.0, CPU, launch, resident)
    assert torch.equal(placed.count, expected.count)
    assert torch.equal(placed.fired, expected.fired)
