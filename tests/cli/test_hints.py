"""Every command that a command or a report prints works as it is printed, where it is printed."""

from __future__ import annotations

import html
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from results import Ran, Run
from small_data import CLASS_RATES_HZ, write_data_set, write_devices, write_mcs

from toptune.backbones import loading
from toptune.cli import demo
from toptune.params import Backbone, Windows
from toptune.store.feature_store import FeatureStore

pytestmark = pytest.mark.usefixtures("one_torch_thread", "tiny_backbones")
TINY = "--window-s 2 --stride-s 1 --backbone tiny --weights random"
# A folder and a file whose names a shell would take apart.
FOLDER = "O'Brien's 2 studies (new)"
STORE = shlex.quote(f"{FOLDER}/s.zarr")
DEVICES = shlex.quote(f"{FOLDER}/devices.csv")


def printed(text: str) -> list[list[str]]:
    """Pick the command lines, as a reader does: the rest of a line from `toptune COMMAND` on."""
    found = []
    for line in text.splitlines():
        match = re.search(r"(?:^|next: |^\s+|: )(toptune [a-z]+ .+)$", line)
        if match and not line.lstrip().startswith("#"):
            found.append(shlex.split(match[1]))
    return found


def in_report(path: Path) -> list[list[str]]:
    """Pick the command lines of a report's first block of code."""
    code = re.findall(r"<pre[^>]*><code>(.*?)</code></pre>", path.read_text("utf-8"), re.S)
    blocks = [printed(html.unescape(one)) for one in code]
    return next(block for block in blocks if block)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory; the default network has no download, and is as tiny as others here."""
    small = loading.load_backbone

    def load(params: Backbone) -> Any:
        if params.weights == "imagenet":
            params = Backbone(name="tiny", weights="random")
        return small(params)

    monkeypatch.setattr(loading, "load_backbone", load)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_study(folder: Path) -> None:
    """Six recordings of 8 s, of three classes, in the folder of the awkward name."""
    study = folder / FOLDER
    study.mkdir()
    write_data_set(study)


def no_preparation(_: Path) -> None:
    pass


@dataclass(frozen=True)
class Situation:
    """A command, and which commands it prints."""

    name: str
    line: str
    prints: tuple[str, ...]  # the beginnings of the commands that are printed, in their order
    make: Callable[[Path], None] = write_study
    before: tuple[str, ...] = ()  # commands that are run first
    between: Callable[[Path], None] = no_preparation  # what the user is told to do before the next
    code: int = 0

    def __str__(self) -> str:
        return self.name


EXTRACT = f"extract {DEVICES} --store {STORE} {TINY}"


def a_recording_is_broken(folder: Path) -> None:
    write_study(folder)
    study = folder / FOLDER
    write_mcs(study / "r6.h5", seed=9)
    with (study / "devices.csv").open("a") as file:
        file.write("r6.h5,dev6,A,b0\n")
    (study / "r6.h5").write_bytes(b"")


def a_run_is_there(folder: Path) -> None:
    write_study(folder)
    (folder / "run").mkdir()
    (folder / "run-2").mkdir()


def a_class_has_one_device(folder: Path) -> None:
    study = folder / FOLDER
    study.mkdir()
    rows = []
    for k, label in enumerate("AAB"):
        write_mcs(study / f"r{k}.h5", seed=k, rate_hz=CLASS_RATES_HZ[label])
        rows.append((f"r{k}.h5", f"dev{k}", label))
    write_devices(study, rows)


def a_short_one(folder: Path) -> None:
    write_study(folder)
    study = folder / FOLDER
    write_mcs(study / "r6.h5", seed=9, seconds=1)
    with (study / "devices.csv").open("a") as file:
        file.write("r6.h5,dev6,A,b0\n")


def a_plate(folder: Path) -> None:
    spikes = [(k / 10, f"E{k % 4}") for k in range(200)]
    names = ("A1", "A2", "B1", "B2")
    rows = "".join(f"{t},{well}_1{name[1]}\n" for t, name in spikes for well in names)
    (folder / "my plate.csv").write_text(f"time_s,channel\n{rows}", "utf-8")


def labels_are_filled_in(folder: Path) -> None:
    path = folder / "the wells.csv"
    header, *lines = path.read_text("utf-8").splitlines()
    assert header.endswith(",label")
    filled = [f"{line}{'XY'[k % 2]}" for k, line in enumerate(lines)]
    path.write_text("\n".join([header, *filled]) + "\n", "utf-8")


def features_are_damaged(folder: Path) -> None:
    (chunk,) = (folder / FOLDER / "s.zarr").glob("r2*/features/*/features/c/0/0")
    chunk.write_bytes(chunk.read_bytes()[:-1])


def a_recording_is_missing(folder: Path) -> None:
    (one,) = (folder / FOLDER / "s.zarr").glob("r2*")
    shutil.rmtree(one)


OPTIONS = "--threshold-sd 7 --picture raster --picture histogram --count-axis 4"
SITUATIONS = (
    Situation("simulate", "simulate \"a b/it's simulated\" --devices 10 --seconds 4 --n-jobs 1",
              ("toptune extract",), make=no_preparation),
    Situation("simulate, short", "simulate sim --devices 5 --seconds 0.5", ("toptune extract",),
              make=no_preparation),
    Situation("extract", EXTRACT, ("toptune fit",)),
    Situation("extract several pictures", f"{EXTRACT} {OPTIONS}", ("toptune fit",)),
    Situation("extract spikes", f"{EXTRACT} --picture none", ("toptune fit",)),
    Situation("extract with a failure", f"{EXTRACT} --keep-going", ("toptune fit",),
              make=a_recording_is_broken, code=3),
    Situation("extract where there are runs", EXTRACT, ("toptune fit",), make=a_run_is_there),
    Situation("extract a thin class", EXTRACT, (), make=a_class_has_one_device),
    Situation("extract a short one", EXTRACT, ("toptune fit",), make=a_short_one),
    Situation("extract short ones only", EXTRACT.replace("--window-s 2", "--window-s 100"), ()),
    Situation("plate", "plate 'my plate.csv' -o 'the wells.csv'", ("toptune extract",),
              make=a_plate, between=labels_are_filled_in),
)  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS, ids=str)
def test_the_next_command_works_and_so_does_the_one_after(
    situation: Situation, work: Path, run: Run
) -> None:
    situation.make(work)
    ran = run(*shlex.split(situation.line))
    assert ran.code == situation.code, ran.err
    lines = printed(ran.out)
    assert [" ".join(words[:2]) for words in lines] == list(situation.prints)
    situation.between(work)
    for words in lines:
        ran = run(*words[1:])
        assert ran.code == 0, ran.err
        for after in printed(ran.out):
            ran = run(*after[1:])
            assert ran.code == 0, ran.err
            assert not printed(ran.out)


def test_what_doctor_says_of_a_store_without_features_makes_it_sound(work: Path, run: Run) -> None:
    write_study(work)
    assert run(*shlex.split(f"{EXTRACT} --picture none")).code == 0
    a_recording_is_missing(work)
    ran = run("doctor", f"{FOLDER}/s.zarr")
    ((_, *words),) = printed(ran.out)
    assert (ran.code, words[0], words[-2:]) == (3, "extract", ["--picture", "none"])
    assert run(*words).code == 0
    assert run("doctor", f"{FOLDER}/s.zarr").code == 0


@pytest.mark.parametrize("options", ["", OPTIONS])
@pytest.mark.parametrize("damage", [features_are_damaged, a_recording_is_missing])
def test_what_doctor_says_of_a_store_makes_it_sound(
    damage: Callable[[Path], None], options: str, work: Path, run: Run
) -> None:
    if options and damage is features_are_damaged:
        options = options.replace("--picture raster ", "")
    write_study(work)
    assert run(*shlex.split(f"{EXTRACT} {options}")).code == 0
    sets = {one.key for one in FeatureStore(work / FOLDER / "s.zarr").feature_sets()}
    damage(work)
    # From where the store was made, and from elsewhere.
    ran = run("doctor", f"{FOLDER}/s.zarr")
    assert ran.code == 3
    lines = printed(ran.out)
    removing = ["toptune doctor"] if damage is features_are_damaged else []
    assert [" ".join(words[:2]) for words in lines] == [*removing, "toptune extract"]
    for words in lines:
        ran = run(*words[1:])
        assert ran.code == (3 if words[1] == "doctor" else 0), ran.err
    ran = run("doctor", f"{FOLDER}/s.zarr")
    assert (ran.code, "sound: " in ran.out) == (0, True)
    assert {one.key for one in FeatureStore(work / FOLDER / "s.zarr").feature_sets()} == sets


def test_what_doctor_says_of_a_missing_store_works_with_one(work: Path, run: Run) -> None:
    write_study(work)
    assert run(*shlex.split(EXTRACT)).code == 0
    ran = run("doctor", "--remove-damaged")
    (words,) = printed(ran.err)
    assert words == ["toptune", "doctor", "STORE", "--remove-damaged"]
    assert run("doctor", f"{FOLDER}/s.zarr", "--remove-damaged").code == 0


@pytest.fixture
def small_demo(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the demonstration be of 10 recordings of 4 s."""
    real = demo.run_demo
    monkeypatch.setattr(demo, "BACKBONE", "tiny")
    monkeypatch.setattr(demo, "WINDOWS", Windows(width_s=2, stride_s=1))
    monkeypatch.setattr(
        demo, "run_demo", lambda *given, **named: real(*given, **named, n_devices=10, seconds=4)
    )
    return work


