"""HTML pages made of blocks: self-contained files for a screen, a phone or paper.

A page is described by frozen values (texts, numbers as text, pictures as bytes) and rendered by a
template that escapes every text and embeds every picture. A page has no script, and its content
security policy forbids requests. A page of several sections has a table of contents: beside the
text on a wide screen, folded above it on a narrow one, none on paper.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from jinja2 import Environment

    from toptune.machine.drawing import Figure as MplFigure

# Never distinguished by colour alone: also by lightness, and by a word or the dashes of a line.
Tone = Literal["plain", "good", "bad", "quiet", "strong"]

#: Colours of diagrams: those of the page, chosen for colour-blind readers (after Okabe and Ito).
BLUE, ORANGE, GREY = "#0067a3", "#b84300", "#5a626b"
# With fewer sections a table of contents would be longer than what it saves.
_CONTENTS_FROM = 3
# A word of more letters may be broken in a table.
_LONG_WORD = 14
# A narrow space that does not break.
_NARROW = "\u202f"


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph."""

    text: str
    quiet: bool = False  # small and grey, for remarks


@dataclass(frozen=True, kw_only=True)
class Note:
    """A highlighted paragraph."""

    text: str
    level: Literal["warning", "note"] = "warning"  # written before the text


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One figure with its name, and a detail in small print."""

    name: str
    value: str
    detail: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Large figures side by side, which a reader should see first."""

    facts: tuple[Fact, ...]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table that is not plain text."""

    text: str
    tone: Tone = "plain"
    link: str = ""  # anchor of a timeline on the same page


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows below a header; on a narrow screen each row of more than three cells is a card."""

    caption: str
    header: tuple[str, ...]
    # Each as long as the header; the first cell is the row's name.
    rows: tuple[tuple[str | Cell, ...], ...]
    numeric: tuple[int, ...] = ()  # columns that are aligned to the right

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"a row of {len(row)} cells under {len(self.header)}: {row}")


@dataclass(frozen=True, kw_only=True)
class Shade:
    """A cell of a heat map."""

    text: str  # shown large
    share: float  # darkness of the cell, 0 to 1
    detail: str = ""  # small print below the text
    marked: bool = False  # whether the cell is framed, such as the diagonal of a confusion matrix


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """A table whose cells are darker the larger their value."""

    caption: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Shade, ...], ...]
    row_title: str = ""  # what rows and columns are, such as `true class`
    column_title: str = ""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An embedded image, dark on white or on nothing; a dark page shows it light on dark."""

    uri: str  # `data:` with the bytes; see `svg_uri` and `png_uri`
    alt: str  # description of the picture, for readers who cannot see it
    caption: str = ""
    width_px: int = 720

    def __post_init__(self) -> None:
        if not self.uri.startswith("data:image/"):
            raise ValueError(f"pictures are embedded in the page, got {self.uri[:40]!r}")
        if not self.alt.strip():
            raise ValueError("a picture needs an alt text")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a track."""

    # (x, y), both from 0 to 1, x from left to right and y upwards.
    points: tuple[tuple[float, float], ...]
    tone: Tone = "plain"  # `good` is solid, `bad` dashed, `quiet` thin and grey


@dataclass(frozen=True, kw_only=True)
class Track:
    """A band of a timeline: lines, or a picture as wide as the timeline."""

    name: str
    alt: str  # description of the picture, for readers who cannot see it
    lines: tuple[Line, ...] = ()
    uri: str = ""  # a picture instead of lines
    height_px: int = 56
    marks: tuple[float, ...] = ()  # heights, 0 to 1, of thin horizontal rules


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Bands above one time axis, with a headline."""

    name: str
    badge: str  # a word beside the headline, in `tone`
    tone: Tone
    text: str
    tracks: tuple[Track, ...]
    ticks: tuple[str, ...]  # labels along the axis, evenly spaced from its start to its end
    anchor: str = ""  # letters, digits and hyphens, for links to it


@dataclass(frozen=True, kw_only=True)
class Code:
    """Text in a fixed-width font, such as commands."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Details:
    """Blocks that are hidden until the reader opens them."""

    summary: str
    blocks: tuple[Block, ...]
    printed: bool = True  # whether they are on paper, too


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Blocks side by side where the screen is wide enough."""

    blocks: tuple[Block, ...]


Block = Text | Note | Facts | Table | HeatMap | Picture | Timeline | Code | Details | Columns


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and the blocks below it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Page:
    """A whole page."""

    title: str  # heading and name of the page
    lead: str  # summary in a sentence or two
    sections: tuple[Section, ...]
    blocks: tuple[Block, ...] = ()  # blocks before the first section
    footer: str = ""


def render(page: Page) -> str:
    """Render a page as an HTML document, to be written as UTF-8."""
    template = _environment().get_template("page.html")
    sections = _with_anchors(page.sections)
    contents = sections if len(sections) >= _CONTENTS_FROM else ()
    return template.render(page=page, sections=sections, contents=contents).strip() + "\n"


class _Anchored(NamedTuple):
    """A section and the name by which links find it."""

    anchor: str
    section: Section


def _with_anchors(sections: Sequence[Section]) -> tuple[_Anchored, ...]:
    """Name sections by their titles, so that a link into a report survives a new version of it."""
    named: dict[str, Section] = {}
    for section in sections:
        name = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-")
        # Prefixed, so that no section takes the name of a timeline or of the contents.
        name = f"section-{name}" if name else "section"
        number = 1 + sum(other == name or other.startswith(f"{name}--") for other in named)
        named[name if number == 1 else f"{name}--{number}"] = section
    return tuple(_Anchored(*one) for one in named.items())


def svg_uri(figure: MplFigure) -> str:
    """Turn a matplotlib figure into the URI of an SVG picture.

    Equal figures give equal bytes: there is no date in them, and ids do not depend on the run. The
    background is transparent, so that the page's colour shows.
    """
    from toptune.machine.drawing import rc_context

    out = io.BytesIO()
    # Letters as text, not as outlines: a tenth of the size, and a search finds them.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "toptune"}):
        figure.savefig(
            out, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def png_uri(content: bytes) -> str:
    """Turn the bytes of a PNG into the URI of a picture."""
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def points_attribute(points: Sequence[tuple[float, float]]) -> str:
    """Write points as SVG does, in a box 1000 wide and 100 high whose y axis points down."""
    return " ".join(f"{1000 * x:.1f},{100 * (1 - y):.1f}" for x, y in points)


# --- numbers as text


def percent(share: float) -> str:
    """Write a share in whole per cent."""
    return f"{100 * share:.0f}{_NARROW}%"


def interval(low: float, high: float) -> str:
    """Write an interval of shares in whole per cent."""
    return f"{100 * low:.0f} to {100 * high:.0f}{_NARROW}%"


def p_value_text(p: float) -> str:
    """Write a p-value: three digits below 0.1, else two."""
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


@cache
def _environment() -> Environment:
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("toptune.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "points": points_attribute,
        "kind": lambda block: type(block).__name__,
        "long": lambda text: any(len(word) > _LONG_WORD for word in text.split()),
    }
    return made
