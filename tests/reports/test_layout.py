"""How reports look: whole at every width, on a dark screen and on paper, and easy to get about in.

Names of classes, devices and runs are long and without blanks, as file names are.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, browser, needs_chromium
from PIL import Image
from small_data import CLASS_RATES_HZ, write_devices, write_mcs

from toptune.cli.printing import watch_sweep
from toptune.explanation import explain as why
from toptune.extraction import extract
from toptune.machine.drawing import Figure
from toptune.params import Backbone, Compute, FitOptions, Windows
from toptune.params import Picture as PictureParams
from toptune.prediction import predict
from toptune.reports.page import (
    Cell,
    Code,
    HeatMap,
    Page,
    Picture,
    Section,
    Shade,
    Table,
    Text,
    render,
    svg_uri,
)
from toptune.reports.run import write_report
from toptune.store.feature_store import FeatureStore
from toptune.store.tables import table_for
from toptune.sweeps.grid import read_grid
from toptune.sweeps.report import write_report as write_sweep_report
from toptune.sweeps.sweep import sweep
from toptune.training import fit

pytestmark = [pytest.mark.usefixtures("one_torch_thread", "tiny_backbones"), needs_chromium]

CLASSES = {
    "A": "control_before_the_washout",
    "B": "bicuculline_10_micromolar_at_37_degrees",
    "C": "TTX",
}
# A4 without the margins of the page, in CSS pixels.
PAPER_PX = round((210 - 28) / 25.4 * 96)
KINDS = ("run", "beside", "predictions", "sweep", "why", "page")


@dataclass(frozen=True)
class Way:
    """How a report is looked at."""

    width: int
    dark: bool = False
    printed: bool = False


WAYS = {
    "1280 px": Way(1280),
    "390 px": Way(390),
    "dark": Way(1280, dark=True),
    "printed": Way(PAPER_PX, printed=True),
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, tiny_backbones: None) -> dict[str, Path]:
    """Write a report of every kind."""
    del tiny_backbones
    folder = tmp_path_factory.mktemp("reports")
    rows = []
    for k in range(6):
        name = f"D{k:02}_culture_of_the_third_batch_2024-11-{k + 1:02}_div21_basal_activity"
        label = "ABC"[k % 3]
        write_mcs(folder / f"{name}.h5", seed=k, rate_hz=CLASS_RATES_HZ[label])
        rows.append((f"{name}.h5", name, CLASSES[label]))
    devices = write_devices(folder, rows)
    tiny = Backbone(name="tiny", weights="random", seed=3)
    picture = PictureParams(kind="raster")
    windows = Windows(width_s=2.0, stride_s=1.0)
    extract(devices, folder / "s.zarr", windows=windows, picture=picture, backbone=tiny)
    store = FeatureStore(folder / "s.zarr")
    run, other = folder / "run", folder / "a_run_of_burst_parameters_without_any_pictures"
    for head, out in (("falkon", run), ("parameters", other)):
        table = table_for(store, head, ("raster",) if head == "falkon" else ())
        options = FitOptions(head=head, permutations=20)
        fit(table, options, out, facts=store.training_facts(table), store=store)
    beside = folder / "beside.html"
    write_report(run, store=store, beside=[other], out=beside)
    recording = folder / rows[0][0]
    cpu = Compute(device="cpu", n_jobs=1)
    why(run, recording, folder / "why", compute=cpu)
    # Louder than anything in training.
    loud = write_mcs(folder / f"{'L' * 60}.h5", seed=9, rate_hz=150)
    named = [*(folder / name for name, _, _ in rows[:3]), loud]
    predict(run, named, out=folder / "predictions", compute=cpu)
    grid = folder / "grid.toml"
    grid.write_text(
        'picture = ["histogram", "raster"]\nwindow_s = [2, 1]\nstride_s = 1\nbackbone = "tiny"\n'
        'weights = "random"\nhead = ["falkon", "parameters"]\npermutations = 0\ntune = false\n'
    )
    with watch_sweep() as watch:
        swept = sweep(devices, read_grid(grid), folder / "sweep", watch=watch)
    assert not swept.failures
    write_sweep_report(swept)
    page = folder / "page.html"
    page.write_text(render(wide_page()), "utf-8")
    return {
        "run": run / "report.html",
        "beside": beside,
        "predictions": folder / "predictions" / "report.html",
        "sweep": folder / "sweep" / "report.html",
        "why": folder / "why" / "why.html",
        "page": page,
    }


def wide_page() -> Page:
    """Tables, maps, commands and figures of more than there is room for."""
    path = "/data/" + "a_folder_with_a_long_name/" * 8 + "run"
    table = Table(
        caption="Wide",
        header=("run", "figures", *(f"column number {k}" for k in range(9))),
        rows=tuple(
            (f"{path}{k}", ", ".join(["0.0714286"] * 14), *["95.5 to 99.9 %"] * 8, Cell(text=path))
            for k in range(12)
        ),
        numeric=tuple(range(1, 10)),
    )
    heat = HeatMap(
        caption="Map",
        rows=tuple(CLASSES.values()),
        columns=tuple(CLASSES.values()),
        cells=((Shade(text="12345", share=0.9, detail="100 %", marked=True),) * 3,) * 3,
    )
    figure = Figure(figsize=(4, 2))
    axes = figure.add_subplot()
    axes.plot([0, 1], [1, 0])
    axes.set_title("shares")
    drawn = Picture(uri=svg_uri(figure), alt="a line")
    blocks = (Text(text=path), table, heat, Code(text=f"toptune fit {path}"), drawn)
    titles = ("First", "Second", path)
    return Page(
        title=path, lead=path, sections=tuple(Section(title=t, blocks=blocks) for t in titles)
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests; each opens its own page."""
    with browser(tmp_path_factory.mktemp("browser") / "profile") as opened:
        yield opened


