"""Run every command of the command line once, with as little work as it can have.

Started as a program by the test of hostile environments, in the folder that `write_inputs` filled:
it takes the place for what is printed, one file for each command, and tells the exit codes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

TINY = "--window-s 2 --stride-s 1 --backbone tiny --weights random"
# A new command goes in here, with what it needs made by those before it.
COMMANDS = {
    "simulate": "simulate simulated --devices 2 --seconds 2 --n-jobs 1",
    "inspect": "inspect K\u00f6ln.csv --duration-s 8 --png overview.png",
    "plate": "plate plate.csv -o plate_devices.csv",
    "detect": "detect r0.h5 -o spikes.npz",
    "extract": f"extract devices.csv --store s.zarr {TINY}",
    "fit": "fit s.zarr --head falkon -o run --no-tune --permutations 0",
    "predict": "predict run/model r0.h5 K\u00f6ln.csv -o predictions",
    "stream": "stream run r0.h5 --speed max --calibration-s 2 -o streamed",
    "sweep": "sweep devices.csv grid.toml -o swept",
    "report": "report run -o again.html",
    "why": "why run/model r0.h5 -o why",
    "doctor": "doctor --json",
    "bench": "bench --quick --backbone tiny --json",
    "demo": "demo --out demo --n-jobs 1 --json",
}
GRID = """
picture = "histogram"
window_s = 2
stride_s = 1
backbone = "tiny"
weights = "random"
head = "falkon"
tune = false
permutations = 0
"""


def write_inputs(folder: Path) -> None:
    """Write six MCS recordings, a culture and a plate as CSV, their devices.csv and a grid."""
    from small_data import write_data_set

    table = write_data_set(folder)
    spikes = [(k / 40, f"E{k % 4}") for k in range(300)]
    culture = "".join(f"{time_s},{name}\n" for time_s, name in spikes)
    (folder / "K\u00f6ln.csv").write_text(f"time_s,channel\n{culture}", "utf-8")
    with table.open("a", encoding="utf-8") as file:
        file.write("K\u00f6ln.csv,K\u00f6ln,C,b0\n")
    wells = "".join(f"{time_s},A1_1{name[1]}\n{time_s},B2_1{name[1]}\n" for time_s, name in spikes)
    (folder / "plate.csv").write_text(f"time_s,channel\n{wells}", "utf-8")
    (folder / "grid.toml").write_text(GRID)


def make_small() -> None:
    """Let backbones be tiny, and those commands that choose their own amount of work do little."""
    import pytest
    from small_data import install_tiny_backbones

    from toptune import bench
    from toptune.cli import demo
    from toptune.params import Windows

    monkeypatch = pytest.MonkeyPatch()
    install_tiny_backbones(monkeypatch)
    sizes = bench.Sizes(
        recording_s=2, pictures=3, devices=10, windows_a_device=4, features=12, epochs=2
    )
    real = bench.bench
    monkeypatch.setattr(bench, "bench", lambda **given: real(**given, sizes=sizes))
    monkeypatch.setattr(demo, "BACKBONE", "tiny")
    monkeypatch.setattr(demo, "WINDOWS", Windows(width_s=2, stride_s=1))
    run = demo.run_demo
    monkeypatch.setattr(
        demo, "run_demo", lambda *given, **named: run(*given, **named, n_devices=10, seconds=4)
    )


def run_all(printed: Path) -> dict[str, object]:
    """Run all commands, each with its output in files of its own."""
    from toptune.cli.app import main

    codes: dict[str, object] = {}
    for name, line in COMMANDS.items():
        for number, stream in ((1, "out"), (2, "err")):
            file = os.open(printed / f"{name}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
            os.close(file)
        sys.argv = ["toptune", *line.split()]
        try:
            main()
        except SystemExit as stop:
            codes[name] = stop.code or 0
        sys.stdout.flush()
        sys.stderr.flush()
    return codes


if __name__ == "__main__":
    place = Path(sys.argv[1])
    make_small()
    found = run_all(place)
    (place / "codes.json").write_text(json.dumps(found))
