"""Results say in a line, and in a notebook in a small table, what they are."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_data import make_provenance, make_view

from toptune.extraction import ExtractionResult
from toptune.features.table import FeatureTable, RecordingInfo
from toptune.machine.display import count, summary_html, summary_line
from toptune.recordings.trains import Spikes, SpikeTrains
from toptune.runs.verdicts import Predictions
from toptune.store.feature_store import FeatureSet, FeatureStore
from toptune.training import RunResult

BAD = "<script>alert('&')</script>"


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert attrs == []
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def text_of(html: str) -> str:
    """The text of well-formed HTML that holds nothing but lines and a table."""
    tags = _Tags()
    tags.feed(html)
    assert tags.open == []
    assert tags.seen <= {"div", "strong", "table", "thead", "tbody", "tr", "th", "td"}
    return "|".join(tags.text)


def trains(n_channels: int = 2, label: str = "E") -> SpikeTrains:
    return SpikeTrains.from_arrays(
        np.arange(20) / 10,
        [f"{label}{k % 2}" for k in range(20)],
        duration_s=4.0,
        sampling_rate_hz=1000.0,
        channel_labels=[f"{label}{k}" for k in range(n_channels)],
    )


def test_a_long_table_says_how_much_is_not_shown() -> None:
    html = summary_html("T", ["a fact"], ("n",), ([k] for k in range(30)), n_rows=30)
    assert text_of(html) == "T|a fact|n|0|1|2|3|4|5|6|7|and 22 more"
    assert text_of(summary_html("T", [])) == "T"
    assert [count(1, "verdict"), count(0, "verdict")] == ["1 verdict", "0 verdicts"]


def test_text_is_escaped_and_a_line_stays_a_line() -> None:
    assert text_of(summary_html(BAD, [BAD], (BAD,), [(BAD,)])) == "|".join([BAD] * 4)
    assert summary_line("T", ["a\nb\x1b[31m"]) == r"<T: a\nb\x1b[31m>"


def test_spikes() -> None:
    spikes = trains().spikes
    assert repr(spikes) == "<Spikes: 20 spikes on 2 channels, samples 0 to 1900>"
    text = text_of(spikes._repr_html_())
    assert "sample|channel|peak_to_peak_uv|0|0|nan|100|1|nan|" in text
    assert text.endswith("and 12 more")
    none = Spikes(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
    assert repr(none) == "<Spikes: no spikes>"
    text_of(none._repr_html_())


def test_spike_trains() -> None:
    assert repr(trains()) == "<SpikeTrains: 20 spikes on 2 channels, 4 s at 1000 Hz>"
    text = text_of(trains(3, BAD)._repr_html_())
    assert f"channel|spikes|rate (1/s)|{BAD}0|10|2.5|{BAD}1|10|2.5|{BAD}2|0|0" in text


def test_a_feature_table_and_a_store(tmp_path: Path) -> None:
    infos = tuple(RecordingInfo(f"r{k}", f"dev{k // 2}", BAD, {}) for k in range(3))
    view = make_view(4)
    table = FeatureTable(
        np.zeros((6, 4), np.float32), np.arange(6.0), np.repeat(np.arange(3), 2), infos,
        make_provenance(view), (view,),
    )  # fmt: skip
    told = "3 recordings of 2 devices with 1 label"
    assert repr(table) == f"<FeatureTable: 6 windows x 4 columns, {told}>"
    assert f"dev0|{BAD}|r0|2|dev0|{BAD}|r1|2|dev1|{BAD}|r2|2" in text_of(table._repr_html_())
    store = FeatureStore.create(tmp_path / "study.zarr", {})
    store.list_recordings(infos)
    assert repr(store) == f"<FeatureStore {tmp_path / 'study.zarr'}: {told}>"
    assert f"device|label|recording|dev0|{BAD}|r0" in text_of(store._repr_html_())
    store._attributes["recordings"] = [{"name": "../x", "device": "d", "label": "l"}]
    assert "damaged" in repr(store)
    assert "damaged" in text_of(store._repr_html_())


def test_a_run() -> None:
    verdicts = [
        SimpleNamespace(
            device=f"dev{k}", label="A", prediction="AB"[k % 2], n_windows=5,
            probabilities=np.array([0.25, 0.75]),
        )
        for k in range(4)
    ]  # fmt: skip
    scores: Any = SimpleNamespace(verdicts=verdicts, chance=0.5)
    metrics = {"head": "falkon", "warnings": [BAD]}
    run = RunResult(Path("run"), scores, None, metrics)  # type: ignore[arg-type]  # not looked at
    assert (
        repr(run)
        == "<RunResult run: falkon, 2 of 4 verdicts on left-out devices right, chance 0.500>"
    )
    text = text_of(run._repr_html_())
    assert f"warning: {BAD}" in text
    # Errors come first.
    assert re.findall(r"dev\d", text) == ["dev1", "dev3", "dev0", "dev2"]


def test_an_extraction() -> None:
    feature_set = FeatureSet.of(make_view(4).params)
    result = ExtractionResult(
        store=Path("s.zarr"), feature_sets=(feature_set,), done=2, reused=1, spikes_reused=0,
        too_short=("a",), failed=((BAD, "no such file"),), n_windows=9, notes=("dead channels",),
    )  # fmt: skip
    assert repr(result).startswith(
        "<ExtractionResult s.zarr: 2 recordings extracted and 1 there already, 9 windows, "
    )
    assert repr(result).endswith("1 shorter than a window, 1 failed>")
    text = text_of(result._repr_html_())
    assert f"failed|cause|{BAD}|no such file" in text
    assert "note: dead channels" in text


def test_predictions() -> None:
    one: Any = SimpleNamespace(
        recording=BAD, prediction="A", probability=0.875, warnings=("unlike", "short")
    )
    shown = Predictions(
        model=Path("run/model"), classes=("A", "B"), calibrated=True,
        cross_validated={
            "n_devices": 4, "device_accuracy": 0.5, "device_accuracy_ci95": [0.1, 0.9],
            "chance": 0.5,
        },
        recordings=(one, one), failed=(("b.h5", "is empty"),),
    )  # fmt: skip
    assert repr(shown) == "<Predictions by run/model: 2 A, 1 failed>"
    text = text_of(shown._repr_html_())
    assert f"{BAD}|A|0.875|unlike; short" in text
    assert "failed: b.h5: is empty" in text
    assert "cross-validated on 4 left-out devices" in text


@pytest.mark.parametrize("value", [3, 0.123456789, "x", None])
def test_cells_are_short(value: object) -> None:
    assert len(text_of(summary_html("", [], ("",), [(value,)]))) < 12
