"""One run on a machine with a GPU: does the GPU path work, is it exact, how fast is it.

    python benchmarks/gpu_proof.py --out proof          # on a GPU, in at most six minutes
    python benchmarks/gpu_proof.py --out proof --dry    # all steps on the CPU, with small sizes

Each step is a process of its own with a limit of its own, so that one that crashes or hangs takes
nothing with it. A step writes NAME.json into the output folder after each of its parts, whole or
not at all, and its messages into NAME.log. After each step proof.json holds everything so far. The
table is printed last, whatever happened, and is in table.md, too.

Only the standard library is imported here. What a step does is in gpu_steps.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

TOP = Path(__file__).resolve().parents[1]
# Less is not enough to import torch.
LEAST_S = 4.0
TAIL_LINES = 12
DRY = "DRY RUN on the CPU with small sizes: no figure below is one of a GPU."
# For tests: `NAME=crash` or `NAME=hang`, with commas between.
FAULT = "GPU_PROOF_FAULT"


class Step(NamedTuple):
    """What a step is for, and the seconds after which it is killed."""

    limit_s: float
    about: str


STEPS = {
    "versions": Step(40, "what is installed; every kernel compiled for this GPU and loaded"),
    "ceilings": Step(20, "copy on the device, upload, matrix product"),
    "spikes": Step(50, "filter, means, noise and PTSD: speed, and exact comparison with the CPU"),
    "network": Step(50, "EfficientNetB0 in 16 bits beside torchvision; convolutions; top kernels"),
    "tests": Step(80, "the tests that need a GPU, by file"),
    "pass": Step(70, "spikes of 32 devices to features: six backbones, two pictures, four windows"),
    "heads": Step(40, "folds of Falkon and the MLP on the GPU beside the CPU"),
    "commands": Step(90, "`toptune extract` and `toptune sweep` on 4 simulated devices"),
    "sanitizer": Step(45, "compute-sanitizer on small cases"),
}
#: Run by the sanitizer, and of no use alone.
SMALL = "small"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.step:
        return run_step(options)
    return Run(options).run()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    description, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=rest, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for what is written")
    parser.add_argument("--dry", action="store_true", help="on the CPU, with small sizes")
    parser.add_argument("--steps", default=",".join(STEPS), help="which, in order: %(default)s")
    parser.add_argument("--limit", type=float, default=350, help="seconds for all: %(default)g")
    parser.add_argument("--step", choices=[*STEPS, SMALL], help="run one step in this process")
    parser.add_argument("--step-limit", type=float, help="seconds for each step")
    options = parser.parse_args(arguments)
    options.steps = [name for name in options.steps.split(",") if name]
    unknown = [name for name in options.steps if name not in STEPS]
    if unknown or not options.steps:
        parser.error(f"--steps takes {', '.join(STEPS)}, got {', '.join(unknown) or 'none'}")
    options.out = options.out.resolve()
    return options


def environment(dry: bool) -> dict[str, str]:
    """Let a process import toptune and the helpers of its tests from this checkout."""
    # What an outer pytest tells its own processes is not for the inner one.
    made = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    places = [str(TOP), str(TOP / "tests"), str(TOP / "benchmarks")]
    # Steps work in other folders.
    before = [str(Path(p).resolve()) for p in made.get("PYTHONPATH", "").split(os.pathsep) if p]
    before = [p for p in before if p not in places]
    made |= {"PYTHONPATH": os.pathsep.join([*places, *before]), "PYTHONUNBUFFERED": "1"}
    if dry:
        # Threads of OpenMP would wait for each other where cores are busy.
        made |= {"CUDA_VISIBLE_DEVICES": "", "TOPTUNE_GPU": "", "OMP_NUM_THREADS": "1"}
    return made


def write_whole(path: Path, text: str) -> None:
    """Replace a file at once."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(name).replace(path)


def run_step(options: argparse.Namespace) -> int:
    """Run one step here."""
    fail_on_purpose(options.step)
    # Not before: the process that looks after the steps needs nothing but Python.
    import gpu_steps

    limit_s = options.step_limit or 600.0
    return gpu_steps.run(options.step, options.out, dry=options.dry, limit_s=limit_s)


