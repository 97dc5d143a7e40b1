"""Commands on single recordings: simulate, inspect, detect."""

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
    RateOption,
    RefractoryOption,
    SeedOption,
    StreamOption,
    ThresholdOption,
    check_target,
    detection_params,
    print_json,
)


def simulate(
    directory: Annotated[Path, typer.Argument(help="A folder to write into.")],
    devices: Annotated[int, typer.Option(min=1, help="Cultures to simulate.")] = 10,
    seconds: Annotated[float, typer.Option(help="Length of each recording.")] = 120.0,
    seed: SeedOption = 0,
    n_jobs: JobsOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write MCS recordings of simulated networks, their true spikes, and devices.csv."""
    from toptune.cli.printing import watch_count
    from toptune.machine.threads import usable_cores
    from toptune.recordings.simulated.culture import simulate as run

    with watch_count("simulating", devices) as advance:
        path = run(
            directory,
            n_devices=devices,
            seconds=seconds,
            seed=seed,
            n_jobs=n_jobs or usable_cores(),
            overwrite=overwrite,
            on_device=advance,
        )
    if as_json:
        print_json({"devices": str(path), "n_devices": devices, "seconds": seconds, "seed": seed})
    else:
        typer.echo(f"{devices} recordings of {seconds:g} s; next: toptune extract {path}")


def inspect(
    recording: Annotated[Path, typer.Argument(help="A recording of any kind.")],
    png: Annotated[Path | None, typer.Option(help="Draw the recording into this PNG.")] = None,
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
    device: DeviceOption = Device.auto,
    n_jobs: JobsOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the PNG.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a recording's header, channels, thresholds and rates."""
    from toptune.cli.printing import print_overview
    from toptune.reports.overview import overview
    from toptune.reports.overview_plot import draw_overview

    if png is not None:
        check_target(png, overwrite)
    highpass, ptsd = detection_params(
        highpass_hz, threshold_sd, lifetime_ms, refractory_ms, overshoot_ms, alignment, noise,
        threshold_uv,
    )  # fmt: skip
    view = overview(
        recording, highpass=highpass, ptsd=ptsd, stream=stream, sampling_rate_hz=sampling_rate_hz,
        device=device.value, n_jobs=n_jobs,
    )  # fmt: skip
    if png is not None:
        draw_overview(view, png)
    if as_json:
        print_json(view.summary)
    else:
        print_overview(view.summary)


def detect(
    recording: Annotated[Path, typer.Argument(help="A recording of any kind.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to write, as NPZ.")],
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
    device: DeviceOption = Device.auto,
    n_jobs: JobsOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Find a recording's spikes and write them as NPZ."""
    from toptune.recordings.spike_npz import write_npz
    from toptune.reports.overview import overview

    check_target(out, overwrite)
    highpass, ptsd = detection_params(
        highpass_hz, threshold_sd, lifetime_ms, refractory_ms, overshoot_ms, alignment, noise,
        threshold_uv,
    )  # fmt: skip
    view = overview(
        recording, highpass=highpass, ptsd=ptsd, stream=stream, sampling_rate_hz=sampling_rate_hz,
        device=device.value, n_jobs=n_jobs,
    )  # fmt: skip
    write_npz(view.trains, out)
    summary = {k: v for k, v in view.summary.items() if k != "channels"}
    if as_json:
        print_json({**summary, "out": str(out)})
    else:
        typer.echo(
            f"{summary['n_spikes']} spikes on {summary['n_channels']} channels in"
            f" {summary['duration_s']:.1f} s -> {out}"
        )
