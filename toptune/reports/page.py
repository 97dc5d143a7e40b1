"""Pages that need nothing but themselves: one HTML file, offline, for a screen, a phone or paper.

What enters: a page as plain frozen values (text, numbers already written out, pictures as bytes).
What leaves: HTML, in which every text is escaped and every picture is inside. It has no script, and
its content security policy forbids any request.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure as MplFigure

# Told apart by lightness and by a word or a line's dashes too, never by colour alone.
Tone = Literal["plain", "good", "bad", "quiet", "strong"]


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph.

    Parameters
    ----------
    text
        Plain; what looks like HTML is shown as it is.
    quiet
        Small and grey, for remarks.
    """

    kind: ClassVar = "text"
    text: str
    quiet: bool = False


@dataclass(frozen=True, kw_only=True)
class Note:
    """A paragraph that must not be missed.

    Parameters
    ----------
    text
        What is to be known.
    level
        ``warning`` or ``note``; the word stands before the text.
    """

    kind: ClassVar = "note"
    text: str
    level: Literal["warning", "note"] = "warning"


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One figure with its name, and what belongs to it in small print."""

    name: str
    value: str
    detail: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Large figures side by side: what a reader should see first."""

    kind: ClassVar = "facts"
    facts: tuple[Fact, ...]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table that is not plain text.

    Parameters
    ----------
    text
        As it is shown.
    tone
        ``good``, ``bad``, ``quiet`` or ``strong``.
    """

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under a header; too wide for a phone, it scrolls by itself.

    Parameters
    ----------
    caption
        What it shows, one sentence.
    header
        Names of the columns.
    rows
        As long as the header each; the first cell is the row's name.
    numeric
        Columns that are aligned to the right.
    """

    kind: ClassVar = "table"
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    numeric: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"a row of {len(row)} cells under {len(self.header)}: {row}")


@dataclass(frozen=True, kw_only=True)
class Shade:
    """A cell of a heat map.

    Parameters
    ----------
    text
        Shown large.
    share
        How dark, 0 to 1.
    detail
        Small print below.
    marked
        Framed, such as the diagonal of a confusion matrix.
    """

    text: str
    share: float
    detail: str = ""
    marked: bool = False


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """A table whose cells are dark by their value.

    Parameters
    ----------
    caption
        What it shows.
    rows, columns
        Names.
    cells
        A tuple a row.
    row_title, column_title
        What the names are names of.
    """

    kind: ClassVar = "heat"
    caption: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Shade, ...], ...]
    row_title: str = ""
    column_title: str = ""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image inside the page.

    Parameters
    ----------
    uri
        ``data:`` with the bytes; see `svg_uri` and `png_uri`.
    alt
        What is to be seen, for who cannot see it.
    caption
        Below it.
    width_px
        Shown no wider than this.
    """

    kind: ClassVar = "picture"
    uri: str
    alt: str
    caption: str = ""
    width_px: int = 720

    def __post_init__(self) -> None:
        if not self.uri.startswith("data:image/"):
            raise ValueError(f"a page holds its pictures itself, got {self.uri[:40]!r}")
        if not self.alt.strip():
            raise ValueError("a picture needs an alt text")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a track.

    Parameters
    ----------
    points
        (x, y), both from 0 to 1, x from left to right and y upwards.
    tone
        ``good`` is solid, ``bad`` dashed, ``quiet`` thin and grey.
    """

    points: tuple[tuple[float, float], ...]
    tone: Tone = "plain"


@dataclass(frozen=True, kw_only=True)
class Track:
    """A band of a timeline: lines, or a picture as wide as the timeline.

    Parameters
    ----------
    name
        What it shows.
    alt
        What is to be seen, for who cannot see it.
    lines
        Drawn over each other.
    uri
        Of a picture in their place.
    height_px
        Of the band.
    marks
        Heights, 0 to 1, of thin rules across it.
    """

    name: str
    alt: str
    lines: tuple[Line, ...] = ()
    uri: str = ""
    height_px: int = 56
    marks: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """One thing in time: bands over one common axis, with a headline.

    Parameters
    ----------
    name
        Of the thing.
    badge, tone
        A word beside it.
    text
        A sentence on it.
    tracks
        From top to bottom.
    ticks
        Along the axis, evenly spaced from its begin to its end.
    """

    kind: ClassVar = "timeline"
    name: str
    badge: str
    tone: Tone
    text: str
    tracks: tuple[Track, ...]
    ticks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Code:
    """What is to be typed or read letter by letter."""

    kind: ClassVar = "code"
    text: str


@dataclass(frozen=True, kw_only=True)
class Details:
    """What is folded away until wanted."""

    kind: ClassVar = "details"
    summary: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Blocks beside each other where there is room."""

    kind: ClassVar = "columns"
    blocks: tuple[Block, ...]


Block = (
    Text | Note | Facts | Table | HeatMap | Picture | Timeline | Code | Details | Columns
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with what stands under it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Page:
    """A whole page.

    Parameters
    ----------
    title
        Heading and name of the page.
    lead
        What it says, in a sentence or two.
    blocks
        Before the first section.
    sections
        In order.
    footer
        Small print at the end.
    """

    title: str
    lead: str
    sections: tuple[Section, ...]
    blocks: tuple[Block, ...] = ()
    footer: str = ""


def render(page: Page) -> str:
    """Write a page as HTML.

    Parameters
    ----------
    page
        What it shows.

    Returns
    -------
    str
        A whole document, to be written as UTF-8.
    """
    return _environment().get_template("page.html").render(page=page).strip() + "\n"


def svg_uri(figure: MplFigure) -> str:
    """Turn a matplotlib figure into a picture that is sharp at any size.

    The same figure gives the same bytes: no date, and ids that do not depend on the run.
    """
    import matplotlib as mpl

    out = io.BytesIO()
    # As text, not as outlines: a tenth of the size, and found by a search.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "toptune"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def png_uri(content: bytes) -> str:
    """Turn the bytes of a PNG into a picture."""
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def points_attribute(points: Sequence[tuple[float, float]]) -> str:
    """Write points as SVG does, in a box 1000 wide and 100 high whose y goes down."""
    return " ".join(f"{1000 * x:.1f},{100 * (1 - y):.1f}" for x, y in points)


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
    made.filters["points"] = points_attribute
    return made
