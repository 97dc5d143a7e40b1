"""Diagrams show what the data hold, on the axes that are given, with or without a screen."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from small_data import write_data_set

from toptune import plot
from toptune.errors import InputError
from toptune.evaluation.effects import Effects, ParameterValues, effect_sizes
from toptune.extraction import extract
from toptune.machine.drawing import Axes
from toptune.params import Backbone, FitOptions, Windows
from toptune.recordings.trains import Segment, Spikes, SpikeTrains
from toptune.runs.parameters import run_parameters
from toptune.runs.reading import read_run
from toptune.store.feature_store import FeatureStore
from toptune.store.tables import table_for
from toptune.training import fit

pytestmark = pytest.mark.usefixtures("tiny_backbones")


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


def make_trains(
    times_s: list[float], channels: list[int], labels: tuple[str, ...], gap_s: float = 0.0
) -> SpikeTrains:
    """10 s at 1 kHz; with a gap after 5 s."""
    segments = (Segment(0, 5000, 0.0), Segment(5000, 5000, 5.0 + gap_s))
    return SpikeTrains(
        spikes=Spikes(
            np.rint(np.array(times_s) * 1000).astype(np.int64),
            np.array(channels, np.int32),
            np.full(len(times_s), np.nan, np.float32),
        ),
        channel_labels=labels,
        sampling_rate_hz=1000.0,
        segments=segments if gap_s else (Segment(0, 10_000, 0.0),),
        threshold_uv=np.full(len(labels), np.nan, np.float32),
    )


def new_axes() -> Axes:
    return Figure().add_subplot()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5000))
def test_no_burst_is_lost_where_bins_are_put_together(counts: list[int]) -> None:
    tops, together = plot.envelope(np.array(counts, dtype=np.int64))
    assert len(tops) <= 800
    expected = [max(counts[i : i + together]) for i in range(0, len(counts), together)]
    assert tops.tolist() == expected


# --- of spikes


def test_raster_has_a_mark_for_each_spike() -> None:
    ax = new_axes()
    spikes = make_trains([0.5, 1.0, 7.25], [1, 0, 1], ("12", "13"))
    assert plot.raster(spikes, ax) is ax
    (line,) = ax.get_lines()
    assert np.asarray(line.get_xydata()).tolist() == [[0.5, 1], [1.0, 0], [7.25, 1]]
    assert ax.get_xlim() == (0, 10)
    assert not ax.patches
    (line,) = plot.raster(spikes, new_axes(), start_s=0.8, stop_s=2).get_lines()
    assert np.asarray(line.get_xydata()).tolist() == [[1.0, 0]]


def test_gaps_are_grey_in_raster_and_histogram() -> None:
    spikes = make_trains([1.0, 5.5], [0, 0], ("12",), gap_s=3.0)
    for draw in (plot.raster, plot.histogram):
        ax = draw(spikes, new_axes())
        spans = [patch.get_extents().transformed(ax.transData.inverted()) for patch in ax.patches]
        assert any(s.x0 == pytest.approx(5) and s.x1 == pytest.approx(8) for s in spans)
        assert ax.get_xlim() == (0, 13)
    assert "gaps" in plot.raster(spikes, new_axes()).get_title("left")


def test_bars_are_as_high_as_there_are_spikes() -> None:
    times = [0.0, 0.1, 0.5, 0.5, 3.2, 9.99]
    ax = plot.histogram(make_trains(times, [0] * 6, ("12",)), new_axes(), bin_s=0.5)
    (stairs,) = ax.patches
    values, edges, _ = stairs.get_data()  # type: ignore[attr-defined]  # a StepPatch
    expected, expected_edges = np.histogram(times, np.arange(21) * 0.5)
    assert values.tolist() == expected.tolist()
    np.testing.assert_allclose(edges, expected_edges)
    assert ax.get_ylabel() == "spikes per 500 ms"
    with pytest.raises(InputError, match="bin_s"):
        plot.histogram(make_trains([], [], ("12",)), new_axes(), bin_s=0)


def test_electrodes_lie_where_their_labels_say_and_have_the_colour_of_their_rate() -> None:
    labels = ("12", "21", "33", "87")
    channels = [0] * 40 + [2] * 400
    spikes = make_trains(sorted(np.linspace(0, 9.9, 440).tolist()), channels, labels)
    ax = plot.array(spikes, Figure(figsize=(5, 5)).add_subplot(), dead=["21"])
    white, heat = (c for c in ax.collections if c.get_label() != "dead")
    assert np.asarray(white.get_offsets()).tolist() == [[1, 0], [7, 6]]
    assert np.asarray(heat.get_offsets()).tolist() == [[0, 1], [2, 2]]
    assert np.asarray(heat.get_array()).tolist() == [4.0, 40.0]
    assert heat.get_clim() == (1.0, 40.0)
    assert [text.get_text() for text in ax.texts] == list(labels)
    assert "two digits" in ax.get_title("left")
    assert "cross: dead" in ax.get_title("left").replace("\n", " ")
    alike = plot.array(spikes, new_axes(), limits_hz=(1, 100), labels=False)
    assert alike.collections[1].get_clim() == (1, 100)
    assert not alike.texts


def test_silent_recordings_are_drawn() -> None:
    silent = make_trains([], [], ("12", "13"))
    for draw in (plot.raster, plot.histogram, plot.array):
        ax = draw(silent, new_axes())
        ax.figure.savefig(os.devnull, format="png")  # type: ignore[union-attr]  # a Figure


# --- of runs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a store and a run of burst parameters on it."""
    folder = tmp_path_factory.mktemp("made")
    devices = write_data_set(folder)
    extract(
        devices,
        folder / "s.zarr",
        windows=Windows(width_s=4.0, stride_s=4.0),
        backbone=Backbone(name="tiny", weights="random"),
    )
    store = FeatureStore(folder / "s.zarr")
    table = table_for(store, "parameters")
    options = FitOptions(head="parameters", permutations=0)
    fit(table, options, folder / "run", facts=store.training_facts(table), store=store)
    return folder