@pytest.mark.thorough
def test_what_the_demonstration_prints_works(small_demo: Path, run: Run) -> None:
    out = small_demo / FOLDER
    (small_demo / "demo-imagenet").mkdir()
    ran = run("demo", "--out", FOLDER, "--n-jobs", 1)
    assert ran.code == 0
    recordings = out / "recordings"
    assert not list(recordings.glob("*.h5"))
    deleted = (recordings / "README.txt").read_text("utf-8")
    # The report's commands first, while the recordings are deleted.
    for name in ("run-falkon", "run-pictures"):
        shutil.rmtree(recordings)
        shutil.rmtree(out / "store.zarr")
        lines = in_report(out / name / "report.html")
        assert [" ".join(words[:2]) for words in lines] == [
            "toptune simulate", "toptune extract", "toptune fit",
        ]  # fmt: skip
        for words in lines:
            again = run(*words[1:])
            assert again.code == 0, f"{name} {lines} {again.err}"
        assert (small_demo / f"{name}-again" / "report.html").is_file()
    lines = printed(ran.out)
    assert [" ".join(words[:2]) for words in lines] == ["toptune demo", "toptune simulate"]
    assert lines[0][-1] == "demo-imagenet-2"
    for words in lines:
        again = run(*words[1:])
        assert again.code == 0, again.err
    assert len(list(recordings.glob("*.h5"))) == 10
    assert printed(deleted) == [lines[1]]


