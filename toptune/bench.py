"""How fast each stage is on this machine, and what a whole study would take.

What enters: a device and names of backbones. What leaves: figures, best of a few rounds after one
to warm up, and what follows from them for the study of `STUDY`. Nothing is asserted: whoever runs
something beside it measures that too.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from toptune.errors import InputError, ToptuneError

if TYPE_CHECKING:
    from toptune.bench_stages import Sizes, Stages, Work


class Study(NamedTuple):
    """What is foretold: the paper's protocol with one backbone and one picture.

    Attributes
    ----------
    devices, channels : int
    seconds, sampling_rate_hz : float
        Of each device's recording.
    windows_a_device, epochs : int
    """

    devices: int = 32
    channels: int = 60
    seconds: float = 900.0
    sampling_rate_hz: float = 10_000.0
    windows_a_device: int = 157
    epochs: int = 25

    @property
    def samples(self) -> float:
        """Of all channels of all devices."""
        return self.devices * self.channels * self.seconds * self.sampling_rate_hz

    @property
    def windows(self) -> int:
        """Of all devices."""
        return self.devices * self.windows_a_device

    @property
    def trained_rows(self) -> int:
        """Rows that pass through the MLP's networks, over all folds and epochs."""
        return self.epochs * self.devices * (self.windows - self.windows_a_device)


