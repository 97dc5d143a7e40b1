"""How results show themselves: one line in a terminal, a small table in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import islice

#: Rows of a table that are shown; how many more there are is said.
SHOWN_ROWS = 8


def count(n: int, what: str) -> str:
    """Say how many: ``1 channel``, ``2 channels``."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def one_or(n: int, singular: str, plural: str) -> str:
    """Choose the form of a word that goes with a number: ``was``, ``were``."""
    return singular if n == 1 else plural


def named_electrodes(what: str, labels: Sequence[str]) -> str:
    """Say how many electrodes are ``dead``, and which: ``1 dead electrode (number 68)``.

    A label that is a number alone could be read as a count.
    """
    numbers = all(label.isdigit() for label in labels)
    which = ", ".join(labels[:-1]) + " and " + labels[-1] if len(labels) > 1 else labels[0]
    word = ("number " if len(labels) == 1 else "numbers ") if numbers else ""
    return f"{count(len(labels), f'{what} electrode')} ({word}{which})"


def summary_line(title: str, facts: Iterable[str]) -> str:
    """Describe a result in one line of printable characters, as its ``repr``."""
    text = f"<{title}: {', '.join(facts)}>"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def summary_html(
    title: str,
    facts: Iterable[str],
    header: Sequence[str] = (),
    rows: Iterable[Sequence[object]] = (),
    *,
    n_rows: int = 0,
) -> str:
    """Describe a result as HTML: a line for each fact, and the first of `n_rows` rows.

    All text is escaped.
    """
    lines = [f"<strong>{escape(title)}</strong>"]
    lines += [f"<div>{escape(line)}</div>" for line in facts]
    if header:
        lines.append(f"<table><thead>{_row('th', header)}</thead><tbody>")
        lines += [_row("td", row) for row in islice(rows, SHOWN_ROWS)]
        lines.append("</tbody></table>")
    if n_rows > SHOWN_ROWS:
        lines.append(f"<div>and {n_rows - SHOWN_ROWS} more</div>")
    return f"<div>{''.join(lines)}</div>"


def _row(cell: str, values: Iterable[object]) -> str:
    return f"<tr>{''.join(f'<{cell}>{escape(_text(v))}</{cell}>' for v in values)}</tr>"


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
