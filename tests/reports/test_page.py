"""Pages: whole, escaped, and without a need for anything outside themselves."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from toptune.reports.page import (
    Cell,
    Code,
    Columns,
    Details,
    Fact,
    Facts,
    HeatMap,
    Line,
    Note,
    Page,
    Picture,
    Section,
    Shade,
    Table,
    Text,
    Timeline,
    Track,
    png_uri,
    render,
    svg_uri,
)

VOID = {"meta", "link", "img", "line", "polyline", "br"}


def page_of(text: str) -> Page:
    """Every kind of block, with a text wherever one can stand."""
    uri = png_uri(b"\x89PNG")
    table = Table(
        caption=text,
        header=(text, "n"),
        rows=((text, "1"), (Cell(text=text, tone="bad"), Cell(text=text, tone="good"))),
        numeric=(1,),
    )
    heat = HeatMap(
        caption=text,
        rows=(text,),
        columns=(text, text),
        cells=((Shade(text=text, share=0.9, marked=True), Shade(text="", share=0, detail=text)),),
        row_title=text,
        column_title=text,
    )
    timeline = Timeline(
        name=text,
        badge=text,
        tone="bad",
        text=text,
        tracks=(
            Track(name=text, alt=text, lines=(Line(points=((0, 0), (1, 1))),), marks=(0.5,)),
            Track(name=text, alt=text, uri=uri),
        ),
        ticks=(text, text),
    )
    blocks = (
        Text(text=text),
        Text(text=text, quiet=True),
        Note(text=text),
        Facts(facts=(Fact(name=text, value=text, detail=text),)),
        table,
        Columns(blocks=(heat, Picture(uri=uri, alt=f"a{text}", caption=text))),
        timeline,
        Details(summary=text, blocks=(Code(text=text), Details(summary=text, blocks=(table,)))),
    )
    return Page(
        title=text,
        lead=text,
        blocks=blocks,
        sections=(Section(title=text, blocks=blocks),),
        footer=text,
    )


class Outline(HTMLParser):
    """The tags of a document, and whether they are closed in order; its texts and attributes."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID, f"<{tag}/>"
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def outline(page: Page) -> Outline:
    parser = Outline()
    parser.feed(render(page))
    parser.close()
    assert parser.open == []
    return parser


@given(st.text(alphabet="<>&\"'{}%#;a/-\u00b5\n ", min_size=1, max_size=12))
def test_no_text_becomes_markup(text: str) -> None:
    # As long, since the heads of narrow columns are turned where they are long.
    harmless = outline(page_of("w" * len(text)))
    found = outline(page_of(text))
    assert found.tags == harmless.tags
    assert [n for n, _ in found.attributes] == [n for n, _ in harmless.attributes]
    assert sum(t.strip() == text.strip() for t in found.texts) >= bool(text.strip())


def test_page_asks_for_nothing_outside_itself() -> None:
    html = render(page_of("word"))
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html
    assert "<script" not in html
    for name, value in outline(page_of("word")).attributes:
        if name in ("src", "href"):
            assert (value or "").startswith(("data:", "#"))
    assert not re.search(r"url\(|@import|https?:", html)


def test_each_picture_says_what_is_to_be_seen() -> None:
    with pytest.raises(ValueError, match="alt text"):
        Picture(uri=png_uri(b""), alt=" ")
    with pytest.raises(ValueError, match="embedded in the page"):
        Picture(uri="https://example.org/x.png", alt="x")


def test_row_of_another_length_than_the_header_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 1 cells under 2"):
        Table(caption="c", header=("a", "b"), rows=(("1",),))


def test_equal_figures_become_equal_pictures() -> None:
    def draw() -> str:
        figure = Figure(figsize=(2, 1))
        axes = figure.add_subplot()
        axes.plot([0, 1], [1, 0])
        axes.fill_between([0, 1], [0, 1])
        return svg_uri(figure)

    assert draw() == draw()
    assert draw().startswith("data:image/svg+xml;base64,")
