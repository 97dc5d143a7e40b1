"""Parameters at and beyond their bounds, on good files."""

from __future__ import annotations

from bad_case import EXTRACT, FIT, PREDICT, Case, options

DETECT = ("detect", "r0.csv", "-o", "out.npz")
MLP = ("fit", "s.zarr", "--head", "mlp", "-o", "new-run", "--no-tune")


def each(command: tuple[str, ...], option: str, *values: str, says: str = "") -> tuple[Case, ...]:
    """Refuse each value of an option."""
    name = f"{command[0]} {option}"
    return tuple(
        options(f"{name} {value}", (*command, option, value), says or value) for value in values
    )


CASES = (
    *each(EXTRACT, "--threshold-sd", "0", "-1", "nan", "inf", says="--threshold-sd must be"),
    *each(EXTRACT, "--lifetime-ms", "0", "-2", "nan", says="--lifetime-ms must be above 0"),
    *each(EXTRACT, "--refractory-ms", "-0.1", "nan", says="--refractory-ms must be 0 or above"),
    *each(EXTRACT, "--overshoot-ms", "-1", "inf", says="--overshoot-ms must be 0 or above"),
    *each(EXTRACT, "--highpass-hz", "-1", "nan", "inf", says="--highpass-hz must be"),
    *each(EXTRACT, "--highpass-order", "0", "9", says="--highpass-order must be a whole number"),
    *each(EXTRACT, "--threshold-uv", "50", says="None unless --noise fixed"),
    *each((*EXTRACT, "--noise", "fixed"), "--threshold-uv", "0", "nan", says="--threshold-uv"),
    *each(EXTRACT, "--window-s", "0", "-1", "nan", "inf", says="--window-s must be above 0"),
    *each(EXTRACT, "--window-s", "0.0001", "1.0005", says="a whole number of 10 ms bins"),
    *each(EXTRACT, "--stride-s", "0", "-1", "nan", says="--stride-s must be above 0"),
    *each(EXTRACT, "--stride-s", "0.001", says="a whole number of 10 ms bins"),
    *each(EXTRACT, "--count-axis", "0", "-3", "nan", "inf", "tall", says="--count-axis must"),
    *each(
        (*EXTRACT, "--picture", "raster"), "--count-axis", "5", says="only a histogram has a count"
    ),
    *each(EXTRACT, "--picture", "", "rasters", says="--picture must be one of histogram, raster"),
    *each((*EXTRACT, "--picture", "recommended"), "--count-axis", "log", says="have their own"),
    *each(EXTRACT, "--backbone", "", "resnet9000", "timm:", "timm:nothing"),
    *each(EXTRACT, "--weights", "", says="imagenet, random"),
    *each(EXTRACT, "--sampling-rate-hz", "0", "-1", "nan", "inf", "1e12", says="sampling-rate-hz"),
    *each(DETECT, "--sampling-rate-hz", "0", "-1", "nan", "1e300", says="sampling-rate-hz must be"),
    options("detect into a folder", (*DETECT[:-1], "run"), "run is a folder"),
    options("detect into no folder", (*DETECT[:-1], "no/out.npz"), "there is no folder no"),
    options("detect over a file", (*DETECT[:-1], "r1.csv"), "r1.csv exists already"),
    *each(FIT, "--width", "0", "-1", "nan", "inf", says="width"),
    *each(FIT, "--penalty", "0", "-1", "nan", "inf", says="penalty"),
    *each(FIT, "--n-centres", "0", "-5", says="n-centres"),
    *each(FIT, "--view-weights", "a", "nan", "-1", "0.5,0.5", says="view"),
    *each(FIT, "--merge", "x", "x=", "=A", "x=A,Q", "A=B", says="merge"),
    *each(FIT, "--group-by", "plate", "", says="nor have 5 others"),
    *each(FIT, "--features", "raster", "zzz", says="0 sets like"),
    *each(FIT, "--strata", "plate", says="plate"),
    *each(MLP, "--epochs", "0", "-1", says="epochs"),
    *each(MLP, "--batch-size", "0", "-1", says="batch-size"),
    *each(MLP, "--learning-rate", "0", "-1", "nan", "inf", says="learning-rate"),
    *each(MLP, "--learning-rate-decay", "0", "-1", "nan", "2", says="learning-rate-decay"),
    *each(MLP, "--weight-decay", "-1", "nan", "inf", says="weight-decay"),
    options("predict without a recording that is there", (*PREDICT[:2], "no.csv"), "no.csv"),
    options("predict one recording twice", (*PREDICT[:2], "r0.csv", "./r0.csv"), "named twice"),
    options("predict into a file", (*PREDICT[:-1], "r1.csv"), "r1.csv"),
    *each(PREDICT, "--sampling-rate-hz", "0", "nan", "1e300", says="sampling-rate-hz"),
    *each(("simulate", "sim"), "--seconds", "0", "-1", "nan", "inf", "1e12", says="seconds"),
    options("simulate into a file", ("simulate", "r0.csv"), "r0.csv"),
    options("demo into what is there", ("demo", "--out", "run"), "run"),
)