def look(page: Browser, report: Path, way: Way) -> None:
    page.emulate(dark=way.dark, printed=way.printed)
    page.open(report, width=way.width, phone=way.width < 500)
    # What is folded is looked at, too.
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")


# Names of elements that reach out of the page, or out of themselves, where they do not scroll.
SPILT = """
(() => {
  const wide = document.documentElement.clientWidth, found = [];
  const name = e => `${e.tagName}.${e.className}: ${(e.textContent || '').trim().slice(0, 40)}`;
  if (document.documentElement.scrollWidth > wide) found.push('the page itself');
  for (const e of document.body.querySelectorAll('*')) {
    if (!e.checkVisibility() || e instanceof SVGElement) continue;
    const style = getComputedStyle(e), box = e.getBoundingClientRect();
    const scrolls = /auto|scroll/.test(style.overflowX);
    const held = e.parentElement.closest('.scroll');
    const inside = held && /auto|scroll/.test(getComputedStyle(held).overflowX);
    if (box.right > wide + 1 && !inside) found.push(`beyond the edge: ${name(e)}`);
    if (e.clientWidth && e.scrollWidth > e.clientWidth + 1 && !scrolls)
      found.push(`cut: ${name(e)}`);
  }
  return found;
})()
"""


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_reaches_out_of_the_page_and_no_text_is_cut(
    reports: dict[str, Path], page: Browser, kind: str, way: Way
) -> None:
    look(page, reports[kind], way)
    assert "\n".join(page.evaluate(SPILT)) == ""


@pytest.mark.parametrize("kind", ["run", "beside", "predictions", "sweep"])
@pytest.mark.parametrize("width", [1280, 390])
def test_tables_need_no_scrolling(
    reports: dict[str, Path], page: Browser, kind: str, width: int
) -> None:
    look(page, reports[kind], Way(width))
    # Maps of many classes may scroll on a phone.
    boxes = "[...document.querySelectorAll('.scroll')].filter(e => !e.querySelector('.heat'))"
    assert page.evaluate(f"{boxes}.length") >= 1
    wide = f"{boxes}.filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.ariaLabel)"
    assert page.evaluate(wide) == []


def test_what_reaches_out_of_a_page_or_is_cut_is_noticed(page: Browser, tmp_path: Path) -> None:
    # Else the test above could not fail.
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!DOCTYPE html><body><p style='width:2000px'>wide</p>"
        "<div style='width:50px;overflow:hidden'><b style='white-space:nowrap'>a long word"
        "</b></div>"
    )
    look(page, bad, Way(390))
    said = " ".join(page.evaluate(SPILT))
    assert "the page itself" in said
    assert "beyond the edge: P" in said
    assert "cut: DIV" in said


# --- getting about


@pytest.mark.parametrize("kind", KINDS)
def test_contents_lead_to_every_section_at_any_width(
    reports: dict[str, Path], page: Browser, kind: str
) -> None:
    titles = re.findall(r"<h2>", reports[kind].read_text("utf-8"))
    for width, menu in ((1280, "nav.side"), (390, "#contents")):
        look(page, reports[kind], Way(width))
        links = f"[...document.querySelectorAll('{menu} li a')]"
        if len(titles) < 3:  # too short for contents
            assert page.evaluate(f"{links}.length") == 0
            continue
        assert page.evaluate(f"{links}.length") == len(titles)
        for k in range(len(titles)):
            page.evaluate(f"{links}[{k}].click()")
            landed = page.evaluate(
                "(() => { const e = document.querySelector(location.hash);"
                " const box = e.getBoundingClientRect();"
                " const end = scrollY + innerHeight >= document.documentElement.scrollHeight - 2;"
                " return [e.querySelector('h2').textContent, end || Math.abs(box.top) < 40,"
                " box.top < innerHeight]; })()"
            )
            assert landed == [page.evaluate(f"{links}[{k}].textContent"), True, True]


