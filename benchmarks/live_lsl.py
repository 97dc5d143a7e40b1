"""Verdicts on a stream of the Lab Streaming Layer in real time: how late, and whether right.

    python benchmarks/live_lsl.py                    # five minutes of 60 channels at 10 kHz
    python benchmarks/live_lsl.py --seconds 20 --window-s 5 --stride-s 1

Cultures are simulated, a model is trained on them, and a further recording is sent in real time by
another process on this machine. Latency is the time from when a window's last sample was at hand to
its verdict. Then the same recording is replayed without waiting: its verdicts must be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NAME = "toptune benchmark"
# Streams are looked for on this machine only.
CONFIGURATION = """
[log]
level = -3
[ports]
IPv6 = disable
[multicast]
ResolveScope = machine
[lab]
KnownPeers = {127.0.0.1}
SessionID = toptune-benchmark
"""
PIECE_S = 0.02


def main() -> int:
    """Make what is needed, send it, and print what came of it."""
    asked = _arguments()
    if asked.send is not None:
        send(asked.send, asked.seconds)
        return 0
    if asked.folder is not None:
        asked.folder.mkdir(parents=True, exist_ok=True)
        return measure(asked.folder, asked)
    with tempfile.TemporaryDirectory() as folder:
        return measure(Path(folder), asked)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="length of the stream")
    parser.add_argument("--window-s", type=float, default=120.0)
    parser.add_argument("--stride-s", type=float, default=5.0)
    parser.add_argument("--calibration-s", type=float, default=30.0)
    parser.add_argument("--backbone", default="efficientnet_b0", help="with random weights")
    parser.add_argument("--devices", type=int, default=10, help="to train on")
    parser.add_argument("--folder", type=Path, help="keep recordings and model, or take them")
    parser.add_argument("--send", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(folder: Path, asked: argparse.Namespace) -> int:
    """Train, stream, replay and compare."""
    config = folder / "lsl_api.cfg"
    config.write_text(CONFIGURATION)
    os.environ["LSLAPICFG"] = str(config)
    recording = make(folder, asked)
    run = folder / "run"
    load = os.getloadavg()[0]
    command = [sys.executable, __file__, "--send", str(recording), "--seconds", str(asked.seconds)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as sender:
        assert sender.stdin is not None
        assert sender.stdout is not None
        sender.stdout.readline()
        begun = _cpu_s()
        live, notes = verdicts(run, f"lsl:{NAME}", asked, ready=sender.stdin.close)
        used = _cpu_s() - begun
    begun_s = time.monotonic()
    replayed, _ = verdicts(run, recording, asked, speed="max", until_s=asked.seconds)
    took_s = time.monotonic() - begun_s
    late = 1000 * np.array([one.latency_s for one in live])
    differing = [
        name
        for one, other in zip(map(_facts, live), map(_facts, replayed), strict=False)
        for name in one
        if one[name] != other[name]
    ]
    same = len(live) == len(replayed) and not differing
    _say(
        verdicts=len(live),
        latency_ms={
            "first": late[0] if live else None,
            "median": np.median(late) if live else None,
            "p95": np.quantile(late, 0.95) if live else None,
            "largest": late.max(initial=0.0),
        },
        samples_lost=live[-1].n_dropped if live else None,
        notes=notes,
        same_as_replayed=same,
        differing=sorted(set(differing)),
        replay_times_real_time=asked.seconds / took_s,
        cpu_share=used / asked.seconds,
        load={"before": load, "after": os.getloadavg()[0]},
        cores=os.cpu_count(),
        backbone=asked.backbone,
    )
    return 0 if same and live else 1


def make(folder: Path, asked: argparse.Namespace) -> Path:
    """Simulate cultures, train on all but one, and return that one's recording."""
    if (folder / "run").exists():
        return next((folder / "more").glob("*.h5"))
    length_s = asked.window_s + 4 * asked.stride_s
    _toptune("simulate", folder / "data", "--devices", asked.devices, "--seconds", length_s)
    _toptune("simulate", folder / "more", "--devices", 1, "--seconds", asked.seconds, "--seed", 1)
    _toptune(
        *("extract", folder / "data" / "devices.csv", "--store", folder / "s.zarr"),
        *("--backbone", asked.backbone, "--weights", "random"),
        *("--window-s", asked.window_s, "--stride-s", asked.stride_s),
    )
    _toptune(*("fit", folder / "s.zarr", "-o", folder / "run", "--no-tune", "--permutations", 0))
    return next((folder / "more").glob("*.h5"))


def verdicts(
    run: Path,
    source: str | Path,
    asked: argparse.Namespace,
    *,
    speed: Any = None,
    until_s: float = np.inf,
    ready: Callable[[], None] | None = None,
) -> tuple[list[Any], list[str]]:
    """Read a source to its end: the verdicts, and the notes."""
    from toptune.live import open_source
    from toptune.live.blocks import Note
    from toptune.live.engine import LiveSession, LiveVerdict
    from toptune.params import Waiting

    opened = open_source(source, speed=speed, waiting=None if speed else Waiting(end_after_s=5.0))
    found, notes = [], []
    with LiveSession(
        run, opened, stride_s=asked.stride_s, calibration_s=asked.calibration_s
    ) as session:
        if ready is not None:
            ready()
        for event in session.events():
            if isinstance(event, LiveVerdict) and event.stop_s <= until_s:
                found.append(event)
            elif isinstance(event, Note):
                notes.append(f"{event.at_s:.1f} s {event.kind}: {event.text}")
    return found, notes


def send(recording: Path, seconds: float) -> None:
    """Send a recording in real time, once the standard input is closed."""
    import pylsl

    from toptune.recordings.opening import open_recording

    with open_recording(recording) as opened:  # type: ignore[union-attr]  # simulated: voltage
        labels, rate = opened.channel_labels, opened.sampling_rate_hz
        info = pylsl.StreamInfo(NAME, "ephys", len(labels), rate, "float32", NAME)
        channels = info.desc().append_child("channels")
        for label in labels:
            channel = channels.append_child("channel")
            channel.append_child_value("label", label)
            channel.append_child_value("unit", "microvolts")
        outlet = pylsl.StreamOutlet(info, 0, 60)
        print("begun", flush=True)  # noqa: T201  # the other process waits for it
        sys.stdin.read()  # closed when the other process is ready
        begun_s, step = time.monotonic(), round(PIECE_S * rate)
        for first in range(0, min(opened.n_samples, round(seconds * rate)), step):
            n = min(step, opened.n_samples - first)
            samples = np.ascontiguousarray(opened.read(first, first + n).T)
            time.sleep(max(0.0, begun_s + (first + n) / rate - time.monotonic()))
            outlet.push_chunk(samples)
        time.sleep(1.0)


def _facts(verdict: Any) -> dict[str, Any]:
    return {
        "start_s": round(verdict.start_s, 6),
        "stop_s": round(verdict.stop_s, 6),
        "code": verdict.code,
        "probabilities": verdict.probabilities.tolist(),
        "counts": verdict.counts.tolist(),
    }


def _toptune(*arguments: object) -> None:
    command = [sys.executable, "-m", "toptune", *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")


def _cpu_s() -> float:
    return time.process_time()


def _say(**facts: Any) -> None:
    def plain(value: Any) -> Any:
        return round(float(value), 3) if isinstance(value, np.floating | float) else str(value)

    print(json.dumps(facts, indent=2, default=plain))  # noqa: T201  # the result


if __name__ == "__main__":
    raise SystemExit(main())