def test_confusion_shows_the_verdicts_of_the_run(made: Path) -> None:
    run = read_run(made / "run")
    both: tuple[Literal["devices", "windows"], ...] = ("devices", "windows")
    for of in both:
        ax = plot.confusion(made / "run", new_axes(), of=of)
        labels = [tick.get_text() for tick in ax.get_yticklabels()]
        assert labels == ["A", "B", "C"]
        texts = {tuple(t.get_position())[::-1]: t.get_text().split("\n")[0] for t in ax.texts}
        for (i, j), text in texts.items():
            expected = sum(
                v.label == labels[int(i)] and v.prediction == labels[int(j)] for v in run.verdicts
            )
            assert int(text) == expected
    assert "Recordings" in ax.get_title()
    with pytest.raises(InputError, match="'devices' or 'windows'"):
        plot.confusion(made / "run", new_axes(), of="nothing")  # type: ignore[arg-type]


def test_every_device_has_a_dot_for_every_parameter(made: Path) -> None:
    ax = plot.parameters(made / "run", new_axes(), n=3)
    effects = effect_sizes(run_parameters(read_run(made / "run")))
    names = effects.ranked()[:3]
    assert len(ax.get_yticks()) == 3
    dots = [line for line in ax.get_lines() if line.get_marker() in plot.CLASS_MARKERS]
    assert sum(len(np.atleast_1d(line.get_xdata())) for line in dots) == sum(
        np.count_nonzero(~np.isnan(effects.devices.column(name))) for name in names
    )
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["A", "B", "C"]
    rate = plot.parameters(effects, new_axes(), names=["firing_rate_hz"])
    assert "firing rate" in rate.get_yticklabels()[0].get_text()


def make_effects() -> Effects:
    values = np.array([[1.0, math.nan], [2.0, 0.5], [30.0, 0.6], [40.0, 0.7]])
    rows = ParameterValues(
        names=("firing_rate_hz", "burst_duration_s"),
        values=values,
        device=np.array(["d0", "d1", "d2", "d3"]),
        label=np.array(["low", "low", "high", "high"]),
        classes=("low", "high"),
        columns={},
    )
    return effect_sizes(rows)


def test_dots_of_one_parameter_are_its_values() -> None:
    ax = plot.parameter(make_effects(), "firing_rate_hz", new_axes())
    dots = {
        str(line.get_label()): np.asarray(line.get_ydata()).tolist()
        for line in ax.get_lines()
        if line.get_marker() in plot.CLASS_MARKERS
    }
    assert dots == {"low": [1.0, 2.0], "high": [30.0, 40.0]}
    medians = [np.asarray(line.get_ydata()).tolist() for line in ax.get_lines()[1::2]]
    assert medians == [[1.5, 1.5], [35.0, 35.0]]
    assert ax.get_yscale() == "log"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["low", "high"]
    with pytest.raises(InputError, match="no parameter 'nothing'"):
        plot.parameter(make_effects(), "nothing", new_axes())


