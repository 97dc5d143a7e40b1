"""Commands from recordings to features: extract, and demo, which goes on to scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toptune.cli.options import (
    AlignmentChoice,
    AlignmentOption,
    Device,
    DeviceOption,
    FixedOption,
    HighpassOption,
    JobsOption,
    JsonOption,
    LifetimeOption,
    NoiseChoice,
    NoiseOption,
    OvershootOption,
    PictureChoice,
    PrecisionChoice,
    PrecisionOption,
    RateOption,
    RefractoryOption,
    SeedOption,
    StreamOption,
    ThresholdOption,
    count_axis_of,
    detection_params,
    print_json,
    say,
)


def demo(
    out: Annotated[Path, typer.Option(help="A new folder.")] = Path("toptune-demo"),
    weights: Annotated[str, typer.Option(help="random, imagenet or a file.")] = "random",
    seed: SeedOption = 0,
    n_jobs: JobsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Simulate cultures, extract, fit both heads, print a table: under 2 minutes, offline."""
    from toptune.cli.demo import run_demo
    from toptune.cli.printing import print_demo

    result = run_demo(
        out, weights=weights, seed=seed, n_jobs=n_jobs, step=lambda text: say(f"... {text}")
    )
    if as_json:
        print_json({"folder": str(out), "seconds": result.seconds, "metrics": result.metrics})
    else:
        print_demo(result, weights)


def extract(
    devices: Annotated[Path, typer.Argument(help="CSV: recording,device,label.")],
    store: Annotated[Path, typer.Option(help="The store to make or go on with (*.zarr).")],
    picture: Annotated[PictureChoice, typer.Option()] = PictureChoice.histogram,
    window_s: Annotated[float, typer.Option("--window-s", help="Length of a window.")] = 120.0,
    stride_s: Annotated[float, typer.Option("--stride-s", help="Between windows' starts.")] = 5.0,
    backbone: Annotated[
        str, typer.Option(help="A torchvision model, xception, or timm:NAME.")
    ] = "efficientnet_b0",
    weights: Annotated[
        str, typer.Option(help="imagenet, random, or a .safetensors/.pth file.")
    ] = "imagenet",
    count_axis: Annotated[
        str, typer.Option(help="Top of the histogram: window, recording or a number.")
    ] = "window",
    highpass_hz: HighpassOption = 300.0,
    threshold_sd: ThresholdOption = 8.0,
    lifetime_ms: LifetimeOption = 2.0,
    refractory_ms: RefractoryOption = 1.0,
    overshoot_ms: OvershootOption = 0.5,
    alignment: AlignmentOption = AlignmentChoice.largest,
    noise: NoiseOption = NoiseChoice.smallest_sd,
    threshold_uv: FixedOption = None,
    stream: StreamOption = None,
    sampling_rate_hz: RateOption = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures a batch.")] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="List failing recordings and go on.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--overwrite", help="Go on with a store, or start it anew.")
    ] = True,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = PrecisionChoice.auto,
    n_jobs: JobsOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Detect spikes, draw windows, describe them, and keep it all in a store."""
    from toptune.cli.printing import print_extracted, watch_extraction
    from toptune.extraction import extract as run
    from toptune.params import Backbone, Picture, SpikeSettings, Windows

    highpass, ptsd = detection_params(
        highpass_hz, threshold_sd, lifetime_ms, refractory_ms, overshoot_ms, alignment, noise,
        threshold_uv,
    )  # fmt: skip
    settings = SpikeSettings(
        highpass=highpass, ptsd=ptsd, stream=stream, sampling_rate_hz=sampling_rate_hz
    )
    drawn = Picture(kind=picture.value, count_axis=count_axis_of(count_axis))
    described = Backbone(name=backbone, weights=weights, seed=seed)
    sliding = Windows(width_s=window_s, stride_s=stride_s)
    with watch_extraction() as progress:
        result = run(
            devices, store, windows=sliding, picture=drawn, backbone=described, spikes=settings,
            device=device.value, precision=precision.value, batch_size=batch_size, n_jobs=n_jobs,
            keep_going=keep_going, overwrite=not resume, progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(result.to_json())
    else:
        print_extracted(result)
    if result.failed:
        raise typer.Exit(3)
