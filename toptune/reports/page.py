"""HTML pages made of blocks: self-contained files for a screen, a phone or paper.

A page is described by frozen values (texts, numbers as text, pictures as bytes) and rendered by a
template that escapes every text and embeds every picture. A page has no script, and its content
security policy forbids requests.
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

# Never distinguished by colour alone: also by lightness, and by a word or the dashes of a line.
Tone = Literal["plain", "good", "bad", "quiet", "strong"]

#: Colours of diagrams: those of the page, chosen for colour-blind readers (after Okabe and Ito).
BLUE, ORANGE, GREY = "#0067a3", "#b84300", "#5a626b"
# A narrow space that does not break.
_NARROW = "\u202f"


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph.

    Parameters
    ----------
    text
        Plain text; HTML in it is escaped.
    quiet
        Small and grey, for remarks.
    """

    kind: ClassVar = "text"
    text: str
    quiet: bool = False


@dataclass(frozen=True, kw_only=True)
class Note:
    """A highlighted paragraph.

    Parameters
    ----------
    text
        Plain text.
    level
        ``warning`` or ``note``; the word is written before the text.
    """

    kind: ClassVar = "note"
    text: str
    level: Literal["warning", "note"] = "warning"


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

    kind: ClassVar = "facts"
    facts: tuple[Fact, ...]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table that is not plain text.

    Parameters
    ----------
    text
        Plain text.
    tone
        ``good``, ``bad``, ``quiet`` or ``strong``.
    """

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows below a header; scrolls sideways where the screen is too narrow.

    Parameters
    ----------
    caption
        One sentence on what it shows.
    header
        Names of the columns.
    rows
        Each as long as the header; the first cell is the row's name.
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
        Darkness of the cell, 0 to 1.
    detail
        Small print below the text.
    marked
        Whether the cell is framed, such as the diagonal of a confusion matrix.
    """

    text: str
    share: float
    detail: str = ""
    marked: bool = False


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """A table whose cells are darker the larger their value.

    Parameters
    ----------
    caption
        What it shows.
    rows, columns
        Names.
    cells
        One tuple per row.
    row_title, column_title
        What rows and columns are, such as ``true class``.
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
    """An embedded image.

    Parameters
    ----------
    uri
        ``data:`` with the bytes; see `svg_uri` and `png_uri`.
    alt
        Description of the picture, for readers who cannot see it.
    caption
        Below the picture.
    width_px
        Largest width.
    """

    kind: ClassVar = "picture"
    uri: str
    alt: str
    caption: str = ""
    width_px: int = 720

    def __post_init__(self) -> None:
        if not self.uri.startswith("data:image/"):
            raise ValueError(f"pictures are embedded in the page, got {self.uri[:40]!r}")
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
        Description of the picture, for readers who cannot see it.
    lines
        Lines in one coordinate system.
    uri
        A picture instead of lines.
    height_px
        Height of the band.
    marks
        Heights, 0 to 1, of thin horizontal rules.
    """

    name: str
    alt: str
    lines: tuple[Line, ...] = ()
    uri: str = ""
    height_px: int = 56
    marks: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Bands above one time axis, with a headline.

    Parameters
    ----------
    name
        Headline.
    badge, tone
        A word beside the headline, and how it is shown.
    text
        A sentence below the headline.
    tracks
        The bands, from top to bottom.
    ticks
        Labels along the axis, evenly spaced from its start to its end.
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
    """Text in a fixed-width font, such as commands."""

    kind: ClassVar = "code"
    text: str


@dataclass(frozen=True, kw_only=True)
class Details:
    """Blocks that are hidden until the reader opens them."""

    kind: ClassVar = "details"
    summary: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Blocks side by side where the screen is wide enough."""

    kind: ClassVar = "columns"
    blocks: tuple[Block, ...]


Block = (
    Text | Note | Facts | Table | HeatMap | Picture | Timeline | Code | Details | Columns
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and the blocks below it."""

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
        Summary in a sentence or two.
    blocks
        Blocks before the first section.
    sections
        The sections, in order.
    footer
        Small print at the end.
    """

    title: str
    lead: str
    sections: tuple[Section, ...]
    blocks: tuple[Block, ...] = ()
    footer: str = ""


def render(page: Page) -> str:
    """Render a page as an HTML document, to be written as UTF-8."""
    return _environment().get_template("page.html").render(page=page).strip() + "\n"


def svg_uri(figure: MplFigure) -> str:
    """Turn a matplotlib figure into the URI of an SVG picture.

    Equal figures give equal bytes: there is no date in them, and ids do not depend on the run.
    """
    import matplotlib as mpl

    out = io.BytesIO()
    # Letters as text, not as outlines: a tenth of the size, and a search finds them.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "toptune"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
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
    made.filters["points"] = points_attribute
    return made