@pytest.mark.thorough
def test_the_commands_of_reports_work_in_the_same_place(work: Path, run: Run) -> None:
    write_study(work)
    assert run(*shlex.split(EXTRACT)).code == 0
    fit = f"fit {STORE} -o {shlex.quote(FOLDER + '/a run')} --no-tune --permutations 0"
    assert run(*shlex.split(fit)).code == 0
    (work / "grid.toml").write_text(
        'window_s = 2\nstride_s = 1\nbackbone = "tiny"\nweights = "random"\nhead = "falkon"\n'
        "tune = false\npermutations = 0\n"
    )
    sweep = f"sweep {DEVICES} grid.toml -o {shlex.quote(FOLDER + '/a sweep')}"
    assert run(*shlex.split(sweep)).code == 0
    reports = [work / FOLDER / "a run", work / FOLDER / "a sweep"]
    expected = [["toptune extract", "toptune fit"], ["toptune sweep"]]
    for folder, commands in zip(reports, expected, strict=True):
        lines = in_report(folder / "report.html")
        assert [" ".join(words[:2]) for words in lines] == commands
        for words in lines:
            ran = run(*words[1:])
            assert ran.code == 0, ran.err
    ran = run("report", reports[0])
    assert ran.code == 0


# --- examples of --help


def examples() -> Iterator[tuple[str, str]]:
    from toptune.cli.app import app

    for one in app.registered_commands:
        assert one.epilog is not None
        assert one.callback is not None
        yield one.callback.__name__, one.epilog.removeprefix("Example: ")


@pytest.mark.thorough
def test_examples_of_the_help_work_one_after_the_other(
    small_demo: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toptune import bench
    from toptune.recordings import simulated

    real, measure = simulated.simulate, bench.bench
    sizes = bench.Sizes(
        recording_s=2, pictures=3, devices=10, windows_a_device=4, features=12, epochs=2
    )
    monkeypatch.setattr(bench, "bench", lambda **given: measure(**given, sizes=sizes))
    # Long enough for the examples' windows of 30 s.
    monkeypatch.setattr(
        simulated, "simulate", lambda *given, **named: real(*given, **{**named, "seconds": 31})
    )
    a_plate(small_demo)
    (small_demo / "my plate.csv").rename(small_demo / "plate.h5")
    ran_names = []
    # They write what others read.
    order = ("simulate", "inspect", "plate", "detect", "extract", "fit", "predict", "stream",
             "report", "why", "sweep", "doctor", "bench")  # fmt: skip
    listed = dict(examples())
    assert {*order, "demo"} == set(listed)
    for name in order:
        words = shlex.split(listed[name])
        assert words[:2] == ["toptune", name]
        ran: Ran = run(*words[1:])
        assert ran.code == 0, f"{words}\n{ran.err}"
        ran_names.append(name)
