"""What the documents show works as it is printed."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toptune.evaluation.folds import leave_one_group_out
from toptune.heads import catalogue, head_of, register

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module that docs/classifiers.md prints, imported."""
    text = (DOCS / "classifiers.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    (tmp_path / "printed_head.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(catalogue, "_known", dict(catalogue._known))
    yield importlib.import_module("printed_head")
    sys.modules.pop("printed_head")


def test_the_printed_classifier_is_tuned_scored_written_and_read(printed: Any) -> None:
    register(printed.CentroidHead())
    head = head_of("centroid")
    assert len(head.candidates({}, {}, 1, tune=True)) == 2
    X = np.repeat(np.eye(3), 4, axis=0) + np.arange(12)[:, None] / 50
    y, group = np.repeat(list("abc"), 4), np.tile(["p", "q", "r", "s"], 3)
    classifier = head.make({"shrink_threshold": 0.1})
    assert (leave_one_group_out(classifier, X, y, group).predictions == y).all()
    fitted = classifier.fit(X, y)
    again = head.read(fitted.to_tensors(), fitted.get_params(), fitted.classes_)
    np.testing.assert_array_equal(again.class_scores(X), fitted.class_scores(X))
    np.testing.assert_array_equal(again.predict(X), fitted.predict(X))