STUDY = Study()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What was measured of one stage.

    Parameters
    ----------
    name
        For people.
    device
        Where it was computed.
    unit
        Of `amount`.
    amount
        Work done in a round.
    seconds
        Of the fastest round.
    rounds
        How many were measured.
    study_seconds
        What the study's work would take at this rate; None where it is no stage of its own.
    in_total
        Whether the study's total counts it.
    note
        What the figure rests on; empty as a rule.
    """

    name: str
    device: str
    unit: str
    amount: float
    seconds: float
    rounds: int
    study_seconds: float | None = None
    in_total: bool = False
    note: str = ""

    @property
    def per_second(self) -> float:
        """Work in a second."""
        return self.amount / self.seconds


@dataclass(frozen=True)
class BenchResult:
    """All stages, in the order of the flow."""

    stages: tuple[Stage, ...]
    quick: bool

    @property
    def study_seconds(self) -> float:
        """What the study would take in all."""
        return sum(s.study_seconds for s in self.stages if s.in_total and s.study_seconds)

    def share(self, stage: Stage) -> float | None:
        """Part of the study that a stage takes, from 0 to 1; None of what the total leaves out."""
        if not stage.in_total or stage.study_seconds is None:
            return None
        return stage.study_seconds / self.study_seconds

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "quick": self.quick,
            "study": {**STUDY._asdict(), "windows": STUDY.windows, "seconds": self.study_seconds},
            "stages": [
                {**vars(s), "per_second": s.per_second, "study_share": self.share(s)}
                for s in self.stages
            ],
        }


class _Described(NamedTuple):
    """A backbone made ready."""

    name: str
    work: Work
    input_size: int

    def prepared(self) -> Work:
        return self.work


class _Plan(NamedTuple):
    """A stage to measure, and what it is to the study."""

    name: str
    device: str
    unit: str
    prepare: Callable[[], Work]
    # Work of the study, and by which power of the work its seconds grow.
    study_amount: float | None = None
    power: int = 1
    in_total: bool = False
    note: str = ""


def bench(
    *,
    device: str = "auto",
    backbones: Sequence[str] = ("efficientnet_b0",),
    quick: bool = False,
    sizes: Sizes | None = None,
    n_jobs: int | None = None,
    step: Callable[[str], None] = lambda _: None,
) -> BenchResult:
    """Measure every stage.

    Parameters
    ----------
    device
        ``auto``, ``cpu`` or ``cuda``, as of `extract` and `fit`.
    backbones
        Names; their weights are random, which takes no less time than others. The first is the
        study's.
    quick
        Less work and fewer rounds: some seconds, and rougher figures.
    sizes
        How much is done; by default what fits a minute on two cores.
    n_jobs
        Threads; None for one a core.
    step
        Called with a stage's name before it is measured.

    Raises
    ------
    InputError
        An unknown device or backbone, or none.
    """
    from toptune.bench_stages import Sizes, Stages
    from toptune.machine.device import float64_device, torch_device

    if not backbones:
        raise InputError("name at least one backbone")
    names = tuple(dict.fromkeys(backbones))
    where, direct = torch_device(device), float64_device(device)
    small = Sizes(recording_s=10, pictures=16, windows_a_device=64, epochs=1)
    sizes = sizes or (small if quick else Sizes())
    budget_s, most = (0.3, 2) if quick else (2.5, 5)
    measured = []
    with tempfile.TemporaryDirectory(prefix="toptune-bench-") as folder:
        stages = Stages(Path(folder), sizes, where, n_jobs)
        described = [_Described(name, *stages.describer(name)) for name in names]
        for plan in _plans(stages, sizes, where, direct, described):
            step(plan.name)
            measured.append(_measure(plan, budget_s, most))
    return BenchResult(tuple(measured), quick)


def _plans(
    stages: Stages, sizes: Sizes, device: str, direct: str, described: list[_Described]
) -> Iterator[_Plan]:
    samples = "samples"
    cached = "from the file cache"
    yield _Plan("reading an MCS file", "cpu", samples, lambda: stages.read, note=cached)
    yield _Plan("filter, in memory", "cpu", samples, lambda: stages.filter)
    yield _Plan("PTSD, in memory", "cpu", samples, stages.detector)
    yield _Plan("merely reading that memory", "cpu", samples, lambda: stages.memory)
    yield _Plan(
        "file to spikes", "cpu", samples, lambda: stages.file_to_spikes, STUDY.samples,
        in_total=True, note="reads, filters and detects at once",
    )  # fmt: skip
    first = described[0]
    size = first.input_size
    for kind in ("histogram", "raster"):
        yield _Plan(
            f"drawing, {kind}, {size} x {size}", device, "pictures",
            partial(stages.drawer, kind, size), STUDY.windows, in_total=kind == "histogram",
        )  # fmt: skip
    for one in described:
        yield _Plan(
            one.name, device, "pictures", one.prepared, STUDY.windows, in_total=one is first,
            note="random weights",
        )  # fmt: skip
    fewer = sizes.windows_a_device * sizes.devices < STUDY.windows
    yield _Plan(
        "Falkon, leave one device out", direct, "windows", lambda: stages.falkon(direct),
        STUDY.windows, power=3, in_total=True,
        note="without tuning" + ("; foretold by windows^3, at most" if fewer else ""),
    )  # fmt: skip
    yield _Plan(
        "MLP, leave one device out", device, "rows", stages.mlp, STUDY.trained_rows, in_total=True,
        note=f"without tuning; {sizes.epochs} of {STUDY.epochs} epochs",
    )  # fmt: skip


def _measure(plan: _Plan, budget_s: float, most: int) -> Stage:
    """Do a stage's work once to warm up, then until the budget is spent or there are enough."""
    work = plan.prepare()
    amount = work()
    took: list[float] = []
    while not took or (len(took) < most and sum(took) < budget_s):
        began = time.perf_counter()
        done = work()
        took.append(time.perf_counter() - began)
        if done != amount:
            raise ToptuneError(f"{plan.name} did {done:g} {plan.unit}, and {amount:g} before")
    best = min(took)
    study_s = None
    if plan.study_amount is not None:
        study_s = best * (plan.study_amount / amount) ** plan.power
    return Stage(
        name=plan.name,
        device=plan.device,
        unit=plan.unit,
        amount=amount,
        seconds=best,
        rounds=len(took),
        study_seconds=study_s,
        in_total=plan.in_total,
        note=plan.note,
    )
