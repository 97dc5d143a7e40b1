"""The diagrams of a sweep's report: comparison of classifiers, and accuracy against throughput.

Figures are as wide as a phone's screen, so that their text is readable there. The colours are those
of Okabe and Ito (2008, https://jfly.uni-koeln.de/color/) for colour-blind readers, and colour is
never the only difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from toptune.sweeps.plan import describe_picture, fit_labels
from toptune.sweeps.results import Outcome, PictureOutcome, picture_outcomes
from toptune.sweeps.tables import WITHOUT_PICTURES, is_random

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_WIDTH_IN = 5.4
_INK = "#333333"


def view_labels(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Name each view, by the key of its features, with what distinguishes it from the others."""
    views = {one.facts.key: _parts(one) for one in picture_outcomes(outcomes)}
    labels = {}
    for key, parts in views.items():
        differs = [name for name in parts if len({p[name] for p in views.values()}) > 1]
        labels[key] = (
            " ".join(filter(None, (parts[name] for name in differs)))
            or f"{parts['picture']} {parts['window']}"
        )
    if any(o.point.view is None for o in outcomes):
        labels[""] = WITHOUT_PICTURES
    return labels


def _parts(one: PictureOutcome) -> dict[str, str]:
    return {
        "backbone": one.view.backbone.name,
        "weights": "random" if is_random(one.facts) else "",
        "picture": describe_picture(one.view),
        "window": f"{one.view.windows.width_s:g} s",
        "stride": f"every {one.view.windows.stride_s:g} s",
    }


def draw_classifiers(outcomes: Sequence[Outcome]) -> Figure:
    """Draw device accuracy with its interval: a row for each view, a marker for each classifier.

    Parameters
    ----------
    outcomes
        Outcomes of one task, each with scores.
    """
    from matplotlib.figure import Figure

    labels = view_labels(outcomes)
    of = fit_labels(o.point.fit for o in outcomes)
    fits = list(dict.fromkeys(of.values()))
    step = 0.8 / len(fits)
    # Each classifier needs the height of a line.
    height = 1.3 + len(labels) * max(0.3, 0.16 * len(fits)) + 0.2 * len(fits)
    figure = Figure(figsize=(_WIDTH_IN, height), layout="constrained")
    axes = figure.add_subplot()
    rows = {key: row for row, key in enumerate(labels)}
    for k, fit in enumerate(fits):
        mine = [o for o in outcomes if of[o.point.fit] == fit]
        y = [rows[o.view_key] + (k - (len(fits) - 1) / 2) * step for o in mine]
        _dots(axes, [_accuracy(o) for o in mine], y, k, fit)
    _chance(axes, outcomes, vertical=True)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(labels) - 0.5, -0.5), xlabel="accuracy per device")
    axes.set_yticks(range(len(labels)), list(labels.values()), fontsize=9)
    _quiet(axes, "x")
    figure.legend(loc="outside upper center", ncols=1 + (len(fits) < 3), fontsize=9, frameon=False)
    return figure


def draw_throughput(outcomes: Sequence[Outcome]) -> Figure:
    """Draw device accuracy against pictures per second.

    Parameters
    ----------
    outcomes
        Outcomes of one task, each with scores; those without pictures are horizontal lines.
    """
    from matplotlib.figure import Figure

    measured = [one for one in picture_outcomes(outcomes) if one.facts.throughput.pictures_per_s]
    names = list(dict.fromkeys(_network(one) for one in measured))
    of = fit_labels(one.fit for one in measured)
    fits = list(dict.fromkeys(of.values()))
    without = [o for o in outcomes if o.point.view is None]
    entries = len(names) + len(without) + (len(fits) if len(fits) > 1 else 0)
    figure = Figure(figsize=(_WIDTH_IN, 3.9 + 0.1 * entries), layout="constrained")
    axes = figure.add_subplot()
    for one in measured:
        colour = _COLOURS[names.index(_network(one)) % len(_COLOURS)]
        share, low, high = _accuracy(one.outcome)
        axes.errorbar(
            one.facts.throughput.pictures_per_s or 1.0,
            share,
            yerr=[[share - low], [high - share]],
            fmt=_MARKERS[fits.index(of[one.fit]) % len(_MARKERS)],
            color=colour,
            ms=6,
            elinewidth=0.7,
            # Raster plots are hollow, histograms filled.
            mfc="white" if one.view.picture.kind == "raster" else colour,
        )
    for name in names:
        axes.plot([], [], "o", color=_COLOURS[names.index(name) % len(_COLOURS)], label=name)
    for k, label in enumerate(fits if len(fits) > 1 else ()):
        axes.plot([], [], _MARKERS[k % len(_MARKERS)], color=_INK, label=label)
    for outcome in without:
        share = _accuracy(outcome)[0]
        axes.axhline(share, color=_INK, lw=1, ls=":", label=f"{WITHOUT_PICTURES}: {share:.2f}")
    _chance(axes, outcomes, vertical=False)
    axes.set(
        xscale="log", ylim=(-0.03, 1.03), xlabel="pictures per second", ylabel="accuracy per device"
    )
    _plain_log_ticks(axes, [one.facts.throughput.pictures_per_s or 1.0 for one in measured])
    _quiet(axes, "both")
    figure.legend(loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    return figure


def _network(one: PictureOutcome) -> str:
    random = " (random weights)" if is_random(one.facts) else ""
    return f"{one.view.backbone.name}{random}"


def _accuracy(outcome: Outcome) -> tuple[float, float, float]:
    """Device accuracy and its interval."""
    assert outcome.metrics is not None
    low, high = outcome.metrics["device_accuracy_ci95"]
    return outcome.metrics["device_accuracy"], low, high


def _dots(
    axes: Axes, shares: list[tuple[float, float, float]], y: list[float], k: int, label: str
) -> None:
    x = [share for share, _, _ in shares]
    error = [[s - low for s, low, _ in shares], [high - s for s, _, high in shares]]
    axes.errorbar(
        x,
        y,
        xerr=error,
        fmt=_MARKERS[k % len(_MARKERS)],
        color=_COLOURS[k % len(_COLOURS)],
        ms=5,
        elinewidth=1,
        label=label,
    )


def _chance(axes: Axes, outcomes: Sequence[Outcome], *, vertical: bool) -> None:
    assert outcomes[0].metrics is not None
    chance = outcomes[0].metrics["chance"]
    draw: Any = axes.axvline if vertical else axes.axhline
    draw(
        chance, color=_INK, lw=1, ls=(0, (4, 3)), label=f"chance (most common class): {chance:.2f}"
    )


def _plain_log_ticks(axes: Axes, rates: Sequence[float]) -> None:
    """Label the axis at 1, 2 and 5 of each decade, around the measured rates."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xlim(min(rates) / 1.5, max(rates) * 1.5)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _quiet(axes: Axes, grid: Any) -> None:
    axes.grid(axis=grid, color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
