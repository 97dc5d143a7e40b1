"""A sweep's tables and report: what they show, beside what, and that nothing is hidden."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import browser, needs_chromium
from results import read_csv
from scipy.stats import binomtest

from toptune.cli.printing import run_line, time_left
from toptune.cli.training import print_swept
from toptune.params import Backbone, FitOptions, Picture, SpikeSettings, Windows
from toptune.reports.page import HeatMap, Note, Page, Text, render
from toptune.sweeps.grid import Grid, GridPoint, PictureView
from toptune.sweeps.plan import fit_labels
from toptune.sweeps.report import repeat_command, sweep_page, write_report
from toptune.sweeps.results import Failure, Outcome, SweepResult, Throughput, ViewFacts
from toptune.sweeps.tables import ResultTable, paper_figures, result_tables, write_result_tables

FIVE = ("0E100I", "100E0I", "25E75I", "50E50I", "75E25I")
MIXED = ("25E75I", "50E50I", "75E25I")
MERGE = "mixed=75E25I,50E50I,25E75I"
MLP, FALKON = FitOptions(head="mlp", tune=False), FitOptions(head="falkon")
BURSTS = FitOptions(head="parameters")


def metrics(n_right: int, *, classes: tuple[str, ...] = FIVE, **more: Any) -> dict[str, Any]:
    interval = binomtest(n_right, 32).proportion_ci(0.95, method="wilson")
    return {
        "classes": list(classes), "n_devices": 32, "n_groups": 32, "n_windows": 5024,
        "device_accuracy": n_right / 32, "device_accuracy_ci95": [interval.low, interval.high],
        "window_accuracy_mean": n_right / 40, "window_accuracy_sd": 0.25, "chance": 7 / 32,
        "permutation_p": 0.001, "seconds": 12.0, "warnings": [], **more,
    }  # fmt: skip


def view(
    kind: Any = "histogram", width_s: float = 120, backbone: str = "efficientnet_b0"
) -> PictureView:
    return PictureView(Windows(width_s=width_s), Picture(kind=kind), Backbone(name=backbone))


def outcome(
    of: PictureView | None,
    fit: FitOptions,
    n_right: int | None,
    weights: str = "x.pth",
    **more: Any,
) -> Outcome:
    facts = None
    if of is not None:
        rate = Throughput(pictures=5024, seconds=50.0 + len(of.backbone.name), device="a machine")
        facts = ViewFacts(
            key=f"{of}", n_parameters=4_007_548, n_features=1280, weights=weights, throughput=rate
        )
    return Outcome(
        point=GridPoint(view=of, fit=fit),
        facts=facts,
        name=f"run-{n_right}",
        metrics=None if n_right is None else metrics(n_right, **more),
        cause="" if n_right is not None else "it <broke> & fell",
    )


def swept(folder: Path, *outcomes: Outcome, **more: Any) -> SweepResult:
    grid = Grid(
        name="table1", title="Table <I>", where="table1", text="picture = 'x'", settings=(),
        spikes=SpikeSettings(), points=tuple(o.point for o in outcomes), notes=(),
    )  # fmt: skip
    failures = [Failure("run", o.name, o.cause) for o in outcomes if o.metrics is None]
    made = SweepResult(
        path=folder, devices=Path("study/devices.csv"), grid=grid, outcomes=outcomes,
        failures=tuple(failures), notes=(), seed=0, device="auto", seconds=3.0,
    )  # fmt: skip
    return replace(made, **more)


TABLE_1 = tuple(
    outcome(view(kind, width), fit, n)
    for n, (kind, width, fit) in enumerate(
        (kind, width, fit)
        for kind in ("histogram", "raster")
        for width in (120, 60, 30, 10)
        for fit in (MLP, FALKON)
    )
)


def cells(table: ResultTable) -> list[dict[str, str]]:
    return [dict(zip(table.header, row, strict=True)) for row in table.rows]


# --- differences between runs


def write_verdicts(folder: Path, name: str, right: str) -> None:
    """Write devices.csv of a run: a letter a device, R where it is right."""
    lines = [
        "device,group,label,n_windows,prediction,windows_A,windows_B,probability_A,probability_B"
    ]
    for k, letter in enumerate(right):
        lines.append(f"d{k},d{k},A,1,{'A' if letter == 'R' else 'B'},1,0,0.5,0.5")
    (folder / "runs" / name).mkdir(parents=True)
    (folder / "runs" / name / "devices.csv").write_text("\n".join(lines) + "\n")


def said_of_runs(folder: Path, *rights: str) -> str:
    """What the report says of runs with these verdicts."""
    made = []
    for k, right in enumerate(rights):
        one = outcome(view("raster", 10 * (k + 1)), FALKON, right.count("R"))
        made.append(
            replace(one, name=f"run{k}", metrics={**(one.metrics or {}), "classes": ["A", "B"]})
        )
        write_verdicts(folder, f"run{k}", right)
    section = next(s for s in sweep_page(swept(folder, *made)).sections if "Accuracies" in s.title)
    return " ".join(b.text for b in section.blocks if isinstance(b, Text))


def test_runs_of_a_sweep_are_compared_with_the_best_device_by_device(tmp_path: Path) -> None:
    same = said_of_runs(tmp_path / "same", "R" * 12 + "W" * 4, "R" * 11 + "W" * 5)
    assert (
        "No detectable difference between the best run and the other run (exact McNemar test,"
        " p = 1.00)." in same
    )
    one = said_of_runs(tmp_path / "one", "R" * 16, "R" * 15 + "W", "W" * 14 + "R" * 2)
    assert "Of 2 other runs, 1 classified fewer devices correctly than the best one" in one
    assert "adjusted for 2 comparisons" in one
    both = said_of_runs(tmp_path / "both", "R" * 16, "W" * 14 + "RR", "W" * 16)
    assert "Each other run classified fewer devices correctly than the best one" in both
    for text in (same, one, both):
        assert "better" not in text


# --- tables


def test_table_1_has_a_row_per_picture_and_window_and_columns_per_classifier(
    tmp_path: Path,
) -> None:
    (table,) = result_tables(swept(tmp_path, *TABLE_1))
    assert table.header[:2] == ("picture", "window (s)")
    rows = cells(table)
    assert [(r["picture"], r["window (s)"]) for r in rows] == [
        (kind, width) for kind in ("histogram", "raster") for width in ("120", "60", "30", "10")
    ]
    assert rows[0]["mlp: per picture"] == "0.000 ± 0.250"
    assert rows[7]["falkon: per device"] == "0.469"  # 15 of 32
    assert "efficientnet_b0, 4.0 M parameters, weights x.pth" in table.caption
    assert "mlp: not tuned." in table.notes


def test_verdicts_and_devices_are_told_apart_where_devices_have_several(tmp_path: Path) -> None:
    done = swept(tmp_path, *(outcome(view(), fit, 28, n_devices=16, n_verdicts=32)
                             for fit in (MLP, FALKON)))  # fmt: skip
    (table,) = result_tables(done)
    assert any("share of 32 verdicts on 16 devices" in note for note in table.notes)
    text = render(sweep_page(done))
    assert "2 runs on 32 verdicts on 16 devices of devices.csv" in text
    assert "28/32" in text
    assert "95 % interval with devices as units (bootstrap); dashed line" in text
    assert "Wilson" not in text
    write_result_tables(done)
    assert {(row["n_devices"], row["n_verdicts"]) for row in read_csv(tmp_path / "runs.csv")} == {
        ("16", "32")
    }


def test_the_papers_figures_are_shown_for_its_task_only_and_only_where_known(
    tmp_path: Path,
) -> None:
    (table,) = result_tables(swept(tmp_path, *TABLE_1))
    rows = cells(table)
    assert rows[0]["paper: per picture"] == "0.747 ± 0.353"
    assert rows[0]["paper: per device"] == "0.813"
    assert [r["paper: per device"] for r in rows[1:]] == [""] * 7
    assert any("Pastore" in note for note in table.notes)
    other = tuple(outcome(view(), fit, 9, classes=("CxCx", "HpHp")) for fit in (MLP, FALKON))
    (table,) = result_tables(swept(tmp_path, *other))
    assert not any("paper" in name for name in table.header)
    assert not any("Pastore" in note for note in table.notes)


@pytest.mark.parametrize(
    ("of", "classes", "merges", "expected"),
    [
        (view(), FIVE, (), (0.747, 0.353, 0.813)),
        (view(), ("0E100I", "100E0I", "m"), (MIXED,), (0.957, 0.175, 0.969)),
        (view(), ("0E100I", "100E0I", "75E25I", "m"), (MIXED[:2],), None),
        (view(), FIVE[:4], (), None),
        (view("raster"), FIVE, (), None),
        (view(width_s=60), FIVE, (), None),
        (view(backbone="densenet121"), FIVE, (), None),
        (view()._replace(picture=Picture(count_axis=40.0)), FIVE, (), None),
        (view()._replace(windows=Windows(stride_s=60)), FIVE, (), None),
    ],
)  # fmt: skip
def test_only_figures_that_the_paper_reports_are_attributed_to_it(
    of: PictureView, classes: Any, merges: Any, expected: Any
) -> None:
    assert paper_figures(of, classes, merges) == expected


def test_table_2_has_a_row_per_backbone_with_its_size_and_marks_random_weights(
    tmp_path: Path,
) -> None:
    made = swept(
        tmp_path,
        outcome(view(backbone="densenet121"), FALKON, 10, "random (seed 0)"),
        outcome(view(backbone="mobilenet_v2"), FALKON, 20, "file m.safetensors"),
    )
    (table,) = result_tables(made)
    assert [r[:3] for r in table.rows] == [
        ("densenet121", "4.0", "RANDOM (seed 0)"),
        ("mobilenet_v2", "4.0", "m.safetensors"),
    ]
    assert any("RANDOM" in note for note in table.notes)
    assert "windows of 120 s" in table.caption
    page = render(sweep_page(made))
    assert "RANDOM (seed 0)" in page
    assert "for testing only" in page
    print_swept(made)


def test_each_task_has_a_table_of_its_own(tmp_path: Path) -> None:
    merged = replace(FALKON, merge=(MERGE,))
    made = swept(
        tmp_path,
        outcome(view(), FALKON, 20),
        outcome(view(), merged, 30, classes=("0E100I", "100E0I", "mixed")),
    )
    write_result_tables(made)
    plain, other = (
        tmp_path / n
        for n in ("table.csv", f"table-{MERGE}_merged.csv".replace("=", "_").replace(",", "_"))
    )
    (row,) = csv.DictReader(io.StringIO(plain.read_text("utf-8")))
    assert (row["falkon: per device"], row["paper: per device"]) == ("0.625", "0.813")
    (row,) = csv.DictReader(io.StringIO(other.read_text("utf-8")))
    assert (row["falkon: per device"], row["paper: per device"]) == ("0.938", "0.969")
    text = (tmp_path / "table.md").read_text("utf-8")
    assert "| histogram | 0.500 ± 0.250 | 0.625 | 0.747 ± 0.353 | 0.813 |" in text
    # Of an earlier grid nothing stays.
    write_result_tables(swept(tmp_path, outcome(view(), FALKON, 20)))
    assert [p.name for p in tmp_path.glob("table*.csv")] == ["table.csv"]


def test_classifiers_are_named_as_shortly_as_distinguishes_them() -> None:
    wide = replace(FALKON, fixed={"width": 2.0})
    assert list(fit_labels([MLP, FALKON]).values()) == ["mlp", "falkon"]
    assert list(fit_labels([MLP, FALKON, wide]).values()) == ["mlp", "falkon", "falkon, width 2"]
    # A merge is another task, not another head.
    assert list(fit_labels([FALKON, replace(FALKON, merge=("X=A,B",))]).values()) == ["falkon"] * 2


# --- the report


def blocks(page: Page) -> list[Any]:
    found: list[Any] = []
    waiting = [*page.blocks, *(b for s in page.sections for b in s.blocks)]
    while waiting:
        block = waiting.pop(0)
        found.append(block)
        waiting += getattr(block, "blocks", ())
    return found


def test_heat_map_shows_every_picture_and_window_of_each_classifier(tmp_path: Path) -> None:
    page = sweep_page(swept(tmp_path, *TABLE_1))
    maps = [b for b in blocks(page) if isinstance(b, HeatMap)]
    assert [m.caption for m in maps] == ["mlp", "falkon"]
    for number, one in enumerate(maps):
        assert one.rows == ("histogram", "raster")
        assert one.columns == ("120 s", "60 s", "30 s", "10 s")
        assert [[c.detail for c in row] for row in one.cells] == [
            [f"{first + 2 * k + number} of 32" for k in range(4)] for first in (0, 8)
        ]
        shares = [c.share for row in one.cells for c in row]
        assert shares == sorted(shares)
        assert (min(shares), max(shares) < 1) == (0.0, True)


def test_failures_and_warnings_are_shown(tmp_path: Path) -> None:
    made = swept(
        tmp_path,
        outcome(view(), FALKON, 20, warnings=["class X lies in one batch only"]),
        outcome(view("raster"), FALKON, None),
        outcome(None, BURSTS, 25),
        notes=("r1.h5: dead channels 12",),
    )
    page = sweep_page(made)
    notes = [b for b in blocks(page) if isinstance(b, Note)]
    assert any(n.text == "class X lies in one batch only" and n.level == "warning" for n in notes)
    assert any("selected on the same devices" in n.text for n in notes)
    html = render(page)
    for text in ("it &lt;broke&gt; &amp; fell", "Table &lt;I&gt;", "dead channels 12", "failed"):
        assert text in html
    assert "<broke>" not in html
    (table,) = result_tables(made)
    assert [r["falkon: per device"] for r in cells(table)] == ["0.625", "failed", ""]
    assert [r["parameters: per device"] for r in cells(table)] == ["", "", "0.781"]
    assert [r["picture"] for r in cells(table)] == ["histogram", "raster", "burst parameters"]
    assert "FAILED: it <broke> & fell" in run_line(made.outcomes[1])
    nothing = sweep_page(swept(tmp_path, outcome(view(), FALKON, None)))
    assert "All runs of this sweep" in render(nothing)


def test_the_command_to_repeat_it_is_whole(tmp_path: Path) -> None:
    made = swept(tmp_path, outcome(view(), FALKON, 20), seed=4, device="cpu")
    made = replace(made, grid=replace(made.grid, settings=("window_s=[60, 30]",)))
    assert repeat_command(made) == (
        f"toptune sweep {Path('study/devices.csv').resolve()} table1 --set 'window_s=[60, 30]'"
        f" --seed 4 --device cpu -o {tmp_path}"
    )


@needs_chromium
def test_report_opens_in_a_browser_without_a_request_or_a_complaint(tmp_path: Path) -> None:
    merged = replace(FALKON, merge=(MERGE,))
    other = outcome(view(), merged, 30, classes=("0E100I", "100E0I", "mixed"))
    write_report(swept(tmp_path, *TABLE_1, outcome(None, BURSTS, 25), other))
    path = tmp_path / "report.html"
    assert path.stat().st_size < 500_000
    with browser(tmp_path / "profile") as page:
        for width, phone in ((390, True), (1200, False)):
            visit = page.open(path, width=width, phone=phone)
            assert [url for url in visit.requests if not url.startswith("data:")] == [path.as_uri()]
            assert visit.complaints == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert "0.747 ± 0.353" in page.evaluate("document.body.innerText")
            assert page.evaluate("document.images.length") == 4  # two a task
            assert page.evaluate("[...document.images].every(i => i.naturalWidth > 0 && i.alt)")


@pytest.mark.parametrize(
    ("seconds", "whole", "expected"),
    [
        (12.4, True, "about 12 s left"),
        (600, True, "about 10 min left"),
        (600, False, "more than 10 min left"),
        (9000, True, "about 2.5 h left"),
    ],
)
def test_the_time_left_is_told_no_finer_than_it_is_known(
    seconds: float, whole: bool, expected: str
) -> None:
    assert time_left(seconds, whole) == expected