def fail_on_purpose(name: str) -> None:
    """Crash or hang where a test asks for it."""
    fault = dict(one.partition("=")[::2] for one in os.environ.get(FAULT, "").split(",")).get(name)
    if fault == "crash":
        sys.stderr.write(f"{name} crashes on purpose\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        sys.stderr.write(f"{name} hangs on purpose, and so does process {child.pid}\n")
        sys.stderr.flush()
        time.sleep(3600)


class Run:
    """All steps, one after the other."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out: Path = options.out
        self.begin = time.monotonic()
        self.steps: dict[str, dict[str, Any]] = {}

    def run(self) -> int:
        """Run them; print the table last, and return 0 if everything went well."""
        signal.signal(signal.SIGTERM, _stop)
        try:
            for name in self.options.steps:
                self.say(f"{name}: {STEPS[name].about}")
                self.steps[name] = self.step(name)
                self.keep()
                self.say(f"{name}: {self.steps[name]['status']}")
        finally:
            self.keep()
            sys.stdout.write("\n" + self.table())
            sys.stdout.flush()
        wrong = [s for s in self.steps.values() if s["status"] != "done" or problems_of(s)]
        return 1 if wrong or len(self.steps) < len(self.options.steps) else 0

    def say(self, text: str) -> None:
        sys.stdout.write(f"[{time.monotonic() - self.begin:5.0f} s] {text}\n")
        sys.stdout.flush()

    def step(self, name: str) -> dict[str, Any]:
        """Run a step in a process of its own, and tell what became of it."""
        left = self.options.limit - (time.monotonic() - self.begin)
        limit = min(self.options.step_limit or STEPS[name].limit_s, left)
        if left < LEAST_S:
            return {"status": "no time left", "seconds": 0.0, "tail": [], "result": None}
        written, log = self.out / f"{name}.json", self.out / f"{name}.log"
        written.unlink(missing_ok=True)
        command = [sys.executable, str(Path(__file__).resolve()), "--step", name]
        command += ["--out", str(self.out), "--step-limit", f"{limit:.1f}"]
        command += ["--dry"] if self.options.dry else []
        begin = time.monotonic()
        with log.open("wb") as output:
            status = watched(command, environment(self.options.dry), output, limit)
        seconds = time.monotonic() - begin
        result = json.loads(written.read_text("utf-8")) if written.exists() else None
        if status == "done" and (result is None or not result["complete"]):
            status = "ended early"
        tail = log.read_text("utf-8", "replace").splitlines()[-TAIL_LINES:]
        return {"status": status, "seconds": seconds, "tail": tail, "result": result}

    def keep(self) -> None:
        """Write all that is known so far."""
        facts = {
            "dry": self.options.dry,
            "seconds": time.monotonic() - self.begin,
            "python": sys.version,
            "steps": self.steps,
        }
        write_whole(self.out / "proof.json", json.dumps(facts, indent=1, allow_nan=False) + "\n")
        write_whole(self.out / "table.md", self.table())

    def table(self) -> str:
        """Write the table, in Markdown."""
        rows = [("step", "what", "value", "wanted")]
        for name, step in self.steps.items():
            rows += rows_of(name, step)
        rows += [(name, "not run", "", "") for name in self.options.steps if name not in self.steps]
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        rows.insert(1, tuple("-" * width for width in widths))  # type: ignore[arg-type]  # of four
        lines = [
            "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
            for row in rows
        ]
        seconds = time.monotonic() - self.begin
        head = [DRY, ""] if self.options.dry else []
        return "\n".join([*head, *lines, "", f"{seconds:.0f} s in all.", ""])


def _stop(*_: object) -> NoReturn:
    raise SystemExit(143)


def watched(command: list[str], env: dict[str, str], output: Any, limit_s: float) -> str:
    """Run a command, and kill it and all that it started at its limit; say how it ended."""
    process = subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return f"killed at its limit of {limit_s:.0f} s"
    finally:
        end_group(process)
    if code < 0:
        return f"died of {signal.Signals(-code).name}"
    return "done" if code == 0 else f"failed with code {code}"


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# --- the table


def problems_of(step: dict[str, Any]) -> dict[str, str]:
    """What failed inside a step, by part."""
    return dict((step["result"] or {}).get("problems", {}))


def rows_of(name: str, step: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Give a step's rows: how it ended, what it measured, what went wrong."""
    wrong = problems_of(step)
    ended = f"{step['status']}; {len(wrong)} of its parts FAILED" if wrong else step["status"]
    rows = [(name, ended, f"{step['seconds']:.0f} s", "")]
    rows += [
        (name, row["what"], value_text(row["value"], row["unit"]), wanted_text(row))
        for row in (step["result"] or {}).get("rows", [])
    ]
    rows += [(name, f"{part} FAILED", one_line(text), "") for part, text in wrong.items()]
    if step["status"] not in ("done", "no time left"):
        rows += [(name, "its last words", one_line(" ".join(step["tail"][-3:])), "")]
    return rows


def value_text(value: float | str | bool | None, unit: str) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, str):
        return one_line(value)
    whole = isinstance(value, int) or abs(value) >= 1000
    return f"{value:,.0f} {unit}".strip() if whole else f"{value:.4g} {unit}".strip()


def wanted_text(row: dict[str, Any]) -> str:
    if not row.get("wanted"):
        return ""
    met = {True: ": met", False: ": NOT MET", None: ""}[row.get("met")]
    return f"{row['wanted']}{met}"


def one_line(text: str, most: int = 120) -> str:
    """Make a cell of a text; what matters in a traceback stands at its end."""
    words = " ".join(text.replace("|", "/").split())
    return words if len(words) <= most else f"... {words[-most:]}"


if __name__ == "__main__":
    sys.exit(main())
