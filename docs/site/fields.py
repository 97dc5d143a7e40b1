"""Let the Python API show a field's default and comment as readers of the code see them."""

from __future__ import annotations

import ast
from typing import Any

from griffe import Attribute, Docstring, ExprCall, Extension, ObjectNode

# Functions of toptune.params that make a field: its default comes first.
_MAKERS = ("option", "_detection", "_recording", "_advanced")


class Fields(Extension):
    """Changes attributes before dataclasses are made of them."""

    def on_attribute_instance(
        self, *, node: ast.AST | ObjectNode, attr: Attribute, **given: Any
    ) -> None:
        """Take the default out of the call that makes a field, and a comment for its docstring."""
        del node, given
        value = attr.value
        if isinstance(value, ExprCall) and str(value.function) in _MAKERS and value.arguments:
            attr.value = value.arguments[0]
        if attr.docstring is None and (comment := _comment(attr)):
            attr.docstring = Docstring(comment, parent=attr, lineno=attr.lineno)


def _comment(attr: Attribute) -> str:
    """Give the comment behind a field, or the lines of comment above it."""
    if attr.lineno is None or attr.endlineno is None or not attr.parent or not attr.parent.is_class:
        return ""
    lines = attr.lines_collection[attr.filepath]
    behind = lines[attr.endlineno - 1].partition("  # ")[2]
    if behind:
        return _sentence(behind)
    above: list[str] = []
    for line in reversed(lines[: attr.lineno - 1]):
        text = line.strip()
        if not text.startswith("#") or text.startswith("# ---"):
            break
        above.insert(0, text.lstrip("#: ").rstrip())
    return _sentence(" ".join(above))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", ":")) or not text else ".")