def test_lines_join_the_values_of_a_device_that_has_several_labels() -> None:
    rows = ParameterValues(
        names=("firing_rate_hz",),
        values=np.array([[1.0], [3.0], [2.0], [5.0], [7.0]]),
        device=np.array(["d0", "d0", "d1", "d1", "d2"]),
        label=np.array(["drug", "basal", "basal", "drug", "basal"]),
        classes=("basal", "drug"),
        columns={},
    )
    ax = plot.parameter(effect_sizes(rows), "firing_rate_hz", new_axes())
    lines = [line for line in ax.get_lines() if line.get_color() == plot.GREY]
    assert [np.asarray(line.get_ydata()).tolist() for line in lines] == [[3, 1], [2, 5]]
    for line in lines:
        x = np.asarray(line.get_xdata())
        assert x[1] - x[0] == pytest.approx(1)  # straight above its other value
    alone = plot.parameter(make_effects(), "firing_rate_hz", new_axes())
    assert not [line for line in alone.get_lines() if line.get_color() == plot.GREY]


def test_course_has_a_line_for_each_device_and_class() -> None:
    rows = ParameterValues(
        names=("firing_rate_hz",),
        values=np.array([[3.0], [1.0], [2.0], [9.0], [4.0]]),
        device=np.array(["d0", "d0", "d0", "d1", "d2"]),
        label=np.array(["a", "a", "a", "b", "b"]),
        classes=("a", "b"),
        columns={"DIV": np.array(["21", "7", "DIV 14", "14 d", ""])},
    )
    ax = plot.course(rows, "firing_rate_hz", new_axes(), column="DIV")
    lines = [line for line in ax.get_lines() if line.get_linestyle() == "-"]
    assert [np.asarray(line.get_xydata()).tolist() for line in lines] == [
        [[7, 1], [14, 2], [21, 3]],
        [[14, 9]],
    ]
    assert [line.get_color() for line in lines] == list(plot.CLASS_COLOURS[:2])
    assert ax.get_xlabel() == "days in vitro"
    with pytest.raises(InputError, match="no column 'age'"):
        plot.course(rows, "firing_rate_hz", new_axes(), column="age")


def test_effect_stands_beside_the_parameters_name() -> None:
    assert len(plot.parameters(make_effects(), new_axes()).get_yticks()) == 1
    ax = plot.parameters(make_effects(), new_axes(), names=["firing_rate_hz", "burst_duration_s"])
    first, second = (tick.get_text() for tick in ax.get_yticklabels())
    assert "firing rate" in first
    assert "\u03b4 1.00 (" in first
    assert "burst duration" in second
    assert "\u03b4" not in second


def test_classes_beyond_the_colours_differ_by_their_markers() -> None:
    n = 2 * len(plot.CLASS_COLOURS)
    pairs = {
        (plot.class_colour(k), plot.CLASS_MARKERS[k % len(plot.CLASS_MARKERS)]) for k in range(n)
    }
    assert len(pairs) == n


# --- figures


def test_a_figure_of_its_own_is_pyplots_and_axes_that_are_given_leave_pyplot_alone() -> None:
    spikes = make_trains([1.0], [0], ("12",))
    ax = plot.raster(spikes)
    assert plt.gcf() is ax.figure
    plt.close("all")
    plot.raster(spikes, new_axes())
    plot.parameters(make_effects(), new_axes())
    assert plt.get_fignums() == []


@pytest.mark.parametrize("backend", ["", "tkagg", "module://no_such_notebook"])
def test_diagrams_are_drawn_without_a_screen_whatever_the_environment_says(
    backend: str, tmp_path: Path
) -> None:
    code = (
        "from toptune import plot\n"
        "from toptune.recordings.trains import SpikeTrains\n"
        "t = SpikeTrains.from_arrays([1.0], ['12'], duration_s=2.0, sampling_rate_hz=1000)\n"
        "ax = plot.raster(t)\n"
        f"ax.figure.savefig({str(tmp_path / 'x.png')!r})\n"
    )
    environment: dict[str, Any] = {**os.environ, "MPLBACKEND": backend}
    environment.pop("DISPLAY", None)
    if not backend:
        del environment["MPLBACKEND"]
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


# --- the parameters of a run


def test_parameters_of_a_run_are_the_same_from_its_table_and_from_its_store(
    made: Path, tmp_path: Path
) -> None:
    run = read_run(made / "run")
    read = run_parameters(run)
    (made / "run" / "parameters.csv").rename(tmp_path / "parameters.csv")
    try:
        measured = run_parameters(run)
        params = {**json.loads((made / "run" / "params.json").read_text()), "store": None}
        object.__setattr__(run, "params", params)
        with pytest.raises(InputError, match="store with its spikes is not at hand"):
            run_parameters(run)
    finally:
        (tmp_path / "parameters.csv").rename(made / "run" / "parameters.csv")
    np.testing.assert_allclose(read.values, measured.values, rtol=1e-4)
    assert read.device.tolist() == measured.device.tolist() == [f"dev{k}" for k in range(6)]
    assert read.label.tolist() == list("ABCABC")
    assert read.columns["batch"].tolist() == ["b0", "b1"] * 3
