"""Record what the code gives on a small study, and compare two records byte by byte.

Not collected by pytest: it holds a change that must not change results. With the code before it

    python tests/same_results.py record /tmp/before --study /tmp/study

with the code after it the same into another folder, and then

    python tests/same_results.py compare /tmp/before /tmp/after

Compared are spikes, stores, runs of all classifiers, predictions, explanations and the tables of a
sweep; not compared are times, pictures, and the wording of reports.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

# Differ from run to run, or hold words.
TIMES = ("seconds", "per_second", "per_s", "pictures_s")
SKIPPED = (".html", ".png", ".lock", ".svg")
START = (
    "import importlib.util as u\nif u.find_spec('toptune.__main__'):\n"
    "    from toptune.__main__ import main\nelse:\n    from toptune.cli.app import main\nmain()"
)


def toptune(*arguments: object, cwd: Path) -> str:
    """Run a command; give what it printed on stdout."""
    print("$ toptune", *arguments, flush=True)  # noqa: T201
    done = subprocess.run(
        [sys.executable, "-c", START, *map(str, arguments)],
        cwd=cwd, check=False, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}: {done.stderr[-3000:]}")
    return done.stdout


def simulate(study: Path) -> None:
    """Simulate ten cultures; what is there already is used again, so that all bytes are equal."""
    if not (study / "devices.csv").exists():
        toptune("simulate", study, "--devices", 10, "--seconds", 30, "--seed", 7, cwd=Path())


def record(out: Path, study: Path) -> None:
    """Run every command whose results are compared."""
    out.mkdir(parents=True)
    table = study / "devices.csv"
    recording, other = sorted(study.glob("**/*.h5"))[:2]
    extract = ["extract", table, "--store", "s.zarr", "--window-s", 10, "--stride-s", 1]
    network = ["--backbone", "mobilenet_v2", "--weights", "random"]
    printed = {
        "inspect": toptune("inspect", recording, "--json", cwd=out),
        "detect": toptune("detect", recording, "-o", "spikes.npz", "--json", cwd=out),
        "extract": toptune(*extract, *network, "--json", cwd=out),
        "raster": toptune(*extract, *network, "--picture", "raster", "--json", cwd=out),
    }
    fits = {
        "falkon": "falkon --features histogram --permutations 50",
        "mlp": "mlp --features raster --epochs 8",
        "mlp-plain": "mlp --features raster --no-tune --merge x=75E25I,50E50I",
        "parameters": "parameters --permutations 20",
        "fused": "falkon --features histogram --features raster --features parameters"
        " --permutations 20 --n-centres 60",
        "iterative": "falkon --features histogram --solver iterative --no-tune --permutations 0",
    }
    for name, options in fits.items():
        printed[name] = toptune(
            "fit", "s.zarr", "--head", *options.split(), "-o", name, "--json", cwd=out
        )
        model = f"{name}/model"
        printed[f"{name} predicts"] = toptune(
            "predict", model, recording, other, "-o", f"{name}-verdicts", "--json", cwd=out,
        )  # fmt: skip
    printed["why"] = toptune("why", "fused/model", recording, "-o", "why", "--json", cwd=out)
    grid = out / "grid.toml"
    grid.write_text(
        'picture = ["histogram", "raster"]\nwindow_s = [10, 5]\nstride_s = 2\n'
        'backbone = "mobilenet_v2"\nweights = "random"\n'
        'head = ["mlp", "falkon", "parameters"]\npermutations = 10\n'
        "[mlp]\ntune = false\nepochs = 5\npermutations = 0\n[falkon]\nwidth = [[0.5, 1.0]]\n"
    )
    printed["sweep"] = toptune("sweep", table, grid.name, "-o", "sweep", "--json", cwd=out)
    (out / "printed.json").write_text(json.dumps(printed))


def timeless(value: Any, place: str) -> Any:
    """Take times and the record's own place out of a JSON value."""
    if isinstance(value, dict):
        return {k: timeless(v, place) for k, v in value.items() if not any(t in k for t in TIMES)}
    if isinstance(value, list):
        return [timeless(v, place) for v in value]
    return value.replace(place, "OUT") if isinstance(value, str) else value


def digest(path: Path, place: Path) -> dict[str, str]:
    """Digest what a file says, part by part where it has parts."""
    where = path.relative_to(place).as_posix()
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {
                f"{where}:{k}": repr((a.dtype, a.shape, sha(a.tobytes())))
                for k, a in arrays.items()
            }
    if path.suffix == ".json" and "zarr" not in where:
        value = json.loads(path.read_text("utf-8"))
        if path.name == "printed.json":
            value = {k: json.loads(text) for k, text in value.items()}
        return flat(timeless(value, str(place)), where)
    if path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))
        return {where: sha(json.dumps(timeless(rows, str(place))).encode())}
    if path.suffix == ".md":
        return {where: sha(path.read_bytes())} if path.name != "table.md" else {}
    return {where: sha(path.read_bytes())}


def flat(value: Any, name: str) -> dict[str, str]:
    """Name every leaf of a JSON value."""
    if isinstance(value, dict) and value:
        return {k: v for key, part in value.items() for k, v in flat(part, f"{name}:{key}").items()}
    return {name: json.dumps(value)}


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digests(place: Path) -> dict[str, str]:
    """Digest a whole record."""
    found: dict[str, str] = {}
    for path in sorted(place.rglob("*")):
        volatile = path.name in ("environment.json", "sweep.json") or "measured" in path.parts
        if path.is_file() and path.suffix not in SKIPPED and not volatile:
            found |= digest(path, place)
    return found


def compare(before: Path, after: Path) -> int:
    """Say what differs; the number of differences."""
    a, b = digests(before), digests(after)
    different = [k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]
    for k in different:
        print(f"{k}\n  - {a.get(k, '(absent)')[:300]}\n  + {b.get(k, '(absent)')[:300]}")  # noqa: T201
    print(f"{len(a)} parts before, {len(b)} after, {len(different)} differ")  # noqa: T201
    return len(different)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("out", type=Path)
    recording.add_argument("--study", type=Path, required=True)
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    given = parser.parse_args()
    if given.command == "record":
        study, out = given.study.resolve(), given.out.resolve()
        simulate(study)
        record(out, study)
    elif compare(given.before.resolve(), given.after.resolve()):
        sys.exit(1)


if __name__ == "__main__":
    main()
