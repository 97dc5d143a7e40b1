"""The head ``parameters``: rules of its classifier's parameters."""

from __future__ import annotations

from collections.abc import Mapping

from toptune.heads.rules import Rule, above_0

RULES: Mapping[str, Rule] = {"C": above_0}
