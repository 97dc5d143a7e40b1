"""Options that several commands share, and how commands read values and print results."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toptune.errors import InputError

if TYPE_CHECKING:
    from toptune.params import HighPass, Ptsd


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class PrecisionChoice(StrEnum):
    """In which precision backbones compute."""

    auto = "auto"
    float32 = "float32"
    half = "half"


class Head(StrEnum):
    """What is trained on the features."""

    mlp = "mlp"
    falkon = "falkon"
    parameters = "parameters"


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
PrecisionOption = Annotated[
    PrecisionChoice, typer.Option(help="Of backbones; auto: 16 bits on a GPU, else float32.")
]
JobsOption = Annotated[int | None, typer.Option("--n-jobs", min=1, help="Threads; one a core.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.")]
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


def detection_params(
    highpass_hz: float,
    threshold_sd: float,
    lifetime_ms: float,
    refractory_ms: float,
    overshoot_ms: float,
    alignment: AlignmentChoice,
    noise: NoiseChoice,
    threshold_uv: float | None,
) -> tuple[HighPass, Ptsd]:
    """Check the options of spike detection."""
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


def check_target(path: Path, overwrite: bool) -> None:
    """Refuse a file that cannot or must not be written, before the work is done."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a file")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already: choose another file or --overwrite")


def count_axis_of(text: str) -> str | float:
    """Read `window`, `recording` or a number."""
    try:
        return float(text)
    except ValueError:
        return text


def say(text: str) -> None:
    """Tell the user, on stderr; what a file says cannot steer the terminal."""
    shown = "".join(c if c == "\n" or c.isprintable() else repr(c)[1:-1] for c in text)
    typer.echo(shown, err=True)


def print_json(value: Any) -> None:
    """Print a result as strict JSON, on stdout."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))