@pytest.mark.parametrize("kind", KINDS)
def test_links_of_a_page_lead_somewhere_on_it(reports: dict[str, Path], kind: str) -> None:
    content = reports[kind].read_text("utf-8")
    ids = re.findall(r' id="([^"]*)"', content)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'href="#([^"]*)"', content)) <= set(ids)
    if kind == "predictions":
        assert content.count('href="#recording-') == 4


def test_contents_stay_beside_the_text_on_a_wide_screen_only(
    reports: dict[str, Path], page: Browser
) -> None:
    seen = "e => e.checkVisibility() && e.getBoundingClientRect().top >= 0"
    for way, side, above in (
        (WAYS["1280 px"], True, False),
        (WAYS["390 px"], False, True),
        (WAYS["printed"], False, False),
    ):
        page.emulate(printed=way.printed)
        page.open(reports["run"], width=way.width, phone=way.width < 500)
        assert page.evaluate("document.querySelector('#contents').checkVisibility()") is above
        # Folded, so that the scores are the first to be seen.
        assert page.evaluate("document.querySelector('#contents details').open") is False
        page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
        assert page.evaluate(f"({seen})(document.querySelector('nav.side'))") is side


def test_rows_of_wide_tables_are_cards_on_a_phone(reports: dict[str, Path], page: Browser) -> None:
    look(page, reports["beside"], WAYS["390 px"])
    cells = "[...document.querySelector('table.cards tbody tr').querySelectorAll('td')]"
    shown = page.evaluate(
        f"{cells}.map(e => [getComputedStyle(e, '::before').content, e.textContent])"
    )
    header = page.evaluate(
        "[...document.querySelectorAll('table.cards')[0].querySelectorAll('thead th')]"
        ".map(e => e.textContent)"
    )
    assert [label.strip('"') for label, _ in shown] == header[1:]
    tops = page.evaluate(f"{cells}.map(e => e.getBoundingClientRect().top)")
    assert tops == sorted(set(tops))  # one below the other
    assert not page.evaluate("document.querySelector('table.cards thead').checkVisibility()")


# --- in the dark


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_neither_glare_nor_vanish_on_a_dark_screen(
    reports: dict[str, Path], page: Browser, kind: str
) -> None:
    shown = {}
    for way in ("1280 px", "dark"):
        look(page, reports[kind], WAYS[way])
        shown[way] = [brightness(page.picture(box)) for box in boxes(page)]
        assert shown[way]
    for light, dark in zip(shown["1280 px"], shown["dark"], strict=True):
        assert np.median(dark) < 255 - np.median(light) + 60
        assert np.ptp(dark) > 0.7 * np.ptp(light)


def test_a_light_screen_shows_pictures_as_they_are_drawn(
    reports: dict[str, Path], page: Browser
) -> None:
    look(page, reports["page"], WAYS["1280 px"])
    grey = brightness(page.picture(boxes(page)[0]))
    assert np.median(grey) == 255
    assert np.ptp(grey) > 100


def boxes(page: Browser) -> list[dict[str, float]]:
    """Say where pictures are."""
    found: list[dict[str, float]] = page.evaluate(
        "[...document.images].map(e => e.getBoundingClientRect())"
        ".map(b => ({x: b.x + scrollX, y: b.y + scrollY, width: b.width, height: b.height}))"
    )
    return found


def brightness(png: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


# --- on paper


def test_first_printed_page_is_filled(reports: dict[str, Path], page: Browser) -> None:
    page.emulate()
    page.open(reports["run"], width=1280)
    assert page.pdf().count(b"/Type /Page\n") >= 2
    look(page, reports["run"], WAYS["printed"])
    # What must stay together is short, so that no page is left half empty before it.
    height = (297 - 30) / 25.4 * 96
    tall = page.evaluate(
        "[...document.querySelectorAll('*')].filter(e => e.checkVisibility()"
        " && getComputedStyle(e).breakInside.startsWith('avoid'))"
        ".map(e => e.getBoundingClientRect().height)"
    )
    assert len(tall) > 20
    assert max(tall) < 0.45 * height
