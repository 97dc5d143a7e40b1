"""Read files that may be damaged or hostile, in a process that may be killed for it.

One request a line on stdin, ``TARGET PATH``; one JSON line on stdout for each: what came of it, and
by how much the process's resident memory rose above what it was before.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from toptune.errors import ToptuneError

# Far above what any reader needs, far below what would make the machine swap.
ADDRESS_SPACE_BYTES = 24 * 2**30


def read_recording(path: Path) -> None:
    """Voltage is read to its end, spikes are read, whatever the file claims to be."""
    from toptune.recordings.opening import SpikeRecording, open_recording

    recording = open_recording(path)
    if isinstance(recording, SpikeRecording):
        trains = recording.trains()
        sample, channel = trains.spikes.sample, trains.spikes.channel
        assert np.all((sample >= 0) & (sample < trains.n_samples))
        assert np.all((channel >= 0) & (channel < len(trains.channel_labels)))
        assert np.all(np.diff(sample) >= 0)
        return
    with recording:
        for chunk in recording.chunks():
            assert np.isfinite(chunk).all()


def read_devices_file(path: Path) -> None:
    from toptune.recordings.devices import read_devices

    for row in read_devices(path).rows:
        assert row.device
        assert row.label


def read_weights_file(path: Path) -> None:
    from toptune.backbones.weights import read_weights

    assert read_weights(path).state


def read_store(path: Path) -> None:
    from toptune.store.feature_store import FeatureStore

    store = FeatureStore(path)
    for recording in store.recordings:
        store.read_spikes(recording.name)
    for feature_set in store.feature_sets():
        table = store.table(feature_set)
        store.training_facts(table)


def read_model_folder(path: Path) -> None:
    from toptune.runs.model import read_model

    model = read_model(path)
    rows = model.novelty.reference[:2]
    assert model.probabilities(rows).shape == (len(rows), len(model.classes))


def run_code(path: Path) -> None:
    """Run what a test of the harness wrote."""
    exec(compile(path.read_text("utf-8"), str(path), "exec"), {})


TARGETS: dict[str, Callable[[Path], None]] = {
    "recording": read_recording,
    "devices": read_devices_file,
    "weights": read_weights_file,
    "store": read_store,
    "model": read_model_folder,
    "code": run_code,
}


def resident_kib(name: str) -> int:
    """``VmRSS``: now; ``VmHWM``: the most since `forget_peak`."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    return 0


def forget_peak() -> None:
    """Let the peak be what is resident now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", "utf-8")


def outcome_of(target: str, path: Path) -> tuple[str, str]:
    try:
        TARGETS[target](path)
    except ToptuneError as error:
        return "refused", str(error)
    except BaseException as error:  # noqa: BLE001  # whatever escapes a reader is the finding
        import traceback

        last = traceback.extract_tb(error.__traceback__)[-1]
        return "escaped", f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
    return "read", ""


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    replies = sys.stdout
    sys.stdout = sys.stderr  # nothing a library prints may look like a reply
    for line in sys.stdin:
        target, _, path = line.rstrip("\n").partition(" ")
        forget_peak()
        before = resident_kib("VmRSS")
        outcome, detail = outcome_of(target, Path(path))
        grown = resident_kib("VmHWM") - before
        print(  # the reply
            json.dumps({"outcome": outcome, "detail": detail, "grown_kib": grown}),
            file=replies,
            flush=True,
        )


if __name__ == "__main__":
    main()
