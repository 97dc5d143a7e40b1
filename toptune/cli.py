"""The command line: a command parses, calls one function, prints.

Results go to stdout (as JSON alone with --json), everything else to stderr. Exit codes: 0 done,
1 failed, 2 wrong usage or input, 3 some recordings failed and were listed.
"""

from __future__ import annotations

import json
import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toptune.errors import InputError, ToptuneError

if TYPE_CHECKING:
    from toptune.params import HighPass, Ptsd

# Heavy modules are imported inside the commands, so that --help answers at once.

app = typer.Typer(
    name="toptune",
    help="Tell from micro-electrode-array recordings which kind of neuronal network made them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Head(StrEnum):
    """What is trained on the features."""

    mlp = "mlp"
    falkon = "falkon"


class Solver(StrEnum):
    """What solves Falkon's equations."""

    direct = "direct"
    iterative = "iterative"
    falkon = "falkon"


class PictureChoice(StrEnum):
    """How a window is drawn."""

    histogram = "histogram"
    raster = "raster"


class AlignmentChoice(StrEnum):
    """Which of a spike's two peaks dates it."""

    largest = "largest"
    negative = "negative"


class NoiseChoice(StrEnum):
    """How a channel's noise is estimated."""

    smallest_sd = "smallest_sd"
    mad = "mad"
    fixed = "fixed"


DeviceOption = Annotated[Device, typer.Option(help="Where to compute; auto takes a GPU if any.")]
JobsOption = Annotated[int | None, typer.Option("--n-jobs", min=1, help="Threads; one a core.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print pure JSON on stdout.")]
HighpassOption = Annotated[float, typer.Option("--highpass-hz", help="Cut-off; 0 for no filter.")]
ThresholdOption = Annotated[
    float, typer.Option("--threshold-sd", help="Peak-to-peak threshold, in noise SDs.")
]
LifetimeOption = Annotated[float, typer.Option("--lifetime-ms", help="Peak lifetime period.")]
RefractoryOption = Annotated[float, typer.Option("--refractory-ms", help="Refractory period.")]
OvershootOption = Annotated[float, typer.Option("--overshoot-ms", help="Extension at the edge.")]
AlignmentOption = Annotated[AlignmentChoice, typer.Option(help="Which peak dates a spike.")]
NoiseOption = Annotated[NoiseChoice, typer.Option(help="Noise estimate.")]
FixedOption = Annotated[
    float | None, typer.Option("--threshold-uv", help="Peak-to-peak uV; with --noise fixed.")
]
StreamOption = Annotated[
    str | None, typer.Option(help="Label of the electrode stream, where a file has several.")
]
RateOption = Annotated[
    float | None,
    typer.Option("--sampling-rate-hz", help="For spike files that do not tell; 10 kHz if not set."),
]


def _detection(
    highpass_hz: float,
    threshold_sd: float,
    lifetime_ms: float,
    refractory_ms: float,
    overshoot_ms: float,
    alignment: AlignmentChoice,
    noise: NoiseChoice,
    threshold_uv: float | None,
) -> tuple[HighPass, Ptsd]:
    from toptune.params import HighPass, Ptsd

    ptsd = Ptsd(
        threshold_sd=threshold_sd,
        lifetime_ms=lifetime_ms,
        refractory_ms=refractory_ms,
        overshoot_ms=overshoot_ms,
        alignment=alignment.value,
        noise=noise.value,
        threshold_uv=threshold_uv,
    )
    return HighPass(cutoff_hz=highpass_hz), ptsd


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="A new folder.")] = Path("toptune-demo"),
    weights: Annotated[str, typer.Option(help="random, imagenet or a file.")] = "random",
    seed: SeedOption = 0,
    n_jobs: JobsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Simulate cultures, extract, fit both heads, print a table: under 2 minutes, offline."""
    from toptune.demo import run_demo
    from toptune.printing import print_demo

    result = run_demo(
        out, weights=weights, seed=seed, n_jobs=n_jobs, step=lambda text: _say(f"... {text}")
    )
    if as_json:
        _print_json({"folder": str(out), "seconds": result.seconds, "metrics": result.metrics})
    else:
        print_demo(result, weights)


@app.command()
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
    from toptune.printing import watch_count
    from toptune.simulate import simulate as run
    from toptune.threads import usable_cores

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
        _print_json({"devices": str(path), "n_devices": devices, "seconds": seconds, "seed": seed})
    else:
        typer.echo(f"{devices} recordings of {seconds:g} s; next: toptune extract {path}")


@app.command()
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
    n_jobs: JobsOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the PNG.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a recording's header, channels, thresholds and rates."""
    from toptune.overview import draw_overview, overview
    from toptune.printing import print_overview

    if png is not None:
        _check_target(png, overwrite)
    highpass, ptsd = _detection(
        highpass_hz, threshold_sd, lifetime_ms, refractory_ms, overshoot_ms, alignment, noise,
        threshold_uv,
    )  # fmt: skip
    view = overview(
        recording, highpass=highpass, ptsd=ptsd, stream=stream, sampling_rate_hz=sampling_rate_hz,
        n_jobs=n_jobs,
    )  # fmt: skip
    if png is not None:
        draw_overview(view, png)
    if as_json:
        _print_json(view.summary)
    else:
        print_overview(view.summary)


