"""Spikes, burst parameters and their classifiers, where neither torch nor a network is installed.

A program: it works through a study in the folder it is given, and fails where something did not
end as it should. `.ci/run` starts it in an environment in which only toptune's own dependencies
are installed.
"""

from __future__ import annotations

import contextlib
import io
import sys
from importlib.util import find_spec
from pathlib import Path

from toptune.cli.app import main
from toptune.machine.installation import NETWORKS

OWN = "parameters 4 s every 2 s"
RECORDING = "data/D01_100E0I.h5"
# The words of a command, its exit code, and what it says.
COMMANDS: tuple[tuple[tuple[str, ...], int, str], ...] = (
    (("simulate", "data", "--devices", "10", "--seconds", "12", "--n-jobs", "1"), 0, "10 rec"),
    (("inspect", RECORDING, "--png", "overview.png"), 0, "n_channels"),
    (("detect", RECORDING, "-o", "spikes.npz"), 0, "spikes on"),
    (("extract", "data/devices.csv", "--store", "s.zarr"), 1, "pip install 'toptune[networks]'"),
    (("extract", "data/devices.csv", "--store", "s.zarr", "--picture", "none"), 0, "next: toptune"),
    (("extract", "data/devices.csv", "--store", "s.zarr", "--picture", "none"), 0, "next: toptune"),
    (("fit", "s.zarr", "--head", "parameters", "--permutations", "5", "-o", "linear"), 0, "report"),
    (("fit", "s.zarr", "--features", OWN, "--permutations", "5", "-o", "falkon"), 0, "report"),
    (("fit", "s.zarr", "--features", OWN, "--head", "recordings", "-o", "means"), 0, "report"),
    (("fit", "s.zarr", "--features", OWN, "--head", "mlp", "-o", "x"), 1, "toptune[networks]"),
    (("fit", "s.zarr", "--features", OWN, "--device", "cuda", "-o", "x"), 2, "finds no GPU"),
    (("report", "linear", "--beside", "falkon"), 0, "report.html"),
    (("predict", "linear/model", RECORDING), 0, "cross-validated"),
    (("predict", "falkon/model", RECORDING, "spikes.npz", "-o", "verdicts"), 0, "cross-validated"),
    (("why", "falkon/model", RECORDING, "-o", "why"), 0, "contributed most"),
    (("doctor", "s.zarr"), 0, "sound"),
    (("sweep", "data/devices.csv", "table1", "-o", "swept"), 1, "toptune[networks]"),
    (("demo", "--out", "demo"), 1, "toptune[networks]"),
)


def run(words: tuple[str, ...]) -> tuple[int, str]:
    """Run a command in this process; its exit code and all that it printed."""
    said = io.StringIO()
    sys.argv = ["toptune", *words]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
    return 0, said.getvalue()


def work() -> None:
    """Work through the study in the working folder."""
    there = [name for name in NETWORKS if find_spec(name) is not None]
    if there:
        raise SystemExit(f"{there} can be imported here, so this proves nothing")
    for words, wanted, expected in COMMANDS:
        code, said = run(words)
        if code != wanted or expected not in said:
            raise SystemExit(f"toptune {' '.join(words)}\nexit code {code}, said:\n{said}")
    left = [name for name in ("x", "swept", "demo") if Path(name).exists()]
    if left:
        raise SystemExit(f"a command that was refused left {left}")


if __name__ == "__main__":
    work()
