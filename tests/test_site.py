"""The documentation site: built strictly, its tutorial run, every page opened in a browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import Browser, browser, needs_chromium
from needs import package

import toptune
from toptune import plot

pytestmark = pytest.mark.thorough

TOP = Path(__file__).parents[1]
SITE = TOP / "docs" / "site"
PACKAGES = ("mkdocs", "material", "mkdocstrings_handlers", "nbconvert", "nbclient", "ipykernel")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site; its tutorial is run for it, without network."""
    for name in PACKAGES:
        package(name)
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(TOP)}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    command += ["-f", str(SITE / "mkdocs.yml"), "-d", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = json.loads((SITE.parent / "tutorial.ipynb").read_text("utf-8"))
    assert all(not cell.get("outputs") for cell in notebook["cells"])


def test_the_tutorial_finds_more_than_chance(site: Path) -> None:
    text = re.sub(r"<[^>]*>", "", (site / "tutorial.html").read_text("utf-8"))
    shown = r"95 % interval: ([\d.]+) to [\d.]+; always naming one class: ([\d.]+)"
    (printed,) = re.findall(shown, text)
    low, chance = map(float, printed)
    assert low > chance


class _Links(HTMLParser):
    """What a page links to and shows, and where links into it may lead."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = {""}
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del tag
        found = dict(attrs)
        self.targets += [value for key in ("href", "src") if (value := found.get(key))]
        self.anchors |= {value for key in ("id", "name") if (value := found.get(key))}


def pages_of(site: Path) -> list[Path]:
    """Every page, but the one a server gives where there is none, whose links begin at its top."""
    return [page for page in sorted(site.rglob("*.html")) if page.name != "404.html"]


def test_every_link_leads_to_a_page_and_a_place_that_exist(site: Path) -> None:
    found = {page: _Links(page) for page in pages_of(site)}
    assert len(found) > 25
    broken = []
    for page, links in found.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            to = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if to.is_dir():
                to /= "index.html"
            there = to.is_file()
            if there and to in found:
                there = unquote(parts.fragment) in found[to].anchors
            if not there:
                broken.append(f"{page.name}: {target}")
    assert not broken


def test_every_public_name_is_documented(site: Path) -> None:
    anchors = _Links(site / "api.html").anchors
    names = {f"toptune.{name}" for name in toptune.__all__ if not name.startswith("_")}
    names |= {f"toptune.plot.{name}" for name in plot.__all__}
    assert names - anchors == set()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_ask_for_nothing_outside_complain_of_nothing_and_fit(
    site: Path, chromium: Browser, width: int
) -> None:
    wrong = []
    for page in pages_of(site):
        visit = chromium.open(page, width=width, phone=width < 500)
        asked = [url for url in visit.requests if not url.startswith(("data:", site.as_uri()))]
        wide = chromium.evaluate("document.documentElement.scrollWidth")
        if asked or visit.complaints or wide > width:
            wrong.append((page.name, asked, visit.complaints, wide))
    assert not wrong


@needs_chromium
def test_the_search_works_in_pages_opened_from_a_disk(site: Path, chromium: Browser) -> None:
    chromium.open(site / "index.html", width=1280)
    found = chromium.call(
        "Runtime.evaluate",
        awaitPromise=True,
        returnByValue=True,
        expression="""new Promise((done) => {
            const field = document.querySelector(".md-search__input");
            field.focus();
            field.value = "refractory";
            field.dispatchEvent(new Event("keyup", { bubbles: true }));
            const look = (left) => {
                const links = [...document.querySelectorAll(".md-search-result__link")];
                if (links.length || !left) done(links.map((one) => one.getAttribute("href")));
                else setTimeout(() => look(left - 1), 100);
            };
            look(100);
        })""",
    )["result"]["value"]
    assert any("detection.html" in link for link in found), found