@app.command()
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
    n_jobs: JobsOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Find a recording's spikes and write them as NPZ."""
    from toptune.overview import overview
    from toptune.spikefiles import write_npz

    _check_target(out, overwrite)
    highpass, ptsd = _detection(
        highpass_hz, threshold_sd, lifetime_ms, refractory_ms, overshoot_ms, alignment, noise,
        threshold_uv,
    )  # fmt: skip
    view = overview(
        recording, highpass=highpass, ptsd=ptsd, stream=stream, sampling_rate_hz=sampling_rate_hz,
        n_jobs=n_jobs,
    )  # fmt: skip
    write_npz(view.trains, out)
    summary = {k: v for k, v in view.summary.items() if k != "channels"}
    if as_json:
        _print_json({**summary, "out": str(out)})
    else:
        typer.echo(
            f"{summary['n_spikes']} spikes on {summary['n_channels']} channels in"
            f" {summary['duration_s']:.1f} s -> {out}"
        )


@app.command()
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
    n_jobs: JobsOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Detect spikes, draw windows, describe them, and keep it all in a store."""
    from toptune.extraction import SpikeSettings
    from toptune.extraction import extract as run
    from toptune.params import Backbone, Picture, Windows
    from toptune.printing import print_extracted, watch_extraction

    highpass, ptsd = _detection(
        highpass_hz, threshold_sd, lifetime_ms, refractory_ms, overshoot_ms, alignment, noise,
        threshold_uv,
    )  # fmt: skip
    settings = SpikeSettings(
        highpass=highpass, ptsd=ptsd, stream=stream, sampling_rate_hz=sampling_rate_hz
    )
    drawn = Picture(kind=picture.value, count_axis=_count_axis(count_axis))
    described = Backbone(name=backbone, weights=weights, seed=seed)
    sliding = Windows(width_s=window_s, stride_s=stride_s)
    with watch_extraction() as progress:
        result = run(
            devices, store, windows=sliding, picture=drawn, backbone=described, spikes=settings,
            device=device.value, batch_size=batch_size, n_jobs=n_jobs, keep_going=keep_going,
            overwrite=not resume, progress=progress,
        )  # fmt: skip
    if as_json:
        _print_json(result.to_json())
    else:
        print_extracted(result)
    if result.failed:
        raise typer.Exit(3)


@app.command()
def fit(
    store: Annotated[Path, typer.Argument(help="A store made by extract.")],
    head: Annotated[Head, typer.Option(help="What to train on the features.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A new folder for the run.")],
    group_by: Annotated[
        str, typer.Option(help="Column of devices.csv that is left out together.")
    ] = "device",
    merge: Annotated[
        list[str] | None, typer.Option(help="NAME=A,B,C merges classes; may be repeated.")
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(help="Which features, where the store has several; repeated: fuse them."),
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune/--no-tune", help="Choose parameters inside every fold.")
    ] = True,
    width: Annotated[
        list[float] | None,
        typer.Option(help="Falkon: SD of the Gaussian. One value fixes it, several are tried."),
    ] = None,
    penalty: Annotated[
        list[float] | None, typer.Option(help="Falkon: ridge per row; one or several.")
    ] = None,
    view_weights: Annotated[
        list[str] | None,
        typer.Option(help="Falkon, fused features: weights such as 0.5,0.5; one or several."),
    ] = None,
    n_centres: Annotated[
        int | None, typer.Option(help="Falkon: Nystrom centres; all rows if they fit.")
    ] = None,
    solver: Annotated[Solver | None, typer.Option(help="Falkon; see docs/falkon.md.")] = None,
    epochs: Annotated[int | None, typer.Option(help="MLP.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="MLP.")] = None,
    learning_rate_decay: Annotated[
        list[float] | None,
        typer.Option(help="MLP: factor from epoch to epoch; one or several."),
    ] = None,
    weight_decay: Annotated[
        list[float] | None, typer.Option(help="MLP: L2 penalty; one or several.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="MLP.")] = None,
    permutations: Annotated[
        int | None,
        typer.Option(min=0, help="Shuffles for the p-value: 1000 for Falkon, 0 for the MLP."),
    ] = None,
    strata: Annotated[
        str | None, typer.Option(help="Column of devices.csv within which labels are shuffled.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run.")] = False,
    device: DeviceOption = Device.auto,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a head, leaving each device out once, and score it."""
    given: dict[Head, dict[str, Any]] = {
        Head.falkon: {
            "width": width,
            "penalty": penalty,
            "view_weights": [_weights(text) for text in view_weights or ()],
            "n_centres": n_centres,
            "solver": None if solver is None else solver.value,
        },
        Head.mlp: {
            "epochs": epochs,
            "learning_rate": learning_rate,
            "learning_rate_decay": learning_rate_decay,
            "weight_decay": weight_decay,
            "batch_size": batch_size,
        },
    }
    for other, options in given.items():
        for name, value in options.items():
            if other is not head and value:
                option = "--" + name.replace("_", "-")
                raise InputError(f"{option} belongs to --head {other.value}, not {head.value}")
    from toptune.featuretable import join_tables
    from toptune.fit import fit as run
    from toptune.printing import print_scores, watch_steps
    from toptune.store import FeatureStore

    opened = FeatureStore(store)
    table = join_tables([opened.table(opened.choose(w)) for w in features or (None,)])
    fixed, grid = _fixed_and_tried(given[head])
    with watch_steps() as progress:
        result = run(
            table, head.value, out, facts=opened.training_facts(table), group_by=group_by,
            merge=merge or (), head_params=fixed, tune=tune, grid=grid, permutations=permutations,
            strata=strata, seed=seed, device=device.value, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    if as_json:
        _print_json(result.metrics)
    else:
        print_scores({head.value: result.metrics})
        typer.echo(f"run: {result.path}")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="The model folder of a run.")],
    recordings: Annotated[list[Path], typer.Argument(help="Recordings of any kind.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A new folder for windows.csv and verdicts.")
    ] = None,
    weights: Annotated[
        list[Path] | None, typer.Option(help="Backbone weights that have moved; may be repeated.")
    ] = None,
    stream: StreamOption = None,
    sampling_rate_hz: RateOption = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures a batch.")] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="List failing recordings and go on.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a prediction.")] = False,
    device: DeviceOption = Device.auto,
    n_jobs: JobsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say which class each recording looks like, and what speaks against trusting it."""
    from toptune.prediction import predict as run
    from toptune.printing import print_predictions, watch_extraction

    with watch_extraction() as progress:
        result = run(
            model, recordings, weights=weights or (), stream=stream,
            sampling_rate_hz=sampling_rate_hz, device=device.value, n_jobs=n_jobs,
            batch_size=batch_size, out=out, overwrite=overwrite, keep_going=keep_going,
            progress=progress,
        )  # fmt: skip
    if as_json:
        _print_json(result.to_json())
    else:
        print_predictions(result)
    if result.failed:
        raise typer.Exit(3)


def _weights(text: str) -> tuple[float, ...]:
    """Read numbers between commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--view-weights {text!r} is not of the form 0.5,0.5") from None


def _fixed_and_tried(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Tell options with one value, which are fixed, from those with several, which are tried."""
    fixed: dict[str, Any] = {}
    tried: dict[str, list[Any]] = {}
    for name, value in given.items():
        if isinstance(value, list) and len(value) > 1:
            tried[name] = value
        elif isinstance(value, list) and value:
            fixed[name] = value[0]
        elif value is not None and value != []:
            fixed[name] = value
    return fixed, tried


def _check_target(path: Path, overwrite: bool) -> None:
    """Refuse a file that cannot or must not be written, before the work is done."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a file")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already: choose another file or --overwrite")


def _count_axis(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def main() -> None:
    """Run the command line; every foreseen error is one line on stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        app()
    except ToptuneError as error:
        _say(f"error: {error}")
        sys.exit(error.exit_code)
    except OSError as error:
        _say(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        _say("interrupted; what was published is kept")
        sys.exit(130)
